"What must not go wrong in silence: threads, an owner who goes on with a network, precision, names, fingerprints."
import copy, io, json, os, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch, torchvision
from PIL import Image
from fastai.data.core import DataLoaders
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader as TorchLoader, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.transforms import _presets, functional as TF, v2
from mirrorcfe.autoencoder import train_autoencoder
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.classifiers import classifier_learner, predict, small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet, TensorLoader, as_loaders, get_dls, get_folder_dls, loader_key
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import Classifier, Normalise, copy_network, describe, frozen_copy, pair_index
from mirrorcfe.metrics import kid, oracle_features
from mirrorcfe.own import class_pair, read_names, read_weights
from mirrorcfe.runs import Progress, echo, load_network, save_network
from mirrorcfe.wrap import gap_head
from tiny import tiny
import mirrorcfe.animate, mirrorcfe.widget   # they add methods to an explanation

class Net(nn.Module):
    "A network as people have it."
    def __init__(self, c=4, channels=3):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.fc = nn.Linear(16, c)
    def forward(self, x): return self.fc(self.b(self.a(x)).mean((2, 3)))

def made(seed=0, kind=Net, **kw):
    torch.manual_seed(seed)
    return kind(**kw)

def own(): return Classifier([made().a, made().b], made().fc, size=(16, 16)).freeze()

images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))*2 - 1
labels = torch.arange(24) % 4

def loaders(x=images, y=labels):
    d = TensorDataset(x, y)
    return DataLoaders.from_dsets(d, d, bs=8, device="cpu")

def fitted(classifier, dls=None, **kw):
    cfe = MirrorCFE(classifier, "paper", amp=False, **{"steps": 1, "width": 16} | kw)
    return cfe.fit(dls or loaders(), 1, progress=False)

KINDS = {"wrapped": lambda: Classifier.wrap(made(), images[:4]), "own": own,
         "by functions": lambda: Classifier.wrap(made(kind=ByFunction), images[:4])}

class ByFunction(Net):
    "Its last map is no module's output."
    def forward(self, x): return self.fc(F.gelu(self.b(self.a(x))).mean((2, 3)))

# --- threads --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_give_what_one_gives(kind):
    "Requests of different sizes, so that maps of another thread are noticed; bf16 was on while training."
    cfe = fitted(KINDS[kind]())
    cfe.model.amp = True
    some = [images[i:i + 1 + i % 3] for i in range(8)]
    ask = partial(cfe.explain, ks=[0, .5, 1], on_same="mark", closed_loop=False)
    wanted = [ask(x) for x in some]
    with ThreadPoolExecutor(8) as pool: found = list(pool.map(ask, some*4))
    for got, want in zip(found, wanted*4):
        torch.testing.assert_close(got.path, want.path, rtol=0, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(got.achieved_probs, want.achieved_probs, rtol=0, atol=1e-5, equal_nan=True)

def test_a_thread_does_not_hear_another():
    "One that is in the middle of a run, in the middle of the network."
    inside, go_on = threading.Event(), threading.Event()
    class Waits(nn.Module):
        def forward(self, x):
            if len(x) == 2 and armed:
                inside.set()
                go_on.wait(10)
            return x
    armed = []
    net = nn.Sequential(made().a, Waits(), made().b, nn.AdaptiveAvgPool2d(1), nn.Flatten(), made().fc)
    gap = Classifier.wrap(net, images[:4])
    wanted = gap.encode(images[:2])
    armed.append(1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gap.encode, images[:2])
        assert inside.wait(10)
        quick = gap.encode(images[2:5])
        go_on.set()
    assert [len(m) for m in quick.maps] == [3]*len(quick.maps)
    for got, want in zip(slow.result().maps, wanted.maps): assert torch.equal(got, want)

# --- the owner goes on with his network -----------------------------------------------------------------------------

def everything(net):
    "All that is the owner's: numbers, gradients, modes, devices, hooks."
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in net.modules()]
    grads = [(p.requires_grad, p.grad is None, p.device) for p in net.parameters()]
    return {n: v.clone() for n, v in net.state_dict().items()}, hooks, grads

def same(a, b): return a[1:] == b[1:] and all(torch.equal(v, b[0][n]) for n, v in a[0].items())

def parts(net): return Classifier([net.a, net.b], net.fc, size=(16, 16))

@pytest.mark.parametrize("use", [
    lambda net: fitted(net), lambda net: fitted(parts(net)), lambda net: gap_head(net, loaders(), verbose=False),
    lambda net: PGD(parts(net)).explain(images[:2]), lambda net: predict(net, loaders().valid)],
    ids=["a network", "its parts", "gap_head", "a baseline", "predict"])
