"A small explanation made by hand: a bar that walks to the right, with confidences of our choosing."
import torch
from mirrorcfe.explanation import Explanation

def tiny(K=21, channels=1, size=16, classes=("left", "right", "up"), gains=(1., .9, .3), same=False):
    "One sample for each of `gains`, from class 0 to 1; a gain below .5 never flips. `same=True` adds one that is its target already."
    ks, B = torch.linspace(0, 1, K), len(gains)
    at = (ks*(size - 4)).round().long()
    path = torch.full((B, K, channels, size, size), -1.)
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
