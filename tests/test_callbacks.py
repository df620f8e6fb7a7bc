"fastai's own loggers follow a training through `cbs=`, get the sample grids, and change nothing."
import pandas as pd, pytest
from fastai.callback.progress import CSVLogger
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.storage import tensors_hash

@pytest.fixture(scope="module")
def fit(small):
    "A function: train for two epochs of two steps; returns the hash of the generator."
    dls, net, *_ = small
    def run(cbs=(), folder=None):
        loaders = type(dls)(dls.train.new(steps=2, bs=16), dls.valid, device=dls.device)
        model = MirrorCFE(net, epochs=2, autoencoder_steps=2, student_steps=2)
        return tensors_hash(model.fit(loaders, folder=folder, progress=False, cbs=cbs).model.G)
    return run

@pytest.fixture(scope="module")
def plain(fit): return fit()

def test_csv(fit, plain, tmp_path):
    assert fit([CSVLogger(tmp_path/"mine.csv")], tmp_path/"run") == plain
    mine, ours = (pd.read_csv(f) for f in (tmp_path/"mine.csv", tmp_path/"run"/"history.csv"))
    assert mine.epoch.tolist() == [0, 1] and {"train_loss", "cls", "validity"} <= set(mine.columns)
    assert mine.train_loss.tolist() == ours.train_loss.tolist()

def test_tensorboard(fit, plain, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert fit([TensorBoardCallback(str(tmp_path))]) == plain
    seen = EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in seen.Images("samples")] == [1, 2]
    assert {e.step for e in seen.Scalars("train_loss")} == {1, 2, 3, 4} and "validity" in seen.Tags()["scalars"]
    assert seen.Images("samples")[0].encoded_image_string.startswith(b"\x89PNG")

def test_wandb(fit, plain, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from fastai.callback.wandb import WandbCallback
    run = wandb.init(mode="offline", dir=str(tmp_path), project="mirrorcfe")
    try:
        assert fit([WandbCallback()]) == plain
        assert {"train_loss", "validity", "samples"} <= set(run.summary.keys())
    finally: run.finish()
    assert len(list(tmp_path.rglob("media/images/samples*.png"))) == 2
