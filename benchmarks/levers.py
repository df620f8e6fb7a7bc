"""What makes training cheaper, and what it costs: each lever against one recipe, in turns within one run.

    python benchmarks/levers.py [--rounds 5] [--parts | --quality [--seeds 0 1 2]]

MNIST 4 against 9, read from $MIRRORCFE_DATA or fetched. Without an option a few minutes on one thread: milliseconds of
a step, kept in results/levers.json. `--parts` times the parts of a step, by the recipe before and by that of today,
kept in results/training_parts.json. `--quality` trains with every lever that changes the result and saves something,
and measures 400 images; a killed run goes on where it stopped, and its cells are in results/reproduction/levers.
"""
import argparse, json, platform, statistics, time
from functools import cache, partial
from itertools import product
from pathlib import Path
import torch
from fastcore.basics import AttrDict
from torch import nn
from mirrorcfe.benchmark import Task, run_benchmark
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.data import get_dls
from mirrorcfe.features import Encoded
from mirrorcfe.losses import cls_loss
from mirrorcfe.student import student_loss
from mirrorcfe.training import Recipe, get_recipe, mirror_learner, painting_networks
from reproduce import OUT, mirror

RESULTS = Path(__file__).parent/'results'
PAIR = (4, 9)

# --- levers: each changes a learner before it is trained --------------------------------------------------------------

def do_not_fold(learn):
    "Let the frozen networks keep their batch norms."
    learn.model.quick = learn.model.mirror

def keep_answers(learn):
    "Compute once what the frozen classifier says of the real images: maps, latents and logits."
    game = learn.model
    learn.turns.real(torch.tensor(PAIR), torch.zeros(2))   # collects them
    images = learn.turns.real_images
    with torch.no_grad(), game.quick.autocast(): parts = [game.quick.F.encode(x) for x in images.x.split(256)]
    maps = [torch.cat(v).contiguous(memory_format=torch.channels_last) for v in zip(*(e.maps for e in parts))]
    z = torch.cat([e.z for e in parts])
    logits = torch.cat([e.logits for e in parts])
    encode = game.quick.F.encode
    asked = []
    def real(classes, u):
        rows = images.rows(classes, u)
        asked.append(rows)
        return images.x[rows]
    def encode_or_look_up(x):
        if torch.is_grad_enabled() or not asked: return encode(x)
        rows = asked.pop()
        return Encoded([f[rows] for f in maps], z[rows], logits[rows])
    learn.turns.real_images = real
    game.quick.F.encode = encode_or_look_up

def fuse_optimisers(learn):
    "One kernel for the step of an optimiser."
    adam = learn.opt_func.keywords['opt']
    learn.opt_func = partial(learn.opt_func.func, opt=partial(adam, fused=True))

