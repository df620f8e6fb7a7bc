"A fastai Learner explains its own network: images brought back to [-1, 1], fitted once, refused without a GAP head."
import numpy as np, pytest, torch
from torch import nn
from PIL import Image
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.learner import learner_dls

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Threes and eights as picture files in folders named by class."
    top, data = tmp_path_factory.mktemp("pictures"), get_dls("digits", device="cpu").train.dataset
    for c, name in ((3, "three"), (8, "eight")):
        (top/name).mkdir()
        for i, x in enumerate(data.x[data.y == c][:24]): Image.fromarray(x[0].numpy()).save(top/name/f"{i}.png")
    return top

@pytest.fixture(scope="module")
def learn(folder):
    "A learner with normalised colour batches, as fastai makes them."
    torch.manual_seed(0)
    normalise = Normalize.from_stats([.5, .4, .3], [.2, .3, .4], cuda=False)
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.25, seed=0, item_tfms=Resize(32), batch_tfms=normalise, bs=8,
                                       device="cpu")
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    return Learner(dls, net, loss_func=CrossEntropyLossFlat())

def test_images_come_back_as_they_are_in_the_files(learn, folder):
    dls = learner_dls(learn)
    assert dls.vocab == ["eight", "three"] and [len(dl.dataset) for dl in dls.loaders] == [36, 12]
    real = {c: np.stack([np.asarray(Image.open(f)) for f in (folder/c).iterdir()]) for c in dls.vocab}
    for dl in dls.loaders:
        for x, y in zip(dl.dataset.x, dl.dataset.y):
            assert (np.abs(real[dls.vocab[y]].astype(int) - x[0].numpy()).max((1, 2)) <= 1).any()
    assert len(learner_dls(learn, n=10).train.dataset) == 10 and len(learner_dls(learn, n=10).valid.dataset) == 2

def test_explain_fits_once_and_again_after_training_on(learn, folder):
    cfe = learn.mirror(steps=2, bs=8, progress=False, **SHORT)
    ex = learn.explain(mirror=cfe, on_same="mark", ks=[0, .5, 1])
    assert ex.x.shape[1:] == (3, 32, 32) and ex.classes == ["eight", "three"] and len(ex.truth) == len(ex)
    assert ex.x.abs().max() <= 1
    own = learn.model.eval()(learn.dls.valid.one_batch()[0]).as_subclass(torch.Tensor)
    assert torch.allclose(cfe.classifier(ex.x), own, atol=1e-4)
    assert learn.mirror(steps=2, bs=8, progress=False, **SHORT) is cfe
    how = dict(on_same="mark", ks=[1])
    assert torch.equal(learn.explain(ex.x, **how).path, cfe.explain(ex.x, **how).path), "the one that was made is used"
    file = next((folder/"three").iterdir())
    assert learn.explain([file, str(file)], mirror=cfe, ks=[0, 1]).x.shape == (2, 3, 32, 32)
    with torch.no_grad(): learn.model[-1].bias += .1
    assert learn.mirror(steps=2, bs=8, progress=False, **SHORT) is not cfe

def test_what_cannot_be_is_refused(learn):
    with pytest.raises(MirrorError, match="no classes"): learn.mirror(pair=("three", "nine"))
    flat = Learner(learn.dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*32*32, 2)),
                   loss_func=CrossEntropyLossFlat())
    with pytest.raises(MirrorError, match="Linear"): flat.explain()

def test_a_range_that_is_not_understood_is_noticed(learn):
    "A `GapClassifier` takes [-1, 1] as it is; trained on normalised batches it would be asked in the wrong range."
    with pytest.raises(MirrorError, match="off by .* in its logits"):
        Learner(learn.dls, small_resnet(2, 3, (8, 16), 32), loss_func=CrossEntropyLossFlat()).mirror(steps=2)
