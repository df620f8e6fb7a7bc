"The search finds what drawing everything finds, draws less, and leaves steps that are asked for as they were."
import copy
import pytest, torch
import mirrorcfe.explainer
from torch import nn
from mirrorcfe.autoencoder import AutoencoderForm, LatentAutoencoder
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import intended_probs
from mirrorcfe.losses import gaussian_blur
from mirrorcfe.search import (InBfloat16, Loop, OneChannel, Sketch, draw_closed, draw_open, fold_batch_norms,
                              intended_logits, invert_curve, leads, log_odds, quick_last)
from mirrorcfe.training import MirrorModel

FINE = torch.linspace(0, 1, 100)
COARSE = torch.arange(0, 100, 9)
B = 40

def smooth_curves(seed):
    "Log-odds of the target of `B` images as functions of the step: rising, each with a bend of its own."
    rng = torch.Generator().manual_seed(seed)
    middle, slope, bend = torch.rand(3, B, generator=rng)
    def curve(i, k): return (4 + 16*slope[i])*(k - .2 - .9*middle[i]) + bend[i]*torch.sin(6*k)
    return curve

class Toy:
    "Images that are grey all over, of the value of their step; the classifier sees the curve's log-odds in them."
    def __init__(self, curve, late=0.):
        self.curve, self.late = curve, late
        self.draws = 0
        self.to = torch.ones(B, dtype=torch.long)
        self.start = torch.tensor([[3., -3.]]).repeat(B, 1)

    def logits(self, i, k):
        odds = self.curve(i, k)
        return torch.stack([-odds, odds], -1)/2

    def draw(self, i, k):
        self.draws += len(i)
        x = torch.stack([k, i.float()], 1)[:, :, None, None].expand(-1, 2, 4, 4)   # the second channel says which it is
        return x, self.logits(i, k)

    def intended(self, k): return intended_logits(self.start, 0*self.to, self.to, k)
    def blurred(self, x): return self.logits(x[:, 1, 0, 0].long(), x[:, 0, 0, 0] - self.late)

    def full(self, ks):
        "Steps of the closed loop from all 49 measured ones."
        grid = torch.linspace(0, 1.5, 49)
        rows = torch.arange(B)[:, None].expand(-1, 49)
        measured = self.logits(rows, grid.expand(B, -1))
        wanted = intended_probs(self.start, torch.zeros_like(self.to), self.to, ks).log()
        drawn = (grid[1]*invert_curve(log_odds(measured, self.to), log_odds(wanted, self.to))).clamp(max=1)
        flipped = leads(measured, self.to)
        sturdy = flipped & leads(self.logits(rows, grid.expand(B, -1) - self.late), self.to)
        def first(hit, none): return torch.where(hit.any(1), hit.float().argmax(1), none)
        before = (first(flipped, 49) - 1).clamp(0)
        after = torch.where(sturdy.any(1), first(sturdy, 0), first(flipped, 0))
        promised = leads(wanted, self.to, tie=1e-5)
        drawn = torch.where(promised, drawn.maximum(grid[after][:, None]), drawn.minimum(grid[before][:, None]))
        return torch.where(ks > 0, drawn, 0.)

@pytest.mark.parametrize('late', [0., .08])
@pytest.mark.parametrize('seed', range(3))
def test_the_closed_loop_finds_what_all_drawings_find(seed, late):
    toy = Toy(smooth_curves(seed), late)
    sketch = Sketch(toy.draw, torch.linspace(0, 1.5, 49), toy.to, 2)
    loop = Loop(sketch, toy.intended, toy.blurred)
    drawn, x, _, first = draw_closed(loop, FINE[COARSE], FINE, COARSE)
    want = toy.full(FINE)
    rows = torch.arange(B)[:, None].expand(-1, 100)
    hit = leads(toy.logits(rows, want), toy.to)
    i = torch.where(hit.any(1), hit.float().argmax(1), -1)
    found = torch.where(i >= 0, FINE[i], torch.nan)
    assert torch.equal(first.k.nan_to_num(-1), found.nan_to_num(-1))
    assert torch.allclose(first.drawn_k[i >= 0], want.gather(1, i.clamp(0)[:, None])[i >= 0, 0], atol=1e-5)
    assert torch.allclose(first.x[i >= 0, 0, 0, 0], first.drawn_k[i >= 0])
    assert torch.allclose(drawn[:, -1], want[:, -1], atol=1e-5), 'the reflection is exact'
    gap = toy.curve(rows[:, :12], drawn).sigmoid() - toy.curve(rows[:, :12], want[:, COARSE]).sigmoid()
    assert gap.abs().max() < .05 and torch.equal(x[:, :, 0, 0, 0], drawn)
    assert toy.draws < 27*B, toy.draws/B

