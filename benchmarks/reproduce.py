"""Train and measure what the pages 70 to 78 show at real size; kept in results/reproduction, one folder a group.

python benchmarks/reproduce.py [main colour paper near floors multi ssc tri pgd]     (no argument: all; hours on two cores, minutes on a GPU)
A killed run goes on where it stopped: explainers come from the cache or from their checkpoint, measured cells are not measured again.
MNIST, Fashion-MNIST, BloodMNIST and CelebA-HQ are read from $MIRRORCFE_DATA, or fetched where that is possible.
"""
import json, sys
from functools import partial
from pathlib import Path
import torch
import matplotlib
matplotlib.use('Agg')
import mirrorcfe.show
from mirrorcfe.baselines.floors import Identity, NearestNeighbour, PixelBlend
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.benchmark import Task, get_explainer, run_benchmark

OUT = Path(__file__).parent/'results'/'reproduction'
STEPS = 1600   # of a pair; the presets' 800 are for the first three minutes
GREY = [Task('mnist', p) for p in ((3, 8), (4, 9), (5, 6))] + [Task('fashion_mnist', p) for p in ((0, 2), (4, 6), (7, 9))]
COLOUR = [Task('bloodmnist', (2, 4)), Task('folder:blood_cells_128', (0, 1), 64), Task('celeba_hq', (0, 1), 64)]

def mirror(task, preset='robust', steps=STEPS, pair=True, **changes):
    "The explainer of a task."
    return get_explainer(task.data, task.pair if pair else None, preset, size=task.size, steps=steps, progress=sys.stdout.isatty(), **changes)

def floor(task, kind): return kind(task.classifier).fit(task.dls)

def pgd(task): return PGD(task.classifier, eps=(72 if task.data == 'fashion_mnist' else 64)/255)

robust, paper, near = partial(mirror), partial(mirror, preset='paper'), partial(mirror, preset='robust', prox=8.)
FLOORS = {'Identity': partial(floor, kind=Identity), 'Nearest real image': partial(floor, kind=NearestNeighbour), 'Pixel blend': partial(floor, kind=PixelBlend)}
some = lambda tasks, n=400: [Task(t.data, t.pair, t.size, n) for t in tasks]   # the first n of the same random order
GROUPS = dict(
    main=(GREY, {'Mirror-CFE robust': robust}),
    colour=(COLOUR, {'Mirror-CFE robust': robust}),
    paper=(some(GREY + COLOUR), {'Mirror-CFE paper': paper}),
    near=(some(GREY + COLOUR), {'Mirror-CFE near': near}),
    floors=(some(GREY + COLOUR), FLOORS),
    multi=(some(GREY), {'Mirror-CFE robust, multi-class': partial(mirror, pair=False, steps=2000)}),
    ssc=(some([COLOUR[2]]), {'full': robust, 'skip only': partial(mirror, mode='skip'), 'no CSP': partial(mirror, mode='no-csp')}),
    tri=(some([GREY[4]]), {'none': partial(mirror, tri=0.), **{f'a = {a}': partial(mirror, a=a) for a in (0., .2, .4, .6)}}),
    pgd=(some(GREY, 200), {'PGD': pgd}))

def slug(title): return title.replace(',', '').replace('= ', '').replace(' ', '-').replace('/', '-').lower()

def pictures(task, label, model):
    "Keep the strips of four images a direction."
    s = task.sources()
    i = torch.cat([w[:4] for _, w in task.directions()])
    ex = model.explain(s.x[i], s.target[i], truth=s.truth[i])
    ex.show_grid(8).savefig(OUT/'pictures'/f"{slug(f'{task.title} {label}')}.png", dpi=70)

def run(group, only=None):
    "Train, measure and draw one group, one task after the other."
    tasks, methods = GROUPS[group]
    for t in tasks:
        if only and only not in t.title: continue
        run_benchmark(methods, [t], OUT/group)
        for label, make in methods.items():
            if group not in ('floors', 'pgd') and not t.data.startswith('celeba'): pictures(t, label, make(t))

if __name__ == '__main__':
    (OUT/'pictures').mkdir(parents=True, exist_ok=True)
    for group in sys.argv[1:] or GROUPS: run(group)
