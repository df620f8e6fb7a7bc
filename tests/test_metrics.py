"Metrics against oracles (torchmetrics, scipy, numbers by hand) and axioms."
import warnings
from pathlib import Path
import lpips
import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from mirrorcfe.core import MirrorError
from mirrorcfe.features import Classifier
from mirrorcfe.losses import gaussian_blur
from mirrorcfe import metrics as m

def images(n=6, c=1, size=8, seed=0):
    return torch.rand(n, c, size, size, generator=torch.Generator().manual_seed(seed))*2 - 1

def classifier(c=1, seed=0):
    torch.manual_seed(seed)
    return Classifier([nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.ReLU())], nn.Linear(8, 3)).freeze()

def features(n=200, d=6, seed=0):
    "Normal features with one and the same covariance."
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(9))
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ mix

# --- sets ------------------------------------------------------------------------------------------

def test_fid_is_scipys():
    a = features().numpy().astype(float)
    b = features(150, seed=1).numpy().astype(float) + .3
    S = np.cov(a, rowvar=False)
    T = np.cov(b, rowvar=False)
    want = ((a.mean(0) - b.mean(0))**2).sum() + np.trace(S + T - 2*linalg.sqrtm(S @ T).real)
    assert m.fid(torch.tensor(a), torch.tensor(b)) == pytest.approx(want, rel=1e-6)

def test_fid_is_torchmetrics():
    a = features().double()
    b = features(150, seed=1).double()
    given = nn.Identity()
    given.num_features = 6
    metric = FrechetInceptionDistance(feature=given)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert m.fid(a, b) == pytest.approx(metric.compute().item(), rel=1e-6)

def test_fid_axioms():
    a = features()
    b = features(150, seed=1)
    assert m.fid(a, a) == pytest.approx(0, abs=1e-4)
    assert m.fid(a, b) == pytest.approx(m.fid(b, a), rel=1e-6)
    assert m.fid(a, a + 2) == pytest.approx(4*6, rel=1e-5)
    assert m.fid(a + 1e4, b + 1e4) == pytest.approx(m.fid(a, b), rel=1e-2)        # far from 0: no cancellation

def test_fid_warns_or_refuses_when_there_are_few():
    with pytest.warns(UserWarning, match="7 samples"): m.fid(features(), features(6))
    with pytest.raises(MirrorError, match="7 samples"): m.fid(features(), features(6), few="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.fid(features(), features(7))
        m.fid(features(), features(6), few="allow")

def test_kid_is_torchmetrics():
    a = features(100)
    b = features(100, seed=1) + .2
    with warnings.catch_warnings(record=True):
        metric = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=100)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert m.kid(a, b) == pytest.approx(metric.compute()[0].item(), rel=1e-6)

def test_kid_axioms():
    a, b = features(400).chunk(2)
    far = m.kid(a, b + 1)
    assert abs(m.kid(a, b)) < .1*far
    assert m.kid(a, b[:120]) == m.kid(a, b[:120])
    assert m.kid(a, b[:120] + 1) == pytest.approx(far, rel=.5)
    of_equals = [m.kid(features(60, seed=i), features(60, seed=i + 50)) for i in range(20)]
    assert abs(np.mean(of_equals)) < .05*far    # unbiased

def test_kid_draws_other_subsets_each_time():
    "The first fifty features are far apart, and subsets of fifty hold a quarter of them."
    a = features(200)
    b = features(200, seed=1)
    b[:50] += 10
    some = [m.kid(a, b, subset_size=50, subsets=40, seed=s) for s in (0, 1)]
    assert some[0] != some[1]
    assert some == [pytest.approx(m.kid(a, b), rel=.25)]*2   # those of the first fifty alone are sixteen times as far
    assert m.kid(a[:50], b[:50]) > 4*m.kid(a, b)

NO_FEATURES = [torch.zeros(4), torch.zeros(10, 5), torch.full((10, 6), torch.nan), torch.zeros(1, 6), None]

@pytest.mark.parametrize("f", [m.fid, m.kid])
@pytest.mark.parametrize("bad", NO_FEATURES)
def test_features_that_do_not_fit(f, bad):
    with pytest.raises(MirrorError): f(features(), bad)

# --- COUT ------------------------------------------------------------------------------------------

