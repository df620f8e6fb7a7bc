"What the result pages share, on made-up cells; numbers in prose; the README's lines as a stranger runs them."
import json, re, sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from mirrorcfe.core import MirrorError
from mirrorcfe import results as R
from processes import Started

ROOT = Path(__file__).resolve().parent.parent
README = ROOT/"README.md"
sys.path.insert(0, str(ROOT/"tools"))
import readme

# --- made-up cells -------------------------------------------------------------------------------------------------

def cell(task, method, direction, place, steps=5, **metrics):
    "A cell with one value for each metric; at the first CFE every value is .1 lower."
    rows = {}
    for end, less in (("first", .1), ("reflection", 0.)):
        values = {}
        for m, v in metrics.items():
            values[m] = dict(mean=v - less, low=v - less - .02, high=v - less + .02, n=10, coverage=1.)
        rows[end] = dict(metrics=values, coverage=1., flag="")
    ks = [j/(steps - 1) for j in range(steps)]
    about = dict(N=20, classifier_accuracy=.99, oracle_accuracy=.98, seed=0, device="cpu", torch="2", date="2026-01-01",
                 training=None)
    return dict(task=task, method=method, direction=direction, N=10, place=place, about=about, status="ok", rows=rows,
                curves=dict(ks=ks, intended=ks, achieved=ks), oracle_on_real=.9, key="k")

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "Two groups: `main` has two pairs of MNIST, `prox` one of them, with a method that jumps."
    from mirrorcfe.benchmark import _write_cell
    folder = tmp_path_factory.mktemp("results")
    main = [cell("MNIST 3-8", "ours", "3->8", [0, 0], Val=1., L1=.2, Oracle=.95),
            cell("MNIST 3-8", "ours", "8->3", [0, 1], Val=.9, L1=.4, Oracle=.85),
            cell("MNIST 4-9", "ours", "4->9", [0, 0], Val=1., L1=.3, Oracle=.9),
            cell("MNIST 4-9", "ours", "9->4", [0, 1], Val=1., L1=.3, Oracle=.9)]
    prox = [cell("MNIST 3-8", "ours, prox 8", "3->8", [0, 0], Val=1., L1=.1, Oracle=.95),
            cell("MNIST 3-8", "jump", "3->8", [1, 0], 2, Val=1., L1=.15, Oracle=.5)]
    made = dict(main=main, prox=prox)
    for group, cells in made.items():
        for j, c in enumerate(cells): _write_cell(folder/group/"cells"/f"{j}.json", c)
    return R.Results(folder, "python measure.py")

@pytest.fixture
def shown(monkeypatch):
    "What is displayed as Markdown, as a list of texts."
    texts = []
    monkeypatch.setattr(R, "display", lambda what: texts.append(what.data))
    return texts

def test_what_is_not_there_is_said(results, capsys):
    assert len(results.table("main", "faces")) == 8
    assert capsys.readouterr().out == "faces: not measured yet: run python measure.py faces\n"
    assert results.cells("main", task="CelebA") == [] and "main, CelebA: not measured yet" in capsys.readouterr().out
    assert len(results.table("faces")) == 0 and results.notes("time") == {} and results.arrays("walk", "walk.npz") == {}
    assert capsys.readouterr().out.count("not measured yet") == 3
    results.strips("nothing")
    assert "nothing: no picture stored yet" in capsys.readouterr().out

def test_an_empty_table_passes_through(results, shown):
    "A page about a group that was not measured shows sentences, no error."
    none = results.table("faces")
    R.show_table(R.means(none))
    R.show_curves(results.cells("faces"))
    R.show_table(R.changes(none, "a", "b", ["L1"]))
    assert R.ahead(none, "L1", "a", ["b"]) == [] and shown == []
    got = R.reached(none, R.marks("MNIST", "k = 1", "L1 ≤ .1"), dict(ours="ours"))
    assert got["ours: reached"].tolist() == ["–"]

def test_one_answer_has_one_row(results):
    t = results.table("prox")
    assert t["row"].tolist() == ["ours, prox 8, first CFE", "ours, prox 8, k = 1", "jump, k = 1"]
    assert t["direction"].tolist() == ["3 → 8"]*3 and set(t["real"]) == {.9} and set(t["group"]) == {"prox"}

