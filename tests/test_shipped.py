"The explainer of photographs that comes with the package: whole, small, and right about its own pictures."
import re
from mirrorcfe.own import load_images
from mirrorcfe.runs import SHIPPED, load_explainer, load_panel
from mirrorcfe.storage import file_hash
from test_project import ROOT

PAGE = (SHIPPED/"README.md").read_text(encoding="utf-8")

def test_every_file_is_listed_with_its_checksum():
    files = {p.relative_to(SHIPPED).as_posix() for p in SHIPPED.rglob("*") if p.is_file()} - {"README.md"}
    listed = dict(re.findall(r"\| (\S+) \| [\d,]+ \| ([0-9a-f]{64}) \|", PAGE))
    assert set(listed) == files
    assert {f for f in files if file_hash(SHIPPED/f) != listed[f]} == set()

def test_it_is_small_and_says_where_it_comes_from():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) < 6*2**20
    assert "Acevedo" in PAGE and "CC BY 4.0" in PAGE and "benchmarks/ship.py" in PAGE
    assert "recursive-include mirrorcfe/shipped *" in (ROOT/"MANIFEST.in").read_text(), "a wheel carries it, too"

def test_it_explains_its_own_pictures():
    cfe, oracle, about = load_explainer(SHIPPED)
    files, x, odd, _ = load_images([SHIPPED/"examples"], about)
    names = [re.sub(r"^\d+_", "", f.stem) for f in files]
    ex = cfe.explain(x[:4], ks=2, closed_loop=False).judged(load_panel(SHIPPED))
    assert oracle is None and not any(odd) and len(files) == 10
    assert [cfe.classifier.classes[c] for c in cfe.classifier(x).argmax(1)] == names
    assert {names[0], names[1]} == {cfe.classifier.classes[c] for c in cfe.pair}
    assert (ex.predicted[:, -1] == ex.target).all() and ex.believed.isfinite().all() and (ex.unlike < 1).all()

def test_half_precision_is_stored():
    "Twice as large otherwise."
    from safetensors import safe_open
    for file in SHIPPED.rglob("*.safetensors"):
        with safe_open(file, "pt") as f: kinds = {f.get_slice(n).get_dtype() for n in f.keys()}
        assert kinds <= {"F16", "I64"}, file.name
