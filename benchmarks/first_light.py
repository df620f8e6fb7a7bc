"""Train and measure what first light promises, on this machine; print it and keep it in results/first_light.md.

python benchmarks/first_light.py [digits pair paper all]     (no argument: all four, about half an hour on two cores)
Needs MNIST for the last three: set MIRRORCFE_DATA, or let it download.
"""
import json, platform, sys, time
from pathlib import Path
import numpy as np
import torch
import matplotlib
matplotlib.use('Agg')
import mirrorcfe.show
from mirrorcfe import __version__
from mirrorcfe.classifiers import get_classifier, get_oracle
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.losses import gaussian_blur

RESULTS = Path(__file__).parent/'results'
RUNS = dict(
    digits=dict(title='digits, all pairs, smooth=True', data='digits', pair=None, preset='robust', n=300, changes=dict(steps=500, smooth=True)),
    pair=dict(title='MNIST 4-9, robust', data='mnist', pair=(4, 9), preset='robust', n=500, changes={}),
    paper=dict(title='MNIST 4-9, paper', data='mnist', pair=(4, 9), preset='paper', n=500, changes={}),
    all=dict(title='MNIST, all 90 directions', data='mnist', pair=None, preset='robust', n=500, changes=dict(steps=2800)))

def look(net, images, bs=1000):
    "Predicted classes of (B, ...) images."
    with torch.no_grad(): return torch.cat([net(x).argmax(1) for x in images.split(bs)])

def measure(ex, classifier, oracle, crop=0):
    "Every figure of an explanation, one value a sample; NaN where a sample has none."
    t, i = ex.target, ex.first_index
    found, nan = i >= 0, torch.tensor(torch.nan)
    first = ex.path[torch.arange(len(i)), i.clamp_min(0)]
    blur = lambda x: gaussian_blur(x, torch.tensor(1.))
    gap = (ex.intended - ex.achieved).abs()
    inner = (..., slice(crop, -crop or None), slice(crop, -crop or None))
    dist = lambda x, w=...: (x - ex.x)[w].abs().mean((1, 2, 3))
    if_found = lambda v: torch.where(found, v.float(), nan)
    last = ex.x_reflection
    return {'Val': ex.predicted[:, -1] == t, 'D.Val': look(classifier, blur(last)) == t, 'Oracle': look(oracle, last) == t,
            'L1': dist(last), 'L1, 28 px': dist(last, inner), 'first k': ex.first_k, 'D.Val, first': if_found(look(classifier, blur(first)) == t),
            'Oracle, first': if_found(look(oracle, first) == t), 'L1, first': if_found(dist(first)), 'Fail': ~found,
            'confidence error': gap.mean(1), 'at k=1': gap[:, -1], 'L1 of x_0': ex.difference[:, 0]}

def interval(v, n=1000, seed=0):
    "Mean and 95 % bootstrap interval of what is not NaN."
    v = np.asarray(v, dtype=float)
    v = v[~np.isnan(v)]
    if not len(v): return (float('nan'),)*3
    means = np.random.default_rng(seed).choice(v, (n, len(v))).mean(1)
    return v.mean(), *np.quantile(means, (.025, .975))

