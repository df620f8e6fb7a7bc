"A thousand classes need no table of pairs, and what one device makes another can use."
import copy, inspect
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import cams
from mirrorcfe.multiclass import ClosedFormSolver
from mirrorcfe.ssc import csp_mask, unit_range

class Largest(TorchDispatchMode):
    "Notes the number of elements of the largest tensor that any operation returns."
    elements = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(v.untyped_storage().nbytes()//v.element_size() for v in tree_leaves(out) if isinstance(v, torch.Tensor))])
        return out

@pytest.fixture(scope='module')
def imagenet_head():
    "Weights of 1,000 classes over 2,048 features, and what building their solver needed at most."
    g = torch.Generator().manual_seed(0)
    W, b = torch.randn(1000, 2048, generator=g)/45, torch.randn(1000, generator=g)
    with Largest() as seen: solver = ClosedFormSolver(W, b)
    return W, b, solver, seen.elements

def test_closed_form_of_1000_classes_keeps_one_row_a_class(imagenet_head):
    W, b, solver, built = imagenet_head
    assert built <= 2*W.numel()                       # singular vectors; 1000 x 1000 x 2048 would be 1,000 times as many
    held = {n: v.numel() for n, v in vars(solver).items() if isinstance(v, torch.Tensor)}
    assert held['P'] == W.numel() and max(held.values()) == W.numel()
    z, s, t = torch.rand(64, 2048), torch.arange(64), torch.arange(64) + 900
    with Largest() as seen: z_1 = solver(z, s, t)
    assert seen.elements <= W.numel() and z_1.shape == z.shape

def test_closed_form_of_1000_classes_reaches_the_swap(imagenet_head):
    W, b, solver, _ = imagenet_head
    z, s, t = torch.rand(8, 2048), torch.arange(8), torch.arange(8) + 990
    assert solver.rank == 1000 and solver.residual(z, s, t).max() < 1e-2
    v = solver.direction(s, t)
    assert v.shape == (8, 2048) and torch.allclose(((W[t] - W[s])*v).sum(1), torch.tensor(2.), atol=1e-3)

@pytest.mark.parametrize('c', [10, 32, 33, 1000])
def test_mask_of_two_classes(c):
    g = torch.Generator().manual_seed(c)
    f, W, s, t = torch.rand(4, 64, 8, 8, generator=g), torch.randn(c, 64, generator=g), torch.arange(4), torch.arange(4) + c - 4
    with Largest() as seen: mask = csp_mask(f, W, s, t, .5)
    if c == 1000: assert seen.elements <= W.numel() < 4*c*64          # all maps would be 4 x 1000 x 8 x 8
    n = unit_range(cams(f, W).double())
    pair = torch.maximum(n[range(4), s], n[range(4), t])
    sure = (pair - .5).abs() > 1e-4                   # rounding may move what lies on the threshold
    assert torch.equal(mask[:, 0][sure], (pair > .5)[sure].float())

def test_two_maps_refuse_what_all_maps_refuse():
    from mirrorcfe.core import MirrorError
    with pytest.raises(MirrorError, match='must agree'): csp_mask(torch.rand(2, 5, 4, 4), torch.rand(100, 6), torch.zeros(2).long(), torch.ones(2).long(), .5)

def test_every_entry_takes_a_device():
    for f in (get_dls, get_classifier): assert 'device' in inspect.signature(f).parameters, f
    x, clf = get_dls('digits', bs=8, device='cpu').valid.one_batch()[0], get_classifier('digits', device='cpu')
    assert x.device == clf.W.device == torch.device('cpu')

# ---- on a GPU: the same numbers as on the processor ----

@pytest.fixture
def exact(monkeypatch):
    "No TF32: products in full single precision."
    for b in (torch.backends.cuda.matmul, torch.backends.cudnn): monkeypatch.setattr(b, 'allow_tf32', False)

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A classifier and an explainer that saw four steps on the processor, and its folder."
    clf = get_classifier('digits', device='cpu')
    cfe = MirrorCFE(clf, amp=False, steps=4).fit(get_dls('digits', bs=16, steps=4, device='cpu'), progress=False)
    return clf, cfe, cfe.save(tmp_path_factory.mktemp('cfe')/'saved')

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
class TestCuda:
    def test_core(self, exact):
        g = torch.Generator().manual_seed(0)
        W, b, z = torch.randn(10, 32, generator=g), torch.randn(10, generator=g), torch.randn(6, 32, generator=g)
        s, t, k = torch.arange(6), torch.arange(6) + 3, torch.linspace(0, 1, 6)
        for c in (10, 50):
            V, a = (torch.cat([W]*5) + .1*torch.arange(50)[:, None].sin(), torch.cat([b]*5)) if c == 50 else (W, b)
            here, there = ClosedFormSolver(V, a)(z, s, t, k), ClosedFormSolver(V.cuda(), a.cuda())(z.cuda(), s.cuda(), t.cuda(), k.cuda())
            assert there.is_cuda and torch.allclose(here, there.cpu(), atol=1e-3)

    def test_loads_and_draws_what_the_processor_saved(self, trained, exact):
        clf, cfe, folder = trained
        other = MirrorCFE.load(folder, copy.deepcopy(clf).cuda())
        x = next(iter(get_dls('digits', bs=8, device='cpu').valid))[0]
        a, b = (m.explain(x, ks=[0, .5, 1], closed_loop=False) for m in (cfe, other))
        assert b.path.is_cuda and torch.equal(a.target, b.target.cpu())
        far = (a.path - b.path.cpu()).abs()
        assert far.median() < 1e-4 and (far > .02).float().mean() < .01    # a mask pixel on its threshold may fall to the other side
        assert (a.intended_probs - b.intended_probs.cpu()).abs().max() < 1e-3

    @pytest.mark.parametrize('amp', [False, None])
    def test_trains_and_comes_back(self, amp, tmp_path):
        clf = copy.deepcopy(get_classifier('digits', device='cpu')).cuda()
        cfe = MirrorCFE(clf, amp=amp, steps=4).fit(get_dls('digits', bs=16, steps=4, device='cuda'), progress=False)
        assert all(p.is_cuda and p.isfinite().all() for p in cfe.model.G.parameters())
        cfe.save(tmp_path/'saved')
        back = MirrorCFE.load(tmp_path/'saved', copy.deepcopy(clf).cpu())
        assert all(p.device.type == 'cpu' for p in back.model.parameters())
