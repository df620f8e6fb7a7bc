"""Fit and measure the other methods beside ours, for the pages from 80 on; kept in results/reproduction, a folder a
study.

    python benchmarks/studies.py [methods artefacts c3lt rigged walk time blur filters]

Without an argument all studies run: hours on two cores. Every method explains the same frozen classifier on the same
test images. Methods that are trained use their preset `cpu`, whose size is written beside each result. A killed run
goes on: fitted methods come from the cache, and measured cells are not measured again.
"""
import json, statistics, sys, time
from functools import partial
import matplotlib.pyplot as plt
import numpy as np
import torch
from mirrorcfe.baselines.c3lt import C3LT
from mirrorcfe.baselines.cem import CEM
from mirrorcfe.baselines.cve import CVE
from mirrorcfe.baselines.cyclegan import CycleGAN
from mirrorcfe.baselines.explaingan import ExplainGAN
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.benchmark import METRICS, Metric, Task, get_baseline, get_explainer, measure, run_benchmark
from mirrorcfe.classifiers import get_classifier, get_oracle, predict
from mirrorcfe.metrics import denoised_validity
from mirrorcfe.results import c3lt_autoencoder
from look import artefacts
from pictures import save_small
from reproduce import COLOUR, FLOORS, GREY, MNIST, OUT, pgd, mirror, slug, some

METRICS_OF = [n for n in METRICS if n not in ('first k', 'seconds a sample', 'passes')]
WALKS = [(4, 9), (3, 8), (5, 6)]
METRICS |= {
    'confidence': Metric(lambda v: v.ex.achieved[:, -1], 'up', '0 to 1', 'as Val', 'path'),
    'still the source': Metric(lambda v: (v.oracle(v.x_cf).argmax(1) == v.ex.source).float(), 'down', '0 to 1',
                               'patterns that transfer between networks')}

def c3lt(task, classifier=None, **changes):
    "C3LT on a task, some of its losses left out by `changes`."
    return get_baseline(C3LT, task, classifier=classifier, autoencoder=c3lt_autoencoder(task, classifier),
                        **changes)

def baseline(task, kind):
    "Another method, fitted on the task."
    return get_baseline(kind, task)

METHODS = {
    'Mirror-CFE': mirror,
    'C3LT': partial(c3lt),
    'ExplainGAN': partial(baseline, kind=ExplainGAN),
    'CycleGAN': partial(baseline, kind=CycleGAN),
    'CEM': partial(baseline, kind=CEM),
    'CVE': partial(baseline, kind=CVE),
    'PGD': pgd,
    **FLOORS}
ABLATION = {
    'cls only': partial(c3lt, prox=0., cyc=0., adv=0.),
    'cls and prox': partial(c3lt, cyc=0., adv=0.),
    'cls, prox and cyc': partial(c3lt, adv=0.),
    'C3LT': partial(c3lt),
    'CycleGAN': METHODS['CycleGAN']}

def inner(x):
    "Images without the border of two pixels that the data adds."
    return x[..., 2:-2, 2:-2]

def grey(x):
    "Images as bytes, without the border; absent ones are black."
    return inner(x)[..., 0, :, :].add(1).mul(127.5).round().clamp(0, 255).nan_to_num(0).byte().numpy()

def calls(clf, images):
    "The class that a classifier calls every image of a set."
    return torch.cat([predict(clf, [images[i]])[0].argmax(1) for i in torch.arange(len(images)).split(500)])

def at_end(method, x, target, clf, oracle, *names):
    "The mean of each metric over the last images of the paths, all explained at once."
    found = measure(method, x, target, clf, oracle, metrics=names, at=['reflection'], bs=len(x), border=2)
    return [found['rows']['reflection']['metrics'][n]['mean'] for n in names]

def keep(study, **about):
    "Write what a study found."
    (OUT/study).mkdir(exist_ok=True)
    (OUT/study/'results.json').write_text(json.dumps(about | dict(torch=torch.__version__), indent=1))

def answers(label, method, x, target):
    "The rows of a grid: of Mirror-CFE the first counterfactual and the reflection, of other methods their answer."
    ex = method.explain(x, target)
    if len(ex.ks) <= 2 or not label.startswith('Mirror'): return [(label, ex.x_reflection)]
    return [(f'{label}, first', ex.x_cf), (f'{label}, k = 1', ex.x_reflection)]

