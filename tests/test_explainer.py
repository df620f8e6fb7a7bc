"Training and explaining: determinism, resumption, every switch, saving, every refusal."
import copy
import pytest, torch
from torch import nn
from mirrorcfe.classifiers import get_classifier, small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE, _standing
from mirrorcfe.training import PRESETS, get_recipe, mirror_learner

def loaders(**kw): return get_dls('digits', **{'bs': 16, 'steps': 2, 'device': 'cpu'} | kw)

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits').to('cpu')

@pytest.fixture(scope='module')
def cfe(clf): return MirrorCFE(clf, amp=False).fit(loaders(bs=32, steps=20), epochs=2, progress=False)

@pytest.fixture(scope='module')
def x(): return loaders().test.one_batch()[0]

def weights(learn): return learn.model.G.state_dict()
def same(a, b): return all(torch.equal(a[n], b[n]) for n in a)

def test_fit_follows_from_the_seed(clf):
    fit = lambda seed: weights(mirror_learner(clf, loaders(), seed=seed, steps=4, amp=False).fit_game(progress=False))
    a, b, c = fit(1), fit(1), fit(2)
    assert same(a, b) and not same(a, c)

def test_the_classifier_does_not_change(clf):
    before = copy.deepcopy(clf.state_dict())
    mirror_learner(clf, loaders(), steps=2, amp=False).fit_game(progress=False)
    assert same(before, clf.state_dict()) and not clf.training

@pytest.mark.parametrize('changes', [dict(preset='paper'), dict(mode='skip'), dict(mode='no-csp'), dict(residual=False), dict(kfe='location'),
                                     dict(solver='prob'), dict(solver='naive'), dict(solver='lbfgs', steps=1), dict(amp=True), dict(channels_last=False)],
                         ids=lambda c: ' '.join(f'{k}={v}' for k, v in c.items()))
def test_every_switch_trains(clf, changes):
    learn = mirror_learner(clf, loaders(steps=1), **{'steps': 1, 'amp': False} | changes).fit_game(progress=False)
    assert all(v.isfinite().all() for v in weights(learn).values() if v.is_floating_point())

def test_a_loss_that_is_no_number_stops_with_advice(clf):
    learn = mirror_learner(clf, loaders(), steps=2, rec=float('nan'), amp=False)
    with pytest.raises(Exception, match='lower lr='): learn.fit_game(progress=False)

def test_recipes():
    assert set(PRESETS) == {'paper', 'robust'} and get_recipe(get_recipe('paper'), a=.4).a == .4
    paper = get_recipe('paper')
    assert (paper.cls, paper.adv, paper.rec, paper.fea, paper.tri, paper.a) == (1, 1, 1, 1, 2, .2)

def test_data_of_another_kind_is_refused(clf):
    with pytest.raises(MirrorError, match='28x28|32x32'): mirror_learner(clf, loaders(size=28))
    with pytest.raises(MirrorError, match='no training image of class'): mirror_learner(clf, loaders(pair=(4, 9)), steps=1).fit_game(progress=False)

def test_explain_is_the_same_alone_and_in_a_batch(cfe, x):
    ks = torch.linspace(0, 1, 11)
    whole = cfe.explain(x[:4], ks=ks, bs=9)
    for i in range(4):
        one = cfe.explain(x[i:i+1], whole.target[i:i+1], ks=ks)
        assert torch.allclose(one.path[0], whole.path[i], atol=2e-3) and torch.allclose(one.achieved[0], whole.achieved[i], atol=2e-3)

def test_rounding_does_not_decide_on_the_mirror():
    t = torch.tensor([1, 1])
    even = torch.tensor([[1., 1 + 1e-6, -5], [1 + 1e-6, 1., -5]])      # k = .5, rounded either way
    assert _standing(even, t, tie=1e-5)[1].tolist() == [False, False]
    assert _standing(even + torch.tensor([0, 1e-3, 0]), t, tie=1e-5)[1].tolist() == [True, True]

def test_closing_the_loop_lowers_the_confidence_error(cfe, x):
    err = [(e.intended - e.achieved).abs().mean() for e in (cfe.explain(x[:8], ks=torch.linspace(0, 1, 21), closed_loop=c) for c in (False, True))]
    assert err[1] < err[0]

def test_open_loop_draws_at_k(cfe, x):
    e = cfe.explain(x[:3], ks=[0, .5, 1], closed_loop=False)
    assert torch.equal(e.drawn_ks, e.ks.expand(3, 3))

def test_targets(cfe, clf, x):
    s = clf(x[:6]).argmax(1)
    assert torch.equal(cfe.explain(x[:6], ks=[0, 1]).target, clf(x[:6]).topk(2).indices[:, 1])
    t = (s + 3) % 10
    for given in (t, t.tolist(), [clf.classes[i] for i in t]): assert torch.equal(cfe.explain(x[:6], given, ks=[1]).target, t)

def test_empty_batch(cfe, x):
    e = cfe.explain(x[:0], ks=[0, 1])
    assert len(e) == 0 and e.path.shape == (0, 2, 1, 32, 32) and e.status == [] and len(e.table()) == 0

