"ExplainGAN: what the mask leaves alone is the source, the prior by hand, the shared loop resumed, refused input."
import warnings
import pytest, torch
from mirrorcfe.baselines.explaingan import ExplainGAN, mask_prior
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.baselines.base import ImageDecoder, ImageEncoder, ToImage, by_class
from tiny import fixed_sampler, hash_of

TINY = dict(steps=2, bs=8, width=4, z=6)

@pytest.fixture(scope='module')
def clf(digits_clf): return digits_clf

@pytest.fixture(scope='module')
def dls(digits_dls): return digits_dls

@pytest.fixture(scope='module')
def x(dls): return dls.test.one_batch()[0][:6]

@pytest.fixture(scope='module')
def eg(clf, dls): return ExplainGAN(clf, 'cpu', **TINY).fit(dls, progress=False)

def test_the_paper_is_the_default(clf):
    r = ExplainGAN(clf).recipe
    assert (r.cls, r.rec, r.gan, r.const, r.count, r.smooth, r.entropy, r.kappa) == (1, 1, 1, 1, 1000, 1, 1, .05)

def test_the_answer_is_the_source_outside_the_mask(eg, x):
    "A mask that is 0 on the left half: the left half is the source to the bit."
    paint = eg.game.G.M
    class Half(torch.nn.Module):
        def forward(self, h):
            m = paint(h)
            return m*(torch.arange(m.shape[3]) >= m.shape[3]//2)
    eg.game.G.M = Half()
    try: answer = eg.explain(x).x_reflection
    finally: eg.game.G.M = paint
    assert torch.equal(answer[..., :16], x[..., :16]) and not torch.equal(answer[..., 16:], x[..., 16:])

def test_prior_by_hand(x):
    M, t = torch.rand(6, 1, 32, 32), -x
    p = mask_prior(M, x, t, .05)
    assert p['const'].item() == pytest.approx((((1 - M)*(x - t))**2).mean().item(), rel=1e-5)
    assert p['count'].item() == pytest.approx(M.mean().item(), rel=1e-5)
    differences = (M[:, :, 1:] - M[:, :, :-1]).abs().mean() + (M[..., 1:] - M[..., :-1]).abs().mean()
    assert p['smooth'].item() == pytest.approx(differences.item(), rel=1e-5)
    assert p['entropy'].item() == pytest.approx(torch.where(M < .5, M, 1 - M).mean().item(), rel=1e-5)
    small = torch.rand(2, 1, 8, 8, requires_grad=True)
    mask_prior(small*.01, x[:2, :, :8, :8], t[:2, :, :8, :8], .05)['count'].backward()
    assert small.grad.abs().max() == 0   # below kappa the size of the mask is free

def test_collapse_is_named(eg, x):
    assert eg.collapsed(x, low=1.).startswith('the mask went to 0')
    assert eg.collapsed(x, high=0.).startswith('the mask went to 1')
    assert eg.collapsed(x, low=0., high=1.) == ''

def test_batched_is_one_by_one(eg, x):
    whole = eg.explain(x).x_reflection
    assert torch.allclose(torch.cat([eg.explain(v[None]).x_reflection for v in x]), whole, atol=1e-5)
    assert torch.allclose(eg.explain(x, bs=2).x_reflection, whole, atol=1e-5)

def test_no_answer_outside_the_pair(eg, clf, x):
    s = clf(x).argmax(1)
    t = torch.where(s == 4, 9, 4)
    t[0] = 7
    e = eg.explain(x, t)
    assert e.x_reflection[0].isnan().all() and not e.x_reflection[1:].isnan().any() and e.status[0] == 'never flipped'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        others = get_dls('digits', pair=(1, 2), device='cpu').test.one_batch()[0][:3]
    assert eg.explain(others).x_reflection.isnan().all()

def test_all_classes(clf):
    dls = get_dls('digits', device='cpu')
    e = ExplainGAN(clf, 'cpu', **(TINY | dict(bs=20))).fit(dls, progress=False)
    x = dls.test.one_batch()[0][:4]
    s = clf(x).argmax(1)
    a, b = (e.explain(x, (s + k) % 10).x_reflection for k in (1, 2))
    assert not a.isnan().any() and not torch.equal(a, b)

@pytest.mark.parametrize('bad, says', [
    (lambda e, x: e.explain(x + 3), r'must lie in \[-1, 1\]'),
    (lambda e, x: e.explain(x, 11), '11'),
    (lambda e, x: e.explain(x[:, :, :16]), '16x32'),
    (lambda e, x: ExplainGAN(e.classifier).explain(x), 'not fitted'),
    (lambda e, x: ExplainGAN(e.classifier, pair=(4, 4)), 'both class 4'),
    (lambda e, x: ExplainGAN(e.classifier, cyc=1), 'no cyc')])
def test_bad_input(eg, x, bad, says):
    with pytest.raises(MirrorError, match=says): bad(eg, x)

def test_target_already_predicted(eg, clf, x):
    with pytest.raises(MirrorError): eg.explain(x, clf(x).argmax(1))

def test_save_and_load(eg, clf, x, tmp_path):
    kept = eg.save(tmp_path/'eg')
    again = ExplainGAN.load(kept, clf)
    assert torch.equal(again.explain(x).x_reflection, eg.explain(x).x_reflection)
    assert (again.recipe, again.pair) == (eg.recipe, eg.pair)
    with pytest.raises(MirrorError, match='nothing was written'): eg.save(kept)
    other = small_resnet(10, classes=clf.classes)
    with pytest.raises(MirrorError, match='was trained for classifier'): ExplainGAN.load(kept, other)
    (kept/'nets.safetensors').write_bytes(b'half')
    with pytest.raises(MirrorError, match='is damaged'): ExplainGAN.load(kept, clf)
    assert not list(tmp_path.glob('.*'))

def test_killed_and_resumed(clf, dls, tmp_path, stop_after, short_epochs):
    "With batch norm, networks by class and discriminators, the loop ends at the same weights as if never stopped."
    def make(**changes): return ExplainGAN(clf, 'cpu', **TINY | dict(steps=6) | changes)
    whole = make().fit(dls, progress=False)
    with pytest.raises(KeyboardInterrupt): make().fit(dls, folder=tmp_path, progress=False, cbs=[stop_after(1)])
    resumed = make().fit(dls, folder=tmp_path, progress=False)
    assert hash_of(resumed.game.G, resumed.game.D) == hash_of(whole.game.G, whole.game.D)
    assert len((tmp_path/'history.csv').read_text().splitlines()) == 3
    done = make().fit(dls, folder=tmp_path, progress=False)   # nothing left to do
    assert hash_of(done.game.G) == hash_of(whole.game.G)
    with pytest.raises(MirrorError, match='belongs to another run'): make(z=7).fit(dls, folder=tmp_path, progress=False)
    assert len(list((tmp_path/'samples').iterdir())) == 2
    assert hash_of(make().fit(dls, steps=2, progress=False).game.G) != hash_of(whole.game.G)

def test_the_classifier_is_untouched(clf, dls):
    before = clf.fingerprint()
    ExplainGAN(clf, 'cpu', **TINY).fit(dls, progress=False)
    assert clf.fingerprint() == before and not clf.training and all(p.grad is None for p in clf.parameters())

def test_the_loop_refuses(clf, dls):
    endless = ExplainGAN(clf, 'cpu', **TINY | dict(steps=4, lr=float('inf')))
    with pytest.raises(MirrorError, match='lower lr=inf'): endless.fit(dls, progress=False)
    with pytest.raises(MirrorError, match='1 or more'): ExplainGAN(clf, 'cpu', **TINY).fit(dls, steps=0, progress=False)

def test_a_name_for_every_weight(clf, dls):
    "Every loss has a weight of its name, and the sum is what the recipe says."
    e = ExplainGAN(clf, 'cpu', **(TINY | dict(count=2.))).fit(dls, progress=False)
    g = e.game.train()
    x, y = (v[:8] for v in dls.train.one_batch())
    sampler = fixed_sampler(x)
    d = g(x, y, sampler)
    losses = g.generator_losses(d, sampler)
    assert set(losses) == set(g.loss_names)
    total = sum(getattr(e.recipe, n)*v.item() for n, v in losses.items())
    assert g.weighted_loss(d, y, sampler).item() == pytest.approx(total, rel=1e-4)
    g.eval()

def test_by_class(x):
    nets = torch.nn.ModuleDict({'4': torch.nn.Flatten(), '9': torch.nn.Flatten()})
    c = torch.tensor([4, 9, 9, 4, 4, 9])
    assert torch.equal(by_class(nets, x, c), x.flatten(1))
    with pytest.raises(MirrorError, match='no network for class 3'): by_class(nets, x, c*0 + 3)
    v = x.clone().requires_grad_()
    by_class(nets, v, c).sum().backward()
    assert torch.equal(v.grad, torch.ones_like(v))

@pytest.mark.parametrize('size', [8, 16, 28, 32, 48])
def test_sizes(size):
    decoder = ImageDecoder(5, size, 4)
    im = ToImage(decoder.out, 3, size)(decoder(torch.randn(2, 5)))
    assert im.shape == (2, 3, size, size) and ImageEncoder(3, size, 7, 4)(im).shape == (2, 7)