def draw_grid(task, methods, file, n=4):
    "Keep a grid: the sources, and below them every method's answers, `n` images a direction."
    src = task.sources()
    i = torch.cat([index[:n] for _, index in task.directions()])
    rows = [('source', src.x[i])]
    for label, method in methods.items(): rows += answers(label, method, src.x[i], src.target[i])
    size = .75*len(i) + 2., .78*len(rows)
    fig, axs = plt.subplots(len(rows), len(i), figsize=size, gridspec_kw=dict(wspace=.05, hspace=.05))
    for row, (label, images) in zip(axs, rows):
        row[0].text(-.15, .5, label, transform=row[0].transAxes, ha='right', va='center', fontsize=8)
        for ax, image in zip(row, images):
            ax.axis('off')
            if not image.isnan().any(): ax.imshow(image[0], cmap='gray', vmin=-1, vmax=1)
    save_small(fig, file, dpi=72, bbox_inches='tight')
    plt.close(fig)

def methods(only=None):
    "All methods on the pairs of MNIST and Fashion-MNIST."
    for task in some(GREY, 200):
        if only and only not in task.title: continue
        run_benchmark(METHODS, [task], OUT/'methods', METRICS_OF)
        shown = {label: make(task) for label, make in METHODS.items() if label != 'Identity'}
        draw_grid(task, shown, OUT/'pictures'/f'methods-{slug(task.title)}.png')

def all_artefacts(n=100):
    "What no judge counts: whether the answers are all alike, and the grain of the change, beside those of real images."
    rows = []
    for task in some(GREY, n):
        src = task.sources()
        for label, make in METHODS.items():
            if label in FLOORS: continue   # their answers are real images, or the sources
            method = make(task)
            ends = [method.explain(src.x[i], src.target[i]).x_reflection for i in torch.arange(len(src.x)).split(50)]
            ours, real = artefacts(task, src, torch.cat(ends))
            beside = {f'{k}, real': v for k, v in real.items()}
            rows.append(dict(task=task.title, method=label, N=len(src.x)) | ours | beside)
            print(rows[-1], flush=True)
    keep('artefacts', rows=rows)

def ablation(only=None):
    "What each loss of C3LT does."
    for task in some(MNIST, 200):
        if not only or only in task.title: run_benchmark(ABLATION, [task], OUT/'c3lt', METRICS_OF)

def rigged(n=200):
    "Fours sent to 9 and to 1, by a classifier that knows nines and by one that never saw any."
    oracle = get_oracle('mnist')
    test = Task('mnist').test
    rows = []
    kept = {}
    for net, clf in dict(usual=get_classifier('mnist'), rigged=get_classifier('mnist', without=9)).items():
        right = (calls(clf, test) == 4) & (test.y == 4)
        x = test[right.nonzero().flatten()[:n]][0]
        for target in (9, 1):
            task = Task('mnist', (4, target))
            made = {
                'Mirror-CFE': get_explainer('mnist', (4, target), classifier=clf),
                'C3LT': c3lt(task, clf),
                'CycleGAN': get_baseline(CycleGAN, task, classifier=clf)}
            for label, method in made.items():
                val, p, agrees, still, distance = at_end(method, x, target, clf, oracle, 'Val', 'confidence', 'Oracle',
                                                         'still the source', 'L1')
                rows.append(dict(classifier=net, accuracy=clf.accuracy, fingerprint=clf.weights_hash(), method=label,
                                 target=target, N=len(x), val=val, p=p, oracle=agrees, still=still, l1=distance))
                kept[f'{net}-{label}-{target}'] = grey(method.explain(x[:6], target).x_reflection)
                print(rows[-1], flush=True)
    keep('rigged', rows=rows, oracle=oracle.accuracy)
    np.savez_compressed(OUT/'rigged'/'pictures.npz', source=grey(x[:6]), **kept)

def walk(n=200):
    "Three steps of C3LT in the space of codes, and how far each dimension of the code moves."
    kept = {}
    for pair in WALKS:
        task = Task('mnist', pair, n=n)
        method = c3lt(task)
        src = task.sources()
        i = torch.cat([index[:3] for _, index in task.directions()])
        name = '-'.join(map(str, pair))
        kept[f'{name} images'] = grey(torch.cat([src.x[i][:, None], method.path(src.x[i], src.target[i])], 1))
        with torch.no_grad():
            z = method.game.fixed.E(src.x)
            moved = method.game.path(z, src.source, 1)[-1] - z
        kept[f'{name} moved'] = moved.abs().half().numpy()
    (OUT/'walk').mkdir(exist_ok=True)
    np.savez_compressed(OUT/'walk'/'walk.npz', **kept)

