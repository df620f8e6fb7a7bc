"The mirror of a pair: axioms over random shapes, both precisions, and every refusal."
import pytest, torch
from hypothesis import given, settings, strategies as st
from mirrorcfe.core import (Mirror, MirrorError, as_column, check_class, check_latents, check_mirror, check_pair,
                            margin, pair_hyperplane, reflect, share_weights, step_kind)

axioms = settings(deadline=None, max_examples=25)

DTYPES = {torch.float64: 1e-10, torch.float32: 2e-4}
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
precisions = st.sampled_from(sorted(DTYPES, key=str))

@st.composite
def scenes(draw, batched=None):
    "Latents, a normal of any length, an offset, and how exact the axioms can be at that precision."
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype = draw(precisions)
    n = draw(st.integers(1, 9))
    N = draw(st.integers(1, 40))
    per_sample = draw(st.booleans()) if batched is None else batched
    length = 10.**draw(st.integers(-4, 4))
    z = torch.randn(n, N, generator=g, dtype=torch.float64)
    w = torch.randn((n, N) if per_sample else (N,), generator=g, dtype=torch.float64)
    w = w + .3*w.sign()                                     # away from ||w|| = 0
    b = torch.randn((n,) if per_sample else (), generator=g, dtype=torch.float64)
    return z.to(dtype), (length*w).to(dtype), (length*b).to(dtype), DTYPES[dtype]

def near(a, b, tol, scale=1.): torch.testing.assert_close(a, b, rtol=tol, atol=tol*float(scale))

def reach(z): return z.norm(dim=-1).max()

# --- axioms ---------------------------------------------------------------------------------------------------------

@axioms
@given(scenes())
def test_reflecting_twice_changes_nothing(scene):
    z, w, b, tol = scene
    near(reflect(reflect(z, w, b), w, b), z, tol, reflect(z, w, b).abs().max())

@axioms
@given(scenes(), st.floats(0, 1))
def test_points_of_the_mirror_stay(scene, k):
    z, w, b, tol = scene
    on = reflect(z, w, b, .5)
    near(reflect(on, w, b, k), on, tol, z.abs().max() + on.abs().max())

@axioms
@given(scenes(), st.floats(0, 1))
def test_margin_is_linear_in_k(scene, k):
    z, w, b, tol = scene
    scale = reach(w)*(1 + reach(z) + reach(reflect(z, w, b)))
    near(margin(reflect(z, w, b, k), w, b), (1 - 2*k)*margin(z, w, b), tol, scale)

@axioms
@given(scenes(batched=False))
def test_distances_are_kept(scene):
    z, w, b, tol = scene
    image = reflect(z, w, b)
    after = torch.cdist(image.double(), image.double())
    before = torch.cdist(z.double(), z.double())
    near(after, before, 10*tol + 1e-6, image.abs().max())

@axioms
@given(scenes(), st.integers(-6, 6))
def test_the_length_of_the_normal_does_not_matter(scene, e):
    z, w, b, tol = scene
    near(reflect(z, w*10.**e, b*10.**e), reflect(z, w, b), tol, 1 + reflect(z, w, b).abs().max())

@axioms
@given(st.integers(0, 10**6), precisions, st.integers(1, 30))
def test_two_probabilities_swap(seed, dtype, N):
    g = torch.Generator().manual_seed(seed)
    W, b, z = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((2, N), (2,), (5, N)))
    W[1] += .5*(W[1] - W[0]).sign()
    image = reflect(z, *pair_hyperplane(W, b, 0, 1))
    near((image @ W.T + b).softmax(-1), (z @ W.T + b).softmax(-1).flip(-1), DTYPES[dtype], 1 + image.abs().max())

@axioms
@given(scenes(batched=True))
def test_batched_is_looped(scene):
    z, w, b, tol = scene
    k = torch.linspace(0, 1, len(z), dtype=z.dtype)
    loop = torch.cat([reflect(z[i:i+1], w[i], b[i], k[i]) for i in range(len(z))])
    near(reflect(z, w, b, k), loop, tol, loop.abs().max())
    loop = torch.cat([margin(z[i:i+1], w[i], b[i]) for i in range(len(z))])
    near(margin(z, w, b), loop, tol, reach(w)*reach(z))

