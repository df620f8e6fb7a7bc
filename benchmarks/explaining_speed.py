"""Count what the search of the first counterfactual finds against drawing every step, and time explaining.

    python benchmarks/explaining_speed.py [--images 100] [--rounds 5] [--times] [--parts]

MNIST, Fashion-MNIST, blood cells and the digits of scikit-learn; explainers come from the cache, or are trained once,
minutes each. Processor seconds of one thread are counted; ratios are to one pass of C3LT's shape (encoder, step, DCGAN)
in the same turns. The numbers are printed and kept in results/explaining_speed.md and explaining_speed.json. `--times`
leaves the stored comparisons as they are. `--parts` times the parts of a drawing, before and after, and keeps them in
results/explaining_parts.json.
"""
import argparse, json, os, platform, resource, statistics, tempfile, time
from pathlib import Path
import torch
from torch import nn
import mirrorcfe.stream  # adds `explain_folder`
from mirrorcfe import __version__
from mirrorcfe.baselines.base import ImageEncoder
from mirrorcfe.baselines.c3lt import LatentStep
from mirrorcfe.benchmark import Task, get_explainer
from mirrorcfe.data import ImageSet
from mirrorcfe.images import to_bytes

RESULTS = Path(__file__).parent/'results'
CASES = [('mnist', (4, 9)), ('mnist', (3, 8)), ('mnist', (5, 6)), ('fashion_mnist', (0, 2)), ('fashion_mnist', (4, 6)),
         ('fashion_mnist', (7, 9)), ('digits', None), ('bloodmnist', (2, 4))]
MARKS = {'first CFE, closed loop': 8, 'reflection, closed loop': 4, 'reflection, open loop, 256 at once': .35}

def explainer(data, pair):
    "The explainer of a case, and its task."
    task = Task(data, pair)
    return get_explainer(data, pair, device='cpu'), task

def count_drawings(cfe, x, **kwargs):
    "Drawings an image of one call of `explain`, and what it returns."
    model = cfe._quick_model()
    draw = model.draw
    drawn = []
    def counted(e, source, *args, **kw):
        drawn.append(len(source))
        return draw(e, source, *args, **kw)
    model.draw = counted
    try: ex = cfe.explain(x, **kwargs)
    finally: del model.draw
    return sum(drawn)/len(x), ex

def compare(cfe, x, closed_loop):
    "How often the search finds the step that drawing all hundred finds."
    drawings, quick = count_drawings(cfe, x, closed_loop=closed_loop)
    full = cfe.explain(x, ks=100, closed_loop=closed_loop)
    a, b = (99*ex.first_k.nan_to_num(-1) for ex in (quick, full))
    off = (a - b).round().abs()
    error = [(ex.intended - ex.achieved).abs().mean().item() for ex in (quick, full)]
    l1 = [(ex.path[:, -1] - ex.x).abs().mean().item() for ex in (quick, full)]
    return dict(images=len(x), same=int((off == 0).sum()), near=int((off <= 2).sum()), drawings=drawings, error=error,
                l1=l1)

def dcgan(channels, z, width):
    "A DCGAN of 32 pixels: transposed convolutions from a code to `width` channels of the image's size, and the image."
    layers = []
    widths = [z, 8*width, 4*width, 2*width, width]
    for i, (narrow, wide) in enumerate(zip(widths, widths[1:])):
        stride, pad = (1, 0) if i == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(narrow, wide, 4, stride, pad, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, 1, 1), nn.Tanh())

class C3LTShaped(nn.Module):
    "Encoder, one step among the codes, DCGAN: a pass as C3LT makes, 4.7 M parameters, untrained."
    def __init__(self, channels=1, z=100, width=64):
        super().__init__()
        self.E = ImageEncoder(channels, 32, z, width)
        self.step = LatentStep(z)
        self.G = dcgan(channels, z, width)

    def forward(self, x): return self.G(self.step(self.E(x))[..., None, None])

def seconds(f, x):
    "Processor seconds an image."
    start = time.process_time()
    f(x)
    return (time.process_time() - start)/len(x)