class EveryStep:
    "Mirror-CFE where all hundred steps of the path are asked for."
    def __init__(self, explainer): self.explainer = explainer
    def explain(self, x, target): return self.explainer.explain(x, target, ks=100)

def untrained(task):
    "Every method, those that train after one step: how long a network takes does not depend on its weights."
    one = dict(steps=1)
    ours = mirror(task)
    return {
        'Mirror-CFE': ours,
        'Mirror-CFE, every step': EveryStep(ours),
        'C3LT': get_baseline(C3LT, task, autoencoder=c3lt_autoencoder(task, **one), **one),
        'ExplainGAN': get_baseline(ExplainGAN, task, **one),
        'CycleGAN': get_baseline(CycleGAN, task, **one),
        'CEM': get_baseline(CEM, task, ae_steps=1),
        **{label: METHODS[label](task) for label in ('CVE', 'PGD', *FLOORS)}}

def timing(rounds=3):
    """Processor seconds a sample with one thread, alone and 256 at once: they depend less than the clock on what else
    the machine does. The methods take turns, so that a busy minute hits all of them."""
    torch.set_num_threads(1)
    task = Task('mnist', (4, 9), n=256)
    made = untrained(task)
    src = task.sources()
    rows = []
    for bs in (1, 256):
        i = [j % len(src.x) for j in range(bs)]
        taken = {label: [] for label in made}
        for r in range(rounds):
            for label, method in made.items():
                if label in ('CEM', 'PGD') and r and bs > 1: continue    # minutes: once is enough
                start = time.process_time()
                method.explain(src.x[i], src.target[i])
                taken[label].append((time.process_time() - start)/bs)
        for label, seconds in taken.items():
            rows.append(dict(method=label, batch=bs, seconds=statistics.median(seconds), rounds=len(seconds)))
        print(rows[-len(made):], flush=True)
    keep('time', rows=rows, threads=torch.get_num_threads())

def blur(n=100):
    "PGD against the usual classifier, and against one that never met a blurred image."
    oracle = get_oracle('mnist')
    test = Task('mnist').test
    nets = {'blurred images too': get_classifier('mnist'), 'sharp images only': get_classifier('mnist', blur=0.)}
    called = [calls(clf, test) for clf in nets.values()]
    rows = []
    for source, target in ((4, 9), (9, 4)):
        both_right = (test.y == source) & torch.stack([c == source for c in called]).all(0)
        x = test[both_right.nonzero().flatten()[:n]][0]
        for name, clf in nets.items():
            val, agrees = at_end(PGD(clf, eps=64/255), x, target, clf, oracle, 'Val', 'Oracle')
            rows.append(dict(classifier=name, accuracy=clf.accuracy, fingerprint=clf.weights_hash(),
                             direction=f'{source} to {target}', N=len(x), val=val, oracle=agrees))
            print(rows[-1], flush=True)
    keep('blur', rows=rows, oracle=oracle.accuracy)

def filters(n=400):
    "How many real test images, of those that the classifier gets right, keep their class behind the filters of D.Val."
    rows = []
    for task in [*GREY, *COLOUR]:
        for c in task.pair:
            x = task.test[(task.test.y == c).nonzero().flatten()[:n]][0]
            with torch.no_grad():
                x = x[task.classifier(x).argmax(1) == c]
                kept = {f: denoised_validity(task.classifier, x, c, f).item() for f in ('gaussian', 'median')}
            rows.append(dict(task=task.title, images=task.classifier.classes[c], N=len(x),
                             accuracy=task.classifier.accuracy) | kept)
            print(rows[-1], flush=True)
    keep('filters', rows=rows)

STUDIES = dict(methods=methods, artefacts=all_artefacts, c3lt=ablation, rigged=rigged, walk=walk, time=timing,
               blur=blur, filters=filters)

if __name__ == '__main__':
    (OUT/'pictures').mkdir(parents=True, exist_ok=True)
    for study in sys.argv[1:] or STUDIES: STUDIES[study]()
