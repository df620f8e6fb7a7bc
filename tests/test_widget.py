"The slider, and the page without Python."
import base64, html, io, json, re, shutil, subprocess
import numpy as np, pytest, torch
from PIL import Image
from mirrorcfe.core import MirrorError
from mirrorcfe.explanation import Explanation
from mirrorcfe.show import to_rgb
from mirrorcfe.widget import PathWidget, slider_html, step_bars, step_picture
from tiny import tiny

@pytest.fixture(scope="module")
def ex(): return tiny(gains=(1., .9, .3))

def masks(ex, h=4):
    g = torch.Generator().manual_seed(0)
    return (torch.rand(len(ex), len(ex.ks), h, h, generator=g) > .5).float()

# --- slider ----------------------------------------------------------------------------------------------------------

def picture(w): return np.asarray(Image.open(io.BytesIO(w.value)).convert("RGB"))

def test_every_step(ex):
    w = ex.widget(size=64)
    for j in (0, 7, 20):
        w.step.value = j
        np.testing.assert_array_equal(picture(w.after), np.asarray(step_picture(ex, 0, j, size=64)))
        assert f"k = {float(ex.ks[j]):.2f}" in w.bars.value
    np.testing.assert_array_equal(picture(w.before)[::4, ::4], to_rgb(ex.x[0]))

def test_paths_are_gathered_by_image():
    ex = tiny(gains=(1., 1.))
    ex.target[1] = 2
    w = ex.widget()
    assert isinstance(w, PathWidget) and len(w.sample.options) == 1 and [t for _, t in w.target.options] == [1, 2]
    w.target.value = 2
    assert "→ up" in html.unescape(w.line.value) and w.explainer is None and w.mask.disabled

def test_another_image():
    ex = tiny(gains=(1., .3))
    ex.x[1] = 0
    w = ex.widget()
    assert [n for _, n in w.sample.options] == [0, 1]
    before = picture(w.before)
    w.sample.value = 1
    assert (picture(w.before) != before).any() and "never flipped" in w.line.value

class Stand:
    "In the place of an explainer: it draws a path of its own to any class."
    pair = None
    def __init__(self): self.asked = []
    def masks(self, ex): return torch.ones(len(ex), len(ex.ks), 4, 4)
    def explain(self, x, target, ks, truth):
        self.asked.append(target)
        new = tiny(gains=(1.,))
        new.target[:] = target
        return new

def test_a_new_target_is_drawn_once_and_remembered(ex, monkeypatch):
    monkeypatch.setattr("mirrorcfe.widget.MirrorCFE", Stand)
    explainer = Stand()
    w = ex.widget(explainer)
    assert [t for _, t in w.target.options] == [1, 2] and not w.mask.disabled and explainer.asked == []
    for target in (2, 1, 2): w.target.value = target
    assert explainer.asked == [2] and "→ up" in html.unescape(w.line.value)

def test_mask_and_change(ex):
    m = masks(ex)
    w = ex.widget(masks=m, size=64)
    w.step.value = 5
    w.mask.value = True
    plain = np.asarray(step_picture(ex, 0, 5, size=64)).astype(int)
    held = np.kron(m[0, 5].numpy() < .5, np.ones((16, 16))) > 0
    assert ((picture(w.after) != plain).any(2) == held).all(), "blue exactly where the mask holds back"
    w.mask.value = False
    w.change.value = True
    shade = picture(w.after)[::4, ::4].astype(int)
    d = (ex.path[0, 5] - ex.x[0])[0].numpy()
    assert (shade[d == 0] == 255).all()
    assert (shade[d > 0][:, 0] > shade[d > 0][:, 2]).all() and (shade[d < 0][:, 2] > shade[d < 0][:, 0]).all()

def test_nothing_to_show():
    with pytest.raises(MirrorError, match="no path to show"): tiny(gains=(1.,), same=True).widget()
    with pytest.raises(MirrorError, match="no path to show"): slider_html(tiny()[[]])
    with pytest.raises(MirrorError, match="explainer= takes a MirrorCFE: found Tensor; give masks by masks="):
        tiny().widget(masks(tiny()))

def test_masks_of_another_explanation_are_refused(ex):
    for draw in (lambda m: ex.widget(masks=m), lambda m: slider_html(ex, m)):
        with pytest.raises(MirrorError, match="masks must be those of this explanation"): draw(masks(ex)[:1])

