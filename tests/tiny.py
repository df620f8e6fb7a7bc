"Small things made by hand: the explanation of a bar that moves right, draws without chance, settled networks."
import torch
from torch import nn
from mirrorcfe.core import height_width
from mirrorcfe.explanation import Explanation
from mirrorcfe.game import Sampler
from mirrorcfe.storage import tensors_hash

def fixed_sampler(x, seed=0):
    "A sampler whose real images are the first ones of `x`, whatever class is asked for."
    return Sampler(torch.Generator().manual_seed(seed), real=lambda classes, u: x[:len(classes)])

def hash_of(*nets):
    "A hash of the weights and buffers of some networks."
    return tensors_hash(nn.ModuleList(nets))

def settle(net, *batch):
    """Give batch norm the statistics of one batch.

    A network that was trained for a step or two has running statistics that are nearly those it began with. In eval
    mode it may then draw the same image whatever it is given, on one processor and not on another, and a test that
    compares its images compares nothing."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [m.momentum for m in norms]
    for m in norms: m.momentum = 1.
    net.train()
    with torch.no_grad(): net(*batch)
    net.eval()
    for m, momentum in zip(norms, kept): m.momentum = momentum

def tiny(K=21, channels=1, size=16, classes=("left", "right", "up"), gains=(1., .9, .3), same=False):
    """One sample for each of `gains`, from class 0 to 1; a gain below .5 never flips.

    `same=True` adds one that is its target already."""
    ks, B = torch.linspace(0, 1, K), len(gains)
    height, width = height_width(size)
    at = (ks*(width - 4)).round().long()
    path = torch.full((B, K, channels, height, width), -1.)
    for j, a in enumerate(at): path[:, j, :, 2:-2, a:a + 4] = .8
    want = torch.stack([.9*(1 - ks) + .05*ks, .05*(1 - ks) + .9*ks, .05 + 0*ks], 1).repeat(B, 1, 1)
    want[:, :, 2] = 1 - want[:, :, :2].sum(2)
    got = want.clone()
    got[:, :, 1] = want[:, :, 1]*torch.tensor(gains)[:, None]
    got[:, :, 0] = 1 - got[:, :, 1:].sum(2)
    x, s, t = path[:, 0].clone(), torch.zeros(B, dtype=torch.long), torch.ones(B, dtype=torch.long)
    ex = Explanation(x, s, t, ks, path, want, got, list(classes), torch.zeros(B, dtype=torch.long))
    if same:
        ex.source[-1] = 1
        for v in (ex.path, ex.intended_probs, ex.achieved_probs): v[-1] = torch.nan
    return ex
