"""Explain what a user brings: a torchvision resnet18, trained the plain way, asked whether a face is a man's.

    python benchmarks/plain_faces.py   # half an hour on one core, then cached

Faces of CelebA-HQ at 64 pixels, read from $MIRRORCFE_DATA; 350 steps of Adam without augmentation. The numbers are kept
in results/reproduction/male; no picture of a face is.
"""
import sys
from dataclasses import dataclass
from functools import cached_property
import torch
from torch.nn import functional as F
from torchvision.models import resnet18
from mirrorcfe.benchmark import Task, get_explainer, run_benchmark
from mirrorcfe.data import get_dls
from mirrorcfe.features import Classifier
from mirrorcfe.storage import cache_dir, file_lock
from reproduce import OUT
import mirrorcfe.wrap  # adds `Classifier.wrap`

def train(model, dls, steps=350, bs=64, lr=1e-3, seed=0):
    "As in any tutorial: cross-entropy, Adam, a constant rate."
    generator = torch.Generator().manual_seed(seed)
    x, y = dls.train.dataset[:]
    opt = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(steps):
        i = torch.randint(len(x), (bs,), generator=generator)
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
        model = resnet18(num_classes=dls.c)
        file = cache_dir()/'attribute_networks'/f"resnet18-{self.data.replace(':', '-')}-{self.size}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file):
            if file.exists(): model.load_state_dict(torch.load(file))
            else: torch.save(train(model, dls).state_dict(), file)
        x, y = dls.test.dataset[:]
        net = Classifier.wrap(model.eval(), x[:4], classes=list(dls.vocab))
        with torch.no_grad(): called = torch.cat([net(part).argmax(1) for part in x.split(256)])
        net.accuracy = (called == y).float().mean().item()
        return net

    @property
    def title(self): return f'{Task.title.fget(self)}, resnet18'

def mirror(task, **changes):
    "The explainer of a task's own classifier."
    return get_explainer(task.data, task.pair, size=task.size, classifier=task.classifier,
                         progress=sys.stdout.isatty(), **changes)

if __name__ == '__main__':
    run_benchmark({'Mirror-CFE': mirror}, [PlainTask('celeba_hq:Male', (0, 1), 64, 400)], OUT/'male')
