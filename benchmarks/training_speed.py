"""Time one training step with bf16, fp16, channels_last and torch.compile on and off, in turns within one run.

    python benchmarks/training_speed.py [--threads 1] [--rounds 5] [--no-compile] [--limit]

Five minutes on two cores, most of them the compiler's; no data needed. The numbers are printed and kept in
results/training_speed.md. How far the default recipe is from its own convolutions, which are timed alone in the same
run, and 64 pixels from 32, is measured by `--limit` and kept in results/training_limit.md and training_limit.json.
"""
import argparse, json, platform, statistics, time, types
from collections import Counter, namedtuple
from itertools import product
from pathlib import Path
import torch
from mirrorcfe import __version__
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.data import fast_bf16, get_dls
from mirrorcfe.training import mirror_learner
from torch.utils._python_dispatch import TorchDispatchMode

RESULTS = Path(__file__).parent/'results'
Case = namedtuple('Case', 'precision channels_last compiled')
PLAIN = Case('single', False, False)
CASES = [PLAIN, Case('single', True, False), Case('bf16', False, False), Case('bf16', True, False),
         Case('fp16', True, False), Case('bf16', True, True)]

def learner(device, steps, case, size=32):
    "A learner of one case; fp16 without scaling of the loss, so a little faster than one that could be trusted."
    dls = get_dls('digits', steps=steps, size=size, device=device)
    short = dict(autoencoder_steps=2, student_steps=2)   # the time of a step does not depend on what they have learnt
    learn = mirror_learner(small_resnet(size=size), dls, seed=0, amp=case.precision != 'single',
                           channels_last=case.channels_last, **short)
    def half(self, on=True): return torch.autocast(device, torch.float16, enabled=on)
    mirror = learn.model.quick
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

CONVOLUTIONS = {torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default}
Shape = namedtuple('Shape', 'size stride dtype device')

class Convolutions(TorchDispatchMode):
    "Counts the convolutions that are computed, forward and backward, by their shapes."
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in CONVOLUTIONS:
            def shape(v):
                if isinstance(v, torch.Tensor): return Shape(tuple(v.shape), v.stride(), v.dtype, v.device)
                return tuple(v) if isinstance(v, list) else v
            self.calls[func, tuple(map(shape, args))] += 1
        return func(*args, **(kwargs or {}))

def alone(calls, clock):
    "Seconds of the counted convolutions, each timed on random tensors with nothing between: the median of three."
    total = 0.
    for (func, shapes), count in calls.items():
        def tensor(v):
            if not isinstance(v, Shape): return list(v) if isinstance(v, tuple) else v
            held = 1 + sum((n - 1)*step for n, step in zip(v.size, v.stride))   # few where it is expanded
            return torch.randn(held, dtype=v.dtype, device=v.device).as_strided(v.size, v.stride)
        args = [tensor(v) for v in shapes]
        times = []
        for _ in range(4):   # the first warms up
            start = clock()
            func(*args)
            if args[0].is_cuda: torch.cuda.synchronize()
            times.append(clock() - start)
        total += count*statistics.median(times[1:])
    return total

def limit(device, rounds, steps=4):
    "Milliseconds a step of the default recipe at 32 and 64 pixels, and those of its convolutions alone, in turns."
    clock = time.process_time if device == 'cpu' else time.perf_counter
    case = Case('bf16' if fast_bf16(device) else 'single', True, False)
    learners = {size: learner(device, steps, case, size) for size in (32, 64)}
    calls = {}
    times = {key: [] for key in product(learners, ('step', 'convolutions'))}
    for r in range(rounds + 1):
        for size, learn in learners.items():
            if not r:   # the first round warms up, and counts
                with Convolutions() as seen: time_round(learn, device, steps)
                calls[size] = seen.calls
                continue
            times[size, 'step'].append(1000*time_round(learn, device, steps))
            times[size, 'convolutions'].append(1000*alone(calls[size], clock)/steps)
    found = {size: {} for size in learners}
    for (size, what), values in times.items(): found[size][what] = statistics.median(values)
    return found

def limit_page(device, found):
    "The results of `limit` as Markdown."
    over = found[32]['step']/found[32]['convolutions']
    larger = found[64]['step']/found[32]['step']
    def said(v, mark): return f"mark {mark}: {'reached' if v <= mark else 'MISSED'}"
    return '\n'.join([
        '# A training step and its limit', '',
        'Made by `python benchmarks/training_speed.py --limit`: batch 64, default recipe, validation included; every '
        'convolution of these steps, forward and backward, timed alone on tensors of the same shapes and formats in '
        "the same run; medians of rounds in turns, a processor's own time.", '',
        f'{device} ({platform.machine()}, {torch.get_num_threads()} threads), torch {torch.__version__}, mirrorcfe '
        f'{__version__}.', '', '| pixels | ms a step | its convolutions alone | over them |', '|---|---|---|---|',
        *[f"| {size} | {v['step']:.0f} | {v['convolutions']:.0f} | {v['step']/v['convolutions']:.2f} |"
          for size, v in found.items()], '',
        f'At 32 pixels a step takes **{over:.2f}** times its convolutions ({said(over, 1.6)}); at 64 pixels '
        f'**{larger:.2f}** times a step at 32 ({said(larger, 4)}).']) + '\n'

def main_limit(rounds):
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    found = limit(device, rounds)
    (RESULTS/'training_limit.json').write_text(json.dumps(found, indent=1) + '\n')
    text = limit_page(device, found)
    (RESULTS/'training_limit.md').write_text(text)
    print(text)

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
    parser.add_argument('--limit', action='store_true', help='only the default recipe against its convolutions')
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    if args.limit: main_limit(args.rounds)
    else: main(args.rounds, compile=not args.no_compile)
