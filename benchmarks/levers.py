"""What makes training cheaper, and what it costs: each lever against the default recipe, in turns within one run.

    python benchmarks/levers.py [--rounds 5] [--quality [--seeds 0 1 2]]

MNIST 4 against 9, read from $MIRRORCFE_DATA or fetched. Without an option a few minutes on one thread: milliseconds of
a step, kept in results/levers.json. `--quality` trains with every lever that changes the result, and measures 400
images; a killed run goes on where it stopped, and its cells are in results/reproduction/levers.
"""
import argparse, json, platform, statistics, time
from functools import cache, partial
from pathlib import Path
import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from mirrorcfe.benchmark import Task, run_benchmark
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import Encoded
from mirrorcfe.generator import Discriminator
from mirrorcfe.projected import FeatureDiscriminator, channel_scales
from mirrorcfe.training import get_recipe, mirror_learner, painting_networks

RESULTS = Path(__file__).parent/'results'
PAIR = (4, 9)

# --- levers: each changes a learner before it is trained --------------------------------------------------------------

def fold(learn):
    "Make the batch norms of the frozen classifier part of the convolutions before them."
    for parent in list(learn.model.F.modules()):
        children = list(parent.named_children())
        for (name, conv), (behind, norm) in zip(children, children[1:]):
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)): continue
            setattr(parent, name, fuse_conv_bn_eval(conv, norm))
            setattr(parent, behind, nn.Identity())

def keep_answers(learn):
    "Compute once what the frozen classifier says of the real images: maps, latents and logits."
    game = learn.model
    learn.turns.real(torch.tensor(PAIR), torch.zeros(2))   # collects them
    images = learn.turns.real_images
    with torch.no_grad(), game.mirror.autocast(): parts = [game.F.encode(x) for x in images.x.split(256)]
    maps = [torch.cat(v).contiguous(memory_format=torch.channels_last) for v in zip(*(e.maps for e in parts))]
    z = torch.cat([e.z for e in parts])
    logits = torch.cat([e.logits for e in parts])
    encode = game.F.encode
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
    game.F.encode = encode_or_look_up

class EverySecond(Callback):
    "Let the discriminators move in every second step."
    order = 9   # before `Turns`

    def before_batch(self):
        turns = self.learn.turns
        if not self.training: return
        if not hasattr(self, 'opt_d'): self.opt_d = turns.opt_d
        turns.opt_d = None if self.iter % 2 else self.opt_d

    def after_train(self): self.learn.turns.opt_d = self.opt_d

def every_second(learn): learn.add_cb(EverySecond())

def narrow_discriminators(learn):
    "Give both discriminators half their channels."
    game = learn.model
    x = learn.dls.train.one_batch()[0]
    with torch.random.fork_rng():
        torch.manual_seed(learn.turns.seed)
        game.D['pixels'] = Discriminator(x.shape[1], x.shape[2], game.F.n_classes, width=16, most=64)
        with torch.no_grad(): scales = channel_scales(game.F.features(x))
        game.D['own'] = FeatureDiscriminator(scales, game.F.n_classes, width=32)
    game.D.to(x.device, memory_format=torch.channels_last)

def fuse_optimisers(learn):
    "One kernel for the step of an optimiser."
    adam = learn.opt_func.keywords['opt']
    learn.opt_func = partial(learn.opt_func.func, opt=partial(adam, fused=True))

def narrow_and_seldom(learn):
    narrow_discriminators(learn)
    every_second(learn)

def as_it_is(learn): "Change nothing."

BASE = 'default recipe'
SAME = {   # the same result, but for rounding
    BASE: (as_it_is, {}),
    'batch norms folded': (fold, {}),
    'answers to real images kept': (keep_answers, {}),
    'fused optimiser': (fuse_optimisers, {})}
OTHER = {   # another result
    'discriminators half as wide': (narrow_discriminators, {}),
    'discriminators every second step': (every_second, {}),
    'both of these': (narrow_and_seldom, {}),
    '250 steps': (as_it_is, dict(steps=250)),
    'both of these, 250 steps': (narrow_and_seldom, dict(steps=250)),
    'twice the learning rate': (as_it_is, dict(lr=2e-3)),
    'generator half as wide': (as_it_is, dict(width=32)),
    'discriminator of own maps alone': (as_it_is, dict(pixels=False)),
    'no student': (as_it_is, dict(student=0.)),
    'no augmented image': (as_it_is, dict(augmented=0.))}
LEVERS = SAME | OTHER

@cache
def networks(classifier): return painting_networks(classifier, get_dls('mnist', device='cpu'), get_recipe())

def learner(classifier, lever, seed=0, steps=None):
    "A learner of the default recipe with one lever pulled."
    change, fields = LEVERS[lever]
    recipe = get_recipe(**fields)
    steps = steps or min(100, recipe.steps)
    dls = get_dls('mnist', pair=torch.tensor(PAIR), steps=steps, seed=seed, device='cpu')
    learn = mirror_learner(classifier, dls, recipe, PAIR, seed, None, None, True, *networks(classifier))
    change(learn)
    return learn

# --- what a step takes ------------------------------------------------------------------------------------------------

def time_steps(rounds, steps=6):
    "Milliseconds a step with each lever: medians of rounds in turns, of the processor's time, without validation."
    classifier = get_classifier('mnist', device='cpu')
    learners = {lever: learner(classifier, lever, steps=steps) for lever in LEVERS}
    times = {lever: [] for lever in learners}
    for r in range(rounds + 1):   # the first warms up
        for lever, learn in learners.items():
            learn.turns.valid_batches = 1
            start = time.process_time()
            learn.fit_game(1, progress=False)
            if r: times[lever].append(1000*(time.process_time() - start)/steps)
    return {lever: statistics.median(v) for lever, v in times.items()}

def main_times(rounds):
    found = dict(ms=time_steps(rounds), threads=torch.get_num_threads(), torch=torch.__version__,
                 machine=f'{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}')
    (RESULTS/'levers.json').write_text(json.dumps(found, indent=1) + '\n')
    for lever, ms in found['ms'].items(): print(f"{lever:34} {ms:4.0f} ms a step  {ms/found['ms'][BASE]:.2f}")

# --- what it costs ----------------------------------------------------------------------------------------------------

def trained(task, lever, seed=0):
    "An explainer that was trained with a lever pulled."
    learn = learner(task.classifier, lever, seed)
    cfe = MirrorCFE(task.classifier, learn.model.recipe, PAIR, seed)
    cfe.learn = learn
    cfe.classifier = learn.model.F
    cfe.model = learn.fit_game(progress=False).model.mirror
    return cfe

def main_quality(seeds):
    out = RESULTS/'reproduction'/'levers'
    task = Task('mnist', PAIR, n=400)
    for seed in seeds:
        for lever in (BASE, *OTHER):
            label = f'{lever}, seed {seed}' if seed else lever
            run_benchmark({label: partial(trained, lever=lever, seed=seed)}, [task], out)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quality', action='store_true', help='train and measure instead of timing')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quality: main_quality(args.seeds)
    else: main_times(args.rounds)
