"Every dataset behind one call: splits, ranges, orders, selections, and files that are not what they should be."
import errno, gzip, hashlib, http.server, os, pickle, threading, time, warnings, zipfile
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from mirrorcfe.core import MirrorError
from mirrorcfe import data
from mirrorcfe.data import (BLOCK, DATASETS, FACES, IDX_FILES, ImageSet, TensorLoader, available, block_split,
                            class_rank, data_fingerprint, data_spec, decode_files,
                            face_attributes, get_dls, get_folder_dls, stratified, to_size)
from mirrorcfe.images import UnreadableImage
from mirrorcfe.storage import DamagedFile, cache_dir, read_tensors

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope="module")
def digits(): return get_dls("digits", device="cpu")

def numbers(n): return ImageSet(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.arange(n))
def seen(dl): return [y.tolist() for _, y in dl]
def rows(dataset): return sorted(map(bytes, dataset.x.flatten(1).numpy()))

# --- what comes out ---------------------------------------------------------------------------------------------------

def test_digits(digits):
    x, y = digits.one_batch()
    assert x.shape == (64, 1, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.int64
    everything = torch.cat([d.dataset[:][0] for d in digits.loaders])
    assert everything.min() == -1 and everything.max() == 1
    assert [len(d.dataset) for d in digits] == [1297, 200, 300]
    assert digits.vocab == list("0123456789") and digits.c == 10 and digits.pair is None
    assert digits.test is digits.loaders[2]
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
    dls = get_dls(name, root, device="cpu")
    native = get_dls(name, root, size=28, device="cpu")
    assert [len(d.dataset) for d in dls] == [55_000, 5_000, 10_000]
    x, y = dls.test.one_batch()
    assert x.shape == (64, 1, 32, 32) and x.min() == -1 and x.max() == 1
    assert torch.equal(x[..., 2:-2, 2:-2], native.test.one_batch()[0])
    x[..., 2:-2, 2:-2] = -1
    assert (x == -1).all(), "the border is black"
    train = dls.train.dataset.y.bincount()
    valid = dls.valid.dataset.y.bincount()
    assert (train.float()/valid - 11).abs().max() < .2
    assert set(map(hash, rows(dls.train.dataset))).isdisjoint(map(hash, rows(dls.valid.dataset))), "no image is in both"
    assert dls.vocab == list(DATASETS[name].classes) and available(name, root)

def test_mnist_is_read_as_torchvision_does(data_root):
    from torchvision.datasets import MNIST
    root = data_root("mnist")
    if not (root/"MNIST"/"raw"/"t10k-labels-idx1-ubyte").exists(): pytest.skip("mnist: the files are packed")
    theirs = MNIST(root, train=False)
    ours = get_dls("mnist", root, size=28, device="cpu").test.dataset
    assert torch.equal(theirs.data[:, None], ours.x) and torch.equal(theirs.targets, ours.y)

def test_sizes():
    x = torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8)
    assert to_size(x, 28, pad=2) is x
    assert torch.equal(to_size(x, 32, pad=2)[..., 2:30, 2:30], x)
    assert to_size(x, 64, pad=2).shape == (5, 3, 64, 64) and to_size(x, 14).dtype == torch.uint8

def test_wrong_images_are_refused():
    for x in (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8),
              torch.zeros(3, 1, 4, 4, dtype=torch.uint8)):
        with pytest.raises(MirrorError, match="ImageSet takes uint8"): ImageSet(x, torch.zeros(2))

# --- order ------------------------------------------------------------------------------------------------------------

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
    dl = TensorLoader(numbers(n), bs, shuffle=True, seed=seed, steps=steps)
    plain = TensorLoader(numbers(n), bs, shuffle=True, seed=seed)
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

@pytest.mark.parametrize("kw, message", [(dict(bs=0), "bs must be"), (dict(bs=2.5), "bs must be"),
                                         (dict(seed=-1, shuffle=True), "seed must be"),
                                         (dict(steps=0, shuffle=True), "steps must be"),
                                         (dict(steps=2), "needs shuffle")])
def test_impossible_loaders(kw, message):
    with pytest.raises(MirrorError, match=message): TensorLoader(numbers(4), **kw)

def test_empty_selection():
    with pytest.raises(MirrorError, match="no images"): TensorLoader(numbers(4).new_empty()).one_batch()

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_live_on_the_device():
    a = get_dls("digits", device="cuda")
    b = get_dls("digits", device="cpu")
    assert a.one_batch()[0].is_cuda and torch.equal(a.one_batch()[0].cpu(), b.one_batch()[0])

def test_a_learner_takes_them(tmp_path):
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    dls = get_dls("digits", steps=30, device="cpu")
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))
    learn = Learner(dls, linear, loss_func=F.cross_entropy, metrics=accuracy)
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