def in_turns(ways, rounds):
    "Median milliseconds an image of each way, all in every round."
    times = {name: [] for name in ways}
    for r in range(rounds + 1):   # the first warms up
        for name, (f, x) in ways.items():
            s = seconds(f, x)
            if r: times[name].append(1000*s)
    return {name: statistics.median(v) for name, v in times.items()}

def time_explaining(cfe, x, rounds):
    "Milliseconds an image of every way to explain, and of a pass of C3LT's shape."
    shaped = C3LTShaped(x.shape[1]).eval().requires_grad_(False)
    few = x[:32]
    many = x[:256]
    ways = {'C3LT-shaped pass': (shaped, few),
            'C3LT-shaped pass, 256 at once': (shaped, many),
            'first CFE, closed loop': (cfe.explain, few),
            'first CFE, open loop': (lambda v: cfe.explain(v, closed_loop=False), few),
            'reflection, closed loop': (lambda v: cfe.explain(v, ks=[1], quick=True), few),
            'reflection, open loop': (lambda v: cfe.explain(v, ks=[1], closed_loop=False, quick=True), few),
            'reflection, open loop, 256 at once':
                (lambda v: cfe.explain(v, ks=[1], closed_loop=False, quick=True), many),
            'every step, closed loop': (lambda v: cfe.explain(v, ks=100), x[:8]),
            'every step, open loop': (lambda v: cfe.explain(v, ks=100, closed_loop=False), x[:8])}
    parameters = sum(p.numel() for p in shaped.parameters())
    return in_turns(ways, rounds), parameters

