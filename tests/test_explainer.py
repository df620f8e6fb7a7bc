"Training and explaining: determinism, every switch, what is drawn and where, saving, every refusal."
import copy
import numpy as np, pytest, torch
from torch import nn
from mirrorcfe.classifiers import get_classifier, small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE, _flip_bounds
from mirrorcfe.features import Classifier, Encoded, intended_probs, kfe_features
from mirrorcfe.multiclass import swap_logits
from mirrorcfe.search import first_that_holds, invert_curve, leads, log_odds
from mirrorcfe.ssc import csp_mask
from mirrorcfe.training import PRESETS, MirrorModel, get_recipe, mirror_learner

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

def loaders(**kw): return get_dls('digits', **{'bs': 16, 'steps': 2, 'device': 'cpu'} | kw)

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits', device='cpu')

@pytest.fixture(scope='module')
def cfe(clf): return MirrorCFE(clf, amp=False, **SHORT).fit(loaders(steps=10), epochs=2, progress=False)

@pytest.fixture(scope='module')
def x(): return loaders().test.one_batch()[0]

# --- training --------------------------------------------------------------------------------------------------------

def weights(learn): return learn.model.G.state_dict()
def same(a, b): return all(torch.equal(a[n], b[n]) for n in a)

def test_fit_follows_from_the_seed(clf):
    def fit(seed):
        learn = mirror_learner(clf, loaders(), seed=seed, steps=4, amp=False, **SHORT)
        return weights(learn.fit_game(progress=False))
    a, b, c = fit(1), fit(1), fit(2)
    assert same(a, b) and not same(a, c)

def test_the_classifier_does_not_change(clf):
    before = copy.deepcopy(clf.state_dict())
    mirror_learner(clf, loaders(), steps=2, amp=False, **SHORT).fit_game(progress=False)
    assert same(before, clf.state_dict()) and not clf.training

SWITCHES = [dict(preset='paper'), dict(mode='skip'), dict(mode='no-csp'), dict(residual=False), dict(kfe='location'),
            dict(solver='prob'), dict(solver='naive'), dict(solver='lbfgs'), dict(amp=True), dict(channels_last=False)]

@pytest.mark.parametrize('changes', SWITCHES, ids=lambda c: ' '.join(f'{k}={v}' for k, v in c.items()))
def test_every_switch_trains(clf, changes):
    how = {'steps': 1, 'amp': False} | SHORT | changes
    learn = mirror_learner(clf, loaders(steps=1), **how).fit_game(progress=False)
    assert all(v.isfinite().all() for v in weights(learn).values() if v.is_floating_point())

def test_a_loss_of_nan_stops_with_advice(clf):
    learn = mirror_learner(clf, loaders(), steps=2, prox=float('nan'), amp=False, **SHORT)
    with pytest.raises(Exception, match='lower lr='): learn.fit_game(progress=False)

def test_images_that_cannot_be_learned_from(clf):
    images = loaders().train.dataset[:24][0]
    def fit(x, epochs=1):
        dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(len(x)) % 10), 12)
        MirrorCFE(clf, 'paper', amp=False, steps=2, width=8).fit(dl, epochs, progress=False)
    with pytest.raises(MirrorError, match='a loader has no batches'): fit(images[:0])
    images[20] = torch.nan   # not in the first batch, which is looked at before
    with pytest.raises(MirrorError, match='images hold NaN or infinity'): fit(images)

def test_recipes():
    assert set(PRESETS) == {'paper', 'default'} and get_recipe(get_recipe('paper'), a=.4).a == .4
    paper = get_recipe('paper')
    assert (paper.cls, paper.adv, paper.rec, paper.fea, paper.tri, paper.a) == (1, 1, 1, 1, 2, .2)