def run(name, title, data, pair, preset, n, changes, seed=0):
    "Train, explain `n` test images toward random targets, measure with the loop open and closed."
    t = [time.perf_counter()]
    clf, oracle = get_classifier(data), get_oracle(data)
    dls = get_dls(data, pair=pair, steps=100, seed=seed)
    t.append(time.perf_counter())
    cfe = MirrorCFE(clf, preset, seed=seed, **changes).fit(dls, progress=sys.stdout.isatty())
    t.append(time.perf_counter())
    x, y = dls.test.dataset[torch.randperm(len(dls.test.dataset), generator=torch.Generator().manual_seed(seed))]
    keep = torch.isin(clf(x).argmax(1), torch.tensor(pair)) if pair else torch.ones(len(x), dtype=torch.bool)
    x, y = x[keep][:n].to(clf.W.device), y[keep][:n]
    target_offset = torch.randint(1, clf.n_classes, (len(x),), generator=torch.Generator().manual_seed(seed)).to(x.device)
    target = None if pair else (clf(x).argmax(1) + target_offset) % clf.n_classes
    rows = {}
    for loop in (False, True):
        start = time.perf_counter()
        ex = cfe.explain(x, target, truth=y, closed_loop=loop)
        took = time.perf_counter() - start
        rows['closed loop' if loop else 'open loop'] = {k: interval(v) for k, v in measure(ex, clf, oracle, crop=2 if data != 'digits' else 0).items()}
        rows['closed loop' if loop else 'open loop']['explain, s'] = (took,)*3
    about = dict(title=title, n=len(x), seed=seed, steps=cfe.recipe.steps, seconds=round(t[2] - t[1], 1), ready=round(t[1] - t[0], 1), parameters=sum(p.numel() for p in cfe.model.G.parameters()),
                 classifier=clf.accuracy, oracle=oracle.accuracy, device=str(x.device), threads=torch.get_num_threads(), bf16=bool(cfe.model.amp),
                 machine=platform.machine(), torch=torch.__version__, version=__version__, rows=rows)
    cfe.learn = None
    return about, ex

def markdown(about):
    "One table a run: open and closed loop side by side, mean [95 % interval]."
    a, names = about, list(about['rows'])
    head = [f"## {a['title']}", '', f"{a['n']} test images, seed {a['seed']}, {a['steps']} steps of 64 in {a['seconds']:.0f} s of training on {a['device']} ({a['machine']}, "
            f"{a['threads']} threads, bf16 {'on' if a['bf16'] else 'off'}), generator of {a['parameters']/1e6:.2f} million parameters. Accuracy of the classifier {a['classifier']:.4f}, "
            f"of the oracle {a['oracle']:.4f}. torch {a['torch']}, mirrorcfe {a['version']}.", '', '| | ' + ' | '.join(names) + ' |', '|---|' + '---|'*len(names)]
    cell = lambda m, lo, hi: f'{m:.3f}' if lo == hi else f'{m:.3f} [{lo:.3f}, {hi:.3f}]'
    return '\n'.join(head + [f"| {k} | " + ' | '.join(cell(*a['rows'][n][k]) for n in names) + ' |' for k in a['rows'][names[0]]]) + '\n'

INTRO = """# First light, measured

Made by `python benchmarks/first_light.py`. Images lie in [-1, 1], and so do L1 distances. Val, D.Val (the classifier after a Gaussian blur, kernel 5, sigma 1) and Oracle
(an independently trained network) are shares of images predicted as the target, at the reflection (k=1) and at the first CFE. Fail: never predicted as the target on the
grid of 100 steps; such samples count in every row but those of the first CFE. Confidence error: mean absolute difference of intended and achieved confidence in the target
over the 100 steps. Open loop: the image is drawn at k, as published; closed loop: where the classifier's answer is the intended one (31_explainer). In brackets 95 %
bootstrap intervals over the images; they say nothing about other training seeds. With all pairs the target is drawn at random; for digits the 300 test images are few.
"""

def pictures(name, ex):
    "Keep the strips of the first eight images; of the pair also the figure of the first 4 that becomes a 9, for the README."
    ex.show_grid(8).savefig(RESULTS/f'first_light_{name}.png', dpi=80)
    if name == 'pair': ex.figure(int((ex.source == 4).nonzero()[0])).savefig(Path(__file__).parents[1]/'nbs'/'images'/'transition.png', dpi=100)

if __name__ == '__main__':
    for folder in (RESULTS, Path(__file__).parents[1]/'nbs'/'images'): folder.mkdir(exist_ok=True)
    for name in sys.argv[1:] or RUNS:
        about, ex = run(name, **RUNS[name])
        pictures(name, ex)
        (RESULTS/f'first_light_{name}.json').write_text(json.dumps(about, indent=1))
        print(markdown(about), flush=True)
    done = [json.loads(f.read_text()) for n in RUNS if (f := RESULTS/f'first_light_{n}.json').exists()]
    (RESULTS/'first_light.md').write_text(INTRO + '\n' + '\n'.join(markdown(a) for a in done))
