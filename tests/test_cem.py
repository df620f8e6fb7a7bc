"CEM: its pieces against formulas, a batch equal to its samples, only additions, failures that end in the source."
import json, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from mirrorcfe.autoencoder import AutoEncoder, train_autoencoder
from mirrorcfe.baselines.base import FILE_FORMAT, PreparedBaseline
from mirrorcfe.baselines.cem import CEM, CEMConstants, Pertinent, add_only, hinge, next_c, shrink
from mirrorcfe.classifiers import get_classifier, get_oracle
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls

@pytest.fixture(scope='module')
def clf(): return get_classifier('digits', device='cpu')

@pytest.fixture(scope='module')
def x(): return get_dls('digits', device='cpu').test.one_batch()[0][:4]

@pytest.fixture(scope='module')
def ae(): return train_autoencoder(get_dls('digits', device='cpu').train.dataset[:][0][:400], 4)

@pytest.fixture
def double():
    "The classifier in double precision, for rounding may carry a pixel over the threshold."
    return get_classifier('digits', device='cpu').double()

def cem_of(clf, ae, **changes):
    "A short search with an autoencoder that is trained already."
    cem = CEM(clf, 'cpu', **dict(rounds=2, steps=15, c=100.) | changes)
    cem.ae = ae
    return cem

def runner_up(clf, x): return clf(x).topk(2).indices[:, 1]

def number(v): return torch.tensor(v, dtype=torch.double)

# --- the pieces ------------------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0, 3))
def test_hinge_is_the_formula(seed, n, kappa):
    rng = torch.Generator().manual_seed(seed)
    l = torch.randn(5, n, generator=rng, dtype=torch.double)
    t = torch.randint(n, (5,), generator=rng)
    want = []
    for row, c in zip(l.tolist(), t.tolist()):
        others = row[:c] + row[c + 1:]
        want.append(max(0, max(others) - row[c] + kappa))
    assert torch.allclose(hinge(l, t, kappa), number(want))
    assert torch.equal(hinge(l, t) == 0, l.argmax(1) == t)

@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_shrink_is_a_soft_threshold_of_exactly_beta(v, x, beta):
    want = v - beta if v - x > beta else v + beta if v - x < -beta else x
    assert shrink(number(v), number(x), beta).item() == pytest.approx(want, abs=1e-12)

def test_shrink_minimises_its_objective():
    "Half the squared distance plus beta times the 1-norm of the change, by trying all values."
    grid = torch.linspace(-1, 1, 20001, dtype=torch.double)
    for v in (-.4, -.05, .02, .3):
        best = grid[((grid - v)**2/2 + .1*(grid - .2).abs()).argmin()]
        assert abs(shrink(number(v), number(.2), .1) - best) < 1e-3

def test_add_only_is_a_projection():
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(200, generator=rng)
    x = torch.randn(200, generator=rng).clamp(-.5, .5)
    p = add_only(v, x)
    assert torch.equal(add_only(p, x), p) and torch.equal(add_only(x, x), x)
    assert (p >= x).all() and (p <= .5).all()
    allowed = (v >= x) & (v <= .5)
    assert allowed.any() and torch.equal(p[allowed], v[allowed]), "what may stay stays"

def test_the_weights_go_by_the_table():
    "(found?, c, low, high) of every round, worked out by hand; the samples do not mix."
    table = [(False, 10, 0, None), (False, 100, 10, None), (True, 1000, 100, None), (True, 550, 100, 1000),
             (False, 325, 100, 550), (False, 437.5, 325, 550), (True, 493.75, 437.5, 550),
             (False, 465.625, 437.5, 493.75), (True, 479.6875, 465.625, 493.75)]
    c = number([10., 10, 10])
    low = torch.zeros_like(c)
    high = torch.full_like(c, torch.inf)
    for n, (found, want, l, h) in enumerate(table):
        assert (c[0], low[0], high[0]) == (want, l, h or float('inf'))
        assert c[1] == 10/2**n and c[2] == 10.**(n + 1)
        c, low, high = next_c(c, low, high, torch.tensor([found, True, False]))

