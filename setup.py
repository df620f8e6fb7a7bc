"Package metadata, read from settings.ini so that it stands in one place."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here/"settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

def outside(md):
    "A page whose links and pictures are found from outside of the repository too, as on PyPI."
    def one(m):
        if re.match(r"[a-z]+:|#", m[2]): return m[0]
        kind = "raw" if m[1].startswith("!") else "blob"
        return f"{m[1]}{cfg['git_url']}/{kind}/{cfg['branch']}/{m[2]}{m[3]}"
    return re.sub(r"(!?\[[^\]]*\]\()([^)\s]+)(\))", one, md)

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=outside((here/"README.md").read_text(encoding="utf-8")) if (here/"README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=find_packages(include=["mirrorcfe", "mirrorcfe.*"]),
    include_package_data=True,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in ("dev", "app", "docs")},
    entry_points={"console_scripts": ["mirrorcfe=mirrorcfe.cli:main"],
                  "nbdev": ["mirrorcfe=mirrorcfe._modidx:d"]},
)