def test_two_classes_of_one_weight_vector_are_refused(clf, cfe, x):
    "When it is trained for that pair, and when an image is sent from one to the other; all other pairs go on."
    twin = copy.deepcopy(cfe)
    W = twin.classifier.W
    with torch.no_grad(): W[9] = W[4]*(1 + 1e-7)
    source = twin.classifier(x).argmax(1)
    four = x[source == 4] if (source == 4).any() else x[source == 9]
    says = 'no mirror between the classes (4 and 9|9 and 4): they share one weight vector'
    for target in ('4' if not (source == 4).any() else '9', 'runner-up', None):
        with pytest.raises(MirrorError, match=says): twin.explain(four, target, ks=2)
    with pytest.raises(MirrorError, match=says): twin.explain_all(four[:1], ks=2)
    assert len(twin.explain(four[:1], '8', ks=2)) == len(twin.explain(four[:1], 'closest', ks=2)) == 1
    with pytest.raises(MirrorError, match=says):
        MirrorCFE(twin.classifier, pair=('4', '9'), amp=False, **SHORT).fit(loaders(), epochs=1, progress=False)

def test_data_of_another_kind_is_refused(clf):
    with pytest.raises(MirrorError, match='28x28|32x32'): mirror_learner(clf, loaders(size=28))
    with pytest.raises(MirrorError, match='no training image of class'):
        mirror_learner(clf, loaders(pair=(4, 9)), steps=1, **SHORT).fit_game(progress=False)

# --- the closed loop, on curves made by hand -------------------------------------------------------------------------

class Curve(MirrorCFE):
    """Two classes. The intended log-odds of the target are 10(k - .5), those of the image drawn at k' 10(k' - middle).
    An image is grey all over, of the value k', so that no blur changes it; blurred, it is the target above `sturdy`."""
    def __init__(self, middle, sturdy=None):
        self.middle, self.sturdy, self.classifier = middle, middle if sturdy is None else sturdy, self.judge

    def logits(self, k, middle): return torch.stack([-5*(k - middle), 5*(k - middle)], -1)
    def judge(self, x): return self.logits(x[:, 0, 0, 0], self.sturdy)
    def draw_path(self, encoded, source, target, k, bs=256, progress=False):
        return k[:, :, None, None, None].expand(*k.shape, 1, 8, 8), self.logits(k, self.middle)
    def latent_probs(self, encoded, source, target, ks): return intended_probs(encoded.logits, source, target, ks), None

    def drawn(self, ks, **kw):
        encoded = Encoded([], torch.zeros(1, 1), self.logits(torch.zeros(1), .5))
        return self.calibrate(encoded, torch.tensor([0]), torch.tensor([1]), torch.tensor(ks), **kw)[0]

GRID = torch.linspace(0, 1.5, 49)   # the steps that are measured
def last_below(k): return GRID[GRID < k].max().item()
def first_above(k): return GRID[GRID > k].min().item()

@pytest.mark.parametrize('middle', [.5, .3, .62])
def test_the_loop_inverts_the_curve(middle):
    "Without a blur, k' = k + middle - .5, from 0 to 1."
    ks = torch.linspace(.05, 1, 20)
    assert torch.allclose(Curve(middle).drawn(ks.tolist(), blur_sigma=0), (ks + middle - .5).clamp(0, 1), atol=1e-4)

def test_the_loop_starts_at_the_source_whatever_the_curve():
    for curve in (Curve(-1.), Curve(.2), Curve(.8), Curve(1.2)):
        assert curve.drawn([0., .01])[0] == 0 and curve.drawn([0., .01], blur_sigma=0)[0] == 0
    assert Curve(.8).drawn([.01]) > .3

def test_no_step_beyond_the_reflection_without_need():
    "The confidence of k = 1 is only reached at 1.3, but the flip is there at .8: the loop stops at 1."
    assert Curve(.8).drawn([.5, .9, 1.], blur_sigma=0).tolist() == pytest.approx([.8, 1., 1.], abs=1e-4)
    assert Curve(.8).drawn([.9, 1.]).max() == 1

def test_the_flip_is_looked_for_beyond_the_reflection():
    first = first_above(1.2)
    assert Curve(1.2).drawn([.25, .6, 1.]).tolist() == pytest.approx([.95, first, first], abs=1e-4)
    assert Curve(1.2).drawn([.6, 1.], reach=1.).max() == 1, 'not found within reach: no bound'

