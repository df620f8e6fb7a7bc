"CycleGAN: losses by hand, a pool that is in the checkpoint, closed cycles, blindness to the classifier, refused input."
import csv
import pytest, torch
from mirrorcfe.baselines import base
from mirrorcfe.baselines.cyclegan import CycleGAN, ImagePool, Patches, Translator
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from tiny import fixed_sampler, hash_of

TINY = dict(steps=2, bs=4, width=4, blocks=1)

@pytest.fixture(scope='module')
def clf(digits_clf): return digits_clf

@pytest.fixture(scope='module')
def dls(digits_dls): return digits_dls

@pytest.fixture(scope='module')
def x(dls): return dls.test.one_batch()[0][:6]

@pytest.fixture(scope='module')
def cg(clf, dls): return CycleGAN(clf, 'cpu', **TINY).fit(dls, progress=False)

def test_the_paper_is_the_default(clf):
    r = CycleGAN(clf).recipe
    assert (r.adv, r.cyc, r.idt, r.pool, r.lr, r.betas, r.epochs) == (1, 10, 5, 50, 2e-4, (.5, .999), 200)

def test_the_rate_falls_in_the_second_half(cg):
    assert [cg.game.schedule()(p)/1e-3 for p in (0, .5, .75, 1)] == pytest.approx([1, 1, .5, 0])

def test_losses_by_hand(cg, x):
    g = cg.game
    s = torch.tensor([4, 9]*3)
    g.train()
    d = g(x, None, fixed_sampler(x))
    got = g.generator_losses(d, fixed_sampler(x))
    g.eval()
    a, b, G, D = x[::2], x[1::2], g.G.of, g.D.of   # as classes 4 and 9
    fb = G['4'](a)
    fa = G['9'](b)
    want = dict(adv=((D['9'](fb) - 1)**2).mean() + ((D['4'](fa) - 1)**2).mean(),
                cyc=(G['9'](fb) - a).abs().mean() + (G['4'](fa) - b).abs().mean(),
                idt=(G['4'](b) - b).abs().mean() + (G['9'](a) - a).abs().mean())
    assert torch.equal(d.source, s)
    for n in want: assert got[n].item() == pytest.approx(want[n].item(), rel=1e-4)

def test_discriminator_by_hand(cg, x):
    g = cg.game.train()
    with torch.no_grad(): d = g(x, None, fixed_sampler(x))
    for p in g.D.pool.values(): p.held.zero_()   # an empty pool hands through
    got = g.discriminator_loss(d, fixed_sampler(x))
    D = g.D.of
    g.eval()
    def by_hand(D, real, drawn): return .5*((D(real) - 1)**2).mean() + .5*(D(drawn)**2).mean()
    want = by_hand(D['4'], x[::2], d.x_cf[1::2]) + by_hand(D['9'], x[1::2], d.x_cf[::2])
    assert got.item() == pytest.approx(want.item(), rel=1e-4)

def test_pool(x):
    p = ImagePool(3, 1, 32)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(p.swap(x[:3], rng), x[:3]) and torch.equal(p.images, x[:3]) and p.held == 3
    seen = {v.sum().item() for v in x}
    hits = 0
    for _ in range(60):
        out = p.swap(x[3:], rng)
        assert {v.sum().item() for v in out} <= seen and {v.sum().item() for v in p.images} <= seen
        hits += (out != x[3:]).flatten(1).any(1).sum().item()
    assert hits > 0 and torch.equal(ImagePool(0, 1, 32).swap(x), x)

def test_every_other_comes_from_the_pool():
    p = ImagePool(50, 1, 1)
    rng = torch.Generator().manual_seed(1)
    n = 2000
    out = p.swap(torch.arange(50. + n).view(-1, 1, 1, 1), rng).flatten()
    assert abs((out[50:] != torch.arange(50., 50. + n)).float().mean().item() - .5) < .05

def test_the_cycle_closes(clf, dls, tmp_path, monkeypatch):
    monkeypatch.setattr(base, 'EPOCH_STEPS', 20)
    CycleGAN(clf, 'cpu', **(TINY | dict(steps=40))).fit(dls, folder=tmp_path, progress=False)
    with open(tmp_path/'history.csv') as f: cyc = [float(r['cyc']) for r in csv.DictReader(f)]
    assert len(cyc) == 2 and cyc[1] < .8*cyc[0]

def test_killed_and_resumed(clf, dls, tmp_path, stop_after, short_epochs):
    "Pools are in the checkpoint: with them lost, the discriminators would see other images."
    make = lambda: CycleGAN(clf, 'cpu', **(TINY | dict(steps=6, pool=6)))
    whole = make().fit(dls, progress=False)
    with pytest.raises(KeyboardInterrupt): make().fit(dls, folder=tmp_path, progress=False, cbs=[stop_after(1)])
    resumed = make().fit(dls, folder=tmp_path, progress=False)
    assert hash_of(resumed.game.G, resumed.game.D) == hash_of(whole.game.G, whole.game.D)

def test_it_is_blind_to_the_classifier(clf, dls):
    other = small_resnet(10, classes=clf.classes)
    a, b = (CycleGAN(f, 'cpu', **TINY).fit(dls, progress=False) for f in (clf, other))
    assert hash_of(a.game.G, a.game.D) == hash_of(b.game.G, b.game.D)

@pytest.mark.parametrize('size', [(28, 28), (30, 34), (32, 32), (33, 31)])
def test_sizes(size): assert Translator(3, 4, 1)(torch.zeros(1, 3, *size)).shape == (1, 3, *size)

@pytest.mark.parametrize('layers', [2, 3])
def test_patches(layers): assert Patches(1, 4, layers)(torch.zeros(2, 1, 32, 32)).shape[:2] == (2, 1)

def test_batched_is_one_by_one(cg, x):
    one_by_one = torch.cat([cg.explain(v[None]).x_reflection for v in x])
    assert torch.allclose(one_by_one, cg.explain(x).x_reflection, atol=1e-5)

def test_answers_lie_in_range(cg, x): assert cg.explain(x).x_reflection.abs().max() <= 1

def test_no_answer_outside_the_pair(cg, clf, x):
    e = cg.explain(x, torch.full((len(x),), 7))
    assert e.x_reflection.isnan().all() and e.status == ['never flipped']*len(x) and e.x_cf.isnan().all()
    assert cg.explain(x[:0]).x_reflection.shape == (0, 1, 32, 32)

def test_save_and_load(cg, clf, x, tmp_path):
    kept = cg.save(tmp_path/'cg')
    assert torch.equal(CycleGAN.load(kept, clf).explain(x).x_reflection, cg.explain(x).x_reflection)
    other = small_resnet(10, classes=clf.classes)
    with pytest.raises(MirrorError, match='was trained for classifier'): CycleGAN.load(kept, other)

@pytest.mark.parametrize('bad, says', [
    (lambda c, x: c.explain(x + 3), r'must lie in \[-1, 1\]'),
    (lambda c, x: c.explain(x, 11), '11'),
    (lambda c, x: CycleGAN(c.classifier).explain(x), 'not fitted'),
    (lambda c, x: CycleGAN(c.classifier).save('nowhere'), 'not fitted'),
    (lambda c, x: CycleGAN(c.classifier).fit(get_dls('digits', device='cpu')), 'give pair'),
    (lambda c, x: CycleGAN(c.classifier, count=1), 'no count')])
def test_bad_input(cg, x, bad, says):
    with pytest.raises(MirrorError, match=says): bad(cg, x)
