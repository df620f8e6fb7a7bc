"Swapping two logits: three solvers and scipy agree, the axioms hold over random shapes, and every refusal."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from mirrorcfe.core import MirrorError
from mirrorcfe.multiclass import (ClosedFormSolver, LBFGSSolver, NaiveSolver, Solver, latent_flip, move_along,
                                  path_logits, swap_logits)

axioms = settings(deadline=None, max_examples=25)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
seeds = st.integers(0, 10**6)
steps = st.sampled_from([0., .3, .5, .8, 1.])

def head(C=10, N=64, seed=0, rank=None):
    "A random head in double precision, of full rank or of the rank given."
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(C, rank or N, generator=g, dtype=torch.float64)
    if rank: W = W @ torch.randn(rank, N, generator=g, dtype=torch.float64)/rank**.5
    return W/N**.5, torch.randn(C, generator=g, dtype=torch.float64)

def scene(W, b, n=6, seed=1):
    "Latents, the predicted classes, other classes."
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, W.shape[1], generator=g, dtype=torch.float64)
    s = (z @ W.T + b).argmax(-1)
    return z, s, (s + torch.randint(1, len(W), (n,), generator=g)) % len(W)

def near(a, b, tol): torch.testing.assert_close(a, b, rtol=0, atol=tol)

def bfloat16_autocast(): return torch.autocast("cpu", dtype=torch.bfloat16)

# --- what should happen: the logits ---------------------------------------------------------------------------------

@axioms
@given(seeds, st.integers(2, 12), st.integers(0, 5))
def test_swap_exchanges_two_and_keeps_the_rest(seed, C, n):
    W, b = head(C, 4, seed)
    z, s, t = scene(W, b, n, seed)
    l = z @ W.T + b
    i = torch.arange(n)
    swapped = swap_logits(l, s, t)
    assert torch.equal(swapped[i, s], l[i, t]) and torch.equal(swapped[i, t], l[i, s])
    others = torch.ones_like(l).scatter(1, torch.stack([s, t], 1), 0).bool()
    assert torch.equal(swapped[others], l[others])
    assert torch.equal(swap_logits(swapped, s, t), l) and torch.equal(swap_logits(l, t, s), swapped)

@axioms
@given(seeds, st.integers(2, 12), steps)
def test_path_goes_from_the_logits_to_the_swap(seed, C, k):
    W, b = head(C, 4, seed)
    z, s, t = scene(W, b, 5, seed)
    l = z @ W.T + b
    near(path_logits(l, s, t, k), (1 - k)*l + k*swap_logits(l, s, t), 1e-12)
    near(path_logits(l, s, t, torch.full((5,), k, dtype=l.dtype)), path_logits(l, s, t, k), 1e-12)

@axioms
@given(seeds, st.integers(2, 12))
def test_latent_flip_against_brute_force(seed, C):
    "On a fine grid of steps, look where the target leads first."
    W, b = head(C, 6, seed)
    z, s, t = scene(W, b, 8, seed)
    l = z @ W.T + b
    ks = torch.linspace(0, 1, 4001, dtype=torch.float64)
    def each(v): return v.repeat_interleave(len(ks), 0)
    leads = (path_logits(each(l), each(s), each(t), ks.repeat(8)).argmax(-1) == each(t)).view(8, -1)
    first = ks[leads.float().argmax(1)]
    assert leads[:, -1].all() and (leads.long().diff(dim=1) >= 0).all()           # once ahead, ahead for good
    flip = latent_flip(l, s, t)
    assert ((flip >= .5) & (flip < 1)).all()
    near(flip, first, 1.01/4000)

def test_latent_flip_at_the_edges():
    l = torch.tensor([[3., 1.], [1., 3.], [2., 2.]])
    torch.testing.assert_close(latent_flip(l, 0, 1), torch.tensor([.5, float("nan"), float("nan")]), equal_nan=True)
    assert latent_flip(l[:0], 0, 1).shape == (0,)
    not_predicted = torch.tensor([[5., 1., 7.]])
    assert latent_flip(not_predicted, 0, 1) > 1                # the source is not the prediction: no flip on the path