def test_the_flip_waits_for_an_image_that_survives_the_blur():
    drawn = Curve(.3, sturdy=.7).drawn([.4, .45, .5, .51, .8, 1.])
    before, after = last_below(.3), first_above(.7)
    assert drawn.tolist() == pytest.approx([.2, .25, before, after, after, .8], abs=1e-4)

def test_before_the_mirror_nothing_is_drawn_that_has_flipped():
    "The curve jumps: the inverse of what k < .5 intends lies between two measured steps, one of them flipped."
    drawn = Curve(.49).drawn([.4, .499, .5])
    assert (drawn <= last_below(.49)).all()

def test_at_the_mirror_the_source_class_keeps_the_image():
    "k = .5 is a tie: it belongs to the source, however it was rounded."
    drawn = Curve(.3, sturdy=.7).drawn([.5 - 1e-7, .5, .5 + 1e-7])
    assert (drawn <= .3).all()

def test_where_nothing_survives_the_first_flip_must_do():
    drawn = Curve(.3, sturdy=9.).drawn([.5, .6, 1.])
    assert drawn.tolist() == pytest.approx([last_below(.3), .4, .8], abs=1e-4)

class ThirdClass(Curve):
    "A third class is ahead of the target until k' = .7, except in blurred images, which are the target from .6 on."
    def logits(self, k, middle):
        third = torch.where(k < .7, 2., -9.) if middle == .5 else torch.full_like(k, -9.)
        return torch.stack([torch.zeros_like(k), 10*(k - middle), third], -1)
    def drawn(self, ks):
        encoded = Encoded([], torch.zeros(1, 1), torch.tensor([[5., -5, -9]]))
        return self.calibrate(encoded, torch.tensor([0]), torch.tensor([1]), torch.tensor(ks))[0]

def test_an_image_that_is_the_target_only_when_blurred_is_no_flip():
    assert ThirdClass(.5, sturdy=.6).drawn([.51]).tolist() == pytest.approx([first_above(.7)], abs=1e-4)

def test_inversion():
    steps = torch.tensor([[-4., -2, -3, 2, 6]])
    wanted = torch.tensor([[-9., -4, -3, -2, 0, 4, 6, 9]])
    assert torch.allclose(invert_curve(steps, wanted), torch.tensor([[0., 0, .5, 1, 2.5, 3.5, 4, 4]]), atol=1e-6)

def test_flip_bounds_of_every_kind():
    rows = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    sturdy = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    first = first_that_holds(rows, lambda j, asked: sturdy.gather(1, j[:, None])[:, 0])
    before, after = _flip_bounds(rows, first)
    assert before[:, 0].tolist() == [1, 0, 0, 4] and after[:, 0].tolist() == [3, 4, 0, 0]
    none = torch.full((4,), -1)
    assert torch.equal(first_that_holds(rows, lambda j, asked: asked & False), none)
    assert _flip_bounds(rows, none)[1][:, 0].tolist() == [2, 1, 0, 0]

def test_rounding_does_not_decide_on_the_mirror():
    t = torch.tensor([1, 1])
    even = torch.tensor([[1., 1 + 1e-6, -5], [1 + 1e-6, 1., -5]])      # k = .5, rounded either way
    assert leads(even, t, tie=1e-5).tolist() == [False, False]
    assert leads(even + torch.tensor([0, 1e-3, 0]), t, tie=1e-5).tolist() == [True, True]

def testlog_odds():
    logits, c = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 2])
    p = logits.softmax(-1)
    want = torch.stack([torch.logit(p[b, :, i]) for b, i in enumerate(c)])
    assert torch.allclose(log_odds(logits, c), want, atol=1e-5)
    assert torch.equal(leads(logits, c), logits.argmax(-1) == c[:, None])

# --- explaining ------------------------------------------------------------------------------------------------------

