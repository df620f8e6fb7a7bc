"The classifiers: their form, their training, their cache, and what they reach."
import errno, json, os, warnings
import pytest, torch
from torch.nn import functional as F
from safetensors.torch import load_file
import mirrorcfe.classifiers as C
from mirrorcfe.core import MirrorError
from mirrorcfe.data import DATASETS, ImageSet, TensorLoader, get_dls
from mirrorcfe.storage import file_hash, read_json, write_json
from mirrorcfe.classifiers import (EpochSeed, ResBlock, RECIPES, accuracy, class_table, classifier_learner,
                                   get_classifier, get_oracle, predict,
                                   random_translation, small_resnet, train_classifier)
from processes import Started

SMALL = dict(widths=(8, 16), epochs=1, n_train=200, device="cpu", progress=False)

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture
def cache(monkeypatch, tmp_path):
    "An empty cache."
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path))
    return tmp_path

@pytest.fixture(scope="module")
def digits(): return get_dls("digits", n_train=200, device="cpu")

def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    return small_resnet(**dict(widths=(8, 16)) | kw)

def same(a, b):
    weights = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in weights)

# --- form -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("c, channels, widths, size", [(10, 1, (32, 64, 128), 32), (2, 3, (8, 8), 28),
                                                       (7, 3, (4, 8, 16, 32), 64)])
