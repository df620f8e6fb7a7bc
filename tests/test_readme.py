"What the README prints can be run as it stands, from PyPI too."
import ast, builtins, re, runpy, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT/"README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)

def names(tree, kind):
    "Names that are read, or made, in a tree."
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}

def undefined(source):
    "Names that a snippet uses, and that neither it nor Python defines."
    tree = ast.parse(source)
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    imported = {(a.asname or a.name).split(".")[0] for n in imports for a in n.names}
    return names(tree, ast.Load) - names(tree, ast.Store) - imported - set(dir(builtins))

def test_undefined_names_are_seen(): assert undefined("import a.b\nx = a.f(epochs)\nprint(x)") == {"epochs"}

@pytest.mark.parametrize("source", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_are_whole(source): assert undefined(source) == set()

def test_quick_snippets_run_as_printed():
    "The output that stands below a snippet is what it prints; that of a training is not run here."
    quick = [s for s in SNIPPETS if ".fit(" not in s]
    assert quick
    for source in quick:
        printed = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
        assert printed.returncode == 0, printed.stderr
        assert f"```python\n{source}```\n\n```\n{printed.stdout.rstrip()}\n```" in README

def test_links_lead_somewhere_from_outside(monkeypatch):
    "On PyPI there is no file beside the README: every link says where it leads, pages and pictures alike."
    import setuptools
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT/"setup.py"))
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", given["long_description"])
    assert len(links) > 20 and all(re.match(r"https://|#", target) for _, target in links)
    pictures = [target for mark, target in links if mark]
    assert pictures and all(f"{given['url']}/raw/main/nbs/images/" in target for target in pictures)
    assert f"]({given['url']}/blob/main/nbs/95_getting_started.ipynb)" in given["long_description"]

def test_the_wheel_is_tried_in_ci():
    "Outside of the checkout, without the dev extra, on every version of Python that is promised."
    import yaml
    job = yaml.safe_load((ROOT/".github"/"workflows"/"test.yml").read_text())["jobs"]["wheel"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert any("make wheel" in step.get("run", "") for step in job["steps"])
    sys.path.insert(0, str(ROOT/"tools"))
    import try_wheel
    from mirrorcfe.cli import COMMANDS
    run = {c.split()[0] for c in try_wheel.COMMANDS if not c.endswith("--help")}
    assert set(COMMANDS) - {"app"} <= run, "the page needs an extra"

def test_importing_the_package_is_light():
    code = ("import sys, mirrorcfe; from mirrorcfe import MirrorError; "
            "print([m for m in ('torch', 'numpy', 'fastai') if m in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr
    import mirrorcfe
    from mirrorcfe.one_call import explain
    assert mirrorcfe.explain is explain
    from mirrorcfe import MirrorError
    assert MirrorError is mirrorcfe.core.MirrorError
    with pytest.raises(AttributeError, match="no attribute 'explian'"): mirrorcfe.explian