def test_explain_is_the_same_alone_and_in_a_batch(cfe, x):
    ks = torch.linspace(0, 1, 11)
    whole = cfe.explain(x[:4], ks=ks, bs=9)
    for i in range(4):
        one = cfe.explain(x[i:i+1], whole.target[i:i+1], ks=ks)
        assert torch.allclose(one.path[0], whole.path[i], atol=2e-3)
        assert torch.allclose(one.achieved[0], whole.achieved[i], atol=2e-3)

@pytest.mark.parametrize('closed_loop', [True, False])
def test_images_and_confidences_are_those_of_the_drawn_steps(cfe, clf, x, closed_loop):
    e = cfe.explain(x[:3], ks=[0, .3, .6, 1], closed_loop=closed_loop)
    encoded = cfe.model.encode(x[:3], full=True)
    for j in range(4):
        drawn, _ = cfe.model.draw(encoded, e.source, e.target, e.drawn_ks[:, j])
        assert torch.allclose(e.path[:, j], drawn, atol=1e-4)
        assert torch.allclose(e.achieved_probs[:, j], clf(drawn).softmax(1), atol=1e-4)
    want = intended_probs(encoded.logits, e.source, e.target, [0, .3, .6, 1])
    assert torch.allclose(e.intended_probs, want, atol=1e-5)
    assert torch.equal(e.drawn_ks, e.ks.expand(3, 4)) == (not closed_loop)

@pytest.mark.parametrize('n_classes, features, solver', [(10, 16, 'closed'), (10, 4, 'closed'), (10, 16, 'naive')])
def test_what_is_intended_is_what_the_latents_have(x, n_classes, features, solver):
    torch.manual_seed(0)
    clf = small_resnet(n_classes, 1, (4, features), x.shape[-1]).freeze()
    clf.head.weight.data *= 1500   # answers as sharp as those of a trained network
    cfe = MirrorCFE(clf, 'paper', solver=solver)
    shapes = [tuple(m.shape[1:3]) for m in clf.encode(x[:1]).maps]
    cfe.model = MirrorModel(clf, shapes, 1, x.shape[-1], cfe.recipe)
    e = cfe.explain(x[:6], ks=[0, .5, 1], closed_loop=False)
    z = clf.encode(e.x).z
    latents = [clf.logits_of(cfe.model.solve(z, e.source, e.target, k)) for k in (0., .5, 1.)]
    torch.testing.assert_close(e.intended_probs, torch.stack(latents, 1).softmax(2), atol=1e-3, rtol=0)
    off = (latents[2] - swap_logits(clf.logits_of(z), e.source, e.target)).norm(dim=1)
    torch.testing.assert_close(e.residual, off, atol=1e-2, rtol=1e-3)
    missed = features < n_classes or solver == 'naive'
    assert (e.residual > .1).all() if missed else (e.residual < .1).all()
    assert e.table().residual.tolist() == e.residual.tolist()
    short = e.intended_probs[:, 0].gather(1, e.source[:, None])[:, 0] - e.intended[:, -1] > .1
    assert ['the swap has no latent' in v for v in e.verdict] == short.tolist()
    assert short.any() == (solver == 'closed' and missed) or solver == 'naive'

def test_closing_the_loop_lowers_the_confidence_error(cfe, x):
    versions = [cfe.explain(x[:8], ks=torch.linspace(0, 1, 21), closed_loop=c) for c in (False, True)]
    before, after = ((e.intended - e.achieved).abs().mean() for e in versions)
    assert after < before

def test_a_number_of_steps(cfe):
    for n in (5, np.int64(5), np.int32(5)): assert cfe.grid(n).tolist() == [0, .25, .5, .75, 1]
    for n in (0, -3, 10**6, 10**400, True, 5., np.float32(5)):
        with pytest.raises(MirrorError, match='ks must be steps'): cfe.grid(n)

def test_targets(cfe, clf, x):
    s = clf(x[:6]).argmax(1)
    assert torch.equal(cfe.explain(x[:6], ks=[0, 1]).target, clf(x[:6]).topk(2).indices[:, 1])
    t = (s + 3) % 10
    for given in (t, t.tolist(), [clf.classes[i] for i in t]): assert torch.equal(cfe.targets(clf(x[:6]), given), t)