def test_the_network_stays_as_it_was(use):
    net = made()
    net.b[1].eval()   # a statistic that is kept, while the rest trains
    net.a[0].register_forward_hook(lambda m, i, o: None)
    before = everything(net)
    use(net)
    assert same(before, everything(net))

@pytest.mark.parametrize("form", ["a network", "its parts"])
def test_what_the_owner_does_reaches_no_explanation(form):
    net = made()
    cfe = fitted(net if form == "a network" else parts(net))
    ask = lambda: cfe.explain(images[:4], ks=[0, 1], on_same="mark", closed_loop=False)
    before, numbers = ask(), everything(cfe.classifier)
    net.train()
    net(images)                                     # moves the running statistics
    with torch.no_grad(): net.fc.weight.add_(1.)    # goes on training
    net.b.register_forward_hook(lambda m, i, o: o*0)
    net.double()
    assert ask() == before and same(numbers, everything(cfe.classifier))

def test_a_frozen_network_stays_in_eval_mode_until_it_is_unfrozen():
    gap = own()
    before = gap(images[:4]), everything(gap)
    nn.ModuleList([gap]).train()
    assert torch.equal(gap.train()(images[:4]), before[0]) and same(before[1], everything(gap))
    assert gap.unfreeze().train().stages[0][1].training and all(p.requires_grad for p in gap.parameters())
    dls = loaders()
    learn = classifier_learner(gap.freeze(), dls, bf16=False, channels_last=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not same(before[1], everything(gap))   # who trains it, trains it

def test_a_loaded_explainer_has_a_classifier_of_its_own(tmp_path):
    gap = own()
    fitted(gap).save(tmp_path/"e")
    cfe = MirrorCFE.load(tmp_path/"e", gap)
    before = cfe.explain(images[:4], ks=[0, 1], on_same="mark", closed_loop=False)
    with torch.no_grad(): gap.head.weight.add_(1.)
    assert cfe.explain(images[:4], ks=[0, 1], on_same="mark", closed_loop=False) == before

# --- copies ---------------------------------------------------------------------------------------------------------

class Remembers(Net):
    def forward(self, x):
        self.last = self.a(x)
        self.kept = dict(maps=[self.last])
        return self.fc(self.b(self.last).mean((2, 3)))

def with_weight_norm():
    net = made()
    net.fc = nn.utils.weight_norm(net.fc)
    return net

def with_parametrization():
    net = made()
    net.fc = nn.utils.parametrizations.weight_norm(net.fc)
    return net

@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [lambda: made(kind=Remembers), with_weight_norm, with_parametrization,
                                  lambda: torch.compile(made(), backend="eager")])
def test_networks_that_hold_results_are_opened(make):
    net = make().eval()
    wanted = net(images)
    gap = Classifier.wrap(net, images[:4])
    torch.testing.assert_close(gap(images), wanted, rtol=1e-4, atol=1e-5)
    assert type(gap.head) is nn.Linear and torch.equal(copy_network(gap)(images), gap(images))

@pytest.mark.parametrize("value, says", [(threading.Lock(), "lock"), (iter(i for i in range(3)), "generator")])
def test_what_cannot_be_copied_is_named(value, says):
    net = made()
    net.b.held = value
    with pytest.raises(MirrorError, match=f"attribute b.held, of {says}, cannot be copied"):
        Classifier.wrap(net, images[:4])
    with pytest.raises(MirrorError, match=f"attribute stages.1.held, of {says}"): frozen_copy(parts(net))

# --- precision ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [torch.bfloat16, torch.half])
def test_half_precision_is_named(kind):
    for x in (images, images.to(kind)):
        with pytest.raises(MirrorError, match=r"the weights are torch\..*call model.float\(\) first"):
            Classifier.wrap(made().to(kind), x)

class Auto(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16): return super().forward(x).float()

def test_autocast_inside_is_named():
    with pytest.raises(MirrorError, match="gives torch.bfloat16, .*: take the autocast out"):
        Classifier.wrap(made(kind=Auto), images[:4])

def test_double_networks_and_images_of_another_type_are_opened():
    gap = Classifier.wrap(made().double(), images[:4])
    assert gap(images.double()).dtype == torch.float64
    for x in (images.double(), images.half()): assert Classifier.wrap(made(), x[:4])(images).dtype == torch.float32

# --- normalisation --------------------------------------------------------------------------------------------------

STATISTICS = (.485, .456, .406), (.229, .224, .225)

