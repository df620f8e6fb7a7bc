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