# --- the objective ---------------------------------------------------------------------------------------------------

def test_the_objective_written_out(clf, ae, x):
    cem = cem_of(clf, ae, gamma=7., kappa=.5)
    t = runner_up(clf, x)
    c = torch.tensor([1., 2, 3, 4])
    v = add_only(x/2 + .1*torch.rand(x.shape, generator=torch.Generator().manual_seed(0)), x/2)
    for n, got in enumerate(cem.smooth(x/2, v, t, c)):
        l = clf(2*v[n:n + 1])[0]
        behind = max(l[j] for j in range(10) if j != t[n]) - l[t[n]]
        moved = (v[n] - x[n]/2).pow(2).sum()
        strange = (v[n] - ae(2*v[n:n + 1])[0]/2).pow(2).sum()
        want = c[n]*max(0, behind + .5) + moved + 7*strange
        assert got.item() == pytest.approx(want.item(), rel=1e-4)

def test_a_loop_by_hand_agrees(double, x):
    "One image, double precision, FISTA and the search for c as they stand in the text."
    clf = double
    torch.manual_seed(0)
    ae = AutoEncoder().double().eval().requires_grad_(False)
    x = x[:1].double()
    cem = cem_of(clf, ae, gamma=.1, steps=8, rounds=3, kappa=.2)
    t = runner_up(clf, x)
    x0 = x/2
    best, cost = None, float('inf')
    c, low, high = 100., 0., None
    for _ in range(3):
        v = y = x0
        hit = False
        for i in range(8):
            y = y.detach().requires_grad_()
            l = clf(2*y)[0]
            others = torch.cat([l[:t], l[t + 1:]]).max()
            strange = ((y - ae(2*y)/2)**2).sum()
            loss = c*torch.relu(others - l[t] + .2) + ((y - x0)**2).sum() + .1*strange
            loss.sum().backward()
            d = (y - .01*(1 - i/8)**.5*y.grad - x0).detach()
            d = torch.where(d > .1, d - .1, torch.where(d < -.1, d + .1, 0.))
            new = torch.maximum((x0 + d).clamp(-.5, .5), x0)
            y, v = torch.maximum((new + i/(i + 3)*(new - v)).clamp(-.5, .5), x0), new
            l = clf(2*v)[0]
            if l[t] >= torch.cat([l[:t], l[t + 1:]]).max() + .2:
                hit = True
                norms = ((v - x0)**2).sum() + .1*(v - x0).abs().sum()
                if norms < cost: best, cost = v, norms
        if hit: high = c if high is None else min(high, c)
        else: low = max(low, c)
        c = 10*c if high is None else (low + high)/2
    got = cem.search(x, t)
    assert best is not None, "a search that finds nothing compares nothing"
    assert got.found.item() and torch.allclose(got.x, 2*best, atol=1e-9)
    assert got.cost.item() == pytest.approx(cost.item())

def test_batched_is_one_by_one(double, ae, x):
    wide = AutoEncoder()
    wide.load_state_dict(ae.state_dict())
    cem = cem_of(double, wide.double().eval().requires_grad_(False), steps=10, rounds=3)
    x = x[:3].double()
    t = runner_up(double, x)
    whole = cem.search(x, t)
    for n in range(len(x)):
        one = cem.search(x[n:n + 1], t[n:n + 1])
        assert torch.allclose(one.x, whole.x[n:n + 1], atol=1e-9)
        assert one.found == whole.found[n] and torch.allclose(one.cost, whole.cost[n:n + 1])
        assert torch.allclose(one.c, whole.c[n:n + 1], equal_nan=True)
    assert whole.found.any()

# --- the answer ------------------------------------------------------------------------------------------------------

