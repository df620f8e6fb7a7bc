"""Time and memory of the closed form and of drawing against batch, classes and image size; print it and keep it in results/scale.md and results/scale.png.

python benchmarks/scale.py [--threads 1]        (two minutes, no data needed; every case in a process of its own)
"""
import argparse, json, platform, resource, subprocess, sys, time
from pathlib import Path
import torch
from mirrorcfe import __version__
from pictures import save_small

RESULTS = Path(__file__).parent/'results'
HEADS = [(c, 2048, 64) for c in (10, 100, 1000)] + [(1000, 2048, b) for b in (1, 16, 256)]       # classes, features, batch
DRAWN = [(10, 32, b) for b in (1, 16, 64, 256)] + [(c, 32, 64) for c in (100, 1000)] + [(10, s, 64) for s in (64, 128)]   # classes, pixels, batch

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024   # MiB on Linux

def median(f, n=5):
    "Seconds of `f()`: the median of `n` runs behind one that warms up, in the processor's time of this process."
    f()
    times = []
    for _ in range(n):
        start = time.process_time(); f(); times.append(time.process_time() - start)
    return sorted(times)[n//2]

def head(c, n, b):
    "Build the solver of a random head and solve one batch."
    from mirrorcfe.multiclass import ClosedFormSolver
    W, z, s, t = torch.randn(c, n)/n**.5, torch.rand(b, n), torch.arange(b) % (c//2), torch.arange(b) % (c//2) + c//2
    before, start = peak(), time.process_time()
    solve = ClosedFormSolver(W, torch.zeros(c))
    built = time.process_time() - start
    seconds = median(lambda: solve(z, s, t, 1.))
    return dict(build=built, solve=seconds, memory=peak() - before, table=solve.P.numel()*4/2**20, rank=solve.rank, residual=solve.residual(z, s, t).max().item())

def draw(c, size, b):
    "Draw one batch by the generator of a small classifier, without and with gradient."
    from mirrorcfe.classifiers import small_resnet
    from mirrorcfe.training import MirrorModel, get_recipe
    clf = small_resnet(c, 1, size=size).freeze()
    x = torch.rand(b, 1, size, size)*2 - 1
    with torch.no_grad(): shapes = [(f.shape[1], f.shape[2]) for f in clf.features(x[:1])]
    m = MirrorModel(clf, shapes, 1, size, get_recipe()).eval()
    e = m.encode(x)
    s, t, k = torch.arange(b) % (c//2), torch.arange(b) % (c//2) + c//2, torch.linspace(0, 1, b)
    def picture():
        with torch.no_grad(): m.draw(e, s, t, k)
    before = peak()
    seconds = median(picture)
    drawn = peak() - before
    m.train()
    def step(): m.draw(e, s, t, k)[0].square().mean().backward()
    return dict(draw=seconds, memory=drawn, step=median(step, 3), memory_step=peak() - before)

def case(kind, *args):
    "Run one case in a process of its own, so that its peak of memory is its own."
    run = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--threads', str(torch.get_num_threads()), '--case', kind, *map(str, args)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])

def plot(drawn):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    fig, axs = plt.subplots(2, 3, figsize=(9, 5), layout='constrained', sharey='row', sharex='col')
    columns = [('images in a batch', 2, {0: 10, 1: 32}), ('classes', 0, {1: 32, 2: 64}), ('pixels along a side', 1, {0: 10, 2: 64})]
    for (name, i, fixed), ax in zip(columns, axs.T):
        rows = sorted(((a[i], r) for a, r in drawn if all(a[j] == v for j, v in fixed.items())), key=lambda p: p[0])
        at = [v for v, _ in rows]
        for key, label, mark in (('', 'draw', 'o-'), ('_step', 'draw, and gradient', 's--')):
            ax[0].plot(at, [r[key[1:] or 'draw']*1000 for _, r in rows], mark, label=label)
            ax[1].plot(at, [r['memory' + key] for _, r in rows], mark)
        for a in ax: a.set(xscale='log', yscale='log')
        ax[1].set_xlabel(name)
        ax[1].set_xticks(at, [str(v) for v in at])
        ax[1].minorticks_off()
    for a, y in zip(axs[:, 0], ('milliseconds', 'MiB above the start')): a.set_ylabel(y)
    axs[0, 1].legend(loc='upper right')
    fig.suptitle('The generator: batch 64, 10 classes, 32 px unless the axis says otherwise')
    save_small(fig, RESULTS/'scale.png', dpi=80)

def main():
    heads, drawn = ([(a, case(kind, *a)) for a in cases] for kind, cases in (('head', HEADS), ('draw', DRAWN)))
    page = ["# Time and memory against batch, classes and image size", "", "Made by `python benchmarks/scale.py`: medians, the processor's time of the process, each case in a process of its own; "
            "memory is the peak above what the process held before. Single precision.", "",
            f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads), torch {torch.__version__}, mirrorcfe {__version__}.", "",
            "## The closed form", "", "The solver keeps one row of the pseudo-inverse a class; the direction of a pair is a difference of two rows. A table of all pairs would need as many times the memory as there are classes.", "",
            "| classes | features | batch | build, s | solve, ms | kept, MiB | all pairs, MiB | peak, MiB | rank | largest residual, logits |", "|---|---|---|---|---|---|---|---|---|---|"]
    page += [f"| {c} | {n} | {b} | {r['build']:.2f} | {r['solve']*1000:.2f} | {r['table']:.1f} | {r['table']*c:,.0f} | {r['memory']:.0f} | {r['rank']} | {r['residual']:.1e} |" for (c, n, b), r in heads]
    page += ["", "## The generator", "", "Solve, mask and draw one batch for the three-stage network of `small_resnet`; the last two columns with the gradient of a loss.", "", "![Time and memory](scale.png)", "",
             "| classes | pixels | batch | draw, ms | images a second | peak, MiB | with gradient, ms | peak, MiB |", "|---|---|---|---|---|---|---|---|"]
    page += [f"| {c} | {s} | {b} | {r['draw']*1000:.1f} | {b/r['draw']:,.0f} | {r['memory']:.0f} | {r['step']*1000:.0f} | {r['memory_step']:.0f} |" for (c, s, b), r in drawn]
    RESULTS.mkdir(exist_ok=True)
    plot(drawn)
    (RESULTS/'scale.md').write_text('\n'.join(page) + '\n')
    print('\n'.join(page))

if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--threads', type=int)
    p.add_argument('--case', nargs='+')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    if a.case: print(json.dumps(dict(head=head, draw=draw)[a.case[0]](*map(int, a.case[1:]))))
    else: main()