@pytest.mark.parametrize("foreign", [transforms.Normalize, v2.Normalize])
def test_foreign_normalisation_is_of_images_from_0_to_1(foreign):
    net = made().eval()
    gap = Classifier.wrap(net, images[:4], normalise=foreign(*STATISTICS))
    torch.testing.assert_close(gap(images), net(foreign(*STATISTICS)((images + 1)/2)), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize("normalise, says", [
    ((.5,), "normalise= takes"), ((.5, 0.), "normalise= takes"), (True, "normalise= takes"),
    ("imagnet", "normalise= takes"),
    (transforms.Compose([transforms.Normalize(*STATISTICS)]), "is a chain with a Normalize"),
    (v2.Compose([v2.ToDtype(torch.float32), v2.Normalize(*STATISTICS)]), "is a chain with a Normalize"),
    (nn.Sequential(transforms.Normalize(*STATISTICS)), "is a chain with a Normalize"),
    (lambda x: x["image"], "normalise= fails on images of shape"), (lambda x: [x], "normalise= returns list")])
def test_what_normalises_nothing_is_refused(normalise, says):
    with pytest.raises(MirrorError, match=says): Classifier.wrap(made(), images[:4], normalise=normalise)

# --- fingerprints ---------------------------------------------------------------------------------------------------

offset = .5
def shifted(x): return x + offset
class Times:
    def __init__(self, by): self.by = by
    def __call__(self, x): return x*self.by
class Leaky(Net):
    slope = .1
    def forward(self, x): return self.fc(F.leaky_relu(self.b(self.a(x))).mean((2, 3)))
class Steeper(Net):
    def forward(self, x): return self.fc(F.leaky_relu(self.b(self.a(x)), .3).mean((2, 3)))
Steeper.__name__ = "Leaky"

def wrapped(net=None, **kw): return Classifier.wrap(net or made(), images[:4], **kw).fingerprint()
def changed(change):
    net = made()
    change(net)
    return net

OTHERS = {
    "plain": lambda: wrapped(), "names decide nothing": lambda: wrapped(),
    "lambda": lambda: wrapped(normalise=lambda x: 2*x), "its number": lambda: wrapped(normalise=lambda x: 3*x),
    "a function": lambda: wrapped(normalise=shifted),
    "partial": lambda: wrapped(normalise=partial(torch.mul, other=2)),
    "its argument": lambda: wrapped(normalise=partial(torch.mul, other=3)),
    "an object": lambda: wrapped(normalise=Times(2)), "what it holds": lambda: wrapped(normalise=Times(3)),
    "a method": lambda: wrapped(normalise=Times(2).__call__),
    "its object": lambda: wrapped(normalise=Times(3).__call__),
    "an array": lambda: wrapped(normalise=Times(torch.tensor(2.))),
    "its numbers": lambda: wrapped(normalise=Times(torch.tensor(3.))),
    "Normalise": lambda: wrapped(normalise=Normalise()), "another": lambda: wrapped(normalise=Normalise(.5, .5)),
    "another tap": lambda: wrapped(stages=["b"]),
    "padding": lambda: wrapped(changed(lambda n: setattr(n.a[0], "padding_mode", "reflect"))),
    "eps": lambda: wrapped(changed(lambda n: setattr(n.a[1], "eps", .1))),
    "slope": lambda: wrapped(changed(lambda n: n.b.__setitem__(2, nn.LeakyReLU(.1)))),
    "another slope": lambda: wrapped(changed(lambda n: n.b.__setitem__(2, nn.LeakyReLU(.2)))),
    "code": lambda: wrapped(made(kind=Leaky)), "another code": lambda: wrapped(made(kind=Steeper)),
    "weights": lambda: wrapped(made(1)), "head": lambda: wrapped(changed(lambda n: nn.init.ones_(n.fc.bias)))}

def test_a_fingerprint_covers_what_decides_the_answer(monkeypatch):
    found = {name: make() for name, make in OTHERS.items()}
    assert found.pop("names decide nothing") == found["plain"] == wrapped(classes=list("abcd"))
    assert len(set(found.values())) == len(found), {n: f for n, f in found.items() if list(found.values()).count(f) > 1}
    assert all(OTHERS[name]() == f for name, f in found.items())   # the same each time
    monkeypatch.setitem(globals(), "offset", .6)
    assert OTHERS["a function"]() != found["a function"]

def test_running_does_not_change_a_fingerprint():
    gap = Classifier.wrap(made(kind=Remembers), images[:4])
    mark = gap.fingerprint()
    gap(images)
    gap.accuracy = .9
    assert gap.fingerprint() == mark == frozen_copy(gap).fingerprint()

def test_what_refers_to_itself_is_described():
    held = Times(None)
    held.by = [held]
    assert "itself" in json.dumps(describe(held))

def test_an_explainer_is_refused_for_other_taps_and_another_normalisation(tmp_path):
    "Before anything is drawn."
    fitted(Classifier.wrap(made(), images[:4], normalise=lambda x: 2*x)).save(tmp_path/"e")
    for kw in (dict(normalise=lambda x: 3*x), dict(normalise=lambda x: 2*x, stages=["b"])):
        with pytest.raises(MirrorError, match="trained for classifier"):
            MirrorCFE.load(tmp_path/"e", Classifier.wrap(made(), images[:4], **kw))

# --- names ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("classes", [
    ["cat", "dog", "eel", "owl"], {0: "cat", 1: "dog", 2: "eel", 3: "owl"}, {2: "eel", 0: "cat", 3: "owl", 1: "dog"},
    {"dog": 1, "cat": 0, "owl": 3, "eel": 2}, {np.int64(i): n for i, n in enumerate(["cat", "dog", "eel", "owl"])},
    np.array(["cat", "dog", "eel", "owl"])])
