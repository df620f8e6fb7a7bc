"The painter, the autoencoder it draws with, the discriminators on frozen maps, and the student."
from dataclasses import replace
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from mirrorcfe import explainer, training
from mirrorcfe.augmentation import heavy_augment, random_affine
from mirrorcfe.autoencoder import (FromDiffusers, LatentAutoencoder, as_autoencoder, autoencoder_form,
                                   check_autoencoder, get_autoencoder, rebuilding_error, train_latent_autoencoder)
from mirrorcfe.classifiers import build_network, small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet, TensorLoader, get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import Classifier
from mirrorcfe.game import Sampler
from mirrorcfe.painter import LatentPainter, add_change, resize_smoothly
from mirrorcfe.projected import FeatureDiscriminator, channel_scales
from mirrorcfe.ssc import csp_mask
from mirrorcfe.student import Student, agreement, get_student, student_loss, train_student
from mirrorcfe.training import get_recipe, mirror_game, mirror_learner, painting_networks, training_images
from tiny import settle

few = settings(max_examples=12, deadline=None)
SHAPES = [(6, 16), (8, 8), (10, 4)]

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path/'cache'))

def some_bytes(n=12, channels=1, size=16, seed=0):
    return torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(seed)).byte()

class TwoMaps(nn.Module):
    "In place of SqueezeNet."
    built = 0
    def __init__(self):
        super().__init__()
        TwoMaps.built += 1

    def forward(self, x): return [x.abs(), F.avg_pool2d(x, 2)]

def a_net(channels=1, size=16, **changes):
    torch.manual_seed(0)
    form = autoencoder_form(channels, size, **dict(latent=4, width=4, deep=8, last=4) | changes)
    return LatentAutoencoder(channels, form).eval().requires_grad_(False)

# --- the painter -----------------------------------------------------------------------------------------------------

@few
@given(mode=st.sampled_from(['full', 'no-csp', 'skip']), residual=st.booleans(), training=st.booleans(),
       side=st.sampled_from([2, 4, 7, 8, 16]), limit=st.sampled_from([None, 4, 16]), seed=st.integers(0, 99))
def test_nothing_changes_where_the_map_has_not_moved(mode, residual, training, side, limit, seed):
    "Whatever the weights: the two passes are the same, and the image is the source to the last bit."
    torch.manual_seed(seed)
    painter = LatentPainter(SHAPES, (4, side), mode, residual, width=16, limit=limit).train(training)
    with torch.no_grad():
        for p in painter.parameters(): p.normal_()
        maps = [torch.rand(2, c, h, h) for c, h in SHAPES][painter.first:]
        delta = painter(maps, torch.randn(2, 4, side, side), maps[-1], torch.ones(2, 1, 4, 4))
        assert delta.shape == (2, 4, side, side) and not delta.any()
        x = torch.rand(2, 1, 32, 32)*2 - 1
        rebuilt = torch.randn(2, 1, 32, 32)
        assert torch.equal(add_change(x, rebuilt, rebuilt), x)
        moved = painter(maps, torch.randn(2, 4, side, side), maps[-1] + 1, torch.ones(2, 1, 4, 4))
    assert moved.any()

def test_only_maps_up_to_the_limit_are_used():
    assert [LatentPainter(SHAPES, (4, 8), limit=n).first for n in (16, 8, 7, 4, 1)] == [0, 1, 2, 2, 2]
    assert LatentPainter(SHAPES, (4, 8)).first == 1, 'that of the latents, unless another is given'

def test_the_mask_decides_where_the_editors_enter():
    painter = LatentPainter(SHAPES, (4, 8), residual=False).eval()
    maps = [torch.rand(2, c, h, h) for c, h in SHAPES][painter.first:]
    code = torch.randn(2, 4, 8, 8)
    on, off = (painter(maps, code, maps[-1] + 1, torch.full((2, 1, 4, 4), v)) for v in (1., 0.))
    assert not torch.equal(on, off)

def test_the_change_is_added_and_clipped():
    x = torch.tensor([.5, -.9, 0.])
    changed = torch.tensor([.9, -.5, .2])
    rebuilt = torch.tensor([.1, -.1, .5])
    shape = lambda v: v.view(1, 1, 1, 3)
    assert add_change(*map(shape, (x, changed, rebuilt))).flatten().tolist() == pytest.approx([1., -1., -.3])
    larger = F.pad(shape(changed), (0, 2, 0, 1))
    assert torch.equal(add_change(shape(x), larger, F.pad(shape(rebuilt), (0, 2, 0, 1))),
                       add_change(*map(shape, (x, changed, rebuilt)))), 'an autoencoder may pad'

