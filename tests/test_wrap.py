"Networks made by others: a table of what opens and what does not, every refusal, maps in every layout, heads replaced, use in the generator."
import copy, os, pickle, sys
from pathlib import Path
import pytest, torch, torchvision
from torch import nn
from torch.nn import functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.layers import AdaptiveConcatPool2d
from fastai.learner import Learner
from sklearn.datasets import load_digits
from torchvision.models import convnext, mobilenetv3, resnet, swin_transformer
from mirrorcfe.core import MirrorError
from mirrorcfe.features import GapClassifier, Normalise
from mirrorcfe.wrap import Tap, Taps, gap_head, open_network, to_images

STORED = Path(__file__).resolve().parent.parent/"benchmarks"/"results"/"wrap.md"
images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))*2 - 1
rgb = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))*2 - 1

def near(a, b, tol): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

# --- the table: library, network, how it is built ----------------------------------------------------------------------------------

def tv(name, **kw): return "torchvision", name, lambda: torchvision.models.get_model(name, weights=None, num_classes=10, **kw)
def small(name, build): return "torchvision", name, build
def timm(name, **kw):
    def build():
        import timm
        return timm.create_model(name, pretrained=False, num_classes=10, **kw)
    return "timm", name, build
def fast(name, build): return "fastai", name, build

def xresnet():
    from fastai.vision.models.xresnet import XResNet
    from fastai.layers import ResBlock
    return XResNet(ResBlock, 1, [1, 1, 1, 1], n_out=10)

def vision_head(pool):
    from fastai.vision.learner import create_vision_model
    head = None if pool == "concat" else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return create_vision_model(resnet.resnet18, 10, pretrained=False, custom_head=head)

ROWS = [tv("resnet18"), small("resnext, 4 blocks", lambda: resnet.ResNet(resnet.Bottleneck, [1]*4, 10, groups=32, width_per_group=4)),
        tv("densenet121"), tv("mobilenet_v2"), tv("mobilenet_v3_small"), tv("efficientnet_b0"), tv("efficientnet_v2_s"), tv("regnet_x_400mf"), tv("regnet_y_400mf"),
        tv("shufflenet_v2_x0_5"), tv("googlenet", init_weights=False), tv("inception_v3", init_weights=False), tv("mnasnet0_5"), tv("squeezenet1_1"), tv("alexnet"),
        tv("vgg11", init_weights=False),
        small("convnext, 4 blocks", lambda: convnext.ConvNeXt([convnext.CNBlockConfig(c, n, 1) for c, n in ((24, 48), (48, 96), (96, 192), (192, None))], num_classes=10)),
        small("swin, 4 blocks", lambda: swin_transformer.SwinTransformer([4, 4], 24, [1]*4, [2]*4, [7, 7], num_classes=10)),
        small("swin_v2, 4 blocks", lambda: swin_transformer.SwinTransformer([4, 4], 24, [1]*4, [2]*4, [8, 8], num_classes=10, block=swin_transformer.SwinTransformerBlockV2,
                                                                             downsample_layer=swin_transformer.PatchMergingV2)),
        small("vit, 2 blocks", lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=10)),
        timm("resnet10t"), timm("test_resnet"), timm("resnetv2_50x1_bit"), timm("test_efficientnet"), timm("efficientnet_lite0"), timm("regnetx_002"), timm("regnety_002"),
        timm("mobilenetv3_small_050"), timm("mobilenetv4_conv_small"), timm("test_nfnet"), timm("test_byobnet"), timm("rexnet_100"), timm("hrnet_w18_small"),
        timm("repvgg_a0"), timm("test_convnext"), timm("convnextv2_atto"), timm("poolformer_s12"), timm("ghostnet_100"),
        timm("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1), embed_dim=24, num_heads=(2, 2, 2, 2)), timm("vit_tiny_patch16_224", img_size=64, depth=2),
        timm("vit_medium_patch16_gap_240", img_size=64, depth=2), timm("mixer_s32_224", img_size=64), timm("levit_128s", img_size=64),
        fast("xresnet, 4 blocks", xresnet), fast("vision_learner(resnet18), its own head", lambda: vision_head("concat")),
        fast("vision_learner(resnet18), average and linear", lambda: vision_head("average"))]