def test_names_are_in_the_order_of_their_numbers(classes):
    assert Classifier.wrap(made(), images[:4], classes).classes == ["cat", "dog", "eel", "owl"]

@pytest.mark.parametrize("classes, says", [
    (["a", "b", "a", "c"], "two classes have the name a"), ({0: "a", 1: "b", 2: "a", 3: "c"}, "have the name a"),
    ({1: "a", 2: "b", 3: "c", 4: "d"}, "must number them from 0 to 3"),
    ({"a": 0, "b": 0, "c": 1, "d": 2}, "from 0 to 3"), ({"a": "x", "b": "y", "c": "z", "d": "w"}, "from 0 to 3"),
    ("abcd", "put it into brackets"), ({0: "a"}, "1 class names")])
def test_names_that_do_not_name_the_classes(classes, says):
    with pytest.raises(MirrorError, match=says): Classifier.wrap(made(), images[:4], classes)

def test_a_name_is_a_name_before_it_is_a_number():
    cfe = fitted(Classifier.wrap(made(), images[:4], ["1", "2", "3", "4"]), pair=("1", "2"))
    assert cfe.pair == (0, 1)
    cfe = fitted(Classifier.wrap(made(), images[:4], ["1", "2", "3", "4"]))
    x = images[cfe.classifier(images).argmax(1) != 2]
    by_name, by_tensor = (cfe.explain(x, t, ks=[0, 1]).target for t in ("3", torch.tensor(2)))
    by_array = cfe.explain(x, np.array(["3"]*len(x)), ks=[1]).target
    assert by_name.tolist() == by_tensor.tolist() == by_array.tolist() == [2]*len(x)
    for target in (3, [3]*len(x), np.int64(3)):
        with pytest.raises(MirrorError, match="class 3 may be the one called 3 or the one of number 3, called 4"):
            cfe.explain(x, target, ks=[0, 1])
    with pytest.raises(MirrorError, match="class 1 may be"): fitted(cfe.classifier, pair=(1, 2))

@pytest.mark.parametrize("pair", [2, "01", (0, 1, 2), (0,), (1, 1), ("0", "0"), (0, 9), ("a", "0"), (0, 1.5)])
def test_what_is_no_pair_is_refused_before_training(pair):
    with pytest.raises(MirrorError): fitted(own(), pair=pair)
    with pytest.raises(MirrorError): pair_index(pair, list("0123"))

# --- loaders as people have them ------------------------------------------------------------------------------------

class Rows(Dataset):
    "Whatever `row` makes of an image and its label."
    def __init__(self, row): self.row = row
    def __len__(self): return len(images)
    def __getitem__(self, i): return self.row(images[i], labels[i], i)

def torch_loader(row, **kw): return TorchLoader(Rows(row), **{"batch_size": 8} | kw)

PAIRS = {
    "labels (B, 1)": lambda x, y, i: (x, y[None]), "one-hot": lambda x, y, i: (x, F.one_hot(y, 4).float()),
    "three": lambda x, y, i: (x, y, i), "a dict": lambda x, y, i: dict(image=x, label=y, path=f"{i}.png"),
    "another dict": lambda x, y, i: dict(pixel_values=x, labels=y[None]), "names": lambda x, y, i: (x, str(int(y))),
    "double": lambda x, y, i: (x.double(), y), "small numbers": lambda x, y, i: (x, y.to(torch.uint8)),
    "NumPy": lambda x, y, i: (x, np.int64(y))}