class Linear(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = w
        self.eval()
    def forward(self, x):
        v = x.flatten(1) @ self.w
        return torch.stack([v, -v], 1)

def test_cout_of_a_linear_model_by_hand():
    x = torch.full((1, 1, 2, 2), -.5)
    x_cf = torch.tensor([[[[.5, -.5], [.9, -.6]]]])
    w = torch.tensor([1., 2, 3, -1])
    got = m.cout(Linear(w), x, x_cf, 1, 0, reduction="none")
    now = [-.5]*4
    v = []
    for i in (None, 2, 0, 3, 1):                 # falling change: 1.4, 1.0, .1, 0
        if i is not None: now[i] = x_cf.flatten()[i].item()
        v.append(sum(a*b for a, b in zip(now, w.tolist())))
    gap = [2/(1 + np.exp(-2*u)) - 1 for u in v]
    assert got.value.item() == pytest.approx(sum((a + b)/2 for a, b in zip(gap, gap[1:]))/4, abs=1e-6)
    assert got.target_confidence[0].tolist() == pytest.approx([(g + 1)/2 for g in gap], abs=1e-6)
    assert got.fractions.tolist() == [0, .25, .5, .75, 1]

def test_cout_of_a_constant_curve():
    x = images(2, size=28)
    def always_0(v): return torch.tensor([[50., -50.]]).expand(len(v), -1)
    assert m.cout(always_0, x, -x, 1, 0).value.item() == pytest.approx(1, abs=1e-6)
    assert m.cout(always_0, x, -x, 1, 0, "c3lt").value.item() == pytest.approx(53*15/784, abs=1e-6)
    assert round(53*15/784, 4) == 1.0140

def test_cout_ends_at_both_images():
    clf = classifier(3)
    x = images(4, 3)
    y = images(4, 3, seed=1)
    r = m.cout(clf, x, y, 0, 2)
    assert torch.allclose(r.target_confidence[:, 0], clf(x).softmax(1)[:, 2], atol=1e-6)
    assert torch.allclose(r.p_source[:, -1], clf(y).softmax(1)[:, 0], atol=1e-6)

# --- one value an image ----------------------------------------------------------------------------

PAIRS = dict(
    validity=lambda c, x, y: m.validity(c, y, 1, reduction="none"),
    fail_rate=lambda c, x, y: m.fail_rate(c, y, 1, reduction="none"),
    gaussian=lambda c, x, y: m.denoised_validity(c, y, 1, reduction="none"),
    median=lambda c, x, y: m.denoised_validity(c, y, 1, "median", reduction="none"),
    oracle=lambda c, x, y: m.oracle_agreement(c, y, 1, reduction="none"),
    l1=lambda c, x, y: m.l1(x, y, "none"),
    prox=lambda c, x, y: m.prox(x, y, "none"),
    im1=lambda c, x, y: m.im1(y, lambda v: v*.5, lambda v: v*.7, reduction="none"),
    im2=lambda c, x, y: m.im2(y, lambda v: v*.5, lambda v: v*.7, reduction="none"),
    cout=lambda c, x, y: m.cout(c, x, y, 0, 1, reduction="none").value)
each = pytest.mark.parametrize("name", PAIRS)

@each
@pytest.mark.parametrize("channels", [1, 3])
def test_batched_is_looped(name, channels):
    clf = classifier(channels)
    x = images(5, channels)
    y = images(5, channels, seed=1)
    whole = PAIRS[name](clf, x, y)
    assert whole.shape == (5,)
    alone = [PAIRS[name](clf, x[i:i + 1], y[i:i + 1]) for i in range(5)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-5)

@each
def test_the_source_itself_is_finite(name):
    x = images()
    assert PAIRS[name](classifier(), x, x).isfinite().all()

@each
def test_absent_images(name):
    clf = classifier()
    x = images(4)
    y = images(4, seed=1)
    y[1] = torch.nan
    got = PAIRS[name](clf, x, y)
    want = dict(validity=0, gaussian=0, median=0, oracle=0, fail_rate=1).get(name)
    assert got[1].isnan() if want is None else got[1] == want
    assert torch.allclose(got[[0, 2, 3]], PAIRS[name](clf, x[[0, 2, 3]], y[[0, 2, 3]]), atol=1e-5)

@each
def test_all_absent(name): PAIRS[name](classifier(), images(), torch.full_like(images(), torch.nan))

NO_IMAGES = dict(range=lambda y: y*3, single=lambda y: y[0], bytes=lambda y: (y*100).byte(),
                 holes=lambda y: y.where(y > -.9, torch.nan), none=lambda y: None)

@each
@pytest.mark.parametrize("bad", NO_IMAGES.values(), ids=NO_IMAGES)
def test_images_that_do_not_fit(name, bad):
    with pytest.raises(MirrorError): PAIRS[name](classifier(), images(), bad(images()))

@pytest.mark.parametrize("f", [m.l1, m.prox])
def test_distance_axioms(f):
    x, y, z = (images(seed=i) for i in range(3))
    assert f(x, x) == 0
    assert torch.allclose(f(x, y, "none"), f(y, x, "none"))
    assert (f(x, z, "none") <= f(x, y, "none") + f(y, z, "none") + 1e-6).all()

@pytest.mark.filterwarnings("ignore:no pixel is below 0")
def test_prox_doubles_from_unit_images():
    x = images()
    y = images(seed=1)
    assert torch.allclose(m.prox(x, y, "none"), 2*m.prox((x + 1)/2, (y + 1)/2, "none"), atol=1e-6)

def test_prox_is_a_sum_over_channels():
    x = images(c=3)
    y = images(c=3, seed=1)
    assert torch.allclose(m.prox(x, y), 3*m.l1(x, y))

def test_fail_rate_looks_at_the_whole_way():
    clf = Linear(torch.ones(64))
    dark = images(3)*.1 - .5
    light = dark + 1
    path = torch.stack([dark, light, torch.full_like(dark, torch.nan)], 1)
    assert m.fail_rate(clf, path, 0) == 0
    assert m.fail_rate(clf, path[:, :1], 0) == 1
    assert m.fail_rate(clf, path[:, 2:], 0) == 1
    assert m.fail_rate(clf, path[:, 0], torch.tensor([0, 1, 1]), "none").tolist() == [1, 0, 0]

def test_the_oracle_is_another():
    clf = classifier()
    x = images()
    with pytest.raises(MirrorError, match="itself"): m.oracle_agreement(classifier(), x, 1, classifier=clf)
    m.oracle_agreement(classifier(seed=1), x, 1, classifier=clf)

BAD_ARGUMENTS = [
    lambda clf, x: m.validity(clf, x, 7),
    lambda clf, x: m.validity(clf, x, 1, "sum"),
    lambda clf, x: m.validity(nn.Linear(2, 2), x, 1),
    lambda clf, x: m.l1(x, x[:2]),
    lambda clf, x: m.denoised_validity(clf, x, 1, "wavelet"),
    lambda clf, x: m.cout(clf, x, x, 0, 1, "fast"),
    lambda clf, x: m.fail_rate(clf, x[0], 1),
    lambda clf, x: m.oracle_features(nn.Identity(), x),
    lambda clf, x: m.im1(x, lambda v: v[:1], lambda v: v)]

@pytest.mark.parametrize("f", BAD_ARGUMENTS)
def test_bad_arguments(f):
    with pytest.raises(MirrorError): f(classifier(), images())

def test_oracle_features_leave_out_absent_images():
    clf = classifier()
    x = images()
    z = m.oracle_features(clf, x, bs=2)
    x[2] = torch.nan
    assert torch.allclose(m.oracle_features(clf, x), z[[0, 1, 3, 4, 5]], atol=1e-6)

# --- autoencoders ----------------------------------------------------------------------------------

def test_im_by_hand():
    x = torch.full((1, 1, 2, 2), .5) * torch.tensor([1., -1.])
    assert m.im1(x, lambda v: v*0, lambda v: v*.5).item() == pytest.approx(4)
    assert m.im2(x, lambda v: v*0, lambda v: v*.5).item() == pytest.approx(4*.25**2/2)

# --- faithfulness, time, intervals -----------------------------------------------------------------

def test_errors_of_faithfulness():
    p = torch.tensor([[.1, .9], [.2, .4]])
    q = torch.tensor([[.1, .5], [.4, .4]])
    assert m.confidence_error(p, q).item() == pytest.approx(.15)
    assert m.confidence_error(p, q, "none").tolist() == pytest.approx([.2, .1])
    assert m.confidence_error(p, q, "curve").tolist() == pytest.approx([.1, .2])
    z = torch.randn(2, 3, 4)
    assert m.feature_error(z, z + .5, "curve").tolist() == pytest.approx([.5]*3, abs=1e-5)
    with pytest.raises(MirrorError, match="give an Explanation"): m.confidence_error(p)
    with pytest.raises(MirrorError, match="B, K"): m.confidence_error(p, q[:, :1])
    with pytest.raises(MirrorError, match="softmax"): m.confidence_error(p*9, q)
    with pytest.raises(MirrorError, match="B, K, N"): m.feature_error(z, z[0])

def test_time_is_per_sample(monkeypatch):
    clock = [0.]
    monkeypatch.setattr(m.time, "perf_counter", lambda: clock[0])
    seen = []
    def slow(x):
        seen.append(len(x))
        clock[0] += .02
    def fast(x): clock[0] += .005
    assert m.time_per_sample(slow, images(3), batch=16, repeats=2) == pytest.approx(.02/16)
    assert seen == [16]*3   # one call to warm up
    assert m.time_ratio(slow, fast, images(3), batch=2) == pytest.approx(4)

def test_bootstrap_covers():
    rng = torch.Generator().manual_seed(1)
    hits = 0
    for i in range(60):
        r = m.bootstrap_interval(torch.randn(80, generator=rng) + 3, n=300, seed=i)
        hits += r.low <= 3 <= r.high
    assert hits >= 51                            # 57 expected
    v = torch.tensor([1., 2, torch.nan, 3])
    assert m.bootstrap_interval(v).mean == 2 and m.bootstrap_interval(v) == m.bootstrap_interval(v)
    for bad in (torch.tensor(1.), torch.tensor([torch.nan]), torch.zeros(0)):
        with pytest.raises(MirrorError): m.bootstrap_interval(bad)

@pytest.mark.parametrize("level, z", [(.95, 1.96), (.8, 1.2816), (.5, .6745)])
@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_normal_values_has_the_known_width(level, z, seed):
    v = torch.randn(400, generator=torch.Generator().manual_seed(seed)).double() + 3
    r = m.bootstrap_interval(v, n=4000, seed=seed, level=level)
    half = z*v.std().item()/20
    assert r.mean == pytest.approx(v.mean().item())
    assert r.mean - r.low == pytest.approx(half, rel=.1) and r.high - r.mean == pytest.approx(half, rel=.1)

def test_the_interval_of_a_skewed_sample_has_its_two_quantiles():
    "Nine zeros and a one: the mean of ten draws is a binomial share; its 2.5 % quantile is 0, its 97.5 % quantile .3."
    r = m.bootstrap_interval(torch.tensor([0.]*9 + [1.]), n=4000)
    assert r == m.Interval(pytest.approx(.1), 0, pytest.approx(.3))

def test_the_interval_of_another_seed_and_of_one_value():
    v = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert m.bootstrap_interval(v).mean == pytest.approx(v.mean().item())
    assert m.bootstrap_interval(v, seed=0) != m.bootstrap_interval(v, seed=1)
    assert m.bootstrap_interval(torch.tensor([2.5])) == m.Interval(2.5, 2.5, 2.5)

# --- LPIPS -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def squeeze():
    weights = Path(torch.hub.get_dir())/"checkpoints"/"squeezenet1_1-b8a52dc0.pth"
    if not weights.exists(): pytest.skip("no weights of SqueezeNet under TORCH_HOME")

def test_lpips(squeeze):
    with warnings.catch_warnings(record=True): ref = lpips.LPIPS(net="squeeze", verbose=False)
    x = images(3, 3, 64)
    y = images(3, 3, 64, seed=1)
    got = m.lpips_distance(x, y, reduction="none", bs=2)
    assert torch.allclose(got, ref(x, y).flatten().detach(), atol=1e-6)
    assert torch.allclose(m.lpips_distance(x, x), torch.zeros(()), atol=1e-7)
    assert torch.allclose(m.lpips_distance(y, x), m.lpips_distance(x, y), atol=1e-6)
    grey = images(2)
    big = F.interpolate(grey, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)
    assert torch.allclose(m.lpips_distance(grey, -grey), m.lpips_distance(big, -big), atol=1e-5)
    y[1] = torch.nan
    assert torch.allclose(m.lpips_distance(x, y, reduction="none")[[0, 2]], got[[0, 2]], atol=1e-6)

def test_lpips_without_weights(monkeypatch, tmp_path):
    def offline(*a, **k): raise OSError("no route")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    m.lpips_network.cache_clear()
    with pytest.raises(MirrorError, match="TORCH_HOME"): m.lpips_distance(images(), images())
    m.lpips_network.cache_clear()

def test_lpips_bad_images():
    for c, kw in ((2, {}), (1, dict(net="resnet"))):
        with pytest.raises(MirrorError): m.lpips_distance(images(c=c), images(c=c), **kw)

# --- traces of drawing -----------------------------------------------------------------------------------------------

def texture(n=40, size=32, seed=0):
    "Images whose amplitude falls with the frequency, as that of photographs does."
    g = torch.Generator().manual_seed(seed)
    f = torch.fft.fftfreq(size).square()
    fall = (f[:, None] + f).clamp_min(1/size**2)**-.75
    x = torch.fft.ifft2(torch.fft.fft2(torch.randn(n, 1, size, size, generator=g))*fall).real
    return (x/x.abs().amax()).clamp(-1, 1)

def white(like):
    "Noise of a seed that no texture has."
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(99))

