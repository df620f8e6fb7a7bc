"CVE: closed form equal to brute force, edits that hold on the map itself, patches pasted where they belong, failures that end in the source."
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
def cve(clf, dls): return CVE(clf).fit(dls)

def runner_up(clf, x): return clf(x).topk(2).indices[:, 1]

def edited(f, f_d, one, upto):
    "The map after the first edits, cell by cell."
    f = f.clone()
    for v in one[:upto]: f[:, v.query[0], v.query[1]] = f_d[:, v.distractor[0], v.distractor[1]]
    return f

def log_p(W, b, f, t): return (W @ f.mean((1, 2)) + b).log_softmax(0)[t]

# --- the ranking -----------------------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), classes=st.integers(2, 5), h=st.integers(1, 3), w=st.integers(1, 4))
def test_closed_form_is_brute_force(seed, n, classes, h, w):
    rng = torch.Generator().manual_seed(seed)
    f, f_d = torch.randn(2, 2, n, h, w, generator=rng, dtype=torch.double)
    W, b, t = torch.randn(classes, n, generator=rng, dtype=torch.double), torch.randn(classes, generator=rng, dtype=torch.double), torch.randint(classes, (2,), generator=rng)
    got = edit_scores(f.mean((2, 3)) @ W.T + b, cell_votes(f, W), cell_votes(f_d, W), t)
    for k in range(2):
        for i in range(h*w):
            for j in range(h*w):
                one = [Edit(divmod(i, w), divmod(j, w), 0.)]
                assert torch.allclose(got[k, i, j], log_p(W, b, edited(f[k], f_d[k], one, 1), t[k]), atol=1e-10)

def test_every_edit_is_the_best_that_is_left(clf, cve, x):
    "Brute force over all free pairs, for a whole search."
    t = runner_up(clf, x)
    edits, maps = cve.edit(x, t), clf.encode(x).maps[-1]
    maps_d = clf.encode(edits.x_d).maps[-1]
    for k, one in enumerate(edits.lists()):
        free_i, free_j = (set((a, b) for a in range(4) for b in range(4)) for _ in range(2))
        for n, v in enumerate(one):
            f = edited(maps[k], maps_d[k], one, n)
            assert clf.logits_of(f.mean((1, 2))[None]).argmax() != t[k], "a search that is done goes on"
            every = {(i, j): log_p(clf.W, clf.b, edited(f, maps_d[k], [Edit(i, j, 0.)], 1), t[k]).item() for i in free_i for j in free_j}
            assert every[v.query, v.distractor] == pytest.approx(max(every.values()), abs=1e-4) and v.log_p == pytest.approx(max(every.values()), abs=1e-4)
            free_i.remove(v.query); free_j.remove(v.distractor)
        if k == 2: break
    assert edits.count.min() >= 1

def test_the_edited_map_is_called_the_target(clf, cve, x):
    t = runner_up(clf, x)
    edits, maps = cve.edit(x, t), clf.encode(x).maps[-1]
    for k, one in enumerate(edits.lists()):
        f = edited(maps[k], clf.encode(edits.x_d[k:k + 1]).maps[-1][0], one, len(one))
        assert clf.logits_of(f.mean((1, 2))[None]).argmax() == t[k] and edits.found[k]
        assert len({v.query for v in one}) == len({v.distractor for v in one}) == len(one) == edits.count[k]

def test_batched_is_one_by_one(clf, cve, x):
    t = runner_up(clf, x)
    whole, e = cve.edit(x, t), cve.explain(x)
    for n in range(len(x)):
        one = cve.edit(x[n:n + 1], t[n:n + 1])
        assert torch.equal(one.i, whole.i[n:n + 1]) and torch.equal(one.j, whole.j[n:n + 1]) and one.index == whole.index[n]
        assert torch.equal(cve.explain(x[n:n + 1]).x_reflection, e.x_reflection[n:n + 1])
        assert len(whole[n]) == 1 and torch.equal(whole[n].i, whole.i[n:n + 1]) and whole[n].shape == whole.shape

# --- distractors -----------------------------------------------------------------------------------------------------------------

def test_the_nearest_is_nearest_and_called_the_target(clf, dls, cve, x):
    t = runner_up(clf, x)
    index, (real, _) = cve.nearest(x, t), dls.train.dataset[:]
    z, z_x = clf.encode(real).z, clf.encode(x).z
    called = clf(real).argmax(1)
    for n in range(len(x)):
        far = (z - z_x[n]).norm(dim=1)
        assert called[index[n]] == t[n] and far[index[n]] == pytest.approx(far[called == t[n]].min().item(), abs=1e-4)
        assert torch.equal(cve.edit(x, t).x_d[n], real[index[n]])

def test_a_given_distractor(clf, cve, x):
    t = runner_up(clf, x)
    d = cve.real[cve.nearest(x, t)]
    fresh = CVE(clf)   # needs no images of its own
    a, b = fresh.edit(x, t, d), cve.edit(x, t)
    assert torch.equal(a.i, b.i) and torch.equal(a.j, b.j) and (a.index == -1).all() and (b.index >= 0).all()
    same = cve.real[cve.called == t[0]][:1]
    assert torch.equal(fresh.explain(x[:1], t[:1], distractor=same).edits.x_d, same)
    with pytest.raises(MirrorError, match='give an image that the classifier calls'): fresh.explain(x, distractor=x)
    with pytest.raises(MirrorError, match='one for all or one each'): fresh.explain(x, distractor=d[:2])
    with pytest.raises(MirrorError, match='must lie in'): fresh.explain(x, distractor=d*3)

