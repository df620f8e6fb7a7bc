"The project keeps its own rules: export in sync, README and sidebar complete, clean notebooks, light imports."
import ast, json, os, re, subprocess, sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import docs, readme, sync

NBS = sorted(p for p in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in ROOT.glob("mirrorcfe/**/*.py") if not p.name.startswith("_"))
PATHS = re.compile(r"(?<![\w.~])/(work|tmp|home|root|Users|private|opt)/|site-packages|[A-Z]:\\\\")
UNSTABLE = re.compile(r"0x[0-9a-f]{6,}|\d+%\|| it/s|s/it|\d (?:ms|µs|us) ±|Wall time", re.I)

def cells(nb, kind="code"):
    "The cells of one kind of a notebook."
    return [c for c in json.loads(nb.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]

def source(cell): return readme.text(cell["source"])
def marks(cell): return readme.directives(source(cell))[0]
def outputs(nb): return [o for c in cells(nb) for o in c["outputs"]]
def ids(items): return [str(i.relative_to(ROOT)) for i in items]

def cfg():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    return ini["DEFAULT"]

each_nb = pytest.mark.parametrize("nb", NBS, ids=ids(NBS))
each_module = pytest.mark.parametrize("module", MODULES, ids=ids(MODULES))

# --- generated files -------------------------------------------------------------------------------------------------

def test_export_and_clean_leave_no_diff(): assert sync.differences() == []

def test_readme_is_the_index(): assert list(readme.stale()) == [], "run `make readme`"

def test_readme_links_lead_somewhere():
    md = (ROOT/"README.md").read_text(encoding="utf-8")
    local = [t for _, t, _ in readme.LINK.findall(md) if not re.match(r"[a-z]+:|#", t)]
    assert [t for t in local if not (ROOT/t.split("#")[0]).exists()] == []

def test_sidebar_is_complete():
    pages = [n for _, names in docs.sidebar() for n in names]
    assert len(pages) == len(set(pages))
    assert set(pages) == {p.relative_to(ROOT/"nbs").as_posix() for p in NBS}
    (_, first), (name, start), *rest = docs.sidebar()
    assert first == ["index.ipynb"] and name == "Start here" and start == sorted(start)
    rest = [n for _, names in rest for n in names]
    assert rest == sorted(rest), "behind the pages to start with, the order is that of the numbers"

def test_every_page_has_a_number_of_its_own():
    numbers = [p.name.partition("_")[0] for p in NBS if p.name != "index.ipynb"]
    assert [n for n, k in Counter(numbers).items() if k > 1] == []

def test_quarto_file_is_linked():
    link = ROOT/"nbs"/"_quarto.yml"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link)) and link.resolve() == ROOT/"_quarto.yml"
    assert yaml.safe_load(link.read_text(encoding="utf-8"))["project"]["type"] == "website"

# --- settings --------------------------------------------------------------------------------------------------------

def test_settings():
    import mirrorcfe
    c = cfg()
    assert mirrorcfe.__version__ == c["version"]
    assert c["tst_flags"].split() == ["notest", "slow", "cuda"]
    assert c["update_pyproject"] == "False" and not (ROOT/"pyproject.toml").exists()
    assert c["custom_sidebar"] == "True" and c["readme_nb"] == "index.ipynb"
    assert (ROOT/"LICENSE").read_text().split()[:2] == ["Apache", "License"] and c["license"] == "apache2"

def test_runtime_requirements_are_wide():
    wide = cfg()["requirements"].split()
    dev = cfg()["dev_requirements"].split()
    assert [r for r in wide if re.search(r"<|==|~=", r)] == [], "an upper bound belongs in dev_requirements"
    assert "nbdev==2.4.14" in dev and any(r.startswith("fastcore") and "<2" in r for r in dev)

# Where an import is not the name of the package that holds it.
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "imageio_ffmpeg": "imageio-ffmpeg",
            "skimage": "scikit-image"}
# Packages that fastai, matplotlib, pooch or torch always bring along.
BROUGHT = {"fastcore", "fastprogress", "numpy", "pandas", "scipy", "requests", "IPython"}