def time_folder(cfe, x, n=2000):
    "Images a processor second of `explain_folder`, tables only, four steps, open loop; megabytes early and late."
    data = ImageSet(to_bytes(x).repeat(-(-n//len(x)), 1, 1, 1)[:n], torch.zeros(n, dtype=torch.long))
    memory = []
    def progress(done, total): memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
    with tempfile.TemporaryDirectory() as out:
        start = time.process_time()
        cfe.explain_folder(data, Path(out)/'out', ks=4, closed_loop=False, progress=progress)
        taken = time.process_time() - start
    return dict(rate=n/taken, images=n, early=memory[1], late=memory[-1])

def page(found):
    "The results as Markdown."
    lines = ['# Explaining: what is drawn, and how fast', '',
             'Made by `python benchmarks/explaining_speed.py`: processor time of one thread, medians of '
             f"{found['rounds']} rounds in turns; {found['machine']}, torch {found['torch']}, mirrorcfe "
             f'{__version__}.', '',
             '## The search against every step', '',
             'Images whose first CFE is at the same of the hundred steps; drawings an image (every step: 100, and 149 '
             'in the closed loop); |intended - achieved| over twelve steps against that over all hundred; L1 of the '
             'reflection.', '',
             '| data | loop | images | same step | within two | drawings | confidence error | every step | '
             'L1 at k = 1 | every step |', '|---|---|---|---|---|---|---|---|---|---|']
    total = [0, 0, 0]
    for r in found['compared']:
        lines.append(f"| {r['data']} | {r['loop']} | {r['images']} | {r['same']} | {r['near']} | {r['drawings']:.1f} | "
                     f"{r['error'][0]:.4f} | {r['error'][1]:.4f} | {r['l1'][0]:.4f} | {r['l1'][1]:.4f} |")
        total = [a + b for a, b in zip(total, (r['images'], r['same'], r['near']))]
    n, same, near = total
    lines += ['', f'Together **{100*same/n:.2f} %** of {n:,} at the same step (mark: 99.5), {100*near/n:.2f} % within '
              'two.', '', '## Time', '', f"The C3LT-shaped pass has {found['parameters']/1e6:.1f} M parameters.", '',
              '| way | ms an image | ratio | mark |', '|---|---|---|---|']
    ms = found['ms']
    for name, v in ms.items():
        base = ms['C3LT-shaped pass, 256 at once' if '256' in name else 'C3LT-shaped pass']
        mark = MARKS.get(name)
        said = '' if mark is None else f"{mark} {'reached' if v/base <= mark else 'MISSED'}"
        lines.append(f'| {name} | {v:.2f} | {v/base:.2f} | {said} |')
    f = found['folder']
    said = 'reached' if f['rate'] >= 200 else 'MISSED'
    lines += ['', f"`explain_folder`, tables only, 4 steps, open loop, {f['images']:,} images: **{f['rate']:.0f} "
              f"images a second** (mark 200: {said}); peak of memory {f['early']:.0f} MB after two chunks, "
              f"{f['late']:.0f} MB at the end."]
    return '\n'.join(lines) + '\n'

def time_parts(cfe, x, rounds):
    "Milliseconds an image of every part of explaining: with the trained networks, and with those that only draw."
    source = cfe.classifier(x).argmax(1)
    target = cfe.targets(cfe.classifier(x))
    k = torch.full((len(x),), .6)
    both = {}
    ways = {}
    with torch.no_grad():
        for name, model in (('before', cfe.model), ('after', cfe._quick_model())):
            e = model.encode(x, full=True)
            _, f_k, mask = model.moved(e, source, target, k)
            _, _, code, *maps = e.maps
            paint = model.G.change if model.is_prepared(e) else model.G
            ways |= {(name, 'encode, once an image'): (lambda v, m=model: m.encode(v, full=True), x),
                     (name, 'mirror and mask'): (lambda v, m=model, e=e: m.moved(e, source, target, k), x),
                     (name, 'painter'): (lambda v, a=(maps, code, f_k, mask), paint=paint: paint(*a), x),
                     (name, 'decoder'): (lambda v, m=model, c=code: m.autoencoder.decode(c), x),
                     (name, 'classifier'): (lambda v, m=model: m.F(v), x)}
        for (name, part), ms in in_turns(ways, rounds).items(): both.setdefault(name, {})[part] = ms
    return both

def main_parts(rounds):
    torch.set_num_threads(1)
    cfe, task = explainer(*CASES[0])
    x = task.sources().x[:64]
    after, _ = count_drawings(cfe, x[:16])
    found = dict(parts=time_parts(cfe, x, rounds), drawings=dict(before=149, after=after))
    (RESULTS/'explaining_parts.json').write_text(json.dumps(found, indent=1) + '\n')
    print(json.dumps(found, indent=1))

def compare_all(images):
    "The search against every step, on all data."
    compared = []
    for data, pair in CASES:
        cfe, task = explainer(data, pair)
        x = task.sources().x[:images]
        for closed_loop in (True, False):
            row = compare(cfe, x, closed_loop)
            name = f'{data} {pair[0]}-{pair[1]}' if pair else data
            compared.append(dict(data=name, loop='closed' if closed_loop else 'open') | row)
            print(compared[-1], flush=True)
    return compared

def main(images, rounds, only_times=False):
    torch.set_num_threads(1)
    kept = RESULTS/'explaining_speed.json'
    compared = json.loads(kept.read_text())['compared'] if only_times else compare_all(images)
    cfe, task = explainer(*CASES[0])
    x = task.sources().x[:256]
    ms, parameters = time_explaining(cfe, x, rounds)
    machine = f'{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, load {os.getloadavg()[0]:.1f} on ' \
              f'{os.cpu_count()} cores'
    found = dict(compared=compared, ms=ms, parameters=parameters, folder=time_folder(cfe, x), rounds=rounds,
                 machine=machine, torch=torch.__version__)
    kept.write_text(json.dumps(found, indent=1) + '\n')
    text = page(found)
    (RESULTS/'explaining_speed.md').write_text(text)
    print(text)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=100)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--times', action='store_true', help='time anew, and keep the stored comparisons')
    parser.add_argument('--parts', action='store_true', help='only the parts of a drawing')
    args = parser.parse_args()
    main_parts(args.rounds) if args.parts else main(args.images, args.rounds, args.times)
