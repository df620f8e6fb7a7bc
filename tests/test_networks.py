"SSC, generator, discriminator and losses: shapes by hypothesis, axioms, oracles."
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur as reference_blur
from mirrorcfe.core import MirrorError
from mirrorcfe.images import shift
from mirrorcfe.features import cams
from mirrorcfe.generator import (DecoderBlock, Discriminator, MirrorGenerator, batch_spread,
                                 blend_with_source, random_shift)
from mirrorcfe.losses import (adv_loss, augment, cls_loss, discriminator_loss, fea_loss, gaussian_blur, latent_ratio,
                              rec_loss, tri_loss)
from mirrorcfe.ssc import SPE, SSC, csp_mask, min_max_normalise, pair_cams, resize_like, up_block

few = settings(max_examples=15, deadline=None)
sizes = st.integers(1, 5)
seeds = st.integers(0, 99)

def generator(seed): return torch.Generator().manual_seed(seed)

# --- the mask -------------------------------------------------------------------------------------------------------

def mask_by_hand(f, W, s, t, k, rho_l, rho_u):
    "Eq. 13 for one image after the other, one location after the other."
    masks = torch.zeros(len(f), 1, *f.shape[2:])
    for i in range(len(f)):
        threshold = min(max(1 - float(k[i]), rho_l), rho_u)
        for c in (s[i], t[i]):
            u = torch.einsum('n,nhw->hw', W[c], f[i])
            n = (u - u.min())/(u.max() - u.min())
            masks[i, 0][n > threshold] = 1
    return masks

RHO = [(.1, .9), (.25, .6), (0., .5), (.4, .4)]

@pytest.mark.parametrize('C', [3, 40])
@pytest.mark.parametrize('rho', RHO, ids=str)
def test_the_mask_is_that_of_the_equation(rho, C):
    g = generator(0)
    f = torch.randn(6, 8, 5, 7, generator=g, dtype=torch.float64)
    W = torch.randn(C, 8, generator=g, dtype=torch.float64)
    s = torch.arange(6) % C
    t = (s + 1) % C
    k = torch.linspace(0, 1, 6, dtype=torch.float64)
    assert torch.equal(csp_mask(f, W, s, t, k, rho).float(), mask_by_hand(f, W, s, t, k, *rho))

def test_the_thresholds_are_clipped_at_both_ends():
    "A row of eleven locations, 0, .1 .. 1: how many exceed the threshold says what the threshold was."
    f = torch.stack([torch.linspace(0, 1, 11), torch.zeros(11)]).view(1, 2, 1, 11)
    s = torch.tensor([0])
    t = torch.tensor([1])
    def on(k, rho): return csp_mask(f, torch.eye(2), s, t, k, rho).sum().item()
    assert [on(k, (.25, .75)) for k in (0., .35, .55, .9, 1.)] == [3, 4, 6, 8, 8]
    assert [on(k, (.05, .95)) for k in (0., 1.)] == [1, 10]
    assert [on(k, (.45, .45)) for k in (0., 1.)] == [6, 6]

@few
@given(b=sizes, n=sizes, c=st.integers(2, 6), h=sizes, seed=seeds)
def test_the_mask_grows_with_k_and_is_binary(b, n, c, h, seed):
    g = generator(seed)
    f = torch.randn(b, n, h, h, generator=g)
    W = torch.randn(c, n, generator=g)
    s = torch.zeros(b, dtype=torch.long)
    t = torch.ones(b, dtype=torch.long)
    masks = [csp_mask(f, W, s, t, k) for k in (0., .3, .5, .8, 1.)]
    for a, z in zip(masks, masks[1:]): assert (z >= a).all()
    assert all(m.shape == (b, 1, h, h) and ((m == 0) | (m == 1)).all() for m in masks)
    if h > 1: assert masks[0].flatten(1).sum(1).min() >= 1
    assert torch.equal(masks[2], torch.cat([csp_mask(f[i:i+1], W, s[i:i+1], t[i:i+1], .5) for i in range(b)]))

