"""Explain a folder of many image files as a stream, and keep rate and memory in results/streaming.md.

    python benchmarks/streaming.py [images]

Without an argument 10,000 images are explained, minutes on two cores: digits, shifted, as PNG files in a temporary
folder.
"""
import os, platform, resource, sys, tempfile
from pathlib import Path
import torch
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

def main(n=10_000):
    dls = get_dls('digits', bs=32, steps=10, device='cpu')
    cfe = MirrorCFE(get_classifier('digits', device='cpu'), amp=False).fit(dls, epochs=1, progress=False)
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

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