def row(library, name, build):
    "One line of the table."
    torch.manual_seed(0)
    model = build().eval()
    x = F.interpolate(images, 128) if name == "inception_v3" else images
    try: net = GapClassifier.wrap(model, x)
    except MirrorError as e: return f"| {library} | {name} | refused | | | | {str(e).split('. Mirror-CFE')[0].split(' (without it')[0]} |"
    with torch.no_grad(): maps, z, logits = net.encode(x)
    off = (net.logits_of(maps[-1].mean((2, 3))) - model(x)).abs().max()/model(x).abs().max().clamp_min(1e-6)
    assert off < 1e-4, (name, off)
    stages = ", ".join(f"{f.shape[1]} x {f.shape[2]}²" for f in maps)
    return f"| {library} | {name} | opened | {stages} | {net.n_features} | {'< 1e-5' if off < 1e-5 else '< 1e-4'} | last map: `{net.stages.names[-1]}` |"

def table(rows=ROWS):
    "The page benchmarks/results/wrap.md."
    lines = [row(*r) for r in rows]
    opened = sum("| opened |" in l for l in lines)
    return "\n".join(["# What `GapClassifier.wrap` opens", "",
        "Written by `python tests/test_wrap.py` and compared by `tests/test_wrap.py`. Weights are random (seed 0), ten classes, two images of 64 x 64 pixels (inception_v3: 128):",
        "the structure is what is tried. `stages` are channels x height of the maps found, shallow to deep, the last being the one that is averaged; N its channels;",
        "the error is that of `linear(mean(last map))` against `model(x)`, relative to the largest logit. Refused networks get a head by `mirrorcfe.wrap.gap_head`.", "",
        f"{opened} of {len(lines)} opened.", "", "| library | network | outcome | stages | N | error | found |", "|---|---|---|---|---|---|---|", *lines, ""])

@pytest.mark.parametrize("r", ROWS, ids=[f"{l}-{n}" for l, n, _ in ROWS])
def test_table_is_what_happens(r):
    if r[0] == "timm": pytest.importorskip("timm")
    line = row(*r)
    assert line in STORED.read_text(encoding="utf-8").splitlines(), f"run `python tests/test_wrap.py` to write the table anew; now:\n{line}"

def test_table_has_no_other_rows():
    stored = STORED.read_text(encoding="utf-8").splitlines()
    assert [tuple(l.split(" | ")[:2]) for l in stored if l.startswith(("| torchvision", "| timm", "| fastai"))] == [(f"| {l}", n) for l, n, _ in ROWS]

# --- networks made here ---------------------------------------------------------------------------------------------------------------

def conv(c_in, c_out, stride=2): return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU())

class Functional(nn.Module):
    "Pools by a function; `act` is what happens to the last map before, `mean` the pooling."
    def __init__(self, act=lambda f: f, norm=nn.Identity, mean=lambda f: F.adaptive_avg_pool2d(f, 1).flatten(1)):
        super().__init__()
        self.one, self.two, self.drop, self.norm, self.fc, self.act, self.mean = conv(3, 8), conv(8, 12), nn.Dropout(.5), norm(), nn.Linear(12, 5), act, mean
    def forward(self, x): return self.fc(self.drop(self.norm(self.mean(self.act(self.two(self.one(x)))))))

def sequential(*tail): return nn.Sequential(conv(3, 8), conv(8, 12), *tail)

def trained(norm):
    with torch.no_grad():
        for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias): p.uniform_(.5, 2)
    return norm

def class_token(f): return torch.cat([f.mean((2, 3))[:, None]*0 + 7, f.flatten(2).transpose(1, 2)], 1)