@pytest.mark.parametrize("name", PAIRS)
def test_batches_of_every_form_are_the_same_pairs(name):
    dls = as_loaders(torch_loader(PAIRS[name]), list("0123"))
    x, y = (torch.cat(v) for v in zip(*dls.train))
    assert torch.equal(y, labels) and y.dtype == torch.int64 and x.dtype == torch.float32
    torch.testing.assert_close(x, images)

@pytest.mark.parametrize("dls", [torch_loader(PAIRS["a dict"], shuffle=True),
                                 DataLoaders(*[torch_loader(PAIRS["labels (B, 1)"], shuffle=True)]*2)],
                         ids=["one loader", "two in DataLoaders"])
def test_an_explainer_is_fitted_from_them(dls):
    net = made()
    for classifier in (net, parts(net)): assert "ready" in str(fitted(classifier, dls))

NO_PAIRS = {
    "labels from 1": (lambda x, y, i: (x, y + 1), "labels from 1 to 4, but the classifier has 4 classes, 0 to 3"),
    "unknown ones": (lambda x, y, i: (x, y - 1), "labels from -1 to 2"),
    "soft labels": (lambda x, y, i: (x, torch.full((4,), .25)), r"found torch.float32 of shape \(8, 4\)"),
    "masks": (lambda x, y, i: (x, x), r"found torch.float32 of shape \(8, 3, 16, 16\)"),
    "fractions": (lambda x, y, i: (x, y/3), "labels must be one class for each image"),
    "images alone": (lambda x, y, i: x, r"a batch must be \(images, labels\): found Tensor"),
    "unknown names": (lambda x, y, i: (x, "dog"), "no class 'dog': the classes are 0, 1, 2, 3"),
    "a dict of others": (lambda x, y, i: dict(picture=x, label=y),
                         "a dict with picture, label: its images must be under"),
    "two labels": (lambda x, y, i: dict(image=x, label=y, target=y), "its labels must be under exactly one of"),
    "index first": (lambda x, y, i: (i, x, y), r"a batch must begin with images .*found torch.int64 of shape \(8,\)")}

@pytest.mark.parametrize("name", NO_PAIRS)
def test_what_is_no_pair_of_image_and_class(name):
    row, says = NO_PAIRS[name]
    with pytest.raises(MirrorError, match=says): fitted(own(), torch_loader(row))

@pytest.mark.parametrize("dls", [[(images, labels)], images, TensorDataset(images, labels), None, dict(train=1),
                                 "digits"])
def test_what_is_no_loader(dls):
    with pytest.raises(MirrorError, match="give DataLoaders"): as_loaders(dls, list("0123"))
    with pytest.raises(MirrorError): MirrorCFE(made(), "paper", steps=1).fit(dls)

def test_labels_of_our_own_loaders_are_looked_at_too():
    dls = DataLoaders(*[TensorLoader(ImageSet((images*127).byte(), labels + 1), 8)]*2, device="cpu")
    with pytest.raises(MirrorError, match="labels from 1 to 4"): fitted(own(), dls)

# --- number types and the caller's switches -------------------------------------------------------------------------

@contextmanager
def default_type(kind):
    was = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try: yield
    finally: torch.set_default_dtype(was)

SWITCHES = {"no gradients": lambda: torch.set_grad_enabled(False), "inference mode": torch.inference_mode,
            "double by default": lambda: default_type(torch.float64),
            "autocast": lambda: torch.autocast("cpu", torch.bfloat16), "another device": lambda: torch.device("meta")}

@pytest.mark.parametrize("name", SWITCHES)
def test_the_caller_s_switches_change_nothing(name):
    "The same generator and the same explanation, and the switch is as it was."
    net, dls, x = made(), loaders(), images[:3]
    def answers():
        loader = TensorLoader(ImageSet(images.mul(127).add(128).byte(), labels), 8)
        cfe = fitted(net, DataLoaders(loader, loader, device="cpu"))
        ex = cfe.explain(x, ks=[0, .5, 1], on_same="mark", target_confidence=[.5])
        every = cfe.explain_all(x[:1], ks=[1])
        return *ex.target_confidence.x, *cfe.masks(ex), *ex.path, *every.path, cfe.grid(), ex.intended_probs
    wanted = answers()
    with SWITCHES[name]():
        before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(),
                  torch.is_autocast_enabled("cpu"))
        found = answers()
        assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(),
                          torch.is_autocast_enabled("cpu"))
    for got, want in zip(found, wanted):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5, equal_nan=True)

