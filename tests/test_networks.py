"SSC, generator, discriminator and losses: shapes by hypothesis, axioms, oracles."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur as reference_blur
from mirrorcfe.core import MirrorError
from mirrorcfe.classifiers import shift
from mirrorcfe.generator import Discriminator, MirrorGenerator, random_shift
from mirrorcfe.losses import adv_loss, cls_loss, discriminator_loss, augment, fea_loss, gaussian_blur, latent_ratio, rec_loss, tri_loss
from mirrorcfe.ssc import SPE, SSC, csp_mask, unit_range

few = settings(max_examples=15, deadline=None)
sizes = st.integers(1, 5)

@few
@given(b=sizes, n=sizes, c=st.integers(2, 6), h=sizes, seed=st.integers(0, 99))
def test_the_mask_grows_with_k_and_is_binary(b, n, c, h, seed):
    g = torch.Generator().manual_seed(seed)
    f, W = torch.randn(b, n, h, h, generator=g), torch.randn(c, n, generator=g)
    s, t = torch.zeros(b, dtype=torch.long), torch.ones(b, dtype=torch.long)
    masks = [csp_mask(f, W, s, t, k) for k in (0., .3, .5, .8, 1.)]
    for a, z in zip(masks, masks[1:]): assert (z >= a).all()
    assert all(m.shape == (b, 1, h, h) and ((m == 0) | (m == 1)).all() for m in masks)
    if h > 1: assert masks[0].flatten(1).sum(1).min() >= 1
    assert torch.equal(masks[2], torch.cat([csp_mask(f[i:i+1], W, s[i:i+1], t[i:i+1], .5) for i in range(b)]))

def test_a_flat_map_points_nowhere(): assert unit_range(torch.full((1, 2, 3, 3), 7.)).sum() == 0

@pytest.mark.parametrize('rho', [(-.1, .9), (.5, .4), (.1, 1.)])
def test_thresholds_out_of_order(rho):
    with pytest.raises(MirrorError, match='rho_l <= rho_u'): csp_mask(torch.ones(1, 2, 2, 2), torch.ones(3, 2), torch.tensor([0]), torch.tensor([1]), 0., rho)

@pytest.mark.parametrize('factor', [1, 2, 3, 4, 8])
def test_the_residual_editor_starts_as_the_identity(factor):
    f_s, f_k = torch.rand(2, 6, 4*factor, 4*factor), torch.randn(2, 10, 4, 4)
    assert torch.allclose(SPE(6, 10, factor)(f_s, f_k), f_s)

@few
@given(widths=st.lists(st.integers(2, 12), min_size=1, max_size=4), last=st.integers(1, 4), times=st.integers(1, 4), channels=st.sampled_from([1, 3]), mode=st.sampled_from(['full', 'no-csp', 'skip']))
def test_the_generator_fits_any_stages(widths, last, times, channels, mode):
    heights = [last*2**i for i in reversed(range(len(widths)))]
    maps = [torch.rand(2, c, h, h) for c, h in zip(widths, heights)]
    G = MirrorGenerator([(c, h) for c, h in zip(widths, heights)], channels, heights[0]*times, mode, width=16, floor=8).eval()
    x = G(maps, maps[-1], torch.ones(2, 1, last, last))
    assert x.shape == (2, channels, heights[0]*times, heights[0]*times) and x.abs().max() <= 1
    one = G([m[:1] for m in maps], maps[-1][:1], torch.ones(1, 1, last, last))
    assert torch.allclose(one, x[:1], atol=1e-5)

@few
@given(size=st.sampled_from([8, 17, 28, 32, 64]), channels=st.sampled_from([1, 3]), b=st.integers(1, 3))
def test_the_discriminator_scores_any_size(size, channels, b):
    D = Discriminator(channels, size, 5, width=8, most=16).eval()
    c = torch.zeros(b, dtype=torch.long)
    assert D(torch.randn(b, channels, size, size), c).shape == (b,)

