"The slider, and the page without Python."
import html, io, json, re
import numpy as np, pytest, torch
from PIL import Image
from mirrorcfe.core import MirrorError
from mirrorcfe.show import to_rgb
from mirrorcfe.widget import PathWidget, slider_html, step_bars, step_picture
from tiny import tiny

@pytest.fixture(scope="module")
def ex(): return tiny(gains=(1., .9, .3))

def masks(ex, h=4): return (torch.rand(len(ex), len(ex.ks), h, h, generator=torch.Generator().manual_seed(0)) > .5).float()

# --- slider ----------------------------------------------------------------------------------------------------------------------

def picture(w): return np.asarray(Image.open(io.BytesIO(w.value)).convert("RGB"))

def test_every_step(ex):
    w = ex.widget(size=64)
    for j in (0, 7, 20):
        w.step.value = j
        np.testing.assert_array_equal(picture(w.after), np.asarray(step_picture(w._way()[0], 0, j, size=64)))
        assert f"k = {float(ex.ks[j]):.2f}" in w.bars.value
    np.testing.assert_array_equal(picture(w.before)[::4, ::4], to_rgb(ex.x[0]))

def test_ways_are_gathered_by_image():
    ex = tiny(gains=(1., 1.))
    ex.target[1] = 2
    w = ex.widget()
    assert isinstance(w, PathWidget) and len(w.sample.options) == 1 and [t for _, t in w.target.options] == [1, 2]
    w.target.value = 2
    assert "→ up" in html.unescape(w.said.value) and w.explainer is None and w.mask.disabled

def test_another_image():
    ex = tiny(gains=(1., .3))
    ex.x[1] = 0
    w = ex.widget()
    assert [n for _, n in w.sample.options] == [0, 1]
    before = picture(w.before)
    w.sample.value = 1
    assert (picture(w.before) != before).any() and "never flipped" in w.said.value

def test_mask_and_change(ex):
    m = masks(ex)
    w = ex.widget(masks=m, size=64)
    w.step.value, w.mask.value = 5, True
    plain = np.asarray(step_picture(ex, 0, 5, size=64)).astype(int)
    held = np.kron(m[0, 5].numpy() < .5, np.ones((16, 16))) > 0
    assert ((picture(w.after) != plain).any(2) == held).all(), "blue exactly where the mask holds back"
    w.mask.value, w.change.value = False, True
    shade = picture(w.after)[::4, ::4].astype(int)
    d = (ex.path[0, 5] - ex.x[0])[0].numpy()
    assert (shade[d == 0] == 255).all() and (shade[d > 0][:, 0] > shade[d > 0][:, 2]).all() and (shade[d < 0][:, 2] > shade[d < 0][:, 0]).all()

def test_nothing_to_show():
    with pytest.raises(MirrorError, match="no way to show"): tiny(gains=(1.,), same=True).widget()
    with pytest.raises(MirrorError, match="no way to show"): slider_html(tiny()[[]])

def test_names_are_escaped():
    ex = tiny(classes=("<img src=x>", "</script>", "&"))
    assert "<img" not in step_bars(ex, 0, 3) and "&lt;img" in step_bars(ex, 0, 3)
    assert slider_html(ex).count("</script>") == 2 and "<img" not in slider_html(ex).replace("new Image", "")

# --- page ------------------------------------------------------------------------------------------------------------------------

def stored(page): return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])

def test_page_holds_the_numbers(ex):
    way = stored(slider_html(ex, masks(ex), frames=6))["images"][0][1 - 1]
    first = int(ex.first_index[0])
    assert way["ks"][0] == 0 and way["ks"][-1] == 1 and way["ks"][way["first"]] == pytest.approx(float(ex.ks[first]), abs=1e-4)
    assert way["got"][way["first"]][1] == pytest.approx(float(ex.achieved[0, first]), abs=1e-4)
    assert all(len(g) == 16 for g in way["grid"]) and way["cells"] == [4, 4] and way["size"] == [16, 16]

def test_page_fetches_nothing(tmp_path, ex):
    page = ex.html(tmp_path/"a.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", page) and page.startswith("<!doctype html>")
    with pytest.raises(MirrorError, match="ends in .html"): ex.html(tmp_path/"a.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]

def test_sprite_is_the_path():
    import base64
    ex = tiny(channels=3, gains=(1.,))
    way = stored(slider_html(ex, frames=999))["images"][0][0]
    shot = np.asarray(Image.open(io.BytesIO(base64.b64decode(way["sprite"].split(",")[1]))).convert("RGB")).reshape(22, 16, 16, 3)
    np.testing.assert_array_equal(shot[0], to_rgb(ex.x[0]))
    for j in range(21): np.testing.assert_array_equal(shot[j + 1], to_rgb(ex.path[0, j]))