GAP = nn.AdaptiveAvgPool2d(1), nn.Flatten()
GOOD = {"pooling a module": lambda: sequential(*GAP, nn.Linear(12, 5)), "pooling a function": Functional,
        "relu in place by a function": lambda: Functional(lambda f: F.relu(f, inplace=True)),
        "relu by a function": lambda: Functional(lambda f: F.relu(f - .1)),
        "two functions alike": lambda: Functional(lambda f: F.gelu(F.gelu(f))),
        "sum over the number": lambda: Functional(torch.sigmoid, mean=lambda f: f.sum((2, 3))/16),
        "channels last": lambda: Functional(lambda f: f.permute(0, 2, 3, 1).tanh(), mean=lambda f: f.mean((1, 2))),
        "tokens": lambda: Functional(lambda f: f.flatten(2).transpose(1, 2).tanh(), mean=lambda f: f.mean(1)),
        "tokens behind a class token": lambda: Functional(class_token, mean=lambda f: f[:, 1:].mean(1)),
        "batch norm behind the pooling": lambda: Functional(torch.tanh, lambda: trained(nn.BatchNorm1d(12))),
        "two batch norms": lambda: Functional(norm=lambda: nn.Sequential(trained(nn.BatchNorm1d(12)), trained(nn.BatchNorm1d(12)))),
        "a convolution before the pooling": lambda: sequential(nn.Conv2d(12, 5, 1), *GAP),
        "a convolution behind the pooling": lambda: sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 5, 1, bias=False), nn.Flatten()),
        "dropout and identity behind": lambda: sequential(*GAP, nn.Identity(), nn.Dropout(.3), nn.Linear(12, 5, bias=False)),
        "pooled in two steps": lambda: sequential(nn.AvgPool2d(2), *GAP, nn.Linear(12, 5)),
        "nested": lambda: nn.Sequential(nn.Sequential(conv(3, 8), conv(8, 12)), nn.Sequential(*GAP, nn.Linear(12, 5))),
        "in parallel": lambda: nn.DataParallel(Functional(torch.tanh))}

@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("n", [1, 3])
def test_wrap(name, n):
    torch.manual_seed(0)
    model = GOOD[name]()
    state, mode = copy.deepcopy(model.state_dict()), model.training
    net = GapClassifier.wrap(model, rgb[:n], classes=list("abcde"))
    maps, z, logits = net.encode(rgb)
    near(logits, copy.deepcopy(model).eval()(rgb), 1e-5)
    near(net.logits_of(maps[-1].mean((2, 3))), logits, 1e-5)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 8), (12, 4, 4)] and net.size == (16, 16) and net.classes == list("abcde")
    # the network itself is as it was: weights, mode, gradients, no hook left behind
    assert model.training == mode and all(p.requires_grad for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules()) and not any(p.requires_grad for p in net.parameters())

# an in-place ReLU on what a ReLU gave breaks the backward pass of the network itself
@pytest.mark.parametrize("name", [n for n in GOOD if n != "relu in place by a function"])
def test_opened_as_a_module(name):
    "Gradients reach the image as in the network itself, bf16 and batches of one agree, pickle and the fingerprint hold."
    torch.manual_seed(0)
    model = GOOD[name]().eval()
    net = GapClassifier.wrap(model, rgb)
    a, b = rgb.clone().requires_grad_(), rgb.clone().requires_grad_()
    net(a).square().sum().backward(); model(b).square().sum().backward()
    near(a.grad, b.grad, 1e-4)
    assert a.grad.abs().sum() > 0
    near(torch.cat([net(x[None]) for x in rgb]), net(rgb), 1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16): half = net.encode(rgb)
    assert half.z.dtype == half.logits.dtype == torch.float32
    near(half.logits, net(rgb), .1)
    again = pickle.loads(pickle.dumps(net)) if name not in LAMBDAS else copy.deepcopy(net)
    assert torch.equal(again(rgb), net(rgb)) and again.fingerprint() == net.fingerprint() and again.stages.names == net.stages.names
    with torch.no_grad(): next(again.stages.parameters()).add_(.1)
    assert again.fingerprint() != net.fingerprint()

LAMBDAS = {n for n, make in GOOD.items() if any(isinstance(m, Functional) for m in make().modules())}   # a lambda does not pickle

def test_wrap_keeps_the_normalisation():
    model = GOOD["pooling a module"]().eval()
    near(GapClassifier.wrap(model, rgb, normalise=Normalise())(rgb), model(Normalise()(rgb)), 1e-5)

def test_grey_images_for_a_network_of_colours():
    net = GapClassifier.wrap(sequential(*GAP, nn.Linear(12, 5)), rgb[:, :1], normalise=lambda x: x.expand(-1, 3, -1, -1))
    assert net.in_channels == 1 and net(rgb[:, :1]).shape == (3, 5)

def test_the_same_twice():
    net = GapClassifier.wrap(Functional(), rgb)
    again = GapClassifier.wrap(net, rgb)
    assert again is not net and torch.equal(again(rgb), net(rgb))
    assert open_network(GapClassifier, Functional(), rgb).n_features == 12

