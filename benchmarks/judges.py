"""Train the panel of judges of each dataset, and write what each judge knows to benchmarks/results/judges.md.

    python benchmarks/judges.py [mnist fashion_mnist bloodmnist celeba_hq:Male]

A few minutes a dataset on one core; panels that are trained already come from the cache. On MNIST the panel also
judges real fours and nines, and what a PGD attack makes of 200 of them. Earlier results of other datasets are kept in
judges.json.
"""
import json, sys
from datetime import date
from pathlib import Path
import torch
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.benchmark import Task
from mirrorcfe.data import data_fingerprint, get_dls
from mirrorcfe.judges import CODE_VERSION, panel_of

OUT = Path(__file__).parent/'results'/'judges.md'
NAMES = ('mnist', 'fashion_mnist', 'bloodmnist', 'celeba_hq:Male')
DATA = {'mnist': 'MNIST', 'fashion_mnist': 'Fashion-MNIST', 'bloodmnist': 'BloodMNIST',
        'celeba_hq:Male': 'CelebA-HQ, Male'}

def table(head, rows):
    "A table in Markdown."
    lines = [head, ['---']*len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)

def share(said, y): return (said == y.view(-1, *[1]*(said.ndim - 1))).float().mean(0)

def seen(panel, x, y):
    "Share of images in which each judge sees `y`, of all votes, and of images in which most judges do."
    each = share(panel.votes(x), y.cpu())
    believed = panel.believed(x, y)
    out = {j.name: round(s, 4) for j, s in zip(panel.voters, each.tolist())}
    return out | dict(votes=round(believed.share.mean().item(), 4), majority=round(believed.majority.mean().item(), 4))

def attacked(panel):
    "Real fours and nines of MNIST, and what PGD makes of 200 of them."
    task = Task('mnist', (4, 9), n=200)
    x, y = task.test[:]
    of_pair = torch.isin(y, torch.tensor([4, 9], device=y.device))
    src = task.sources()
    ex = PGD(task.classifier, eps=64/255, steps=200).explain(src.x, src.target)
    oracle = share(task.oracle(ex.x_reflection).argmax(1), src.target).item()
    return {'real fours and nines': seen(panel, x[of_pair], y[of_pair]),
            'PGD, 64/255, 200 steps': seen(panel, ex.x_reflection, src.target) | dict(oracle=round(oracle, 4))}

def measure(name):
    "What the panel of a dataset knows."
    dls = get_dls(name, device='cpu')
    panel = panel_of(dls, progress=lambda done, total: print(f'{name}: {done} of {total} judges', flush=True))
    x, y = dls.test.dataset[:2000]
    real = panel.believed(x, y)
    row = dict(date=date.today().isoformat(), torch=torch.__version__, code=CODE_VERSION, data=data_fingerprint(dls),
               accuracy={j.name: round(j.accuracy, 4) for j in panel.judges}, voters=[j.name for j in panel.voters],
               votes=round(real.share.mean().item(), 4), majority=round(real.majority.mean().item(), 4),
               unlike=round((panel.usual.distance(x) > 1).float().mean().item(), 4))
    return row | (dict(pair=attacked(panel)) if name == 'mnist' else {})

def write(found):
    "Write judges.json and judges.md."
    OUT.with_suffix('.json').write_text(json.dumps(found, indent=1) + '\n')
    names = {}   # in the order in which they appear
    for r in found.values(): names |= r['accuracy']
    panels = ('votes', 'majority', 'unlike')
    def cell(r, n):
        if n not in r['accuracy']: return '–'
        return f"{r['accuracy'][n]:.3f}" + ('' if n in r['voters'] else ' (no vote)')
    def row(d, r): return [DATA.get(d, d), *(cell(r, n) for n in names), *(f'{r[p]:.3f}' for p in panels)]
    rows = [row(d, r) for d, r in found.items()]
    def origin(r): return f"{r['data']}): {r['date']}, torch {r['torch']}, code version {r['code']}, seed 7"
    parts = ['# Judges', 'Made by `python benchmarks/judges.py`:',
             '\n'.join(f'- {DATA.get(d, d)} ({origin(r)}' for d, r in found.items()),
             'Accuracy of each judge on all test images; then what the panel believes of 2,000 real test images, as a '
             'share of the votes and of the images with a majority; and the share of them that it calls unlike the '
             'training images.',
             table(['data', *names, *panels], rows)]
    if 'mnist' in found:
        pair = found['mnist']['pair']
        columns = [*found['mnist']['voters'], 'votes', 'majority', 'oracle']
        def share(r, c): return f'{r[c]:.3f}' if c in r else '–'
        def line(what, r): return [what, *(share(r, c) for c in columns)]
        rows = [line(what, r) for what, r in pair.items()]
        parts += ['MNIST 4-9: share of pictures in which each judge sees the class that they ought to show.',
                  table(['pictures', *columns], rows)]
    OUT.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')

if __name__ == '__main__':
    torch.set_num_threads(1)
    json_file = OUT.with_suffix('.json')
    found = json.loads(json_file.read_text()) if json_file.exists() else {}
    for name in sys.argv[1:] or NAMES:
        found[name] = measure(name)
        write(found)
        print(name, found[name], flush=True)
