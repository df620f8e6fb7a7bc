"CVE: closed form equal to brute force, edits that hold on the map, patches where they belong, failures, files."
import pytest, torch
from hypothesis import given, settings, strategies as st
from mirrorcfe.baselines.base import PreparedBaseline
from mirrorcfe.baselines.cem import CEM
from mirrorcfe.baselines.cve import CVE, CVEConstants, Edit, Edits, cell_votes, edit_scores, paste
from mirrorcfe.classifiers import get_classifier, get_oracle
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits', device='cpu')

@pytest.fixture(scope='module')
def dls(): return get_dls('digits', device='cpu')

@pytest.fixture(scope='module')
def x(dls): return dls.test.one_batch()[0][:6]

@pytest.fixture(scope='module')
def t(clf, x): return clf(x).topk(2).indices[:, 1]

@pytest.fixture(scope='module')
def cve(clf, dls): return CVE(clf).fit(dls)

@pytest.fixture(scope='module')
def edits(cve, x, t): return cve.edit(x, t)

def edited(f, f_d, one, upto):
    "The map after the first edits, cell by cell."
    f = f.clone()
    for v in one[:upto]: f[:, v.query[0], v.query[1]] = f_d[:, v.distractor[0], v.distractor[1]]
    return f

def log_p(W, b, f, t): return (W @ f.mean((1, 2)) + b).log_softmax(0)[t]

# --- the ranking -----------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), classes=st.integers(2, 5), h=st.integers(1, 3),
       w=st.integers(1, 4))
def test_closed_form_is_brute_force(seed, n, classes, h, w):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=rng, dtype=torch.double)
    f = draw(2, n, h, w)
    f_d = draw(2, n, h, w)
    W = draw(classes, n)
    b = draw(classes)
    t = torch.randint(classes, (2,), generator=rng)
    got = edit_scores(f.mean((2, 3)) @ W.T + b, cell_votes(f, W), cell_votes(f_d, W), t)
    for k in range(2):
        for i in range(h*w):
            for j in range(h*w):
                one = [Edit(divmod(i, w), divmod(j, w), 0.)]
                want = log_p(W, b, edited(f[k], f_d[k], one, 1), t[k])
                assert torch.allclose(got[k, i, j], want, atol=1e-10)

def test_every_edit_is_the_best_that_is_left(clf, edits, x, t):
    "Brute force over all free pairs, for three whole searches."
    maps = clf.encode(x).maps[-1]
    maps_d = clf.encode(edits.x_d).maps[-1]
    cells = [(a, b) for a in range(4) for b in range(4)]
    for k, one in enumerate(edits.lists()[:3]):
        free_i = set(cells)
        free_j = set(cells)
        for n, v in enumerate(one):
            f = edited(maps[k], maps_d[k], one, n)
            assert clf.logits_of(f.mean((1, 2))[None]).argmax() != t[k], "a search that is done goes on"
            score = lambda i, j: log_p(clf.W, clf.b, edited(f, maps_d[k], [Edit(i, j, 0.)], 1), t[k]).item()
            best = max(score(i, j) for i in free_i for j in free_j)
            assert v.query in free_i and v.distractor in free_j, "a cell is used twice"
            assert score(v.query, v.distractor) == pytest.approx(best, abs=1e-4)
            assert v.log_p == pytest.approx(best, abs=1e-4)
            free_i.remove(v.query)
            free_j.remove(v.distractor)
    assert edits.count.min() >= 1

@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_cell_is_used_twice(clf, cve, seed):
    "Also where a second use would be the best edit: targets far away and a long list."
    rng = torch.Generator().manual_seed(seed)
    pick = torch.randperm(len(cve.real), generator=rng)[:8]
    x = cve.real[pick]
    t = (cve.called[pick] + torch.randint(1, 10, (8,), generator=rng)) % 10
    for one in cve.edit(x, t).lists():
        assert len({v.query for v in one}) == len({v.distractor for v in one}) == len(one)