def test_on_the_mirror_both_are_equally_likely():
    W, b = head()
    z, s, t = scene(W, b, 50)
    l = z @ W.T + b
    i = torch.arange(50)
    p = l.softmax(-1)
    half = path_logits(l, s, t, .5).softmax(-1)
    g = (p[i, s]*p[i, t]).sqrt()
    near(half[i, s], g/(2*g + 1 - p[i, s] - p[i, t]), 1e-12)
    near(half[i, s], half[i, t], 1e-12)

# --- how it is reached: solvers against each other ------------------------------------------------------------------

def scipy_solver(W, b, z, s, t, k):
    "The published objective from Eq. 1's point on, one sample at a time, by scipy's L-BFGS."
    A = W.numpy()
    goal = (path_logits(z @ W.T + b, s, t, k) - b).numpy()
    options = dict(ftol=0, gtol=1e-13, maxiter=5000, maxfun=10000, maxcor=30)
    def objective(x, y):
        r = A @ x - y
        return r @ r, 2*A.T @ r
    out = []
    for x0, y in zip(NaiveSolver(W, b)(z, s, t, k).numpy(), goal):
        for _ in range(3):      # a restart forgets the curvature and polishes the last digits
            x0 = minimize(objective, x0, args=(y,), jac=True, method="L-BFGS-B", options=options).x
        out.append(x0)
    return torch.tensor(np.array(out))

HEADS = {"wide": head(10, 64),
         "square": head(8, 8, seed=3),
         "two classes": head(2, 16),
         "N = 512": head(10, 512),
         "more classes than features": head(12, 4),
         "low rank": head(10, 40, rank=5),
         "40 classes": head(40, 64),
         "40 classes on 8 features": head(40, 8)}

@pytest.mark.parametrize("k", [.3, 1.])
@pytest.mark.parametrize("name", HEADS)
def test_closed_form_is_where_lbfgs_converges(name, k):
    W, b = HEADS[name]
    z, s, t = scene(W, b)
    exact = ClosedFormSolver(W, b)(z, s, t, k)
    wolfe = LBFGSSolver(W, b, lr=1, steps=20, max_iter=100, line_search="strong_wolfe")
    near(wolfe(z, s, t, k), exact, 1e-8)
    near(scipy_solver(W, b, z, s, t, k), exact, 1e-8)

@pytest.mark.parametrize("mode", ["logit", "prob"])
@pytest.mark.parametrize("N", [20, 200])
def test_many_classes_go_row_by_row_to_the_same_place(mode, N):
    W, b = head(100, N)
    z, s, t = scene(W, b)
    solver = ClosedFormSolver(W, b, mode)
    for k in (0., .4, 1., torch.linspace(0, 1, 6, dtype=torch.float64)):
        change = path_logits(solver.logits(z), s, t, k) - solver.logits(z)
        near(solver(z, s, t, k), z + change @ solver.P, 1e-10)
    assert solver(z.float(), 0, 1).dtype == torch.float32 and solver(z[:0], s[:0], t[:0]).shape == (0, N)
    with bfloat16_autocast(): inside = solver(z.float(), s, t)
    assert torch.equal(inside, solver(z.float(), s, t))

def test_published_settings_reach_it_too():
    W, b = head(10, 512)
    z, s, t = scene(W, b)
    near(LBFGSSolver(W, b)(z, s, t), ClosedFormSolver(W, b)(z, s, t), 1e-8)

def test_one_problem_a_sample_does_not_depend_on_the_batch():
    W, b = head()
    z, s, t = scene(W, b)
    early = dict(steps=1, max_iter=4)
    alone = LBFGSSolver(W, b, **early)(z[:1], s[:1], t[:1])
    near(LBFGSSolver(W, b, **early, per_sample=True)(z, s, t)[:1], alone, 1e-12)
    assert (LBFGSSolver(W, b, **early)(z, s, t)[:1] - alone).abs().max() > 1e-4