def test_share_of_waves_by_hand():
    "A wave below a quarter of the sampling frequency has no high share, one above has nothing else."
    i = torch.arange(64)
    for period, share in ((16, 0.), (8, 0.), (3, 1.), (2, 1.)):
        wave = torch.cos(2*torch.pi*i/period).expand(1, 1, 64, 64)
        assert m.high_frequency_share(wave).item() == pytest.approx(share, abs=1e-3)
        assert m.high_frequency_share(wave.transpose(2, 3)).item() == pytest.approx(share, abs=1e-3)

def test_share_of_white_noise():
    "As large as the part of the plane of frequencies that lies outside the circle of radius 1/4."
    noise = torch.randn(50, 1, 64, 64)
    assert m.high_frequency_share(noise).item() == pytest.approx(1 - torch.pi/16, abs=.02)

def test_blur_lowers_the_share_and_noise_raises_it():
    a, b = texture(seed=0), texture(seed=1)
    change = m.nearest_pairs(a, b)
    real = m.high_frequency_share(change)
    assert m.high_frequency_share(gaussian_blur(change, torch.tensor(1.5), 4)) < .3*real
    assert m.high_frequency_share(change + .1*white(change)) > 1.5*real

@pytest.mark.parametrize("period", [2, 4])
@pytest.mark.parametrize("size", [28, 32, 50])
def test_a_lattice_is_seen_and_nothing_else(period, size):
    change = m.nearest_pairs(texture(size=size, seed=0), texture(size=size, seed=1))
    real = m.lattice_score(change)
    dots = torch.zeros(size, size)
    dots[::period, ::period] = .2
    assert real < 3
    assert m.lattice_score(change + dots) > 5*real
    assert m.lattice_score(change + .1*white(change)) < 3

