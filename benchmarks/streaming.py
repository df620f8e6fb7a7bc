"""Explain a folder of many image files as a stream, and keep rate and memory in results/streaming.md.

python benchmarks/streaming.py [images]     (10,000 by default: digits, turned and shifted, as PNG files in a temporary folder)
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

KS = [0, .5, .75, 1]

def rss():
    "Megabytes resident now, where the system tells; otherwise the most so far."
    status = Path('/proc/self/status')
    if status.exists(): return int(next(l for l in status.read_text().splitlines() if l.startswith('VmRSS')).split()[1])/1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1024 if sys.platform == 'linux' else 2**20)

def make_files(folder, n):
    "Write `n` digits, each shifted by up to two pixels, as files."
    x, rng = get_dls('digits', device='cpu').train.dataset.x, torch.Generator().manual_seed(0)
    for i in range(n):
        dy, dx = torch.randint(-2, 3, (2,), generator=rng).tolist()
        Image.fromarray(x[i % len(x), 0].roll((dy, dx), (0, 1)).numpy()).save(folder/f'{i:06}.png')

def main(n=10_000):
    cfe = MirrorCFE(get_classifier('digits', device='cpu'), smooth=True, amp=False).fit(get_dls('digits', bs=32, steps=10, device='cpu'), epochs=1, progress=False)
    marks = []
    def progress(done, total):
        marks.append((done, rss()))
        if len(marks) % 5 == 1 or done == total: print(f'{done:,} of {total:,}: {marks[-1][1]:.0f} MB', flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        (folder := Path(tmp)/'in').mkdir()
        make_files(folder, n)
        run = cfe.explain_folder(folder, Path(tmp)/'out', ks=KS, closed_loop=False, progress=progress)
        again = cfe.explain_folder(folder, Path(tmp)/'out', ks=KS, closed_loop=False, progress=False)
    at = [marks[min(len(marks) - 1, round(q*(len(marks) - 1)))] for q in (.05, .25, .5, .75, 1)]
    page = '\n'.join(["# A folder of images as a stream", "", "Made by `python benchmarks/streaming.py`: digits as PNG files of 32 x 32, an explainer of ten classes trained for ten steps (the rate does not depend on the "
        f"training), {len(KS)} steps an image, open loop, batches of 32, chunks of 256, tables only.", "",
        f"cpu ({platform.machine()}, {torch.get_num_threads()} thread(s)), torch {torch.__version__}, mirrorcfe {__version__}; load average at the time {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.", "",
        f"{run.images:,} images in {run.seconds:.0f} s: **{run.rate:.1f} images a second**. Called again, with nothing left to do: {again.seconds:.1f} s.", "",
        "| images done | resident memory, MB |", "|---|---|", *[f"| {d:,} | {m:.0f} |" for d, m in at]]) + '\n'
    (Path(__file__).parent/'results'/'streaming.md').write_text(page)
    print(page)

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