@few
@given(tau=st.floats(0, 1), seed=st.integers(0, 99))
def test_of_all_changes_the_shrunk_one_is_nearest_for_its_size(tau, seed):
    "The soft threshold minimises half the squared distance and tau times L1, so nothing near it is better."
    torch.manual_seed(seed)
    u = torch.rand(1, 1, 4, 4).double()*2 - 1
    nothing = torch.zeros_like(u)
    v = add_change(nothing, u, nothing, tau)
    def cost(v): return (v - u).square()/2 + tau*v.abs()
    for step in (-.1, -1e-3, 1e-3, .1): assert (cost(v) <= cost(v + step) + 1e-12).all()
    assert torch.equal(add_change(nothing, u, nothing), u), 'without a threshold all of it'

def test_gradients_ignore_shrinking_and_clipping():
    x = torch.tensor([0., .95, .95, 0.]).view(1, 1, 1, 4)
    u = torch.tensor([.05, .5, .05, -.5]).view(1, 1, 1, 4).requires_grad_()
    drawn = add_change(x, u, torch.zeros_like(u), .1)
    assert drawn.flatten().tolist() == pytest.approx([0., 1., .95, -.4])
    drawn.sum().backward()
    assert u.grad.flatten().tolist() == [1.]*4

@pytest.mark.parametrize('fields', [dict(shrink=-.1), dict(shrink=2.), dict(shrink=float('nan')),
                                    dict(student_margin=-1.), dict(student_margin=float('nan'))])
def test_recipes_that_cannot_be_meant_are_refused(fields):
    with pytest.raises(MirrorError, match='shrink must be 0 or more'): get_recipe(**fields)

def test_resizing_is_a_mean_or_bilinear():
    h = torch.arange(16.).view(1, 1, 4, 4)
    assert torch.equal(resize_smoothly(h, torch.zeros(1, 3, 2, 2)), F.avg_pool2d(h, 2))
    assert resize_smoothly(h, h) is h and resize_smoothly(h, torch.zeros(1, 1, 7, 9)).shape[2:] == (7, 9)

# --- the autoencoder -------------------------------------------------------------------------------------------------

@few
@given(height=st.integers(9, 40), width=st.integers(9, 40), halvings=st.integers(1, 3),
       channels=st.sampled_from([1, 3]))