# --- selections -------------------------------------------------------------------------------------------------------

def test_pair_keeps_class_numbers(digits):
    dls = get_dls("digits", pair=(9, 4), device="cpu")
    assert dls.pair == (9, 4) and dls.c == 10 and dls.vocab == digits.vocab
    for d, whole in zip(dls.loaders, digits.loaders):
        keep = (whole.dataset.y == 4) | (whole.dataset.y == 9)
        assert torch.equal(d.dataset.y, whole.dataset.y[keep]) and torch.equal(d.dataset.x, whole.dataset.x[keep])
    assert get_dls("digits", pair=("9", "4"), device="cpu").pair == (9, 4)

@pytest.mark.parametrize("pair, message", [((4, 4), "both class 4"), ((4, 10), "class 10 is outside"),
                                           ((-1, 4), "outside"), ((1, 2, 3), "two classes"),
                                           ("49", "two classes"), (("4", "four"), "no class 'four'"),
                                           ((1.5, 2), "int")])
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

@pytest.mark.parametrize("kw, message", [(dict(n_train=1298), "1 to 1,297"), (dict(n_train=0), "1 to 1,297"),
                                         (dict(n_train=.5), "found 0.5"),
                                         (dict(size=4), "size must be"), (dict(size="big"), "size must be"),
                                         (dict(bs=0), "bs must be"), (dict(seed=-2), "seed must be")])
def test_impossible_selections(kw, message):
    with pytest.raises(MirrorError, match=message): get_dls("digits", **kw)

def test_unknown_name_lists_the_names():
    with pytest.raises(MirrorError, match="no dataset 'minst'.*digits, mnist, fashion_mnist"): get_dls("minst")
    with pytest.raises(MirrorError, match="choose one of"): available("minst")
    assert data_spec("mnist").title == "MNIST"

def test_fingerprint(digits):
    f = data_fingerprint(digits)
    assert len(f) == 16 and f == data_fingerprint(get_dls("digits", seed=9, device="cpu"))
    few = data_fingerprint(get_dls("digits", n_train=100, device="cpu"))
    assert len({f, few, data_fingerprint(get_dls("digits", pair=(1, 2), device="cpu"))}) == 3

# --- files ------------------------------------------------------------------------------------------------------------

def fake_files(raw, pack=False):
    "Four files of MNIST's form: black images, labels 0 to 9 in turn."
    raw.mkdir(parents=True)
    for name in IDX_FILES:
        n = 60_000 if name.startswith("train") else 10_000
        if "images" in name: data = bytes([0, 0, 8, 3]) + n.to_bytes(4, "big") + bytes([0, 0, 0, 28])*2 + bytes(n*784)
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
    with pytest.raises(MirrorError, match=r"no MNIST files in .*MNIST.raw \(given by root=\).*train-images.*download"):
        get_dls("mnist", tmp_path)
    monkeypatch.setenv("MIRRORCFE_DATA", str(tmp_path/"nowhere"))
    with pytest.raises(MirrorError, match=r"nowhere.*given by MIRRORCFE_DATA"): get_dls("fashion_mnist")
    assert not available("mnist") and not (tmp_path/"nowhere").exists()

def test_damaged_files_are_named(tmp_path):
    raw = tmp_path/"MNIST"/"raw"
    fake_files(raw)
    labels = raw/"train-labels-idx1-ubyte"
    good = (raw/"train-labels-idx1-ubyte").read_bytes()
    labels.write_bytes(good[:-1])
    with pytest.raises(DamagedFile, match="train-labels-idx1-ubyte is damaged .60,007 bytes, 60,008 expected"):
        get_dls("mnist", tmp_path)
    labels.write_bytes(good + b"more")
    with pytest.raises(DamagedFile, match="more than 60,008 bytes"): get_dls("mnist", tmp_path)
    labels.write_bytes(b"\xff"*len(good))
    with pytest.raises(DamagedFile, match="its header does not announce a shape of .60000,."):
        get_dls("mnist", tmp_path)
    labels.write_bytes(good[:8] + b"\x63"*60_000)
    with pytest.raises(DamagedFile, match="not labels of ten classes"): get_dls("mnist", tmp_path)
    labels.unlink()
    packed = gzip.compress(good)
    for bad in (packed[:-20], packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:], good):
        (raw/f"{labels.name}.gz").write_bytes(bad)
        with pytest.raises(DamagedFile, match=r"labels-idx1-ubyte.gz is damaged"): get_dls("mnist", tmp_path)

class Server(http.server.BaseHTTPRequestHandler):
    "Sends what `answers` holds for a path, or the next of a list: bytes, how many are promised, seconds of silence."
    answers = {}
    asked = []
    def do_GET(self):
        self.asked.append(self.path)
        body, promised, silent = self.answers[self.path] if isinstance(self.answers, dict) else self.answers.pop(0)
        self.send_response(200)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        time.sleep(silent)
    def log_message(self, *a): pass

