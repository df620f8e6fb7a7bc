"A classifier as encoder: maps with a given average over random shapes, networks opened, and every bad input."
import copy, warnings
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from mirrorcfe.core import Mirror, MirrorError
from mirrorcfe.features import (Classifier, Normalise, as_normalise, cams, check_images, check_target, intended_probs,
                                kfe_features)
from mirrorcfe.multiclass import ClosedFormSolver, NaiveSolver, path_logits

axioms = settings(deadline=None, max_examples=25)

def near(a, b, tol): torch.testing.assert_close(a, b, rtol=tol, atol=tol)
def bfloat16_autocast(): return torch.autocast("cpu", dtype=torch.bfloat16)

# --- maps with a given average --------------------------------------------------------------------------------------

@st.composite
def scenes(draw, dtypes=(torch.float64,)):
    "A head, maps as after a ReLU, the predicted classes and others, a step."
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype = draw(st.sampled_from(dtypes))
    B = draw(st.integers(1, 4))
    C = draw(st.integers(2, 8))
    N = draw(st.integers(8, 40))
    h = draw(st.integers(1, 7))
    w = draw(st.integers(1, 7))
    k = draw(st.sampled_from([0., .25, .5, .75, 1.]))
    W = torch.randn(C, N, generator=g, dtype=torch.float64)
    b = torch.randn(C, generator=g, dtype=torch.float64)
    f = torch.randn(B, N, h, w, generator=g, dtype=torch.float64).relu()
    s = (f.mean((2, 3)) @ W.T + b).argmax(-1)
    t = (s + torch.randint(1, C, (B,), generator=g)) % C
    return W.to(dtype), b.to(dtype), f.to(dtype), s, t, k

def margins(f, W, b, s, t):
    "The margin of every location, (B, h, w)."
    i = torch.arange(len(f))
    return cams(f, W)[i, t] - cams(f, W)[i, s] + (b[t] - b[s])[:, None, None]

MODES = st.sampled_from(["uniform", "location"])

@axioms
@given(scenes(dtypes=(torch.float64, torch.float32)), MODES, st.sampled_from(["logit", "prob", "naive"]))
def test_the_average_is_the_one_asked_for(scene, mode, by):
    W, b, f, s, t, k = scene
    z = f.mean((2, 3))
    solver = NaiveSolver(W, b) if by == "naive" else ClosedFormSolver(W, b, by)
    z_k = solver(z, s, t, k)
    f_k = kfe_features(f, z_k, mode, Mirror.between(W, b, s, t))
    assert f_k.dtype == f.dtype and f_k.shape == f.shape
    # with a latent close to the mirror some locations lie far from it, on both sides; rounding grows with the distance
    reach = 1 + (f_k.abs().amax() + z_k.abs().amax()).item()
    near(f_k.mean((2, 3)), z_k, (1e-10 if f.dtype == torch.float64 else 1e-4)*reach)

@axioms
@given(scenes())
def test_margin_maps(scene):
    "By location each margin becomes (1 - 2k) of itself: flat at .5, inverted at 1. Uniform: all shift alike."
    W, b, f, s, t, k = scene
    z = f.mean((2, 3))
    mirror = Mirror.between(W, b, s, t)
    m_i = margins(f, W, b, s, t)
    m = mirror.margin(z)[:, None, None]
    for solver in (NaiveSolver(W, b), ClosedFormSolver(W, b), ClosedFormSolver(W, b, "prob")):
        z_k = solver(z, s, t, k)
        near(margins(kfe_features(f, z_k, "location", mirror), W, b, s, t), (1 - 2*k)*m_i, 1e-7)
        near(margins(kfe_features(f, z_k, "uniform"), W, b, s, t), m_i - 2*k*m, 1e-7)

@axioms
@given(scenes())
def test_by_location_is_eq_1_everywhere(scene):
    W, b, f, s, t, k = scene
    mirror = Mirror.between(W, b, s, t)
    f_k = kfe_features(f, mirror.reflect(f.mean((2, 3)), k), "location", mirror)
    for i in range(len(f)):
        vectors = Mirror(mirror.w[i], mirror.b[i]).reflect(f[i].flatten(1).T, k).T.reshape(f[i].shape)
        near(f_k[i], vectors, 1e-7*(1 + vectors.abs().max().item()))