@pytest.mark.parametrize("name", SWITCHES)
def test_nor_what_a_baseline_finds(name):
    method = PGD(own(), steps=5)
    def answer(): return method.explain(images[:2]).path
    wanted = answer()
    with SWITCHES[name](): found = answer()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5, equal_nan=True)

def test_a_double_classifier_is_explained_in_single_precision(tmp_path):
    cfe = fitted(own())
    other = MirrorCFE.load(cfe.save(tmp_path/"e"), own().double())
    assert "ready" in str(fitted(own().double()))
    how = dict(ks=[0, 1], on_same="mark", closed_loop=False)
    wanted, got = cfe.explain(images[:2], **how), other.explain(images[:2].double(), **how)
    assert got.path.dtype == torch.float32
    torch.testing.assert_close(got.path, wanted.path, rtol=0, atol=1e-5, equal_nan=True)
    for use in (fitted, PGD):
        with pytest.raises(MirrorError, match=r"is in torch.bfloat16.*call classifier.float\(\) first"):
            use(own().bfloat16())

def test_whole_numbers_of_numpy_are_taken_everywhere(tmp_path):
    four = np.int64(4)
    dls = get_dls("digits", bs=four, size=np.int64(16), n_train=np.int64(40), seed=four, device="cpu")
    assert len(dls.train.one_batch()[0]) == 4
    cfe = fitted(own(), seed=four, steps=np.int64(1), pair=(np.int64(0), np.int64(1)))
    assert MirrorCFE.load(cfe.save(tmp_path/"e"), own()).seed == 4   # could not be kept before, after the training
    x = images[:6]
    assert len(fitted(own()).explain(x, ks=[1], bs=four, on_same="mark", closed_loop=False)) == 6
    assert len(oracle_features(own(), x, bs=four)) == 6
    assert kid(x.flatten(1), x.flatten(1).flip(0), subset_size=four) < 1e-6
    assert train_autoencoder(x, epochs=np.int64(1), bs=four)(x).shape == x.shape
    for wrong in (4., "4", 0, True):
        with pytest.raises(MirrorError, match="bs must be a whole number"): oracle_features(own(), x, bs=wrong)
        with pytest.raises(MirrorError, match="bs must be a whole number"): train_autoencoder(x, bs=wrong)
        if wrong != 0:
            with pytest.raises(MirrorError): kid(x.flatten(1), x.flatten(1), subset_size=wrong)

def test_a_head_of_one_logit_is_opened_by_wrap():
    with pytest.raises(MirrorError, match="Classifier.wrap.* makes it two, of opposite signs"):
        Classifier([nn.Identity()], nn.Linear(3, 1))
    assert Classifier.wrap(made(c=1), images[:4]).n_classes == 2

# --- folders, files and consoles ------------------------------------------------------------------------------------

def test_home_is_the_user_s(tmp_path, monkeypatch):
    "And no folder called ~ is made."
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    (tmp_path/"home").mkdir()
    (tmp_path/"here").mkdir()
    monkeypatch.chdir(tmp_path/"here")
    cfe = MirrorCFE(own(), "paper", amp=False, steps=1, width=16).fit(loaders(), 1, folder="~/run", progress=False)
    ex = cfe.explain(images[:1], ks=[0, 1], closed_loop=False, on_same="mark")
    made = [cfe.save("~/e"), ex.save("~/e.safetensors"), ex.html("~/e.html"), ex.animate("~/e.gif", size=160)]
    seen = [p.name for p in (tmp_path/"home").iterdir() if p.name != ".cache"]   # locks lie there
    assert sorted(seen) == ["e", "e.gif", "e.html", "e.safetensors", "run"]
    assert all(p.is_relative_to(tmp_path/"home") for p in made) and not list((tmp_path/"here").iterdir())

class Console(io.StringIO):
    def __init__(self, encoding): super().__init__(); self.coding = encoding
    @property
    def encoding(self): return self.coding
    def write(self, text): return super().write(text.encode(self.coding).decode(self.coding))   # as a console would

@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_a_console_of_any_encoding(encoding, monkeypatch):
    "Arrows, bars, Chinese, and bytes that are no text."
    console = Console(encoding)
    monkeypatch.setattr("sys.stdout", console)
    echo("a.png: 4 → 9", "貓", os.fsdecode(b"caf\xe9.png"))
    Progress("貓")(1, 2)
    said = console.getvalue()
    assert "a.png: 4 " in said and " 50%" in said
    assert ("→" in said and "█" in said) if encoding == "utf-8" else ("\\u2192" in said and "#" in said)

