"Strips and curves: what is on them, for every way a search can end."
import io
from dataclasses import replace
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.show import (PALETTE, Panel, _largest, _outline, _share_inside, check_sample, class_name, evidence,
                            headline, prediction_kind, step_name, strip_panels, to_rgb)
from mirrorcfe.training import MirrorModel
from tiny import tiny

@pytest.fixture(scope="module")
def ex(): return tiny()

def render(fig):
    "Whatever is drawn must come out as a file."
    out = io.BytesIO()
    fig.savefig(out)
    return out.getbuffer().nbytes

# --- pixels and names ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [1, 3])
def test_pixels(channels):
    x = torch.linspace(-1, 1, 12*channels).view(channels, 3, 4)
    rgb = to_rgb(x)
    assert rgb.shape == (3, 4, 3) and rgb.dtype == np.uint8 and rgb.min() == 0 and rgb.max() == 255
    np.testing.assert_array_equal(rgb[..., 0], ((x[0] + 1)*127.5).round().byte().numpy())

def test_missing_image_is_not_black():
    assert (to_rgb(torch.full((1, 2, 2), torch.nan)) == to_rgb(torch.full((1, 2, 2), .8))).all()

@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4), (1, 1, 4, 4)])
def test_pixels_refuse(shape):
    with pytest.raises(MirrorError, match="a picture is"): to_rgb(torch.zeros(shape))

OUTSIDE = [(3, "sample 3 is outside the 3 explained, 0 to 2"), (-4, "sample -4"), (.5, "float 0.5"), ("1", "str '1'")]

@pytest.mark.parametrize("i,message", OUTSIDE)
def test_sample_that_is_not_there(ex, i, message):
    drawings = (ex.show, ex.plot, ex.plot_confidence, ex.plot_difference)
    for draw in (*drawings, lambda i: headline(ex, i), lambda i: check_sample(ex, i)):
        with pytest.raises(MirrorError, match=message): draw(i)

def test_empty_explanation(ex):
    with pytest.raises(MirrorError, match="empty"): ex[[]].show()
    with pytest.raises(MirrorError, match="no sample"): ex[[]].show_grid()

def test_names(ex):
    assert class_name(ex, 1) == "right" and class_name(ex, 1, 3) == "ri…"
    assert [step_name(ex, 0, j) for j in (0, 1, -2, -1)] == ["Source", "SFE", "CFE", "Reflection"]
    assert [prediction_kind(ex, i, -1) for i in range(3)] == ["CFE", "CFE", "SFE"]

def test_a_third_class_is_neither_sfe_nor_cfe():
    one = tiny(gains=(1.,))
    one.achieved_probs[0, 5] = torch.tensor([.1, .1, .8])
    assert step_name(one, 0, 5) == "KFE" and "KFE (up)" in [p.title for p in strip_panels(one, 0, 21)]

def test_headlines():
    ex = tiny(gains=(1., .3, 1.), same=True)
    assert headline(ex, 0) == f"left → right: first CFE at k = {float(ex.first_k[0]):.2f}"
    assert headline(ex, 1).startswith("left → right: never flipped (") and ex.reason[1] in headline(ex, 1)
    assert headline(ex, 2).startswith("right → right: already target (") and headline(ex, 2).endswith("; truly left")
    ex.truth = None
    assert "truly" not in headline(ex, 2)

def test_found_is_not_said_without_the_judges_word():
    ex = tiny(gains=(1., .3), same=False)
    ex.believed = torch.tensor([[.5, .14], [torch.nan, .9]])
    assert headline(ex, 0).endswith(", valid, not believed: 14 % of the judges")
    assert "judges" not in headline(ex, 1)
    ex.believed[0, 1] = .86
    assert headline(ex, 0).endswith(", believed: 86 % of the judges")
    ex.unlike = torch.tensor([3.]*len(ex))   # which is to be known before the votes
    turn = f"first CFE at k = {float(ex.first_k[0]):.2f}"
    assert headline(ex, 0) == f"left → right: unlike the training images; {turn}, believed: 86 % of the judges"
    assert headline(ex, 1).startswith("left → right: unlike the training images; never flipped (")

def test_negative_index_is_the_last(ex): assert headline(ex, -1) == headline(ex, 2)

# --- strips ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("steps", [2, 3, 5, 9, 21, 100])
def test_strip_holds_source_first_cfe_and_reflection(ex, steps):
    panels = strip_panels(ex, 0, steps)
    assert len(panels) == min(steps, 21) and isinstance(panels[0], Panel)
    assert panels[0].title == "Source (left)" and panels[-1].title == "Reflection (right)"
    ks = [p.k for p in panels]
    assert ks == sorted(set(ks)) and ks[0] == 0 and ks[-1] == 1
    first = [p for p in panels if p.first]
    if steps > 2:
        assert [p.k for p in first] == [pytest.approx(float(ex.first_k[0]))]
        assert first[0].title == "1st CFE (right)"
    np.testing.assert_array_equal(panels[0].image, to_rgb(ex.x[0]))
    for p in panels[1:]: np.testing.assert_array_equal(p.image, to_rgb(ex.path[0, p.j]))

