"""Draw what nobody picked: for every data set the best, the median and the worst three results by the panel of judges.

    make look                                  (python benchmarks/look.py)
    python benchmarks/look.py digits "MNIST 4" those whose title begins with one of these words
    python benchmarks/look.py --n 100          fewer images

Each column of a sheet is one test image: the source, the first counterfactual, the reflection at k = 1, and what was
changed. The results are ranked by the share of the judges' votes for the target at k = 1, and by the confidence of the
oracle, which is not on the panel, where the votes are equal. The metrics of artefacts are stored beside the sheet, each
next to that of differences between real images. Of faces only the numbers are kept.
Explainers and panels come from the cache, or are trained first, which takes minutes a data set. Data that are not on
this machine are named and left out. A killed run goes on: what was drawn of the same networks is not drawn again.
"""
import argparse, json
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch
import mirrorcfe.show
from mirrorcfe.benchmark import Task
from mirrorcfe.core import MirrorError
from mirrorcfe.metrics import high_frequency_share, lattice_score, nearest_pairs, variety
from mirrorcfe.runs import DEMO, DEMO_SIZE, md_table
from mirrorcfe.storage import json_hash, tensors_hash
from pictures import save_small
from reproduce import COLOUR, GREY, blood, mirror, slug

RESULTS = Path(__file__).parent/'results'
SHEET = Path(__file__).parent.parent/'nbs'/'images'
KEYS = ('high-frequency share', 'lattice', 'variety')
TASKS = [Task('digits', size=DEMO_SIZE), *GREY, *COLOUR]

def explain(model, src, bs=50):
    "Explain sources in batches; return first counterfactuals and reflections."
    ends = []
    for i in torch.arange(len(src.x)).split(bs):
        ex = model.explain(src.x[i], src.target[i], on_same='mark')
        ends.append((ex.x_cf, ex.x_reflection))
    return [torch.cat(e) for e in zip(*ends)]

def artefacts(task, src, drawn):
    "The numbers for artefacts, of what was drawn and of real images: two dicts."
    x, y = task.dls.train.dataset[:6000]
    ours = {'high-frequency share': [], 'lattice': [], 'variety': []}
    real = {k: [] for k in ours}
    for target in src.target.unique():
        of_target = x[y == target]
        i = src.target == target
        if i.sum() < 2: continue
        for got, images, change in ((ours, drawn[i], drawn[i] - src.x[i]),
                                    (real, of_target[:i.sum()], nearest_pairs(src.x[i], of_target))):
            got['high-frequency share'].append(high_frequency_share(change).item())
            got['lattice'].append(lattice_score(change))
            got['variety'].append(variety(of_target[:500], images))
    def means(got): return {k: sum(v)/len(v) for k, v in got.items()}
    return [means(ours), means(real)]

def choose(share, confidence, each=3):
    "Positions of the best, the median and the worst results."
    order = sorted(range(len(share)), key=lambda i: (-share[i].item(), -confidence[i].item()))
    middle = (len(order) - each)//2
    return order[:each] + order[middle:middle + each] + order[-each:]

