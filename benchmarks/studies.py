"""Fit and measure the other methods beside ours, for the pages from 80 on; kept in results/reproduction, one folder a study.

python benchmarks/studies.py [methods c3lt rigged walk time blur]     (no argument: all; hours on two cores)
Every method explains the same frozen classifier on the same test images. Methods that are trained use their preset `cpu`, whose
size is written beside each result. A killed run goes on: fitted methods come from the cache, measured cells are not measured again.
"""
import json, statistics, sys, time
from functools import partial
import numpy as np, torch
import matplotlib.pyplot as plt
from mirrorcfe.baselines.c3lt import C3LT, DCGAN, GanAutoencoder
from mirrorcfe.baselines.cem import CEM
from mirrorcfe.baselines.cve import CVE
from mirrorcfe.baselines.cyclegan import CycleGAN
from mirrorcfe.baselines.explaingan import ExplainGAN
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.benchmark import METRICS, Task, get_baseline, get_explainer, run_benchmark
from mirrorcfe.classifiers import get_classifier, get_oracle, predict
from mirrorcfe.metrics import l1, oracle_agreement, validity
from reproduce import FLOORS, GREY, OUT, near, pgd, robust, slug, some

METRICS_OF = [n for n in METRICS if n not in ('first k', 'seconds a sample', 'passes')]
WALKS = [(4, 9), (3, 8), (5, 6)]

def autoencoder(task, classifier=None):
    "A DCGAN of all classes and an encoder of the pair: made once for all variants of C3LT."
    gan = get_baseline(DCGAN, Task(task.data), classifier=classifier)
    return get_baseline(GanAutoencoder, task, classifier=classifier, gan=gan)

def c3lt(task, classifier=None, **changes): return get_baseline(C3LT, task, classifier=classifier, autoencoder=autoencoder(task, classifier), **changes)

def baseline(task, kind): return get_baseline(kind, task)

METHODS = {'Mirror-CFE robust': robust, 'Mirror-CFE near': near, 'C3LT': partial(c3lt), 'ExplainGAN': partial(baseline, kind=ExplainGAN), 'CycleGAN': partial(baseline, kind=CycleGAN),
           'CEM': partial(baseline, kind=CEM), 'CVE': partial(baseline, kind=CVE), 'PGD': pgd, **FLOORS}
ABLATION = {'cls only': dict(prox=0., cyc=0., adv=0.), 'cls and prox': dict(cyc=0., adv=0.), 'cls, prox and cyc': dict(adv=0.), 'C3LT': {}}

def inner(x): return x[..., 2:-2, 2:-2]   # without the border that the data adds

def grey(x): return inner(x)[..., 0, :, :].add(1).mul(127.5).round().clamp(0, 255).nan_to_num(0).byte().numpy()

def calls(clf, test): return torch.cat([predict(clf, [test[i]])[0].argmax(1) for i in torch.arange(len(test)).split(500)])

def keep(study, **about):
    "Write what a study found."
    (OUT/study).mkdir(exist_ok=True)
    (OUT/study/'results.json').write_text(json.dumps(about | dict(torch=torch.__version__), indent=1))

def grid(task, methods, file, n=4):
    "Source and every method's answer, `n` images a direction."
    s = task.sources()
    i = torch.cat([w[:n] for _, w in task.directions()])
    rows = [('source', s.x[i])]
    for label, m in methods.items():
        ex = m.explain(s.x[i], s.target[i])
        rows += [(f'{label}, first', ex.x_cf), (f'{label}, k = 1', ex.x_reflection)] if len(ex.ks) > 2 and label.startswith('Mirror') else [(label, ex.x_reflection)]
    fig, axs = plt.subplots(len(rows), len(i), figsize=(.75*len(i) + 1.6, .78*len(rows)), gridspec_kw=dict(wspace=.05, hspace=.05))
    for row, (label, images) in zip(axs, rows):
        row[0].text(-.15, .5, label, transform=row[0].transAxes, ha='right', va='center', fontsize=8)
        for ax, im in zip(row, images):
            ax.axis('off')
            if not im.isnan().any(): ax.imshow(im[0], cmap='gray', vmin=-1, vmax=1)
    fig.savefig(file, dpi=72, bbox_inches='tight'); plt.close(fig)

def methods(only=None):
    "All methods on the pairs of MNIST and Fashion-MNIST."
    for task in some(GREY, 200):
        if only and only not in task.title: continue
        run_benchmark(METHODS, [task], OUT/'methods', METRICS_OF)
        grid(task, {n: make(task) for n, make in METHODS.items() if n not in ('Identity',)}, OUT/'pictures'/f'methods-{slug(task.title)}.png')

def ablation(only=None):
    "What each loss of C3LT does."
    for task in some(GREY[:3], 200):
        if not only or only in task.title: run_benchmark({n: partial(c3lt, **change) for n, change in ABLATION.items()} | {'CycleGAN': METHODS['CycleGAN']}, [task], OUT/'c3lt', METRICS_OF)

