"""Time training and explaining at 32, 64, 128 and 224 pixels on the device there is; kept in results/gpu.md.

    python benchmarks/gpu.py [--device cuda] [--sizes 32 64 128 224] [--bs 64] [--compile 32 128] [--dry]

Random images and an untrained classifier, since time does not depend on what is learnt. On a GPU a step is timed
with bf16 autocast too; `--compile` compiles what draws by torch.compile, with and without CUDA graphs. `--dry` runs
the same on a processor with tiny networks and writes nothing: a check that it would run.
"""
import argparse, json, platform, statistics, time
from pathlib import Path
import torch
from mirrorcfe import __version__
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.data import ImageSet, TensorLoader
from mirrorcfe.explainer import MirrorCFE
from fastai.data.core import DataLoaders

RESULTS = Path(__file__).parent/'results'

def loaders(size, n, bs, steps, device):
    "Random images of ten classes."
    rng = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(256, (n, 3, size, size), generator=rng, dtype=torch.uint8), torch.arange(n) % 10)
    train = TensorLoader(images, bs, shuffle=True, steps=steps, drop_last=True, device=device)
    return DataLoaders(train, TensorLoader(images, bs, device=device), device=device)

def network(size, device, short):
    "A classifier of ten classes that has learnt nothing; `short`: a tiny one."
    torch.manual_seed(0)
    widths = (4, 6, 8) if short else (32, 64, 128)
    return small_resnet(10, 3, widths, size).to(device).freeze()

def waited(f, device):
    "Seconds of `f()`, with the device waited for."
    def wait():
        if device.type == 'cuda': torch.cuda.synchronize()
    wait()
    start = time.perf_counter()
    f()
    wait()
    return time.perf_counter() - start

def measure(size, bs, steps, rounds, device, short):
    "Milliseconds a step, images explained a second (first CFE; reflection alone in open loop), and peak memory in MB."
    classifier = network(size, device, short)
    dls = loaders(size, 4*bs, bs, steps, device)
    if device.type == 'cuda': torch.cuda.reset_peak_memory_stats()
    step = {}
    for amp in (True, None) if device.type == 'cuda' else (None,):   # the last is as usual
        cfe = fitted(classifier, dls, steps, amp)
        times = [waited(lambda: cfe.learn.fit_game(1, progress=False), device) for _ in range(rounds)]
        step['step, bf16' if amp else 'step'] = 1000*statistics.median(times)/steps
    x = torch.rand(bs, 3, size, size, device=device)*2 - 1
    target = (classifier(x).argmax(1) + 1) % 10
    ways = {'first CFE': {}, 'reflection, open loop': dict(ks=[1], closed_loop=False, quick=True)}
    rate = {}
    for name, how in ways.items():
        cfe.explain(x, target, **how)
        rate[name] = bs/statistics.median(waited(lambda: cfe.explain(x, target, **how), device) for _ in range(rounds))
    memory = torch.cuda.max_memory_allocated()/2**20 if device.type == 'cuda' else None
    return dict(size=size, memory=memory) | step | rate

def fitted(classifier, dls, steps, amp):
    "An explainer after one epoch, which warms up; the networks beside it learn next to nothing."
    networks = dict(autoencoder_steps=2, student_steps=2)   # the time of a step does not depend on them
    return MirrorCFE(classifier, amp=amp, steps=steps, **networks).fit(dls, epochs=1, progress=False)

def compiled(size, bs, rounds, device, short):
    "Milliseconds of the passes that explaining is made of, and the same after torch.compile."
    classifier = network(size, device, short)
    mirror = fitted(classifier, loaders(size, 4*bs, bs, 1, device), 1, None).model.eval()
    x = torch.rand(bs, 3, size, size, device=device)*2 - 1
    with torch.no_grad(): code = mirror.autoencoder.encode(x)
    passes = {'classifier': (mirror.F, x), 'decoder': (mirror.autoencoder.decode, code)}
    modes = dict(compiled={}) if short else dict(compiled={}, graphs=dict(mode='reduce-overhead'))
    rows = []
    for name, (f, given) in passes.items():
        row = dict(size=size, part=name)
        ways = dict(plain=f) | {mode: torch.compile(f, **how) for mode, how in modes.items()}
        for way, g in ways.items():
            with torch.no_grad():
                for _ in range(3): g(given)   # compiles and warms up
                def ten():
                    for _ in range(10): g(given)
                row[way] = 100*statistics.median(waited(ten, device) for _ in range(rounds))
        rows.append(row)
    return rows

def page(rows, device, bs):
    "The results as Markdown."
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{device.type} ({platform.machine()})'
    lines = ['# Training and explaining by size', '',
             f'Made by `python benchmarks/gpu.py`: batch {bs}, colour, ten classes, the default recipe, clock time, '
             f'medians; validation is part of a step. {name}, torch {torch.__version__}, mirrorcfe {__version__}.', '',
             '| pixels | ms a step | with bf16 autocast | first CFE, images a second '
             '| reflection in open loop, images a second | peak, MB |',
             '|---|---|---|---|---|---|']
    for r in rows:
        memory = '' if r['memory'] is None else f"{r['memory']:.0f}"
        bf16 = f"{r['step, bf16']:.1f}" if 'step, bf16' in r else ''
        lines.append(f"| {r['size']} | {r['step']:.1f} | {bf16} | {r['first CFE']:.1f} | "
                     f"{r['reflection, open loop']:.1f} | {memory} |")
    return '\n'.join(lines) + '\n'

def compiled_page(rows):
    "What torch.compile gains, as Markdown."
    lines = ['', 'One pass in full precision, milliseconds; compiled by torch.compile, and with CUDA graphs.', '',
             '| pixels | pass | plain | compiled | with CUDA graphs |', '|---|---|---|---|---|']
    for r in rows:
        graphs = f"{r['graphs']:.2f}" if 'graphs' in r else ''
        lines.append(f"| {r['size']} | {r['part']} | {r['plain']:.2f} | {r['compiled']:.2f} | {graphs} |")
    return '\n'.join(lines) + '\n'

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--sizes', type=int, nargs='+', default=[32, 64, 128, 224])
    parser.add_argument('--bs', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--compile', type=int, nargs='*', default=[], help='sizes at which torch.compile is tried')
    parser.add_argument('--out', type=Path, default=RESULTS, help='where gpu.json and gpu.md go')
    parser.add_argument('--dry', action='store_true')
    args = parser.parse_args(argv)
    device = torch.device('cpu' if args.dry else args.device)
    sizes, bs, steps = ([16], 4, 1) if args.dry else (args.sizes, args.bs, 10)
    rounds = 1 if args.dry else args.rounds
    found = dict(sizes=[], compiled=[])
    def keep():
        text = page(found['sizes'], device, bs) + (compiled_page(found['compiled']) if found['compiled'] else '')
        if args.dry: return text
        (args.out/'gpu.json').write_text(json.dumps(found, indent=1) + '\n')
        (args.out/'gpu.md').write_text(text)
        return text
    for size in sizes:
        found['sizes'].append(measure(size, bs, steps, rounds, device, args.dry))
        keep()   # what is measured stays, whatever comes after it
    for size in args.compile: found['compiled'] += compiled(size, bs, rounds, device, args.dry)
    print(keep())
    return found['sizes']

if __name__ == '__main__': main()
