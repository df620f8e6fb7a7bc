"A fastai Learner explains its own network: images brought back to [-1, 1], fitted once, refused without a GAP head."
import copy
import numpy as np, pytest, torch
from torch import nn
from PIL import Image
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from fastai.vision.data import ImageDataLoaders
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls, get_folder_dls
from mirrorcfe.images import from_bytes, read_fitted
from mirrorcfe.learner import _opened, learner_dls
from mirrorcfe.wrap import plain_tensor, to_images

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

@pytest.fixture(scope="module")
def cfe(learn): return learn.mirror(steps=2, bs=8, progress=False, **SHORT)

@pytest.mark.parametrize("method", ["crop", "pad", "squish"])
def test_a_picture_is_explained_as_the_learner_sees_it(learn, folder, tmp_path, method):
    "The same pixels for every form in which `predict` takes it."
    item = Resize(32, method=method)
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.25, seed=0, item_tfms=item, bs=8, device="cpu",
                                       batch_tfms=Normalize.from_stats([.5, .4, .3], [.2, .3, .4], cuda=False))
    other = Learner(dls, learn.model, loss_func=CrossEntropyLossFlat())
    mirror = learn.mirror(steps=2, bs=8, progress=False, **SHORT)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 60, 3), np.uint8))
    picture.save(tmp_path/"wide.png")
    forms = [tmp_path/"wide.png", str(tmp_path/"wide.png"), PILImage.create(tmp_path/"wide.png"), np.asarray(picture),
             (tmp_path/"wide.png").read_bytes(), dls.test_dl([tmp_path/"wide.png"]), [tmp_path/"wide.png"]]
    seen = to_images(dls)[0](dls.test_dl([tmp_path/"wide.png"]).one_batch()[0]).as_subclass(torch.Tensor)
    for form in forms:
        ex = other.explain(form, mirror=mirror, ks=[0], closed_loop=False, on_same="mark")
        assert torch.equal(ex.x, seen) and ex.truth is None
    assert int(other.predict(tmp_path/"wide.png")[1]) == ex.source.item()

def test_labels_of_a_loader_come_along(learn, cfe):
    ex = learn.explain(learn.dls.valid, mirror=cfe, ks=[0], closed_loop=False, on_same="mark")
    assert torch.equal(ex.truth, torch.cat([y for _, y in learn.dls.valid]).as_subclass(torch.Tensor)) and len(ex) == 12

@pytest.mark.parametrize("x, says", [([], "the list is empty"), ("nowhere.png", "own transforms cannot read"),
                                     ([3.5], "own transforms cannot read")])
def test_what_is_no_picture(learn, cfe, x, says):
    with pytest.raises(MirrorError, match=says): learn.explain(x, mirror=cfe)

def test_pictures_for_data_without_transforms(folder, tmp_path):
    "As `get_folder_dls` reads its own: the middle."
    dls = get_folder_dls(folder, size=16, bs=8, device="cpu")
    learn = Learner(dls, small_resnet(2, 3, (8, 16), 16), loss_func=CrossEntropyLossFlat())
    cfe = learn.mirror(steps=1, bs=8, progress=False, **SHORT)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 24, 3), np.uint8)).save(tmp_path/"wide.png")
    ask = lambda x: learn.explain(x, mirror=cfe, ks=[0], closed_loop=False, on_same="mark")
    assert torch.equal(ask(tmp_path/"wide.png").x[0], from_bytes(read_fitted(tmp_path/"wide.png", 16, 3)))
    with pytest.raises(MirrorError, match="pictures must be files: found bytes"): ask(b"x")

def test_the_mirror_that_was_made_is_used_and_made_again_alike(learn):
    net = copy.deepcopy(learn.model)
    learn = Learner(learn.dls, net, loss_func=CrossEntropyLossFlat())
    cfe = learn.mirror(steps=2, prox=8., bs=8, seed=np.int64(3), progress=False, **SHORT)
    how = dict(on_same="mark", ks=[1], closed_loop=False)
    assert torch.equal(learn.explain(**how).path, cfe.explain(learn.explain(**how).x, **how).path)
    with torch.no_grad(): net[-1].bias += .1
    with learn.no_bar(): learn.explain(**how)
    again = learn.mirror_made.mirror
    assert again is not cfe and again.recipe == cfe.recipe and again.seed == 3

def test_a_learner_is_as_it_was(learn):
    "The mode of every part, and its hooks."
    learn.model.train()
    learn.model[1].eval()
    modes = [m.training for m in learn.model.modules()]
    learn.mirror(steps=2, bs=8, progress=False, **SHORT)
    assert [m.training for m in learn.model.modules()] == modes
    assert not any(m._forward_hooks for m in learn.model.modules())

def test_what_cannot_be_is_refused(learn):
    with pytest.raises(MirrorError, match="no class 'nine': the classes are eight, three"):
        learn.mirror(pair=("three", "nine"))
    bent = Learner(learn.dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*32*32, 2), torch.nn.Tanh()),
                   loss_func=CrossEntropyLossFlat())
    with pytest.raises(MirrorError, match="Tanh"): bent.explain()

def test_a_classifier_of_ours_is_asked_in_the_range_it_was_trained_in(learn):
    "Inside a learner it sees normalised batches, not images in [-1, 1]: it is opened with the learner's transforms."
    own = small_resnet(2, 3, (8, 16), 32)
    opened = _opened(Learner(learn.dls, own, loss_func=CrossEntropyLossFlat()))
    batch = plain_tensor(learn.dls.valid.one_batch()[0])
    images = to_images(learn.dls)[0](batch)
    with torch.no_grad(): assert torch.allclose(opened(images), own.eval()(batch), atol=1e-4)
    assert (images - batch).abs().max() > .1, "the two ranges are one: nothing was tested"
