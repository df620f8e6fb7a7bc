"Whatever is given to `explain`: an `Explanation`, or one of our documented errors."
import math, warnings
from collections import Counter
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.explanation import Explanation

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

SIZE = 16
NAMES = ['zero', 'one', 'two', 'closest', 'four', 'five', 'six', 'seven', 'eight', 'nine']

def tiny(pair=None, **kw):
    "An explainer of an untrained classifier, fitted for one step."
    torch.manual_seed(0)
    clf = small_resnet(10, 1, (4, 6, 8), SIZE, NAMES).freeze()
    dls = get_dls('digits', bs=8, steps=1, size=SIZE, pair=pair, device='cpu')
    return MirrorCFE(clf, amp=False, pair=pair, steps=1, **SHORT, **kw).fit(dls, epochs=1, progress=False)

@pytest.fixture(scope='module')
def cfe(): return tiny()

@pytest.fixture(scope='module')
def pair(): return tiny((4, 9))

# --- what is given: mostly something usable -------------------------------------------------------------------------

def mostly(good, bad): return st.integers(0, 4).flatmap(lambda i: bad if i == 0 else good)

DTYPES = [torch.float32]*6 + [torch.float16, torch.bfloat16, torch.float64]
DTYPES += [torch.uint8, torch.int64, torch.bool, torch.complex64]
FILLS = ['digits']*6 + ['zeros', 'ones', 'bytes', 'wide', 'nan', 'inf', 'same']
NO_IMAGES = [None, 'x.png', 3, [], [[1.]], np.zeros((1, 1, SIZE, SIZE)), object(), torch.tensor(1.),
             torch.zeros(SIZE, SIZE)]

def filled(x, fill):
    "The images `x` changed as `fill` says."
    if fill == 'same' and len(x): return x[:1].expand(x.shape)
    if fill in ('nan', 'inf') and x.numel(): x[..., 0, 0] = math.nan if fill == 'nan' else math.inf
    return {'zeros': x*0, 'ones': x*0 + 1, 'bytes': (x + 1)*127.5, 'wide': x*1e6}.get(fill, x)

