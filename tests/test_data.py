"Every dataset behind one call: splits, ranges, orders, selections, and files that are not what they should be."
import gzip, os, pickle
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from mirrorcfe.core import MirrorError
from mirrorcfe.data import (DATASETS, IDX_FILES, ImageSet, TensorLoader, available, cache_dir, class_rank, data_fingerprint, data_spec, get_dls,
                            stratified, to_size)

@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope="module")
def digits(): return get_dls("digits", device="cpu")

def numbers(n): return ImageSet(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.arange(n))
def seen(dl): return [y.tolist() for _, y in dl]
def rows(dataset): return sorted(map(bytes, dataset.x.flatten(1).numpy()))

# --- what comes out ---------------------------------------------------------------------------------------------------------------

def test_digits(digits):
    x, y = digits.one_batch()
    assert x.shape == (64, 1, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.int64
    everything = torch.cat([d.dataset[:][0] for d in digits.loaders])
    assert everything.min() == -1 and everything.max() == 1
    assert [len(d.dataset) for d in digits] == [1297, 200, 300]
    assert digits.vocab == list("0123456789") and digits.c == 10 and digits.pair is None and digits.test is digits.loaders[2]
    assert (digits.spec.name, digits.spec.size, digits.spec.channels, digits.spec.range) == ("digits", 32, 1, (-1., 1.))

def test_digits_are_split_without_loss_or_overlap(digits):
    from sklearn.datasets import load_digits
    d = load_digits()
    whole = ImageSet(to_size(torch.from_numpy(d.images*255/16).round().byte()[:, None], 32), torch.from_numpy(d.target))
    assert sorted(sum((rows(dl.dataset) for dl in digits.loaders), [])) == rows(whole)
    for dl in digits.loaders[1:]:
        share = dl.dataset.y.bincount()/len(dl.dataset)
        assert (share - whole.y.bincount()/len(whole)).abs().max() < .006

def test_the_split_does_not_depend_on_seed_or_size(digits):
    other = get_dls("digits", seed=3, size=28, bs=7, device="cpu")
    for a, b in zip(digits.loaders, other.loaders): assert torch.equal(a.dataset.y, b.dataset.y)
    assert other.one_batch()[0].shape == (7, 1, 28, 28)

@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=6), part=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_stratified(counts, part):
    y = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)))
    n = int(part*len(y))
    a, b = stratified(y, n)
    assert len(a) == n and sorted([*a, *b]) == list(range(len(y)))
    assert (np.abs(np.bincount(y[a], minlength=len(counts)) - n*np.array(counts)/len(y)) <= 1 + len(counts)/2).all()
    rank = class_rank(y)
    for c in range(len(counts)): assert sorted(rank[y.numpy() == c]) == list(range(counts[c]))

@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_family(name, data_root):
    root = data_root(name)
    dls, native = get_dls(name, root, device="cpu"), get_dls(name, root, size=28, device="cpu")
    assert [len(d.dataset) for d in dls] == [55_000, 5_000, 10_000]
    x, y = dls.test.one_batch()
    assert x.shape == (64, 1, 32, 32) and x.min() == -1 and x.max() == 1
    assert torch.equal(x[..., 2:-2, 2:-2], native.test.one_batch()[0])
    x[..., 2:-2, 2:-2] = -1
    assert (x == -1).all(), "the border is black"
    train, valid = dls.train.dataset.y.bincount(), dls.valid.dataset.y.bincount()
    assert (train.float()/valid - 11).abs().max() < .2
    assert set(map(hash, rows(dls.train.dataset))).isdisjoint(map(hash, rows(dls.valid.dataset))), "no image is in both"
    assert dls.vocab == list(DATASETS[name].classes) and available(name, root)

def test_mnist_is_read_as_torchvision_does(data_root):
    from torchvision.datasets import MNIST
    root = data_root("mnist")
    if not (root/"MNIST"/"raw"/"t10k-labels-idx1-ubyte").exists(): pytest.skip("mnist: the files are packed")
    theirs, ours = MNIST(root, train=False), get_dls("mnist", root, size=28, device="cpu").test.dataset
    assert torch.equal(theirs.data[:, None], ours.x) and torch.equal(theirs.targets, ours.y)

