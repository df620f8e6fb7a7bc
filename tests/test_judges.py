"The panel of judges: what it believes of real, wrong and damaged pictures, and what it keeps on disk."
import math
import numpy as np, pytest, torch
from mirrorcfe import judges
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.judges import (Judge, Panel, PlainConvNet, Usual, edge_features, panel_of, panel_problem,
                              read_panel, train_panel)
from mirrorcfe.storage import DamagedFile, MissingFile, file_hash, read_json, write_json

QUICK = ("svm", "trees", "neighbours", "conv_half")

@pytest.fixture(scope="module")
def dls(): return get_dls("digits", n_train=600, device="cpu")

@pytest.fixture(scope="module")
def panel(dls): return train_panel(dls, judges=QUICK, steps=60)

def always(c, accuracy, name="conv"):
    "A judge that sees class `c` everywhere."
    class Same(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x): return torch.eye(3)[c].expand(len(x), 3)
    return Judge(name, Same(), accuracy)

def test_votes_are_counted():
    panel = Panel([always(1, .9), always(1, .85), always(2, .95), always(0, .79)], list("abc"))
    x = torch.zeros(2, 1, 8, 8)
    assert panel.votes(x).tolist() == [[1, 1, 2]]*2, "one below .8 has no vote"
    b = panel.believed(x, torch.tensor([1, 2]))
    assert b.share.tolist() == pytest.approx([2/3, 1/3]) and b.majority.tolist() == [1, 0]
    assert panel.believed(x, 0).share.tolist() == [0, 0]
    assert "without a vote: conv" in repr(panel)

def test_half_of_the_votes_is_no_majority():
    panel = Panel([always(1, .9), always(2, .9)], list("abc"))
    assert panel.believed(torch.zeros(1, 1, 8, 8), 1).majority.item() == 0

def test_what_is_not_there_is_not_believed(panel, dls):
    x, y = dls.test.dataset[:4]
    x = x.clone()
    x[2] = math.nan
    b = panel.believed(x, y)
    assert b.share.isnan().tolist() == b.majority.isnan().tolist() == [False, False, True, False]
    assert b.share[[0, 1, 3]].equal(panel.believed(x[[0, 1, 3]], y[[0, 1, 3]]).share)

def test_all_below_the_least():
    with pytest.raises(MirrorError, match="right about 80% of real test images: found conv 0.79"):
        Panel([always(1, .79)], list("abc"))

def test_real_digits_and_others(panel, dls):
    x, y = dls.test.dataset[:]
    assert panel.believed(x, y).share.mean() > .9
    assert panel.believed(x, (y + 1) % 10).share.mean() < .1
    assert len(panel.voters) == len(QUICK) and all(.8 < j.accuracy < 1 for j in panel.voters)

def test_unlike_the_training_images(panel, dls):
    x, _ = dls.test.dataset[:]
    assert (panel.usual.distance(x) > 1).float().mean() < .06
    noise = torch.rand(50, 1, 32, 32)*2 - 1
    for odd in (-x[:50], torch.ones_like(x[:5]), torch.full_like(x[:5], -1), noise,
                x[:50].transpose(2, 3).flip(3)*.3 + .6):
        assert (panel.usual.distance(odd) > 1).float().mean() > .9

def test_the_limit_is_that_of_the_nearest_other_image():
    "Training images themselves are at distance 0, and 1 in 100 is farther from the next than the limit."
    data = get_dls("digits", n_train=300, device="cpu").train.dataset
    usual = Usual.of(data, rare=.2)
    x, _ = data[:]
    assert usual.distance(x).max() < 1e-2
    pixels = usual.known["pixels"]
    near = torch.cdist(pixels, pixels).fill_diagonal_(math.inf).amin(1)
    assert (near > usual.limits["pixels"]).float().mean() == pytest.approx(.1, abs=.01)

def test_few_images_are_told_before_training(monkeypatch):
    few = get_dls("digits", n_train=60, device="cpu")
    monkeypatch.setattr(judges, "train_judge", lambda *a: pytest.fail("trained all the same"))
    assert "too few training images for a panel of judges: found 6 of 0, 20 of each class" in panel_problem(few)
    with pytest.raises(MirrorError, match="too few training images"): train_panel(few)
    dls = get_dls("digits", n_train=300, device="cpu")
    dls.test.dataset = dls.test.dataset.subset(slice(0, 30))
    assert "too few test images" in panel_problem(dls)