@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_command_in_a_console_that_is_not_utf8(encoding, tmp_path):
    code = ("from mirrorcfe import cli; cli.COMMANDS['say'] = lambda: print('4 → 9'); cli.parse = lambda *a: {}; "
            "cli.main()")
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code, "say"], capture_output=True, cwd=tmp_path,
                         env={**os.environ, "PYTHONIOENCODING": encoding})
    assert run.returncode == 0 and run.stdout.decode().strip() == "4 -> 9"

FILM = tiny(K=3, size=8)

def test_an_ffmpeg_that_cannot_run(tmp_path, monkeypatch):
    (tmp_path/"ffmpeg").write_text("not a program")
    (tmp_path/"ffmpeg").chmod(0o755)
    for found in (tmp_path/"ffmpeg", tmp_path/"nowhere"):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(found))
        with pytest.raises(MirrorError, match=f"the program {found} cannot be started: .*write a .gif"):
            FILM.animate(tmp_path/"film.mp4", size=160)
    assert not (tmp_path/"film.mp4").exists()

def test_a_name_with_a_colon(tmp_path, monkeypatch):
    "Which ffmpeg would take for a protocol."
    monkeypatch.chdir(tmp_path)
    for name in ("10:30.mp4", "-y.mp4", "10:30.gif"): assert FILM.animate(name, size=160).stat().st_size > 100

STATE = torchvision.models.resnet18(weights=None, num_classes=3).state_dict()
def named(prefix): return {prefix + k: v for k, v in STATE.items()}
CHECKPOINTS = {
    "plain": STATE, "DataParallel": named("module."), "torch.compile": named("_orig_mod."),
    "both": named("module._orig_mod."), "Lightning": dict(state_dict=named("model.")),
    "the tutorial's": dict(model_state_dict=STATE, epoch=3), "fastai's": dict(model=STATE, opt={}),
    "compiled in Lightning": dict(state_dict=named("model._orig_mod."))}

@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_people_have(name, tmp_path):
    torch.save(CHECKPOINTS[name], tmp_path/"w.pth")
    found = read_weights(tmp_path/"w.pth")
    assert found.keys() == STATE.keys() and all(torch.equal(v, STATE[k]) for k, v in found.items())

def test_tied_weights_are_kept(tmp_path):
    net = small_resnet(3, 1, (4, 4), 16)
    net.stages[1].long[0][1].weight = net.stages[1].long[2][1].weight
    save_network(net.freeze(), tmp_path/"kept")
    x = torch.rand(2, 1, 16, 16)*2 - 1
    assert torch.equal(load_network(tmp_path/"kept")[0](x), net(x))

@pytest.mark.parametrize("text, name", [
    ("\ufeffcat\r\ndog\r\n", "c.txt"), ('["cat", "dog"]', "c.json"), ('{"1": "dog", "0": "cat"}', "c.json"),
    ('{"dog": 1, "cat": 0}', "c.json")])
def test_class_files(text, name, tmp_path):
    (tmp_path/name).write_text(text, encoding="utf-8")
    assert read_names(tmp_path/name) == ["cat", "dog"]

@pytest.mark.parametrize("text", ['{"dog": 1, "cat": 1}', '"cat"', '["cat"', '["cat", "cat"]'])
def test_class_files_that_name_nothing(text, tmp_path):
    (tmp_path/"c.json").write_text(text)
    with pytest.raises(MirrorError): read_names(tmp_path/"c.json")

def test_names_that_are_numbers_mean_the_same_everywhere(tmp_path):
    "Folders 1 to 4, in Python and on the command line; a saved pair stays what it was."
    from mirrorcfe.baselines.cyclegan import CycleGAN
    for c in range(1, 5):
        (tmp_path/"d"/str(c)).mkdir(parents=True)
        for i in range(6): Image.fromarray(np.full((8, 8), 40*c + i, np.uint8)).save(tmp_path/"d"/str(c)/f"{i}.png")
    names = get_folder_dls(tmp_path/"d", size=16, device="cpu").vocab
    dls = get_folder_dls(tmp_path/"d", size=16, pair=("1", "2"), device="cpu")
    assert dls.pair == class_pair(["1", "2"], names) == pair_index(("1", "2"), names) == (0, 1)
    with pytest.raises(MirrorError, match="class 1 may be the one called 1"): get_folder_dls(tmp_path/"d", pair=(1, 2))
    with pytest.raises(MirrorError, match="class 1 may be"): get_folder_dls(tmp_path/"d", without=1)
    method = CycleGAN(Classifier([made().a, made().b], made().fc, names, size=(16, 16)), pair=("1", "2"))
    assert method.pair == (0, 1)