def test_means_are_over_all_tasks_or_left_out(results, capsys):
    t = results.table("main", "prox")
    m = R.means(t).set_index("row")
    assert list(m.index) == ["ours, first CFE", "ours, k = 1"]
    assert m.loc["ours, k = 1", "L1"] == pytest.approx(.3) and m.loc["ours, first CFE", "L1"] == pytest.approx(.2)
    assert m["images"].tolist() == ["40", "40"]
    out = capsys.readouterr().out
    assert "jump: measured on 1 of 2 tasks" in out and "ours, prox 8: measured on 1 of 2 tasks" in out

def test_marks(results):
    t = results.table("main")
    to_reach = R.marks("MNIST", "k = 1", "L1 ≤ .3", "L1 ≤ .29")
    to_reach += R.marks("MNIST", "all k", "Val ≥ .97") + R.marks("MNIST", "first CFE", "L1 ≤ .2")
    got = R.reached(t, to_reach, dict(ours="ours"))
    assert got["ours: reached"].tolist() == ["yes", "**no**", "yes", "yes"]
    assert got["ours: directions"].tolist() == ["3 of 4", "1 of 4", "3 of 4", "3 of 4"]
    assert got["mark"].tolist()[0] == "L1 ≤ 0.3"

@pytest.mark.parametrize("line", ["L1 < .3", "L1 ≤ .3 or so", "≤ .3", "L1 ≤"])
def test_a_mark_that_cannot_be_read(line):
    with pytest.raises(MirrorError, match="written like"): R.marks("MNIST", "k = 1", line)

def test_metric_with_spaces():
    mark, = R.marks("MNIST", "k = 1", "Oracle below real ≤ .03")
    assert mark == R.Mark("MNIST", "k = 1", "Oracle below real", "≤", .03)

def test_one_against_the_other(results):
    t = results.table("main", "prox")
    c = R.changes(t, "ours", "ours, prox 8", ["L1", "LPIPS"])
    assert c["task"].tolist() == ["MNIST 3-8"]*2 and c["at"].tolist() == ["first CFE", "k = 1"]
    assert c["L1"].tolist() == ["0.200 → 0.000", "0.300 → 0.100"]
    end = t[t["at"] == "k = 1"]
    assert [r["holds"] for r in R.ahead(end, "L1", "ours, prox 8", ["ours", "jump", "nobody"])] == ["yes", "yes"]
    assert [r["holds"] for r in R.ahead(end, "Oracle", "jump", ["ours"])] == ["**no**"]

def test_verdict_to_the_digits_published():
    ours, theirs = dict(L1=.164, LPIPS=.2, Val=.994, D=0), dict(L1=.16, LPIPS=.3, Val=1., D=0)
    assert R.verdict(ours, theirs, ["L1", "LPIPS", "Val"]) == dict(published=["Val"], ours=["LPIPS"], equal=["L1"])
    assert R.verdict(dict(ours, L1=.166), theirs, ["L1"])["published"] == ["L1"]

def test_best_in_bold():
    rows = dict(a=dict(L1=.161, Val=1.), b=dict(L1=.158, Val=.999), c=dict(L1=.2, Val=float("nan")))
    got = R.best_in_bold(rows, ["L1", "Val"])
    assert got.values.tolist() == [["a", "**0.16**", "1.00"], ["b", "**0.16**", "1.00"], ["c", "0.20", "–"]]

def test_intervals_can_be_left_out(results, shown):
    R.show_table(results.table("prox"), ["row", "Val", "L1", "LPIPS"], "Title", intervals=["L1"])
    text, = shown
    assert text.startswith("**Title**\n\n| row | Val ↑ | L1 ↓ |")
    assert "| jump, k = 1 | 1.000 | 0.150 [0.130, 0.170] |" in text

def test_published_rows():
    pairwise = R.published("Fashion-MNIST", "k=1", without="multi")
    assert pairwise["row"].tolist() == ["*published:* Mirror-CFE, k = 1 pairwise"]
    assert len(R.published("CelebA-HQ")) == 5
    assert R.published("BloodMNIST", table="faithfulness")["confidence_error"].item() == .015

