"Notebooks in a plain Jupyter kernel: two light ones run top to bottom, and the tool says which cells it leaves out."
import json, sys
from pathlib import Path
import nbformat, pytest
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import run_notebooks
from test_tools import data, notebook, stream

@pytest.mark.parametrize("name", ["00_core.ipynb", "96_how_to_read.ipynb"])
def test_runs_top_to_bottom(name):
    path = ROOT/"nbs"/name
    before = path.read_bytes()
    nb = run_notebooks.run(path)
    assert path.read_bytes() == before, "a check writes nothing"
    kept = [c for c in json.loads(before)["cells"] if c["cell_type"] == "code"]
    ran = [c for c in nb["cells"] if c["cell_type"] == "code"]
    texts = lambda cells: ["".join(o["text"]) for c in cells for o in c["outputs"] if o["output_type"] == "stream"]
    assert texts(ran) == texts(kept), "what is stored is what a clean run prints"

def test_every_code_cell_has_run():
    "Stored outputs are there: a notebook that draws or prints anything keeps some output."
    for path in ROOT.glob("nbs/*.ipynb"):
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        if len(cells) > 3: assert any(c["outputs"] for c in cells), path.name

def test_flagged_cells_are_left(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", ("markdown", "# A\n\n> b", []), ("code", "#| slow\n1/0", [stream("kept\n")]), ("code", "import os\nprint(os.environ['IN_TEST'])", []),
                  ("code", "#| hide\nimport nbdev; nbdev.nbdev_export()", []))
    out = [c.get("outputs") for c in run_notebooks.run(nb)["cells"]]
    assert out[1][0]["text"] == "kept\n" and out[2][0]["text"] == "1\n" and out[3] == []
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"): run_notebooks.run(nb, flags=["slow"])

def test_pictures_get_smaller_not_other():
    import base64, io
    import numpy as np
    from PIL import Image
    x = np.zeros((64, 64, 3), np.uint8)
    x[:, 32:], x[32:, :, 0] = (255, 127, 14), 200
    png = io.BytesIO()
    Image.fromarray(x).save(png, "PNG", compress_level=0)
    nb = nbformat.from_dict(dict(cells=[dict(cell_type="code", outputs=[data(image_png=base64.b64encode(png.getvalue()).decode())])]))
    run_notebooks.shrink(nb)
    small = base64.b64decode(nb["cells"][0]["outputs"][0]["data"]["image/png"])
    assert len(small) < png.tell() and np.abs(np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int) - x).max() <= 2
