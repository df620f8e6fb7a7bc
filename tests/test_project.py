"The project keeps its own rules: export in sync, README and sidebar complete, notebooks clean and small, imports light."
import ast, json, os, re, subprocess, sys
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

def cells(nb, kind="code"): return [c for c in json.loads(nb.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]
def source(cell): return readme.text(cell["source"])
def marks(cell): return readme.directives(source(cell))[0]
def is_exported(cell): return any(re.match(r"exports?\b", m) for m in marks(cell))
def ids(items): return [str(i.relative_to(ROOT)) for i in items]
def cfg():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    return ini["DEFAULT"]

each_nb = pytest.mark.parametrize("nb", NBS, ids=ids(NBS))
each_module = pytest.mark.parametrize("module", MODULES, ids=ids(MODULES))

# --- generated files -------------------------------------------------------------------------------------------------------------

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

def test_quarto_file_is_linked():
    link = ROOT/"nbs"/"_quarto.yml"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link)) and link.resolve() == ROOT/"_quarto.yml"
    assert yaml.safe_load(link.read_text(encoding="utf-8"))["project"]["type"] == "website"

# --- settings --------------------------------------------------------------------------------------------------------------------

def test_settings():
    import mirrorcfe
    c = cfg()
    assert mirrorcfe.__version__ == c["version"]
    assert c["tst_flags"].split() == ["notest", "slow", "cuda"]
    assert c["update_pyproject"] == "False" and not (ROOT/"pyproject.toml").exists()
    assert c["custom_sidebar"] == "True" and c["readme_nb"] == "index.ipynb"
    assert (ROOT/"LICENSE").read_text().split()[:2] == ["Apache", "License"] and c["license"] == "apache2"

def test_runtime_requirements_are_wide():
    wide, dev = cfg()["requirements"].split(), cfg()["dev_requirements"].split()
    assert [r for r in wide if re.search(r"<|==|~=", r)] == [], "an upper bound belongs in dev_requirements"
    assert "nbdev==2.4.14" in dev and any(r.startswith("fastcore") and "<2" in r for r in dev)

def test_ci_calls_make_test():
    run = ROOT/".ci"/"run"
    assert os.access(run, os.X_OK) and "make test" in run.read_text()

# --- notebooks -------------------------------------------------------------------------------------------------------------------

@each_nb
def test_notebook_opens_and_closes(nb):
    first = json.loads(nb.read_text(encoding="utf-8"))["cells"][0]
    assert re.match(r"# \S.*\n\n?> \S", source(first)), "the first cell is `# Name` and `> what you can do after reading`"
    assert "nbdev_export(" in source(cells(nb)[-1]) and "hide" in marks(cells(nb)[-1])

@each_nb
def test_notebook_is_small(nb): assert nb.stat().st_size < 300_000

@each_nb
def test_notebook_names_no_machine(nb):
    outs = [json.dumps({k: v for k, v in o.get("data", o).items() if not k.startswith("image/")}) for c in cells(nb) for o in c["outputs"]]
    sources = [source(c) for kind in ("code", "markdown") for c in cells(nb, kind)]
    assert [m[0] for s in outs + sources for m in [PATHS.search(s)] if m] == []
    assert [m[0] for s in outs for m in [UNSTABLE.search(s)] if m] == []

@each_nb
def test_notebook_stores_no_error(nb):
    outs = [o for c in cells(nb) for o in c["outputs"]]
    assert [o.get("ename") or o["text"] for o in outs if o["output_type"] == "error" or o.get("name") == "stderr"] == []

@each_nb
def test_notebook_runs_whole(nb): assert [source(c)[:60] for c in cells(nb) if any(re.match(r"eval:\s*false", m) for m in marks(c))] == []

def is_setup(node):
    "Whether a statement beside imports only sets up pictures or asks the environment."
    text = ast.unparse(node)
    return isinstance(node, (ast.Import, ast.ImportFrom)) or re.match(r"(plt|mpl)\.rcParams|\w+ = .*environ|nbdev\.nbdev_export", text) is not None

@each_nb
def test_import_cells_hold_only_imports(nb):
    "A build of the documentation runs every cell that imports something, and no cell before it."
    if nb.name == "index.ipynb": pytest.skip("its lines of Python are whole on purpose, and need nothing before them")
    for cell in cells(nb):
        tree = ast.parse("\n".join(l for l in source(cell).splitlines() if not l.lstrip().startswith(("%", "!"))))
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body): assert all(map(is_setup, tree.body)), source(cell)[:80]