@pytest.fixture
def server():
    "A function: address of a server that gives these answers."
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    s.daemon_threads = True
    threading.Thread(target=s.serve_forever, daemon=True).start()
    def start(answers):
        Server.answers = answers
        Server.asked = []
        return f"http://127.0.0.1:{s.server_port}/"
    yield start
    s.shutdown()
    s.server_close()

@pytest.fixture
def mnist_server(server, tmp_path, monkeypatch):
    "A mirror of MNIST that has black images, and the answers it gives."
    from torchvision.datasets import MNIST
    fake_files(tmp_path/"there", pack=True)
    answers = {}
    resources = []
    for f in IDX_FILES:
        body = (tmp_path/"there"/f"{f}.gz").read_bytes()
        answers[f"/{f}.gz"] = body, len(body), 0
        resources.append((f"{f}.gz", hashlib.md5(body).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", server(answers)])
    monkeypatch.setattr(MNIST, "resources", resources)
    return answers

def test_download_goes_into_the_cache_once(no_data, mnist_server):
    assert not available("mnist")
    for _ in range(2): assert len(get_dls("mnist", device="cpu").test.dataset) == 10_000
    assert len(Server.asked) == 4 and os.listdir(no_data/"data") == ["MNIST"] and available("mnist")
    assert cache_dir() == no_data
    assert sorted(os.listdir(no_data/"data"/"MNIST"/"raw")) == sorted(f"{f}.gz" for f in IDX_FILES)

def test_a_download_that_is_broken_off_goes_on(no_data, mnist_server):
    "What has come whole stays, what has not leaves nothing; the next call fetches the rest."
    name = "/t10k-images-idx3-ubyte.gz"
    whole = mnist_server[name]
    mnist_server[name] = whole[0][:1000], len(whole[0]), 0
    with pytest.raises(MirrorError, match="cannot download http.*t10k.*FOLDER/MNIST/raw.*'digits' needs no files"):
        get_dls("mnist")
    assert len(os.listdir(no_data/"data"/"MNIST"/"raw")) == 2 and not available("mnist")
    mnist_server[name] = whole
    Server.asked.clear()
    assert len(get_dls("mnist", device="cpu").test.dataset) == 10_000 and len(Server.asked) == 2

def test_another_checksum_is_refused(no_data, mnist_server):
    name = "/train-images-idx3-ubyte.gz"
    body = bytes([mnist_server[name][0][0] ^ 1]) + mnist_server[name][0][1:]
    mnist_server[name] = body, len(body), 0
    with pytest.raises(MirrorError, match="has the checksum .MD5. .* was published: it was not kept"): get_dls("mnist")
    assert os.listdir(no_data/"data"/"MNIST"/"raw") == []

def test_a_server_that_falls_silent_is_given_up(no_data, mnist_server, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", .2)
    name = "/train-images-idx3-ubyte.gz"
    mnist_server[name] = mnist_server[name][0][:100], len(mnist_server[name][0]), 5
    started = time.monotonic()
    with pytest.raises(MirrorError, match="cannot download"): get_dls("mnist")
    assert time.monotonic() - started < 4 and os.listdir(no_data/"data"/"MNIST"/"raw") == []

def test_offline_says_so(no_data, monkeypatch):
    from torchvision.datasets import MNIST
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(MirrorError, match="cannot download http://127.0.0.1:9/train-images-idx3-ubyte.gz"):
        get_dls("mnist")

def test_digits_need_nothing(no_data):
    assert len(get_dls("digits", device="cpu").test.dataset) == 300 and not no_data.exists()

def test_earlier_sets_are_as_they_were(digits, data_root):
    assert data_fingerprint(digits) == "50a2e5155e1016ae"
    assert data_fingerprint(get_dls("mnist", data_root("mnist"), device="cpu")) == "bc7a09ec4ad58ed5"
    assert data_fingerprint(get_dls("fashion_mnist", data_root("fashion_mnist"), device="cpu")) == "c867ddaaa313a493"

# --- blood cells ------------------------------------------------------------------------------------------------------

def fake_blood(file, **changes):
    "A file of BloodMNIST's form: 24, 16 and 8 images of noise."
    rng = np.random.default_rng(0)
    z = {}
    for part, n in (("train", 24), ("val", 16), ("test", 8)):
        z[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
        z[f"{part}_labels"] = (np.arange(n) % 8).astype(np.uint8)[:, None]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **(z | changes))
    return z

@pytest.mark.parametrize("place", data.BLOOD_FILES)
def test_fake_bloodmnist(tmp_path, place):
    z = fake_blood(tmp_path/place)
    dls = get_dls("bloodmnist", tmp_path, device="cpu")
    assert [len(d.dataset) for d in dls] == [24, 16, 8] and dls.c == 8 and dls.spec.channels == 3
    assert available("bloodmnist", tmp_path)
    x = dls.valid.dataset.x
    assert x.shape == (16, 3, 32, 32)
    assert torch.equal(x[..., 2:-2, 2:-2], torch.from_numpy(z["val_images"]).permute(0, 3, 1, 2))
    for i in range(2):
        assert torch.equal(x[:, :, i, 2:-2], x[:, :, 2, 2:-2])
        assert torch.equal(x[..., -1 - i], x[..., -3]), "the border repeats the outermost pixels"
    assert get_dls("bloodmnist", tmp_path, size=28, pair=("erythroblast", "lymphocyte"),
                   device="cpu").test.dataset.y.tolist() == [2, 4]

def test_damaged_bloodmnist(tmp_path):
    file = tmp_path/"bloodmnist.npz"
    for changes in (dict(val_images=np.zeros((16, 28, 28), np.uint8)), dict(test_labels=np.full((8, 1), 8, np.uint8)),
                    dict(train_labels=np.array([{}], dtype=object))):
        fake_blood(file, **changes)
        with pytest.raises(MirrorError, match="bloodmnist.npz is damaged"): get_dls("bloodmnist", tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MirrorError, match="bloodmnist.npz is damaged"): get_dls("bloodmnist", tmp_path)
    file.unlink()
    with pytest.raises(MirrorError, match=r"no medmnist/bloodmnist.npz or bloodmnist.npz in .*given by root=.*zenodo"):
        get_dls("bloodmnist", tmp_path)

@pytest.fixture
def blood(tmp_path):
    "The bytes of a file of BloodMNIST's form, and their MD5."
    fake_blood(tmp_path/"server"/"bloodmnist.npz")
    whole = (tmp_path/"server"/"bloodmnist.npz").read_bytes()
    return whole, hashlib.md5(whole).hexdigest()

def test_bloodmnist_download_is_checked(no_data, blood, monkeypatch, server):
    whole, md5 = blood
    address = server([(whole, len(whole), 0)]*2) + "bloodmnist.npz"
    monkeypatch.setattr(data, "BLOODMNIST", (address, "0"*32))
    with pytest.raises(MirrorError, match="checksum .MD5. .* was published: it was not kept.*FOLDER/medmnist"):
        get_dls("bloodmnist")
    assert os.listdir(no_data/"data"/"medmnist") == []
    monkeypatch.setattr(data, "BLOODMNIST", (address, md5))
    for _ in range(2): assert len(get_dls("bloodmnist", device="cpu").test.dataset) == 8
    assert os.listdir(no_data/"data"/"medmnist") == ["bloodmnist.npz"] and len(Server.asked) == 2

def test_bloodmnist_offline_says_so(no_data, monkeypatch):
    monkeypatch.setattr(data, "BLOODMNIST", ("http://127.0.0.1:9/bloodmnist.npz", "0"))
    with pytest.raises(MirrorError, match="cannot download .*put bloodmnist.npz into FOLDER/medmnist"):
        get_dls("bloodmnist")

def test_interrupted_download_starts_again(no_data, blood, monkeypatch, server):
    whole, md5 = blood
    address = server([(whole[:1000], len(whole), 0), (whole, len(whole), 0)]) + "bloodmnist.npz"
    monkeypatch.setattr(data, "BLOODMNIST", (address, md5))
    with pytest.raises(MirrorError, match="cannot download"): get_dls("bloodmnist")
    assert os.listdir(no_data/"data"/"medmnist") == [], "nothing half-written stays"
    assert len(get_dls("bloodmnist", device="cpu").test.dataset) == 8
    assert os.listdir(no_data/"data"/"medmnist") == ["bloodmnist.npz"]

@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")],
                         ids=["interrupted", "disk full"])
def test_download_broken_off_leaves_nothing(no_data, monkeypatch, error):
    def stop(self, url, output_file, pooch):
        with open(output_file, "wb") as f: f.write(b"half")
        raise error
    monkeypatch.setattr(data.pooch.HTTPDownloader, "__call__", stop)
    kind = KeyboardInterrupt
    says = None
    if isinstance(error, OSError): kind, says = MirrorError, "a download cannot be kept .*No space.*MIRRORCFE_CACHE"
    with pytest.raises(kind, match=says): get_dls("bloodmnist")
    assert os.listdir(no_data/"data"/"medmnist") == []

def test_cache_that_cannot_be_written(tmp_path, monkeypatch, no_data):
    (tmp_path/"file").touch()
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path/"file"/"cache"))
    for name in ("bloodmnist", "mnist"):
        with pytest.raises(MirrorError, match="a download cannot be kept in .*MIRRORCFE_CACHE to a folder that can"):
            get_dls(name)