def test_truth_is_kept_as_it_was_given(cfe, clf, x):
    truth = torch.tensor([7, 0, 3])
    for given in (truth, truth.tolist()):
        e = cfe.explain(x[:3], ks=[1], truth=given)
        assert torch.equal(e.truth, truth) and e.table().truth.tolist() == ['7', '0', '3']
        assert torch.equal(e.source, clf(x[:3]).argmax(1))
    assert cfe.explain(x[:3], ks=[1]).truth is None
    assert cfe.explain_all(x[:3], [1, 2], ks=[1], truth=truth).truth.tolist() == [7, 7, 0, 0, 3, 3]

@pytest.mark.parametrize('name, value, says', [
    ('quick', 'no', 'True, False or None'), ('quick', 0, 'True, False or None'),
    ('closed_loop', 'no', 'True or False'), ('closed_loop', None, 'True or False')])
def test_what_is_no_switch_is_refused(cfe, x, name, value, says):
    with pytest.raises(MirrorError, match=f'^{name} must be {says}: found {value!r}$'):
        cfe.explain(x[:1], **{name: value})

@pytest.mark.parametrize('bs', [np.int64(2), 1, 1000])
def test_batch_sizes(cfe, x, bs):
    assert torch.allclose(cfe.explain(x[:2], ks=[0, 1], bs=bs).path, cfe.explain(x[:2], ks=[0, 1]).path, atol=2e-3)

def test_empty_batch(cfe, x):
    e = cfe.explain(x[:0], ks=[0, 1])
    assert len(e) == 0 and e.path.shape == (0, 2, 1, 32, 32) and e.status == [] and len(e.table()) == 0

def test_the_network_gets_no_empty_batch(cfe, x, monkeypatch):
    "Many a network cannot reshape one."
    sizes = []
    encode = Classifier.encode
    def noted(self, x):
        sizes.append(len(x))
        return encode(self, x)
    monkeypatch.setattr(Classifier, 'encode', noted)
    cfe.explain(x[:2])
    assert sizes and 0 not in sizes

def test_already_target_is_marked_not_drawn(cfe, clf, x):
    "The rows of the others are theirs, whatever stands between them."
    s = clf(x[:4]).argmax(1)
    t = torch.where(torch.tensor([True, False, True, False]), s, (s + 1) % 10)
    e = cfe.explain(x[:4], t, ks=[0, 1], on_same='mark', target_confidence=[.5])
    assert e.status[0] == e.status[2] == 'already target' and e.x_cf[[0, 2]].isnan().all()
    at = e.target_confidence
    for v in (e.path, e.intended_probs, e.achieved_probs, e.drawn_ks, at.x, at.k): assert v[[0, 2]].isnan().all()
    alone = cfe.explain(x[[1, 3]], t[[1, 3]], ks=[0, 1], target_confidence=[.5])
    for name in ('path', 'intended_probs', 'achieved_probs', 'drawn_ks'):
        assert torch.allclose(getattr(e, name)[[1, 3]], getattr(alone, name), atol=2e-3), name
    first, second = alone.target_confidence.status
    assert at.status == [['already target'], first, ['already target'], second]

def test_never_flipped_is_data(cfe, x):
    e = cfe.explain(x[:3], ks=[0])
    assert e.status == ['never flipped']*3 and e.first_k.isnan().all() and e.x_cf.isnan().all() and all(e.reason)
    with pytest.raises(MirrorError, match='ks that reach 1'): e.x_reflection

def test_drawing_leaves_bf16_as_it_was(cfe, x):
    cfe.model.amp = True
    try:
        cfe.explain(x[:1], ks=[1])
        assert cfe.model.amp
        e = cfe.model.encode(x[:1])
        with pytest.raises(MirrorError): cfe.draw_path(e, torch.tensor([0]), torch.tensor([99]), torch.tensor([[.5]]))
        assert cfe.model.amp
    finally: cfe.model.amp = False