@pytest.mark.parametrize('seed', range(3))
def test_the_open_loop_finds_what_all_drawings_find(seed):
    toy = Toy(smooth_curves(seed))
    path, _, first = draw_open(Sketch(toy.draw, FINE, toy.to, 2), toy.intended, COARSE)
    hit = toy.curve(torch.arange(B)[:, None], FINE.expand(B, -1)) > 0
    want = torch.where(hit.any(1), FINE[hit.float().argmax(1)], torch.nan)
    assert torch.equal(first.k.nan_to_num(-1), want.nan_to_num(-1)) and want.isnan().any() and not want.isnan().all()
    assert torch.equal(path[:, :, 0, 0, 0], FINE[COARSE].expand(B, -1)) and toy.draws <= 18*B

def test_where_the_promised_step_is_not_kept_the_search_goes_on():
    "The target leads around the measured turn and only much later for good: the promised step falls into the gap."
    def curve(i, k): return torch.where(k < .45, -2., torch.where((k > .57) & (k < .7), -.1, 8*(k - .4))) + 0*i
    toy = Toy(curve)
    sketch = Sketch(toy.draw, torch.linspace(0, 1.5, 49), toy.to, 2)
    _, _, logits, first = draw_closed(Loop(sketch, toy.intended), FINE[COARSE], FINE, COARSE)
    assert leads(logits, toy.to)[:, -1].all() and not first.k.isnan().any()
    assert (toy.curve(torch.arange(B), first.drawn_k) > 0).all()

@pytest.mark.parametrize('behind, is_seen', [(.1, True), (.6, False)])
def test_a_flip_that_is_taken_back_just_before_the_found_one(behind, is_seen):
    "For one step of the open loop the target leads, then for four it is behind: a little, so that it is looked for."
    flicker, turn = 48, 53   # both between two coarse steps, and bisection looks at none of the flicker's
    assert not ((COARSE >= flicker) & (COARSE < turn)).any()
    def curve(i, k):
        step = (99*k).round()
        return torch.where(step >= turn, 3., torch.where(step == flicker, .1, -behind)) + 0*i
    toy = Toy(curve)
    _, _, first = draw_open(Sketch(toy.draw, FINE, toy.to, 2), toy.intended, COARSE)
    assert ((99*first.k).round() == (flicker if is_seen else turn)).all()
    seen = curve(torch.arange(B), first.k)
    assert torch.allclose(first.achieved_probs[:, 1], torch.stack([-seen, seen], 1).div(2).softmax(1)[:, 1])

def test_the_closed_loop_keeps_the_image_of_an_earlier_flip():
    "Between two measured steps, below the one from which the latent promises the target, the target leads briefly."
    measured = torch.linspace(0, 1.5, 49)
    low, high = .44, .448   # below the last measured step before the turn, .46875
    def curve(i, k): return torch.where((k > low) & (k < high), .2, torch.where(k > .49, 2., 8*(k - .47))) + 0*i
    assert not ((measured > low) & (measured < high)).any()
    toy = Toy(curve)
    sketch = Sketch(toy.draw, measured, toy.to, 2)
    _, _, _, first = draw_closed(Loop(sketch, toy.intended), FINE[COARSE], FINE, COARSE)
    wanted = toy.full(FINE)
    hit = leads(toy.logits(torch.arange(B)[:, None], wanted), toy.to)
    assert (hit.float().argmax(1) < 50).all(), 'the full path flips before the mirror'
    assert torch.equal(first.k, FINE[hit.float().argmax(1)])
    assert ((first.drawn_k > low) & (first.drawn_k < high)).all() and torch.equal(first.x[:, 0, 0, 0], first.drawn_k)

def test_nothing_is_drawn_twice():
    toy = Toy(smooth_curves(0))
    sketch = Sketch(toy.draw, FINE, toy.to, 2)
    every = torch.ones(B, 100, dtype=torch.bool)
    sketch.need(every)
    sketch.need(every)
    x, logits = sketch.draw_at(FINE[[3, 7]].expand(B, -1))
    assert toy.draws == 100*B and torch.equal(x[:, :, 0, 0, 0], FINE[[3, 7]].expand(B, -1))
    assert torch.equal(logits, sketch.logits[:, [3, 7]])

# --- with networks ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def cfe():
    torch.manual_seed(0)
    clf = small_resnet(3, 1, [8, 16, 16], 16, ['a', 'b', 'c']).eval()
    cfe = MirrorCFE(clf, 'paper', steps=1)
    shapes = [(f.shape[1], f.shape[2]) for f in clf.encode(torch.zeros(1, 1, 16, 16)).maps]
    cfe.model = MirrorModel(clf, shapes, 1, 16, cfe.recipe)
    return cfe

@pytest.fixture(scope='module')
def x(): return torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(1))*2 - 1

