"The floors: nothing changed, a real image, a fade; a class without images is no answer."
import pytest, torch
from mirrorcfe.baselines.floors import Floor, Identity, NearestNeighbour, PixelBlend
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits', device='cpu')

@pytest.fixture(scope='module')
def x(): return get_dls('digits', device='cpu').test.one_batch()[0][:4]

def test_identity_changes_nothing(clf, x): assert torch.equal(Identity(clf).explain(x).x_reflection, x)

def test_the_nearest_is_real_and_of_the_class(clf, x):
    dls = get_dls('digits', device='cpu')
    e = NearestNeighbour(clf).fit(dls).explain(x, 7) if (clf(x).argmax(1) != 7).all() else NearestNeighbour(clf).fit(dls).explain(x)
    real, y = dls.train.dataset[:]
    for img, c in zip(e.x_reflection, e.target): assert any(torch.equal(img, r) for r in real[y == c])

@pytest.mark.parametrize('kind', [NearestNeighbour, PixelBlend])
def test_a_class_without_images_has_no_answer(clf, x, kind):
    keep = clf(x).argmax(1) != 3
    e = kind(clf).fit(get_dls('digits', pair=(4, 9), device='cpu')).explain(x[keep], 3)
    assert set(e.status) == {'never flipped'} and e.x_cf.isnan().all() and len(e.table()) == int(keep.sum())

def test_the_fade_runs_from_end_to_end(clf, x):
    f = PixelBlend(clf).fit(get_dls('digits', device='cpu'))
    e = f.explain(x, steps=5)
    assert torch.allclose(e.path[:, 0], x) and torch.equal(e.x_reflection, f.nearest(x, e.target)) and e.path.shape[1] == 5

def test_refusals(clf, x):
    assert issubclass(Identity, Floor)
    with pytest.raises(MirrorError, match='call fit'): PixelBlend(clf).explain(x)
    with pytest.raises(MirrorError, match='other than the predicted'): Identity(clf).explain(x, clf(x).argmax(1))
    with pytest.raises(MirrorError, match='must lie in'): Identity(clf).explain(x*5)