def test_sizes():
    x = torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8)
    assert to_size(x, 28, pad=2) is x
    assert torch.equal(to_size(x, 32, pad=2)[..., 2:30, 2:30], x)
    assert to_size(x, 64, pad=2).shape == (5, 3, 64, 64) and to_size(x, 14).dtype == torch.uint8

def test_wrong_images_are_refused():
    for x in (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(3, 1, 4, 4, dtype=torch.uint8)):
        with pytest.raises(MirrorError, match="ImageSet takes uint8"): ImageSet(x, torch.zeros(2))

# --- order ------------------------------------------------------------------------------------------------------------------------

def test_epochs_are_repeated_exactly():
    a, b = (TensorLoader(numbers(50), 8, shuffle=True, seed=4) for _ in range(2))
    first = [seen(a) for _ in range(3)]
    b.one_batch(); b.order(17); torch.manual_seed(99); np.random.seed(1)
    assert [seen(b) for _ in range(3)] == first
    assert first[0] != first[1] and all(sorted(sum(e, [])) == list(range(50)) for e in first)
    assert seen(b.set_epoch(1)) == first[1] and b.epoch == 2
    assert seen(TensorLoader(numbers(50), 8, shuffle=True, seed=5)) != first[0]

def test_digits_epochs_are_repeated_exactly():
    a, b = (get_dls("digits", seed=2, steps=5, device="cpu").train.set_epoch(3) for _ in range(2))
    for (x, y), (x2, y2) in zip(a, b, strict=True): assert torch.equal(x, x2) and torch.equal(y, y2)