@axioms
@given(seeds, st.integers(2, 10), st.integers(0, 30), steps, st.sampled_from(["logit", "prob"]))
def test_closed_form_reaches_the_path(seed, C, spare, k, mode):
    "With at least as many features as classes nothing is left over."
    W, b = head(C, C + spare, seed)
    z, s, t = scene(W, b, 4, seed)
    solver = ClosedFormSolver(W, b, mode)
    slack = 1e-9*(1 + solver.P.norm()**2)                    # square random heads may be badly conditioned
    got = solver.logits(solver(z, s, t, k))
    want = path_logits(solver.logits(z), s, t, k)
    near(got.softmax(-1), want.softmax(-1), slack)
    if mode == "logit": near(got, want, slack)
    assert solver.rank == (C if mode == "logit" else C - 1) and (solver.residual(z, s, t) < slack).all()

@axioms
@given(seeds, st.integers(1, 30), st.floats(0, 1))
def test_prob_mode_is_eq_1_for_two_classes(seed, N, k):
    W, b = head(2, N, seed)
    W[1] += .1*(W[1] - W[0]).sign()
    z, s, t = scene(W, b, 4, seed)
    naive = NaiveSolver(W, b)
    near(ClosedFormSolver(W, b, "prob")(z, s, t, k), naive(z, s, t, k), 1e-8*(1 + naive(z, s, t).abs().max().item()))

@pytest.mark.parametrize("offset", [0., 1., 1e3, 1e6])
@pytest.mark.parametrize("C, N, rank", [(2, 2, None), (3, 6, 1), (5, 3, None)])
def test_what_centring_cancels_is_no_direction(C, N, rank, offset):
    "Rows that are nearly equal: the rounding of what they share is no singular value of what sets them apart."
    shared = torch.linspace(1, 2, N, dtype=torch.float64)
    for seed in range(50):
        W, b = head(C, N, seed, rank)
        assert ClosedFormSolver(W + offset*shared, b, "prob").rank == min(C - 1, rank or N)

@axioms
@given(seeds, st.sampled_from(["logit", "prob"]))
def test_the_move_is_the_shortest(seed, mode):
    "It lies in the span of the (centred) rows, where the shortest solution lies; and prob mode moves no further."
    W, b = head(6, 20, seed)
    z, s, t = scene(W, b, 4, seed)
    move = ClosedFormSolver(W, b, mode)(z, s, t) - z
    A = W - W.mean(0) if mode == "prob" else W
    near(move @ torch.linalg.pinv(A) @ A, move, 1e-8)
    def length(solver): return (solver(z, s, t) - z).norm(dim=-1)
    assert (length(ClosedFormSolver(W, b, "prob")) <= length(ClosedFormSolver(W, b)) + 1e-9).all()

def test_naive_swaps_the_odds_and_may_be_captured():
    W, b = head()
    z, s, t = scene(W, b, 400)
    naive = NaiveSolver(W, b)
    exact = ClosedFormSolver(W, b)
    i = torch.arange(400)
    l = naive.logits(z)
    out = naive.logits(naive(z, s, t))
    near(out[i, t] - out[i, s], l[i, s] - l[i, t], 1e-10)
    assert 0 < (out.argmax(-1) != t).sum() < 200
    assert (exact.logits(exact(z, s, t)).argmax(-1) == t).all()

def test_reflecting_twice_changes_nothing():
    W, b = head()
    z, s, t = scene(W, b)
    for mode in ("logit", "prob"):
        solver = ClosedFormSolver(W, b, mode)
        near(solver(solver(z, s, t), t, s), z, 1e-10)

# --- heads that cannot swap -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, rank", [("more classes than features", 4), ("low rank", 5)])
def test_residual_is_least_squares(name, rank):
    W, b = HEADS[name]
    z, s, t = scene(W, b)
    solver = ClosedFormSolver(W, b)
    wanted = (swap_logits(solver.logits(z), s, t) - solver.logits(z)).numpy().T
    best = np.linalg.lstsq(W.numpy(), wanted, rcond=1e-10)[0]
    near(solver.residual(z, s, t), torch.tensor(np.linalg.norm(W.numpy() @ best - wanted, axis=0)), 1e-10)
    assert solver.rank == rank and (solver.residual(z, s, t) > 1e-3).all()