@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, None])
def test_strip_refuses(ex, steps):
    with pytest.raises(MirrorError, match="2 panels or more"): ex.show(0, steps=steps)

def test_never_flipped_has_no_first(ex): assert not any(p.first for p in strip_panels(ex, 2))

def test_a_turn_at_the_first_step():
    "Where the bare reconstruction is the target already, the first CFE is at k = 0 and called so."
    ex = tiny(gains=(1.,))
    ex.achieved_probs[0, 0] = torch.tensor([.2, .8, 0])
    assert [p.title for p in strip_panels(ex, 0) if p.first] == ["1st CFE (right)"]

def test_few_steps_of_ones_own():
    ex = tiny(K=21)
    ex.ks = ex.ks[8:15]
    for name in ("path", "intended_probs", "achieved_probs"): setattr(ex, name, getattr(ex, name)[:, 8:15])
    assert render(ex.plot(0)) and render(ex.show(0))
    assert all(p.title != "Reflection (right)" for p in strip_panels(ex, 0))

NAMES = [(1, ("left", "right", "up")), (3, ("T-shirt/top", "erythroblast, $y_", "$x_$ 100%"))]

@pytest.mark.parametrize("channels,classes", NAMES)
def test_every_figure_is_drawn(channels, classes):
    ex = tiny(channels=channels, classes=classes, gains=(1., .3, 1.), same=True)
    before = plt.get_fignums()
    for i in range(3):
        strip = ex.show(i, difference=True)
        path = ex.plot(i)
        assert len(ex.show(i).axes) == 9 and len(strip.axes) == 17 and len(path.axes) == 11
        assert path.get_size_inches()[0] == 9 and render(path)
        if i == 0: assert render(strip)
    assert render(ex.show(2, steps=3, difference=True))
    grid = ex.show_grid()
    assert len(grid.axes) == 27 and render(grid) and len(ex.show_grid([2, 0], steps=4).axes) == 8
    assert plt.get_fignums() == before, "figures are handed over, not left open"

def test_first_cfe_and_the_ends_are_framed(ex):
    def framed(name):
        colour = plt.matplotlib.colors.to_rgba(PALETTE[name])
        return [a.get_title().split("\n")[0] for a in ex.show(0).axes if a.spines["left"].get_edgecolor() == colour]
    assert framed("first") == ["1st CFE"] and framed("source") == ["Source", "Reflection"]

def test_grid_rows_are_the_samples_asked_for(ex):
    shown = [a.images[0].get_array() for a in ex.show_grid([2, 0], steps=2).axes]
    wanted = ex.x[2], ex.path[2, -1], ex.x[0], ex.path[0, -1]
    for image, want in zip(shown, wanted): np.testing.assert_array_equal(image, to_rgb(want))
    said = {t.get_text() for t in ex.show_grid([2], steps=2).findobj(plt.Text)}
    assert "never\nflipped" in said and "left →\nright" in said

# --- curves ----------------------------------------------------------------------------------------------------------

def test_curves_are_the_numbers(ex):
    _, ax = plt.subplots()
    assert ex.plot_confidence(1, ax) is ax
    lines = {l.get_label(): l.get_ydata() for a in ax.figure.axes for l in a.lines}
    np.testing.assert_allclose(lines["intended"], ex.intended[1])
    np.testing.assert_allclose(lines["achieved"], ex.achieved[1])
    np.testing.assert_allclose(lines["difference"], ex.difference[1])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ex.intended_probs[1, :, 0])
    assert lines.keys() >= {"for left", f"first CFE, k = {float(ex.first_k[1]):.2f}"}
    assert ax.get_ylabel() == "confidence in right" and ax.get_xlabel() == "k" and ax.get_xlim() == (0, 1)
    assert [t.get_text() for t in ax.get_legend().get_texts()][-1] == "difference"
    plt.close()

def test_curves_of_what_never_flipped(ex):
    ax = ex.plot_confidence(2, difference=False)
    assert not [l for l in ax.lines if str(l.get_label()).startswith("first CFE")] and len(ax.figure.axes) == 1
    plt.close()

def test_gradients_do_not_matter():
    ex = tiny()
    ex.path.requires_grad_()
    ex.achieved_probs.requires_grad_()
    assert render(ex.show(0, steps=3, difference=True)) and render(ex.plot(0, steps=3))

# --- differences, masks, evidence ------------------------------------------------------------------------------------

def test_the_second_row_is_the_signed_change(ex):
    fig = ex.show(0, steps=3, difference=True)
    changes = [a.images[0].get_array() for a in fig.axes[3:]]
    panels = strip_panels(ex, 0, 3)[1:]
    for got, p in zip(changes, panels): np.testing.assert_allclose(got, (ex.path[0, p.j] - ex.x[0]).mean(0), atol=1e-6)
    assert fig.axes[-1].images[0].get_clim() == pytest.approx((-1.8, 1.8)), "one scale, as large as the largest change"

