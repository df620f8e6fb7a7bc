"PGD: in its ball, the same alone and in a batch, equal to a loop written by hand and to torchattacks."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.explanation import two_ended
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits', device='cpu')

@pytest.fixture(scope='module')
def x(): return get_dls('digits', device='cpu').test.one_batch()[0][:4]

def runner_up(clf, x): return clf(x).topk(2).indices[:, 1]

def agree(a, b):
    "The sign of a gradient near 0 may differ between batch sizes and processors: nearly all pixels are the same."
    return ((a - b).abs() < 1e-5).float().mean() > .99

@settings(max_examples=6, deadline=None)
@given(eps=st.floats(.01, .5), alpha=st.floats(.005, .1), early=st.booleans())
def test_it_stays_in_the_ball_and_in_range(clf, x, eps, alpha, early):
    e = PGD(clf, eps, alpha, 4, early).explain(x)
    assert (e.x_reflection - x).abs().max() <= 2*eps + 1e-5
    assert e.x_reflection.abs().max() <= 1
    assert torch.equal(e.path[:, 0], x)

def test_it_starts_anywhere_in_the_ball(clf, x):
    "Three steps of nearly nothing from the start: the change fills the ball on both sides, as far as the range allows."
    grey = torch.zeros_like(x)
    change = (PGD(clf, eps=.2, alpha=1e-6, steps=3).explain(grey).x_reflection - grey)/2
    assert change.max() > .19 and change.min() < -.19
    assert abs(change.mean()) < .01
    assert change.std().item() == pytest.approx(.2/3**.5, rel=.05)   # uniform in the ball

def test_a_loop_by_hand_agrees(clf, x):
    "One image at a time, no masks, the formula as it stands."
    pgd = PGD(clf, steps=3)
    noise = 2*torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1
    start = ((x + 1)/2 + pgd.eps*noise).clamp(0, 1)
    want = []
    for s, v, c in zip((x + 1)/2, start, runner_up(clf, x)):
        for _ in range(3):
            v = v.detach().requires_grad_()
            F.cross_entropy(clf(v[None]*2 - 1), c[None]).backward()
            v = (s + (v - pgd.alpha*v.grad.sign() - s).clamp(-pgd.eps, pgd.eps)).clamp(0, 1).detach()
        want.append(v*2 - 1)
    assert agree(pgd.explain(x).x_reflection, torch.stack(want))

def test_early_stop_leaves_what_has_turned(clf, x):
    "Step by step: an image that is called the target stays to the last bit, the others go on."
    early = PGD(clf, alpha=.02, early_stop=True)
    always = PGD(clf, alpha=.02)
    x01 = (x + 1)/2
    t = runner_up(clf, x)
    v, turned = x01, []
    for _ in range(40):
        done = clf(v*2 - 1).argmax(1) == t
        new = early.step(x01, v, t)
        assert torch.equal(new[done], v[done])
        assert agree(new[~done], always.step(x01, v, t)[~done]) or done.all()
        turned.append(done.sum().item())
        v = new
    assert turned == sorted(turned) and turned[0] == 0 and turned[-1] == len(x)

def test_it_follows_from_the_seed(clf, x):
    a, b, c = (PGD(clf, steps=2, seed=s).explain(x).x_reflection for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_the_classifier_is_untouched(clf, x):
    before = [p.clone() for p in clf.parameters()]
    PGD(clf, steps=2).explain(x)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, clf.parameters()))

def test_answers_have_one_form(clf, x):
    t = (clf(x).argmax(1) + 1) % 10
    answer = x.clone()
    answer[0] = torch.nan
    e = two_ended(clf, x, answer, t)
    assert e.status == ['never flipped']*4 and len(e.table()) == 4
    assert e.x_cf.isnan().all() and e.path[0, 1].isnan().all() and e.intended.isnan().all()
    assert e.difference[1:].max() == 0

@pytest.mark.parametrize('bad', [dict(eps=0), dict(eps=2), dict(alpha=-1), dict(alpha=1.1), dict(steps=0)])
def test_bad_settings(clf, bad):
    with pytest.raises(MirrorError, match='found'): PGD(clf, **bad)

class From01(torch.nn.Module):
    "A classifier for images in [0, 1]."
    def __init__(self, clf):
        super().__init__()
        self.clf = clf

    def forward(self, v): return self.clf(v*2 - 1)

def test_torchattacks_agrees(clf, x):
    "The PGD that others use, aimed at the same classes, from the same start: the source."
    torchattacks = pytest.importorskip('torchattacks', reason='pip install --no-deps torchattacks')
    pgd = PGD(clf, steps=20)
    t = runner_up(clf, x)
    x01 = (x + 1)/2
    attack = torchattacks.PGD(From01(clf).eval(), eps=pgd.eps, alpha=pgd.alpha, steps=pgd.steps, random_start=False)
    attack.set_mode_targeted_by_label(quiet=True)
    theirs = attack(x01, t)
    ours = x01
    for _ in range(pgd.steps): ours = pgd.step(x01, ours, t)
    assert (ours - x01).abs().max() > 5*pgd.alpha
    assert agree(ours, theirs)