@st.composite
def images(draw):
    if draw(st.integers(0, 11)) == 0: return draw(st.sampled_from(NO_IMAGES))
    batch = draw(st.integers(0, 4))
    channels = draw(st.sampled_from([1]*8 + [0, 2, 3]))
    height = draw(st.sampled_from([SIZE]*8 + [0, 1, 15, 32]))
    width = draw(st.sampled_from([SIZE]*8 + [0, 17]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.rand(batch, channels, height, width, generator=g)*2 - 1
    return filled(x, draw(st.sampled_from(FILLS))).to(draw(st.sampled_from(DTYPES)))

odd_class = st.sampled_from(['ten', '', 'runner-up', 10**30, 1j, np.int64(3), b'3', object()])
one_class = st.one_of(st.integers(0, 9), st.sampled_from(NAMES), st.integers(-3, 12), st.floats(), st.none(),
                      st.booleans(), odd_class)
good_target = st.one_of(st.none(), st.integers(0, 9), st.sampled_from(NAMES + ['runner-up', 'closest']),
                        st.integers(0, 9).map(np.int64))
odd_targets = st.sampled_from([np.array([1, 2]), np.array(['one']), {}, {'a': 1}, torch.zeros(2, 2).long(),
                               torch.tensor(True), (1, 2), range(3)])
bad_target = st.one_of(one_class, st.lists(one_class, max_size=5),
                       st.lists(st.integers(0, 9), min_size=1, max_size=4),
                       st.lists(st.integers(-1, 10), max_size=4).map(torch.tensor),
                       st.lists(st.floats(), max_size=4).map(torch.tensor), odd_targets)
target = mostly(good_target, bad_target)

good_steps = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4, unique=True).map(sorted)
odd_steps = st.sampled_from([[0, 1], [1], [], 'k', 3, {}, [None], [[0, 1]], torch.tensor([0., 1.]),
                             torch.tensor([0, 1]), np.array([.5]), [10**400], object()])
steps = mostly(good_steps, st.one_of(st.lists(st.floats(), max_size=4), odd_steps))

odd_confidence = st.sampled_from(['.8', [[.5]], torch.full((2, 2), .4), torch.tensor(.5), True, object(), [.2, .8],
                                  1e-300, 1 - 1e-16])
confidence = mostly(st.one_of(st.none(), st.floats(.01, .99)),
                    st.one_of(st.floats(), st.lists(st.floats(), max_size=3), odd_confidence))

good_options = st.fixed_dictionaries(dict(on_same=st.just('mark')),
                                     optional=dict(closed_loop=st.booleans(), bs=st.sampled_from([1, 3, 256])))
odd_truth = st.one_of(st.none(), st.lists(st.integers(-1, 10), max_size=4),
                      st.sampled_from(['one', 3, [1.5], torch.zeros(4)]))
bad_options = dict(on_same=st.sampled_from(['raise', 'mark', 'skip', None, 3, []]),
                   bs=st.sampled_from([0, -1, 2.5, None, 'x', True]), truth=odd_truth)
options = mostly(good_options, st.fixed_dictionaries({}, optional=bad_options))

# --- what comes back ------------------------------------------------------------------------------------------------

def check(ex, p):
    "An explanation is whole: one row for each image, numbers where something moved, NaN where nothing did."
    n = len(ex)
    assert isinstance(ex, Explanation) and str(ex)
    assert ex.path.shape[:2] == (n, len(ex.ks))
    assert len(ex.table()) == len(ex.status) == len(ex.reason) == n
    moved = torch.tensor([s != 'already target' for s in ex.status], dtype=torch.bool)
    assert ex.path[moved].isfinite().all() and ex.path[~moved].isnan().all()
    assert (ex.target_confidence is None) == (p is None)
    if p is not None:
        c = ex.target_confidence
        assert len(c.table()) == c.p.numel() and len(c.status) == n
        assert ((c.drawn_k >= 0) & (c.drawn_k <= 1))[moved].all()

def outcome(explain):
    "'explained' if `explain` returns, 'refused' if it raises one of our errors."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: return 'explained', explain()
        except MirrorError as e:
            assert str(e)
            return 'refused', None

quick = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))

count = Counter()

def try_out(cfe, x, target, ks, p, kw):
    what, ex = outcome(lambda: cfe.explain(x, target, ks=ks, target_confidence=p, **kw))
    if ex is not None: check(ex, p)
    count[what] += 1

@quick
@given(x=images(), target=target, ks=steps, p=confidence, kw=options)
def test_anything_at_all(cfe, x, target, ks, p, kw): try_out(cfe, x, target, ks, p, kw)

def good_images(n, seed): return torch.rand(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))*2 - 1
good = st.builds(good_images, st.integers(0, 4), st.integers(0, 50))

@settings(quick, max_examples=60)
@given(x=good, target=target, p=confidence, kw=options)
def test_good_images_and_any_target(cfe, x, target, p, kw): try_out(cfe, x, target, [0, .5, 1], p, kw)

@settings(quick, max_examples=40)
@given(x=good, target=target, p=confidence, kw=options)
def test_a_pair(pair, x, target, p, kw): try_out(pair, x, target, [1], p, kw)

@settings(quick, max_examples=40)
@given(x=images(), targets=target, p=confidence)
def test_explain_all(cfe, x, targets, p):
    _, ex = outcome(lambda: cfe.explain_all(x, targets, ks=[1], closed_loop=False, target_confidence=p))
    if ex is not None: check(ex, p)

def test_both_ends_were_reached():
    if not count: pytest.skip('the tests above did not run')
    assert count['explained'] > 50 and count['refused'] > 50
