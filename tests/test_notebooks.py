"Notebooks in a plain Jupyter kernel: two light ones run top to bottom, and the tool leaves out the cells it should."
import base64, io, json, sys
from pathlib import Path
import nbformat, numpy as np, pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import run_notebooks
from test_tools import data, notebook, stream

def code_cells(nb): return [c for c in nb["cells"] if c["cell_type"] == "code"]

def printed(nb):
    "What the cells of a notebook print, one string an output."
    return ["".join(o["text"]) for c in code_cells(nb) for o in c["outputs"] if o["output_type"] == "stream"]

@pytest.mark.parametrize("name", ["07_checks.ipynb", "96_how_to_read.ipynb"])
def test_runs_top_to_bottom(name):
    path = ROOT/"nbs"/name
    before = path.read_bytes()
    nb = run_notebooks.run(path)
    assert path.read_bytes() == before, "a check writes nothing"
    assert printed(nb) == printed(json.loads(before)), "what is stored is what a clean run prints"

@pytest.mark.parametrize("path", sorted(ROOT.glob("nbs/*.ipynb")), ids=lambda p: p.name)
def test_outputs_are_stored(path):
    "A notebook that draws or prints anything keeps some output."
    cells = code_cells(json.loads(path.read_text(encoding="utf-8")))
    assert len(cells) <= 3 or any(c["outputs"] for c in cells)

def test_flagged_cells_are_left(tmp_path):
    nb = notebook(tmp_path/"a.ipynb",
                  ("markdown", "# A\n\n> b", []),
                  ("code", "#| slow\n1/0", [stream("kept\n")]),
                  ("code", "import os\nprint(os.environ['IN_TEST'])", []),
                  ("code", "#| hide\nimport nbdev; nbdev.nbdev_export()", []))
    out = [c.get("outputs") for c in run_notebooks.run(nb)["cells"]]
    assert out[1][0]["text"] == "kept\n" and out[2][0]["text"] == "1\n" and out[3] == []
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"): run_notebooks.run(nb, flags=["slow"])

def test_notebooks_are_found_by_name_or_path():
    core = ROOT/"nbs"/"00_core.ipynb"
    for name in ("00_core", "00_core.ipynb", str(core)): assert run_notebooks.find(name) == core
    with pytest.raises(SystemExit, match="no notebook 00_cor"): run_notebooks.find("00_cor")

def test_pictures_get_smaller_not_other():
    x = np.zeros((64, 64, 3), np.uint8)
    x[:, 32:] = 255, 127, 14
    x[32:, :, 0] = 200
    png = io.BytesIO()
    Image.fromarray(x).save(png, "PNG", compress_level=0)
    stored = data(image_png=base64.b64encode(png.getvalue()).decode())
    nb = nbformat.from_dict(dict(cells=[dict(cell_type="code", outputs=[stored])]))
    run_notebooks.shrink(nb)
    small = base64.b64decode(nb["cells"][0]["outputs"][0]["data"]["image/png"])
    again = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int)
    assert len(small) < png.tell() and np.abs(again - x).max() <= 2
