"""Open all classifiers of torchvision and one or more of each family of timm, with random weights.

    python benchmarks/heads_sweep.py                   # all that are not in the stored table yet; an hour on one core
    python benchmarks/heads_sweep.py torchvision/vgg11 # these only
    python benchmarks/heads_sweep.py --again           # all anew

Each network has a process of its own, with a limit of time and one of memory (Linux). What was opened is compared with
the network itself on images that `wrap` did not see, alone and in a batch; a difference of more than a thousandth of
the largest logit counts as wrongly accepted. `benchmarks/results/heads.json` keeps the outcomes and heads.md shows
them.
"""
import argparse, json, multiprocessing, re, resource, time, warnings
from collections import Counter
from itertools import chain, zip_longest
from pathlib import Path
import torch
from torch import nn
import timm
from torchvision import models
from mirrorcfe.core import MirrorError
from mirrorcfe.features import Classifier

RESULTS = Path(__file__).parent/'results'
LIMIT = 300   # seconds of the processor for one network
MEMORY = 14*2**30   # bytes of addresses for one network
SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384)   # pixels; the first that the network takes
SMALL = ('test_', 'atto', 'femto', 'pico', 'nano', 'xxs', 'xx_small', 'xtiny', 'xxtiny', '_t0', '_s0', '_b0', '_m0',
         '_f0', '_0_', 'lite0', 'tiny', '_ti', '_xs', 'x_small', 'mini', '_l0', '050', '_035', '_018', '18', '_26',
         'small', '_s_', '_s1', '_s2')
TOO_LARGE = '300m', '306m', '412m', '570m', '_1b', 'nasnetalarge', 'pnasnet5large'   # or slow for two cores

def torchvision_names():
    "All classifiers of torchvision."
    return [f'torchvision/{n}' for n in models.list_models(module=models)]

def is_small_enough(name): return not any(s in name for s in TOO_LARGE)

def smallest_first(name):
    "What to sort names by: how soon in `SMALL` what they have in them stands, then their length."
    return min([i for i, s in enumerate(SMALL) if s in name], default=len(SMALL)), len(name), name

def timm_names(n=130):
    """`n` networks of timm: first one of every module, then a second, of another kind if there is one, and so on.

    Those come first whose names promise that they are small."""
    by_module = []
    for module in timm.list_modules():
        found = sorted(filter(is_small_enough, timm.list_models(module=module)), key=smallest_first)
        kinds = {}
        for name in found: kinds.setdefault(re.sub(r'[\d_].*', '', name.removeprefix('test_')), name)
        first = list(kinds.values())
        by_module.append(first + [name for name in found if name not in first])
    rounds = dict.fromkeys(chain.from_iterable(zip_longest(*by_module)))
    return [f'timm/{name}' for name in rounds if name is not None][:n]

def build(library, name, size):
    "A network with random weights, always the same, for images of this size; None if it takes no such images."
    torch.manual_seed(0)
    if library == 'torchvision':
        kw = dict(init_weights=False) if name in ('googlenet', 'inception_v3') else {}
        if name.startswith('vit_'): kw = dict(image_size=size)
        model = models.get_model(name, weights=None, num_classes=10, **kw)
    else:
        try: model = timm.create_model(name, pretrained=False, num_classes=10, img_size=size)
        except TypeError: model = timm.create_model(name, pretrained=False, num_classes=10)
    for m in model.modules():   # a head that begins with zeros gives no logits to compare
        if isinstance(m, nn.Linear) and not m.weight.any(): nn.init.normal_(m.weight, std=.02)
    return model.eval()

def sizes_of(library, name):
    "Sizes to try: the small ones, and the size the network was made for."
    if library == 'torchvision': return (112, 224) if name.endswith('_14') else SIZES   # whole patches
    made_for = timm.get_pretrained_cfg(name)
    made_for = made_for.input_size[-1] if made_for else 224
    return sorted({*(s for s in SIZES if s <= made_for), made_for})

def first_that_runs(library, name):
    "The network and the smallest size of images that it takes."
    error = None
    for size in sizes_of(library, name):
        try:
            model = build(library, name, size)
            with torch.no_grad(): out = model(torch.zeros(1, 3, size, size))
            if out.isfinite().all(): return model, size
        except Exception as e: error = e
    raise RuntimeError(f'no size works: {type(error).__name__}: {error}'[:300])

def compare(net, model, size):
    "The largest difference of logits on images that are new to both, over the largest logit."
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(7))*2 - 1
    with torch.no_grad():
        expected = torch.cat([model(i[None]) for i in x])
        z = torch.cat([net.encode(i[None]).z for i in x])
        got = [net(x), torch.cat([net(i[None]) for i in x]), z @ net.W.T + net.b]
    scale = expected.abs().max().clamp_min(1e-6)
    return max(((g - expected).abs().max()/scale).item() for g in got)