def test_not_square():
    x = torch.rand(2, 3, 16, 24)*2 - 1
    for name in ("pooling a module", "channels last", "tokens", "tokens behind a class token"):
        model = GOOD[name]().eval()
        maps = GapClassifier.wrap(model, x).features(x)
        assert maps[-1].shape == (2, 12, 4, 6)
        last = Taps(model, ["1" if name == "pooling a module" else "two"])(x)[0]
        near(maps[-1], last.tanh() if name in ("channels last", "tokens") else last, 1e-5)

STAGES = {"resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"], "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features"],
          "densenet121": ["features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features"],
          "swin_t": ["features.1", "features.3", "features.5", "permute"]}

@pytest.mark.parametrize("name", STAGES)
def test_stages(name):
    "Stages end between blocks, not inside the first bottleneck of the next."
    torch.manual_seed(0)
    net = GapClassifier.wrap(torchvision.models.get_model(name, weights=None, num_classes=10).eval(), images[:1])
    assert net.stages.names == STAGES[name]
    heights = [f.shape[2] for f in net.features(images[:1])]
    assert heights == sorted(heights, reverse=True)

def test_stages_by_hand():
    model = resnet.ResNet(resnet.BasicBlock, [1]*4, 10)
    net = GapClassifier.wrap(model, images, stages=["layer3", "layer1"])
    assert net.stages.names == ["layer1", "layer3", "layer4"] and GapClassifier.wrap(model, images, stages=[]).stages.names == ["layer4"]
    assert GapClassifier.wrap(model, images, stages=["layer2", "layer4"]).stages.names == ["layer2", "layer4"]

def test_taps_elsewhere():
    t = Taps(sequential(*GAP, nn.Linear(12, 5)).eval(), ["0", Tap("1")])
    assert t.names == ["0", "1"] and [tuple(f.shape) for f in t(rgb)] == [(3, 8, 8, 8), (3, 12, 4, 4)]

# --- what is refused ---------------------------------------------------------------------------------------------------------------------

class Dict(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Linear(3, 5)
    def forward(self, x): return {"logits": self.fc(x.mean((2, 3)))}

class Leaf(nn.Module):
    def forward(self, x): return x.mean((2, 3))

class Flipped(nn.Module):
    def __init__(self): super().__init__(); self.conv, self.fc = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)
    def forward(self, x): return -self.fc(self.conv(x).mean((2, 3)))

class Pair(Functional):
    def forward(self, x): return super().forward(x), x

UNFIT = {
    "flattened": (lambda: sequential(nn.Flatten(), nn.Linear(12*16, 5)), "'3' (Linear), 192 to 5, reads '1.2' (ReLU), not the spatial mean"),
    "max pooling": (lambda: sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 5)), "reads '2' (AdaptiveMaxPool2d), not the spatial mean"),
    "two poolings": (lambda: sequential(AdaptiveConcatPool2d(), nn.Flatten(), nn.Linear(24, 5)), "not the spatial mean"),
    "two linear layers": (lambda: sequential(*GAP, nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)), "through '4' (Linear), '5' (ReLU), which is not linear"),
    "softmax at the end": (lambda: sequential(*GAP, nn.Linear(12, 5), nn.Softmax(-1)), "not the output of '4' (Linear): '5' (Softmax) comes after it"),
    "a function at the end": (Flipped, "not the output of 'fc' (Linear): a function changes it"),
    "relu in place behind the head": (lambda: sequential(nn.Conv2d(12, 5, 1), nn.ReLU(True), *GAP), "not the output of '2' (Conv2d): '3' (ReLU) comes after it"),
    "no head": (lambda: sequential(), "returns shape (3, 12, 4, 4), not logits"),
    "a dictionary": (Dict, "the network returns dict, not logits (B, C)"),
    "two outputs": (Pair, "the network returns tuple, not logits (B, C)"),
    "no layers": (Leaf, "no nn.Linear found: the network ends in the module itself (Leaf)"),
    "normalised latents": (lambda: sequential(*GAP, nn.LayerNorm(12), nn.Linear(12, 5)), "only through '4' (LayerNorm), which is not linear (without it the logits are off by"),
    "normalised map": (lambda: sequential(nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 12), nn.Flatten(), nn.Linear(12, 5)), "only through '3' (GroupNorm), which is not linear (without it"),
    "map of one pixel": (lambda: nn.Sequential(conv(3, 8, 4), conv(8, 12, 4), *GAP, nn.Linear(12, 5)), "nothing is left to average, larger images may do"),
}