def test_bloodmnist(data_root):
    dls = get_dls("bloodmnist", data_root("bloodmnist"), device="cpu")
    assert [len(d.dataset) for d in dls] in ([11_959, 1_712, 3_421], [11_965, 1_710, 3_417])
    assert dls.one_batch()[0].shape == (64, 3, 32, 32) and dls.train.dataset.y.unique().tolist() == list(range(8))
    assert dls.vocab[2] == "erythroblast" and dls.vocab[4] == "lymphocyte"

# --- faces ------------------------------------------------------------------------------------------------------------

def picture(i, size=(20, 16), mode="RGB"):
    from PIL import Image
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)

@pytest.fixture
def faces(tmp_path, no_data):
    "Two hundred faces of noise with three attributes."
    home = tmp_path/"celeba_hq"
    (home/"CelebA-HQ-img").mkdir(parents=True)
    lines = ["200", "Bald Mouth_Slightly_Open Young "]
    for i in sorted(range(200), key=str):
        picture(i).save(home/"CelebA-HQ-img"/f"{i}.jpg")
        lines.append(f"{i}.jpg  {'1' if i < 10 else '-1'} {'1' if i % 2 else '-1'} -1 ")
    (home/FACES).write_text("\n".join(lines) + "\n")
    return tmp_path

