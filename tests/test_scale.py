"A thousand classes need no table of pairs, and what one device makes another can use."
import copy, inspect
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import cams
from mirrorcfe.multiclass import ClosedFormSolver
from mirrorcfe.ssc import csp_mask, min_max_normalise

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

class Largest(TorchDispatchMode):
    "Notes the number of elements of the largest tensor that any operation returns."
    elements = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for v in tree_leaves(out):
            if isinstance(v, torch.Tensor):
                self.elements = max(self.elements, v.untyped_storage().nbytes()//v.element_size())
        return out

def seeded_rand(seed, *shape): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope='module')
def imagenet_head():
    "Weights of 1,000 classes over 2,048 features, and what building their solver needed at most."
    g = torch.Generator().manual_seed(0)
    W = torch.randn(1000, 2048, generator=g)/45
    b = torch.randn(1000, generator=g)
    with Largest() as seen: solver = ClosedFormSolver(W, b)
    return W, b, solver, seen.elements

def test_closed_form_of_1000_classes_keeps_one_row_for_each(imagenet_head):
    W, b, solver, built = imagenet_head
    assert built <= 2*W.numel()   # singular vectors; 1000 x 1000 x 2048 would be 1,000 times as much
    held = {n: v.numel() for n, v in vars(solver).items() if isinstance(v, torch.Tensor)}
    assert held['P'] == W.numel() and max(held.values()) == W.numel()
    z = seeded_rand(1, 64, 2048)
    s = torch.arange(64)
    with Largest() as seen: z_1 = solver(z, s, s + 900)
    assert seen.elements <= W.numel() and z_1.shape == z.shape

def test_closed_form_of_1000_classes_reaches_the_swap(imagenet_head):
    W, b, solver, _ = imagenet_head
    z = seeded_rand(2, 8, 2048)
    s = torch.arange(8)
    t = s + 990
    assert solver.rank == 1000 and solver.residual(z, s, t).max() < 1e-2
    v = solver.direction(s, t)
    assert v.shape == (8, 2048) and torch.allclose(((W[t] - W[s])*v).sum(1), torch.tensor(2.), atol=1e-3)

@pytest.mark.parametrize('c', [10, 32, 33, 1000])
def test_mask_of_two_classes(c):
    g = torch.Generator().manual_seed(c)
    f = torch.rand(4, 64, 8, 8, generator=g)
    W = torch.randn(c, 64, generator=g)
    s = torch.arange(4)
    t = s + c - 4
    with Largest() as seen: mask = csp_mask(f, W, s, t, .5)
    if c == 1000: assert seen.elements <= W.numel() < 4*c*64          # all maps would be 4 x 1000 x 8 x 8
    n = min_max_normalise(cams(f, W).double())
    either = torch.maximum(n[range(4), s], n[range(4), t])
    clear = (either - .5).abs() > 1e-4                # rounding may move what lies on the threshold
    assert torch.equal(mask[:, 0][clear], (either > .5)[clear].float())

def test_two_maps_refuse_what_all_maps_refuse():
    f = torch.rand(2, 5, 4, 4)
    s = torch.tensor([0, 0])
    with pytest.raises(MirrorError, match='must agree'): csp_mask(f, torch.rand(100, 6), s, s + 1, .5)

def test_every_entry_takes_a_device():
    for f in (get_dls, get_classifier): assert 'device' in inspect.signature(f).parameters, f
    x, _ = get_dls('digits', bs=8, device='cpu').valid.one_batch()
    clf = get_classifier('digits', device='cpu')
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
    dls = get_dls('digits', bs=16, steps=4, device='cpu')
    cfe = MirrorCFE(clf, amp=False, steps=4, **SHORT).fit(dls, progress=False)
    return clf, cfe, cfe.save(tmp_path_factory.mktemp('cfe')/'saved')

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
class TestCuda:
    def test_core(self, exact):
        g = torch.Generator().manual_seed(0)
        z = torch.randn(6, 64, generator=g)
        s = torch.arange(6)
        t = s + 3
        k = torch.linspace(0, 1, 6)
        for c in (10, 50):
            W = torch.randn(c, 64, generator=g)
            b = torch.randn(c, generator=g)
            here = ClosedFormSolver(W, b)(z, s, t, k)
            there = ClosedFormSolver(W.cuda(), b.cuda())(z.cuda(), s.cuda(), t.cuda(), k.cuda())
            assert there.is_cuda and torch.allclose(here, there.cpu(), atol=1e-3)

    def test_loads_and_draws_what_the_processor_saved(self, trained, exact):
        clf, cfe, folder = trained
        other = MirrorCFE.load(folder, copy.deepcopy(clf).cuda())
        x, _ = next(iter(get_dls('digits', bs=8, device='cpu').valid))
        here = cfe.explain(x, ks=[0, .5, 1], closed_loop=False)
        there = other.explain(x, ks=[0, .5, 1], closed_loop=False)
        assert there.path.is_cuda and torch.equal(here.target, there.target.cpu())
        off = (here.path - there.path.cpu()).abs()
        # a location of the mask that lies on the threshold may fall on either side
        assert off.median() < 1e-4 and (off > .02).float().mean() < .01
        assert (here.intended_probs - there.intended_probs.cpu()).abs().max() < 1e-3

    @pytest.mark.parametrize('amp', [False, None])
    def test_trains_and_comes_back(self, amp, tmp_path):
        clf = copy.deepcopy(get_classifier('digits', device='cpu')).cuda()
        dls = get_dls('digits', bs=16, steps=4, device='cuda')
        cfe = MirrorCFE(clf, amp=amp, steps=4, **SHORT).fit(dls, progress=False)
        assert all(p.is_cuda and p.isfinite().all() for p in cfe.model.G.parameters())
        cfe.save(tmp_path/'saved')
        back = MirrorCFE.load(tmp_path/'saved', copy.deepcopy(clf).cpu())
        assert all(p.device.type == 'cpu' for p in back.model.parameters())
