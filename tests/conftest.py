"What the tests share: where data and weights lie, when they lie anywhere, and the seed of what they draw."
import os, random
from pathlib import Path
import hypothesis, pytest, torch
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
for variable, folder in (("MIRRORCFE_DATA", "data"), ("TORCH_HOME", "torch_home")):
    beside = ROOT.parent/"shared"/folder
    if variable not in os.environ and beside.is_dir(): os.environ[variable] = str(beside)

NEEDS = {"mnist": "MNIST/raw/train-images-idx3-ubyte", "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
         "blood": "blood_cells_128", "bloodmnist": "medmnist/bloodmnist.npz", "celeba": "celeba_hq"}

# What a test draws without a seed of its own is the same in every run, alone and among the others.
# MIRRORCFE_TEST_SEED=1 draws something else, to look for a test that rests on luck.
SEED = int(os.environ.get("MIRRORCFE_TEST_SEED", 0))
hypothesis.settings.register_profile("repeated", derandomize=SEED == 0)
hypothesis.settings.load_profile("repeated")

def seed_all():
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item): seed_all()   # before its fixtures

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item): seed_all()    # whichever of them were there already

@pytest.fixture(scope="session")
def root():
    "The checkout."
    return ROOT

@pytest.fixture(scope="session")
def data_root():
    "A function: the folder that holds the named dataset, or a skip that says which one is missing."
    def find(name):
        base = os.environ.get("MIRRORCFE_DATA")
        if not base: pytest.skip(f"{name}: MIRRORCFE_DATA is not set")
        here = Path(base)/NEEDS[name]
        if not any(p.exists() for p in (here, here.with_name(here.name + ".gz"))):
            pytest.skip(f"{name}: no {NEEDS[name]} in {base}")
        return Path(base)
    return find

@pytest.fixture
def one_thread():
    "One thread, so that sums come out to the last bit as they did before."
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope="session")
def digits_clf():
    "The digits' classifier."
    from mirrorcfe.classifiers import get_classifier
    return get_classifier("digits", device="cpu")

@pytest.fixture(scope="module")
def digits_dls():
    "Fours and nines."
    from mirrorcfe.data import get_dls
    return get_dls("digits", pair=(4, 9), device="cpu")

@pytest.fixture
def stop_after():
    "A callback as if killed: it raises an error when so many epochs are done."
    from fastai.callback.core import Callback
    class StopAfter(Callback):
        order = 99
        def __init__(self, n): self.n = n
        def after_epoch(self):
            if self.epoch + 1 == self.n: raise KeyboardInterrupt('killed')
    return StopAfter

@pytest.fixture
def short_epochs(monkeypatch):
    "Epochs of three steps for the trained baselines, so that few steps have several checkpoints."
    from mirrorcfe.baselines import base
    monkeypatch.setattr(base, 'EPOCH_STEPS', 3)

# --- for the commands ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def small():
    "Data, a classifier and an oracle that are not trained, and an explainer trained for one step."
    import torch
    from mirrorcfe.classifiers import small_resnet
    from mirrorcfe.data import get_dls
    from mirrorcfe.explainer import MirrorCFE
    dls = get_dls("digits", size=16, n_train=64, device="cpu")
    dls.test.dataset = dls.test.dataset.subset(slice(0, 6))
    torch.manual_seed(0)
    net = small_resnet(10, 1, (4, 8), 16, dls.vocab).freeze()
    oracle = small_resnet(10, 1, (4, 6), 16, dls.vocab).freeze()
    net.accuracy = .5
    oracle.accuracy = .5
    return dls, net, oracle, MirrorCFE(net, steps=1, autoencoder_steps=2, student_steps=2).fit(dls, progress=False)

@pytest.fixture(scope="session")
def saved(small, tmp_path_factory):
    "What the demo leaves for `explain`."
    from mirrorcfe.images import look_of
    from mirrorcfe.runs import save_explainer
    folder = tmp_path_factory.mktemp("demo")
    dls, net, oracle, model = small
    look = look_of(dls.train.dataset[:][0])
    save_explainer(folder, model, oracle, look=look, dataset="digits", preset="default", seed=0)
    return folder

@pytest.fixture
def here(tmp_path, monkeypatch, small):
    "An empty folder to be in, with two digits and some files that are no images."
    from PIL import Image
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("one.png", "two.jpg")):
        Image.fromarray(small[0].test.dataset.x[i, 0].numpy()).resize((40, 40)).save(name)
    Path("text.png").write_text("no image")
    Path("empty.png").touch()
    Path("half.png").write_bytes(Path("one.png").read_bytes()[:60])
    Path("folder").mkdir()
    return tmp_path

@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    "A folder of images, two of which cannot be read."
    from commands import write_pets
    from mirrorcfe.data import get_dls
    return write_pets(tmp_path_factory.mktemp("pets")/"pets", get_dls("digits", size=16, device="cpu").train.dataset)

@pytest.fixture(scope="session")
def trained(pets, tmp_path_factory):
    "The folder that `mirrorcfe train` leaves, and what it prints."
    import contextlib, io
    from commands import TRAIN, train_quickly
    from mirrorcfe.cli import main
    out = tmp_path_factory.mktemp("trained")/"out"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as m, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        train_quickly(m, with_forecast=True)
        assert main(["train", "--data", str(pets), *TRAIN, "--out", str(out)]) == 0
    return out, said.getvalue()