def test_fake_faces(faces):
    dls = get_dls("celeba_hq", faces, size=16, device="cpu")
    assert [len(d.dataset) for d in dls] == [100, 50, 50]
    assert dls.vocab == ["no Mouth_Slightly_Open", "Mouth_Slightly_Open"]
    assert dls.test.dataset.y.tolist() == [0, 1]*25 and dls.test.dataset.x.shape == (50, 3, 16, 16)
    bald = get_dls("celeba_hq", faces, attribute="Bald", size=16, device="cpu")
    same = get_dls("celeba_hq:Bald", faces, size=16, device="cpu")
    assert sum(d.dataset.y.sum().item() for d in bald.loaders) == 10
    assert data_fingerprint(bald) == data_fingerprint(same) != data_fingerprint(dls)
    assert torch.equal(bald.train.dataset.x, dls.train.dataset.x), "the split is that of every attribute"
    names, files, has = face_attributes(faces)
    assert names[1] == "Mouth_Slightly_Open" and has.shape == (200, 3) and files[:2] == ["0.jpg", "1.jpg"]
    with pytest.raises(MirrorError, match="no attribute 'Tall'.*choose one of Bald"):
        get_dls("celeba_hq", faces, attribute="Tall")

def test_damaged_faces(faces):
    home = faces/"celeba_hq"
    (home/"CelebA-HQ-img"/"7.jpg").write_bytes(b"no picture")
    with pytest.raises(MirrorError, match=r"7.jpg is damaged"): get_dls("celeba_hq", faces)
    (home/"CelebA-HQ-img"/"7.jpg").unlink()
    with pytest.raises(MirrorError, match=r"1 of 200 images are not in"): get_dls("celeba_hq", faces)
    (home/FACES).write_text("2\nA B\n1.jpg 1 1\n2.jpg 1\n")
    with pytest.raises(MirrorError, match=f"{FACES} is damaged"): get_dls("celeba_hq", faces)
    with pytest.raises(MirrorError, match="non-commercial.*cannot be downloaded automatically.*CelebAMask-HQ"):
        get_dls("celeba_hq", faces/"elsewhere")
    assert not available("celeba_hq", faces/"elsewhere")

def test_decoded_faces_are_kept(faces, no_data, monkeypatch):
    monkeypatch.setattr(data, "KEEP_FROM", 100)
    seen = []
    load = lambda size=16: get_dls("celeba_hq", faces, size=size, device="cpu", progress=lambda *a: seen.append(a))
    first = data_fingerprint(load())
    assert seen == [(200, 200)] and data_fingerprint(load()) == first and len(seen) == 1
    kept, = (no_data/"images").iterdir()
    sound = kept.read_bytes()
    for bad in (b"half", sound[:-100] + bytes([sound[-100] ^ 1]) + sound[-99:]):
        kept.write_bytes(bad)
        with pytest.warns(UserWarning, match="decoded again: .* is damaged"): assert data_fingerprint(load()) == first
        assert len(seen) == 2 and read_tensors(kept)[1]["x"].shape == (200, 3, 16, 16), "a damaged one is made again"
        seen.pop()
    seen.clear()
    picture(999).save(faces/"celeba_hq"/"CelebA-HQ-img"/"3.jpg")
    assert data_fingerprint(load()) != first and len(seen) == 1, "another picture is another key"
    load(8)
    assert len(os.listdir(no_data/"images")) == 3
    assert all(n.endswith(".safetensors") for n in os.listdir(no_data/"images"))