def test_all_targets_are_those_of_one_at_a_time(cfe, clf, x):
    every = cfe.explain_all(x[:2], ks=[0, 1])
    assert len(every) == 18 and not (every.source == every.target).any()
    one = cfe.explain(x[1:2], every.target[12:13], ks=[0, 1])
    assert torch.allclose(one.path[0], every.path[12], atol=2e-3)
    assert cfe.explain_all(x[:2], [3, '4'], ks=[1]).target.tolist() == [3, 4]*2

@pytest.mark.parametrize('mode', ['full', 'no-csp', 'skip'])
def test_masks_are_those_of_the_drawn_steps(mode):
    torch.manual_seed(0)
    clf = small_resnet(3, 1, [8, 16, 16], 16, ['a', 'b', 'c']).eval()
    cfe = MirrorCFE(clf, 'paper', mode=mode, steps=1)
    x = torch.rand(4, 1, 16, 16)*2 - 1
    e = clf.encode(x)
    cfe.model = MirrorModel(clf, [(f.shape[1], f.shape[2]) for f in e.maps], 1, 16, cfe.recipe)
    target = (e.logits.argmax(1) + torch.tensor([1, 0, 1, 2])) % 3
    ex = cfe.explain(x, target, ks=[0, .3, .8, 1], on_same='mark')
    got = cfe.masks(ex)
    assert got[1].isnan().all()
    go = torch.tensor([0, 2, 3])
    for j in range(4):
        k, s, t = ex.drawn_ks[go, j], ex.source[go], ex.target[go]
        want = csp_mask(kfe_features(e.maps[-1][go], cfe.model.solve(e.z[go], s, t, k)), clf.W, s, t, k)[:, 0]
        if mode != 'full': want = torch.full_like(want, float(mode == 'no-csp'))
        torch.testing.assert_close(got[go, j], want)

# --- a requested confidence ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('solver', ['closed', 'prob', 'naive', 'lbfgs'])
def test_a_requested_confidence_is_met_in_the_latent_by_every_solver(clf, x, solver):
    cfe = MirrorCFE(clf, amp=False, steps=1, solver=solver, **SHORT).fit(loaders(steps=1), epochs=1, progress=False)
    p = [.6] if solver == 'lbfgs' else [.3, .6]   # it is slow
    at = cfe.explain(x[:2], target_confidence=p, ks=[1], closed_loop=False).target_confidence
    assert torch.equal(at.k, at.drawn_k) and ((at.k > 0) & (at.k < 1)).all()
    assert torch.allclose(at.intended, at.p, atol=2e-3 if solver == 'lbfgs' else 1e-5)

def test_a_requested_confidence_is_met_by_the_drawn_image(cfe, clf, x):
    at = cfe.explain(x[:4], target_confidence=[.2, .8], ks=[1]).target_confidence
    plain = cfe.explain(x[:4], target_confidence=[.2, .8], ks=[1], closed_loop=False).target_confidence
    assert (at.achieved - at.p).abs().mean() <= (plain.achieved - plain.p).abs().mean() + 1e-3
    assert all(s in ('reached', 'missed', 'beyond the reflection') for row in at.status for s in row)
    t = cfe.targets(clf(x[:4]))
    seen = clf(at.x.flatten(0, 1)).softmax(1).view(4, 2, 10)
    assert torch.allclose(at.achieved, torch.stack([seen[b, :, c] for b, c in enumerate(t)]), atol=1e-4)

def test_requested_confidences_may_differ_by_image(cfe, x):
    p = torch.tensor([[.2, .7], [.6, .3]])
    at = cfe.explain(x[:2], target_confidence=p, ks=[1], closed_loop=False).target_confidence
    assert torch.equal(at.p, p) and torch.allclose(at.intended, p, atol=1e-5)
    assert torch.equal(at.span[:, :1] < p, torch.tensor([[True]*2]*2)) and (at.span[:, 1:] > p).all()

# --- saving ----------------------------------------------------------------------------------------------------------