@pytest.mark.parametrize("name", UNFIT)
def test_wrap_names_the_layer_and_the_way_out(name):
    torch.manual_seed(0)
    model, says = UNFIT[name][0](), UNFIT[name][1]
    with pytest.raises(MirrorError) as e: GapClassifier.wrap(model, rgb)
    assert says in str(e.value) and "gap_head(model, dls)" in str(e.value) and "GapClassifier(stages, head)" in str(e.value)

def test_the_numbers_of_a_norm_are_its():
    torch.manual_seed(0)
    model = sequential(*GAP, nn.LayerNorm(12), nn.Linear(12, 5)).eval()
    with pytest.raises(MirrorError) as e: GapClassifier.wrap(model, rgb)
    with torch.no_grad():
        f, out = model[:2](rgb), model(rgb)
        without = (model[5](f.mean((2, 3))) - out).abs().max()/out.std()
        moved = (model[5](model[4](f.permute(0, 2, 3, 1)).mean((1, 2))) - out).abs().max()/out.std()
    assert f"off by up to {without:.2g} of their standard deviation, with it before the pooling by {moved:.2g})" in str(e.value)

good, deep = sequential(*GAP, nn.Linear(12, 5)), resnet.ResNet(resnet.BasicBlock, [1]*4, 10)
REFUSED = {
    "no sample": (lambda: GapClassifier.wrap(good, rgb[:0]), "the sample is empty"),
    "no sample at all": (lambda: GapClassifier.wrap(good), "give a few images of the size to explain"),
    "range": (lambda: GapClassifier.wrap(good, rgb*3), "images must lie in [-1, 1]"),
    "NaN": (lambda: GapClassifier.wrap(good, rgb, normalise=lambda x: x*float("nan")), "NaN or infinity on the sample"),
    "class names": (lambda: GapClassifier.wrap(good, rgb, classes=["a"]), "1 class names for a head of 5 classes"),
    "channels": (lambda: GapClassifier.wrap(good, rgb[:, :1]), "the network fails on images of shape (3, 1, 16, 16): RuntimeError"),
    "no network": (lambda: GapClassifier.wrap(lambda x: x, rgb), "must be a torch module or a fastai Learner: found function"),
    "random": (lambda: GapClassifier.wrap(Functional(F.dropout), rgb), "something random stays on in eval mode"),
    "unknown stage": (lambda: GapClassifier.wrap(deep, images, stages=["layer9"]), "the network has no module 'layer9'; try layer"),
    "stage behind": (lambda: GapClassifier.wrap(deep, images, stages=["avgpool"]), "'avgpool' (AdaptiveAvgPool2d) comes after the last map, 'layer4'"),
    "stage twice": (lambda: GapClassifier.wrap(deep, images, stages=["layer1", "layer1"]), "named twice in layer1, layer1"),
    "stage not called": (lambda: GapClassifier.wrap(torchvision.models.googlenet(weights=None, init_weights=False), images, stages=["aux1"]), "does not call 'aux1'"),
    "stage without map": (lambda: GapClassifier.wrap(Functional(lambda f: f*1), rgb, stages=["drop"]), "'drop' (Dropout) comes after the last map"),
    "a map that stays away": (lambda: Taps(good, [Tap("1", "tanh")])(rgb), "did not come by 1 > tanh"),
    "no data": (lambda: gap_head(good), "give DataLoaders with .train and .valid, dls=: found NoneType"),
}

@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, says = REFUSED[name]
    with pytest.raises(MirrorError) as e: call()
    assert says in str(e.value)

# --- another head, a Learner, the generator ----------------------------------------------------------------------------------------------

def digits(n=300, size=32):
    "Digits in colour."
    d = load_digits()
    x = F.interpolate(torch.tensor(d.images/8 - 1).float()[:n + 60, None], (size, size)).expand(-1, 3, -1, -1).contiguous()
    data = list(zip(x, torch.tensor(d.target)[:n + 60]))
    dls = DataLoaders(DataLoader(data[:n], bs=50, shuffle=True), DataLoader(data[n:], bs=30), device="cpu")
    dls.vocab = [f"digit {i}" for i in range(10)]
    return dls