def test_small_resnet(c, channels, widths, size):
    net = small_resnet(c, channels, widths, size).eval()
    x = torch.rand(3, channels, size, size)*2 - 1
    f, z, logits = net.encode(x)
    assert [m.shape[1] for m in f] == list(widths) and (net.in_channels, net.size) == (channels, (size, size))
    assert [m.shape[-1] for m in f] == [-(-size//2**(i + 1)) for i in range(len(widths))]
    assert f[-1].min() >= 0 and torch.allclose(z, f[-1].mean((2, 3)), atol=1e-6)
    assert torch.allclose(logits, z@net.W.T + net.b, atol=1e-5)
    assert torch.allclose(net(x), logits)

@pytest.mark.parametrize("kw", [dict(c=0), dict(in_channels=0), dict(widths=()), dict(size=4)])
def test_impossible_networks(kw):
    with pytest.raises(MirrorError, match="halve the image"): small_resnet(**kw)

def test_resblock_keeps_size_with_stride_one(): assert ResBlock(4, 4, 1)(torch.zeros(2, 4, 6, 6)).shape == (2, 4, 6, 6)

# --- measuring --------------------------------------------------------------------------------------------------------

def test_accuracy_by_hand(digits):
    net = tiny().train()
    logits, y = predict(net, digits.valid)
    x, truth = digits.valid.dataset[:]
    net.eval()
    with torch.no_grad(): assert torch.allclose(net(x), logits, atol=1e-5) and torch.equal(truth, y)
    net.train()
    assert accuracy(net, digits.valid) == pytest.approx((logits.argmax(1) == y).float().mean().item()) and net.training
    assert accuracy(net, [(x, truth)]) == pytest.approx(accuracy(net, digits.valid)), "any iterable of batches"
    assert accuracy(net, digits.train) == accuracy(net, digits.train.new(shuffle=False)) and digits.train.epoch == 0

def test_class_table():
    class Says(torch.nn.Module):
        "The class that the first pixel names."
        def forward(self, x): return F.one_hot(((x[:, 0, 0, 0] + 1)*127.5).round().long(), 4).float()
    x = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.tensor([0, 0, 1, 3, 3, 1])
    t = class_table(Says(), TensorLoader(ImageSet(x, torch.tensor([0, 0, 1, 1, 1, 3])), 4), list("abcd"))
    assert t.values.tolist() == [["a", 2, 1., ""], ["b", 3, pytest.approx(1/3), "d (2)"], ["d", 1, 0., "b (1)"]]

def test_random_translation_moves_each_image_by_itself():
    x = torch.full((400, 3, 11, 11), -1.)
    x[:, :, 5, 5] = 1
    y = random_translation(x, 2, torch.Generator().manual_seed(0))
    where = (y[:, 0] == 1).nonzero()[:, 1:] - 5
    assert len(where) == 400
    assert {tuple(w.tolist()) for w in where} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    assert torch.equal(y[:, 0], y[:, 2]) and torch.equal(random_translation(x, 0), x)

# --- training ---------------------------------------------------------------------------------------------------------

def test_training_is_repeated_exactly(digits):
    nets = []
    for i in range(2):
        dls = get_dls("digits", n_train=200, device="cpu")
        dls.train.set_epoch(5*i)
        torch.manual_seed(17*i)
        nets.append(train_classifier(tiny(seed=3), dls, epochs=2, shift=1, seed=3, progress=False))
    assert same(*nets)
    assert not same(nets[0], train_classifier(tiny(seed=3), digits, epochs=2, shift=1, seed=4, progress=False))

def test_training_leaves_the_global_seed_alone(digits):
    torch.manual_seed(5)
    a = torch.rand(3)
    net = tiny()
    torch.manual_seed(5)
    train_classifier(net, digits, epochs=1, progress=False)
    assert torch.equal(torch.rand(3), a)

def test_trained_is_frozen_and_knows_itself(digits):
    net = train_classifier(tiny(), digits, epochs=2, progress=False)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert list(net.history.columns) == ["train_loss", "valid_loss", "accuracy"] and len(net.history) == 2
    assert net.accuracy == accuracy(net, digits.test)
    again = train_classifier(net, digits, epochs=1, progress=False)
    assert again is net and len(net.history) == 1, "a frozen network can be trained on"

@pytest.mark.parametrize("kw", [dict(bf16=True), dict(channels_last=True), dict(bf16=True, channels_last=True),
                                dict(label_smoothing=.1)], ids=str)
def test_options_learn(digits, kw):
    net = train_classifier(tiny(widths=(8, 16, 32)), digits, epochs=6, lr=1e-2, progress=False, **kw)
    assert net.history.train_loss.iloc[-1] < .85*net.history.train_loss.iloc[0]
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in net.parameters())

@pytest.mark.parametrize("kw, message", [(dict(size=28), "28x28 pixels, the images have 32x32"),
                                         (dict(in_channels=3), "3 channel"),
                                         (dict(c=4), "4 classes, the data have 10")])
def test_what_does_not_fit_is_refused(digits, kw, message):
    with pytest.raises(MirrorError, match=message): train_classifier(tiny(**kw), digits, epochs=1)

def test_a_loss_of_nan_stops(digits):
    with pytest.raises(MirrorError, match="training stopped: the loss is .*smaller lr"):
        train_classifier(tiny(), digits, epochs=2, lr=1e20, progress=False)

def test_progress_is_shown_on_request(digits, capsys):
    train_classifier(tiny(), digits, epochs=1, progress=False)
    assert capsys.readouterr().out == ""
    train_classifier(tiny(), digits, epochs=1, progress=True)
    assert "valid_loss" in capsys.readouterr().out

def test_learner_for_plain_loops(digits):
    learn = classifier_learner(tiny(), digits, seed=1, shift=2)
    assert any(isinstance(cb, EpochSeed) and (cb.seed, cb.shift) == (1, 2) for cb in learn.cbs)
    assert learn.model.model.W.requires_grad

# --- the cache --------------------------------------------------------------------------------------------------------

def files(cache): return sorted(p.name for p in (cache/"classifiers").iterdir() if not p.name.endswith(".lock"))

def test_round_trip(cache, capsys):
    a = get_classifier("digits", **SMALL)
    assert capsys.readouterr().out == "Training a classifier of Digits on 200 images (once, then cached)\n"
    b = get_classifier("digits", **SMALL)
    assert capsys.readouterr().out == "" and same(a, b) and a.fingerprint() == b.fingerprint()
    assert (a.accuracy, a.classes) == (b.accuracy, b.classes) and a.history.equals(b.history)
    assert not b.training and not any(p.requires_grad for p in b.parameters())
    weights, about = files(cache)[::-1]
    about = json.loads((cache/"classifiers"/about).read_text())
    assert about["settings"]["n_train"] == 200 and about["accuracy"] == a.accuracy
    assert load_file(cache/"classifiers"/weights).keys() == a.state_dict().keys()

def test_every_setting_has_its_file(cache):
    get_classifier("digits", **SMALL)
    for kw in (dict(seed=1), dict(size=28), dict(lr=1e-3), dict(n_train=210), dict(label_smoothing=.1)):
        get_classifier("digits", **SMALL | kw)
    get_oracle("digits", **SMALL | dict(widths=(6, 12)))
    assert len(files(cache)) == 14

def test_force_trains_again(cache, capsys):
    nets = [get_classifier("digits", force=True, **SMALL) for _ in range(2)]
    assert capsys.readouterr().out.count("Training") == 2 and same(*nets)

@pytest.mark.parametrize("harm", ["cut", "swapped", "not json", "no hash", "no accuracy", "another accuracy",
                                  "no weights inside"])
def test_damaged_cache_is_told_and_trained_again(cache, harm):
    a = get_classifier("digits", **SMALL)
    about, weights = (cache/"classifiers"/f for f in files(cache))
    if harm == "cut": weights.write_bytes(weights.read_bytes()[:-9])
    if harm == "swapped": weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    if harm == "not json": about.write_text("{")
    if harm == "no hash": about.write_text("{}")
    if harm == "no accuracy": write_json(about, {k: v for k, v in read_json(about).items() if k != "accuracy"})
    if harm == "another accuracy": about.write_text(about.read_text().replace('"accuracy": 0.', '"accuracy": 1.'))
    if harm == "no weights inside":
        weights.write_bytes(b"half")
        write_json(about, read_json(about) | dict(sha256=file_hash(weights)))
    with pytest.warns(UserWarning, match="cached classifier .* is damaged .* training it again"):
        b = get_classifier("digits", **SMALL)
    assert same(a, b), "from the seed, not from the weights that were found"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(a, get_classifier("digits", **SMALL))

@pytest.mark.parametrize("left", ["weights", "json"])
def test_half_a_cache_is_trained_again(cache, left):
    a = get_classifier("digits", **SMALL)
    about, weights = (cache/"classifiers"/f for f in files(cache))
    (about if left == "weights" else weights).unlink()
    assert same(a, get_classifier("digits", **SMALL)) and len(files(cache)) == 2

def test_a_cache_that_cannot_be_written_costs_only_the_cache(monkeypatch, tmp_path):
    (tmp_path/"file").write_text("in the way")
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path/"file"))
    with pytest.warns(UserWarning, match="not kept.*MIRRORCFE_CACHE"):
        assert get_classifier("digits", **SMALL).accuracy > 0