def test_the_edited_map_is_called_the_target(clf, edits, x, t):
    maps = clf.encode(x).maps[-1]
    maps_d = clf.encode(edits.x_d).maps[-1]
    for k, one in enumerate(edits.lists()):
        f = edited(maps[k], maps_d[k], one, len(one))
        assert clf.logits_of(f.mean((1, 2))[None]).argmax() == t[k] and edits.found[k]
        assert len(one) == edits.count[k]

def test_batched_is_one_by_one(cve, edits, x, t):
    e = cve.explain(x)
    for n in range(len(x)):
        one = cve.edit(x[n:n + 1], t[n:n + 1])
        assert torch.equal(one.i, edits.i[n:n + 1]) and torch.equal(one.j, edits.j[n:n + 1])
        assert one.index == edits.index[n]
        assert torch.equal(cve.explain(x[n:n + 1]).x_reflection, e.x_reflection[n:n + 1])

@pytest.mark.parametrize('part', [0, 2, -1, slice(1, 3), [4, 0], torch.tensor([5]), torch.tensor([True]*2 + [False]*4)])
def test_a_part_of_a_batch(edits, part):
    got = edits[part]
    index = slice(part, part + 1 or None) if isinstance(part, int) else part
    for name in ('i', 'j', 'log_p', 'found', 'x_d', 'index'):
        want = getattr(edits, name)[index]
        assert torch.equal(getattr(got, name).nan_to_num(9.), want.nan_to_num(9.)), name
    assert got.shape == edits.shape and len(got) == len(edits.i[index])

# --- distractors -----------------------------------------------------------------------------------------------------

def test_the_nearest_is_nearest_and_called_the_target(clf, dls, cve, edits, x, t):
    index = cve.nearest(x, t)
    real = dls.train.dataset[:][0]
    e = clf.encode(real)
    z_x = clf.encode(x).z
    called = e.logits.argmax(1)
    for n in range(len(x)):
        distance = (e.z - z_x[n]).norm(dim=1)
        assert called[index[n]] == t[n]
        assert distance[index[n]] == pytest.approx(distance[called == t[n]].min().item(), abs=1e-4)
        assert torch.equal(edits.x_d[n], real[index[n]])

def test_a_given_distractor(clf, cve, edits, x, t):
    d = cve.real[cve.nearest(x, t)]
    fresh = CVE(clf)   # needs no images of its own
    a = fresh.edit(x, t, d)
    assert torch.equal(a.i, edits.i) and torch.equal(a.j, edits.j)
    assert (a.index == -1).all() and (edits.index >= 0).all()
    same = cve.real[cve.called == t[0]][:1]
    assert torch.equal(fresh.explain(x[:1], t[:1], distractor=same).edits.x_d, same)
    with pytest.raises(MirrorError, match='give an image that the classifier calls'): fresh.explain(x, distractor=x)
    with pytest.raises(MirrorError, match='one for all or one each'): fresh.explain(x, distractor=d[:2])
    with pytest.raises(MirrorError, match='must lie in'): fresh.explain(x, distractor=d*3)

def test_the_message_names_the_distractor_that_is_wrong(clf, cve, x, t):
    d = cve.real[cve.nearest(x, t)].clone()
    d[3] = x[3]
    says = f'distractor 3 is called {clf(x[3:4]).argmax()}, the target is {t[3]}'
    with pytest.raises(MirrorError, match=says): cve.edit(x, t, d)

def test_one_distractor_serves_all(clf, cve):
    fours = cve.real[cve.called == 4][:3]
    nine = cve.real[cve.called == 9][:1]
    a = cve.edit(fours, torch.full((3,), 9), nine)
    b = cve.edit(fours, torch.full((3,), 9), nine.expand(3, -1, -1, -1))
    assert torch.equal(a.i, b.i) and torch.equal(a.j, b.j) and torch.equal(a.x_d, b.x_d)