def test_it_only_adds_and_keeps_the_cheapest(clf, ae, x):
    cem = cem_of(clf, ae)
    t = runner_up(clf, x)
    got = cem.search(x, t)
    assert isinstance(got, Pertinent) and got.found.any()
    assert (got.x >= x).all() and got.x.max() <= 1
    d = (got.x - x)/2
    cost = d.square().sum((1, 2, 3)) + .1*d.abs().sum((1, 2, 3))
    assert torch.allclose(cost[got.found], got.cost[got.found], rtol=1e-4)
    more = cem_of(clf, ae, rounds=3).search(x, t)
    assert (more.cost <= got.cost).all(), "a further round can only do better"

def test_the_explanation_holds_what_was_found(clf, ae, x):
    cem = cem_of(clf, ae)
    got = cem.search(x, runner_up(clf, x))
    e = cem.explain(x)
    assert torch.equal(e.x_reflection, got.x) and torch.equal(e.found, got.found)
    assert e.status == ['found' if f else 'never flipped' for f in got.found]
    assert torch.equal(e[[2, 0]].found, e.found[[2, 0]]) and torch.equal(e[1].found, e.found[1:2]), "a part keeps it"

def test_of_two_solutions_the_cheaper_is_kept(clf, ae, x):
    cem = cem_of(clf, ae)
    real, label = get_dls('digits', device='cpu').train.dataset[:]
    v = real[clf(real).argmax(1) == 3][:3]/2
    x = torch.full_like(v, -.5)
    t = torch.full((3,), 3)
    none = Pertinent(x, torch.zeros(3, dtype=torch.bool), torch.full((3,), torch.inf), torch.full((3,), torch.nan))
    first, hit = cem.keep(none, x, v, t, torch.ones(3))
    assert hit.all() and first.found.all() and torch.equal(first.x, v) and torch.equal(first.c, torch.ones(3))
    fourth = v.roll(1, 0)   # other solutions: some cost less, some more
    second, hit = cem.keep(first, x, fourth, t, 2*torch.ones(3))
    cheaper = first.cost.roll(1) < first.cost
    assert hit.all() and cheaper.any() and not cheaper.all()
    assert torch.equal(second.c == 2, cheaper)
    assert torch.equal(second.x, torch.where(cheaper[:, None, None, None], fourth, v))
    third, hit = cem.keep(second, x, x, t, 3*torch.ones(3))   # no solution changes nothing
    assert not hit.any() and third.found.all() and torch.equal(third.x, second.x)

def test_a_margin_is_kept(clf, ae, x):
    e = cem_of(clf, ae, kappa=2., steps=30).explain(x)
    l = clf(e.x_reflection)[e.found].sort(descending=True).values
    assert e.found.any() and (l[:, 0] - l[:, 1] >= 2 - 1e-4).all()

def test_no_solution_ends_in_the_source(clf, ae, x):
    cem = cem_of(clf, ae, c=1e-3, gamma=0., rounds=1)
    e = cem.explain(x)
    assert e.status == ['never flipped']*4 and len(e.table()) == 4
    assert not e.found.any() and torch.equal(e.x_reflection, x) and e.x_cf.isnan().all()
    assert torch.allclose(e.achieved[:, 1], e.achieved[:, 0], atol=1e-6) and all('at most' in r for r in e.reason)
    assert cem.search(x, e.target).cost.isinf().all()

def test_dtype_device_and_sources_are_kept(double, x):
    before = x.clone()
    got = cem_of(double, AutoEncoder().eval(), steps=2).explain(x.double())
    assert got.path.dtype == torch.double and got.path.device == x.device and torch.equal(x, before)

def test_the_classifier_is_untouched(clf, ae, x):
    before = [p.clone() for p in clf.parameters()]
    cem_of(clf, ae, steps=2).explain(x)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, clf.parameters()))

# --- settings, fitting, files ----------------------------------------------------------------------------------------

def test_presets(clf):
    k = CEM(clf).const
    assert (k.c, k.rounds, k.steps, k.lr, k.beta, k.gamma, k.kappa) == (10, 9, 1000, .01, .1, 100, 0)
    assert k == CEM(clf, 'paper').const == CEMConstants() and CEM(clf, 'cpu').const.steps < k.steps
    assert issubclass(CEM, PreparedBaseline)

