"Wishes: the step of a confidence against bisection on the same path, the closest class against a search, every refusal."
import pytest, torch
from hypothesis import given, settings, strategies as st
from mirrorcfe.core import MirrorError
from mirrorcfe.multiclass import ClosedFormSolver, LBFGSSolver, NaiveSolver, path_logits
from mirrorcfe.confidence import bisect_step, check_confidence, closest_class, move_lengths, confidence_step

def problem(seed, C, B=6, N=40, scale=1.):
    g = torch.Generator().manual_seed(seed)
    W, b, z = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((C, N), (C,), (B, N)))
    solver = ClosedFormSolver(W*scale, b)
    l = solver.logits(z)
    s = l.argmax(1)
    return solver, z, l, s, (s + torch.randint(1, C, (B,), generator=g)) % C

def at(l, s, t, k): return path_logits(l, s, t, k).softmax(1).gather(1, t[:, None]).squeeze(1)

@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(.01, 60), st.floats(1e-6, 1 - 1e-6))
def test_the_path_has_the_wish_at_the_step(seed, C, scale, p):
    _, _, l, s, t = problem(seed, C)
    l = l*scale/l.std()
    k = confidence_step(l, s, t, p).squeeze(1)
    assert torch.allclose(at(l, s, t, k), torch.full((6,), p, dtype=torch.float64), atol=1e-9)

@pytest.mark.parametrize('C', [2, 3, 10, 100])
def test_the_latent_has_the_wish_too(C):
    solver, z, l, s, t = problem(1, C, N=128)
    p = torch.rand(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)*.9 + .05
    k = confidence_step(l, s, t, p)
    for j in range(4):
        got = solver.logits(solver(z, s, t, k[:, j])).softmax(1).gather(1, t[:, None]).squeeze(1)
        assert torch.allclose(got, p[:, j], atol=1e-8)

def test_formula_and_bisection_agree():
    _, _, l, s, t = problem(3, 10)
    p = l.softmax(1)
    p = (p.gather(1, t[:, None]) + .7*(p.gather(1, s[:, None]) - p.gather(1, t[:, None]))).squeeze(1)
    assert torch.allclose(bisect_step(lambda k: at(l, s, t, k), p), confidence_step(l, s, t, p[:, None]).squeeze(1), atol=1e-9)

def test_zero_and_one_are_the_ends_of_what_can_be_wished():
    _, _, l, s, t = problem(4, 10)
    ends = torch.stack([l.softmax(1).gather(1, c[:, None]).squeeze(1) for c in (t, s)], 1)
    assert torch.allclose(confidence_step(l, s, t, ends), torch.tensor([0., 1.], dtype=torch.float64).expand(6, 2), atol=1e-8)

def test_it_grows_with_the_wish():
    _, _, l, s, t = problem(5, 10)
    assert (confidence_step(l, s, t, torch.linspace(.01, .99, 50)).diff(dim=1) > 0).all()

def test_bisection_stays_at_an_end():
    p = torch.tensor([-1., .3, 2.], dtype=torch.float64)
    assert torch.allclose(bisect_step(lambda k: k, p), torch.tensor([0., .3, 1.], dtype=torch.float64), atol=1e-9)
    assert bisect_step(lambda k: k, p)[[0, 2]].tolist() == [0, 1]

@pytest.mark.parametrize('C', [2, 3, 8])
@pytest.mark.parametrize('mode', ['logit', 'prob'])
def test_lengths_are_those_of_a_search(C, mode):
    solver, z, l, s, _ = problem(7, C)
    solver = ClosedFormSolver(solver.W, solver.b, mode)
    d, ks = move_lengths(solver, l), torch.linspace(.5, 1, 4001, dtype=torch.float64)
    for i in range(len(z)):
        for t in range(C):
            if t == s[i]: assert d[i, t] == torch.inf; continue
            z_k = solver(z[i:i+1].expand(len(ks), -1), s[i], t, ks)
            first = solver.logits(z_k).argmax(1).eq(t).float().argmax()
            assert torch.isclose((z_k[first] - z[i]).norm(), d[i, t], rtol=2e-3)
    assert torch.equal(closest_class(solver, l), d.argmin(1))

def test_the_naive_path_is_measured_along_its_own_normal():
    solver, z, l, s, t = problem(8, 2)
    naive = NaiveSolver(solver.W, solver.b)
    d = move_lengths(naive, l).gather(1, t[:, None]).squeeze(1)
    assert torch.allclose(d, (naive(z, s, t, .5) - z).norm(dim=1), rtol=1e-6)

def test_lbfgs_is_measured_by_the_closed_form():
    solver, _, l, *_ = problem(9, 5)
    assert torch.allclose(move_lengths(LBFGSSolver(solver.W, solver.b), l), move_lengths(solver, l))

def test_a_thousand_classes_need_no_table_of_latents():
    solver, _, l, *_ = problem(10, 1000, B=4, N=64)
    assert move_lengths(solver, l).shape == (4, 1000)

@pytest.mark.parametrize('p', [0, 1, -.1, 1.2, float('nan'), float('inf'), 'x', None, [], [[.5]*2]*3, [[[.5]]], [.5, 'x'], object()])
def test_no_wish(p):
    with pytest.raises(MirrorError, match='target_confidence'): check_confidence(p, 6)

def test_refusals():
    solver, _, l, s, t = problem(11, 4)
    for bad in (lambda: confidence_step(l, s, s, .5), lambda: confidence_step(l, 9, t, .5), lambda: confidence_step(l[0], 0, 1, .5), lambda: move_lengths(solver, l[:, :2]), lambda: closest_class(solver, l, 7)):
        with pytest.raises(MirrorError): bad()