def test_what_is_imported_is_required():
    "Every package that a module imports at its top is in `requirements`, or comes with one that is."
    required = {re.split(r"[<>=!~]", r)[0] for r in cfg()["requirements"].split()}
    found = set()
    for module in MODULES:
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import): found.update(a.name.split(".")[0] for a in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level: found.add(node.module.split(".")[0])
    found -= {*sys.stdlib_module_names, "mirrorcfe"} | BROUGHT
    assert {PACKAGES.get(n, n) for n in found} <= required

def test_ci_calls_make_test():
    run = ROOT/".ci"/"run"
    assert os.access(run, os.X_OK) and "make test" in run.read_text()

# --- notebooks -------------------------------------------------------------------------------------------------------

@each_nb
def test_notebook_opens_and_closes(nb):
    first = json.loads(nb.read_text(encoding="utf-8"))["cells"][0]
    assert re.match(r"# \S.*\n\n?> \S", source(first)), "the first cell: `# Name` and `> what you can do after reading`"
    assert "nbdev_export(" in source(cells(nb)[-1]) and "hide" in marks(cells(nb)[-1])

@each_nb
def test_notebook_is_small(nb): assert nb.stat().st_size < 300_000

def words(output):
    "What an output says, without its pictures."
    return json.dumps({k: v for k, v in output.get("data", output).items() if not k.startswith("image/")})

@each_nb
def test_notebook_names_no_machine(nb):
    stored = list(map(words, outputs(nb)))
    sources = [source(c) for kind in ("code", "markdown") for c in cells(nb, kind)]
    assert [m[0] for m in map(PATHS.search, stored + sources) if m] == []
    assert [m[0] for m in map(UNSTABLE.search, stored) if m] == []

@each_nb
def test_notebook_stores_no_error(nb):
    bad = [o for o in outputs(nb) if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert [o.get("ename") or o["text"] for o in bad] == []

@each_nb
def test_notebook_runs_whole(nb):
    is_off = lambda cell: any(re.match(r"eval:\s*false", m) for m in marks(cell))
    assert [source(c)[:60] for c in cells(nb) if is_off(c)] == []

MOST = 120   # characters of a line
BY_HAND = ["README.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/results/painter.md"]
PYTHON = [ROOT/"setup.py", *(p for d in ("tests", "benchmarks", "tools") for p in sorted(ROOT.glob(f"{d}/**/*.py")))]
UNBROKEN = re.compile(r"\s*(\||!\[|\w+ += \{|<?https?://\S+$)")   # in Markdown: tables, pictures, BibTeX, addresses
BY_NBDEV = re.compile(r'"""|__all__ = ')   # in modules: made of a notebook's summary, and of its names

def too_long(text, name, free=None):
    "Where a text has lines of more than `MOST` characters, but for those that begin with `free`."
    return [f"{name} line {n}: {len(l)} characters" for n, l in enumerate(text.split("\n"), 1)
            if len(l) > MOST and not (free and free.match(l))]

def long_lines(path):
    "Where a file has long lines; in a notebook with the number of the cell."
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return too_long(text, name, UNBROKEN if path.suffix == ".md" else BY_NBDEV if path in MODULES else None)
    return [line for n, c in enumerate(json.loads(text)["cells"])
            for line in too_long(source(c), f"{name} cell {n}", UNBROKEN if c["cell_type"] == "markdown" else None)]

def test_no_line_is_long():
    paths = [*NBS, *MODULES, *PYTHON, *(ROOT/f for f in BY_HAND)]
    found = [line for p in paths for line in long_lines(p)]
    assert not found, "\n".join(found)

SETUP = re.compile(r"(plt|mpl)\.rcParams|\w+ = .*environ|nbdev\.nbdev_export")

def is_setup(node):
    "Whether a statement imports, sets up pictures, or asks the environment."
    return isinstance(node, (ast.Import, ast.ImportFrom)) or SETUP.match(ast.unparse(node)) is not None

@each_nb
def test_import_cells_hold_only_imports(nb):
    "A build of the documentation runs every cell that imports something, and no cell before it."
    if nb.name == "index.ipynb": pytest.skip("its lines of Python are whole on purpose, and need nothing before them")
    for cell in cells(nb):
        python = [l for l in source(cell).splitlines() if not l.lstrip().startswith(("%", "!"))]
        body = ast.parse("\n".join(python)).body
        if not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body): continue
        assert all(map(is_setup, body)), source(cell)[:80]

def module_of(nb):
    "The name of the module that a notebook is exported to, `None` for a page without one."
    named = [m.split()[1] for c in cells(nb) for m in marks(c) if m.startswith("default_exp")]
    assert len(named) < 2
    return named[0] if named else None

ORDER = list(filter(None, map(module_of, NBS)))   # the modules, in the order of the pages

def module_name(path):
    "`mirrorcfe/baselines/pgd.py` -> `baselines.pgd`."
    return ".".join(path.relative_to(ROOT/"mirrorcfe").with_suffix("").parts)

def test_one_notebook_one_module():
    assert len(ORDER) == len(set(ORDER))
    assert sorted(ORDER) == sorted(map(module_name, MODULES))

# --- modules ---------------------------------------------------------------------------------------------------------

def public(tree):
    "The names in `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []

@each_module
def test_public_functions_are_documented(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    names = set(public(tree))
    defs = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names]
    assert [n.name for n in defs if not ast.get_docstring(n)] == []

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Modules that import other modules of mirrorcfe inside functions, and why.
LATE = {"cli": "`mirrorcfe --help` must not wait for torch",
        "training": "who loads an explainer must not wait for fastai's learner"}

def imported(node, package):
    "The modules of mirrorcfe that one import statement names."
    if isinstance(node, ast.Import): names = [a.name for a in node.names]
    else:
        base = list(package[:len(package) - node.level + 1]) if node.level else []
        base = ".".join([*base, *filter(None, [node.module])])
        names = [base, *(f"{base}.{a.name}" for a in node.names)]
    ours = {n.removeprefix("mirrorcfe.") for n in names if n.startswith("mirrorcfe.")}
    return ours & set(map(module_name, MODULES))

def imports(source, package=("mirrorcfe",)):
    "The modules of mirrorcfe that a source imports when it is itself imported, and those it imports inside functions."
    top = set()
    late = set()
    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found = late if inside else top
                found.update(imported(child, package))
            visit(child, inside or isinstance(child, FUNCTIONS))
    visit(ast.parse(source), False)
    return top, late

def imports_of(module):
    package = ("mirrorcfe", *module.relative_to(ROOT/"mirrorcfe").parts[:-1])
    return imports(module.read_text(encoding="utf-8"), package)

def circle(graph):
    "A circle in a graph `name -> names`, as a list that ends as it begins; `None` where there is none."
    done = set()
    def search(name, path):
        if name in path: return [*path[path.index(name):], name]
        if name in done: return None
        for n in sorted(graph.get(name, ())):
            if found := search(n, [*path, name]): return found
        done.add(name)
    return next(filter(None, (search(n, []) for n in sorted(graph))), None)

def test_imports_are_seen_in_every_form():
    source = """
import mirrorcfe.core, json
from mirrorcfe import data, __version__
from .pgd import PGD
from ..features import Normalise
def f():
    import mirrorcfe.wrap
"""
    assert imports(source, ("mirrorcfe", "baselines")) == ({"core", "data", "baselines.pgd", "features"}, {"wrap"})

def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "d": {"b"}}) == ["b", "d", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) is None