NEW_HEADS = {"convnext": lambda: convnext.ConvNeXt([convnext.CNBlockConfig(24, 48, 1), convnext.CNBlockConfig(48, None, 1)], num_classes=10, layer_scale=1.),
             "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=10),
             "vgg": lambda: nn.Sequential(conv(3, 16), conv(16, 32), nn.Flatten(), nn.Linear(32*64, 64), nn.ReLU(), nn.Linear(64, 10)),
             "fastai's own head": lambda: vision_head("concat"),
             "vit": lambda: torchvision.models.VisionTransformer(32, 4, 2, 2, 32, 64, num_classes=10),
             "a convolution as head": lambda: sequential(nn.Dropout(.5), nn.Conv2d(12, 10, 1), nn.ReLU(True), *GAP)}

@pytest.mark.parametrize("name", NEW_HEADS)
def test_gap_head(name, capsys):
    "A head on random features beats chance, keeps the network as it was, and says how good both are."
    torch.manual_seed(0)
    model, dls = NEW_HEADS[name](), digits(size=64 if name == "mobilenet_v3" or "fastai" in name else 32)
    state = copy.deepcopy(model.state_dict())
    net = gap_head(model, dls)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    said = capsys.readouterr().out
    assert f"{net.accuracy_before:.1%} with its own head, {net.accuracy:.1%} with the new one" in said
    assert net.accuracy > max(.25, net.accuracy_before) and net.classes == dls.vocab and not net.training
    x, y = dls.valid.one_batch()
    maps, z, logits = net.encode(x)
    near(logits, z @ net.W.T + net.b, 1e-4)
    assert gap_head(model, dls, verbose=False).fingerprint() == net.fingerprint()
    assert sum(p.numel() for p in net.parameters()) <= sum(p.numel() for p in model.parameters())

def test_gap_head_trains_further():
    dls, model = digits(), NEW_HEADS["vgg"]()
    tuned = gap_head(model, dls, epochs=1, verbose=False)
    assert tuned.fingerprint() != gap_head(model, dls, verbose=False).fingerprint() and not any(p.requires_grad for p in tuned.parameters())

def test_a_learner():
    "Network, images and names from the Learner; its batches turned back where it normalises them."
    dls = digits()
    net = GapClassifier.wrap(Learner(dls, sequential(*GAP, nn.Linear(12, 10)), loss_func=F.cross_entropy))
    assert net.classes == dls.vocab and net.size == (32, 32) and net.normalise is None
    assert to_images(dls)[1] is None
    with pytest.raises(MirrorError, match="gap_head"): GapClassifier.wrap(Learner(dls, NEW_HEADS["vgg"](), loss_func=F.cross_entropy))

@pytest.mark.parametrize("name", ["resnet18", "swin", "function", "vit"])
def test_the_generator_takes_the_maps(name):
    "Two steps of training and an explanation on maps of any number and layout."
    from mirrorcfe.explainer import MirrorCFE
    torch.manual_seed(0)
    swin = lambda: swin_transformer.SwinTransformer([4, 4], 24, [1]*3, [2]*3, [7, 7], num_classes=10)
    gap = timm("vit_medium_patch16_gap_240", img_size=64, depth=2)[2]
    if name == "vit": pytest.importorskip("timm")
    build = {"resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=10), "swin": swin, "function": lambda: nn.Sequential(Functional(torch.tanh)), "vit": gap}[name]
    dls = digits(n=16, size=64)
    model = build()
    if name == "function": model[0].fc = nn.Linear(12, 10)
    net = GapClassifier.wrap(model, dls.train.one_batch()[0])
    dls.train.n_inp = 1
    cfe = MirrorCFE(net, amp=False).fit(dls, 1, progress=False)
    assert cfe.explain(dls.valid.one_batch()[0][:2], ks=[0, .5, 1], closed_loop=False).path.shape == (2, 3, 3, 64, 64)
    assert cfe.model.shapes == [tuple(f.shape[1:3]) for f in net.features(dls.train.one_batch()[0][:1])]

if __name__ == "__main__":
    STORED.write_text(table(), encoding="utf-8")
    print(STORED.read_text(encoding="utf-8"))
