"""Explain what a user brings: a torchvision resnet18, trained the plain way, asked whether a face is a man's.

    python benchmarks/plain_faces.py   # half an hour on one core, then cached

Faces of CelebA-HQ at 64 pixels, read from $MIRRORCFE_DATA; 350 steps of Adam without augmentation. The numbers are kept
in results/reproduction/male; no picture of a face is.
"""
from dataclasses import dataclass
from functools import cached_property, partial
import torch
from torch.nn import functional as F
from torchvision.models import resnet18
from mirrorcfe.benchmark import Task, run_benchmark
from mirrorcfe.data import get_dls
from attributes import open_with_accuracy, trained_once
from reproduce import OUT, mirror_of_network, three_seeds

def train(model, dls, steps=350, bs=64, lr=1e-3, seed=0):
    "As in any tutorial: cross-entropy, Adam, a constant rate."
    generator = torch.Generator().manual_seed(seed)
    x, y = dls.train.dataset[:]
    opt = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(steps):
        i = torch.randint(len(x), (bs,), generator=generator).to(x.device)
        loss = F.cross_entropy(model(x[i]), y[i])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model.eval()

@dataclass(frozen=True)
class PlainTask(Task):
    "A task for a resnet18 of torchvision."

    @cached_property
    def classifier(self):
        dls = get_dls(self.data, size=self.size)
        torch.manual_seed(0)
        name = f"resnet18-{self.data.replace(':', '-')}-{self.size}"
        model = trained_once(resnet18(num_classes=dls.c).to(dls.device), name, partial(train, dls=dls))
        return open_with_accuracy(model, dls, classes=list(dls.vocab))

    @property
    def title(self): return f'{Task.title.fget(self)}, resnet18'

if __name__ == '__main__':
    seeds = three_seeds('Mirror-CFE', {}, mirror_of_network)
    run_benchmark(seeds, [PlainTask('celeba_hq:Male', (0, 1), 64, 400)], OUT/'male')