def test_kept_images_are_limited_by_class(clf, dls):
    few = CVE(clf, 'cpu', per_class=2).fit(dls)
    assert few.called.bincount(minlength=10).tolist() == [2]*10
    assert torch.equal(clf(few.real).argmax(1), few.called)

# --- pasting ---------------------------------------------------------------------------------------------------------

def edits_of(i, j, x_d, shape):
    n = len(i)
    i = torch.tensor(i)
    j = torch.tensor(j)
    return Edits(i, j, torch.zeros(i.shape), torch.ones(n, dtype=torch.bool), x_d, torch.full((n,), -1), shape)

@pytest.mark.parametrize('size,shape', [((8, 8), (4, 4)), ((6, 8), (3, 2)), ((28, 28), (4, 4)), ((5, 7), (5, 7))])
def test_patches_go_where_they_belong(size, shape):
    H, W = size
    h, w = shape
    a = H//h
    b = W//w
    rng = torch.Generator().manual_seed(0)
    x, d = torch.rand(2, 2, 3, *size, generator=rng)
    i, j = [[0, h*w - 1, 1], [h*w - 1, -1, -1]], [[h*w - 1, 2, 1], [0, -1, -1]]   # unused places are behind the used
    cell = lambda n: (slice(None), slice(n//w*a, n//w*a + a), slice(n % w*b, n % w*b + b))
    want = x.clone()
    for n, q, s in ((0, 0, h*w - 1), (0, h*w - 1, 2), (0, 1, 1), (1, h*w - 1, 0)):
        want[n][cell(q)] = d[n][cell(s)]
    assert torch.equal(paste(x, edits_of(i, j, d, shape)), want)

@settings(max_examples=30, deadline=None)
@given(H=st.integers(4, 13), W=st.integers(4, 13), h=st.integers(1, 4), w=st.integers(1, 4), seed=st.integers(0, 999))
def test_any_size_pastes_whole_patches(H, W, h, w, seed):
    "Each cell onto itself is the distractor; no edits are the query; a pixel outside the cell never changes."
    rng = torch.Generator().manual_seed(seed)
    x, d = torch.rand(2, 1, 1, H, W, generator=rng)
    every = [list(range(h*w))]
    assert torch.equal(paste(x, edits_of(every, every, d, (h, w))), d)
    assert torch.equal(paste(x, edits_of([[-1]], [[-1]], d, (h, w))), x)
    q, s = torch.randint(h*w, (2,), generator=rng).tolist()
    cell = (torch.arange(H)*h//H*w)[:, None] + torch.arange(W)*w//W   # of every pixel
    rows = lambda n: (cell == n).any(1).nonzero().flatten().tolist()
    cols = lambda n: (cell == n).any(0).nonzero().flatten().tolist()
    want = x[0, 0].clone()
    for a, r in enumerate(rows(q)):
        for b, c in enumerate(cols(q)):
            r_d = rows(s)[min(a, len(rows(s)) - 1)]
            c_d = cols(s)[min(b, len(cols(s)) - 1)]
            want[r, c] = d[0, 0, r_d, c_d]
    assert torch.equal(paste(x, edits_of([[q]], [[s]], d, (h, w)))[0, 0], want)

# --- the answer ------------------------------------------------------------------------------------------------------

def test_the_two_levels_are_told_apart(clf, cve, x):
    e = cve.explain(x, truth=torch.zeros(6, dtype=torch.long))
    found = e.edits.found
    assert torch.equal(e.x_reflection[found], paste(x, e.edits)[found]) and e.truth is not None
    assert e[1:].edits.lists() == e.edits.lists()[1:], "a part keeps its edits"
    called = clf(e.x_reflection).argmax(1)
    assert e.status == ['found' if p == c else 'never flipped' for p, c in zip(called, e.target)]

def test_too_few_edits_end_in_the_source(clf, cve, edits, x, t):
    many = edits.count > 1
    assert many.any()
    e = CVE(clf, max_edits=1).explain(x[many], t[many], distractor=edits.x_d[many])
    assert not e.edits.found.any() and (e.edits.count == 1).all()
    assert torch.equal(e.x_reflection, x[many]) and set(e.status) == {'never flipped'} and e.x_cf.isnan().all()
    assert torch.allclose(e.achieved[:, 0], e.achieved[:, 1], atol=1e-6) and all('at most' in r for r in e.reason)

def test_a_class_without_images_has_no_distractor(clf, x):
    keep = clf(x).argmax(1) != 3
    e = CVE(clf).fit(get_dls('digits', pair=(4, 9), device='cpu')).explain(x[keep], 3)
    assert e.edits.x_d.isnan().all() and (e.edits.index == -1).all()
    assert not e.edits.found.any() and e.edits.lists() == [[]]*len(e)
    assert torch.equal(e.x_reflection, x[keep]) and set(e.status) == {'never flipped'}

def test_only_some_have_a_distractor(clf, x, t):
    "A query without one stays as it is; its neighbour is edited as if alone."
    fitted = CVE(clf).fit(get_dls('digits', pair=(4, 9), device='cpu'))
    two = x[(clf(x).argmax(1) != 3) & (clf(x).argmax(1) != 9)][:2]
    both = fitted.explain(two, torch.tensor([3, 9]))
    alone = fitted.explain(two[1:], torch.tensor([9]))
    assert both.edits.found.tolist() == [False, True] and both.edits.count[0] == 0
    assert torch.equal(both.x_reflection[0], two[0]) and torch.equal(both.x_reflection[1:], alone.x_reflection)

def test_dtype_device_and_classifier_are_kept(dls, x):
    clf = get_classifier('digits', device='cpu')
    cve = CVE(clf, 'cpu', per_class=5).fit(dls)
    before = [p.clone() for p in clf.parameters()]
    cve.explain(x)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, clf.parameters()))
    cve.classifier.double()
    e = cve.explain(x.double())
    assert e.path.dtype == e.edits.log_p.dtype == torch.double and e.path.device == x.device

# --- settings, files -------------------------------------------------------------------------------------------------

def test_presets(clf):
    assert CVE(clf).const == CVEConstants() == CVEConstants(None, None)
    assert CVE(clf, 'cpu').const.per_class == 100 and issubclass(CVE, PreparedBaseline)

@pytest.mark.parametrize('bad', [dict(max_edits=0), dict(max_edits=1.5), dict(per_class=-1), dict(per_class=True)])
def test_bad_constants(clf, bad):
    with pytest.raises(MirrorError, match='found'): CVE(clf, **bad)

def test_bad_input(clf, cve, x):
    with pytest.raises(MirrorError, match='call fit'): CVE(clf).explain(x)
    with pytest.raises(MirrorError, match='call fit'): CVE(clf).save('never')
    with pytest.raises(MirrorError, match='other than the predicted'): cve.explain(x, clf(x).argmax(1))
    with pytest.raises(MirrorError, match='must lie in'): cve.explain(x*5)
    with pytest.raises(MirrorError, match='has no edits'): CVE(clf, edits=3)

def test_files(clf, dls, x, tmp_path):
    cve = CVE(clf, 'cpu', per_class=4, max_edits=9).fit(dls)
    file = cve.save(tmp_path/'cve.safetensors')
    again = CVE.load(file, clf)
    a = cve.explain(x)
    b = again.explain(x)
    assert again.const == cve.const and torch.equal(a.path, b.path) and a.edits.lists() == b.edits.lists()
    other = get_oracle('digits', device='cpu')
    with pytest.raises(MirrorError, match='was fitted for classifier'): CVE.load(file, other)
    with pytest.raises(MirrorError, match='holds a CVE, not a CEM'): CEM.load(file, clf)
