"""Count what makes code hard to read: long lines, packed assignments, nested comprehensions, imports inside functions.

python tools/lines.py [FILE or FOLDER ...]     default: mirrorcfe benchmarks tools tests
Long lines are a share of the non-blank lines; the other three are counted per 1,000 of them.
Nothing fails: the figures are for a reader.
"""
import ast, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

def is_packed(node):
    "Whether `node` is `a, b = x, y`, several assignments in one statement; a swap is one thought and does not count."
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)): return False
    targets = [t for t in node.targets if isinstance(t, ast.Tuple)]
    names = lambda t: sorted(ast.unparse(e) for e in t.elts)
    return any(len(t.elts) == len(node.value.elts) > 1 and names(t) != names(node.value) for t in targets)

def inside(node, outer, kinds):
    "The nodes of `kinds` below `node` that lie inside a node of `outer`."
    for child in ast.iter_child_nodes(node):
        for found in ast.walk(child):
            if isinstance(found, kinds) and isinstance(node, outer): yield found
        if not isinstance(node, outer): yield from inside(child, outer, kinds)

def counts(file):
    "Non-blank lines of a file, long ones, packed assignments, nested comprehensions, imports inside functions."
    text = file.read_text(encoding="utf-8")
    lines = [l for l in text.splitlines() if l.strip()]
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    nested = set(map(id, inside(tree, COMPREHENSIONS, COMPREHENSIONS)))
    nested |= {id(n) for n in nodes if isinstance(n, COMPREHENSIONS) and len(n.generators) > 1}
    late = set(map(id, inside(tree, FUNCTIONS, (ast.Import, ast.ImportFrom))))
    return [len(lines), sum(len(l) > WIDTH for l in lines), sum(map(is_packed, nodes)), len(nested), len(late)]

def report(path):
    "Return one line on a file, or on all files of a folder."
    files = [f for f in sorted(path.rglob("*.py")) if f.name != "_modidx.py"] if path.is_dir() else [path]
    n, wide, packed, nested, late = map(sum, zip(*map(counts, files)))
    longest = max(max(map(len, f.read_text(encoding="utf-8").splitlines()), default=0) for f in files)
    return (f"{path.name:20} {n:6} lines, {wide/n:5.1%} over {WIDTH} characters (longest {longest}); per 1,000 lines: "
            f"packed {1000*packed/n:4.1f}, nested comprehensions {1000*nested/n:4.1f}, "
            f"imports inside functions {1000*late/n:4.1f}")

if __name__ == "__main__":
    for name in sys.argv[1:] or ["mirrorcfe", "benchmarks", "tools", "tests"]: print(report(ROOT/name))