@pytest.mark.parametrize('ks', [[1.], [0., .3, .55, 1.], 100])
def test_steps_that_are_asked_for_keep_their_bits(cfe, x, ks):
    "The loop as it was before there was a search: all 49 steps drawn, all of them blurred."
    ex = cfe.explain(x, ks=ks)
    encoded = cfe.model.encode(x, full=True)
    s, t = ex.source, ex.target
    grid = torch.linspace(0, 1.5, 49)
    path, logits = cfe.draw_path(encoded, s, t, grid.expand(len(x), -1))
    intended = intended_probs(encoded.logits, s, t, ex.ks).clamp_min(1e-30).log()
    drawn = (grid[1]*invert_curve(log_odds(logits, t), log_odds(intended, t))).clamp(max=1)
    flipped = leads(logits, t)
    seen = torch.stack([leads(cfe.classifier(gaussian_blur(v, 1.)), t) for v in path.unbind(1)], 1) & flipped
    first = torch.where(flipped.any(1), flipped.float().argmax(1), 49)
    after = torch.where(seen.any(1), seen.float().argmax(1), torch.where(first < 49, first, 0))
    promised = leads(intended, t, tie=1e-5)
    before = grid[(first - 1).clamp(0)][:, None]
    drawn = torch.where(promised, drawn.maximum(grid[after][:, None]), drawn.minimum(before))
    drawn = torch.where(ex.ks > 0, drawn, 0.)
    assert torch.equal(ex.drawn_ks, drawn) and ex.first is None
    assert torch.equal(ex.path, cfe.draw_path(encoded, s, t, drawn)[0])

@pytest.mark.parametrize('closed_loop', [True, False])
def test_an_explanation_that_was_searched(cfe, x, closed_loop):
    quick = cfe.explain(x, closed_loop=closed_loop, bs=5)
    full = cfe.explain(x, ks=100, closed_loop=closed_loop)
    assert quick.status == full.status and quick.path.shape[1] == 12
    assert torch.equal(quick.first_k.nan_to_num(-1), full.first_k.nan_to_num(-1))
    assert torch.allclose(quick.x_cf.nan_to_num(0), full.x_cf.nan_to_num(0), atol=1e-3)
    there = [n for n in full.table() if n not in ('confidence_error', 'reason', 'verdict')]
    for n in there: assert quick.table()[n].equals(full.table()[n]) or torch.allclose(
        *(torch.tensor(v.table()[n]).nan_to_num(-1) for v in (quick, full)), atol=1e-3), n
    same = cfe.explain(x, torch.where(torch.arange(12) < 6, full.source, full.target), on_same='mark',
                       closed_loop=closed_loop)
    assert same.first_k[:6].isnan().all() and same.status[:6] == ['already target']*6
    assert torch.equal(same.first_k[6:].nan_to_num(-1), quick.first_k[6:].nan_to_num(-1))
    assert cfe.explain(x[:0], closed_loop=closed_loop).status == []

def test_quickly_means_few_drawings_of_the_steps_asked_for(cfe, x):
    quick, full = (cfe.explain(x, ks=[.25, 1.], quick=q) for q in (True, False))
    assert torch.equal(quick.ks, full.ks) and quick.first is None
    assert torch.allclose(quick.drawn_ks[:, -1], full.drawn_ks[:, -1], atol=1e-3)
    assert len(cfe.explain(x, quick=False).ks) == 100

def test_folded_networks_compute_the_same():
    "A chain that somebody looks into, or that shares a layer, is left alone; a batch norm before a convolution stays."
    torch.manual_seed(0)
    shared = nn.Conv2d(2, 2, 3, padding=1)
    hooked = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    seen = []
    hooked[0].register_forward_hook(lambda m, a, out: seen.append(out))
    plain = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)
    def normed(conv): return nn.Sequential(conv, nn.BatchNorm2d(2))
    net = nn.Sequential(*plain, normed(shared), normed(shared), hooked)
    x = torch.randn(4, 2, 9, 9)
    for _ in range(3): net(x)
    folded = fold_batch_norms(net.eval())
    kinds = [type(m).__name__ for m in folded.modules()]
    assert kinds.count('Identity') == 1 and kinds.count('BatchNorm2d') == 4
    with torch.no_grad(): torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)

def test_a_model_that_changes_is_folded_anew(cfe, x):
    before = cfe.explain(x[:2], ks=[1], quick=True).path
    kept = cfe._quick_model()
    assert cfe._quick_model() is kept
    with torch.no_grad(): cfe.model.G.paint[1].bias += .5
    try: assert (cfe.explain(x[:2], ks=[1], quick=True).path - before).abs().max() > .01
    finally:
        with torch.no_grad(): cfe.model.G.paint[1].bias -= .5