def test_already_target_is_marked_not_drawn(cfe, clf, x):
    s = clf(x[:2]).argmax(1)
    e = cfe.explain(x[:2], [s[0].item(), (s[1].item() + 1) % 10], ks=[0, 1], on_same='mark')
    assert e.status[0] == 'already target' and e.path[0].isnan().all() and e.x_cf[0].isnan().all() and not e.path[1].isnan().any()

def test_never_flipped_is_data(cfe, x):
    e = cfe.explain(x[:3], ks=[0])
    assert e.status == ['never flipped']*3 and e.first_k.isnan().all() and e.x_cf.isnan().all() and all(e.reason)
    with pytest.raises(MirrorError, match='ks that reach 1'): e.x_reflection

def test_save_load(cfe, clf, x, tmp_path):
    cfe.save(tmp_path/'e')
    back = MirrorCFE.load(tmp_path/'e', clf)
    assert torch.allclose(back.explain(x[:2], ks=[0, 1]).path, cfe.explain(x[:2], ks=[0, 1]).path, atol=1e-3)
    with pytest.raises(MirrorError, match='nothing was written'): cfe.save(tmp_path/'e')
    with pytest.raises(MirrorError, match='was trained for classifier'): MirrorCFE.load(tmp_path/'e', small_resnet().freeze())
    with pytest.raises(MirrorError, match='is missing'): MirrorCFE.load(tmp_path/'f', clf)
    (tmp_path/'e/explainer.json').write_text('{')
    with pytest.raises(MirrorError, match='is damaged'): MirrorCFE.load(tmp_path/'e', clf)
    assert [p.name for p in tmp_path.iterdir()] == ['e']

class Plain(nn.Module):
    "A network as people have it: no `GapClassifier`, only GAP and a linear layer."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.act, self.pool, self.fc = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)
    def forward(self, x): return self.fc(self.pool(self.act(self.b(self.act(self.a(x))))).flatten(1))

def test_a_plain_network_is_wrapped(x, tmp_path):
    net = Plain().eval()
    cfe = MirrorCFE(net, amp=False).fit(loaders(), epochs=1, progress=False)
    e = cfe.explain(x[:2], ks=[0, 1])
    assert torch.allclose(net(x[:2]).argmax(1), e.source)
    cfe.save(tmp_path/'e')
    assert torch.allclose(MirrorCFE.load(tmp_path/'e', net).explain(x[:2], ks=[0, 1]).path, e.path, atol=1e-3)

def test_a_network_without_gap_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    with pytest.raises(MirrorError, match='not the spatial mean'): MirrorCFE(net).fit(loaders(), epochs=1, progress=False)

@pytest.mark.parametrize('bad, says', [(lambda x: x.repeat(1, 3, 1, 1), 'channel'), (lambda x: x[..., :16], '32x32'), (lambda x: x*9, 'must lie in'),
                                       (lambda x: x/0, 'NaN'), (lambda x: x.mul(127).byte(), 'floating point'), (lambda x: x[0], r'x\[None\]'), (lambda x: 'img.png', 'tensor')])
def test_bad_images(cfe, x, bad, says):
    with pytest.raises(MirrorError, match=says): cfe.explain(bad(x[:2]))

@pytest.mark.parametrize('target, says', [(10, 'outside'), (-1, 'outside'), ('ten', 'no class'), ([1, 2, 3], 'targets'), (1.5, 'int')])
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
    e = MirrorCFE(copy.deepcopy(clf)).fit(dls, epochs=1, progress=False).explain(x[:2].cuda(), ks=[0, 1])
    assert e.path.is_cuda

@pytest.mark.parametrize('solver', ['closed', 'prob', 'naive', 'lbfgs'])
def test_a_wish_is_met_in_the_latent_by_every_solver(clf, x, solver):
    cfe = MirrorCFE(clf, amp=False, steps=1, solver=solver).fit(loaders(steps=1), epochs=1, progress=False)
    w = cfe.explain(x[:3], target_confidence=[.3, .6], ks=[1], closed_loop=False).target_confidence
    assert torch.equal(w.k, w.drawn_k) and ((w.k > 0) & (w.k < 1)).all()
    assert torch.allclose(w.intended, w.p, atol=2e-3 if solver == 'lbfgs' else 1e-5)

def test_a_wish_is_met_by_the_drawn_image(cfe, x):
    w = cfe.explain(x[:4], target_confidence=[.2, .8], ks=[1]).target_confidence
    plain = cfe.explain(x[:4], target_confidence=[.2, .8], ks=[1], closed_loop=False).target_confidence
    assert (w.achieved - w.p).abs().mean() <= (plain.achieved - plain.p).abs().mean() + 1e-3
    assert all(s in ('reached', 'missed', 'beyond the reflection') for row in w.status for s in row)

def test_all_targets_are_those_of_one_at_a_time(cfe, clf, x):
    every = cfe.explain_all(x[:2], ks=[0, 1])
    assert len(every) == 18 and not (every.source == every.target).any()
    one = cfe.explain(x[1:2], every.target[12:13], ks=[0, 1])
    assert torch.allclose(one.path[0], every.path[12], atol=2e-3)
    assert cfe.explain_all(x[:2], [3, '4'], ks=[1]).target.tolist() == [3, 4]*2