@pytest.mark.parametrize('C', [4, 40])
def test_pair_cams_are_those_of_source_and_target_in_this_order(C):
    f = torch.rand(3, 5, 4, 4)
    W = torch.randn(C, 5)
    s = torch.tensor([0, 1, C - 1])
    t = torch.tensor([C - 1, 0, 2])
    expected = torch.stack([cams(f, W)[torch.arange(3), c] for c in (s, t)], 1)
    torch.testing.assert_close(pair_cams(f, W, s, t), expected)

def test_each_map_is_normalised_by_itself():
    u = torch.randn(3, 4, 5, 6)
    n = min_max_normalise(u)
    for i in range(3):
        for j in range(4):
            v = u[i, j]
            torch.testing.assert_close(n[i, j], (v - v.min())/(v.max() - v.min()))

def test_a_flat_map_prefers_no_location(): assert min_max_normalise(torch.full((1, 2, 3, 3), 7.)).sum() == 0

@pytest.mark.parametrize('rho', [(-.1, .9), (.5, .4), (.1, 1.)])
def test_thresholds_out_of_order(rho):
    one_image = torch.ones(1, 2, 2, 2), torch.ones(3, 2), torch.tensor([0]), torch.tensor([1])
    with pytest.raises(MirrorError, match='rho_l <= rho_u'): csp_mask(*one_image, 0., rho)

# --- editors and controller -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('factor', [1, 2, 3, 4, 8])
def test_the_residual_editor_starts_as_the_identity(factor):
    f_s = torch.rand(2, 6, 4*factor, 4*factor)
    f_k = torch.randn(2, 10, 4, 4)
    assert torch.allclose(SPE(6, 10, factor)(f_s, f_k), f_s)

def test_editors_give_no_negative_maps_and_see_both_inputs():
    f_s = torch.randn(2, 6, 8, 8)
    f_k = torch.randn(2, 10, 4, 4)
    for residual in (True, False):
        spe = SPE(6, 10, 2, residual=residual).eval()
        torch.nn.init.normal_(spe.out.weight)
        u = spe(f_s, f_k)
        assert u.min() == 0 and u.shape == f_s.shape
        assert not torch.equal(u, spe(f_s, f_k.flip(0))) and not torch.equal(u, spe(f_s.flip(0), f_k))

def test_no_pattern_comes_from_an_up_block():
    "Away from the edges, what is the same everywhere stays so; the pixels of a square differ by no fixed pattern."
    block = up_block(6, 3).eval()
    assert block(torch.randn(2, 6, 4, 4)).shape == (2, 3, 8, 8)
    inside = block(torch.ones(1, 6, 8, 8))[..., 4:-4, 4:-4]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside))

@pytest.mark.parametrize('mode', ['full', 'no-csp', 'skip'])
def test_the_controller_passes_on_what_the_mask_says(mode):
    "Half of the mask is on: full edits there, no-csp everywhere, skip nowhere."
    skips = [torch.rand(2, 6, 16, 16), torch.rand(2, 8, 8, 8)]
    f_k = torch.randn(2, 10, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., 2:] = 1
    ssc = SSC([(6, 16), (8, 8), (10, 4)], mode, residual=False).eval()
    for i, (f, g) in enumerate(zip(skips, ssc(skips, f_k, mask))):
        on = resize_like(mask, f).expand_as(f) > 0
        u = f if mode == 'skip' else ssc.editors[i](f, f_k)
        assert torch.equal(g[on], u[on]) and torch.equal(g[~on], (u if mode == 'no-csp' else f)[~on])
    assert mode == 'skip' or not torch.equal(u, f)

def test_resize_like_repeats_pixels():
    u = torch.arange(4.).view(1, 1, 2, 2)
    assert resize_like(u, u) is u
    assert torch.equal(resize_like(u, torch.zeros(1, 1, 4, 6))[0, 0, 0], torch.tensor([0., 0, 0, 1, 1, 1]))
    assert resize_like(u, torch.zeros(1, 1, 4, 6)).shape == (1, 1, 4, 6)

def test_ssc_refuses_an_unknown_mode():
    with pytest.raises(MirrorError, match="found 'half'"): SSC([(4, 8), (8, 4)], 'half')

# --- generator and discriminator ------------------------------------------------------------------------------------

@few
@given(widths=st.lists(st.integers(2, 12), min_size=1, max_size=4), last=st.integers(1, 4), times=st.integers(1, 4),
       channels=st.sampled_from([1, 3]), mode=st.sampled_from(['full', 'no-csp', 'skip']))