def test_any_height_and_width_comes_back(height, width, halvings, channels):
    net = a_net(channels, halvings=halvings)
    x = torch.rand(2, channels, height, width)*2 - 1
    code = net.encode(x)
    assert code.shape == (2, 4, -(-height//2**halvings), -(-width//2**halvings)) and net(x).shape == x.shape
    assert net.decode(code).abs().max() <= 1

def test_training_follows_from_the_seed_and_lowers_the_error():
    x = get_dls('digits', device='cpu').train.dataset.x[:200]
    form = autoencoder_form(1, 32, steps=30, bs=32)
    state = torch.get_rng_state()
    net = train_latent_autoencoder(x, form)
    assert torch.equal(torch.get_rng_state(), state)
    assert rebuilding_error(net, x) < .7*rebuilding_error(LatentAutoencoder(1, form).eval(), x)
    short = replace(form, steps=2)
    a, b, c = (train_latent_autoencoder(x, s) for s in (short, short, replace(short, seed=1)))
    probe = x[:4].float()/127.5 - 1
    assert torch.equal(a(probe), b(probe)) and not torch.equal(a(probe), c(probe))
    assert not a.training and not any(p.requires_grad for p in a.parameters())

def test_the_latent_has_variance_one():
    "The batch norm behind the encoder has neither weights nor bias of its own."
    norm = a_net().encoder[-1]
    assert isinstance(norm, nn.BatchNorm2d) and not norm.affine

def test_kept_under_images_and_form(tmp_path):
    form = autoencoder_form(1, 16, latent=4, width=4, deep=8, last=4, steps=2, bs=4)
    x = some_bytes()
    probe = x[:2].float()/127.5 - 1
    first = get_autoencoder(x, form)
    assert torch.equal(get_autoencoder(x, form)(probe), first(probe))
    files = lambda: sorted((tmp_path/'cache'/'autoencoders').glob('*.safetensors'))
    assert len(files()) == 1
    other = x.clone()
    other[-1, 0, 0, 0] ^= 1
    get_autoencoder(other, form)
    get_autoencoder(x, replace(form, steps=3))
    assert len(files()) == 3, 'one pixel and one step make others'
    for f in files():
        damaged = bytearray(f.read_bytes())
        damaged[-3] ^= 1
        f.write_bytes(bytes(damaged))
    with pytest.warns(UserWarning, match='damaged'): again = get_autoencoder(x, form)
    assert torch.equal(again(probe), first(probe)), 'made again'

def test_a_given_one_is_tried_before_it_is_used():
    x = torch.rand(2, 1, 16, 16)*2 - 1
    class Two:
        def __init__(self, encode=lambda v: v.repeat(1, 2, 1, 1), decode=lambda c: c[:, :1]):
            self.encode = encode
            self.decode = decode
    assert check_autoencoder(Two(), x).decode(torch.ones(1, 2, 3, 3)).shape == (1, 1, 3, 3)
    for given, says in ((nn.Identity(), 'encode.x. and decode.c.'), (Two(encode=lambda v: v.flatten(1)), 'maps'),
                        (Two(encode=lambda v: v @ v.new_zeros(3)), 'cannot encode'),
                        (Two(decode=lambda c: c @ c.new_zeros(3)), 'cannot decode'),
                        (Two(decode=lambda c: c), 'number of channels'), (Two(decode=lambda c: c[:, :1, 1:]), 'size'),
                        (Two(decode=lambda c: c[:, :1].detach()), 'differentiated'),
                        (Two(decode=lambda c: c[:, :1]*255), 'range')):
        with pytest.raises(MirrorError, match=says): check_autoencoder(given, x)

def test_the_callers_network_stays_as_it_is():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
        def encode(self, x): return self.conv(x)
        def decode(self, c): return c
    net = Net().train()
    frozen = as_autoencoder(net)
    assert net.training and net.conv.weight.requires_grad
    assert not frozen.training and not frozen.conv.weight.requires_grad

def test_one_of_diffusers():
    diffusers = pytest.importorskip('diffusers')
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(in_channels=1, out_channels=1, encoder_block_out_channels=(8, 8),
                                    decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                                    num_decoder_blocks=(1, 1), latent_channels=2)
    code = FromDiffusers(vae).encode(torch.rand(2, 1, 16, 16)*2 - 1)
    assert FromDiffusers(vae).decode(code).shape == (2, 1, 16, 16)

# --- discriminators on frozen maps -----------------------------------------------------------------------------------

def test_the_score_is_the_mean_over_places_and_maps():
    torch.manual_seed(0)
    maps = [torch.rand(3, c, h, h).double() for c, h in SHAPES]
    D = FeatureDiscriminator([torch.full((c,), 2.) for c, _ in SHAPES], 5, width=6).eval().double()
    c = torch.tensor([0, 4, 2])
    alpha = torch.tensor([0., .5, 1.]).double()
    by_hand = 0
    for f, head, v, e in zip(maps, D.heads, D.v, D.e):
        phi = head(f.float()/2) if next(head.parameters()).dtype == torch.float else head.float()(f.float()/2)
        w = v.weight[0, :, 0, 0].float()
        b = v.bias[0].float()
        places = (phi*w.view(1, -1, 1, 1)).sum(1) + b
        named = (phi*e.weight[c].float()[:, :, None, None]).sum(1)
        by_hand = by_hand + (places + alpha.view(-1, 1, 1)*named).mean((1, 2))/len(maps)
    D.float()
    torch.testing.assert_close(D([f.float() for f in maps], c, alpha.float()), by_hand.float(), rtol=1e-4, atol=1e-5)

def test_scales_are_those_of_each_channel():
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    f = noise*torch.tensor([1., 10., 0.]).view(1, 3, 1, 1)
    assert channel_scales([f])[0].tolist() == pytest.approx([1., 10., .001], rel=.1)

# --- the student -----------------------------------------------------------------------------------------------------

class Bright(nn.Module):
    "Two classes: dark and bright images."
    n_classes = 2
    def freeze(self): return self
    def fingerprint(self): return 'bright'
    def forward(self, x):
        m = 20*x.mean((1, 2, 3))
        return torch.stack([-m, m], 1)

def shades(n=64):
    "Grey images, half dark and half bright."
    level = torch.linspace(40, 215, n).view(-1, 1, 1, 1)
    return (level + 0*some_bytes(n)).byte()

def test_the_student_learns_answers_and_keeps_random_numbers():
    state = torch.get_rng_state()
    student = train_student(Bright(), shades(), steps=60, bs=32)
    assert torch.equal(torch.get_rng_state(), state) and not any(p.requires_grad for p in student.parameters())
    assert agreement(student, Bright(), shades()) > .9

def test_kept_under_classifier_and_images(tmp_path):
    probe = torch.rand(2, 1, 16, 16)
    a = get_student(Bright(), shades(), 2)
    assert torch.equal(get_student(Bright(), shades(), 2)(probe), a(probe))
    class Other(Bright):
        def fingerprint(self): return 'other'
    get_student(Other(), shades(), 2)
    get_student(Bright(), shades(60), 2)
    assert len(list((tmp_path/'cache'/'students').glob('*.safetensors'))) == 3

def test_the_goal_of_the_student_is_limited():
    "A lead of 18 is asked for as one of 4; a student that answers so has no loss, one that overdoes it has some."
    x = torch.zeros(3, 1, 8, 8)
    silent = torch.zeros(3, 1, 8, 8)
    intended = torch.tensor([[10., -8.]]).expand(3, 2)
    answers = lambda *v: (lambda x: torch.tensor([v]).expand(len(x), -1))
    assert student_loss(answers(2., -2.), x, intended, silent) == pytest.approx(0, abs=1e-6)
    assert student_loss(answers(9., -9.), x, intended, silent) > .01

def test_the_goal_of_the_student_keeps_the_lead():
    "Of three classes with logits 9, 6, 0 the first leads by 3; limiting each logit by itself would ask for a tie."
    x = torch.zeros(1, 1, 8, 8)
    intended = torch.tensor([[9., 6., 0.]])
    answers = lambda *v: (lambda x: torch.tensor([v]))
    assert student_loss(answers(3., 0., -.95), x, intended, x) == pytest.approx(0, abs=1e-4)
    assert student_loss(answers(2., 2., -2.), x, intended, x) > .1

def test_the_student_sees_a_blurred_and_noisy_copy():
    seen = []
    def look(x):
        seen.append(x)
        return torch.zeros(len(x), 2)
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    student_loss(look, x, torch.zeros(1, 2), torch.ones_like(x))
    assert seen[0][0, 0, 4, 4].item() == pytest.approx(.1 + .162, abs=2e-3), 'a Gaussian of one pixel'

# --- augmentation ----------------------------------------------------------------------------------------------------

def test_every_image_is_changed_by_its_own_amounts():
    x = torch.zeros(2, 1, 16, 16)
    x[..., 6:10, 3:6] = 1
    a = random_affine(x, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(a[0], a[1])
    b, c = (heavy_augment(x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(b, c) and not torch.equal(b[0], b[1])

def test_a_generator_may_be_on_another_device_than_the_images():
    g = torch.Generator().manual_seed(0)
    before = g.get_state()
    assert heavy_augment(torch.zeros(2, 1, 16, 16, device='meta'), generator=g).device.type == 'meta'
    assert not torch.equal(g.get_state(), before), 'the numbers are those of the generator'

# --- together --------------------------------------------------------------------------------------------------------

def loaders(**kw): return get_dls('digits', bs=16, steps=2, n_train=64, device='cpu', **kw)
SHORT = dict(autoencoder_steps=2, student_steps=2)

def test_an_explainer_with_a_given_autoencoder_needs_it_again(tmp_path):
    torch.manual_seed(0)
    clf = small_resnet()
    class Pool(nn.Module):
        def __init__(self, gain=1.):
            super().__init__()
            self.register_buffer('gain', torch.tensor(gain))
        def encode(self, x): return F.avg_pool2d(x, 4)
        def decode(self, c): return F.interpolate(c*self.gain, scale_factor=4).clamp(-1, 1)
    cfe = MirrorCFE(clf, amp=False, steps=2, **SHORT).fit(loaders(), progress=False, autoencoder=Pool())
    x = loaders().test.dataset[:3][0]
    ex = cfe.explain(x, ks=[0, 1])
    assert torch.equal(ex.path[:, 0], x), 'the path starts at the source'
    cfe.save(tmp_path/'mine')
    back = MirrorCFE.load(tmp_path/'mine', clf, Pool())
    torch.testing.assert_close(back.explain(x, ks=[0, 1]).path, ex.path, rtol=1e-4, atol=1e-4)
    with pytest.raises(MirrorError, match='was given to fit'): MirrorCFE.load(tmp_path/'mine', clf)
    with pytest.raises(MirrorError, match='another autoencoder'): MirrorCFE.load(tmp_path/'mine', clf, Pool(.9))

def test_what_takes_part_in_a_training():
    clf = small_resnet()
    dls = loaders()
    names = lambda **kw: [type(n).__name__ for n in painting_networks(clf, dls, get_recipe(**SHORT | kw))]
    assert names() == ['LatentAutoencoder', 'Student']
    assert names(student=0.) == ['LatentAutoencoder', 'NoneType'] and names(painter='pixels') == ['NoneType', 'Student']
    x = dls.train.one_batch()[0]
    networks = painting_networks(clf, dls, get_recipe(**SHORT))
    for changes, want in ((dict(), {'pixels', 'own'}), (dict(own=False), {'pixels'}), (dict(pixels=False), {'own'})):
        game = mirror_game(clf, x, get_recipe(**SHORT | changes), None, 0, False, True, *networks)
        assert set(game.D) == want and {'autoencoder', 'student'} == set(game.fixed)
        assert not any(p.requires_grad for p in game.fixed.parameters())

def test_a_folded_copy_draws_the_same():
    "But for rounding; the generator is shared, what is frozen is not."
    torch.manual_seed(0)
    clf = small_resnet()
    dls = loaders()
    x = dls.train.one_batch()[0]
    networks = painting_networks(clf, dls, get_recipe(**SHORT))
    game = mirror_game(clf, x, get_recipe(**SHORT, shrink=0.), None, 0, False, True, *networks)
    for p in game.mirror.G.parameters(): p.data.add_(.2*torch.randn_like(p))
    k = torch.linspace(0, 1, len(x))
    far = torch.ones(len(x), dtype=torch.int64)
    game.mirror.G.eval()
    with torch.no_grad(): plain, quick = (m(x, k, far).x_k for m in (game.mirror, game.quick))
    assert (plain - x).abs().max() > .01
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-4)
    assert game.quick.G is game.mirror.G and game.F is game.mirror.F and game.quick.F is not game.F

def test_the_student_looks_ahead_and_the_classifier_does_not():
    clf = small_resnet()
    dls = loaders()
    x, y = dls.train.one_batch()
    networks = painting_networks(clf, dls, get_recipe(**SHORT))
    asked = {}
    for margin in (0., .5):
        game = mirror_game(clf, x, get_recipe(**SHORT | dict(student_margin=margin)), None, 0, False, True, *networks)
        sampler = Sampler(torch.Generator().manual_seed(0), None, lambda classes, u: x[:len(classes)])
        d = game(x, y, sampler)
        asked[margin] = game.generator_losses(d, sampler)
        ahead = d.k + margin*4*d.k*(1 - d.k)
        want = game.F.logits_of(game.mirror.solve(d.z_s, d.source, d.target, ahead))
        torch.testing.assert_close(game.goal_ahead(d, margin), want)
    assert asked[0.]['cls'] == asked[.5]['cls'] and asked[0.]['student'] != asked[.5]['student']

def test_only_grey_images_of_networks_that_average_look_ahead():
    margin = lambda **how: get_recipe(**how).student_margin
    assert margin() == margin(channels=1) == .5
    assert margin(channels=3) == margin(channels=1, is_gap=False) == margin(preset='paper') == 0
    assert margin(channels=1, is_gap=False, painter='pixels') == 0
    assert margin(channels=3, student_margin=.25) == .25

def test_the_students_group_norm_is_group_norm():
    torch.manual_seed(0)
    net = Student(10, 1, 32).double()
    for norm in [m for m in net.modules() if isinstance(m, nn.GroupNorm)]:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(4, 1, 32, 32, dtype=torch.double, requires_grad=True)
    def answers():
        y = net(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    quick = answers()
    for norm in [m for m in net.modules() if isinstance(m, nn.GroupNorm)]: norm.__class__ = nn.GroupNorm
    for a, b in zip(quick, answers()): torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

def test_colour_photographs_get_squeezenet_or_pixels_in_its_place(monkeypatch):
    "By the number of channels; where SqueezeNet has no weights the result says what took its place."
    short = dict(SHORT, student=0., steps=1)
    x = torch.rand(8, 3, 16, 16)*2 - 1
    dl = torch.utils.data.DataLoader(list(zip(x, torch.arange(8) % 2)), 8)
    clf = small_resnet(2, 3, (4, 8), 16)
    monkeypatch.setattr(training, 'SqueezeFeatures', TwoMaps)
    monkeypatch.setattr(TwoMaps, 'built', 0)
    cfe = MirrorCFE(nn.Sequential(clf), amp=False, **short)   # how many channels it takes shows when data come
    monkeypatch.setattr(Classifier, 'wrap', lambda net, *args, **kw: net[0])
    assert cfe.recipe.pixels and set(cfe.fit(dl, 1, progress=False).learn.model.D) == {'squeeze', 'own'}
    assert cfe.recipe == get_recipe(channels=3, **short) and not cfe.recipe.pixels and TwoMaps.built == 1
    def no_weights(): raise MirrorError('no weights here')
    monkeypatch.setattr(training, 'SqueezeFeatures', no_weights)
    with pytest.warns(UserWarning, match='pixels takes the place of SqueezeNet.*no weights here'):
        cfe = MirrorCFE(clf, amp=False, **short).fit(dl, 1, progress=False)
    assert set(cfe.learn.model.D) == {'pixels', 'own'} and cfe.recipe == get_recipe(**short)   # as of grey images
    cfe.recipe = get_recipe(channels=1, **short | dict(prox=5.))
    assert cfe.fit(dl, 1, progress=False).recipe.prox == 5, 'a recipe that was changed by hand is obeyed'

def test_networks_that_average_no_map_get_a_recipe_of_their_own(monkeypatch):
    "Known from the start or opened when data come; grey images alone, and what is asked for counts."
    short = dict(SHORT, steps=1, prox=8.5)
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))*2 - 1
    dl = torch.utils.data.DataLoader(list(zip(x, torch.arange(8) % 2)), 8)
    lenet = build_network('lenet', 2, 1, size=16)
    wanted = get_recipe(channels=1, is_gap=False, **short)
    assert wanted.lr > get_recipe().lr and wanted.prox == 8.5
    assert MirrorCFE(lenet, **short).recipe == wanted
    assert mirror_learner(lenet, dl, amp=False, **short).model.recipe == wanted
    cfe = MirrorCFE(nn.Sequential(lenet), amp=False, **short)
    assert cfe.recipe == get_recipe(**short)
    monkeypatch.setattr(Classifier, 'wrap', lambda net, *args, **kw: net[0])
    seen = []
    def stop(net, dls, recipe, *args):
        seen.append(recipe)
        raise MirrorError('no need to train')
    monkeypatch.setattr(explainer, 'mirror_learner', stop)
    with pytest.raises(MirrorError, match='no need to train'): cfe.fit(dl, 1, progress=False)
    assert seen == [wanted]

def test_training_images_of_any_loader():
    dls = loaders()
    assert torch.equal(training_images(dls), dls.train.dataset.x)
    class Plain:
        "A loader that shows no dataset."
        def __init__(self): self.train = self
        def new(self, **kw): return TensorLoader(ImageSet(dls.train.dataset.x, dls.train.dataset.y), 16)
    assert torch.equal(training_images(Plain()), dls.train.dataset.x)

@pytest.mark.parametrize('mode', ['full', 'no-csp', 'skip'])
@pytest.mark.parametrize('shapes, residual', [
    ([(6, 8), (8, 4), (5, 2)], True), ([(6, 8), (8, 4)], False), ([(8, 4)], True)])
def test_what_is_prepared_once_an_image_changes_nothing(mode, shapes, residual):
    "Any number of maps, also of a size that is no multiple, and steps of rows in any order."
    torch.manual_seed(0)
    painter = LatentPainter(shapes, (4, 6), mode, residual, width=8, limit=8)
    maps = [torch.rand(3, c, s, s) for c, s in shapes]
    code, rows = torch.randn(3, 4, 6, 6), torch.tensor([2, 0, 0, 1])
    f_k = maps[-1][rows] + torch.rand(4, shapes[-1][0], 1, 1)
    mask = (torch.rand(4, 1, *f_k.shape[2:]) > .4).float()
    for p in painter.parameters(): torch.nn.init.normal_(p, std=.3)
    settle(painter, [m[rows] for m in maps], code[rows], f_k, mask)
    with torch.no_grad():
        ready = [v[rows] for v in painter.prepare(maps, code)]
        want = painter([m[rows] for m in maps], code[rows], f_k, mask)
        torch.testing.assert_close(painter.change(ready, code[rows], f_k, mask), want, rtol=1e-4, atol=1e-4)
    assert want.abs().max() > .1