def test_rank_of_a_single_precision_head_is_not_its_rounding():
    W, b = head(10, 64, rank=4)
    z, s, t = scene(W, b)
    solver = ClosedFormSolver(W.float(), b.float())
    assert solver.rank == 4 and (solver(z.float(), s, t) - z).norm(dim=-1).max() < 1e3
    near(solver(z.float(), s, t).double(), ClosedFormSolver(W, b)(z, s, t), 1e-3)

def test_half_precision_head_is_solved():
    W, b = head()
    z, s, t = scene(W, b)
    solver = ClosedFormSolver(W.bfloat16(), b.bfloat16())
    assert solver.rank == 10 and solver.residual(z.float(), s, t).max() < 1e-4

def test_one_weight_vector_for_two_classes():
    W, b = head()
    W[1] = W[0]
    b[1] = b[0] + 1
    z = scene(W, b)[0]
    for mode in ("logit", "prob"):
        solver = ClosedFormSolver(W, b, mode)
        near(solver(z, 0, 1), z, 1e-10)
        near(solver.residual(z, 0, 1), torch.full((6,), 2**.5, dtype=torch.float64), 1e-10)
    for solver in (NaiveSolver(W, b), LBFGSSolver(W, b)):
        with pytest.raises(MirrorError, match="share one weight vector"): solver(z, 0, 1)

def test_a_head_of_zeros_moves_nothing():
    z = torch.randn(3, 5)
    solver = ClosedFormSolver(torch.zeros(4, 5), torch.arange(4.))
    assert solver.rank == 0 and torch.equal(solver(z, 0, 1), z)

# --- a tensor operation like any other ------------------------------------------------------------------------------

SOLVERS = {"naive": NaiveSolver,
           "logit": ClosedFormSolver,
           "prob": lambda W, b: ClosedFormSolver(W, b, "prob"),
           "lbfgs": lambda W, b: LBFGSSolver(W, b, steps=2)}
each_solver = pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)

@each_solver
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_type_and_device_are_kept(make, dtype, device):
    W, b = head()
    z, s, t = scene(W, b)
    out = make(W, b)(z.to(device, dtype), s.to(device), t.to(device), torch.rand(6))
    assert out.dtype == dtype and out.device.type == device and out.isfinite().all()

@each_solver
def test_an_empty_batch_stays_empty(make):
    W, b = head()
    none = torch.zeros(0, dtype=torch.long)
    assert make(W, b)(torch.zeros(0, 64), none, none).shape == (0, 64)
    assert make(W, b)(torch.zeros(0, 64), 0, 1).shape == (0, 64)
    assert make(W, b).residual(torch.zeros(0, 64), 0, 1).shape == (0,)

@each_solver
def test_autocast_changes_nothing(make):
    W, b = (v.float() for v in head())
    z, s, t = scene(*head())
    z = z.float()
    solver = make(W, b)
    for f in (lambda: solver(z, s, t), lambda: solver.residual(z, s, t), lambda: solver.logits(z)):
        with bfloat16_autocast(): inside = f()
        assert torch.equal(inside, f())

@each_solver
def test_no_grad_is_no_obstacle(make):
    W, b = head()
    z, s, t = scene(W, b)
    with torch.no_grad(): near(make(W, b)(z, s, t), make(W, b)(z, s, t), 0)

@pytest.mark.parametrize("name", ["naive", "logit", "prob"])
def test_batched_is_looped(name):
    W, b = head()
    z, s, t = scene(W, b)
    solver = SOLVERS[name](W, b)
    k = torch.linspace(0, 1, 6, dtype=torch.float64)
    loop = torch.cat([solver(z[i:i+1], s[i].item(), t[i].item(), k[i].item()) for i in range(6)])
    near(solver(z, s, t, k), loop, 1e-12)