def outcome(library, name):
    "What becomes of one network, as a dict."
    try: model, size = first_that_runs(library, name)
    except RuntimeError as e: return dict(outcome='does not run', reason=str(e))
    row = dict(size=size, weights=sum(p.numel() for p in model.parameters()))
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))*2 - 1
    try: net = Classifier.wrap(model, x)
    except MirrorError as e: return row | dict(outcome='refused', reason=str(e).split('. Mirror-CFE needs')[0])
    error = compare(net, model, size)
    with torch.no_grad(): maps = [list(f.shape[1:]) for f in net.features(x)]
    pair = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)
    heard = (net.hires_cams(x, *pair).abs().sum(1) > 0).float().mean().item()
    said = 'opened' if error < 1e-3 else 'wrongly accepted'
    last = net.stages.names[-1] if net.stages.names else 'the image'
    return row | dict(outcome=said, error=error, gap=net.is_gap, heard=heard, n=net.n_features, maps=maps, last=last)

def answer(key, pipe):
    "Send the outcome of one network through a pipe."
    warnings.simplefilter('ignore')
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    torch.set_flush_denormal(True)   # random weights may give numbers near 1e-40, with which a processor is slow
    Path('/proc/self/oom_score_adj').write_text('1000')   # should memory end, this process ends, and not the sweep
    try: pipe.send(outcome(*key.split('/')))
    except BaseException as e: pipe.send(dict(outcome='crashed', reason=f'{type(e).__name__}: {e}'[:300]))

def in_a_process(key):
    "The outcome of one network, from a process of its own, which begins with all that is imported here."
    fork = multiprocessing.get_context('fork')
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=answer, args=(key, there))
    start = time.monotonic()
    process.start()
    there.close()
    try: found = here.recv() if here.poll(10*LIMIT) else None
    except (EOFError, OSError): found = None   # its limit of time, or the end of memory
    process.kill()
    process.join()
    if found is None: found = dict(outcome='no answer', reason=f'within {LIMIT} seconds and {MEMORY >> 30} GiB')
    return found | dict(seconds=round(time.monotonic() - start))

def line(key, r):
    "One line of the table."
    library, name = key.split('/')
    if 'maps' not in r: return f"| {library} | {name} | {r.get('size', '')} | {r['outcome']} | | | | {r['reason']} |"
    maps = ', '.join(f"{c} x {h}x{w}" for c, h, w in r['maps'])
    error = next(s for s in ('1e-5', '1e-4', '1e-3', '1') if r['error'] < float(s)) if r['error'] < 1 else '> 1'
    kind = 'average' if r['gap'] else 'other'
    found = f"{kind} | {r['n']} | < {error} | {maps}; last `{r['last']}`"
    return f"| {library} | {name} | {r['size']} | {r['outcome']} | {found} |"

def without_seconds(row): return {n: v for n, v in row.items() if n != 'seconds'}

HEADING = """# What `Classifier.wrap` opens

`python benchmarks/heads_sweep.py` writes this page: all classifiers of torchvision, and some of every family of timm,
with random weights, at the smallest size of images that they take. What is opened is compared with the network itself
on images that `wrap` did not see, alone and in a batch; `error` is the largest difference of logits over the largest
logit. `head`: whether the last layer reads the average of the last map, as in the paper, or something else. `maps` are
channels x height x width, shallow to deep; N is the length of the latent.
"""

def page(rows):
    "The page of the table."
    parts = [HEADING]
    for library in ('torchvision', 'timm'):
        of = {k: r for k, r in rows.items() if k.startswith(library + '/')}
        ran = {k: r for k, r in of.items() if r['outcome'] != 'does not run'}
        counts = Counter(r['outcome'] for r in ran.values())
        said = ', '.join(f'{n} {o}' for o, n in sorted(counts.items()))
        average = sum(r.get('gap', False) for r in ran.values())
        parts.append(f"{library}: {len(ran)} networks, {said}; {average} read an average.")
    wrong = sum(r['outcome'] == 'wrongly accepted' for r in rows.values())
    parts += [f"Wrongly accepted: {wrong}.", "",
              "| library | network | pixels | outcome | head | N | error | maps, or the reason |",
              "|---|---|---|---|---|---|---|---|", *[line(k, r) for k, r in sorted(rows.items(), reverse=True)], ""]
    return '\n'.join(parts)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', help='library/network; none: all')
    parser.add_argument('--again', action='store_true', help='also those in the stored table')
    options = parser.parse_args()
    file = RESULTS/'heads.json'
    rows = json.loads(file.read_text()) if file.exists() else {}
    keys = options.names or [*torchvision_names(), *timm_names()]
    for key in keys:
        if key in rows and not (options.again or options.names): continue
        rows[key] = in_a_process(key)
        print(line(key, rows[key]), flush=True)
        kept = [f'{json.dumps(k)}: {json.dumps(without_seconds(r))}' for k, r in sorted(rows.items())]
        file.write_text('{\n' + ',\n'.join(kept) + '\n}\n')
        (RESULTS/'heads.md').write_text(page(rows), encoding='utf-8')

if __name__ == '__main__': main()
