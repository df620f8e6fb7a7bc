"""Explain an attribute of faces to three kinds of network: two classes, one logit, and one of three attribute logits.

    python benchmarks/attributes.py   # a quarter of an hour on one core, then cached

All three have the same body, which ends in an average, and the same training images, 32 pixels wide; an oracle of two
classes judges whether a face drawn as smiling is smiling. CelebA-HQ is read from $MIRRORCFE_DATA. The numbers are kept
in results/reproduction/attributes; no picture of a face is.
"""
from dataclasses import dataclass
from functools import cached_property
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from mirrorcfe.benchmark import Task, run_benchmark
from mirrorcfe.classifiers import accuracy, random_translation, small_resnet
from mirrorcfe.data import block_split, face_attributes, get_dls
from mirrorcfe.features import Classifier
from mirrorcfe.storage import cache_dir, file_lock
from reproduce import OUT, mirror_of_network

SIZE = 32
ATTRIBUTES = 'Smiling', 'Male', 'Young'
METRICS = ['Val', 'D.Val', 'Believed', 'Oracle', 'L1', 'confidence error']

def labels(attributes):
    "Which training face has which of some attributes, float (N, A), in the order of the images of `get_dls`."
    names, files, has = face_attributes()
    order = np.argsort([int(f.partition('.')[0]) for f in files])
    ids = np.array([int(f.partition('.')[0]) for f in files])[order]
    return torch.from_numpy(has[order][:, [names.index(a) for a in attributes]]).float()[block_split(ids)[0]]

def network(n):
    "The body of a small_resnet, an average, and `n` logits."
    stages = small_resnet(2, 3, size=SIZE).stages
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n))

def train(model, x, y, epochs=6, bs=64, lr=3e-3, seed=0):
    "Train on images and their attributes, float (N, A), each for itself, by a one-cycle schedule."
    generator = torch.Generator().manual_seed(seed)
    steps = epochs*(len(x)//bs)
    opt = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)[:len(x)//bs*bs]
        for i in order.view(-1, bs):
            logits = model(random_translation(x[i], 2, generator))
            loss = F.binary_cross_entropy_with_logits(logits, y[i])
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
    return model.eval()

def trained_once(model, name, train):
    "A network with weights from the cache, or after `train(model)` once."
    file = cache_dir()/'attribute_networks'/f'{name}.pt'
    file.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(file):
        if file.exists(): model.load_state_dict(torch.load(file, map_location='cpu'))
        else: torch.save(train(model).state_dict(), file)
    return model.eval()

def open_with_accuracy(model, dls, **how):
    "A network as `Classifier.wrap` opens it, with its accuracy on the test images."
    net = Classifier.wrap(model, dls.test.dataset[:4][0], **how)
    net.accuracy = accuracy(net, dls.test)
    return net

def attribute_network(attributes, dls):
    "A network with one logit an attribute, trained once; opened for the first of them."
    def train_it(model):
        x, y = dls.train.dataset[:]
        truth = labels(attributes)
        assert torch.equal(truth[:, 0].long(), y)
        return train(model, x, truth)
    torch.manual_seed(0)
    model = trained_once(network(len(attributes)), f"{'-'.join(attributes)}-{SIZE}", train_it)
    return open_with_accuracy(model, dls, attribute=attributes[0], classes=list(attributes))

@dataclass(frozen=True)
class AttributeTask(Task):
    "A task for a network with one logit for each of some attributes; the first is the one of the data."
    attributes:tuple=ATTRIBUTES

    @cached_property
    def classifier(self): return attribute_network(self.attributes, get_dls(self.data, size=self.size))

    @property
    def title(self):
        n = len(self.attributes)
        return f"{Task.title.fget(self)}, {'one logit' if n == 1 else f'{n} attributes'}"

if __name__ == '__main__':
    given = f'celeba_hq:{ATTRIBUTES[0]}', (0, 1), SIZE, 400
    tasks = [Task(*given), AttributeTask(*given, attributes=ATTRIBUTES[:1]), AttributeTask(*given)]
    for task in tasks: run_benchmark({'Mirror-CFE': mirror_of_network}, [task], OUT/'attributes', metrics=METRICS)