def test_the_generator_fits_any_stages(widths, last, times, channels, mode):
    heights = [last*2**i for i in reversed(range(len(widths)))]
    size = heights[0]*times
    shapes = list(zip(widths, heights))
    maps = [torch.rand(2, c, h, h) for c, h in shapes]
    mask = torch.ones(2, 1, last, last)
    G = MirrorGenerator(shapes, channels, size, mode, width=16, floor=8).eval()
    x = G(maps, maps[-1], mask)
    assert x.shape == (2, channels, size, size) and x.abs().max() <= 1
    assert torch.allclose(G([m[:1] for m in maps], maps[-1][:1], mask[:1]), x[:1], atol=1e-5)

STORED_KEYS = ['climbs.0.mix.0.weight', 'climbs.0.up.0.weight', 'paint.1.bias', 'paint.1.weight',
               'ssc.editors.0.B.0.0.weight', 'ssc.editors.0.D.0.0.weight', 'ssc.editors.0.mix.0.weight',
               'ssc.editors.0.out.weight', 'start.0.weight', 'start.1.0.weight', 'top.0.0.weight', 'top.1.0.weight']

def test_stored_weights_find_their_modules():
    "The names of the weights are those of explainers that were stored before."
    G = MirrorGenerator([(6, 8), (10, 4)], 1, 32)
    assert set(STORED_KEYS) <= set(G.state_dict())
    D = Discriminator(1, 32, 3)
    assert {name.split('.')[0] for name in D.state_dict()} == {'body', 'mix', 'whole', 'v', 'e'}

def test_all_inputs_of_the_generator_reach_the_image():
    "The deepest map through `f_k`, every skip where the mask is off, the source itself with `image`."
    maps = [torch.rand(1, 6, 16, 16), torch.rand(1, 8, 8, 8), torch.rand(1, 10, 4, 4)]
    shapes = [(m.shape[1], m.shape[2]) for m in maps]
    x = torch.rand(1, 1, 32, 32)
    inputs = [v.requires_grad_() for v in (x, *maps[:-1], maps[-1].clone())]
    G = MirrorGenerator(shapes, 1, 32, image=True).eval()
    out = G([x, *maps], inputs[-1], torch.zeros(1, 1, 4, 4))
    for v, g in zip(inputs, torch.autograd.grad(out.square().sum(), inputs)): assert g.abs().sum() > 0, v.shape

@pytest.mark.parametrize('mode', ['full', 'no-csp', 'skip'])
def test_the_skips_reach_the_image_through_the_controller(mode):
    "The image depends on the mask in mode full alone, and on the editors in all modes but skip."
    maps = [torch.rand(2, 6, 16, 16), torch.rand(2, 8, 8, 8), torch.rand(2, 10, 4, 4)]
    G = MirrorGenerator([(m.shape[1], m.shape[2]) for m in maps], 1, 32, mode, residual=False).eval()
    def draw(on): return G(maps, maps[-1], torch.full((2, 1, 4, 4), on))
    assert torch.equal(draw(0.), draw(1.)) == (mode != 'full')
    before = draw(1.)
    with torch.no_grad():
        for p in G.ssc.parameters(): p.add_(.1)
    assert torch.equal(draw(1.), before) == (mode == 'skip')

def test_the_decoder_block_takes_any_skip():
    block = DecoderBlock(6, 4, 5)
    for size in (8, 7, 12):
        skip = torch.randn(2, 4, size, size)
        assert block(torch.randn(2, 6, 4, 4), skip).shape == (2, 5, size, size)

def test_the_gate_blends_picture_and_source():
    x = torch.rand(2, 3, 4, 4)*2 - 1
    drawn = torch.randn(2, 4, 4, 4)
    g = 1/(1 + (-drawn[:, 3:]).exp())
    torch.testing.assert_close(blend_with_source(drawn, x), g*x + (1 - g)*drawn[:, :3].tanh())

@few
@given(size=st.sampled_from([8, 17, 28, 32, 64]), channels=st.sampled_from([1, 3]), b=st.integers(1, 3))
def test_the_discriminator_scores_any_size(size, channels, b):
    D = Discriminator(channels, size, 5, width=8, most=16).eval()
    c = torch.zeros(b, dtype=torch.long)
    assert D(torch.randn(b, channels, size, size), c).shape == (b,)

