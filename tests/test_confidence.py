"Target confidence: the step against bisection on the same path, the closest class against a search, every refusal."
import pytest, torch
from hypothesis import given, settings, strategies as st
from mirrorcfe.core import MirrorError
from mirrorcfe.multiclass import ClosedFormSolver, LBFGSSolver, NaiveSolver, path_logits
from mirrorcfe.confidence import bisect_step, check_confidence, closest_class, confidence_step, move_lengths

def problem(seed, C, B=6, N=40):
    "A solver, latents, their logits, the predicted classes and others."
    g = torch.Generator().manual_seed(seed)
    W, b, z = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((C, N), (C,), (B, N)))
    solver = ClosedFormSolver(W, b)
    l = solver.logits(z)
    s = l.argmax(1)
    return solver, z, l, s, (s + torch.randint(1, C, (B,), generator=g)) % C

def pick(v, c): return v.gather(1, c[:, None]).squeeze(1)
def at(l, s, t, k): return pick(path_logits(l, s, t, k).softmax(1), t)

@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(.01, 60), st.floats(1e-6, 1 - 1e-6))
def test_the_path_has_the_target_confidence_at_the_step(seed, C, scale, p):
    _, _, l, s, t = problem(seed, C)
    l = l*scale/l.std()
    k = confidence_step(l, s, t, p).squeeze(1)
    assert torch.allclose(at(l, s, t, k), torch.full((6,), p, dtype=torch.float64), atol=1e-9)

@pytest.mark.parametrize('C', [2, 3, 10, 100])
def test_the_latent_has_the_target_confidence_too(C):
    solver, z, l, s, t = problem(1, C, N=128)
    p = torch.rand(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)*.9 + .05
    k = confidence_step(l, s, t, p)
    for j in range(4):
        got = pick(solver.logits(solver(z, s, t, k[:, j])).softmax(1), t)
        assert torch.allclose(got, p[:, j], atol=1e-8)

def test_formula_and_bisection_agree():
    _, _, l, s, t = problem(3, 10)
    p_s = pick(l.softmax(1), s)
    p_t = pick(l.softmax(1), t)
    p = p_t + .7*(p_s - p_t)
    by_formula = confidence_step(l, s, t, p[:, None]).squeeze(1)
    assert torch.allclose(bisect_step(lambda k: at(l, s, t, k), p), by_formula, atol=1e-9)

def test_zero_and_one_are_the_ends_of_what_can_be_reached():
    _, _, l, s, t = problem(4, 10)
    ends = torch.stack([pick(l.softmax(1), t), pick(l.softmax(1), s)], 1)
    zero_one = torch.tensor([0., 1.], dtype=torch.float64).expand(6, 2)
    assert torch.allclose(confidence_step(l, s, t, ends), zero_one, atol=1e-8)

def test_the_step_grows_with_the_target_confidence():
    _, _, l, s, t = problem(5, 10)
    assert (confidence_step(l, s, t, torch.linspace(.01, .99, 50)).diff(dim=1) > 0).all()

def test_bisection_stays_at_an_end():
    p = torch.tensor([-1., .3, 2.], dtype=torch.float64)
    assert torch.allclose(bisect_step(lambda k: k, p), torch.tensor([0., .3, 1.], dtype=torch.float64), atol=1e-9)
    assert bisect_step(lambda k: k, p)[[0, 2]].tolist() == [0, 1]

def test_bisection_keeps_the_nearest_step_it_saw():
    "A confidence that jumps from .06 to .86 at k = .6: the step is on that side of the jump that is nearer to `p`."
    def jump(k): return torch.where(k < .6, .1*k, .8 + .1*k)
    above, below = bisect_step(jump, torch.tensor([.5, .3], dtype=torch.float64)).tolist()
    assert .6 <= above < .6 + 1e-9 and .6 - 1e-9 < below < .6

def test_bisection_sees_both_ends_and_then_halves():
    seen = []
    def confidence(k):
        seen.append(k.item())
        return k
    bisect_step(confidence, torch.tensor([.3], dtype=torch.float64), steps=3)
    assert seen == [0, 1, .5, .25, .375]

@pytest.mark.parametrize('C', [2, 3, 8])
@pytest.mark.parametrize('mode', ['logit', 'prob'])
def test_lengths_are_those_of_a_search(C, mode):
    solver, z, l, s, _ = problem(7, C)
    solver = ClosedFormSolver(solver.W, solver.b, mode)
    d = move_lengths(solver, l)
    ks = torch.linspace(.5, 1, 4001, dtype=torch.float64)
    for i in range(len(z)):
        for t in range(C):
            if t == s[i]:
                assert d[i, t] == torch.inf
                continue
            z_k = solver(z[i:i+1].expand(len(ks), -1), s[i], t, ks)
            first = solver.logits(z_k).argmax(1).eq(t).float().argmax()
            assert torch.isclose((z_k[first] - z[i]).norm(), d[i, t], rtol=2e-3)
    assert torch.equal(closest_class(solver, l), d.argmin(1))

def test_the_naive_path_is_measured_along_its_own_normal():
    solver, z, l, s, t = problem(8, 2)
    naive = NaiveSolver(solver.W, solver.b)
    d = pick(move_lengths(naive, l), t)
    assert torch.allclose(d, (naive(z, s, t, .5) - z).norm(dim=1), rtol=1e-6)

def test_lbfgs_is_measured_by_the_closed_form():
    solver, _, l, *_ = problem(9, 5)
    assert torch.allclose(move_lengths(LBFGSSolver(solver.W, solver.b), l), move_lengths(solver, l))

def test_classes_that_cannot_be_reached_are_infinitely_far():
    "The source itself, and a class with its weight vector; rounding in its distance must not make it the closest."
    solver, z, l, s, t = problem(12, 6)
    for make in (ClosedFormSolver, NaiveSolver):
        for i in range(len(z)):
            W = solver.W.clone()
            W[t[i]] = W[s[i]]*(1 + 1e-9)
            same = make(W, solver.b)
            d = move_lengths(same, same.logits(z), s)
            assert d[i, s[i]] == torch.inf and d[i, t[i]] == torch.inf
            assert d[i].isfinite().sum() == 4 and closest_class(same, same.logits(z), s)[i] not in (s[i], t[i])

def test_a_thousand_classes_need_no_table_of_latents():
    solver, _, l, *_ = problem(10, 1000, B=4, N=64)
    assert move_lengths(solver, l).shape == (4, 1000)

NO_CONFIDENCE = [0, 1, -.1, 1.2, float('nan'), float('inf'), 'x', None, [], [[.5]*2]*3, [[[.5]]], [.5, 'x'], object()]

@pytest.mark.parametrize('p', NO_CONFIDENCE, ids=[str(type(p).__name__) + str(i) for i, p in enumerate(NO_CONFIDENCE)])
def test_what_is_not_a_confidence_is_refused(p):
    with pytest.raises(MirrorError, match='target_confidence'): check_confidence(p, 6)

def test_refusals():
    solver, _, l, s, t = problem(11, 4)
    with pytest.raises(MirrorError, match='both class'): confidence_step(l, s, s, .5)
    with pytest.raises(MirrorError, match='source 9 is outside'): confidence_step(l, 9, t, .5)
    with pytest.raises(MirrorError, match=r'logits must be \(B, C\)'): confidence_step(l[0], 0, 1, .5)
    with pytest.raises(MirrorError, match=r'logits must be \(B, 4\)'): move_lengths(solver, l[:, :2])
    with pytest.raises(MirrorError, match='source 7 is outside'): closest_class(solver, l, 7)
