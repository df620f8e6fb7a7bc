"Pictures are prepared as the user's own code prepares them, and what was done is written down."
import json
import numpy as np
import pytest, torch
from PIL import Image
from torch import nn
from torchvision import transforms as T
from torchvision.transforms._presets import ImageClassification
from mirrorcfe.cli import main
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_folder_dls
from mirrorcfe.features import Classifier
from mirrorcfe.images import Preprocessing, ResizeCrop, as_preprocessing, read_prepared
from mirrorcfe.runs import load_explainer, save_explainer
from mirrorcfe.stream import Files
from commands import refused

MEAN_STD = dict(mean=[.4, .5, .6], std=[.2, .25, .3])

def photo(w=61, h=47, seed=0):
    "A picture with structure, no two pixels of which are alike."
    a = np.random.default_rng(seed).integers(0, 256, (h//4 + 1, w//4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(a).resize((w, h), Image.Resampling.BICUBIC)

class Theirs(nn.Module):
    "A user's network: one convolution, the average, a linear layer."
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.fc = nn.Linear(6, 2)
    def forward(self, x): return self.fc(self.conv(x).relu().mean((2, 3)))

@pytest.fixture
def theirs():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Theirs().eval()
    with torch.no_grad(): net.fc.weight *= 30   # so that the way to prepare a picture is seen in the probability
    return net

@pytest.fixture
def folder(tmp_path):
    "Two classes of pictures of all sizes."
    for c in ("cat", "dog"):
        (tmp_path/"pets"/c).mkdir(parents=True)
        for i in range(6): photo(40 + 5*i, 64 - 4*i, i + 9*(c == "dog")).save(tmp_path/"pets"/c/f"{i}.png")
    return tmp_path/"pets"

@pytest.mark.parametrize("transform", [
    T.Compose([T.Resize(24), T.CenterCrop(20), T.ToTensor(), T.Normalize(**MEAN_STD)]),
    T.Compose([T.Compose([T.Resize((20, 20), T.InterpolationMode.BICUBIC)]), T.ToTensor(), T.Normalize(**MEAN_STD)]),
    ImageClassification(crop_size=20, resize_size=24, **MEAN_STD)], ids=["resize and crop", "nested", "preset"])
def test_the_same_probability(theirs, transform):
    "What the user's own loader and network say of a picture is what the opened network says of it here."
    prep = as_preprocessing(transform)
    x = torch.stack([transform(photo(seed=i)) for i in range(2)])
    want = theirs(x).softmax(1)
    mine = torch.stack([prep(photo(seed=i)) for i in range(2)])
    if mine.dtype == torch.uint8: mine = mine.float()/127.5 - 1
    net = Classifier.wrap(theirs, mine, normalise=prep.normalise)
    assert (net(mine).softmax(1) - want).abs().max() < 1e-5
    other = Preprocessing(ResizeCrop(20, 20, "lanczos"))(photo())[None].float()/127.5 - 1
    assert (net(other).softmax(1) - want[:1]).abs().max() > 1e-3, "another preparation is seen"

@pytest.mark.parametrize("resize,crop,how", [
    (24, 20, "bilinear"), ((20, 30), None, "bicubic"), (13, (15, 9), "lanczos"), (None, 30, "nearest")])
def test_three_words_are_those_of_torchvision(resize, crop, how):
    steps = [] if resize is None else [T.Resize(resize, T.InterpolationMode(how))]
    if crop is not None: steps.append(T.CenterCrop(crop))
    for size in ((61, 47), (30, 97), (20, 20)):
        assert np.array_equal(ResizeCrop(resize, crop, how)(photo(*size)), T.Compose(steps)(photo(*size)))

def test_item_transforms_of_fastai():
    "They draw lots in training; here they do what they do in validation."
    from fastai.vision.augment import Resize, ResizeMethod
    prep = as_preprocessing([Resize(16), T.ToTensor()])
    assert prep(photo()).shape == (3, 16, 16) and torch.equal(prep(photo()), prep(photo()))
    squeezed = as_preprocessing(Resize((8, 12), ResizeMethod.Squish))(photo())
    assert np.array_equal(squeezed.permute(1, 2, 0), photo().resize((12, 8), Image.Resampling.BILINEAR))

@pytest.mark.parametrize("transform,message", [
    (T.Compose([T.Resize(8), lambda im: np.random.rand(4, 4)]), "gives one picture several results"),
    (T.Compose([T.ToTensor(), lambda x: (x - .5)/.01]), "if it normalises, let it end with a Normalize"),
    (lambda im: "no picture", "must return a picture"),
    (lambda im: torch.zeros(2, 4, 4), "one or three channels: found \\(2, 4, 4\\)"),
    ([], "has no steps"), ("bilinear", "takes a function")])
def test_unfit_transforms(transform, message):
    with pytest.raises(MirrorError, match=message): as_preprocessing(transform)

def test_a_folder(folder, theirs):
    transform = T.Compose([T.Resize(24), T.CenterCrop((16, 20)), T.ToTensor(), T.Normalize(**MEAN_STD)])
    dls = get_folder_dls(folder, transform=transform, bs=2, device="cpu")
    assert dls.spec.size == (16, 20) and dls.train.dataset.x.shape[1:] == (3, 16, 20)
    stored = torch.cat([loader.dataset.x for loader in dls.loaders])
    one = as_preprocessing(transform.transforms[:2])(Image.open(folder/"cat"/"2.png"))
    assert (stored == one).flatten(1).all(1).sum() == 1
    mean, std = dls.spec.transform.normalise.mean.flatten(), dls.spec.transform.normalise.std.flatten()
    assert torch.allclose(torch.stack([mean, std]), torch.tensor([MEAN_STD["mean"], MEAN_STD["std"]]))
    grey = get_folder_dls(folder, transform=T.Compose([T.Grayscale(), T.Resize((9, 9))]), bs=2, device="cpu")
    assert grey.spec.channels == 1 and grey.train.dataset.x.shape[1:] == (1, 9, 9)

def test_keys_of_streams(folder):
    "They say what was done to the pictures; without a transform they are what they always were."
    files = sorted(folder.rglob("*.png"))
    plain = Files(files, 16, 3)
    made = [Files(files, 16, 3, transform=t) for t in (ResizeCrop(20, 16), ResizeCrop(20, 16), ResizeCrop(21, 16))]
    keys = [f.key() for f in made]
    assert keys[0] == keys[1] and len({plain.key(), *keys}) == 3
    from mirrorcfe.storage import json_hash
    state = [(n, (f.stat().st_size, f.stat().st_mtime_ns)) for n, f in zip(plain.names, files)]
    assert plain.key() == json_hash([state, None])
    x, numbers, bad = made[0].read(0, 3)
    assert torch.equal(x[1], read_prepared(files[1], made[0].transform)) and numbers == [0, 1, 2] and not bad
    with pytest.raises(MirrorError, match="makes 3 x 18 x 18 of .*needed are 3 x 16 x 16"):
        Files(files, 16, 3, transform=ResizeCrop(20, 18)).read(0, 1)

def test_a_stream_says_what_was_done(small, here, tmp_path):
    model, transform = small[3], T.Compose([T.Resize(18), T.CenterCrop(16)])
    model.explain_folder(["one.png", "two.jpg"], tmp_path/"s", transform=transform, ks=3, progress=False)
    about = json.loads((tmp_path/"s"/"stream.json").read_text())
    assert "Resize(size=18" in json.dumps(about) and "CenterCrop" in json.dumps(about)
    with pytest.raises(MirrorError, match="another stream .*images"):
        model.explain_folder(["one.png", "two.jpg"], tmp_path/"s", ks=3, progress=False)

def test_the_command_line_remembers(here, saved, small, capsys, tmp_path):
    "What was given in training is used for further pictures, unless something else is given."
    dls, net, oracle, model = small
    from mirrorcfe.images import look_of
    prepared = dict(resize=18, crop=16, interpolation="bilinear")
    save_explainer(tmp_path/"folder", model, oracle, look=look_of(dls.train.dataset[:][0]), dataset="digits",
                   preset="default", seed=0, prepared=prepared)
    from mirrorcfe.own import load_images
    about = load_explainer("folder")[2]
    theirs = T.Compose([T.Resize(18), T.CenterCrop(16), T.ToTensor()])
    _, x, *_ = load_images(["one.png"], about)
    assert (x[0] - (theirs(Image.open("one.png"))*2 - 1)).abs().max() < 1e-6
    _, x, *_ = load_images(["one.png"], about, prepared=dict(resize=16))
    assert (x[0] - (T.Compose([T.Resize(16), T.ToTensor()])(Image.open("one.png"))*2 - 1)).abs().max() < 1e-6
    assert "--trim pads what is left" in refused(capsys, "explain", "one.png", "--trim", "--explainer", "folder")
    assert "needed are 1 x 16 x 16" in refused(capsys, "explain", "one.png", "--crop", "9", "--explainer", "folder")

def test_a_network_of_two_classes_has_two_rows():
    "`evaluate` without --pair measures both directions."
    from types import SimpleNamespace
    from mirrorcfe.data import ImageSet, TensorLoader
    from mirrorcfe.outcomes import directions
    data = ImageSet(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 0, 1, 1]))
    class Says(nn.Module):
        classes = ["cat", "dog"]
        def __init__(self, more):
            super().__init__()
            self.classes = Says.classes + more
            self.W = torch.zeros(1)
        def forward(self, x): return torch.eye(len(self.classes))[((x + 1)*127.5).round().long().flatten() // 2]
    dls = SimpleNamespace(test=TensorLoader(data))
    labels = lambda more: [d[0] for d in directions(SimpleNamespace(classifier=Says(more), pair=None), dls, None, 9)]
    assert labels([]) == ["cat to dog", "dog to cat"] and labels(["cow"]) == ["each to its second"]