def test_decoded_images_that_cannot_be_kept_are_used(faces, no_data, monkeypatch):
    monkeypatch.setattr(data, "KEEP_FROM", 100)
    no_data.mkdir()
    (no_data/"images").touch()
    with pytest.warns(UserWarning, match="the decoded images are not kept: cannot write .*MIRRORCFE_CACHE"):
        get_dls("celeba_hq", faces, size=16, device="cpu")

@given(n=st.integers(150, 900), block=st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_blocks_stay_together(n, block):
    parts = block_split(np.arange(n), block)
    assert sorted(np.concatenate(parts)) == list(range(n)) and all(len(p) for p in parts)
    blocks = [set((p//block).tolist()) for p in parts]
    assert not (blocks[0] & blocks[1] or blocks[0] & blocks[2] or blocks[1] & blocks[2])

def test_faces(data_root):
    root = data_root("celeba")
    names, files, has = face_attributes(root)
    assert len(names) == 40 and has.shape == (len(files), 40)
    dls = get_dls("celeba_hq", root, size=32, attribute="Smiling", device="cpu")
    assert sum(len(d.dataset) for d in dls.loaders) == len(files) and dls.spec.attribute == "Smiling"
    assert len(dls.test.dataset) == pytest.approx(len(files)/10, abs=BLOCK)
    assert .3 < dls.test.dataset.y.float().mean() < .7

# --- folders ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path, no_data):
    "Two classes of twenty pictures."
    for k, c in enumerate(("cat", "dog")):
        (tmp_path/"pets"/c).mkdir(parents=True)
        for i in range(20): picture(100*k + i).save(tmp_path/"pets"/c/f"{i:02}.png")
    return tmp_path/"pets"

def test_flat_folder(folder):
    dls = get_dls(f"folder:{folder}", size=16, device="cpu")
    assert [len(d.dataset) for d in dls] == [32, 4, 4] and dls.vocab == ["cat", "dog"] and dls.spec.title == "pets"
    assert [d.dataset.y.bincount().tolist() for d in dls] == [[16, 16], [2, 2], [2, 2]]
    assert len(set(sum((rows(d.dataset) for d in dls.loaders), []))) == 40
    relative = get_dls("folder:pets", folder.parent, size=16, device="cpu")
    assert data_fingerprint(relative) == data_fingerprint(dls) and available("folder:pets", folder.parent)
    assert not available("folder:nobody")
    assert pickle.loads(pickle.dumps(dls.spec)).classes == dls.spec.classes
    few = get_dls(f"folder:{folder}", pair=("dog", "cat"), n_train=4, device="cpu")
    assert few.train.dataset.x.shape == (4, 3, 64, 64)

def test_divided_folder(folder, tmp_path):
    new = tmp_path/"new"
    for part, ids in (("train", range(14)), ("val", range(14, 17)), ("test", range(17, 20))):
        for c in ("cat", "dog"):
            (new/part/c).mkdir(parents=True)
            for i in ids: (folder/c/f"{i:02}.png").rename(new/part/c/f"{i:02}.png")
    dls = get_folder_dls(new, size=16, channels=1, device="cpu")
    assert [len(d.dataset) for d in dls] == [28, 6, 6] and dls.one_batch()[0].shape == (28, 1, 16, 16)
    assert dls.spec.channels == 1
    for names in (("Train", "validation", "TEST"), ("training", "valid", "testing")):
        for old, name in zip(("train", "val", "test"), names): (new/old).rename(new/name)
        assert [len(d.dataset) for d in get_folder_dls(new, size=16, device="cpu")] == [28, 6, 6]
        for old, name in zip(("train", "val", "test"), names): (new/name).rename(new/old)
    (new/"val").rename(new/"old")
    assert [len(d.dataset) for d in get_folder_dls(new, size=16, device="cpu")] == [26, 2, 6]
    (new/"test"/"cow").mkdir()
    with pytest.raises(MirrorError, match="not classes of the training images: cow"): get_folder_dls(new)

def test_parts_without_training_images_are_not_classes(folder):
    for old, new in (("cat", "val"), ("dog", "Test")): (folder/old).rename(folder/new)
    with pytest.raises(MirrorError, match="has Test and val, but no folder train"): get_folder_dls(folder)
    (folder/"val").rename(folder/"control")
    assert get_folder_dls(folder, size=16, device="cpu").vocab == ["Test", "control"], "a class may be called so"

def grey_folders(root, *folders):
    "Folders with four grey images each."
    from PIL import Image
    for folder in folders:
        (root/folder).mkdir(parents=True)
        for i in range(4): Image.new("L", (8, 8), 20*i).save(root/folder/f"{i}.png")
    return root

def sizes(root):
    dls = get_folder_dls(root, channels=1, size=8, bs=2, device="cpu")
    return [len(l.dataset) for l in dls.loaders], dls.vocab

SPELLINGS = [("Training", "testing"), ("training_set", "test_set"), ("seg_train", "seg_test"), ("Train Set", "TestSet"),
             ("seg_train/seg_train", "seg_test/seg_test"), ("train2017", "test2017"), ("train_images", "test-images")]

@pytest.mark.parametrize("train, test", SPELLINGS)
def test_parts_in_every_common_spelling(tmp_path, train, test):
    grey_folders(tmp_path, f"{train}/a", f"{train}/b", f"{test}/a", f"{test}/b")
    assert sizes(tmp_path) == ([7, 1, 8], ["a", "b"])

def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    grey_folders(tmp_path, "train/a", "train/b", "dev/a", "dev/b", "extra/a")
    image = (tmp_path/"train"/"a"/"0.png").read_bytes()
    for place in (".", "train"): (tmp_path/place/"loose.png").write_bytes(image)
    with pytest.warns(UserWarning) as heard: assert sizes(tmp_path) == ([7, 8, 1], ["a", "b"])
    said = " ".join(str(w.message) for w in heard)
    assert "left out beside train: extra" in said and "in no folder of a class: 2 of the images" in said
    (tmp_path/"valid").mkdir()
    with pytest.raises(MirrorError, match="has dev and valid, which are one part"): sizes(tmp_path)

def test_a_class_may_be_called_train(tmp_path):
    assert sizes(grey_folders(tmp_path, "car", "train", "bus"))[1] == ["bus", "car", "train"]

def test_the_folder_inside_is_proposed(tmp_path):
    grey_folders(tmp_path, "pictures/a", "pictures/b")
    with pytest.raises(MirrorError, match="should it be .*pictures"): sizes(tmp_path)


def test_unreadable_pictures_are_left_out(folder):
    (folder/"cat"/"20.png").write_bytes(b"no")
    (folder/"cat"/"._00.png").write_bytes(b"a hidden file")
    (folder/"cat"/"notes.txt").write_text("not an image")
    with pytest.warns(UserWarning, match="1 of 41 images cannot be read and are left out: .*20.png"):
        dls = get_folder_dls(folder, size=16, device="cpu")
    assert sum(len(d.dataset) for d in dls.loaders) == 40

def test_unreadable_pictures_are_counted_and_named(folder):
    for i in range(7): (folder/"dog"/f"broken{i}.jpg").write_bytes(b"" if i else b"text")
    (folder/"cat"/"00.png").write_bytes((folder/"cat"/"00.png").read_bytes()[:200])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert sum(len(d.dataset) for d in get_folder_dls(folder, size=16, device="cpu").loaders) == 39
    said, = [str(w.message) for w in heard if "cannot be read" in str(w.message)]
    assert said.startswith("8 of 47 images cannot be read and are left out: ") and said.endswith(" ...")
    assert said.count("; ") == 4
    assert "dog/broken1.jpg (it is empty)" in said and "no known kind" in said and str(folder) not in said

def test_class_without_a_readable_picture(folder):
    for f in (folder/"cat").iterdir(): f.write_bytes(b"no")
    with pytest.raises(MirrorError, match="no image can be read of cat; 20 of 40 images cannot be read"):
        get_folder_dls(folder, size=16)

@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes of POSIX")
@pytest.mark.parametrize("kind, says", [("link", "it is a link to nothing"), ("loop", "it is a link to nothing"),
                                        ("fifo", "it is not a regular file")])
def test_what_lies_about_in_folders(folder, kind, says):
    "One odd thing among forty images is left out with a warning, as any file that cannot be read."
    odd = folder/"cat"/"x.png"
    if kind == "link": odd.symlink_to("nowhere.png")
    elif kind == "loop": odd.symlink_to("x.png")
    else: os.mkfifo(odd)
    with pytest.warns(UserWarning, match=f"1 of 41 images cannot be read and are left out: cat/x.png.*{says}"):
        dls = get_folder_dls(folder, size=16, device="cpu")
    assert sum(len(d.dataset) for d in dls.loaders) == 40

def test_other_suffixes_hidden_folders_and_formats_not_read(folder):
    for f in list((folder/"cat").iterdir())[:5]: f.rename(f.with_suffix(".jfif"))
    (folder/"cat"/".ipynb_checkpoints").mkdir()
    picture(1).save(folder/"cat"/".ipynb_checkpoints"/"00-checkpoint.png")
    for i in range(2): (folder/"dog"/f"{i}.HEIC").touch()
    with pytest.warns(UserWarning, match="passed over, since their formats are not read .2 .heic.: convert them"):
        dls = get_folder_dls(folder, size=16, device="cpu")
    assert sum(len(d.dataset) for d in dls.loaders) == 40

@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_names_that_are_no_utf8(folder):
    (folder/"cat"/"00.png").rename(folder/"cat"/os.fsdecode(b"caf\xe9.png"))
    (folder/"cat"/os.fsdecode(b"\xff.png")).write_bytes(b"no")
    with pytest.warns(UserWarning) as heard: dls = get_folder_dls(folder, size=16, device="cpu")
    said, = [str(w.message) for w in heard if "cannot be read" in str(w.message)]
    assert r"cat/\xff.png" in said and said.encode("utf-8") and sum(len(d.dataset) for d in dls.loaders) == 40

def test_folder_of_odd_pictures(tmp_path, no_data):
    "One pixel, a long strip, ink, alpha, a palette, 16 bits: all are read, in the square asked for."
    from PIL import Image
    for c in "ab": (tmp_path/"odd"/c).mkdir(parents=True)
    red = Image.new("RGB", (40, 30), (200, 30, 30))
    kinds = [red.resize((1, 1)), red.resize((900, 3)), red.convert("CMYK"), red.convert("RGBA"), red.quantize(8),
             red.convert("LA"),
             Image.fromarray(np.full((9, 9), 40_000, np.uint16)), red.convert("1"), red.convert("YCbCr"),
             Image.fromarray(np.full((9, 9), .5, np.float32))]
    for i, im in enumerate(kinds):
        for c in "ab":
            im.save(tmp_path/"odd"/c/f"{i:02}.tif" if im.mode not in ("P", "LA") else tmp_path/"odd"/c/f"{i:02}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for channels in (1, 3):
            dls = get_folder_dls(tmp_path/"odd", channels, size=16, device="cpu")
            assert sum(len(d.dataset) for d in dls.loaders) == 2*len(kinds)

def test_too_large_a_picture_is_left_out(folder, monkeypatch):
    from PIL import Image
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (60, 60)).save(folder/"cat"/"bomb.png")
    with pytest.warns(UserWarning, match="1 of 41 images .*cat/bomb.png .*exceeds limit of 2000 pixels"):
        get_folder_dls(folder, size=16, device="cpu")

@pytest.mark.parametrize("make, message", [(lambda p: None, "no folder"), (lambda p: p.mkdir(), "found no folders"),
                                           (lambda p: (p/"cat").mkdir(parents=True), "0 in cat")])
def test_impossible_folders(tmp_path, make, message):
    make(tmp_path/"f")
    with pytest.raises(MirrorError, match=message): get_folder_dls(tmp_path/"f")

def test_too_much_for_memory(folder, monkeypatch):
    monkeypatch.setattr(data, "MAX_BYTES", 40*3*20**2)
    with pytest.raises(MirrorError, match=r"40 images of 3 x 32 x 32 take .*choose size=20 or less"):
        get_folder_dls(folder, size=32)
    assert len(get_folder_dls(folder, size=20, device="cpu").train.dataset) == 32
    with pytest.raises(MirrorError, match="GiB is the limit"): get_dls("digits")

def test_blood_cells_folder(data_root):
    dls = get_dls(f"folder:{data_root('blood')/'blood_cells_128'}", size=64, device="cpu")
    assert dls.vocab == ["erythroblast", "lymphocyte"] and [len(d.dataset) for d in dls] == [1936, 276, 553]
    assert dls.one_batch()[0].shape == (64, 3, 64, 64)

@pytest.mark.parametrize("name, kw, message", [("mnist", dict(attribute="Smiling"), "mnist has no attributes"),
                                               ("folder:x", dict(attribute="Smiling"), "no dataset|no attributes"),
                                               ("mnist:Smiling", {}, "mnist has no attributes"),
                                               ("folder:", {}, "no folder")])
def test_impossible_names(name, kw, message):
    with pytest.raises(MirrorError, match=message): get_dls(name, **kw)

def test_an_archive_cannot_write_outside_of_itself(tmp_path, no_data):
    "npz (a zip) and gz are read by name into memory: what a member calls itself leads nowhere."
    home = tmp_path/"in"/"deep"
    home.mkdir(parents=True)
    fake_blood(home/"bloodmnist.npz")
    with zipfile.ZipFile(home/"bloodmnist.npz", "a") as z:
        for name in ("../../evil.npy", "/evil.npy", "..\\evil.npy"): z.writestr(name, b"evil")
    assert len(get_dls("bloodmnist", home, device="cpu").test.dataset) == 8
    assert [p.name for p in tmp_path.rglob("*") if "evil" in p.name] == []
    raw = home/"MNIST"/"raw"
    raw.mkdir(parents=True)
    for f in IDX_FILES:
        with open(raw/f"{f}.gz", "wb") as g, gzip.GzipFile("../../evil", "wb", fileobj=g) as z: z.write(b"evil")
    with pytest.raises(DamagedFile, match="is damaged"): get_dls("mnist", home)
    assert [p.name for p in tmp_path.rglob("*") if "evil" in p.name] == []