def test_strips_are_cut_where_the_rows_are():
    x = np.repeat(np.arange(8, dtype=np.uint8)*30, 10)[:, None].repeat(6, 1)
    got = np.asarray(R.cut_rows(Image.fromarray(x).convert("RGB"), (5, 2)))[..., 0]
    assert got.shape == (20, 6) and set(got[:10].flat) == {150} and set(got[10:].flat) == {60}
    with pytest.raises(MirrorError, match="rows 0 to 7"): R.cut_rows(Image.fromarray(x), (8,))

def test_open_loop_asks_without_the_loop():
    class Explainer:
        model = "model"
        def explain(self, x, closed_loop=True): return x, closed_loop
    ours = R.OpenLoop(Explainer())
    assert ours.model == "model" and ours.explain(3) == (3, False)

def test_border():
    from mirrorcfe.benchmark import Task
    assert R.without_border(torch.zeros(1, 32, 32), Task("mnist")).shape == (1, 28, 28)
    assert R.without_border(torch.zeros(1, 32, 32), Task("digits")).shape == (1, 32, 32)

# --- numbers in prose ----------------------------------------------------------------------------------------------

PAGES = sorted(p for p in ROOT.glob("nbs/*.ipynb") if re.match(r"7\d_|8\d_|97_|98_|index", p.name))
DECIMAL = re.compile(r"(?<![\w./\-])(?:\d[\d,]*)?\.\d+(?![\w/])")
# Numbers that no cell of the page prints, with their origin: another page, which has to print them, or words.
LEGEND = "the legend of the stored figure"
BEFORE = "measured before the runs that are stored"
ELSEWHERE = {
    "70_comparison.ipynb": dict.fromkeys([".213", ".429", ".524"], BEFORE)
                           | dict.fromkeys([".499", ".837"], "74_ssc_ablation.ipynb"),
    "72_faces.ipynb": {".064": "what the recipe before had, in the history of this page", ".80": "a mark"},
    "73_faithfulness.ipynb": dict.fromkeys([".100", ".084", ".017", ".024", ".42", ".186", ".210"], LEGEND),
    "74_ssc_ablation.ipynb": dict.fromkeys([".118", ".226", ".204"], BEFORE),
    "79_networks.ipynb": dict.fromkeys([".930", ".955"], BEFORE),
    "85_where_the_time_goes.ipynb": dict.fromkeys(["1.58", "1.74"], BEFORE),
    "81_c3lt_ablation.ipynb": {".001": "the formula above it"},
    "97_gallery.ipynb": dict.fromkeys([".86", ".93"], "benchmarks/results/painter.md") | {".92": "`make demo`"},
    "88_runs.ipynb": dict.fromkeys([".97", ".93"], "benchmarks/results/painter.md"),
    "index.ipynb": dict.fromkeys([".012", ".014", ".016", ".024"], "73_faithfulness.ipynb")
                   | dict.fromkeys([".37", ".56", ".57", ".80"], "80_methods.ipynb")
                   | dict.fromkeys(["1.5", ".6", "2.3"], "minutes of a page") | {"3.10": "a version of Python"}}

def printed(cell):
    "Everything a code cell says in words, and its source: constants in it count."
    parts = [readme.text(cell["source"])]
    for o in cell["outputs"]:
        data = dict(o.get("data", {}), text=o.get("text", ""))
        parts += [readme.text(data[k]) for k in ("text", "text/markdown", "text/plain") if k in data]
    return "\n".join(parts)

def as_number(text): return float(text.replace(",", ""))

def numbers(cells):
    "All numbers that the code cells print or contain."
    said = "\n".join(printed(c) for c in cells if c["cell_type"] == "code")
    found = re.findall(r"\d[\d,]*\.?\d*(?:e-?\d+)?|\.\d+", said)
    return np.array([as_number(t) for t in found if not t.endswith(",")])

def is_among(text, have):
    "Whether a number, written with so many digits, is a rounding of one of `have`."
    half = .5*10.**-len(text.split(".")[1])
    return bool((np.abs(have - as_number(text)) <= half + 1e-9).any())

def read_cells(nb): return json.loads(nb.read_text(encoding="utf-8"))["cells"]