def test_names_are_escaped():
    ex = tiny(classes=("<img src=x>", "</script>", "&"))
    assert "<img" not in step_bars(ex, 0, 3) and "&lt;img" in step_bars(ex, 0, 3)
    assert slider_html(ex).count("</script>") == 2 and "<img" not in slider_html(ex).replace("new Image", "")

def test_bars_are_the_numbers(ex):
    text = re.sub("<[^>]*>", " ", step_bars(ex, 1, 10))
    numbers = [float(v) for v in re.findall(r"\d\.\d\d", text)]
    p, q = ex.intended_probs[1, 10].tolist(), ex.achieved_probs[1, 10].tolist()
    assert numbers == pytest.approx([.5, p[0], q[0], p[1], q[1], p[2], q[2]], abs=.006)
    widths = [int(w) for w in re.findall(r"width:(\d+)px;margin", step_bars(ex, 1, 10))]
    assert widths[:2] == [round(150*p[0]), round(150*q[0])]

def test_rounding_makes_no_negative_share():
    ex = tiny(gains=(1.,))
    ex.achieved_probs[0, 3] = torch.tensor([.6, .4001, 0.])
    assert step_bars(ex, 0, 3).count("-0.00") == 0 and "width:0px" in step_bars(ex, 0, 3)
    assert min(stored(slider_html(ex))["images"][0][0]["predicted"][3]) == 0

# --- page ------------------------------------------------------------------------------------------------------------

def stored(page):
    "What the page holds, read as strictly as a browser does."
    def refuse(name): raise ValueError(f"{name} is no JSON")
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1], parse_constant=refuse)

def test_page_holds_the_numbers(ex):
    path = stored(slider_html(ex, masks(ex), frames=6))["images"][0][0]
    first = int(ex.first_index[0])
    assert path["ks"][0] == 0 and path["ks"][-1] == 1
    assert path["ks"][path["first"]] == pytest.approx(float(ex.ks[first]), abs=1e-4)
    assert path["predicted"][path["first"]][1] == pytest.approx(float(ex.achieved[0, first]), abs=1e-4)
    assert path["intended"][path["first"]][0] == pytest.approx(float(ex.intended_probs[0, first, 0]), abs=1e-4)
    assert all(len(g) == 16 for g in path["masks"]) and path["cells"] == [4, 4] and path["size"] == [16, 16]

def test_page_of_a_method_that_intends_nothing():
    ex = tiny(gains=(1.,))
    ex.intended_probs[:] = torch.nan
    path = stored(slider_html(ex, frames=3))["images"][0][0]
    assert path["intended"] == [[None]*3]*len(path["ks"]) and None not in sum(path["predicted"], [])
    assert "width:0px" in step_bars(ex, 0, 3)

def test_page_fetches_nothing(tmp_path, ex):
    page = ex.html(tmp_path/"a.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", page) and page.startswith("<!doctype html>")
    with pytest.raises(MirrorError, match="ends in .html"): ex.html(tmp_path/"a.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]

def test_two_sliders_fit_on_a_page(ex):
    a, b = (re.search(r'<div id="(path-\w+)"', slider_html(ex, frames=n))[1] for n in (3, 5))
    assert a != b and "ROOT" not in slider_html(ex) and slider_html(ex, frames=3).count(a) > 10

def test_kept_masks_are_used(ex, tmp_path):
    kept = Explanation.load(ex.save(tmp_path/"a.safetensors", masks(ex)))
    assert stored(slider_html(kept)) == stored(slider_html(ex, masks(ex))) and not kept.widget().mask.disabled

def test_sprite_is_the_path():
    ex = tiny(channels=3, gains=(1.,))
    path = stored(slider_html(ex, frames=999))["images"][0][0]
    data = base64.b64decode(path["sprite"].split(",")[1])
    shot = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(22, 16, 16, 3)
    np.testing.assert_array_equal(shot[0], to_rgb(ex.x[0]))
    for j in range(21): np.testing.assert_array_equal(shot[j + 1], to_rgb(ex.path[0, j]))

@pytest.mark.skipif(shutil.which("node") is None, reason="no node to read JavaScript")
def test_the_script_is_javascript(ex, tmp_path):
    "Every part of the page that the script asks for is there, and the script parses."
    page = slider_html(ex)
    script = re.search(r"<script>(.*)</script>", page, re.S)[1]
    (tmp_path/"a.js").write_text(script)
    run = subprocess.run(["node", "--check", str(tmp_path/"a.js")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    asked = set(re.findall(r"part\('(\w+)'\)", script)) | {"now", "first", "intended", "predicted"}
    assert asked <= set(re.findall(r'class="(\w+)"', page))