def test_one_notebook_one_module():
    named = [m.split()[1] for nb in NBS for c in cells(nb) for m in marks(c) if m.startswith("default_exp")]
    assert len(named) == len(set(named))
    assert sorted(named) == sorted(".".join(m.relative_to(ROOT/"mirrorcfe").with_suffix("").parts) for m in MODULES)

# --- modules ---------------------------------------------------------------------------------------------------------------------

def public(module):
    "The names in `__all__`, read without importing."
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__": return ast.literal_eval(node.value)
    return []

@each_module
def test_public_functions_are_documented(module):
    tree, names = ast.parse(module.read_text(encoding="utf-8")), set(public(module))
    defs = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names]
    assert [n.name for n in defs if not ast.get_docstring(n)] == []

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Imports inside functions, and why. A module that is not named here has none of another module of this package.
LATE = {"cli": "`mirrorcfe --help` must not wait for torch"}

def module_name(path):
    "`mirrorcfe/baselines/pgd.py` -> `baselines.pgd`."
    return ".".join(path.relative_to(ROOT/"mirrorcfe").with_suffix("").parts)

def imported(node, package):
    "The modules of mirrorcfe that one import statement names, as far as there are such: `baselines.pgd`."
    if isinstance(node, ast.Import): names = [a.name for a in node.names]
    else:
        base = package[:len(package) - node.level + 1] if node.level else []
        base = ".".join([*base, *filter(None, [node.module])])
        names = [base, *(f"{base}.{a.name}" for a in node.names)]
    known = set(map(module_name, MODULES))
    return {n.removeprefix("mirrorcfe.") for n in names if n.startswith("mirrorcfe.")} & known

def imports(source, package=("mirrorcfe",)):
    "The modules of mirrorcfe that a source imports when it is imported, and those that it imports inside functions."
    top, late = set(), set()
    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)): (late if inside else top).update(imported(child, list(package)))
            visit(child, inside or isinstance(child, FUNCTIONS))
    visit(ast.parse(source), False)
    return top, late

def imports_of(module): return imports(module.read_text(encoding="utf-8"), ("mirrorcfe", *module.relative_to(ROOT/"mirrorcfe").parts[:-1]))

def circle(graph):
    "A circle in a graph `name -> names`, as a list whose last name is its first; `None` where there is none."
    done = set()
    def search(name, path):
        if name in path: return [*path[path.index(name):], name]
        if name in done: return None
        for n in sorted(graph.get(name, ())):
            if found := search(n, [*path, name]): return found
        done.add(name)
    return next(filter(None, (search(n, []) for n in sorted(graph))), None)

def test_imports_are_seen():
    "In every form, and inside functions."
    source = """
import mirrorcfe.core, json
from mirrorcfe import data, __version__
from .pgd import PGD
from ..features import Normalise
def f():
    import mirrorcfe.wrap
    return lambda: [__import__('os')]
"""
    assert imports(source, ("mirrorcfe", "baselines")) == ({"core", "data", "baselines.pgd", "features"}, {"wrap"})
    assert circle({"a": {"b"}, "b": {"c", "d"}, "d": {"b"}}) == ["b", "d", "b"] and circle({"a": {"b", "c"}, "b": {"c"}}) is None

@each_module
def test_imports_point_upwards(module):
    order = [m.split()[1] for nb in NBS for c in cells(nb) for m in marks(c) if m.startswith("default_exp")]
    me = module_name(module)
    top, late = imports_of(module)
    assert sorted(n for n in top | late if order.index(n) >= order.index(me)) == [], "a module imports only from modules above it in the sidebar"
    assert me in LATE or not late, f"inside functions: {late}; move the import to the top, or name the reason in LATE"

def test_no_import_circle():
    graph = {module_name(m): imports_of(m)[0] for m in MODULES}
    assert sum(map(len, graph.values())) > len(MODULES), "the graph has edges"
    assert circle(graph) is None

@each_module
def test_module_is_explicit(module):
    code = module.read_text(encoding="utf-8")
    assert "fastai.vision.all import *" not in code
    assert not re.search(r"(filterwarnings|simplefilter)\(\s*['\"]ignore", code)

@pytest.mark.parametrize("name", ["core", "cli"])
def test_start_up_is_light(name):
    "Importing it must not pull fastai's vision, which costs seconds."
    if not (ROOT/"mirrorcfe"/f"{name}.py").exists(): pytest.skip(f"mirrorcfe.{name} does not exist yet")
    code = f"import sys, mirrorcfe.{name}; print([m for m in sys.modules if m.startswith(('fastai.vision', 'spacy', 'sklearn'))])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