def unprinted(nb):
    "Decimals in the prose of a notebook that are no rounding of anything its cells print."
    cells = read_cells(nb)
    have = numbers(cells)
    prose = "\n".join(readme.text(c["source"]) for c in cells if c["cell_type"] == "markdown")
    prose = re.sub(r"\]\([^)]*\)|```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", "", prose, flags=re.S)
    return [t for t in DECIMAL.findall(prose) if not is_among(t, have)]

@pytest.mark.parametrize("nb", PAGES, ids=[p.name for p in PAGES])
def test_numbers_in_prose_were_printed(nb):
    known = ELSEWHERE.get(nb.name, {})
    assert sorted(set(unprinted(nb)) - set(known)) == [], "print it on the page, or name its origin in ELSEWHERE"
    for number, origin in known.items():
        if not origin.endswith(".ipynb"): continue
        assert is_among(number, numbers(read_cells(ROOT/"nbs"/origin))), f"{origin} does not print {number}"

def test_a_wrong_number_is_found(tmp_path):
    output = dict(output_type="stream", text="| 0.181 [0.180, 0.182] |")
    page = dict(cells=[dict(cell_type="code", source="show()", outputs=[output]),
                       dict(cell_type="markdown", source="L1 is .181, not .187; see [x](a/1.5) and `.999`.")])
    (tmp_path/"a.ipynb").write_text(json.dumps(page))
    assert unprinted(tmp_path/"a.ipynb") == [".187"]

# --- the README as a stranger reads it -----------------------------------------------------------------------------

def fences(lang):
    "The fenced blocks of README.md in one language."
    return re.findall(rf"```{lang}\n(.*?)```", README.read_text(encoding="utf-8"), re.S)

def test_readme_lines_run_from_an_empty_folder(tmp_path):
    "Its Python in order, with nothing but what the lines say; one epoch where the README has six."
    source = "\n".join(fences("python"))
    assert source.count(".fit(dls, 6,") == 1
    source = source.replace(".fit(dls, 6,", ".fit(dls, 1,")
    empty = tmp_path/"empty"
    empty.mkdir()
    run = Started(f"import os\nos.chdir({str(empty)!r})\n{source}", [], tmp_path/"said")
    assert run.wait() == 0, run.said[-2000:]
    lines = run.said.splitlines()
    head = next(j for j, l in enumerate(lines) if "confidence_last" in l)
    assert lines[head].split() == ["source", "target", "status", "first_k", "confidence_last"]
    assert [l.split()[1:3] for l in lines[head + 1:head + 5]] == [["4", "9"], ["9", "4"], ["4", "9"], ["9", "4"]]
    assert "\n".join(lines[head + 5:]) in README.read_text(encoding="utf-8"), "the reflection, as the README shows it"
    assert list(empty.iterdir()) == [], "nothing is left behind"

def test_first_screen():
    "Two sentences, a figure, the lines with their output, the two commands: in this order, before the method."
    md = README.read_text(encoding="utf-8")
    order = ["# mirrorcfe", "![", "## Try it", "```python", "first_k", "make demo", "make test", "## What it is"]
    assert [md.index(w) for w in order] == sorted(md.index(w) for w in order)
    assert len(md[:md.index("## What it is")].splitlines()) < 60

def test_map_names_every_module():
    "A row for each module, with the notebook that exports it."
    page = json.loads((ROOT/"nbs"/"99_map.ipynb").read_text(encoding="utf-8"))
    section = "\n".join(readme.text(c["source"]) for c in page["cells"])
    for nb in ROOT.glob("nbs/*.ipynb"):
        cells = json.loads(nb.read_text(encoding="utf-8"))["cells"]
        named = [m for c in cells for m in re.findall(r"^#\| default_exp (\S+)", readme.text(c["source"]), re.M)]
        for module in named:
            row = next((l for l in section.splitlines() if f"({nb.name})" in l), "")
            package = module.partition(".")[0]
            assert f"`mirrorcfe.{module}`" in row or f"`mirrorcfe.{package}`" in row, f"{nb.name}: {module}"
    listed = re.findall(r"\((\w+\.ipynb)\)", section)
    assert [n for n in listed if not (ROOT/"nbs"/n).exists()] == []
