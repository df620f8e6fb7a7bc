"""Train the classifier and the oracle of each dataset, and write what they reach to benchmarks/results/classifiers.md.

    python benchmarks/classifiers.py [digits mnist fashion_mnist]

Without an argument all datasets are trained, ten minutes on two cores; with one, earlier results of the others are kept
in classifiers.json. Trained networks go to the cache, where `get_classifier` and `get_oracle` find them. Seconds mean
something only on a quiet machine.
"""
import json, os, platform, sys, time
from datetime import date
from pathlib import Path
import fastai
import torch
import torchvision
from torch.nn import functional as F
from mirrorcfe.classifiers import (CODE_VERSION, RECIPES, accuracy, class_table, classifier_learner, get_classifier,
                                   get_oracle, predict, small_resnet)
from mirrorcfe.data import DATASETS, available, data_fingerprint, fast_bf16, get_dls

OUT = Path(__file__).parent/'results'/'classifiers.md'
ROLES = (('classifier', get_classifier, 0), ('oracle', get_oracle, 1))   # with its seed
HEAD = ['data', 'network', 'parameters', 'seed', 'epochs', 'valid', 'test', 'confidence', 'test loss', 'seconds',
        'processor seconds', 'load before']

def table(head, rows):
    "A table in Markdown."
    lines = [head, ['---']*len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)

def bullets(items): return '\n'.join(f'- {i}' for i in items)

def train_role(name, role, get, seed, dls, device):
    "Train one network of a dataset; returns its row of the table and the network."
    load = os.getloadavg()[0]
    start = time.perf_counter()
    start_cpu = time.process_time()
    net = get(name, device=device, force=True)
    seconds = time.perf_counter() - start
    processor = time.process_time() - start_cpu
    logits, y = predict(net, dls.test)
    row = [name, role, sum(p.numel() for p in net.parameters()), seed, RECIPES[name]['epochs'],
           f'{net.history.accuracy.iloc[-1]:.4f}', f'{accuracy(net, dls.test):.4f}',
           f'{logits.softmax(1).amax(1).mean():.3f}', f'{F.cross_entropy(logits, y):.4f}',
           f'{seconds:.1f}', f'{processor:.1f}', f'{load:.1f}']
    print(*row, flush=True)
    return row, net

def hardest(name, classifier, dls):
    "The three classes that a classifier finds hardest, and what it takes them for."
    worst = class_table(classifier, dls.test).sort_values('accuracy').head(3)
    said = [f"{r['class']} {r.accuracy:.3f}, taken for {r['taken for']}" for _, r in worst.iterrows() if r.accuracy < 1]
    return f'{name} ({data_fingerprint(dls)}): ' + '; '.join(said)

def train(name, device):
    "One row for the classifier, one for the oracle; and the classes the classifier finds hardest."
    dls = get_dls(name, device=device)
    made = {role: train_role(name, role, get, seed, dls, device) for role, get, seed in ROLES}
    return [row for row, _ in made.values()], hardest(name, made['classifier'][1], dls)

def step_time(x, y, dls, steps, **options):
    "Median processor time of a training step, in milliseconds."
    learn = classifier_learner(small_resnet(), dls, **options)
    opt = torch.optim.AdamW(learn.model.parameters())
    times = []
    for _ in range(steps):
        start = time.process_time()
        F.cross_entropy(learn.model(x), y).backward()
        opt.step()
        opt.zero_grad()
        times.append(time.process_time() - start)
    return sorted(times)[steps//2]*1000

def step_times(bs=128, steps=25):
    "Median processor time of a training step on one thread, for each option."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dls = get_dls('digits', bs=bs, device='cpu')
    x, y = dls.one_batch()
    rows = []
    for bf16 in (False, True):
        for last in (False, True):
            ms = step_time(x, y, dls, steps, bf16=bf16, channels_last=last)
            rows.append(['bfloat16' if bf16 else 'float32', 'yes' if last else 'no', f'{ms:.0f}'])
    torch.set_num_threads(threads)
    return rows

def page(done):
    "The results as Markdown."
    sets = [done[name] for name in DATASETS if name in done]
    rows = []
    for one in sets: rows += one['rows']
    return '\n\n'.join([
        '# Classifiers and oracles', 'Made by `python benchmarks/classifiers.py`:', bullets(s['where'] for s in sets),
        'Marks: digits .975, MNIST .992, Fashion-MNIST .90 on the test images. Seconds include reading the data. '
        'Where processor seconds are not about twice the seconds, or `load before` is far above 1, other work ran '
        'beside it: those seconds say little.',
        table(HEAD, rows),
        "The hardest classes of each classifier, with the data's fingerprint:", bullets(s['hard'] for s in sets),
        'Processor milliseconds of one training step of the classifier '
        '(128 images of 32x32, one thread, median of 25):',
        table(['precision', 'channels-last', 'ms'], done['steps'])]) + '\n'

def where(device):
    "Machine and versions, in words."
    if device == 'cuda': what = torch.cuda.get_device_name()
    else:
        known = getattr(torch.cpu, 'get_capabilities', dict)()
        what = f"{known.get('cpu_name', platform.machine())}, {torch.get_num_threads()} threads"
    return (f"{device} ({what}), torch {torch.__version__}, torchvision {torchvision.__version__}, "
            f"fastai {fastai.__version__}, code version {CODE_VERSION}, "
            f"bfloat16 {'on' if fast_bf16(device) else 'off'}, channels-last on")

def main(names):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    kept = OUT.with_suffix('.json')
    done = json.loads(kept.read_text()) if kept.exists() else {}
    done['steps'] = step_times()
    for name in names:
        if not available(name):
            print(f'{name}: its files are not here, left out')
            continue
        rows, hard = train(name, device)
        done[name] = dict(rows=rows, hard=hard, where=f'{name}: {date.today()}, {where(device)}')
        OUT.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(done, indent=1) + '\n')
        OUT.write_text(page(done))
    print(f'written to {OUT}')

if __name__ == '__main__': main(sys.argv[1:] or list(DATASETS))