@given(n=st.integers(1, 30), bs=st.integers(1, 12), steps=st.integers(1, 9), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_steps_cut_an_endless_row_of_reshuffles(n, bs, steps, seed):
    dl, plain = TensorLoader(numbers(n), bs, shuffle=True, seed=seed, steps=steps), TensorLoader(numbers(n), bs, shuffle=True, seed=seed)
    epochs = [seen(dl) for _ in range(4)]
    assert all(len(e) == steps == len(dl) and all(len(b) == bs for b in e) for e in epochs)
    row = sum((b for e in epochs for b in e), [])
    ideal = torch.cat([plain.order(e) for e in range(-(-len(row)//n))]).tolist()
    assert row == ideal[:len(row)]

@given(n=st.integers(1, 30), bs=st.integers(1, 40), drop=st.booleans(), shuffle=st.booleans())
@settings(max_examples=60, deadline=None)
def test_length_is_the_number_of_batches(n, bs, drop, shuffle):
    dl = TensorLoader(numbers(n), bs, shuffle, drop)
    batches = seen(dl)
    assert len(dl) == len(batches) and batches
    if not drop: assert sorted(sum(batches, [])) == list(range(n))
    if drop and n >= bs: assert all(len(b) == bs for b in batches)

def test_new_and_to():
    dl = TensorLoader(numbers(20), 4, shuffle=True, drop_last=True, seed=2, steps=3)
    plain = dl.new(shuffle=False)
    assert plain.steps is None and seen(plain)[0] == [0, 1, 2, 3] and len(dl.new(steps=7)) == 7
    assert len(dl.new(numbers(5)).dataset) == 5
    assert dl.to("cpu") is dl and dl.device == torch.device("cpu")
    assert dl.to("meta").one_batch()[0].device.type == "meta"

@pytest.mark.parametrize("kw, message", [(dict(bs=0), "bs must be"), (dict(bs=2.5), "bs must be"), (dict(seed=-1, shuffle=True), "seed must be"),
                                         (dict(steps=0, shuffle=True), "steps must be"), (dict(steps=2), "needs shuffle")])
def test_impossible_loaders(kw, message):
    with pytest.raises(MirrorError, match=message): TensorLoader(numbers(4), **kw)

def test_empty_selection():
    with pytest.raises(MirrorError, match="no images"): TensorLoader(numbers(4).new_empty()).one_batch()

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_live_on_the_device():
    a, b = get_dls("digits", device="cuda"), get_dls("digits", device="cpu")
    assert a.one_batch()[0].is_cuda and torch.equal(a.one_batch()[0].cpu(), b.one_batch()[0])

def test_a_learner_takes_them(tmp_path):
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    dls = get_dls("digits", steps=30, device="cpu")
    torch.manual_seed(0)
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10)), loss_func=F.cross_entropy, metrics=accuracy)
    with learn.no_logging(): learn.fit(2, 1e-3)
    assert dls.train.epoch == 2 and learn.validate(ds_idx=2)[1] > .7
    p, y = learn.get_preds(dl=dls.test)
    assert p.shape == (300, 10) and torch.equal(y, dls.test.dataset.y)
    learn.export(tmp_path/"learner.pkl")
    assert (tmp_path/"learner.pkl").stat().st_size < 200_000, "no images travel with an exported Learner"

def test_specs_can_be_pickled(digits):
    assert pickle.loads(pickle.dumps(DATASETS))['digits'] == DATASETS['digits']
    assert pickle.loads(pickle.dumps(digits.test)).dataset.x.equal(digits.test.dataset.x)

def test_show_batch(digits):
    fig = digits.test.show_batch(4)
    assert [a.get_title() for a in fig.axes] == [str(c.item()) for c in digits.test.dataset.y[:4]]

# --- selections -------------------------------------------------------------------------------------------------------------------

def test_pair_keeps_class_numbers(digits):
    dls = get_dls("digits", pair=(9, 4), device="cpu")
    assert dls.pair == (9, 4) and dls.c == 10 and dls.vocab == digits.vocab
    for d, whole in zip(dls.loaders, digits.loaders):
        keep = (whole.dataset.y == 4) | (whole.dataset.y == 9)
        assert torch.equal(d.dataset.y, whole.dataset.y[keep]) and torch.equal(d.dataset.x, whole.dataset.x[keep])
    assert get_dls("digits", pair=("9", "4"), device="cpu").pair == (9, 4)

@pytest.mark.parametrize("pair, message", [((4, 4), "both class 4"), ((4, 10), "class 10 is outside"), ((-1, 4), "outside"), ((1, 2, 3), "two classes"),
                                           ("49", "two classes"), (("4", "four"), "no class 'four'"), ((1.5, 2), "int")])
def test_impossible_pairs(pair, message):
    with pytest.raises(MirrorError, match=message): get_dls("digits", pair=pair)

def test_n_train_is_balanced_and_nested(digits):
    small, large = (get_dls("digits", n_train=n, device="cpu") for n in (40, 203))
    assert small.train.dataset.y.bincount().tolist() == [4]*10
    assert large.train.dataset.y.bincount().max() - large.train.dataset.y.bincount().min() == 1
    assert set(rows(small.train.dataset)) <= set(rows(large.train.dataset)) <= set(rows(digits.train.dataset))
    assert len(small.valid.dataset) == 200 and len(get_dls("digits", n_train=1297, device="cpu").train.dataset) == 1297
    both = get_dls("digits", n_train=20, pair=(3, 8), device="cpu").train.dataset.y
    assert both.bincount()[[3, 8]].tolist() == [10, 10]

@pytest.mark.parametrize("kw, message", [(dict(n_train=1298), "1 to 1,297"), (dict(n_train=0), "1 to 1,297"), (dict(n_train=.5), "found 0.5"),
                                         (dict(size=4), "size must be"), (dict(size="big"), "size must be"), (dict(bs=0), "bs must be"), (dict(seed=-2), "seed must be")])
def test_impossible_selections(kw, message):
    with pytest.raises(MirrorError, match=message): get_dls("digits", **kw)

def test_unknown_name_lists_the_names():
    with pytest.raises(MirrorError, match="no dataset 'minst'.*digits, mnist, fashion_mnist"): get_dls("minst")
    with pytest.raises(MirrorError, match="choose one of"): available("minst")
    assert data_spec("mnist").title == "MNIST"

def test_fingerprint(digits):
    f = data_fingerprint(digits)
    assert len(f) == 16 and f == data_fingerprint(get_dls("digits", seed=9, device="cpu"))
    assert f != data_fingerprint(get_dls("digits", n_train=100, device="cpu")) != data_fingerprint(get_dls("digits", pair=(1, 2), device="cpu"))

# --- files ------------------------------------------------------------------------------------------------------------------------

def fake_files(raw, pack=False):
    "Four files of MNIST's form: black images, labels 0 to 9 in turn."
    raw.mkdir(parents=True)
    for name in IDX_FILES:
        n = 60_000 if name.startswith("train") else 10_000
        if "images" in name: data = bytes([0, 0, 8, 3]) + b"".join(v.to_bytes(4, "big") for v in (n, 28, 28)) + bytes(n*784)
        else: data = bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + bytes(range(10))*(n//10)
        if pack: (raw/f"{name}.gz").write_bytes(gzip.compress(data, 1))
        else: (raw/name).write_bytes(data)

@pytest.fixture
def no_data(monkeypatch, tmp_path):
    "No data folder, and an empty cache."
    monkeypatch.delenv("MIRRORCFE_DATA", raising=False)
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path/"cache"))
    return tmp_path/"cache"

@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_fake_mnist(tmp_path, pack):
    fake_files(tmp_path/"MNIST"/"raw", pack)
    before = sorted(os.listdir(tmp_path/"MNIST"/"raw"))
    dls = get_dls("mnist", tmp_path, device="cpu")
    assert dls.test.dataset.y.bincount().tolist() == [1000]*10 and dls.valid.dataset.y.bincount().tolist() == [500]*10
    assert sorted(os.listdir(tmp_path/"MNIST"/"raw")) == before, "nothing is written there"

def test_missing_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(MirrorError, match=r"no MNIST files in .*MNIST.raw \(given by root=\).*train-images.*download"): get_dls("mnist", tmp_path)
    monkeypatch.setenv("MIRRORCFE_DATA", str(tmp_path/"nowhere"))
    with pytest.raises(MirrorError, match=r"nowhere.*given by MIRRORCFE_DATA"): get_dls("fashion_mnist")
    assert not available("mnist") and not (tmp_path/"nowhere").exists()

def test_damaged_files_are_named(tmp_path):
    raw = tmp_path/"MNIST"/"raw"
    fake_files(raw)
    labels, good = raw/"train-labels-idx1-ubyte", (raw/"train-labels-idx1-ubyte").read_bytes()
    labels.write_bytes(good[:-1])
    with pytest.raises(MirrorError, match="train-labels-idx1-ubyte is damaged: 60,007 bytes, 60,008 expected"): get_dls("mnist", tmp_path)
    labels.write_bytes(b"\xff"*len(good))
    with pytest.raises(MirrorError, match="damaged"): get_dls("mnist", tmp_path)
    labels.write_bytes(good[:8] + b"\x63"*60_000)
    with pytest.raises(MirrorError, match="not 28x28 images of ten classes"): get_dls("mnist", tmp_path)
    labels.unlink()
    (raw/f"{labels.name}.gz").write_bytes(gzip.compress(good)[:-20])
    with pytest.raises(MirrorError, match=r"labels-idx1-ubyte.gz is damaged"): get_dls("mnist", tmp_path)

def test_download_goes_into_the_cache_at_once(no_data, monkeypatch):
    from pathlib import Path
    from torchvision.datasets import MNIST
    calls = []
    def download(self):
        if not self._check_exists(): calls.append(self.root); fake_files(Path(self.raw_folder))
    monkeypatch.setattr(MNIST, "download", download)
    assert not available("mnist")
    for _ in range(2): assert len(get_dls("mnist", device="cpu").test.dataset) == 10_000
    assert len(calls) == 1 and os.listdir(no_data/"data") == ["MNIST"] and available("mnist") and cache_dir() == no_data

@pytest.mark.parametrize("error", [RuntimeError("no route"), KeyboardInterrupt()], ids=["offline", "interrupted"])
def test_broken_download_leaves_nothing(no_data, monkeypatch, error):
    from pathlib import Path
    from torchvision.datasets import FashionMNIST
    def download(self):
        Path(self.raw_folder).mkdir(parents=True)
        (Path(self.raw_folder)/"train-images-idx3-ubyte").write_bytes(b"half")
        raise error
    monkeypatch.setattr(FashionMNIST, "download", download)
    kind = MirrorError if isinstance(error, RuntimeError) else KeyboardInterrupt
    with pytest.raises(kind, match="cannot download FashionMNIST: no route.*MIRRORCFE_DATA.*'digits' needs no files" if kind is MirrorError else None):
        get_dls("fashion_mnist")
    assert os.listdir(no_data/"data") == []

def test_offline_says_so(no_data, monkeypatch):
    from torchvision.datasets import MNIST
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(MirrorError, match="cannot download MNIST"): get_dls("mnist")

def test_digits_need_nothing(no_data):
    assert len(get_dls("digits", device="cpu").test.dataset) == 300 and not no_data.exists()