def test_the_class_counts_as_much_as_its_weight_says():
    D = Discriminator(1, 16, 4, width=8).eval()
    x = torch.randn(3, 1, 16, 16)
    c = torch.tensor([0, 1, 2])
    without = D(x, c, 0.)
    with_class = D(x, c)
    assert torch.equal(without, D(x, c.flip(0), 0.)) and not torch.allclose(with_class, D(x, c.flip(0)))
    weights = torch.tensor([0., .3, 1.])
    torch.testing.assert_close(D(x, c, weights), without + weights*(with_class - without))

def test_batch_spread_is_the_mean_deviation_over_the_batch():
    h = torch.randn(5, 3, 4, 4)
    spread = batch_spread(h)
    expected = h.std(0, unbiased=False).mean()
    assert torch.equal(spread[:, :3], h) and spread.shape == (5, 4, 4, 4)
    torch.testing.assert_close(spread[:, 3], expected.expand(5, 4, 4), rtol=1e-4, atol=1e-4)

# --- augmentation ---------------------------------------------------------------------------------------------------

@few
@given(b=sizes, c=st.sampled_from([1, 3]), h=st.integers(5, 12), sigma=st.floats(.2, 2.), seed=seeds)
def test_blur_agrees_with_torchvision_inside(b, c, h, sigma, seed):
    x = torch.rand(b, c, h, h, dtype=torch.float64, generator=generator(seed))*2 - 1
    got = gaussian_blur(x, torch.tensor(sigma))
    want = reference_blur(x, 5, sigma)
    assert torch.allclose(got[..., 2:-2, 2:-2], want[..., 2:-2, 2:-2], atol=1e-6)

def test_blur_of_each_sample_is_its_own():
    x = torch.randn(4, 2, 9, 9)
    sigma = torch.tensor([0., .5, 1., 2.])
    each = torch.cat([gaussian_blur(x[i:i+1], sigma[i:i+1]) for i in range(4)])
    assert torch.allclose(gaussian_blur(x, sigma), each, atol=1e-6)
    assert torch.allclose(gaussian_blur(x, sigma)[0], x[0], atol=1e-6)

@few
@given(dx=st.integers(-3, 3), dy=st.integers(-3, 3))
def test_shift_moves_by_whole_pixels(dx, dy):
    x = torch.randn(1, 1, 8, 8)
    a, b = (slice(max(d, 0), 8 + min(d, 0)) for d in (dy, dx))
    c, d = (slice(max(-d, 0), 8 + min(-d, 0)) for d in (dy, dx))
    assert torch.equal(shift(x, torch.tensor([dx]), torch.tensor([dy]))[..., a, b], x[..., c, d])

@pytest.mark.parametrize('most', [0, 1, 3])
def test_random_shift_reaches_every_place_and_no_other(most):
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 4] = 1
    shifted = random_shift(dot.expand(2000, 1, 9, 9), most, generator(0))
    places = shifted[:, 0].nonzero()[:, 1:].unique(dim=0)
    reached = torch.arange(4 - most, 5 + most)
    assert torch.equal(places, torch.cartesian_prod(reached, reached))

def test_random_things_follow_from_the_generator():
    x = torch.randn(4, 1, 8, 8)
    def draw(seed): return augment(x, torch.ones(4), torch.ones(4)*.1, generator=generator(seed))
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(random_shift(x, 0), x)

def test_each_part_of_the_augmentation_is_there():
    "Noise of each image's own size on a black image; shift and blur of a single dot."
    noise = torch.tensor([0., .1, .4])
    x = torch.zeros(3, 1, 64, 64)
    std = augment(x, torch.zeros(3), noise, generator=generator(0)).flatten(1).std(1)
    torch.testing.assert_close(std, noise, rtol=.05, atol=1e-6)
    x[:, :, 32, 32] = 1
    blurred = augment(x, torch.tensor([0., 1., 2.]), torch.zeros(3), shift=0)
    torch.testing.assert_close(blurred, gaussian_blur(x, torch.tensor([0., 1., 2.])))
    shifted = augment(x.expand(3, 1, 64, 64), torch.zeros(3), torch.zeros(3), shift=5, generator=generator(0))
    assert len(shifted.nonzero()[:, 1:].unique(dim=0)) > 1

