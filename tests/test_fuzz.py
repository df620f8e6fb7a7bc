"Whatever is given to `explain`: an `Explanation`, or one of our documented errors."
import math, warnings
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.explanation import Explanation

SIZE, NAMES = 16, ['zero', 'one', 'two', 'closest', 'four', 'five', 'six', 'seven', 'eight', 'nine']

def tiny(pair=None, **kw):
    torch.manual_seed(0)
    clf = small_resnet(10, 1, (4, 6, 8), SIZE, NAMES).freeze()
    return MirrorCFE(clf, amp=False, pair=pair, steps=1, **kw).fit(get_dls('digits', bs=8, steps=1, size=SIZE, pair=pair, device='cpu'), epochs=1, progress=False)

@pytest.fixture(scope='module')
def cfe(): return tiny()

@pytest.fixture(scope='module')
def pair(): return tiny((4, 9))

dtypes = [torch.float32]*6 + [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool, torch.complex64]
fills = ['digits']*6 + ['zeros', 'ones', 'bytes', 'wide', 'nan', 'inf', 'same']

@st.composite
def images(draw):
    if draw(st.integers(0, 11)) == 0: return draw(st.sampled_from([None, 'x.png', 3, [], [[1.]], np.zeros((1, 1, SIZE, SIZE)), object(), torch.tensor(1.), torch.zeros(SIZE, SIZE)]))
    shape = draw(st.integers(0, 4)), draw(st.sampled_from([1]*8 + [0, 2, 3])), draw(st.sampled_from([SIZE]*8 + [0, 1, 15, 32])), draw(st.sampled_from([SIZE]*8 + [0, 17]))
    fill, g = draw(st.sampled_from(fills)), torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.rand(shape, generator=g)*2 - 1
    if fill == 'same' and len(x): x = x[:1].expand(shape)
    x = {'zeros': x*0, 'ones': x*0 + 1, 'bytes': (x + 1)*127.5, 'wide': x*1e6}.get(fill, x)
    if fill in ('nan', 'inf') and x.numel(): x[..., 0, 0] = math.nan if fill == 'nan' else math.inf
    return x.to(draw(st.sampled_from(dtypes)))

def mostly(good, bad): return st.integers(0, 4).flatmap(lambda i: bad if i == 0 else good)

one = st.one_of(st.integers(0, 9), st.sampled_from(NAMES), st.integers(-3, 12), st.floats(), st.none(), st.booleans(), st.sampled_from(['ten', '', 'runner-up', 10**30, 1j, np.int64(3), b'3', object()]))
target = mostly(st.one_of(st.none(), st.integers(0, 9), st.sampled_from(NAMES + ['runner-up', 'closest']), st.integers(0, 9).map(np.int64)),
                st.one_of(one, st.lists(one, max_size=5), st.lists(st.integers(0, 9), min_size=1, max_size=4), st.lists(st.integers(-1, 10), max_size=4).map(lambda v: torch.tensor(v)),
                          st.lists(st.floats(), max_size=4).map(torch.tensor),
                          st.sampled_from([np.array([1, 2]), np.array(['one']), {}, {'a': 1}, torch.zeros(2, 2).long(), torch.tensor(True), (1, 2), range(3)])))
steps = mostly(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4, unique=True).map(sorted),
               st.one_of(st.lists(st.floats(), max_size=4), st.sampled_from([[0, 1], [1], [], 'k', 3, {}, [None], [[0, 1]], torch.tensor([0., 1.]), torch.tensor([0, 1]), np.array([.5]), [10**400], object()])))
wish = mostly(st.one_of(st.none(), st.floats(.01, .99)),
              st.one_of(st.floats(), st.lists(st.floats(), max_size=3), st.sampled_from(['.8', [[.5]], torch.rand(2, 2), torch.tensor(.5), True, object(), [.2, .8], 1e-300, 1 - 1e-16])))
other = mostly(st.fixed_dictionaries(dict(on_same=st.just('mark')), optional=dict(closed_loop=st.booleans(), bs=st.sampled_from([1, 3, 256]))),
               st.fixed_dictionaries({}, optional=dict(on_same=st.sampled_from(['raise', 'mark', 'skip', None, 3, []]), bs=st.sampled_from([0, -1, 2.5, None, 'x', True]),
                                                       truth=st.one_of(st.none(), st.lists(st.integers(-1, 10), max_size=4), st.sampled_from(['one', 3, [1.5], torch.zeros(4)])))))

def check(ex, p):
    assert isinstance(ex, Explanation)
    n = len(ex)
    assert ex.path.shape[:2] == (n, len(ex.ks)) and len(ex.table()) == n and len(ex.status) == len(ex.reason) == n and str(ex)
    went = torch.tensor([s != 'already target' for s in ex.status], dtype=torch.bool)
    assert ex.path[went].isfinite().all() and ex.path[~went].isnan().all()
    assert (ex.target_confidence is None) == (p is None)
    if p is not None: assert len(ex.target_confidence.table()) == ex.target_confidence.p.numel() and len(ex.target_confidence.status) == n and ((ex.target_confidence.drawn_k >= 0) & (ex.target_confidence.drawn_k <= 1))[went].all()

count = {}

def go(cfe, x, target, ks, p, kw):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ex = cfe.explain(x, target, ks=ks, target_confidence=p, **kw)
    except MirrorError as e:
        assert str(e)
        count['refused'] = count.get('refused', 0) + 1
        return
    check(ex, p)
    count['explained'] = count.get('explained', 0) + 1

quick = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@quick
@given(x=images(), target=target, ks=steps, p=wish, kw=other)
def test_anything_at_all(cfe, x, target, ks, p, kw): go(cfe, x, target, ks, p, kw)

good = st.builds(lambda n, seed: torch.rand(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))*2 - 1, st.integers(0, 4), st.integers(0, 50))

@settings(quick, max_examples=100)
@given(x=good, target=target, p=wish, kw=other)
def test_good_images_and_any_target(cfe, x, target, p, kw): go(cfe, x, target, [0, .5, 1], p, kw)

@settings(quick, max_examples=60)
@given(x=good, target=target, p=wish, kw=other)
def test_a_pair(pair, x, target, p, kw): go(pair, x, target, [1], p, kw)

@settings(quick, max_examples=40)
@given(x=images(), targets=target, p=wish)
def test_explain_all(cfe, x, targets, p):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ex = cfe.explain_all(x, targets, ks=[1], closed_loop=False, target_confidence=p)
    except MirrorError: return
    check(ex, p)

def test_both_ends_were_reached(): assert count['explained'] > 50 and count['refused'] > 50