def draw(task, src, ends, share, rows, file):
    "Draw the chosen results, one a column, and keep the sheet."
    first, last = ends
    change = last - src.x
    fig, axs = plt.subplots(4, len(rows), figsize=(.95*len(rows) + .6, 4.6), layout='constrained')
    names = task.classifier.classes
    for column, j in enumerate(rows):
        kind = ('best', 'median', 'worst')[column//3]
        title = f'{kind}\n{names[src.source[j]]}\nto {names[src.target[j]]}'
        for ax, image, text in zip(axs[:, column], (src.x[j], first[j], last[j], change[j].mean(0)),
                                   (title, '', f'{share[j]:.0%} believe', '')):
            signed = image.dim() == 2
            if image.isnan().any(): ax.text(.5, .5, 'none', ha='center', va='center', transform=ax.transAxes, size=8)
            elif signed: ax.imshow(image, cmap='RdBu_r', vmin=-1, vmax=1)
            else: ax.imshow(((image + 1)/2).clamp(0, 1).permute(1, 2, 0), cmap='gray', vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.set_title(text, fontsize=7)
    for ax, text in zip(axs[:, 0], ('source', 'first CFE', 'k = 1', 'change')): ax.set_ylabel(text, fontsize=8)
    fig.suptitle(f'{task.title}: ranked by the panel, {len(src.x)} test images', fontsize=9)
    save_small(fig, file, dpi=80)
    plt.close(fig)

def sheet_of(task):
    "Where the sheet of a task is kept; `None`: no face is kept."
    return None if task.data.startswith('celeba') else SHEET/f'look-{slug(task.title)}.png'

def made_of(task, model):
    "A hash of what decides a sheet: the explainer, the networks that judge it and the images."
    judges = {judge.name: judge.accuracy for judge in task.panel.judges}
    return json_hash(dict(explainer=tensors_hash(model.model.G), classifier=task.classifier.weights_hash(),
                          oracle=task.oracle.weights_hash(), judges=judges, n=task.n))

def look(task, model):
    "Explain, rank, draw; return the row of the table."
    src = task.sources()
    sheet = sheet_of(task)
    ends = explain(model, src)
    share = task.panel.believed(ends[1], src.target).share.nan_to_num(0)
    with torch.no_grad(): p = task.oracle(ends[1].nan_to_num(0)).softmax(1)
    rows = choose(share, p.gather(1, src.target[:, None])[:, 0])
    if sheet: draw(task, src, ends, share, rows, sheet)
    ours, real = artefacts(task, src, ends[1])
    at_first = task.panel.believed(ends[0], src.target).share.nanmean().item()
    x, y = task.test[torch.isin(task.test.y, src.target).nonzero().flatten()[:1000]]
    row = dict(task=task.title, sheet=sheet.name if sheet else '–', images=len(src.x), believed_first=at_first,
               believed=share.mean().item(), believed_real=task.panel.believed(x, y).share.mean().item(),
               half_of_the_votes=(share > .5).float().mean().item())
    for k in KEYS: row |= {k: ours[k], f'{k} of real': real[k]}
    return row

def is_here(task):
    "Whether the data of a task can be read on this machine; says what is missing."
    try: return len(task.sources().x) > 0
    except MirrorError as e:
        print(f'{task.title}: left out: {e}', flush=True)
        return False

def explainer(task):
    "The explainer of a task by the default recipe, of the digits that of the demo."
    if task.pair is None: return mirror(task, pair=False, **DEMO)
    return mirror(task)

def write_table(kept):
    "Write the rows as Markdown, in the order of the tasks."
    rows = [kept[task.title] for task in TASKS if task.title in kept]
    columns = [c for c in rows[0] if c != 'made']
    def shown(v): return f'{v:.3f}' if isinstance(v, float) else v
    def entries(row): return [shown(row[c]) for c in columns]
    table = md_table(map(entries, rows), columns)
    (RESULTS/'look.md').write_text(f'# Ranked by the panel, not picked\n\n{table}\n')

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('words', nargs='*', help='how titles begin; none: all data sets')
    parser.add_argument('--n', type=int, default=200, help='test images of each task')
    args = parser.parse_args(argv)
    file = RESULTS/'look.json'
    kept = json.loads(file.read_text()) if file.exists() else {}
    if not blood(64): print('folder:blood_cells_128: left out: no such folder in $MIRRORCFE_DATA', flush=True)
    for task in TASKS:
        if args.words and not task.title.lower().startswith(tuple(w.lower() for w in args.words)): continue
        task = Task(task.data, task.pair, task.size, args.n)
        if not is_here(task): continue
        model = explainer(task)
        made = made_of(task, model)
        drawn = sheet_of(task) is None or sheet_of(task).exists()
        if drawn and kept.get(task.title, {}).get('made') == made: continue
        kept[task.title] = row = look(task, model) | dict(made=made)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        file.write_text(json.dumps(kept, indent=1) + '\n')
    if kept: write_table(kept)

if __name__ == '__main__': main()