@pytest.mark.parametrize("name", ["naive", "logit", "prob"])
def test_gradients(name):
    W, b = head(4, 6)
    z, s, t = scene(W, b, 3)
    solver = SOLVERS[name](W, b)
    k = torch.tensor([.1, .5, .9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, k: solver(z, s, t, k), (z.requires_grad_(), k))

@each_solver
def test_the_head_is_detached(make):
    W, b = head()
    z, s, t = scene(W, b)
    solver = make(W.requires_grad_(), b.requires_grad_())
    assert not solver(z, s, t).requires_grad and not solver.logits(z).requires_grad

def test_lbfgs_gives_no_gradient_and_takes_none():
    W, b = head()
    z, s, t = scene(W, b)
    out = LBFGSSolver(W.requires_grad_(), b, steps=1)(z.requires_grad_(), s, t)
    assert not out.requires_grad and W.grad is None and z.grad is None

@axioms
@given(seeds, st.floats(0, 1))
def test_moving_along_the_direction(seed, k):
    W, b = head(5, 9, seed)
    z, s, t = scene(W, b, 4, seed)
    solver = ClosedFormSolver(W, b)
    i = torch.arange(4)
    l = solver.logits(z)
    v = solver.direction(s, t)
    slack = 1e-8*(1 + solver.P.norm().item()**2)
    near(move_along(z, v, l[i, t] - l[i, s], k), solver(z, s, t, k), slack)
    near(((W[t] - W[s])*v).sum(-1), torch.full((4,), 2., dtype=torch.float64), slack)

# --- refusals -------------------------------------------------------------------------------------------------------

W, b = head(4, 5)
z = torch.zeros(3, 5)
l = torch.zeros(3, 4)
REFUSED = {
    "logits, one class twice": (lambda: swap_logits(l, 2, 2), "both class 2"),
    "logits, no such class": (lambda: path_logits(l, 0, 4), "target 4 is outside the 4 classes 0 to 3"),
    "logits, k of another batch": (lambda: path_logits(l, 0, 1, torch.zeros(2)),
                                   "k must be one number or (B,) for 3 samples"),
    "flip, one class twice": (lambda: latent_flip(l, 1, torch.tensor([0, 1, 2])), "both class 1"),
    "move_along, k of another batch": (lambda: move_along(z, z, z[:, 0], torch.zeros(2)), "k must be one number"),
    "head of one class": (lambda: Solver(torch.zeros(1, 5), torch.zeros(1)), "C >= 2: found (1, 5)"),
    "head is a vector": (lambda: Solver(W[0], b), "W must be a floating point (C, N)"),
    "head of integers": (lambda: Solver(W.long(), b), "W must be a floating point (C, N)"),
    "bias of another head": (lambda: Solver(W, b[:2]), "b must be (4,), one bias a row of W: found (2,)"),
    "no bias": (lambda: Solver(W, None), "found NoneType"),
    "NaN in the head": (lambda: ClosedFormSolver(W*float("nan"), b), "NaN or infinity"),
    "no such mode": (lambda: ClosedFormSolver(W, b, mode="odds"), "found 'odds'"),
    "direction of no pair": (lambda: ClosedFormSolver(W, b).direction(1, 1), "both class 1"),
}
REFUSED_BY_ALL = {
    "other features": (lambda solver: solver(z[:, :2], 0, 1), "2 features, the hyperplane has 5"),
    "one vector": (lambda solver: solver(z[0], 0, 1), "use z[None]"),
    "one class twice": (lambda solver: solver(z, 0, 0), "choose a target other than the predicted class"),
    "no such target": (lambda solver: solver(z, 0, 9), "target 9 is outside the 4 classes"),
    "pairs of another batch": (lambda solver: solver(z, torch.tensor([0, 1]), 2), "2 pairs of classes for 3 latents"),
    "k of another batch": (lambda solver: solver(z, 0, 1, torch.zeros(7)), "k must be one number or (B,)"),
    "residual": (lambda solver: solver.residual(z, 3, 3), "both class 3"),
}

@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, says = REFUSED[name]
    with pytest.raises(MirrorError) as e: call()
    assert says in str(e.value)

@each_solver
@pytest.mark.parametrize("name", REFUSED_BY_ALL)
def test_every_solver_refuses(make, name):
    call, says = REFUSED_BY_ALL[name]
    with pytest.raises(MirrorError) as e: call(make(W, b))
    assert says in str(e.value)