def test_one_image_for_all_has_no_variety():
    real = texture()
    assert m.variety(real, real[:1].expand(20, -1, -1, -1)) == pytest.approx(0, abs=1e-4)
    assert m.variety(real[::2], real[1::2]) == pytest.approx(1, abs=.1)
    assert m.variety(real, torch.cat([real, torch.full_like(real[:5], torch.nan)])) == pytest.approx(1)
    with pytest.raises(MirrorError, match="needs 2 images of each kind: found 40 and 0"):
        m.variety(real, torch.full_like(real, torch.nan))

def test_nearest_pairs_by_hand():
    a = torch.tensor([-.1, .5]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    b = torch.tensor([.0, -.9, .4]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    assert m.nearest_pairs(a, b).mean((1, 2, 3)).tolist() == pytest.approx([.1, -.1])
    with pytest.raises(MirrorError, match="alike in shape"): m.nearest_pairs(a, b[..., :4])

def test_changes_that_are_not_there():
    change = torch.randn(4, 1, 32, 32)
    whole = m.lattice_score(change[:3])
    change[3] = torch.nan
    assert m.high_frequency_share(change, "none").isnan().tolist() == [False, False, False, True]
    assert m.lattice_score(change) == whole
    assert np.isnan(m.lattice_score(change[3:]))
    assert m.high_frequency_share(torch.zeros(1, 1, 8, 8), "none").isnan().all()