def test_a_class_that_is_left_out_is_no_problem():
    assert panel_problem(get_dls("digits", pair=(4, 9), device="cpu")) == ""

# --- features --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [8, 20, 32, 64, 100])
def test_edges_of_any_size(size):
    x = torch.rand(2, 3, size, size)*2 - 1
    assert edge_features(x).shape == (2, 1764 + 96) and np.isfinite(edge_features(x)).all()

@pytest.mark.parametrize("side", [8, 16, 28, 64])
def test_network_of_any_size(side):
    net = PlainConvNet(5, 3, side).eval()
    assert net(torch.zeros(2, 3, 40, 40)).shape == (2, 5)

# --- on disk ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def kept(panel, tmp_path):
    panel.write(tmp_path)
    return tmp_path

def test_written_and_read(panel, kept, dls):
    again = read_panel(kept)
    x, _ = dls.test.dataset[:100]
    assert again.votes(x).equal(panel.votes(x)) and again.classes == panel.classes
    assert [(j.name, j.accuracy) for j in again.judges] == [(j.name, j.accuracy) for j in panel.judges]
    torch.testing.assert_close(again.usual.distance(x), panel.usual.distance(x), rtol=.02, atol=.02)

@pytest.mark.parametrize("file", ["svm.skops", "conv_half.safetensors", "panel.json", "usual.safetensors"])
def test_damaged(kept, file):
    data = bytearray((kept/file).read_bytes())
    data[len(data)//2] ^= 1
    (kept/file).write_bytes(bytes(data))
    with pytest.raises(DamagedFile, match=file.replace(".", r"\.")): read_panel(kept)
    (kept/file).unlink()
    with pytest.raises(MissingFile, match=file.replace(".", r"\.")): read_panel(kept)

def rewrite(kept, panel, name, change):
    "Keep a judge that was tampered with, with the right checksum."
    import skops.io
    model = next(j.model for j in panel.judges if j.name == name)
    skops.io.dump(change(model), kept/f"{name}.skops")
    about = read_json(kept/"panel.json")
    about["judges"][name]["sha256"] = file_hash(kept/f"{name}.skops")
    write_json(kept/"panel.json", about)

def test_a_tree_that_leads_nowhere(panel, kept, dls):
    "scikit-learn would follow it out of its memory."
    import copy
    def change(model):
        model = copy.deepcopy(model)
        tree = model.estimators_[3].tree_
        state = tree.__getstate__()
        state["nodes"]["left_child"][0] = 10**6
        tree.__setstate__(state)
        return model
    rewrite(kept, panel, "trees", change)
    with pytest.raises(DamagedFile, match="trees.skops.*lead nowhere"): read_panel(kept)

def test_counts_of_support_vectors(panel, kept):
    import copy
    def change(model):
        model = copy.deepcopy(model)
        model._n_support = model._n_support + 1000
        return model
    rewrite(kept, panel, "svm", change)
    with pytest.raises(DamagedFile, match="svm.skops.*counts do not fit"): read_panel(kept)

class Stranger: "A type that nobody said is fine."

def test_nothing_else_is_built(panel, kept):
    rewrite(kept, panel, "svm", lambda model: Stranger())
    with pytest.raises(DamagedFile, match="svm.skops.*Untrusted types.*Stranger"): read_panel(kept)

def test_another_format(kept):
    about = read_json(kept/"panel.json")
    write_json(kept/"panel.json", about | dict(format=0))
    with pytest.raises(MirrorError, match="format 0, this version reads 1"): read_panel(kept)

def test_cached_once_and_made_again(dls, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path))
    first = panel_of(dls, judges=["trees"])
    second = panel_of(dls, judges=["trees"])
    assert capsys.readouterr().out.count("Training a panel") == 1
    x, _ = dls.test.dataset[:50]
    assert first.votes(x).equal(second.votes(x))
    file, = tmp_path.rglob("trees.skops")
    file.write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="cached panel cannot be used.*trees.skops"): panel_of(dls, judges=["trees"])
    assert "Training a panel" in capsys.readouterr().out
    panel_of(dls, judges=["trees"])
    assert capsys.readouterr().out == ""
