"""Time one training step with bf16, fp16, channels_last and torch.compile on and off, in turns within one run; print it and keep it in results/training_speed.md.

python benchmarks/training_speed.py [--threads 1] [--no-compile]       (five minutes on two cores, most of them the compiler's; no data needed)
"""
import argparse, platform, statistics, time, types
from pathlib import Path
import torch
from mirrorcfe import __version__
from mirrorcfe.classifiers import fast_bf16, small_resnet
from mirrorcfe.data import get_dls
from mirrorcfe.training import mirror_learner

CASES = [('single', False, False), ('single', True, False), ('bf16', False, False), ('bf16', True, False), ('fp16', True, False), ('bf16', True, True)]

def learner(device, steps, kind, last, compiled):
    "A learner of one case; fp16 without scaling of the loss, so a little faster than one that could be trusted."
    learn = mirror_learner(small_resnet(), get_dls('digits', steps=steps, device=device), seed=0, amp=kind != 'single', channels_last=last)
    if kind == 'fp16':
        mirror = learn.model.mirror
        mirror.autocast = types.MethodType(lambda self, on=True: torch.autocast(device, torch.float16, enabled=on), mirror)
    if compiled:
        for m in (learn.model.mirror.G, learn.model.D.real): m.compile()
    return learn

def main(rounds=5, steps=4, compile=True):
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    cases = [c for c in CASES if compile or not c[2]]
    learners, times, failed, first = {c: learner(device, steps, *c) for c in cases}, {c: [] for c in cases}, {}, {}
    for r in range(rounds + 1):          # the first round warms up, and compiles
        for c, learn in learners.items():
            if c in failed: continue
            clock = time.process_time if device == 'cpu' else time.perf_counter
            start = clock()
            try: learn.fit_game(1, progress=False)
            except Exception as e:
                failed[c] = f'{type(e).__name__}: {str(e).splitlines()[0][:100]}'
                continue
            if device == 'cuda': torch.cuda.synchronize()
            if r: times[c].append((clock() - start)/steps)
            else: first[c] = clock() - start
    base = statistics.median(times['single', False, False])
    def row(c):
        name = f"| {c[0]} | {'channels_last' if c[1] else 'contiguous'} | {'compiled' if c[2] else ''} |"
        return f"{name} {failed[c]} | | |" if c in failed else f"{name} {statistics.median(times[c])*1000:.0f} | {base/statistics.median(times[c]):.2f} | {first[c]:.0f} |"
    page = '\n'.join(["# A training step, several ways", "", "Made by `python benchmarks/training_speed.py`: medians of interleaved rounds, batch 64 at 32 px, generator, discriminator and all losses, "
                      "validation of four batches included; on a processor its own time is counted, not that of the clock. A ratio above 1 is faster than single precision with contiguous memory. "
                      "The last column is the first round of four steps, compilation included. fp16 is timed without scaling of the loss.", "",
                      f"{device} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads), torch {torch.__version__}, mirrorcfe {__version__}; "
                      f"without `amp=` this machine trains in {'bf16' if fast_bf16(device) else 'single precision'}.", "",
                      "| precision | memory | | ms a step | ratio | first round, s |", "|---|---|---|---|---|---|", *map(row, cases)]) + '\n'
    results = Path(__file__).parent/'results'
    results.mkdir(exist_ok=True)
    (results/'training_speed.md').write_text(page)
    print(page)

if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--threads', type=int)
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--no-compile', action='store_true')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    main(a.rounds, compile=not a.no_compile)