# --- a tensor operation like any other ------------------------------------------------------------------------------

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_type_and_device_are_kept(dtype, device):
    z = torch.randn(3, 6).to(device, dtype)
    w = torch.randn(6)                      # the mirror may be given in another type, and on the CPU
    for out in (reflect(z, w, .5, .3), reflect(z, w.expand(3, 6), torch.ones(3), torch.rand(3)), margin(z, w, .5)):
        assert out.dtype == dtype and out.device == z.device and out.isfinite().all()

def seeded(seed, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def test_half_precision_is_only_rounded():
    z = seeded(0, 4, 32).bfloat16()
    w = seeded(1, 32)
    assert torch.equal(reflect(z, w, 1.), reflect(z.float(), w, 1.).bfloat16())

def test_an_empty_batch_stays_empty():
    assert reflect(torch.zeros(0, 4), torch.ones(4), 1.).shape == (0, 4)
    assert reflect(torch.zeros(0, 4), torch.ones(0, 4), torch.ones(0), torch.ones(0)).shape == (0, 4)
    assert margin(torch.zeros(0, 4), torch.ones(4), 1.).shape == (0,)

@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients(per_sample):
    g = torch.Generator().manual_seed(0)
    shapes = ((3, 5), (3, 5), (3,), (3,)) if per_sample else ((3, 5), (5,), (), ())
    ops = [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(reflect, ops) and torch.autograd.gradcheck(margin, ops[:3])

def test_autocast_changes_nothing():
    z = seeded(0, 4, 16)
    w = seeded(1, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = reflect(z, w, 1.)
        m = margin(z, w, 1.)
    assert torch.equal(image, reflect(z, w, 1.)) and torch.equal(m, margin(z, w, 1.))

@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
def test_extreme_normals_in_single_precision(scale):
    z = seeded(2, 4, 8)
    w = seeded(3, 8)
    near(reflect(z, w*scale, 2*scale), reflect(z, w, 2.), 1e-5)

def test_inputs_are_not_changed():
    z = seeded(0, 4, 8)
    w = seeded(1, 8)
    before = z.clone(), w.clone()
    reflect(z, w, 1., .3)
    assert torch.equal(z, before[0]) and torch.equal(w, before[1])

def test_mirror_agrees_with_the_functions():
    W = seeded(0, 4, 6)
    b = seeded(1, 4)
    z = seeded(2, 3, 6)
    l = z @ W.T + b
    i = torch.arange(3)
    for s, t in ((0, 2), (torch.tensor([0, 1, 3]), torch.tensor([1, 2, 0]))):
        mirror = Mirror.between(W, b, s, t)
        plane = pair_hyperplane(W, b, s, t)
        assert torch.equal(mirror.reflect(z, .7), reflect(z, *plane, .7))
        assert torch.equal(mirror.margin(z), margin(z, *plane))
        near(mirror.margin(z), l[i, t] - l[i, s], 1e-5)

@axioms
@given(st.floats(0, 1))
def test_steps_have_names(k):
    assert step_kind(k) == {0: "source", .5: "mirror", 1: "reflection"}.get(k, "SFE" if k < .5 else "CFE")

# --- refusals: one error, what was found, what to do ----------------------------------------------------------------

z = torch.zeros(2, 3)
w = torch.ones(3)
pairs = torch.tensor([1, 2])
byte = torch.tensor([250], dtype=torch.uint8)
flat = torch.ones(3)
REFUSED = {
    "one vector": (lambda: reflect(z[0], w, 0.), "use z[None]"),
    "three axes": (lambda: reflect(z[None], w, 0.), "found shape (1, 2, 3)"),
    "a list": (lambda: reflect([[0., 1.]], w, 0.), "found list"),
    "integers": (lambda: reflect(z.long(), w, 0.), "int64"),
    "other features": (lambda: reflect(z, torch.ones(4), 0.), "3 features, the hyperplane has 4"),
    "w of another batch": (lambda: reflect(z, torch.ones(3, 3), 0.), "w must be (N,) or (B, N)"),
    "w is a number": (lambda: reflect(z, 1., 0.), "found float"),
    "w is zero": (lambda: reflect(z, 0*w, 0.), "the two classes share one weight vector"),
    "one w of two is zero": (lambda: reflect(z, torch.stack([w, 0*w]), 0.), "||w|| = 0"),
    "b of another batch": (lambda: reflect(z, w, torch.zeros(5)), "b must be one number or (B,) for 2 samples"),
    "k of another batch": (lambda: reflect(z, w, 0., torch.zeros(5)), "k must be one number or (B,)"),
    "k with two axes": (lambda: reflect(z, w, 0., torch.zeros(2, 1)), "found shape (2, 1)"),
    "class too large": (lambda: check_class(10, 10), "class 10 is outside the 10 classes 0 to 9"),
    "class too large for its type": (lambda: check_class(byte, 10), "class 250 is outside"),
    "class below 0": (lambda: check_class(-1, 10, "target"), "target -1 is outside"),
    "class is a fraction": (lambda: check_class(.5, 10), "found torch.float32"),
    "class is a truth value": (lambda: check_class(True, 10), "found torch.bool"),
    "class is a word": (lambda: check_class("nine", 10, "target"), "found 'nine'"),
    "class is None": (lambda: check_class(None, 10, "target"), "found None"),
    "classes in a table": (lambda: check_class(torch.zeros(2, 2).long(), 10), "shape (2, 2)"),
    "one class twice": (lambda: check_pair(3, 3, 10), "both class 3: choose a target other than the predicted class"),
    "one class twice in a batch": (lambda: check_pair(pairs, torch.tensor([3, 2]), 10), "both class 2"),
    "unequal lengths": (lambda: check_pair(pairs, torch.tensor([3, 4, 5]), 10), "2 sources but 3 targets"),
    "pairs of another batch": (lambda: check_pair(pairs, 3, 10, batch=4), "2 pairs of classes for 4 latents"),
    "head without rows": (lambda: pair_hyperplane(flat, flat, 0, 1), "a head is W (C, N) with b (C,)"),
    "bias of another head": (lambda: pair_hyperplane(torch.eye(3), torch.ones(2), 0, 1), "found (3, 3) with (2,)"),
    "step above 1": (lambda: step_kind(1.01), "found 1.01"),
    "step is no number": (lambda: step_kind(float("nan")), "found nan"),
}

@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, says = REFUSED[name]
    with pytest.raises(MirrorError) as e: call()
    assert says in str(e.value)

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-25, 1., 1e25])
def test_classes_that_share_one_weight_vector_have_no_mirror(dtype, length):
    "Up to what rounding leaves: a row that was multiplied out and back, or summed in another order."
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    W = length*torch.cat([rows, (rows[:1].float()*3/3).double(), rows[:1]*(1 + 1e-4)]).to(dtype)
    b = torch.arange(5).to(W)
    for call in (Mirror.between, pair_hyperplane, lambda W, b, s, t: check_mirror(W, s, t)):
        with pytest.raises(MirrorError, match="no mirror between the classes 0 and 3: they share one weight vector"):
            call(W, b, torch.tensor([1, 0]), torch.tensor([2, 3]))
        call(W, b, 0, 4)
    assert share_weights(W, 0, torch.arange(5)).tolist() == [True, False, False, True, False]
    assert share_weights(0*W, 0, 1)

def test_the_error_is_a_value_error(): assert issubclass(MirrorError, ValueError)

def test_what_is_right_passes():
    assert check_latents(z, 3) is z
    assert check_class(torch.tensor([299]), 300).tolist() == [299]
    assert check_class(torch.tensor([200], dtype=torch.uint8), 300).tolist() == [200]
    assert check_class([], 10).shape == (0,)
    s, t = check_pair(4, [9, 8], 10)
    assert s.tolist() == [4, 4] and t.tolist() == [9, 8] and s.dtype == t.dtype == torch.int64
    assert check_pair(1, 2, 10, batch=0)[0].shape == (0,)
    assert as_column(pairs, torch.zeros(2, 3)).tolist() == [[1.], [2.]] and as_column(.5, z).shape == ()
