"What the tests share: where data and weights lie, when they lie anywhere."
import os
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
for variable, folder in (("MIRRORCFE_DATA", "data"), ("TORCH_HOME", "torch_home")):
    beside = ROOT.parent/"shared"/folder
    if variable not in os.environ and beside.is_dir(): os.environ[variable] = str(beside)

NEEDS = {"mnist": "MNIST/raw/train-images-idx3-ubyte", "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
         "blood": "blood_cells_128", "bloodmnist": "medmnist/bloodmnist.npz", "celeba": "celeba_hq"}

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
        if not (here.exists() or here.with_name(here.name + ".gz").exists()): pytest.skip(f"{name}: no {NEEDS[name]} in {base}")
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
