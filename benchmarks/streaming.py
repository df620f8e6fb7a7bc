"""Explain a folder of many image files as a stream, and keep rate and memory in results/streaming.md.

    python benchmarks/streaming.py [images]
    python benchmarks/streaming.py --processes [images]

Without an argument 10,000 images are explained, minutes on two cores: digits, shifted, as PNG files in a temporary
folder. `--processes` has them explained by one process and by two that share them, in turns, each on one thread; it
needs two idle cores, and is kept in results/processes.md.
"""
import os, platform, resource, statistics, sys, tempfile, time
from functools import partial
from pathlib import Path
import torch
import torch.distributed as dist
from PIL import Image
import mirrorcfe.stream   # adds MirrorCFE.explain_folder
from mirrorcfe import __version__
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE

RESULTS = Path(__file__).parent/'results'
KS = [0, .5, .75, 1]

def resident():
    "Megabytes resident now, where the system tells; otherwise the most so far."
    status = Path('/proc/self/status')
    if status.exists():
        line = next(l for l in status.read_text().splitlines() if l.startswith('VmRSS'))
        return int(line.split()[1])/1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1024 if sys.platform == 'linux' else 2**20)

def make_files(folder, n):
    "Write `n` digits, each shifted by up to two pixels, as files."
    folder.mkdir()
    x = get_dls('digits', device='cpu').train.dataset.x
    rng = torch.Generator().manual_seed(0)
    for i in range(n):
        shift = torch.randint(-2, 3, (2,), generator=rng).tolist()
        pixels = x[i % len(x), 0].roll(shift, (0, 1))
        Image.fromarray(pixels.numpy()).save(folder/f'{i:06}.png')

def page(run, again, memory):
    "The results as Markdown; `memory`: images done and megabytes, in order."
    some = [memory[round(share*(len(memory) - 1))] for share in (.05, .25, .5, .75, 1)]
    return '\n'.join([
        '# A folder of images as a stream', '',
        'Made by `python benchmarks/streaming.py`: digits as PNG files of 32 x 32, an explainer of ten classes trained '
        f'for ten steps (the rate does not depend on the training), {len(KS)} steps an image, open loop, '
        'batches of 32, chunks of 256, tables only.', '',
        f'cpu ({platform.machine()}, {torch.get_num_threads()} thread(s)), torch {torch.__version__}, '
        f'mirrorcfe {__version__}; load average at the time {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.', '',
        f'{run.images:,} images in {run.seconds:.0f} s: **{run.rate:.1f} images a second**. '
        f'Called again, with nothing left to do: {again.seconds:.1f} s.', '',
        '| images done | resident memory, MB |', '|---|---|',
        *[f'| {done:,} | {mb:.0f} |' for done, mb in some]]) + '\n'

def explainer():
    "An explainer of ten digits that was hardly trained: the rate does not depend on it."
    dls = get_dls('digits', bs=32, steps=10, device='cpu')
    return MirrorCFE(get_classifier('digits', device='cpu'), amp=False).fit(dls, epochs=1, progress=False)

# --- several processes ------------------------------------------------------------------------------------------------

def share(rank, size, tmp, trial):
    "One process of `size`: explain a share of the images, and leave the seconds it took all of them."
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{tmp}/group-{trial}', rank=rank, world_size=size)
    try:
        cfe = MirrorCFE.load(tmp/'explainer', get_classifier('digits', device='cpu'))
        cfe.explain(get_dls('digits', device='cpu').test.dataset[:32][0])   # warms up
        dist.barrier()
        start = time.perf_counter()
        cfe.explain_folder(tmp/'in', tmp/f'out-{trial}', ks=KS, closed_loop=False, progress=False)
        dist.barrier()
        if rank == 0: (tmp/f'seconds-{trial}').write_text(str(time.perf_counter() - start))
    finally: dist.destroy_process_group()

def main_processes(n=4000, rounds=3):
    "Images a second of one process and of two, in turns."
    rates = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        explainer().save(tmp/'explainer')
        make_files(tmp/'in', n)
        for r in range(rounds):
            for size in rates:
                trial = f'{size}-{r}'
                torch.multiprocessing.spawn(partial(share, size=size, tmp=tmp, trial=trial), nprocs=size)
                rates[size].append(n/float((tmp/f'seconds-{trial}').read_text()))
                print(f'{size} process(es): {rates[size][-1]:.0f} images a second', flush=True)
    one, two = (statistics.median(v) for v in rates.values())
    said = 'reached' if two >= 1.7*one else 'MISSED'
    text = '\n'.join([
        '# A folder of images, shared by two processes', '',
        f'Made by `python benchmarks/streaming.py --processes`: {n:,} files, {len(KS)} steps an image, open loop, '
        f'tables only; each process on one thread; medians of {rounds} rounds in turns, from a common start until the '
        'one table of all images is there.', '',
        f'cpu ({platform.machine()}), torch {torch.__version__}, mirrorcfe {__version__}; load average at the end '
        f'{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.', '',
        '| processes | images a second | ratio |', '|---|---|---|',
        f'| 1 | {one:.0f} | 1.00 |', f'| 2 | {two:.0f} | {two/one:.2f} |', '', f'Mark: 1.7, {said}.']) + '\n'
    (RESULTS/'processes.md').write_text(text)
    print(text)

def main(n=10_000):
    cfe = explainer()
    memory = []
    def progress(done, total):
        memory.append((done, resident()))
        if len(memory) % 5 == 1 or done == total: print(f'{done:,} of {total:,}: {memory[-1][1]:.0f} MB', flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'in'
        make_files(folder, n)
        run = cfe.explain_folder(folder, Path(tmp)/'out', ks=KS, closed_loop=False, progress=progress)
        again = cfe.explain_folder(folder, Path(tmp)/'out', ks=KS, closed_loop=False, progress=False)
    text = page(run, again, memory)
    (RESULTS/'streaming.md').write_text(text)
    print(text)

if __name__ == '__main__':
    args = sys.argv[1:]
    if '--processes' in args: main_processes(*[int(a) for a in args if a != '--processes'])
    else: main(*map(int, args))
