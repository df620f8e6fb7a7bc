"The floors: nothing changed, a real image, a fade; a class without images is no answer."
import pytest, torch
from mirrorcfe.baselines.floors import Floor, Identity, NearestNeighbour, PixelBlend
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits', device='cpu')

@pytest.fixture(scope='module')
def dls(): return get_dls('digits', device='cpu')

@pytest.fixture(scope='module')
def pair(): return get_dls('digits', pair=(4, 9), device='cpu')

@pytest.fixture(scope='module')
def x(dls): return dls.test.one_batch()[0][:4]

def test_identity_changes_nothing(clf, x):
    e = Identity(clf).explain(x)
    assert torch.equal(e.x_reflection, x) and torch.equal(e.target, clf(x).topk(2).indices[:, 1])

def test_the_nearest_is_real_and_of_the_class(clf, dls, x):
    e = NearestNeighbour(clf).fit(dls).explain(x)
    real, label = dls.train.dataset[:]
    for source, image, c in zip(x, e.x_reflection, e.target):
        of_c = real[label == c]
        distance = (of_c - source).abs().mean((1, 2, 3))
        assert torch.equal(image, of_c[distance.argmin()])

def test_nearest_is_by_l1():
    "By the 2-norm the other image would be nearer: one bright pixel against grey everywhere."
    floor = Floor(get_classifier('digits', device='cpu'))
    dot, grey = torch.zeros(2, 1, 8, 8)
    dot[0, 3, 3] = 1.
    grey += .1
    floor.real, floor.label = torch.stack([grey, dot]), torch.tensor([0, 0])
    x = torch.zeros(1, 1, 8, 8)
    assert dot.norm() > grey.norm() and dot.abs().sum() < grey.abs().sum()
    assert torch.equal(floor.nearest(x, torch.tensor([0]))[0], dot)

@pytest.mark.parametrize('kind', [NearestNeighbour, PixelBlend])
def test_a_class_without_images_has_no_answer(clf, pair, x, kind):
    keep = clf(x).argmax(1) != 3
    e = kind(clf).fit(pair).explain(x[keep], 3)
    assert set(e.status) == {'never flipped'} and e.x_cf.isnan().all() and len(e.table()) == int(keep.sum())
    assert e.x_reflection.isnan().all() and e.achieved[:, -1].isnan().all()

def test_a_missing_class_is_missing_alone(clf, pair, x):
    two = x[(clf(x).argmax(1) != 3) & (clf(x).argmax(1) != 9)][:2]
    e = PixelBlend(clf).fit(pair).explain(two, torch.tensor([3, 9]), steps=5)
    assert e.achieved[0, 1:].isnan().all() and e.achieved[1].isfinite().all()
    assert e.status[0] == 'never flipped' and e.path[1].isfinite().all()

def test_the_fade_runs_from_end_to_end(clf, dls, x):
    floor = PixelBlend(clf).fit(dls)
    e = floor.explain(x, steps=5)
    near = floor.nearest(x, e.target)
    assert e.path.shape[1] == 5 and torch.equal(e.ks, torch.linspace(0, 1, 5))
    assert torch.allclose(e.path[:, 0], x) and torch.equal(e.x_reflection, near)
    assert torch.allclose(e.path[:, 1], .75*x + .25*near, atol=1e-6)
    for k in range(5):
        p = clf(e.path[:, k]).softmax(1)[range(4), e.target]
        assert torch.allclose(e.achieved[:, k], p, atol=1e-5)

def test_refusals(clf, x):
    assert issubclass(Identity, Floor)
    with pytest.raises(MirrorError, match='call fit'): PixelBlend(clf).explain(x)
    with pytest.raises(MirrorError, match='other than the predicted'): Identity(clf).explain(x, clf(x).argmax(1))
    with pytest.raises(MirrorError, match='must lie in'): Identity(clf).explain(x*5)
