"""Time one training step with bf16 autocast and channels_last on and off, in turns within one run; print it and keep it in results/training_speed.md.

python benchmarks/training_speed.py        (two minutes on two cores, no data needed)
"""
import platform, statistics, time
from itertools import product
from pathlib import Path
import torch
from mirrorcfe import __version__
from mirrorcfe.classifiers import fast_bf16, small_resnet
from mirrorcfe.data import get_dls
from mirrorcfe.training import mirror_learner

def main(rounds=5, steps=4):
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    learners = {(amp, last): mirror_learner(small_resnet(), get_dls('digits', steps=steps, device=device), seed=0, amp=amp, channels_last=last)
                for amp, last in product((False, True), (False, True))}
    times = {k: [] for k in learners}
    for r in range(rounds + 1):          # the first round warms up
        for k, learn in learners.items():
            start = time.perf_counter()
            learn.fit_mirror(1, progress=False)
            if device == 'cuda': torch.cuda.synchronize()
            if r: times[k].append((time.perf_counter() - start)/steps)
    base = statistics.median(times[False, False])
    rows = [f"| {'bf16' if amp else 'single'} | {'channels_last' if last else 'contiguous'} | {statistics.median(t)*1000:.0f} | {base/statistics.median(t):.2f} |" for (amp, last), t in times.items()]
    page = '\n'.join(["# A training step, four ways", "", "Made by `python benchmarks/training_speed.py`: medians of interleaved rounds, batch 64 at 32 px, generator, critic and all losses, "
                      "validation of four batches included. A ratio above 1 is faster than single precision with contiguous memory.", "",
                      f"{device} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads), torch {torch.__version__}, mirrorcfe {__version__}; "
                      f"without `amp=` this machine trains in {'bf16' if fast_bf16(device) else 'single precision'}.", "",
                      "| precision | memory | ms a step | ratio |", "|---|---|---|---|", *rows]) + '\n'
    results = Path(__file__).parent/'results'
    results.mkdir(exist_ok=True)
    (results/'training_speed.md').write_text(page)
    print(page)

if __name__ == '__main__': main()
