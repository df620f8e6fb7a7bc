"""Train and measure what the pages 70 to 78 show, at real size; kept in results/reproduction, one folder a group.

    python benchmarks/reproduce.py [main colour large painter ahead demo paper floors multi ssc tri pgd heads
                                    heads-masks]

Without an argument all groups run: hours on two cores, minutes on a GPU. A killed run goes on where it stopped:
explainers come from the cache or from their checkpoint, and measured cells are not measured again. MNIST,
Fashion-MNIST, BloodMNIST and CelebA-HQ are read from $MIRRORCFE_DATA, or fetched where that is possible;
`folder:blood_cells_128` is a folder of images there.
"""
import sys
from functools import partial
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import torch
import mirrorcfe.show
from mirrorcfe.baselines.floors import Identity, NearestNeighbour, PixelBlend
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.benchmark import NetworkTask, Task, get_explainer, run_benchmark
from mirrorcfe.classifiers import ARCHITECTURES
from mirrorcfe.data import available
from mirrorcfe.runs import DEMO, DEMO_SIZE
from pictures import save_small

OUT = Path(__file__).parent/'results'/'reproduction'
MNIST = [Task('mnist', pair) for pair in ((3, 8), (4, 9), (5, 6))]
FASHION = [Task('fashion_mnist', pair) for pair in ((0, 2), (4, 6), (7, 9))]
GREY = MNIST + FASHION
FACES = Task('celeba_hq', (0, 1), 64)
NETWORKS = [NetworkTask('mnist', (4, 9), n=400, arch=arch) for arch in ARCHITECTURES]   # the same images, four networks

def blood(size):
    "Blood cells from a folder of photographs, in a list; an empty one where the folder is not."
    name = 'folder:blood_cells_128'
    return [Task(name, (0, 1), size)] if available(name) else []

COLOUR = [Task('bloodmnist', (2, 4)), *blood(64), FACES]
LARGE = [*blood(128), Task('celeba_hq', (0, 1), 128)]

def mirror(task, preset='default', pair=True, **changes):
    "The explainer of a task; `pair=False`: one for all classes."
    return get_explainer(task.data, task.pair if pair else None, preset, size=task.size,
                         progress=sys.stdout.isatty(), **changes)

def mirror_of_network(task, **changes):
    "The explainer of a task's own classifier, by the recipe that all get."
    return get_explainer(task.data, task.pair, size=task.size, classifier=task.classifier,
                         progress=sys.stdout.isatty(), **changes)

def floor(task, kind):
    "A floor: a method that costs nothing, and that every method has to beat."
    return kind(task.classifier).fit(task.dls)

def pgd(task):
    "The attack, with the budget of the paper: 72/255 on garments, 64/255 on digits."
    return PGD(task.classifier, eps=(72 if task.data == 'fashion_mnist' else 64)/255)

def some(tasks, n=400):
    "The same tasks with `n` images each: the first of the same random order."
    return [Task(task.data, task.pair, task.size, n) for task in tasks]

paper = partial(mirror, preset='paper', steps=1600)
SEEDS = {'Mirror-CFE': mirror, 'Mirror-CFE, seed 1': partial(mirror, seed=1),
         'Mirror-CFE, seed 2': partial(mirror, seed=2)}
FLOORS = {
    'Identity': partial(floor, kind=Identity),
    'Nearest real image': partial(floor, kind=NearestNeighbour),
    'Pixel blend': partial(floor, kind=PixelBlend)}
NOT_AHEAD = dict(student_margin=0.)
SHRUNK = dict(student=2., shrink=.1)   # fewer errors are corrected
# As ABLATED below, of the recipe before the student looked ahead
TRIANGULATION = {'none': partial(mirror, tri=0., **NOT_AHEAD)} | {
    f'a = {a}': partial(mirror, a=a, **NOT_AHEAD) for a in (0., .2, .4, .6)}
MASKS = {'full': mirror, 'skip only': partial(mirror, mode='skip'), 'no CSP': partial(mirror, mode='no-csp')}
ABLATED = {   # fields of the recipe that are changed, one row each, of the recipe before the student looked ahead
    'not ahead': {},
    'no student': dict(student=0.),
    'no augmentation': dict(augmented=0.),
    'discriminator of pixels alone': dict(own=False),
    'discriminator of own maps alone': dict(pixels=False),
    'proximity 0': dict(prox=0.),
    'proximity 24': dict(prox=24.)}

def three_seeds(label, fields, make=mirror):
    "One row of a table for each of three seeds."
    rows = {label: partial(make, **fields)}
    for seed in (1, 2): rows[f'{label}, seed {seed}'] = partial(make, **fields, seed=seed)
    return rows

PAINTER = dict(SEEDS)
for label, fields in ABLATED.items(): PAINTER |= three_seeds(label, NOT_AHEAD | fields)
GROUPS = dict(
    main=(GREY, SEEDS),
    colour=(some(COLOUR), SEEDS),
    large=(some(LARGE, 200), SEEDS),
    painter=(some([MNIST[1]]), PAINTER),
    ahead=(GREY, three_seeds('not ahead', NOT_AHEAD) | three_seeds('small changes left out', SHRUNK)),
    demo=([Task('digits', size=DEMO_SIZE)], three_seeds('demo', dict(pair=False) | DEMO)),
    paper=(some(GREY + COLOUR), {'Mirror-CFE paper': paper}),
    floors=(some(GREY + COLOUR), FLOORS),
    multi=(some(GREY), {'Mirror-CFE, all classes': partial(mirror, pair=False, steps=1200)}),
    ssc=(some([FACES]), MASKS),
    tri=(some([FASHION[1]]), TRIANGULATION),
    pgd=(some(GREY, 200), {'PGD': pgd}),
    heads=(NETWORKS, {'Mirror-CFE': mirror_of_network}))
# The latent painter edits no map of these two above their deepest, so their mask would have nothing to hold back
PIXELS = dict(painter='pixels', image=True, rec=10., at_source=.25)
GROUPS['heads-masks'] = ([NETWORKS[1], NETWORKS[2]], {
    'mask': partial(mirror_of_network, **PIXELS),
    'no mask': partial(mirror_of_network, mode='no-csp', **PIXELS)})

def slug(title):
    "A title as the name of a file."
    return title.replace(',', '').replace('= ', '').replace(' ', '-').replace('/', '-').lower()

def draw_strips(task, label, model):
    "Keep the strips of four images a direction."
    src = task.sources()
    i = torch.cat([index[:4] for _, index in task.directions()])
    ex = model.explain(src.x[i], src.target[i], truth=src.truth[i])
    name = slug(f'{task.title} {label}')
    save_small(ex.show_grid(8), OUT/'pictures'/f'{name}.png', dpi=70)

def run(group, only=None):
    "Train, measure and draw one group, one task after the other; `only`: the tasks whose title has this in it."
    tasks, methods = GROUPS[group]
    for task in tasks:
        if only and only not in task.title: continue
        run_benchmark(methods, [task], OUT/group)
        if group in ('floors', 'pgd') or task.data.startswith('celeba'): continue   # no face is kept
        for label, make in methods.items():
            if ', seed ' not in label: draw_strips(task, label, make(task))

if __name__ == '__main__':
    (OUT/'pictures').mkdir(parents=True, exist_ok=True)
    for group in sys.argv[1:] or GROUPS: run(group)