def test_scale_of_maps():
    assert _largest([np.array([[1., -3]]), np.array([[2., np.nan]])]) == 3
    assert _largest([np.full((2, 2), np.nan)]) == 1 and _largest([]) == 1 and _largest([np.zeros((2, 2))]) == 1

@pytest.mark.parametrize("ks,n", [(None, 7), (.5, 2), ((0, 1), 3), ([.2, .3, .9], 4)])
def test_difference_at_any_step(ex, ks, n):
    fig = ex.show_difference(0, ks)
    assert len(fig.axes) == 2*n - 1 and render(fig)

def test_difference_of_what_failed():
    ex = tiny(gains=(1., .3, 1.), same=True)
    masks = torch.ones(3, 21, 4, 4)
    for i in range(3): assert render(ex.show_difference(i, masks=masks))

@pytest.mark.parametrize("ks", [(-.1,), (.5, 1.2), (float("nan"),), ()])
def test_difference_refuses(ex, ks):
    with pytest.raises(MirrorError, match="steps from 0"): ex.show_difference(0, ks)

def test_masks_of_another_explanation_are_refused(ex):
    with pytest.raises(MirrorError, match="masks must be those of this explanation"):
        ex.show_difference(0, masks=torch.ones(1, 3, 4, 4))

def test_share_inside_the_mask():
    change, mask = np.zeros((8, 8)), torch.zeros(4, 4)
    change[:2, :2] = 1
    mask[0, 0] = 1
    assert _share_inside(change, mask) == "100 % in 6 %" and _share_inside(-change, 1 - mask) == "0 % in 94 %"

def test_outline_goes_round_the_mask():
    "One cell of two by three, on a picture of 8 by 6 pixels: four lines, of the cell's sides."
    _, ax = plt.subplots()
    _outline(ax, np.array([[0, 1, 0], [0, 0, 0]]), (8, 6))
    lines = {tuple(map(tuple, line.tolist())) for line in ax.collections[0].get_segments()}
    left, right, top, bottom = 1.5, 3.5, -.5, 3.5
    assert lines == {((left, top), (right, top)), ((left, bottom), (right, bottom)),
                     ((left, top), (left, bottom)), ((right, top), (right, bottom))}
    plt.close()

def test_evidence_averages_to_the_margin():
    torch.manual_seed(0)
    clf = small_resnet(3, 1, [8, 16, 16], 16, ["a", "b", "c"]).eval()
    cfe = MirrorCFE(clf, 'paper', steps=1)
    x = torch.rand(4, 1, 16, 16)*2 - 1
    e = clf.encode(x)
    cfe.model = MirrorModel(clf, [(f.shape[1], f.shape[2]) for f in e.maps], 1, 16, cfe.recipe)
    ex = cfe.explain(x, ks=[0, .3, .8, 1], on_same="mark")
    margin = (e.logits.gather(1, ex.target[:, None]) - e.logits.gather(1, ex.source[:, None]))[:, 0]
    torch.testing.assert_close(evidence(clf, x, ex.source, ex.target).mean((1, 2)), margin, rtol=1e-4, atol=1e-5)
    assert render(ex.show_difference(0, masks=cfe)) and render(ex.show_difference(1, .3, cfe.masks(ex)))

# --- in a notebook, and as files -------------------------------------------------------------------------------------

def test_one_row_for_each_step():
    ex = tiny(K=5, gains=(1., .3), same=True)
    long = ex.to_frame()
    assert len(long) == len(ex)*5 and long.image.tolist() == sum(([i]*5 for i in range(len(ex))), [])
    assert long.k.tolist()[:5] == [0, .25, .5, .75, 1] and set(long.predicted[:5]) == {"left", "right"}
    missing = long[long.image == len(ex) - 1]
    assert missing.achieved.isna().all() and missing.difference.isna().all()
    assert "drawn_k" not in long and "drawn_k" in replace(ex, drawn_ks=ex.ks.expand(len(ex), -1)).to_frame()

def test_table_in_a_notebook():
    ex = tiny(gains=(1., .3, 1.), same=True, classes=("<script>", "right", "up"))
    page = ex._repr_html_()
    assert page.count("<img") == 3*len(ex) and "<script>" not in page and "&lt;script&gt;" in page
    assert "never flipped" in page and "k = 1.00: right" in page
    many = ex[[0]*9]._repr_html_()
    assert many.count("<img") == 3*4 and "and 5 more" in many

def test_images_are_pictures():
    ex = tiny(channels=3, size=(8, 12), same=True)
    pictures = ex.images(1)
    assert len(pictures) == len(ex.ks) and pictures[0].size == (12, 8) and pictures[0].mode == "RGB"
    with pytest.raises(MirrorError, match="has no path"): ex.images(len(ex) - 1)
