"""Train four explainers (digits, a pair of MNIST with both presets, all of MNIST); measure them, loop open and closed.

    python benchmarks/first_light.py [digits pair paper all]

Without an argument all four run: about half an hour on two cores. The last three need MNIST: set MIRRORCFE_DATA, or let
it download. The numbers are printed and kept in results/first_light.md, with one JSON file and one picture a run.
"""
import json, math, platform, sys, time
from pathlib import Path
import torch
import matplotlib
matplotlib.use('Agg')
import mirrorcfe.show
from mirrorcfe import __version__
from mirrorcfe.benchmark import METRICS, Metric, measure
from mirrorcfe.classifiers import get_classifier, get_oracle
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.metrics import bootstrap_interval
from pictures import save_small

RESULTS = Path(__file__).parent/'results'
IMAGES = Path(__file__).parents[1]/'nbs'/'images'
RUNS = dict(
    digits=dict(title='digits, all pairs', data='digits', pair=None, preset='default', n=300,
                changes=dict(steps=450, lr=2e-3)),
    pair=dict(title='MNIST 4-9, default', data='mnist', pair=(4, 9), preset='default', n=500, changes={}),
    paper=dict(title='MNIST 4-9, paper', data='mnist', pair=(4, 9), preset='paper', n=500, changes={}),
    all=dict(title='MNIST, all 90 directions', data='mnist', pair=None, preset='default', n=500,
             changes=dict(steps=1600)))

METRICS |= {
    'L1 with the border': Metric(lambda v: (v.x_cf - v.x).abs().mean((1, 2, 3)), 'down', '0 to 2', 'as L1'),
    'error at k=1': Metric(lambda v: (v.ex.intended - v.ex.achieved).abs()[:, -1], 'down', '0 to 1', '', 'path'),
    'L1 of x_0': Metric(lambda v: v.ex.difference[:, 0], 'down', '0 to 2', 'as L1', 'path')}

# The rows of the table: end, metric, and whether images without a counterfactual are left out.
ROWS = {
    'Val': ('reflection', 'Val', False),
    'D.Val': ('reflection', 'D.Val', False),
    'Oracle': ('reflection', 'Oracle', False),
    'L1': ('reflection', 'L1 with the border', False),
    'L1, 28 px': ('reflection', 'L1', False),
    'first k': ('first', 'first k', True),
    'D.Val, first': ('first', 'D.Val', True),
    'Oracle, first': ('first', 'Oracle', True),
    'L1, first': ('first', 'L1 with the border', True),
    'Fail': ('reflection', '%Fail', False),
    'confidence error': ('reflection', 'confidence error', False),
    'at k=1': ('reflection', 'error at k=1', False),
    'L1 of x_0': ('reflection', 'L1 of x_0', False)}