@each_module
def test_imports_point_upwards(module):
    "A module imports only from modules above it in the sidebar, and at its top."
    me = module_name(module)
    top, late = imports_of(module)
    assert sorted(n for n in top | late if ORDER.index(n) >= ORDER.index(me)) == []
    assert me in LATE or not late, f"inside functions: {late}; import them at the top, or name the reason in LATE"

def test_no_import_circle():
    graph = {module_name(m): imports_of(m)[0] for m in MODULES}
    assert sum(map(len, graph.values())) > len(MODULES), "the graph has edges"
    assert circle(graph) is None

@each_module
def test_module_is_explicit(module):
    code = module.read_text(encoding="utf-8")
    assert "fastai.vision.all import *" not in code
    assert not re.search(r"(filterwarnings|simplefilter)\(\s*['\"]ignore", code)

def python(code):
    "Run a line of Python in a process of its own; returns what it prints on both streams."
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip(), run.stderr.strip()

@pytest.fixture(scope="module")
def fresh():
    "What a process prints that imports first what is light, then the explainer, and at last the rest."
    heavy = ("fastai.learner", "fastai.callback", "fastai.vision", "sklearn", "scipy.stats", "spacy", "lpips",
             "torchmetrics", "torchvision", "ipywidgets", "mirrorcfe.wrap", "mirrorcfe.loop", "mirrorcfe.show",
             "mirrorcfe.animate", "mirrorcfe.widget")
    return python(f"""
import sys, mirrorcfe.core, mirrorcfe.multiclass, mirrorcfe.confidence
from mirrorcfe.features import Classifier
print([m for m in sys.modules if m in ("mirrorcfe.wrap", "fastai")])
import mirrorcfe.explainer
print([m for m in sys.modules if m.startswith({heavy})])
print("sample" in Classifier.wrap.__annotations__)   # before anything else has imported its module
import {", ".join(f"mirrorcfe.{m}" for m in ORDER)}
""")

@pytest.mark.parametrize("name", ["core", "cli"])
def test_start_up_is_light(name):
    heavy = ("torch", "fastai.vision", "spacy", "lpips", "sklearn")
    printed, _ = python(f"import sys, mirrorcfe.{name}; print([m for m in sys.modules if m.startswith({heavy})])")
    assert printed == "[]"

def test_what_few_need_comes_when_it_is_asked_for(fresh):
    "Of what costs seconds: a classifier brings neither fastai nor `wrap`, the explainer only what explains."
    bare, explainer, wraps = fresh[0].splitlines()
    assert (bare, explainer, wraps) == ("[]", "[]", "True")

def test_imports_are_silent(fresh):
    "Warnings of other packages about themselves do not reach the user."
    assert len(fresh[0].splitlines()) == 3 and fresh[1] == ""