# --- losses ---------------------------------------------------------------------------------------------------------

@few
@given(b=sizes, c=st.integers(2, 8), seed=seeds)
def test_cls_loss_is_the_divergence(b, c, seed):
    g = generator(seed)
    got, want = (3*torch.randn(b, c, generator=g) for _ in range(2))
    kl = kl_divergence(Categorical(logits=want), Categorical(logits=got))
    assert torch.allclose(cls_loss(got, want, 'none'), kl, atol=1e-5)
    assert torch.allclose(cls_loss(got, want), kl.mean(), atol=1e-5)
    assert cls_loss(want, want).abs() < 1e-6

def test_losses_are_zero_where_nothing_is_wrong():
    x = torch.randn(3, 1, 4, 4)
    z = torch.randn(3, 5)
    assert rec_loss(x, x) == 0 and fea_loss(z, z) == 0 and adv_loss(torch.zeros(3)) == 0
    assert discriminator_loss(torch.ones(3), -torch.ones(3)) == 0
    assert rec_loss(x[:0], x[:0]) == 0

def test_hinge_losses_by_hand():
    real = torch.tensor([2., .5, -1.])      # 1 - real: -1, .5, 2
    drawn = torch.tensor([-2., -.5, 1.])    # 1 + drawn: -1, .5, 2
    assert discriminator_loss(real, drawn) == pytest.approx(2.5/3 + 2.5/3)
    assert discriminator_loss(real, drawn - 10) == pytest.approx(2.5/3)
    assert adv_loss(drawn) == pytest.approx(.5)

def test_distances_by_hand():
    x = torch.zeros(2, 1, 1, 2)
    y = torch.tensor([[[[1., -3.]]], [[[0., 2.]]]])
    assert rec_loss(y, x) == pytest.approx(6/4)
    assert fea_loss(y.flatten(1), x.flatten(1)) == pytest.approx(6/4)

@few
@given(share=st.floats(.05, .95), a=st.floats(0, .9))
def test_triangulation_accepts_the_straight_line(share, a):
    x_s = torch.zeros(2, 1, 3, 3)
    x_r = torch.ones(2, 1, 3, 3)
    q = torch.full((2,), share/(1 - share))
    assert tri_loss(x_s, x_s + share, x_r, q, a) < 1e-5

def test_triangulation_by_hand():
    x_s = torch.zeros(1, 1, 1, 1)
    x_k = torch.full((1, 1, 1, 1), .8)
    x_r = torch.ones(1, 1, 1, 1)
    q = torch.tensor([1.])
    assert torch.isclose(tri_loss(x_s, x_k, x_r, q), torch.tensor(.8 - 1.2*.2))
    assert torch.isclose(tri_loss(x_s, 1 - x_k, x_r, q), torch.tensor(.8*.8 - .2))
    z_s = torch.zeros(1, 2)
    z_k = torch.tensor([[3., 4]])
    z_r = torch.tensor([[3., 5]])
    assert torch.isclose(latent_ratio(z_s, z_k, z_r), torch.tensor(5.))
    assert latent_ratio(z_s, z_k, z_k).item() == pytest.approx(5e6)      # the divisor has a floor

@pytest.mark.parametrize('a', [-.1, 1.1, math.nan])
def test_the_tolerance_is_checked(a):
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(MirrorError, match='tolerance'): tri_loss(x, x, x, torch.ones(1), a)

def test_all_losses_have_gradients_where_they_should():
    x = torch.full((2, 1, 4, 4), .8).requires_grad_()
    tri_loss(torch.zeros(2, 1, 4, 4), x, torch.ones(2, 1, 4, 4), torch.ones(2)).backward()
    assert x.grad.abs().sum() > 0
    for loss in (cls_loss, fea_loss):
        got = torch.randn(2, 3, requires_grad=True)
        intended = torch.randn(2, 3, requires_grad=True)
        loss(got, intended).backward()
        assert got.grad is not None and intended.grad is None
    z = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    assert not latent_ratio(*z).requires_grad