def test_kept_images_are_limited_by_class(clf, dls):
    few = CVE(clf, 'cpu', per_class=2).fit(dls)
    assert few.called.bincount(minlength=10).tolist() == [2]*10 and torch.equal(clf(few.real).argmax(1), few.called)

# --- pasting ---------------------------------------------------------------------------------------------------------------------

def edits_of(i, j, x_d, shape):
    i, j = torch.tensor(i), torch.tensor(j)
    return Edits(i, j, torch.zeros(i.shape), torch.ones(len(i), dtype=torch.bool), x_d, torch.full((len(i),), -1), shape)

@pytest.mark.parametrize('size,shape', [((8, 8), (4, 4)), ((6, 8), (3, 2)), ((28, 28), (4, 4)), ((5, 7), (5, 7))])
def test_patches_go_where_they_belong(size, shape):
    (H, W), (h, w) = size, shape
    a, b = H//h, W//w
    x, d = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    i, j = [[0, h*w - 1], [1, -1]], [[h*w - 1, 2], [0, -1]]
    want = x.clone()
    for n in range(2):
        for q, s in zip(i[n], j[n]):
            if q >= 0: want[n, :, q//w*a:q//w*a + a, q % w*b:q % w*b + b] = d[n, :, s//w*a:s//w*a + a, s % w*b:s % w*b + b]
    assert torch.equal(paste(x, edits_of(i, j, d, shape)), want)

@settings(max_examples=30, deadline=None)
@given(H=st.integers(4, 13), W=st.integers(4, 13), h=st.integers(1, 4), w=st.integers(1, 4), seed=st.integers(0, 999))
def test_any_size_pastes_whole_patches(H, W, h, w, seed):
    "Each cell onto itself is the distractor; no edits are the query; a pixel outside the cell never changes."
    rng = torch.Generator().manual_seed(seed)
    x, d, every = torch.rand(1, 1, H, W, generator=rng), torch.rand(1, 1, H, W, generator=rng), [list(range(h*w))]
    assert torch.equal(paste(x, edits_of(every, every, d, (h, w))), d) and torch.equal(paste(x, edits_of([[-1]], [[-1]], d, (h, w))), x)
    q, s = torch.randint(h*w, (2,), generator=rng).tolist()
    inside = (torch.arange(H)*h//H == q//w)[:, None] & (torch.arange(W)*w//W == q % w)
    out = paste(x, edits_of([[q]], [[s]], d, (h, w)))
    source = (torch.arange(H)*h//H == s//w)[:, None] & (torch.arange(W)*w//W == s % w)
    assert torch.equal(out[0, 0][~inside], x[0, 0][~inside]) and torch.isin(out[0, 0][inside], d[0, 0][source]).all()

# --- the answer ------------------------------------------------------------------------------------------------------------------

def test_the_two_levels_are_told_apart(clf, cve, x):
    e = cve.explain(x, truth=torch.zeros(6, dtype=torch.long))
    assert torch.equal(e.x_reflection[e.edits.found], paste(x, e.edits)[e.edits.found]) and e.truth is not None
    assert e[1:].edits.lists() == e.edits.lists()[1:], "a part keeps its edits"
    assert e.status == ['found' if p == c else 'never flipped' for p, c in zip(clf(e.x_reflection).argmax(1), e.target)]

def test_too_few_edits_end_in_the_source(clf, cve, x):
    t = runner_up(clf, x)
    many = cve.edit(x, t).count > 1
    assert many.any()
    short = CVE(clf, max_edits=1)
    e = short.explain(x[many], t[many], distractor=cve.real[cve.nearest(x, t)][many])
    assert not e.edits.found.any() and torch.equal(e.x_reflection, x[many]) and set(e.status) == {'never flipped'} and e.x_cf.isnan().all()
    assert (e.edits.count == 1).all() and torch.allclose(e.achieved[:, 0], e.achieved[:, 1], atol=1e-6) and all('at most' in r for r in e.reason)

def test_a_class_without_images_has_no_distractor(clf, x):
    keep = clf(x).argmax(1) != 3
    e = CVE(clf).fit(get_dls('digits', pair=(4, 9), device='cpu')).explain(x[keep], 3)
    assert e.edits.x_d.isnan().all() and (e.edits.index == -1).all() and not e.edits.found.any() and e.edits.lists() == [[]]*len(e)
    assert torch.equal(e.x_reflection, x[keep]) and set(e.status) == {'never flipped'}

def test_dtype_device_and_classifier_are_kept(dls, x):
    clf = get_classifier('digits', device='cpu')
    cve, before = CVE(clf, 'cpu', per_class=5).fit(dls), [p.clone() for p in clf.parameters()]
    cve.explain(x)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, clf.parameters()))
    cve.classifier.double()
    e = cve.explain(x.double())
    assert e.path.dtype == e.edits.log_p.dtype == torch.double and e.path.device == x.device

# --- settings, files -------------------------------------------------------------------------------------------------------------

def test_presets(clf):
    assert CVE(clf).const == CVEConstants() == CVEConstants(None, None) and CVE(clf, 'cpu').const.per_class == 100 and issubclass(CVE, PreparedBaseline)

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
    a, b = cve.explain(x), again.explain(x)
    assert again.const == cve.const and torch.equal(a.path, b.path) and a.edits.lists() == b.edits.lists()
    with pytest.raises(MirrorError, match='was fitted for classifier'): CVE.load(file, get_oracle('digits', device='cpu'))
    with pytest.raises(MirrorError, match='holds a CVE, not a CEM'): CEM.load(file, clf)
