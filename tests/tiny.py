"Small things made by hand: an explanation of a bar that moves right, draws without chance, networks of every kind."
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

def halvings(channels):
    "Two convolutions that make maps of 8 channels, a quarter as high and wide as the images, rounded up."
    return nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()

class TinyTokens(nn.Module):
    "Two blocks of attention on tokens, one for 6x6 pixels; a class token is read, or the mean of the others."
    def __init__(self, channels, h, w, mean):
        super().__init__()
        self.mean = mean
        self.embed = nn.Conv2d(channels, 8, 6, 6, 3)
        self.others = 0 if mean else 1
        self.token = nn.Parameter(torch.randn(1, self.others, 8))
        self.position = nn.Parameter(.1*torch.randn(1, self.others + (h//6 + 1)*(w//6 + 1), 8))
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 16, 0., batch_first=True, norm_first=True)
                                      for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        tokens = self.norm(self.blocks(tokens))
        return self.head(tokens.mean(1) if self.mean else tokens[:, 0])

AVERAGE = nn.AdaptiveAvgPool2d(1), nn.Flatten()
TINY_NETWORKS = {   # three classes; a function of the images' channels, height and width
    "average": lambda c, h, w: nn.Sequential(*halvings(c), *AVERAGE, nn.Linear(8, 3)),
    "norm behind the average": lambda c, h, w: nn.Sequential(*halvings(c), *AVERAGE, nn.LayerNorm(8), nn.Linear(8, 3)),
    "flatten and MLP": lambda c, h, w: nn.Sequential(*halvings(c), nn.Flatten(), nn.Linear(8*-(-h//4)*-(-w//4), 6),
                                                     nn.ReLU(), nn.Linear(6, 3)),
    "class token": lambda c, h, w: TinyTokens(c, h, w, mean=False),
    "mean of tokens": lambda c, h, w: TinyTokens(c, h, w, mean=True),
}

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