def latent_painter(clf):
    "A painter in the latents of an autoencoder, all of it untrained."
    cfe = MirrorCFE(clf, steps=1)
    autoencoder = LatentAutoencoder(1, AutoencoderForm(4, 2, 4, 8, 4)).eval().requires_grad_(False)
    shapes = [(f.shape[1], f.shape[2]) for f in clf.encode(torch.zeros(1, 1, 16, 16)).maps]
    cfe.model = MirrorModel(clf, shapes, 1, 16, cfe.recipe, autoencoder=autoencoder)
    return cfe

def decoder(model): return type(model.autoencoder.decoder).__name__

def test_only_steps_asked_for_in_the_open_loop_are_drawn_in_bfloat16(cfe, x, monkeypatch):
    cfe = latent_painter(cfe.classifier)
    monkeypatch.setattr(mirrorcfe.explainer, 'fast_bf16', lambda device: False)
    full = cfe.explain(x, ks=[0, .5, 1], closed_loop=False, quick=True)
    monkeypatch.setattr(mirrorcfe.explainer, 'fast_bf16', lambda device: True)
    half = cfe.explain(x, ks=[0, .5, 1], closed_loop=False, quick=True)
    off = (full.path - half.path).abs()
    assert 0 < off.max() < 8*2/255 and off.mean() < .25*2/255   # a few of 256 levels; on average a quarter of one
    assert torch.equal(half.path[:, 0], half.x)
    assert decoder(cfe._model_for([1], closed_loop=False)) == 'InBfloat16'
    for ks, closed_loop in (([1], True), (None, True), (None, False)):
        assert decoder(cfe._model_for(ks, closed_loop)) == 'Sequential'
    monkeypatch.setattr(cfe, 'amp', False)
    assert decoder(cfe._model_for([1], closed_loop=False)) == 'Sequential'

@pytest.mark.parametrize('closed_loop', [True, False])
def test_images_of_a_confidence_are_the_same_however_the_path_is_drawn(cfe, x, closed_loop, monkeypatch):
    "A quick copy encodes the sources in another way; what draws has to be what has encoded."
    cfe = latent_painter(cfe.classifier)
    monkeypatch.setattr(cfe, 'amp', False)
    how = dict(closed_loop=closed_loop, target_confidence=[.4, .6])
    plain, *others = [cfe.explain(x, **kw, **how).target_confidence for kw in
                      (dict(ks=[0, 1]), dict(), dict(ks=[0, 1], quick=True))]
    for quick in others:
        torch.testing.assert_close(quick.drawn_k, plain.drawn_k, rtol=0, atol=1e-3)
        torch.testing.assert_close(quick.x, plain.x, rtol=0, atol=1e-3)

def test_a_copy_draws_the_same_from_what_another_copy_encoded(cfe, x):
    clf = copy.deepcopy(cfe.classifier)
    clf.b[0] += 3   # far from the boundary, so that the way is long
    cfe = latent_painter(clf)
    nn.init.normal_(cfe.model.G.head[1].weight, std=500., generator=torch.Generator().manual_seed(0))
    models = cfe.model, cfe._quick_model()
    encoded = [m.encode(x, full=True) for m in models]
    assert [m.is_prepared(e) for m, e in zip(models, encoded)] == [False, True]
    s = torch.zeros(len(x), dtype=torch.long)
    k = torch.linspace(.1, 1, len(x))
    with torch.no_grad(): drawn = [m.draw(e, s, s + 1, k, full=True)[0] for m in models for e in encoded]
    assert (drawn[0] - x).abs().mean() > 1e-3   # an untrained decoder draws little of what its code says
    for other in drawn[1:]: torch.testing.assert_close(other, drawn[0], rtol=0, atol=1e-4)

def test_bfloat16_gives_back_the_type_it_gets():
    net = nn.Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    assert InBfloat16(net)(x).dtype == torch.float32 and not torch.equal(InBfloat16(net)(x), net(x))
    assert torch.equal(InBfloat16(net.double())(x.double()), net(x.double()))   # doubles stay what they are

@pytest.mark.parametrize('kwargs', [dict(padding=1), dict(stride=2), dict(bias=False), dict(kernel_size=1)])
def test_one_channel_is_the_same_convolution(kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(**dict(in_channels=6, out_channels=1, kernel_size=3) | kwargs), nn.Tanh()).double()
    x = torch.randn(2, 6, 9, 7).double()
    wanted = net(x)
    assert type(quick_last(net)[0]) is OneChannel
    assert torch.allclose(net(x), wanted, atol=1e-12)

@pytest.mark.parametrize('kwargs', [dict(out_channels=2), dict(dilation=2), dict(padding=1, padding_mode='circular')])
def test_other_convolutions_stay(kwargs):
    net = nn.Sequential(nn.Conv2d(**dict(in_channels=6, out_channels=1, kernel_size=3) | kwargs))
    assert type(quick_last(net)[0]) is nn.Conv2d