def rigged(n=200, steps=800):
    "Fours sent to 9 and to 1, by a classifier that knows nines and by one that never saw any."
    oracle, rows, kept, test = get_oracle('mnist'), [], {}, Task('mnist').test
    for net, clf in dict(usual=get_classifier('mnist'), rigged=get_classifier('mnist', without=9)).items():
        x = test[((calls(clf, test) == 4) & (test.y == 4)).nonzero().flatten()[:n]][0]
        for target in (9, 1):
            task, t = Task('mnist', (4, target)), torch.full((len(x),), target)
            made = {'Mirror-CFE robust': get_explainer('mnist', (4, target), steps=steps, classifier=clf), 'C3LT': c3lt(task, clf), 'CycleGAN': get_baseline(CycleGAN, task, classifier=clf)}
            for label, m in made.items():
                ex = m.explain(x, target)
                end = ex.x_reflection
                said = oracle(end).argmax(1)
                rows.append(dict(classifier=net, accuracy=clf.accuracy, fingerprint=clf.fingerprint(), method=label, target=target, N=len(x), val=float(validity(clf, end, t)), p=ex.achieved[:, -1].mean().item(),
                                 oracle=float(oracle_agreement(oracle, end, t)), still=(said == 4).float().mean().item(), l1=float(l1(inner(x), inner(end)))))
                kept[f'{net}-{label}-{target}'] = grey(end[:6])
                print(rows[-1], flush=True)
    keep('rigged', rows=rows, steps=steps, oracle=oracle.accuracy)
    np.savez_compressed(OUT/'rigged'/'pictures.npz', source=grey(x[:6]), **kept)

def walk(n=200):
    "Three steps of C3LT in the space of codes, and how far each dimension of the code moves."
    kept = {}
    for pair in WALKS:
        task = Task('mnist', pair, n=n)
        m, s = c3lt(task), task.sources()
        i = torch.cat([w[:3] for _, w in task.directions()])
        kept['-'.join(map(str, pair)) + ' images'] = grey(torch.cat([s.x[i][:, None], m.path(s.x[i], s.target[i])], 1))
        with torch.no_grad(): z = m.game.fixed.E(s.x); moved = m.game.path(z, s.source, 1)[-1] - z
        kept['-'.join(map(str, pair)) + ' moved'] = moved.abs().half().numpy()
    (OUT/'walk').mkdir(exist_ok=True)
    np.savez_compressed(OUT/'walk'/'walk.npz', **kept)

def timing(rounds=3):
    "Seconds a sample, all methods in turn in one run, alone and 256 at once."
    task, rows = Task('mnist', (4, 9), n=256), []
    made, s = {n: make(task) for n, make in METHODS.items()}, task.sources()
    for bs in (1, 256):
        i = [j % len(s.x) for j in range(bs)]
        taken = {n: [] for n in made}
        for r in range(rounds):
            for n, m in made.items():
                if n in ('CEM', 'PGD') and r and bs > 1: continue    # minutes: once is enough
                start = time.perf_counter(); m.explain(s.x[i], s.target[i]); taken[n].append((time.perf_counter() - start)/bs)
        rows += [dict(method=n, batch=bs, seconds=statistics.median(t), rounds=len(t)) for n, t in taken.items()]
        print(rows[-len(made):], flush=True)
    keep('time', rows=rows, threads=torch.get_num_threads())

def blur(n=100):
    "PGD against the usual classifier, and against one that never met a blurred image."
    oracle, test, rows = get_oracle('mnist'), Task('mnist').test, []
    nets = {'blurred images too': get_classifier('mnist'), 'sharp images only': get_classifier('mnist', blur=0.)}
    called = [calls(f, test) for f in nets.values()]
    for a, b in ((4, 9), (9, 4)):
        x = test[((test.y == a) & torch.stack([c == a for c in called]).all(0)).nonzero().flatten()[:n]][0]
        t = torch.full((len(x),), b)
        for name, clf in nets.items():
            end = PGD(clf, eps=64/255).explain(x, t).x_reflection
            rows.append(dict(classifier=name, accuracy=clf.accuracy, fingerprint=clf.fingerprint(), direction=f'{a} to {b}', N=len(x), val=validity(clf, end, t).item(), oracle=oracle_agreement(oracle, end, t).item()))
            print(rows[-1], flush=True)
    keep('blur', rows=rows, oracle=oracle.accuracy)

STUDIES = dict(methods=methods, c3lt=ablation, rigged=rigged, walk=walk, time=timing, blur=blur)

if __name__ == '__main__':
    (OUT/'pictures').mkdir(parents=True, exist_ok=True)
    for study in sys.argv[1:] or STUDIES: STUDIES[study]()
