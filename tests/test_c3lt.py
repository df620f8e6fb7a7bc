"C3LT: codes keep their length, proximity by hand, variants share an autoencoder, refused input."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from mirrorcfe.baselines.c3lt import (C3LT, DCGAN, GanAutoencoder, LatentStep, change_map, map_distance, perceptual,
                                      proximity)
from mirrorcfe.benchmark import Task, get_baseline
from mirrorcfe.classifiers import get_classifier, small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from tiny import fixed_sampler, hash_of, settle

TINY = dict(steps=2, bs=8)

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits', device='cpu')

@pytest.fixture(scope='module')
def dls(): return get_dls('digits', device='cpu')

@pytest.fixture(scope='module')
def x(): return get_dls('digits', pair=(4, 9), device='cpu').test.one_batch()[0][:6]

@pytest.fixture(scope='module')
def auto(clf, dls, x):
    gan = DCGAN(clf, 'cpu', width=4, **TINY).fit(dls, progress=False)
    settle(gan.game.G.G, torch.randn(64, 100, generator=torch.Generator().manual_seed(0)))
    auto = GanAutoencoder(clf, 'cpu', pair=(4, 9), gan=gan, width=4, **TINY).fit(dls, progress=False)
    settle(auto.game.G.E, dls.train.one_batch()[0])
    for images in (gan.sample(6), auto.rebuild(x)):
        assert images.std(0).mean() > .01, 'the tests below would compare constants'
    return auto

@pytest.fixture(scope='module')
def c3lt(clf, dls, auto): return C3LT(clf, 'cpu', autoencoder=auto, **TINY).fit(dls, progress=False)

def test_the_paper_is_the_default(clf):
    r = C3LT(clf).recipe
    assert (r.cls, r.prox, r.cyc, r.adv) == (1, .1, .1, .001)
    assert (r.n, r.hidden, r.lr, r.epochs, r.bs) == (1, 100, 1e-3, 200, 128)

def test_the_rate_is_halved_every_25_of_200_epochs(c3lt):
    assert [c3lt.game.schedule()(e/200)/1e-3 for e in (0, 24.9, 25, 50, 199)] == pytest.approx([1, 1, .5, .25, .5**7])

@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-2, 1e2), seed=st.integers(0, 99))
def test_codes_keep_their_length(scale, seed):
    torch.manual_seed(seed)
    step = LatentStep(20, 8)
    z = scale*torch.randn(4, 20)
    step.T[2].weight.data.normal_()
    assert torch.allclose(step(z).norm(dim=1), z.norm(dim=1), rtol=1e-4)
    u = z + step.T(z)
    assert torch.allclose(F.cosine_similarity(step(z), u), torch.ones(4), atol=1e-5)

def test_a_code_of_length_0_stays(): assert torch.equal(LatentStep(5, 3)(torch.zeros(2, 5)), torch.zeros(2, 5))

def test_no_step_is_the_reconstruction(clf, dls, auto, x):
    c3lt = C3LT(clf, 'cpu', autoencoder=auto, **TINY).fit(dls, progress=False)
    rebuilt = auto.rebuild(x)
    assert all(p.abs().max() > 0 for p in c3lt.game.G.parameters())   # the last layers began at 0 and have been trained
    rng = torch.Generator().manual_seed(0)
    for step in c3lt.game.G.step.values(): step.T[2].weight.data.normal_(generator=rng)
    assert (c3lt.explain(x).x_reflection - rebuilt).abs().mean() > .01, 'a long step changes the image'
    for p in c3lt.game.G.parameters(): p.data.zero_()
    assert torch.allclose(c3lt.explain(x).x_reflection, rebuilt, atol=1e-5)
    assert all(torch.allclose(v, rebuilt, atol=1e-5) for v in c3lt.path(x, n=2).unbind(1))

def test_proximity_by_hand():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 5, 7)*2 - 1
    v = torch.rand(3, 2, 5, 7)*2 - 1
    d = (v - x)**2
    m = torch.stack([(e - e.min())/(e.max() - e.min()) for e in d])
    S = .5*((m[:, :, 1:] - m[:, :, :-1])**2).mean() + .5*((m[..., 1:] - m[..., :-1])**2).mean()
    want = ((x - v).abs().sum()/(3*5*7) + 10*S + torch.where(m < .5, m, 1 - m).mean())/12
    assert proximity(x, v).item() == pytest.approx(want.item(), rel=1e-4)

def test_no_change_is_no_zero_by_zero(x):
    v = x.clone().requires_grad_()
    loss = proximity(x, v)
    loss.backward()
    assert loss.item() == 0 and v.grad.isfinite().all() and change_map(x, x).abs().max() == 0
    assert change_map(x, x + .1).isfinite().all()   # changed alike everywhere

def test_perceptual(clf, x):
    assert perceptual(clf, x, x).item() == 0 and map_distance(clf, x, x.flip(2)).item() > 0
    assert perceptual(clf, x, x.flip(2)).item() == pytest.approx(perceptual(clf, x.flip(2), x).item(), rel=1e-5)

def test_weights_of_0_are_left_out(clf, auto, dls):
    names = lambda **w: set(C3LT(clf, 'cpu', autoencoder=auto, **TINY, **w).fit(dls, progress=False).game.last_losses)
    assert names() == {'cls', 'prox', 'cyc', 'adv'}
    assert names(cyc=0, adv=0) == {'cls', 'prox'}
    assert names(prox=0, cyc=0, adv=0) == {'cls'}

