"""Time one training step with bf16, fp16, channels_last and torch.compile on and off, in turns within one run.

    python benchmarks/training_speed.py [--threads 1] [--rounds 5] [--no-compile]

Five minutes on two cores, most of them the compiler's; no data needed. The numbers are printed and kept in
results/training_speed.md.
"""
import argparse, platform, statistics, time, types
from collections import namedtuple
from pathlib import Path
import torch
from mirrorcfe import __version__
from mirrorcfe.classifiers import fast_bf16, small_resnet
from mirrorcfe.data import get_dls
from mirrorcfe.training import mirror_learner

RESULTS = Path(__file__).parent/'results'
Case = namedtuple('Case', 'precision channels_last compiled')
PLAIN = Case('single', False, False)
CASES = [PLAIN, Case('single', True, False), Case('bf16', False, False), Case('bf16', True, False),
         Case('fp16', True, False), Case('bf16', True, True)]

def learner(device, steps, case):
    "A learner of one case; fp16 without scaling of the loss, so a little faster than one that could be trusted."
    dls = get_dls('digits', steps=steps, device=device)
    learn = mirror_learner(small_resnet(), dls, seed=0, amp=case.precision != 'single',
                           channels_last=case.channels_last)
    def half(self, on=True): return torch.autocast(device, torch.float16, enabled=on)
    mirror = learn.model.mirror
    if case.precision == 'fp16': mirror.autocast = types.MethodType(half, mirror)
    if case.compiled:
        mirror.G.compile()
        for network in learn.model.D.values(): network.compile()
    return learn

def time_round(learn, device, steps):
    "Seconds a step of one epoch; on a processor its own time is counted."
    clock = time.process_time if device == 'cpu' else time.perf_counter
    start = clock()
    learn.fit_game(1, progress=False)
    if device == 'cuda': torch.cuda.synchronize()
    return (clock() - start)/steps

def page(device, first, times, failed, steps):
    "The results as Markdown."
    base = statistics.median(times[PLAIN])
    rows = []
    for case in times:
        memory = 'channels_last' if case.channels_last else 'contiguous'
        name = f"| {case.precision} | {memory} | {'compiled' if case.compiled else ''} |"
        if case in failed:
            rows.append(f'{name} {failed[case]} | | |')
            continue
        seconds = statistics.median(times[case])
        rows.append(f'{name} {seconds*1000:.0f} | {base/seconds:.2f} | {first[case]*steps:.0f} |')
    machine = f'{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads'
    return '\n'.join([
        '# A training step, several ways', '',
        'Made by `python benchmarks/training_speed.py`: medians of interleaved rounds, batch 64 at 32 px, generator, '
        'discriminator and all losses, validation of four batches included; on a processor its own time is counted, '
        'not that of the clock. A ratio above 1 is faster than single precision with contiguous memory. The last '
        'column is the first round of four steps, compilation included. fp16 is timed without scaling of the loss.', '',
        f'{device} ({machine}), torch {torch.__version__}, mirrorcfe {__version__}; without `amp=` this machine trains '
        f"in {'bf16' if fast_bf16(device) else 'single precision'}.", '',
        '| precision | memory | | ms a step | ratio | first round, s |', '|---|---|---|---|---|---|', *rows]) + '\n'

def main(rounds=5, steps=4, compile=True):
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    learners = {case: learner(device, steps, case) for case in CASES if compile or not case.compiled}
    times = {case: [] for case in learners}
    first = {}
    failed = {}
    for r in range(rounds + 1):          # the first round warms up, and compiles
        for case, learn in learners.items():
            if case in failed: continue
            try: seconds = time_round(learn, device, steps)
            except Exception as e:
                failed[case] = f'{type(e).__name__}: {str(e).splitlines()[0][:100]}'
                continue
            if r: times[case].append(seconds)
            else: first[case] = seconds
    text = page(device, first, times, failed, steps)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'training_speed.md').write_text(text)
    print(text)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--no-compile', action='store_true')
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    main(args.rounds, compile=not args.no_compile)