@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_a_file_that_cannot_be_opened_is_left_alone(cache, monkeypatch, ending):
    get_classifier("digits", **SMALL)
    before = {f: (cache/"classifiers"/f).stat().st_mtime_ns for f in files(cache)}
    real = os.stat
    def busy(path, *a, **kw):
        if str(path).endswith(ending): raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *a, **kw)
    with monkeypatch.context() as m:
        m.setattr(os, "stat", busy)
        with pytest.raises(MirrorError, match="cannot read .*Too many open files; it is left as it is"):
            get_classifier("digits", **SMALL)
    assert before == {f: (cache/"classifiers"/f).stat().st_mtime_ns for f in files(cache)}

def test_what_an_earlier_version_kept_is_read(cache):
    "Its JSON had no checksum of its own."
    a = get_classifier("digits", **SMALL)
    about = next((cache/"classifiers").glob("*.json"))
    about.write_text(json.dumps(read_json(about)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(a, get_classifier("digits", **SMALL))

def test_keys_are_those_of_earlier_versions():
    "Classifiers that took minutes to train are found again."
    settings = dict(dataset="digits", data="50a2e5155e1016ae", size=32, n_train=None, widths=[32, 64, 128], seed=0,
                    bs=64, epochs=8, lr=4e-3, shift=2, bf16=True)
    assert C._cache_file(settings).name == "digits-20d1310dd673d898.safetensors"
    assert C._cache_file(settings | dict(dataset="folder:/a b/c")).parent == C._cache_file(settings).parent

def test_a_newer_version_trains_anew(cache, monkeypatch):
    get_classifier("digits", **SMALL)
    monkeypatch.setattr(C, "CODE_VERSION", C.CODE_VERSION + 1)
    get_classifier("digits", **SMALL)
    assert len(files(cache)) == 4

def test_two_processes_train_once(cache, tmp_path):
    code = "from mirrorcfe.classifiers import get_classifier\n" \
           "get_classifier('digits', widths=(8, 16), epochs=1, n_train=200, device='cpu')"
    runs = [Started(code, [], tmp_path/f"said{i}") for i in range(2)]
    assert [r.wait() for r in runs] == [0, 0] and sum(r.said.count("Training") for r in runs) == 1

def test_wrong_names_and_settings(cache):
    with pytest.raises(MirrorError, match="choose one of"): get_classifier("minst")
    with pytest.raises(TypeError, match="wight_decay"): get_classifier("digits", **SMALL, wight_decay=1)
    assert set(RECIPES) <= set(DATASETS)

# --- what they reach --------------------------------------------------------------------------------------------------

def test_digits_are_told_apart():
    nets = [f("digits", device="cpu", progress=False) for f in (get_classifier, get_oracle)]
    dls = get_dls("digits", device="cpu")
    for net in nets: assert accuracy(net, dls.test) == pytest.approx(net.accuracy) and net.accuracy >= .975
    assert nets[0].n_features != nets[1].n_features and nets[0].classes == list("0123456789")

@pytest.mark.parametrize("name, mark", [("mnist", .992), ("fashion_mnist", .90)])
def test_mnist_family_is_told_apart(name, mark, data_root, monkeypatch):
    root = data_root(name)
    def skip(*a, **k): pytest.skip(f"{name}: not in the cache, and training it takes minutes")
    monkeypatch.setattr(C, "train_classifier", skip)
    nets = get_classifier(name, root, device="cpu"), get_oracle(name, root=root, device="cpu")
    images = get_dls(name, root, device="cpu").test
    for net in nets: assert net.accuracy >= mark and accuracy(net, images) == pytest.approx(net.accuracy)