def test_what_is_frozen_stays(clf, dls, auto):
    before = hash_of(auto.game, auto.gan.game)
    C3LT(clf, 'cpu', autoencoder=auto, **TINY).fit(dls, progress=False)
    assert hash_of(auto.game, auto.gan.game) == before
    assert not auto.game.G.training and not auto.gan.game.G.training

def test_there_and_back(c3lt, x):
    "A batch: classes in turns, and the way back by the other step."
    g = c3lt.game.train()
    d = g(x, None, fixed_sampler(x))
    g.eval()
    assert torch.equal(d.target, torch.tensor([9, 4]*3))
    back = torch.stack([g.G.step[str(t)](g.G.step[str(13 - t)](z[None]))[0] for z, t in zip(d.z, d.target.tolist())])
    assert torch.allclose(back, d.back, atol=1e-4) and (d.back - d.z).abs().max() > 1e-3

def test_path(c3lt, x):
    path = c3lt.path(x, n=3)
    assert path.shape == (6, 4, 1, 32, 32)
    assert torch.allclose(path[:, 1], c3lt.explain(x).x_reflection, atol=1e-5)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(path.unbind(1), path.unbind(1)[1:])), 'every step moves'
    assert c3lt.path(x, torch.full((6,), 7)).isnan().all()

def test_steps_of_the_recipe(clf, dls, auto, x):
    three = C3LT(clf, 'cpu', autoencoder=auto, n=3, **TINY).fit(dls, progress=False)
    assert torch.allclose(three.explain(x).x_reflection, three.path(x, n=3)[:, 3], atol=1e-5)

def test_batched_is_one_by_one(c3lt, x):
    one_by_one = torch.cat([c3lt.explain(v[None]).x_reflection for v in x])
    assert torch.allclose(one_by_one, c3lt.explain(x).x_reflection, atol=1e-5)

def test_both_directions(c3lt, clf, x):
    e = c3lt.explain(x)
    assert torch.equal(e.target, torch.where(e.source == 4, 9, 4))
    assert len(set(e.source.tolist())) == 2
    assert not e.x_reflection.isnan().any()

def test_save_and_load(c3lt, clf, x, tmp_path):
    kept = c3lt.save(tmp_path/'c3lt')
    again = C3LT.load(kept, clf)
    assert torch.equal(again.explain(x).x_reflection, c3lt.explain(x).x_reflection)
    assert torch.equal(again.autoencoder.gan.sample(3), c3lt.autoencoder.gan.sample(3))
    assert again.autoencoder.quality(x) == c3lt.autoencoder.quality(x)
    auto = GanAutoencoder.load(kept/'autoencoder', clf)   # of use alone: another variant
    assert torch.equal(auto.rebuild(x), c3lt.autoencoder.rebuild(x))
    other = small_resnet(10, classes=clf.classes)
    with pytest.raises(MirrorError, match='was trained for classifier'): C3LT.load(kept, other)
    with pytest.raises(MirrorError, match='is not of a C3LT'): C3LT.load(kept/'autoencoder', clf)

def test_whole_and_resumed(clf, dls, tmp_path):
    "A finished run is found again; a checkpoint made with other frozen networks is refused."
    gan = DCGAN(clf, 'cpu', width=4, **TINY).fit(dls, folder=tmp_path/'autoencoder'/'gan', progress=False)
    def encoder(seed): return GanAutoencoder(clf, 'cpu', (4, 9), seed, gan=gan, width=4, **TINY)
    def fit(auto):
        c3lt = C3LT(clf, 'cpu', autoencoder=auto, bs=8)
        return c3lt.fit(dls, steps=2, folder=tmp_path, progress=False).game
    auto = encoder(0).fit(dls, folder=tmp_path/'autoencoder', progress=False)
    a = fit(auto)
    b = fit(auto)
    assert hash_of(a.G) == hash_of(b.G) and len((tmp_path/'history.csv').read_text().splitlines()) == 2
    other = encoder(1).fit(dls, progress=False)
    with pytest.raises(MirrorError, match='belongs to another run'): fit(other)

def test_another_autoencoder_or_seed_is_not_found_in_the_cache(clf, dls, auto, tmp_path, monkeypatch):
    monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path))
    other = GanAutoencoder(clf, 'cpu', pair=(4, 9), gan=auto.gan, width=4, seed=1, **TINY).fit(dls, progress=False)
    task = Task('digits', (4, 9), n=2)
    def get(autoencoder, **kw):
        got = get_baseline(C3LT, task, 'cpu', clf, autoencoder=autoencoder, **TINY, **kw)
        return hash_of(got.autoencoder.game.G), got.seed
    first = hash_of(auto.game.G)
    second = hash_of(other.game.G)
    assert first != second
    for _ in range(2):   # fitted, then from the cache
        assert get(auto) == (first, 0) and get(other) == (second, 0) and get(auto, seed=1) == (first, 1)

@pytest.mark.parametrize('bad, says', [
    (lambda c, x: c.explain(x + 3), r'must lie in \[-1, 1\]'),
    (lambda c, x: c.explain(x, 11), '11'),
    (lambda c, x: C3LT(c.classifier).explain(x), 'not fitted'),
    (lambda c, x: C3LT(c.classifier, pair=(3, 8), autoencoder=c.autoencoder), 'of the same pair'),
    (lambda c, x: C3LT(c.classifier).fit(get_dls('digits', device='cpu')), 'give pair'),
    (lambda c, x: C3LT(c.classifier, idt=1), 'no idt')])
def test_bad_input(c3lt, x, bad, says):
    with pytest.raises(MirrorError, match=says): bad(c3lt, x)