@few
@given(b=sizes, c=st.sampled_from([1, 3]), h=st.integers(5, 12), sigma=st.floats(.2, 2.))
def test_blur_agrees_with_torchvision_inside(b, c, h, sigma):
    x = torch.rand(b, c, h, h, dtype=torch.float64)*2 - 1
    got, want = gaussian_blur(x, torch.tensor(sigma)), reference_blur(x, 5, sigma)
    assert torch.allclose(got[..., 2:-2, 2:-2], want[..., 2:-2, 2:-2], atol=1e-6)

def test_blur_of_each_sample_is_its_own():
    x, s = torch.randn(4, 2, 9, 9), torch.tensor([0., .5, 1., 2.])
    assert torch.allclose(gaussian_blur(x, s), torch.cat([gaussian_blur(x[i:i+1], s[i:i+1]) for i in range(4)]), atol=1e-6)
    assert torch.allclose(gaussian_blur(x, s)[0], x[0], atol=1e-6)

@few
@given(dx=st.integers(-3, 3), dy=st.integers(-3, 3))
def test_shift_moves_by_whole_pixels(dx, dy):
    x = torch.randn(1, 1, 8, 8)
    a, b = (slice(max(d, 0), 8 + min(d, 0)) for d in (dy, dx))
    c, d = (slice(max(-d, 0), 8 + min(-d, 0)) for d in (dy, dx))
    assert torch.equal(shift(x, torch.tensor([dx]), torch.tensor([dy]))[..., a, b], x[..., c, d])

def test_random_things_follow_from_the_generator():
    x = torch.randn(4, 1, 8, 8)
    same = [augment(x, torch.ones(4), torch.ones(4)*.1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    assert torch.equal(random_shift(x, 0), x)

@few
@given(b=sizes, c=st.integers(2, 8), seed=st.integers(0, 99))
def test_cls_loss_is_the_divergence(b, c, seed):
    g = torch.Generator().manual_seed(seed)
    got, want = (3*torch.randn(b, c, generator=g) for _ in range(2))
    kl = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=l) for l in (want, got)))
    assert torch.allclose(cls_loss(got, want, 'none'), kl, atol=1e-5)
    assert cls_loss(want, want).abs() < 1e-6

def test_losses_of_nothing_lost():
    x, z = torch.randn(3, 1, 4, 4), torch.randn(3, 5)
    assert rec_loss(x, x) == 0 and fea_loss(z, z) == 0 and adv_loss(torch.zeros(3)) == 0
    assert discriminator_loss(torch.ones(3), -torch.ones(3)) == 0
    assert rec_loss(x[:0], x[:0]) == 0

@few
@given(share=st.floats(.05, .95), a=st.floats(0, .9))
def test_triangulation_is_content_on_the_straight_line(share, a):
    x_s, x_r = torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3)
    q = torch.full((2,), share/(1 - share))
    assert tri_loss(x_s, x_s + share, x_r, q, a) < 1e-5

def test_triangulation_by_hand():
    x_s, x_k, x_r, q = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), .8), torch.ones(1, 1, 1, 1), torch.tensor([1.])
    assert torch.isclose(tri_loss(x_s, x_k, x_r, q), torch.tensor(.8 - 1.2*.2))
    assert torch.isclose(tri_loss(x_s, 1 - x_k, x_r, q), torch.tensor(.8*.8 - .2))
    assert torch.isclose(latent_ratio(torch.zeros(1, 2), torch.tensor([[3., 4]]), torch.tensor([[3., 5]])), torch.tensor(5.))

def test_all_losses_have_gradients_where_they_should():
    x = torch.full((2, 1, 4, 4), .8).requires_grad_()
    tri_loss(torch.zeros(2, 1, 4, 4), x, torch.ones(2, 1, 4, 4), torch.ones(2)).backward()
    assert x.grad.abs().sum() > 0
    l = torch.randn(2, 3, requires_grad=True)
    want = torch.randn(2, 3, requires_grad=True)
    cls_loss(l, want).backward()
    assert l.grad is not None and want.grad is None

def test_ssc_refuses_an_unknown_mode():
    with pytest.raises(MirrorError, match="found 'half'"): SSC([(4, 8), (8, 4)], 'half')