@pytest.mark.parametrize("mode", ["uniform", "location"])
def test_kfe_features_as_a_tensor_operation(mode):
    g = torch.Generator().manual_seed(0)
    W = torch.randn(3, 6, generator=g, dtype=torch.float64)
    f = torch.rand(2, 6, 2, 3, generator=g, dtype=torch.float64)
    z_k = torch.randn(2, 6, generator=g, dtype=torch.float64)
    mirror = Mirror.between(W, torch.zeros(3, dtype=torch.float64), 0, 1)
    def move(f, z): return kfe_features(f, z, mode, mirror)
    assert torch.autograd.gradcheck(move, (f.requires_grad_(), z_k.requires_grad_()))
    f = f.detach().float()
    z_k = z_k.detach().float()
    with bfloat16_autocast(): inside = move(f, z_k)
    assert torch.equal(inside, move(f, z_k))
    assert move(f.bfloat16(), z_k).dtype == torch.float32
    near(move(f, z_k), torch.cat([move(f[i:i+1], z_k[i:i+1]) for i in range(2)]), 1e-5)
    assert move(f[:0], z_k[:0]).shape == (0, 6, 2, 3)
    assert torch.equal(move(f, f.mean((2, 3))), f)

def test_a_latent_on_the_mirror_gives_no_nan():
    mirror = Mirror(torch.tensor([1., 0.]), 0.)
    f = torch.tensor([[-1., 1.], [2., 3.]]).view(1, 2, 1, 2)                # margins -1 and 1, mean 0
    assert torch.equal(kfe_features(f, f.mean((2, 3)), "location", mirror), f)

# --- CAMs and intended probabilities --------------------------------------------------------------------------------

@axioms
@given(scenes())
def test_cams_average_to_the_logits(scene):
    W, b, f, *_ = scene
    near(cams(f, W).mean((2, 3)) + b, f.mean((2, 3)) @ W.T + b, 1e-10)

@axioms
@given(scenes(), st.integers(0, 9))
def test_intended_probs_is_the_path(scene, K):
    W, b, f, s, t, _ = scene
    l = f.mean((2, 3)) @ W.T + b
    ks = torch.linspace(0, 1, K, dtype=torch.float64)
    p = intended_probs(l, s, t, ks)
    assert p.shape == (len(f), K, len(W))
    near(p.sum(-1), torch.ones(len(f), K, dtype=torch.float64), 1e-10)
    for j, k in enumerate(ks): near(p[:, j], path_logits(l, s, t, k).softmax(-1), 1e-10)
    if len(W) == 2 and K > 1: near(p[:, -1], p[:, 0].flip(-1), 1e-10)

def test_intended_probs_takes_any_sequence():
    l = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([path_logits(l, 0, 1, k).softmax(-1) for k in (0., .5, 1.)], 1)
    for ks in ([0, .5, 1], (0., .5, 1.), torch.tensor([0, .5, 1])): near(intended_probs(l, 0, 1, ks), expected, 1e-6)
    assert intended_probs(l[:0], 0, 1, [0., 1.]).shape == (0, 2, 4)

# --- the network, opened --------------------------------------------------------------------------------------------

def conv(c_in, c_out, stride=2):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU())

def make(seed=0, bias=True, **kw):
    torch.manual_seed(seed)
    return Classifier([conv(1, 8), conv(8, 12)], nn.Linear(12, 5, bias=bias), **kw)

x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))*2 - 1

def test_encode_is_the_network():
    net = make().eval()
    f = net.stages[1](net.stages[0](x))
    maps, z, logits = net.encode(x)
    assert [m.shape[1:] for m in maps] == [(8, 8, 8), (12, 4, 4)] and torch.equal(maps[-1], f)
    near(z, f.mean((2, 3)), 1e-6)
    near(logits, net.head(z), 1e-6)
    near(net(x), logits, 0)
    near(net.logits_of(z), logits, 0)
    assert (net.n_classes, net.n_features, net.in_channels, net.classes) == (5, 12, 1, list("01234"))