def pair_pixels(learn):
    "The classifier's first convolution, 5 x 5 at every second pixel of one channel, as one of 3 x 3 on four channels."
    first = learn.model.quick.F.stages[0][0]
    conv = first[0]
    o, i, h, w = conv.weight.shape
    weight = conv.weight.new_zeros(o, i, 2, 2, 3, 3)
    for y, x in product(range(h), range(w)): weight[:, :, y % 2, x % 2, y//2, x//2] = conv.weight[:, :, y, x].detach()
    paired = nn.Conv2d(4*i, o, 3, padding=1).requires_grad_(False)
    paired.weight.data = weight.view(o, 4*i, 3, 3)
    paired.bias = conv.bias
    first[0] = nn.Sequential(nn.PixelUnshuffle(2), paired)

def one_pass(learn):
    "What was drawn and a copy of it through the classifier in one batch, for its time: nothing is augmented."
    game = learn.model
    encode = game.quick.F.encode
    drawn = {}
    def both(x):
        if not x.requires_grad: return encode(x)
        e = encode(torch.cat([x, x.flip(0)]))
        half = len(x)
        drawn['logits'] = e.logits[half:]
        return Encoded([f[:half] for f in e.maps], e.z[:half], e.logits[:half])
    def augmented(d, sampler): return cls_loss(drawn.pop('logits', d.seen.logits), d.logits_k.flip(0))
    game.quick.F.encode = both
    game.augmented = augmented

def as_it_is(learn): "Change nothing."

# The recipe that they were tried on
BEFORE = dict(student_margin=0., adv=1.5, augmented=4., prox=12., d_width=64, d_every=1, steps=400)
BASE = 'recipe before'
SAME = {   # the same result, but for rounding
    BASE: (as_it_is, {}),
    'batch norms not folded': (do_not_fold, {}),
    'answers to real images kept': (keep_answers, {}),
    'first convolution on pairs of pixels': (pair_pixels, {}),
    'plain and augmented in one pass': (one_pass, {}),   # its time alone: what it draws is worse
    'fused optimiser': (fuse_optimisers, {})}
OTHER = {   # another result
    'discriminators half as wide': (as_it_is, dict(d_width=32)),
    'discriminators every second step': (as_it_is, dict(d_every=2)),
    'both of these': (as_it_is, dict(d_width=32, d_every=2)),
    'both of these, 300 steps': (as_it_is, dict(d_width=32, d_every=2, steps=300)),
    'twice the learning rate': (as_it_is, dict(lr=2e-3)),
    'generator half as wide': (as_it_is, dict(width=32)),
    'discriminator of own maps alone': (as_it_is, dict(pixels=False)),
    'no student': (as_it_is, dict(student=0.)),
    'no augmented image': (as_it_is, dict(augmented=0.)),
    'default recipe': (as_it_is, {n: getattr(Recipe(), n) for n in BEFORE})}
LEVERS = SAME | OTHER
TRIED = [BASE, 'both of these', 'both of these, 300 steps', 'default recipe', 'discriminators half as wide',
         'discriminators every second step', 'twice the learning rate', 'discriminator of own maps alone']

@cache
def networks(classifier): return painting_networks(classifier, get_dls('mnist', device='cpu'), get_recipe())

def learner(classifier, lever, seed=0, steps=None):
    "A learner of the recipe before with one lever pulled."
    change, fields = LEVERS[lever]
    recipe = get_recipe(**BEFORE | fields)
    steps = steps or min(100, recipe.steps)
    dls = get_dls('mnist', pair=torch.tensor(PAIR), steps=steps, seed=seed, device='cpu')
    learn = mirror_learner(classifier, dls, recipe, PAIR, seed, None, None, True, *networks(classifier))
    change(learn)
    return learn

# --- what a step takes ------------------------------------------------------------------------------------------------

def in_turns(ways, rounds):
    "Milliseconds of the processor's time that each way takes: medians of rounds in which all have their turn."
    times = {name: [] for name in ways}
    for r in range(rounds + 1):   # the first warms up
        for name, f in ways.items():
            start = time.process_time()
            f()
            if r: times[name].append(1000*(time.process_time() - start))
    return {name: statistics.median(ms) for name, ms in times.items()}

def time_steps(rounds, steps=6):
    "Milliseconds a step with each lever, without validation."
    classifier = get_classifier('mnist', device='cpu')
    ways = {}
    for lever in LEVERS:
        learn = learner(classifier, lever, steps=steps)
        learn.turns.valid_batches = 1
        ways[lever] = partial(learn.fit_game, 1, progress=False)
    return {lever: ms/steps for lever, ms in in_turns(ways, rounds).items()}

def main_times(rounds):
    found = dict(ms=time_steps(rounds), threads=torch.get_num_threads(), torch=torch.__version__,
                 machine=f'{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}')
    (RESULTS/'levers.json').write_text(json.dumps(found, indent=1) + '\n')
    for lever, ms in found['ms'].items(): print(f"{lever:34} {ms:4.0f} ms a step  {ms/found['ms'][BASE]:.2f}")

# --- where the time of a step goes ------------------------------------------------------------------------------------

def leaf(v): return v.detach().requires_grad_()

def back(outputs): sum(v.float().sum() for v in outputs).backward()

def parts(learn):
    "Functions that compute one part of a step each, forward and backward where a step does."
    game = learn.model
    sampler = learn.turns.sampler
    x, y = learn.dls.train.one_batch()
    learn.pred = d = game(x, y, sampler)
    mirror = game.quick
    e = mirror.encode(d.x)
    maps = [leaf(f) for f in d.seen.maps]
    _, _, code, *source_maps = e.maps
    with torch.no_grad(): _, f_k, mask = mirror.moved(e, d.source, d.target, d.k)
    noise = torch.randn_like(d.x_k)
    def paint():
        with mirror.autocast(): back([mirror.G(source_maps, code, f_k, mask)])
    def decode():
        with mirror.autocast(): back([mirror.autoencoder.decode(leaf(code))])
    def look():
        with mirror.autocast(): seen = game.quick.F.encode(leaf(d.x_k))
        back([seen.logits])
    def look_augmented(): game.augmented(AttrDict(d, x_k=leaf(d.x_k)), sampler).backward()
    def ask_student():
        with mirror.autocast(): student_loss(game.fixed.student, leaf(d.x_k), d.logits_k, noise).backward()
    def judge():
        with mirror.autocast(): back([game.judge(leaf(d.x_k), maps, d.squeezed, d, sampler)])
    @torch.no_grad()
    def look_at_real():
        with mirror.autocast(): game.quick.F.encode(d.real)
    return {'sources, encoded': lambda: mirror.encode(d.x), 'real images, encoded': look_at_real, 'painter': paint,
            'decoder': decode, 'classifier': look, 'classifier, augmented': look_augmented, 'student': ask_student,
            'discriminators, asked': judge, 'discriminators, taught': learn.turns.after_pred,
            'optimiser': learn.opt.step}

def time_parts(rounds):
    "Milliseconds a step of each part, by the recipe before and by that of today."
    classifier = get_classifier('mnist', device='cpu')
    ways = {}
    every = {}
    for name, lever in dict(before=BASE, after='default recipe').items():
        learn = learner(classifier, lever, steps=2)
        learn.fit_game(1, progress=False)   # fills the optimisers
        learn.turns.reseed(learn.turns.group, 'parts')
        learn.model.train()
        learn.training = True
        learn.model.step = 0   # one in which the discriminators move
        every[name] = learn.model.recipe.d_every
        ways |= {(name, part): f for part, f in parts(learn).items()}
    found = {name: {} for name in every}
    for (name, part), ms in in_turns(ways, rounds).items():
        found[name][part] = ms/every[name] if part == 'discriminators, taught' else ms
    return found

def main_parts(rounds):
    found = time_parts(rounds)
    (RESULTS/'training_parts.json').write_text(json.dumps(found, indent=1) + '\n')
    print(json.dumps(found, indent=1))

# --- what it costs ----------------------------------------------------------------------------------------------------

def main_quality(seeds):
    task = Task('mnist', PAIR, n=400)
    for seed in seeds:
        for lever in TRIED:   # those that save nothing are not trained
            fields = BEFORE | LEVERS[lever][1]
            label = f'{lever}, seed {seed}' if seed else lever
            run_benchmark({label: partial(mirror, seed=seed, **fields)}, [task], OUT/'levers')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--parts', action='store_true', help='time the parts of a step')
    parser.add_argument('--quality', action='store_true', help='train and measure instead of timing')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quality: main_quality(args.seeds)
    elif args.parts: main_parts(args.rounds)
    else: main_times(args.rounds)
