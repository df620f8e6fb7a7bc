"""Look inside the explainers, for the pages 76 to 78: latents of reflections, masks, corrected errors.

    python benchmarks/inside.py [latents masks errors]

Kept in results/reproduction, a folder a study. Two minutes on one core where `reproduce.py main ahead` has trained the
explainers before; else they are trained first, as there. A study of data that are not on this machine is left out.
"""
import json, sys
from dataclasses import dataclass
from datetime import date
from functools import partial
import matplotlib
matplotlib.use('Agg')
import numpy as np
import torch
import mirrorcfe.show
from mirrorcfe import __version__
from mirrorcfe.benchmark import Sources, Task, run_benchmark
from mirrorcfe.classifiers import mistakes
from mirrorcfe.data import data_fingerprint, get_dls
from mirrorcfe.latents import DRAWN, miss, nearest_table, real_latents, reflections, split_miss, tsne
from mirrorcfe.ssc import path_masks
from pictures import save_small
from reproduce import FASHION, FLOORS, GREY, MNIST, NOT_AHEAD, OUT, SHRUNK, mirror, slug

PAIRS = [MNIST[1], FASHION[1]]
KINDS = ('source', 'intended', 'drawn, open loop')   # one map of latents each
STEPS = torch.linspace(0, 1, 41)

def origin(task, n, model=None):
    "Where the numbers of a task come from."
    about = dict(task=task.title, n=n, classifier=task.classifier.weights_hash(), accuracy=task.classifier.accuracy,
                 data=data_fingerprint(get_dls(task.data)), seed=0, torch=torch.__version__, mirrorcfe=__version__,
                 date=date.today().isoformat())
    if model is not None: about |= dict(steps=model.recipe.steps, device=model.about['device'])
    return about

def keep(study, found, **arrays):
    "Write what a study found: a record a task, and arrays."
    (OUT/study).mkdir(exist_ok=True)
    (OUT/study/'results.json').write_text(json.dumps(dict(tasks=found), indent=1) + '\n')
    if arrays: np.savez_compressed(OUT/study/f'{study}.npz', **arrays)

def latents(n=300, points=1500, stars=60):
    "Latents of a pair's reflections among those of 10,000 training images of all classes."
    found = []
    arrays = {}
    for task in PAIRS:
        model = mirror(task)
        dls = get_dls(task.data)
        r = reflections(model, dls.test.dataset, n)
        picked = torch.randperm(len(dls.train.dataset), generator=torch.Generator().manual_seed(0))[:10_000]
        real, c = real_latents(model.classifier, dls.train.dataset.subset(picked))
        missed = {}
        for kind in DRAWN:
            seen, unseen = split_miss(r, kind, model.classifier.W).median(0).values.tolist()
            missed[kind] = dict(moves=miss(r, kind).median().item(), seen=seen, unseen=unseen)
        rows = nearest_table(r, real, c).to_dict('records')
        found.append(origin(task, len(r['t']), model) |
                     dict(rows=rows, missed=missed, classes=model.classifier.classes))
        some = {k: v[:stars] for k, v in r.items()}
        dots, *maps = tsne(some, real, KINDS, points)
        kept = dict(points=dots, classes=c[:points].numpy(), targets=some['t'].numpy()) | dict(zip(KINDS, maps))
        arrays |= {f'{task.title}, {k}': v.astype(np.float16 if v.dtype.kind == 'f' else np.int8)
                   for k, v in kept.items()}
        print(found[-1]['task'], missed, flush=True)
    keep('latents', found, **arrays)

def masks(n=400):
    "The share of the picture that may change at every step: mean and quartiles over the images."
    found = []
    for task in [Task(t.data, t.pair, t.size, n) for t in (*PAIRS, Task('bloodmnist', (2, 4)))]:
        src = task.sources()
        share = path_masks(task.classifier, src.x, src.source, src.target, STEPS).flatten(2).mean(2)
        quartiles = {q: share.quantile(v, 0).tolist() for q, v in dict(low=.25, high=.75).items()}
        side = task.classifier.features(src.x[:1])[-1].shape[-1]
        found.append(origin(task, len(share)) |
                     dict(ks=STEPS.tolist(), mean=share.mean(0).tolist(), side=side, **quartiles))
        print(task.title, found[-1]['mean'][20], flush=True)
    keep('masks', found)

@dataclass(frozen=True)
class Errors(Task):
    "Every test image of a pair that the classifier takes for the other class of it, sent to the class it belongs to."

    @property
    def title(self): return f'{Task.title.fget(self)}, errors'

    def sources(self):
        "The misclassified images; `index` counts among all errors."
        if '_sources' not in self.__dict__:
            x, said, y = mistakes(self.classifier, get_dls(self.data).test)
            pair = torch.tensor(self.pair)
            i = (torch.isin(said, pair) & torch.isin(y, pair)).nonzero().flatten()
            self.__dict__['_sources'] = Sources(x[i], said[i], y[i], y[i], i)
        return self.__dict__['_sources']

def errors():
    "The errors inside each pair, corrected, beside the same images as they were."
    names = ['Val', 'D.Val', 'Believed', 'Oracle', 'L1', 'first k']
    methods = {'Mirror-CFE': mirror, 'uncorrected': FLOORS['Identity']}
    others = {'not ahead': partial(mirror, **NOT_AHEAD), 'small changes left out': partial(mirror, **SHRUNK)}
    for task in [Errors(t.data, t.pair) for t in GREY]:
        run_benchmark(methods, [task], OUT/'errors', names)
        run_benchmark(others, [task], OUT/'errors-ahead', names)
        src = task.sources()
        i = torch.linspace(0, len(src.x) - 1, min(8, len(src.x))).long().unique()   # evenly over all
        ex = mirror(task).explain(src.x[i], src.target[i], truth=src.truth[i])
        save_small(ex.show_grid(8), OUT/'pictures'/f'{slug(task.title)}.png', dpi=70)

STUDIES = dict(latents=latents, masks=masks, errors=errors)

if __name__ == '__main__':
    (OUT/'pictures').mkdir(parents=True, exist_ok=True)
    for study in sys.argv[1:] or STUDIES: STUDIES[study]()