class Timed:
    "A method that adds up the seconds of its explanations."
    def __init__(self, method):
        self.method = method
        self.seconds = 0.

    def explain(self, *args, **kwargs):
        start = time.perf_counter()
        ex = self.method.explain(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return ex

def row(values, end, name, only_found):
    "Mean and 95 % interval of a row; NaN where there is no value."
    v = torch.tensor([math.nan if u is None else u for u in values[end][name]], dtype=torch.float64)
    if name == '%Fail': v = v/100
    if only_found: v[torch.tensor(values['reflection']['%Fail']) > 0] = torch.nan
    return tuple(bootstrap_interval(v)) if (~v.isnan()).any() else (math.nan,)*3

def run(name, title, data, pair, preset, n, changes, seed=0):
    "Train, and measure `n` test images with the loop open and closed; returns the numbers and an explanation of 40."
    start = time.perf_counter()
    clf = get_classifier(data)
    oracle = get_oracle(data)
    dls = get_dls(data, pair=pair, steps=100, seed=seed)
    ready = time.perf_counter()
    cfe = MirrorCFE(clf, preset, seed=seed, **changes).fit(dls, progress=sys.stdout.isatty())
    trained = time.perf_counter()
    order = torch.randperm(len(dls.test.dataset), generator=torch.Generator().manual_seed(seed))
    x, y = dls.test.dataset[order]
    said = clf(x).argmax(1)
    keep = torch.isin(said, torch.tensor(pair)) if pair else torch.ones(len(x), dtype=torch.bool)
    x = x[keep][:n].to(clf.W.device)
    y = y[keep][:n]
    offset = torch.randint(1, clf.n_classes, (len(x),), generator=torch.Generator().manual_seed(seed)).to(x.device)
    target = None if pair else (clf(x).argmax(1) + offset) % clf.n_classes
    names = sorted({metric for _, metric, _ in ROWS.values()})
    rows = {}
    for loop, closed in (('open loop', False), ('closed loop', True)):
        method = Timed(cfe)
        found = measure(method, x, target, clf, oracle, truth=y, metrics=names, border=0 if data == 'digits' else 2,
                        per_image=True, closed_loop=closed)
        rows[loop] = {label: row(found['values'], *which) for label, which in ROWS.items()}
        rows[loop]['explain, s'] = (method.seconds,)*3
    about = dict(
        title=title, n=len(x), seed=seed, steps=cfe.recipe.steps,
        seconds=round(trained - ready, 1), ready=round(ready - start, 1),
        parameters=sum(p.numel() for p in cfe.model.G.parameters()), classifier=clf.accuracy, oracle=oracle.accuracy,
        device=str(x.device), threads=torch.get_num_threads(), bf16=bool(cfe.model.amp), machine=platform.machine(),
        torch=torch.__version__, version=__version__, rows=rows)
    ex = cfe.explain(x[:40], None if target is None else target[:40], truth=y[:40])
    cfe.learn = None
    return about, ex

def entry(mean, low, high):
    "One entry of the table: the mean, and the interval where it has a width."
    return f'{mean:.3f}' if low == high else f'{mean:.3f} [{low:.3f}, {high:.3f}]'

def markdown(about):
    "One table a run: open and closed loop side by side, mean [95 % interval]."
    loops = list(about['rows'])
    lines = [
        f"## {about['title']}", '',
        f"{about['n']} test images, seed {about['seed']}, {about['steps']} steps of 64 in {about['seconds']:.0f} s of "
        f"training on {about['device']} ({about['machine']}, {about['threads']} threads, "
        f"bf16 {'on' if about['bf16'] else 'off'}), generator of {about['parameters']/1e6:.2f} million parameters. "
        f"Accuracy of the classifier {about['classifier']:.4f}, of the oracle {about['oracle']:.4f}. "
        f"torch {about['torch']}, mirrorcfe {about['version']}.", '',
        '| | ' + ' | '.join(loops) + ' |', '|---|' + '---|'*len(loops)]
    for label in about['rows'][loops[0]]:
        lines.append(f"| {label} | " + ' | '.join(entry(*about['rows'][loop][label]) for loop in loops) + ' |')
    return '\n'.join(lines) + '\n'

INTRO = """# First light, measured

Made by `python benchmarks/first_light.py`. Images lie in [-1, 1], and so do L1 distances. Val, D.Val (the classifier
after a Gaussian blur, kernel 5, sigma 1) and Oracle (an independently trained network) are shares of images predicted
as the target, at the reflection (k=1) and at the first CFE. Fail: never predicted as the target on the grid of 100
steps; such samples count in every row but those of the first CFE. Confidence error: mean absolute difference of
intended and achieved confidence in the target over the 100 steps. Open loop: the image is drawn at k, as published;
closed loop: where the classifier's answer is the intended one (31_explainer). In brackets 95 % bootstrap intervals
over the images; they say nothing about other training seeds. With all pairs the target is drawn at random; for digits
the 300 test images are few.
"""

def draw(name, ex):
    "Keep the strips of eight images; of the pair also the figure of the first 4 that becomes a 9, for the README."
    save_small(ex.show_grid(8), RESULTS/f'first_light_{name}.png', dpi=80)
    if name != 'pair': return
    first_four = int((ex.source == 4).nonzero()[0])
    ex.plot(first_four).savefig(IMAGES/'transition.png', dpi=100)

def main(names):
    RESULTS.mkdir(exist_ok=True)
    IMAGES.mkdir(exist_ok=True)
    for name in names:
        about, ex = run(name, **RUNS[name])
        draw(name, ex)
        (RESULTS/f'first_light_{name}.json').write_text(json.dumps(about, indent=1))
        print(markdown(about), flush=True)
    files = [RESULTS/f'first_light_{n}.json' for n in RUNS]
    done = [json.loads(f.read_text()) for f in files if f.exists()]
    (RESULTS/'first_light.md').write_text(INTRO + '\n' + '\n'.join(markdown(a) for a in done))

if __name__ == '__main__': main(sys.argv[1:] or list(RUNS))