def test_save_load(cfe, clf, x, tmp_path):
    cfe.save(tmp_path/'e')
    back = MirrorCFE.load(tmp_path/'e', clf)
    assert torch.allclose(back.explain(x[:2], ks=[0, 1]).path, cfe.explain(x[:2], ks=[0, 1]).path, atol=1e-3)
    assert (back.recipe, back.pair, back.seed) == (cfe.recipe, cfe.pair, cfe.seed)
    with pytest.raises(MirrorError, match='nothing was written'): cfe.save(tmp_path/'e')
    other = small_resnet().freeze()
    with pytest.raises(MirrorError, match='was trained for classifier'): MirrorCFE.load(tmp_path/'e', other)
    with pytest.raises(MirrorError, match='is missing'): MirrorCFE.load(tmp_path/'f', clf)
    (tmp_path/'e/about.json').write_text('{')
    with pytest.raises(MirrorError, match='is damaged'): MirrorCFE.load(tmp_path/'e', clf)
    assert [p.name for p in tmp_path.iterdir()] == ['e']

class Plain(nn.Module):
    "A network as people have it: no `Classifier`, only GAP and a linear layer."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.act, self.pool, self.fc = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)
    def forward(self, x): return self.fc(self.pool(self.act(self.b(self.act(self.a(x))))).flatten(1))

def test_a_plain_network_is_wrapped(x, tmp_path):
    net = Plain().eval()
    cfe = MirrorCFE(net, amp=False, **SHORT).fit(loaders(), epochs=1, progress=False)
    e = cfe.explain(x[:2], ks=[0, 1])
    assert torch.allclose(net(x[:2]).argmax(1), e.source)
    cfe.save(tmp_path/'e')
    assert torch.allclose(MirrorCFE.load(tmp_path/'e', net).explain(x[:2], ks=[0, 1]).path, e.path, atol=1e-3)
    with pytest.raises(MirrorError, match='is missing'): MirrorCFE.load(tmp_path/'f', net)

def test_a_network_whose_last_layer_is_not_linear_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10), nn.ReLU())
    with pytest.raises(MirrorError, match=r"'2' \(ReLU\) comes after it"):
        MirrorCFE(net, **SHORT).fit(loaders(), epochs=1, progress=False)

# --- refusals --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('bad, says', [
    (lambda x: x.repeat(1, 3, 1, 1), 'channel'), (lambda x: x[..., :16], '32x32'), (lambda x: x*9, 'must lie in'),
    (lambda x: x/0, 'NaN'), (lambda x: x.mul(127).byte(), 'floating point'), (lambda x: x[0], r'x\[None\]'),
    (lambda x: 'img.png', 'tensor')])
def test_bad_images(cfe, x, bad, says):
    with pytest.raises(MirrorError, match=says): cfe.explain(bad(x[:2]))

BAD_TARGETS = [(10, 'outside'), (-1, 'outside'), ('ten', 'no class'), ([1, 2, 3], 'targets'), (1.5, 'int')]

@pytest.mark.parametrize('target, says', BAD_TARGETS)
def test_bad_targets(cfe, x, target, says):
    with pytest.raises(MirrorError, match=says): cfe.explain(x[:2], target)

def test_target_equal_to_prediction(cfe, clf, x):
    with pytest.raises(MirrorError, match='other than the predicted'): cfe.explain(x[:1], clf(x[:1]).argmax(1))

@pytest.mark.parametrize('ks', [[], [.5, .2], [0, 1.2], [[0, 1]], [0, float('nan')]])
def test_bad_steps(cfe, x, ks):
    with pytest.raises(MirrorError, match='ascending'): cfe.explain(x[:1], ks=ks)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda(clf, x):
    dls = loaders(device='cuda')
    e = MirrorCFE(copy.deepcopy(clf), **SHORT).fit(dls, epochs=1, progress=False).explain(x[:2].cuda(), ks=[0, 1])
    assert e.path.is_cuda and e[::-1].path.is_cuda and e == e[[0, 1]]