def test_stages_in_every_form():
    net = make().eval()
    for stages in (list(net.stages), tuple(net.stages), nn.Sequential(*net.stages)):
        near(Classifier(stages, net.head).eval()(x), net(x), 1e-6)

def test_a_head_without_bias():
    net = make(bias=False).eval()
    assert torch.equal(net.b, torch.zeros(5))
    near(net(x), net.encode(x).z @ net.W.T, 1e-5)
    assert len(net.fingerprint()) == 16

def test_empty_batch():
    maps, z, logits = make().eval().encode(x[:0])
    assert logits.shape == (0, 5) and z.shape == (0, 12) and maps[0].shape == (0, 8, 8, 8)

def test_latents_and_logits_stay_out_of_half_precision():
    net = make().eval()
    with bfloat16_autocast(): maps, z, logits = net.encode(x)
    assert (maps[-1].dtype, z.dtype, logits.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    near(logits, net(x), .1)
    half = make(normalise=Normalise(.5, .5)).eval().bfloat16()
    assert half(x.bfloat16()).dtype == torch.float32

def test_freeze_lets_gradients_through():
    net = make().freeze()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    xg = x.clone().requires_grad_()
    net(xg).sum().backward()
    assert xg.grad.abs().sum() > 0 and all(p.grad is None for p in net.parameters())

def test_fingerprint():
    net = make()
    mark = net.fingerprint()
    assert mark == copy.deepcopy(net).fingerprint() == net.freeze().fingerprint() == make().fingerprint()
    again = make(seed=1)
    assert again.fingerprint() != mark
    again.load_state_dict(net.state_dict())
    assert again.fingerprint() == mark == net.double().fingerprint()
    torch.manual_seed(0)
    wider = Classifier([conv(1, 9), conv(9, 12)], make().head)
    assert wider.fingerprint() != mark

def test_the_fingerprint_covers_statistics_and_layers_without_weights():
    mark = make().fingerprint()
    shifted = make()
    shifted.stages[0][1].running_mean += .1
    smooth = make()
    smooth.stages[0][2] = nn.GELU()
    assert len({mark, shifted.fingerprint(), smooth.fingerprint()}) == 3

def test_normalise():
    for mean, std in ((.5, .5), ((.5,), (.5,))): near(Normalise(mean, std)(x), x, 1e-6)
    rgb = x.expand(-1, 3, -1, -1)
    near(Normalise()(rgb)[:, 1], ((x[:, 0] + 1)/2 - .456)/.224, 1e-5)
    assert Normalise()(rgb.double()).dtype == torch.float64 and not Normalise().state_dict()

# --- bad input ------------------------------------------------------------------------------------------------------

rgb = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))*2 - 1
predicted = torch.tensor([1, 1, 4])
net = make().eval()
f = torch.rand(2, 12, 4, 4)
W = torch.rand(5, 12)
z = torch.zeros(2, 12)
two_layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5))
REFUSED = {
    "images, 8 bit": (lambda: check_images((x*100).byte()), "found torch.uint8; use x/127.5 - 1 for bytes"),
    "images, 0 to 255": (lambda: check_images((x + 1)*127.5), "x/127.5 - 1"),
    "images, normalised": (lambda: check_images(x*2.5), "undo the normalisation first"),
    "images, just outside": (lambda: check_images(x.clamp(-1, .9) + .2), "images must lie in [-1, 1]"),
    "images, NaN": (lambda: check_images(torch.where(x > .99, torch.nan, x)), "NaN or infinity"),
    "images, infinity": (lambda: check_images(torch.where(x > .99, torch.inf, x)), "NaN or infinity"),
    "images, one": (lambda: check_images(x[0]), "use x[None] for one image"),
    "images, a matrix": (lambda: check_images(x[0, 0]), "found shape (16, 16)"),
    "images, an array": (lambda: check_images(x.numpy()), "found ndarray"),
    "images, channels": (lambda: check_images(rgb, channels=1), "the classifier takes 1 channel(s), the images have 3"),
    "images, size": (lambda: check_images(x, size=(28, 28)),
                     "takes 28x28 pixels, the images have 16x16: resize or pad them"),
    "target too large": (lambda: check_target(10, predicted, 10), "target 10 is outside the 10 classes 0 to 9"),
    "target below 0": (lambda: check_target(torch.tensor([0, -1, 2]), predicted, 10), "target -1 is outside"),
    "target predicted already": (lambda: check_target(4, predicted, 10),
                                 "both class 4: choose a target other than the predicted class"),
    "target too large, predicted may pass": (lambda: check_target(10, predicted, 10, allow_equal=True),
                                             "target 10 is outside"),
    "target of another batch": (lambda: check_target([2, 3], predicted, 10),
                                "2 targets for 3 images: give one for all or one each"),
    "target a fraction": (lambda: check_target(2.5, predicted, 10), "target must be an int"),
    "target a word": (lambda: check_target("nine", predicted, 10), "found 'nine'"),
    "normalise, channels": (lambda: Normalise()(x), "Normalise has 3 means, the images have 1 channel(s)"),
    "normalise, a word": (lambda: as_normalise("unity"), "takes 'imagenet', 'unit', 'none', (mean, std) of images"),
    "normalise, std 0": (lambda: as_normalise((.5, 0)), "found (0.5, 0)"),
    "head of two layers": (lambda: Classifier([conv(1, 8)], two_layers),
                           "the head must be one nn.Linear: found Sequential"),
    "too few class names": (lambda: make(classes=["a", "b"]), "2 class names for a head of 5 classes"),
    "head of another network": (lambda: Classifier([conv(1, 8)], nn.Linear(12, 5))(x),
                                "the head reads 12 features, the last stage gives a map of shape (3, 8, 8, 8)"),
    "stages that flatten": (lambda: Classifier([conv(1, 8), nn.Flatten()], nn.Linear(512, 5))(x),
                            "gives a map of shape (3, 512)"),
    "cams of another map": (lambda: cams(f[:, :3], W), "found (2, 3, 4, 4) and (5, 12)"),
    "kfe, shapes": (lambda: kfe_features(f, z[:, :3]), "found (2, 12, 4, 4) and (2, 3)"),
    "kfe, a vector": (lambda: kfe_features(z, z), "a map (B, N, h, w) and latents (B, N) must agree"),
    "kfe, mode": (lambda: kfe_features(f, z, "pixel"), "mode must be 'uniform' or 'location': found 'pixel'"),
    "kfe, no mirror": (lambda: kfe_features(f, z, "location"), "Mirror.between(W, b, source, target)"),
    "kfe, mirror of another head": (lambda: kfe_features(f, z, "location", Mirror(torch.ones(3), 0.)),
                                    "12 features, the hyperplane has 3"),
    "intended, one class twice": (lambda: intended_probs(torch.zeros(2, 3), 1, 1, [0.]), "both class 1"),
    "intended, a number": (lambda: intended_probs(torch.zeros(2, 3), 0, 1, .5), "use [k] for one"),
}

@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, says = REFUSED[name]
    with pytest.raises(MirrorError) as e: call()
    assert says in str(e.value)

def test_what_is_right_passes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_images(x, 1, (16, 16)) is x
        assert check_images(x[:0]).shape[0] == 0
        assert check_images(torch.full_like(x, 1.0005)) is not None
    assert check_target(2, predicted, 10).tolist() == [2, 2, 2]
    assert check_target([2, 3, 1], predicted, 10).tolist() == [2, 3, 1]
    assert check_target(1, predicted, 10, allow_equal=True).tolist() == [1, 1, 1]
    assert check_target(0, predicted[:0], 10).shape == (0,)

def test_unit_range_is_a_warning():
    with pytest.warns(UserWarning, match="need x\\*2 - 1"): check_images((x + 1)/2)