BAD = [dict(steps=0), dict(rounds=1.5), dict(ae_steps=True), dict(c=0), dict(lr=-1), dict(lr=0), dict(beta=-.1),
       dict(gamma=float('nan')), dict(kappa='1'), dict(c=float('inf'))]

@pytest.mark.parametrize('bad', BAD)
def test_bad_constants(clf, bad):
    with pytest.raises(MirrorError, match=f'{next(iter(bad))} must be .*: found'): CEM(clf, **bad)

def test_bad_input(clf, ae, x):
    with pytest.raises(MirrorError, match='preset must be one of'): CEM(clf, 'fast')
    with pytest.raises(MirrorError, match='has no betta'): CEM(clf, betta=1)
    with pytest.raises(MirrorError, match='call fit'): CEM(clf).explain(x)
    with pytest.raises(MirrorError, match='call fit'): CEM(clf).save('never')
    with pytest.raises(MirrorError, match='other than the predicted'): cem_of(clf, ae).explain(x, clf(x).argmax(1))
    with pytest.raises(MirrorError, match='must lie in'): cem_of(clf, ae).explain(x*5)
    with pytest.raises(MirrorError, match='channel'): cem_of(clf, ae).explain(x.expand(-1, 3, -1, -1))

def test_fit_and_files(clf, x, tmp_path):
    cem = CEM(clf, 'cpu', ae_steps=5, rounds=2, steps=5).fit(get_dls('digits', n_train=128, device='cpu'))
    path = cem.save(tmp_path/'new'/'cem.safetensors')
    again = CEM.load(path, clf)
    assert again.const == cem.const and torch.equal(again.explain(x).path, cem.explain(x).path)
    assert [p.name for p in path.parent.iterdir()] == ['cem.safetensors']
    with pytest.raises(MirrorError, match='exists'): cem.save(path)
    other = get_oracle('digits', device='cpu')
    with pytest.raises(MirrorError, match='was fitted for classifier'): CEM.load(path, other)

def test_a_wider_autoencoder_comes_back(clf, x, tmp_path):
    cem = cem_of(clf, AutoEncoder(1, width=5, latent=3).eval())
    again = CEM.load(cem.save(tmp_path/'cem.safetensors'), clf)
    assert torch.equal(again.ae(x), cem.ae(x)) and not again.ae.training

def damaged(file, how, about):
    if how == 'gone': return file.unlink()
    if how == 'cut': return file.write_bytes(file.read_bytes()[:-100])
    if how == 'text': return file.write_text('no tensors')
    if how == 'plain': return save_file({'a': torch.zeros(1)}, file)
    changes = dict(other=dict(method='Other'), format=dict(format=FILE_FORMAT + 1),
                   foreign=dict(constants=dict(betta=1)), empty={})
    save_file({'a': torch.zeros(1)}, file, {'about': json.dumps(about | changes[how])})

DAMAGE = [('gone', 'no file'), ('cut', 'damaged'), ('text', 'damaged'), ('plain', 'not written by save'),
          ('other', 'holds a Other'), ('format', 'reads format'), ('foreign', 'has no betta'),
          ('empty', 'not a whole CEM')]

@pytest.mark.parametrize('how,says', DAMAGE)
def test_files_that_do_not_fit(clf, ae, tmp_path, how, says):
    file = cem_of(clf, ae).save(tmp_path/'cem.safetensors')
    damaged(file, how, dict(format=FILE_FORMAT, version='0', method='CEM', classifier=clf.fingerprint(), constants={}))
    with pytest.raises(MirrorError, match=says): CEM.load(file, clf)

def test_a_folder_that_cannot_be_written(clf, ae, tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(MirrorError, match='cannot write'): cem_of(clf, ae).save(tmp_path/'file'/'cem.safetensors')
