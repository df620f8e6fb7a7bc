"""Time training and explaining at 32, 64, 128 and 224 pixels on the device there is; kept in results/gpu.md.

    python benchmarks/gpu.py [--device cuda] [--sizes 32 64 128 224] [--bs 64] [--dry]

Random images and an untrained classifier, since time does not depend on what is learnt. `--dry` runs the same on a
processor with tiny networks and writes nothing: a check that it would run. On a GPU five to ten minutes.
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
    torch.manual_seed(0)
    widths = (4, 6, 8) if short else (32, 64, 128)
    classifier = small_resnet(10, 3, widths, size).to(device).freeze()
    networks = dict(autoencoder_steps=2, student_steps=2)   # the time of a step does not depend on them
    cfe = MirrorCFE(classifier, steps=steps, **networks)
    dls = loaders(size, 4*bs, bs, steps, device)
    if device.type == 'cuda': torch.cuda.reset_peak_memory_stats()
    cfe.fit(dls, epochs=1, progress=False)   # warms up
    step = statistics.median(waited(lambda: cfe.learn.fit_game(1, progress=False), device) for _ in range(rounds))
    x = torch.rand(bs, 3, size, size, device=device)*2 - 1
    target = (classifier(x).argmax(1) + 1) % 10
    ways = {'first CFE': {}, 'reflection, open loop': dict(ks=[1], closed_loop=False, quick=True)}
    rate = {}
    for name, how in ways.items():
        cfe.explain(x, target, **how)
        rate[name] = bs/statistics.median(waited(lambda: cfe.explain(x, target, **how), device) for _ in range(rounds))
    memory = torch.cuda.max_memory_allocated()/2**20 if device.type == 'cuda' else None
    return dict(size=size, step=1000*step/steps, memory=memory) | rate

def page(rows, device, bs):
    "The results as Markdown."
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{device.type} ({platform.machine()})'
    lines = ['# Training and explaining by size', '',
             f'Made by `python benchmarks/gpu.py`: batch {bs}, colour, ten classes, the default recipe, clock time, '
             f'medians; validation is part of a step. {name}, torch {torch.__version__}, mirrorcfe {__version__}.', '',
             '| pixels | ms a step | first CFE, images a second | reflection in open loop, images a second '
             '| peak, MB |',
             '|---|---|---|---|---|']
    for r in rows:
        memory = '' if r['memory'] is None else f"{r['memory']:.0f}"
        lines.append(f"| {r['size']} | {r['step']:.1f} | {r['first CFE']:.1f} | {r['reflection, open loop']:.1f} | "
                     f'{memory} |')
    return '\n'.join(lines) + '\n'

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--sizes', type=int, nargs='+', default=[32, 64, 128, 224])
    parser.add_argument('--bs', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--dry', action='store_true')
    args = parser.parse_args(argv)
    device = torch.device('cpu' if args.dry else args.device)
    sizes, bs, steps = ([16], 4, 1) if args.dry else (args.sizes, args.bs, 10)
    rows = [measure(size, bs, steps, 1 if args.dry else args.rounds, device, args.dry) for size in sizes]
    text = page(rows, device, bs)
    print(text)
    if not args.dry:
        (RESULTS/'gpu.json').write_text(json.dumps(rows, indent=1) + '\n')
        (RESULTS/'gpu.md').write_text(text)
    return rows

if __name__ == '__main__': main()
