"""Time and memory of the closed form and of drawing against batch, classes and image size.

    python benchmarks/scale.py [--threads 1]

Two minutes, no data needed; every case runs in a process of its own, so that its peak of memory is its own. The numbers
are printed and kept in results/scale.md and results/scale.png.
"""
import argparse, json, platform, resource, subprocess, sys, time
from pathlib import Path
import torch
from mirrorcfe import __version__
from mirrorcfe.multiclass import ClosedFormSolver

RESULTS = Path(__file__).parent/'results'
# classes, features, batch
HEADS = [(classes, 2048, 64) for classes in (10, 100, 1000)] + [(1000, 2048, batch) for batch in (1, 16, 256)]
# classes, pixels, batch
DRAWN = [(10, 32, batch) for batch in (1, 16, 64, 256)] + [(100, 32, 64), (1000, 32, 64), (10, 64, 64), (10, 128, 64)]

def peak():
    "The highest memory so far, in MiB (on Linux)."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def median(f, n=5):
    "Seconds of `f()`: the median of `n` runs behind one that warms up, in the processor's time of this process."
    f()
    times = []
    for _ in range(n):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return sorted(times)[n//2]

def pairs(classes, batch):
    "Sources in the lower half of the classes, targets in the upper half."
    source = torch.arange(batch) % (classes//2)
    return source, source + classes//2

def head(classes, features, batch):
    "Build the solver of a random head and solve one batch."
    W = torch.randn(classes, features)/features**.5
    z = torch.rand(batch, features)
    source, target = pairs(classes, batch)
    before = peak()
    start = time.process_time()
    solve = ClosedFormSolver(W, torch.zeros(classes))
    built = time.process_time() - start
    seconds = median(lambda: solve(z, source, target, 1.))
    return dict(build=built, solve=seconds, memory=peak() - before, table=solve.P.numel()*4/2**20, rank=solve.rank,
                residual=solve.residual(z, source, target).max().item())

def draw(classes, size, batch):
    "Draw one batch by the generator of a small classifier, without and with gradient."
    from mirrorcfe.classifiers import small_resnet   # imported here: what a case does not need must not raise its peak
    from mirrorcfe.training import MirrorModel, get_recipe
    classifier = small_resnet(classes, 1, size=size).freeze()
    x = torch.rand(batch, 1, size, size)*2 - 1
    with torch.no_grad(): shapes = [(f.shape[1], f.shape[2]) for f in classifier.features(x[:1])]
    model = MirrorModel(classifier, shapes, 1, size, get_recipe('paper')).eval()
    encoded = model.encode(x)
    source, target = pairs(classes, batch)
    k = torch.linspace(0, 1, batch)
    def picture():
        with torch.no_grad(): model.draw(encoded, source, target, k)
    before = peak()
    seconds = median(picture)
    drawn = peak() - before
    model.train()
    def step(): model.draw(encoded, source, target, k)[0].square().mean().backward()
    return dict(draw=seconds, memory=drawn, step=median(step, 3), memory_step=peak() - before)

def run_case(kind, *args):
    "Run one case in a process of its own."
    command = [sys.executable, '-W', 'ignore', __file__, '--threads', str(torch.get_num_threads()), '--case', kind]
    done = subprocess.run([*command, *map(str, args)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

def plot(drawn):
    "One column for what varies, one row for milliseconds and one for memory."
    import matplotlib   # imported here, as above
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    from pictures import save_small
    fig, axs = plt.subplots(2, 3, figsize=(9, 5), layout='constrained', sharey='row', sharex='col')
    # the name of the axis, which argument varies, and the arguments that are fixed
    columns = [('images in a batch', 2, {0: 10, 1: 32}), ('classes', 0, {1: 32, 2: 64}),
               ('pixels along a side', 1, {0: 10, 2: 64})]
    lines = [('draw', 'memory', 'draw', 'o-'), ('step', 'memory_step', 'draw, and gradient', 's--')]
    for (name, varies, fixed), (above, below) in zip(columns, axs.T):
        def is_shown(args): return all(args[j] == v for j, v in fixed.items())
        rows = [(args[varies], r) for args, r in drawn if is_shown(args)]
        rows = sorted(rows, key=lambda row: row[0])
        at = [v for v, _ in rows]
        for seconds, memory, label, mark in lines:
            above.plot(at, [r[seconds]*1000 for _, r in rows], mark, label=label)
            below.plot(at, [r[memory] for _, r in rows], mark)
        for ax in (above, below): ax.set(xscale='log', yscale='log')
        below.set_xlabel(name)
        below.set_xticks(at, [str(v) for v in at])
        below.minorticks_off()
    axs[0, 0].set_ylabel('milliseconds')
    axs[1, 0].set_ylabel('MiB above the start')
    axs[0, 1].legend(loc='upper right')
    fig.suptitle('The generator: batch 64, 10 classes, 32 px unless the axis says otherwise')
    save_small(fig, RESULTS/'scale.png', dpi=80)

def head_row(classes, features, batch, r):
    return (f"| {classes} | {features} | {batch} | {r['build']:.2f} | {r['solve']*1000:.2f} | {r['table']:.1f} | "
            f"{r['table']*classes:,.0f} | {r['memory']:.0f} | {r['rank']} | {r['residual']:.1e} |")

def drawn_row(classes, size, batch, r):
    return (f"| {classes} | {size} | {batch} | {r['draw']*1000:.1f} | {batch/r['draw']:,.0f} | {r['memory']:.0f} | "
            f"{r['step']*1000:.0f} | {r['memory_step']:.0f} |")

def page(heads, drawn):
    "The results as Markdown."
    machine = f'{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads'
    return '\n'.join([
        '# Time and memory against batch, classes and image size', '',
        "Made by `python benchmarks/scale.py`: medians, the processor's time of the process, each case in a process of "
        'its own; memory is the peak above what the process held before. Single precision.', '',
        f'cpu ({machine}), torch {torch.__version__}, mirrorcfe {__version__}.', '',
        '## The closed form', '',
        'The solver keeps one row of the pseudo-inverse a class; the direction of a pair is a difference of two rows. '
        'A table of all pairs would need as many times the memory as there are classes.', '',
        '| classes | features | batch | build, s | solve, ms | kept, MiB | all pairs, MiB | peak, MiB | rank | '
        'largest residual, logits |', '|---|---|---|---|---|---|---|---|---|---|',
        *[head_row(*args, r) for args, r in heads], '',
        '## The generator', '',
        'Solve, mask and draw one batch for the three-stage network of `small_resnet`; the last two columns with the '
        'gradient of a loss.', '', '![Time and memory](scale.png)', '',
        '| classes | pixels | batch | draw, ms | images a second | peak, MiB | with gradient, ms | peak, MiB |',
        '|---|---|---|---|---|---|---|---|', *[drawn_row(*args, r) for args, r in drawn]]) + '\n'

def main():
    heads = [(args, run_case('head', *args)) for args in HEADS]
    drawn = [(args, run_case('draw', *args)) for args in DRAWN]
    RESULTS.mkdir(exist_ok=True)
    plot(drawn)
    text = page(heads, drawn)
    (RESULTS/'scale.md').write_text(text)
    print(text)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int)
    parser.add_argument('--case', nargs='+', help='head or draw, and three numbers: what a process of its own measures')
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.case: print(json.dumps(dict(head=head, draw=draw)[args.case[0]](*map(int, args.case[1:]))))
    else: main()