# --- what a network of one's own carries ------------------------------------------------------------------------------

class Carries(Net):
    "Its answer depends on `gain`, wherever that stands."
    gain = 1.
    def forward(self, x): return self.fc(self.b(self.a(x)*self.get()).mean((2, 3)))
    def get(self): return float(self.gain)
class Louder(Carries): gain = 2.
Louder.__name__ = Louder.__qualname__ = "Carries"
class Private(Carries):
    def get(self): return float(self._gain)
class Configured(Carries):
    def get(self): return float(self.config.gain)
class Computed(Carries):
    @property
    def gain(self): return 1.
class ComputedLouder(Carries):
    @property
    def gain(self): return 2.
ComputedLouder.__name__ = ComputedLouder.__qualname__ = "Computed"

unit = v2.Normalize([.4]*3, [.5]*3)
def by_an_object(x): return unit((x + 1)/2)
def by_an_inner_function(x):
    def moved(): return x + offset
    return moved()

def carrying(kind, **values):
    net = made(kind=kind)
    for name, v in values.items(): setattr(net, name, v)
    return wrapped(net)

def scaled_by_a_hook(by):
    net = made()
    net.a.register_forward_hook(lambda m, i, o: o*by)
    return wrapped(net)

@pytest.mark.parametrize("one, other", [
    (lambda: carrying(Carries), lambda: carrying(Louder)),
    (lambda: carrying(Computed), lambda: carrying(ComputedLouder)),
    (lambda: carrying(Private, _gain=1.), lambda: carrying(Private, _gain=2.)),
    (lambda: carrying(Carries, gain=torch.tensor(1.)), lambda: carrying(Carries, gain=torch.tensor(2.))),
    (lambda: carrying(Carries, gain=np.float32(1)), lambda: carrying(Carries, gain=np.float32(2))),
    (lambda: carrying(Configured, config=SimpleNamespace(gain=1.)),
     lambda: carrying(Configured, config=SimpleNamespace(gain=2.))),
    (lambda: scaled_by_a_hook(1.), lambda: scaled_by_a_hook(2.))],
    ids=["class", "property", "private", "tensor", "numpy", "config", "hook"])
def test_a_fingerprint_covers_what_a_network_of_ones_own_carries(one, other):
    assert one() == one() != other()

def test_a_fingerprint_covers_the_objects_a_function_names(monkeypatch):
    before = [wrapped(normalise=f) for f in (by_an_object, by_an_inner_function)]
    monkeypatch.setitem(globals(), "unit", v2.Normalize([.4]*3, [.6]*3))
    monkeypatch.setitem(globals(), "offset", .7)
    after = [wrapped(normalise=f) for f in (by_an_object, by_an_inner_function)]
    assert before[0] != after[0] and before[1] != after[1]
    assert describe(Path("a")) != describe(Path("b")) and describe(torch.float32) != describe(torch.float64)

@pytest.mark.parametrize("normalise", [
    partial(TF.normalize, mean=[.5], std=[.2]), _presets.ImageClassification(crop_size=16),
    type("Mine", (v2.Normalize,), {})([.5], [.2])], ids=["partial", "preset", "subclass"])
def test_what_expects_images_in_the_unit_range_is_refused(normalise):
    with pytest.raises(MirrorError, match="expects images in \\[0, 1\\]"):
        Classifier.wrap(made(), images[:4], normalise=normalise)

def test_names_and_normalisation_of_an_opened_network_are_not_dropped():
    opened = Classifier.wrap(made(), images[:4])
    again = Classifier.wrap(opened, images[:4], list("abcd"), Normalise(.5, .25))
    assert again.classes == list("abcd") and again.fingerprint() != opened.fingerprint()
    with pytest.raises(MirrorError, match="has its own normalise="):
        Classifier.wrap(again, images[:4], normalise=Normalise(.5, .5))

class OwnImages(Dataset):
    def __init__(self, x): self.x = x
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], 0

def test_the_key_of_a_loader_sees_the_images_of_any_dataset():
    data = OwnImages(images[:4])
    sets = [data, OwnImages(-images[:4]), Subset(data, [0, 1]), Subset(data, [0, 2]), ConcatDataset([data, data])]
    keys = [loader_key(TorchLoader(d, 2))["images"] for d in sets]
    assert len(set(keys)) == len(keys)
    assert keys[0] == loader_key(TorchLoader(OwnImages(images[:4].clone()), 2))["images"]
