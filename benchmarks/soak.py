"""Kill it, fill its disk, flip its bytes and call it with anything: what comes back?

    python benchmarks/soak.py [--seconds 300] [--seed 0] [--store]

No data needed. Each trial runs in a fork of this process, on Linux or macOS. A trial ends well with the result of an
undisturbed run, or with one error of ours that names the file; anything else is listed below the table. `--store` keeps
what is printed in results/soak.md.
"""
import argparse, contextlib, math, os, pickle, random, resource, shutil, signal, tempfile, time, traceback
import warnings
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path
import numpy as np
import torch
from fastai.data.core import DataLoaders
from PIL import Image
from mirrorcfe import confidence, core, explainer, explanation, features, images, metrics, multiclass, storage
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet, TensorLoader, get_dls, get_folder_dls
from mirrorcfe.runs import load_network, save_network
from mirrorcfe.stream import read_stream
from mirrorcfe.training import MirrorModel, get_recipe

RESULTS = Path(__file__).parent/'results'
SIZE = 16
FORKS = hasattr(os, 'fork')
PATIENCE = 120   # seconds for one job in a fork; each takes a few

# --- what is done and kept --------------------------------------------------------------------------------------------

def build_classifier():
    torch.manual_seed(0)
    return small_resnet(3, 1, (4, 6, 8), SIZE, ['cat', 'dog', 'fox']).freeze()

def build_explainer(classifier):
    "An explainer whose generator has not been trained: what it draws is noise, and always the same."
    torch.manual_seed(1)
    cfe = explainer.MirrorCFE(classifier, 'paper', amp=False, steps=4, width=8)
    shapes = [tuple(m.shape[1:3]) for m in classifier.encode(torch.zeros(1, 1, SIZE, SIZE)).maps]
    cfe.model = MirrorModel(classifier, shapes, 1, SIZE, cfe.recipe).eval()
    return cfe

CLASSIFIER = build_classifier()
EXPLAINER = build_explainer(CLASSIFIER)
X = torch.rand(12, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))*2 - 1
LABELS = torch.arange(12) % 3

def toy_data(): return ImageSet(images.to_bytes(X), LABELS, CLASSIFIER.classes)

def loaders():
    "Two loaders of twelve images."
    data = toy_data()
    dls = DataLoaders(TensorLoader(data, 4, shuffle=True, drop_last=True, steps=2), TensorLoader(data, 4), device='cpu')
    dls.vocab = CLASSIFIER.classes
    dls.c = 3
    dls.pair = None
    return dls

def digest(*tensors): return storage.tensors_hash({str(i): v for i, v in enumerate(tensors)})

def train(folder):
    "A training of six steps in three epochs, with a checkpoint after each."
    torch.manual_seed(3)
    cfe = explainer.MirrorCFE(CLASSIFIER, 'paper', amp=False, steps=6, width=8)
    cfe.fit(loaders(), folder=folder/'training', progress=False)
    return storage.tensors_hash(cfe.model.G)

def stream(folder):
    "A stream of twelve images in three chunks, read again."
    how = dict(ks=[0, .5, 1], keep='images', bs=4, chunk=4, progress=False)
    EXPLAINER.explain_folder(toy_data(), folder/'stream', **how)
    chunks = list(read_stream(folder/'stream'))
    tensors = [v for _, drawn in chunks for v in drawn.values()]
    table = (folder/'stream'/'table.csv').read_text(encoding='utf-8')
    return storage.json_hash([[rows for rows, _ in chunks], digest(*tensors), table])

def cache(folder):
    "A network that is trained once and then taken from the cache."
    os.environ['MIRRORCFE_CACHE'] = str(folder/'cache')
    def blank(): return torch.nn.Linear(40, 30)
    def trained():
        torch.manual_seed(4)
        return blank()
    return storage.tensors_hash(storage.trained_once('toy', dict(width=30), blank, trained))

def save(folder):
    "An explainer, saved where there is none yet, and loaded."
    if not (folder/'explainer').exists(): EXPLAINER.save(folder/'explainer')
    return digest(explainer.MirrorCFE.load(folder/'explainer', CLASSIFIER).explain(X[:2], ks=[0, 1]).path)

def keep_explanation(folder):
    "An explanation in a file."
    file = folder/'one.safetensors'
    if not file.exists(): EXPLAINER.explain(X[:2], ks=[0, .5, 1], truth=LABELS[:2]).save(file)
    ex = explanation.Explanation.load(file)
    return storage.json_hash([digest(ex.x, ex.path, ex.intended_probs, ex.achieved_probs, ex.drawn_ks, ex.source),
                              ex.classes, ex.verdict])

def network(folder):
    "A classifier with its description."
    CLASSIFIER.accuracy = .5
    if not (folder/'net.json').exists(): save_network(CLASSIFIER, folder/'net', dataset='toy')
    net, about = load_network(folder/'net')
    return storage.json_hash([digest(net(X)), about['classes'], about['accuracy'], about['dataset']])

JOBS = {f.__name__: f for f in (train, stream, cache, save, keep_explanation, network)}
SHOWN = dict(train='a training', stream='a stream', cache='the cache', save='a saved explainer',
             keep_explanation='an explanation in a file', network='a saved classifier')

# --- trials -----------------------------------------------------------------------------------------------------------

class Moments:
    "Counts the moments at which a file system changes, and kills the process at one of them."
    def __init__(self, at=0):
        self.at = at
        self.n = 0
        for name in ('replace', 'rename', 'fsync', 'mkdir', 'rmdir', 'unlink', 'open'):
            setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, f):
        def call(*args, **kw):
            self.n += 1
            if self.n == self.at: os.kill(os.getpid(), signal.SIGKILL)
            return f(*args, **kw)
        return call

def outcome_of(job):
    "What a call comes to: ('value', it), ('refused', text of our error) or ('foreign', traceback)."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return 'value', job()
    except MirrorError as e: return 'refused', str(e)
    except TypeError as e: return 'type', str(e)
    except Exception: return 'foreign', traceback.format_exc()

def in_child(job, seconds=None, prepare=None, patience=PATIENCE):
    """The outcome of a job in a fork of this process.

    ('killed', None) where it did not come to its end, ('hung', None) where it was still busy after `patience` seconds.
    The threads of torch's pool do not come along into a fork: this process must have computed with one thread only.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            if prepare: prepare()
            found = outcome_of(job)
        with open(write, 'wb') as f: pickle.dump(found, f)
        os._exit(0)
    os.close(write)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    ended = wait([read], patience)
    if not ended: os.kill(pid, signal.SIGKILL)
    with open(read, 'rb') as f: said = f.read()
    os.waitpid(pid, 0)
    if not ended: return 'hung', None
    return pickle.loads(said) if said else ('killed', None)

def judged(found, want, name=''):
    "One or two words for an outcome, and the whole of it where it is wrong."
    kind, value = found
    if kind == 'value': return ('the same result', None) if value == want else ('ANOTHER RESULT', repr(value))
    if kind == 'refused' and name in value: return 'refused by name', None
    return ('REFUSED WITHOUT THE NAME' if kind == 'refused' else kind.upper()), value

class Soak:
    "Undisturbed results, and trials against them."
    def __init__(self, seed=0, jobs=tuple(JOBS)):
        self.rng = random.Random(seed)
        self.jobs = list(jobs)
        self.home = Path(tempfile.mkdtemp(prefix='soak-'))
        self.want = {}
        self.seconds = {}
        self.moments = {}
        self.calls = None
        self.counts = Counter()
        self.wrong = []
        for name in self.jobs: self.measure(name)

    def measure(self, name):
        "Run a job undisturbed, and note its result, its time and how often it changes the file system."
        folder = self.home/'whole'/name
        folder.mkdir(parents=True)
        def job():
            moments = Moments()
            return JOBS[name](folder), moments.n
        start = time.monotonic()
        kind, value = in_child(job)
        if kind != 'value': raise RuntimeError(f'{name}, undisturbed: {value}')
        self.seconds[name] = time.monotonic() - start
        self.want[name], self.moments[name] = value

    def note(self, trial, what, found, want, name=''):
        word, whole = judged(found, want, name)
        self.counts[trial, what, word] += 1
        if whole is not None or word.isupper(): self.wrong.append(f'{trial}, {what}: {word}\n{whole}')

    @contextlib.contextmanager
    def folder(self, like=None):
        "An empty folder, or a copy of what an undisturbed job left."
        with tempfile.TemporaryDirectory(dir=self.home) as place:
            copy = Path(place)/'it'
            if like: shutil.copytree(self.home/'whole'/like, copy, copy_function=shutil.copyfile)
            else: copy.mkdir()
            yield copy

    def kill(self):
        "SIGKILL by the clock or at a change of the file system; then the same call again."
        name = self.rng.choice(self.jobs)
        with self.folder() as folder:
            job = lambda: JOBS[name](folder)
            if self.rng.random() < .5: in_child(job, self.rng.uniform(0, 1.2)*self.seconds[name])
            else:
                at = self.rng.randint(1, self.moments[name])
                in_child(job, prepare=lambda: Moments(at))
            self.note('SIGKILL, then the same call', SHOWN[name], in_child(job), self.want[name])

    def fill(self):
        "No file may grow beyond a random size: a disk that is full. Then the same call with room."
        name = self.rng.choice(self.jobs)
        with self.folder() as folder:
            job = lambda: JOBS[name](folder)
            sizes = [f.stat().st_size for f in (self.home/'whole'/name).rglob('*') if f.is_file()]
            most = self.rng.choice([0, self.rng.randrange(max(sizes)), self.rng.choice(sizes)])
            def no_room():
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            self.note('disk full', SHOWN[name], in_child(job, prepare=no_room), self.want[name], str(folder))
            self.note('disk full, then room', SHOWN[name], in_child(job), self.want[name])

    def flip(self):
        "One bit, one byte, or the end of one kept file; then the call that reads it."
        name = self.rng.choice(self.jobs)
        with self.folder(name) as folder:
            files = [f for f in sorted(folder.rglob('*')) if f.is_file() and f.stat().st_size]
            file = self.rng.choice(files)
            data = bytearray(file.read_bytes())
            at = self.rng.randrange(len(data))
            how = self.rng.choice(['bit', 'byte', 'cut'])
            if how == 'bit': data[at] ^= 1 << self.rng.randrange(8)
            elif how == 'byte': data[at] = self.rng.randrange(256)
            else: del data[at:]
            file.write_bytes(data)
            found = in_child(lambda: JOBS[name](folder))
            self.note('a byte flipped', f'{SHOWN[name]}: {kind_of(file)}', found, self.want[name], file.name)

    def fuzz(self, calls=50):
        "Call public functions, in this process: with good arguments, of which one or two may be anything."
        if self.calls is None: self.calls = good_calls(self.home)
        for _ in range(calls):
            name = self.rng.choice(sorted(self.calls))
            f, args, right = self.calls[name]
            args = list(args)
            changed = self.rng.choice([0, 1, 1, 1, 2]) if args else 0
            for i in self.rng.sample(range(len(args)), min(changed, len(args))): args[i] = anything(self.rng)
            self.note_call(name, args, outcome_of(lambda: f(*args)), right if not changed else None)

    def note_call(self, name, args, found, right):
        kind, value = found
        if kind == 'value': word = 'answered' if right is None or right(value) else 'WRONG ANSWER'
        elif kind == 'type' and right is None: word = 'TypeError'
        elif kind == 'refused': word = 'refused with a sentence' if right is None else 'GOOD ARGUMENTS REFUSED'
        else: word = 'FOREIGN'
        self.counts['anything as an argument', name.partition('.')[0], word] += 1
        if word.isupper():
            shown = ', '.join(repr(a)[:60].replace('\n', ' ') for a in args)
            self.wrong.append(f'{name}({shown}): {word}\n{str(value)[-900:]}')

    def run(self, seconds, trials=('kill', 'fill', 'flip', 'fuzz')):
        "Run trials until the time is up, each kind once at least."
        end = time.monotonic() + seconds
        n = 0
        while n < len(trials) or time.monotonic() < end:
            getattr(self, trials[n % len(trials)])()
            n += 1
        shutil.rmtree(self.home, ignore_errors=True)
        return n

    def table(self):
        "Counts as Markdown: one row for each trial and thing, one column for each outcome."
        words = sorted({word for *_, word in self.counts}, key=lambda w: (w.isupper(), w))
        rows = [['what is done', 'to what', *words], ['---']*(2 + len(words))]
        for trial, what in sorted({key[:2] for key in self.counts}):
            rows.append([trial, what, *(str(self.counts[trial, what, word] or '') for word in words)])
        return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)

def kind_of(file):
    "What a file is, without the number in its name."
    stem = 'chunk' if file.stem.isdigit() else 'network' if len(file.stem) == 16 else file.stem
    return f'{stem}{file.suffix}'

# --- anything ---------------------------------------------------------------------------------------------------------

NUMBERS = [True, False, 0, 1, -1, 2, 3, 7, 10**6, 10**400, 0., .5, 1., -.5, 2.5, math.nan, math.inf, -math.inf, 1e300,
           1e-300, 1j, np.int64(1), np.float32(.5), np.bool_(True)]
TEXTS = ['', 'cat', 'runner-up', 'closest', 'nowhere.png', '\0', b'', b'cat', Path('nowhere')]
MANY = [[], [0], [.5], [None], ['cat'], [0, 1], (), (0, 1), {}, {0: 'cat'}, {'cat': 0}, set(), range(3),
        np.array([0, 1]), np.zeros((2, 1, SIZE, SIZE)), np.array(['a'])]
ANYTHING = [*NUMBERS, *TEXTS, *MANY, None, object(), int, len]
SHAPES = [(), (0,), (1,), (2,), (3,), (8,), (2, 3), (2, 8), (3, 8), (0, 8), (2, 0), (2, 1, SIZE, SIZE),
          (0, 1, SIZE, SIZE), (2, 3, SIZE, SIZE), (1, SIZE, SIZE), (2, 1, 0, 0), (2, 1, 5, 7), (2, 3, 8)]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
         torch.complex64]

def anything(rng):
    "Any value at all: half of them tensors of some shape and number type."
    if rng.random() < .5: return rng.choice(ANYTHING)
    x = torch.rand(rng.choice(SHAPES), generator=torch.Generator().manual_seed(rng.randrange(10**6)))
    x = (x*2 - 1)*rng.choice([1, 1, 1, 0, 200, math.nan, math.inf])
    return x.to(rng.choice(TYPES)) if x.isfinite().all() else x

def near(want): return lambda got: torch.allclose(torch.as_tensor(got).double(), want.double(), atol=1e-4)
def equal(want): return lambda got: got == want
def always(got): return True

def good_calls(home):
    "Name -> (function, good arguments, function that says whether the answer to them is right)."
    g = torch.Generator().manual_seed(5)
    z = torch.randn(2, 8, generator=g).double()
    W = torch.randn(3, 8, generator=g).double()
    b = torch.randn(3, generator=g).double()
    s = torch.tensor([0, 1])
    t = torch.tensor([2, 0])
    logits = z @ W.T + b
    swapped = logits.clone()
    for i, pair in enumerate(torch.stack([s, t], 1).tolist()): swapped[i, pair] = logits[i, pair[::-1]]
    w = W[0] - W[1]
    reflected = z - 2*((z @ w + .3)/(w @ w))[:, None]*w
    solve = multiclass.ClosedFormSolver(W, b)
    picture = home/'fuzz.png'
    Image.fromarray(np.full((9, 9), 200, np.uint8)).save(picture)
    x = X[:2]
    there = torch.rand(2, 1, SIZE, SIZE, generator=g)*2 - 1
    say = EXPLAINER.explain
    said = CLASSIFIER(there).argmax(1)
    ex = say(x, ks=[0, 1])
    kept = home/'whole'
    shown = explanation.Explanation.load(kept/'keep_explanation'/'one.safetensors')
    def some(i):
        try: return ex[i]
        except IndexError as e: raise MirrorError(str(e)) from None   # as lists do
    def names(classes): return features.class_names(classes, 3)
    two = dict(zip(CLASSIFIER.classes, range(3)))
    return {
        'core.reflect': (core.reflect, (z, w, .3, 1.), near(reflected)),
        'core.margin': (core.margin, (z, w, .3), near(z @ w + .3)),
        'core.check_pair': (lambda *a: core.check_pair(*a, 3, 2), (0, 1), lambda p: p[0].tolist() == [0, 0]),
        'core.pair_hyperplane': (core.pair_hyperplane, (W, b, s, t), lambda v: torch.equal(v[0], W[t] - W[s])),
        'core.step_kind': (core.step_kind, (.5,), equal('mirror')),
        'core.whole_number': (lambda n: core.whole_number(n, 1, 'n'), (3,), equal(3)),
        'multiclass.swap_logits': (multiclass.swap_logits, (logits, s, t), near(swapped)),
        'multiclass.path_logits': (multiclass.path_logits, (logits, s, t, 1.), near(swapped)),
        'multiclass.latent_flip': (multiclass.latent_flip, (logits, s, t), always),
        'multiclass.ClosedFormSolver': (multiclass.ClosedFormSolver, (W, b, 'logit'), always),
        'multiclass.solve': (lambda *a: solve.logits(solve(*a)), (z, s, t, 1.), near(swapped)),
        'multiclass.residual': (solve.residual, (z, s, t), near(torch.zeros(2))),
        'confidence.check_confidence': (lambda p: confidence.check_confidence(p, 2), (.5,),
                                        near(torch.full((2, 1), .5))),
        'confidence.confidence_step': (confidence.confidence_step, (logits, s, t, .5), always),
        'confidence.closest_class': (confidence.closest_class, (solve, logits), always),
        'features.class_names': (names, (['cat', 'dog', 'fox'],), equal(['cat', 'dog', 'fox'])),
        'features.class_names of a dict': (names, (two,), equal(['cat', 'dog', 'fox'])),
        'features.class_index': (lambda c: features.class_index(c, CLASSIFIER.classes), ('dog',), equal(1)),
        'features.pair_index': (lambda p: features.pair_index(p, CLASSIFIER.classes), (('cat', 'fox'),), equal((0, 2))),
        'features.check_images': (lambda x: features.check_images(x, 1, (SIZE, SIZE)), (x,), near(x)),
        'features.intended_probs': (features.intended_probs, (logits, s, t, [1.]), near(swapped.softmax(1)[:, None])),
        'explainer.explain': (say, (x, None, [0, 1]), equal(ex)),
        'explainer.explain, options': (lambda *a: say(x, a[0], [0, 1], a[1], closed_loop=False, truth=a[2]),
                                       ('runner-up', 'mark', s), always),
        'explainer.explain_all': (lambda *a: EXPLAINER.explain_all(*a, ks=[1]), (x, ['cat', 'fox']), always),
        'explainer.target_confidence': (lambda p: say(x, None, [0, 1], closed_loop=False, target_confidence=p),
                                        (.5,), always),
        'explainer.grid': (EXPLAINER.grid, ([0, .5, 1],), near(torch.tensor([0, .5, 1]))),
        'explanation.index': (some, (0,), lambda v: len(v) == 1),
        'explanation.load': (explanation.Explanation.load, (kept/'keep_explanation'/'one.safetensors',), equal(shown)),
        'explainer.load': (explainer.MirrorCFE.load, (kept/'save'/'explainer', CLASSIFIER), always),
        'metrics.l1': (metrics.l1, (x, there), near((x - there).abs().mean())),
        'metrics.prox': (metrics.prox, (x, there), always),
        'metrics.validity': (metrics.validity, (CLASSIFIER, there, said), near(torch.tensor(1.))),
        'metrics.confidence_error': (metrics.confidence_error, (ex.intended, ex.intended), near(torch.tensor(0.))),
        'metrics.feature_error': (metrics.feature_error, (z[:, None], z[:, None]), near(torch.tensor(0.))),
        'metrics.fid': (metrics.fid, (torch.cat([z]*8), torch.cat([z]*8), 'allow'), near(torch.tensor(0.))),
        'metrics.kid': (metrics.kid, (torch.cat([z]*8), torch.cat([z]*8)), always),
        'metrics.bootstrap_interval': (metrics.bootstrap_interval, (torch.ones(9),), lambda v: tuple(v) == (1, 1, 1)),
        'metrics.variety': (metrics.variety, (z, z), always),
        'images.read_image': (images.read_image, (picture, 1, 255, 0), lambda im: im.getpixel((0, 0)) == 200),
        'images.read_fitted': (images.read_fitted, (picture, 8, 1, 'middle'), near(torch.full((1, 8, 8), 200))),
        'images.find_images': (images.find_images, (picture,), equal([picture])),
        'images.check_levels': (images.check_levels, ((0, 4095),), equal((0, 4095))),
        'data.get_dls': (lambda *a: get_dls('digits', None, *a, device='cpu').vocab, ((3, 8), 16, 8), always),
        'data.get_folder_dls': (lambda *a: get_folder_dls(*a), ('nowhere', 3), None),
        'training.get_recipe': (lambda *a: get_recipe(*a), ('paper',), lambda r: r.painter == 'pixels'),
        'storage.read_json': (storage.read_json, (kept/'network'/'net.json',), always),
        'storage.read_tensors': (storage.read_tensors, (kept/'network'/'net.safetensors',), always),
    }

# --- the whole --------------------------------------------------------------------------------------------------------

def report(soak, seconds, seed, trials):
    "The table, and what went wrong."
    wrong = '\n\n'.join(f'```\n{w}\n```' for w in soak.wrong[:40]) or 'Nothing went wrong.'
    return (f'# Soak\n\n`python benchmarks/soak.py --seconds {seconds} --seed {seed}`: {trials} trials, '
            f'{sum(soak.counts.values())} outcomes.\n\n{soak.table()}\n\n{wrong}\n')

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=300, help='how long to go on')
    parser.add_argument('--seed', type=int, default=0, help='of the trials')
    parser.add_argument('--store', action='store_true', help='keep what is printed in results/soak.md')
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ['MIRRORCFE_CACHE'] = tempfile.mkdtemp(prefix='soak-cache-')
    soak = Soak(args.seed)
    trials = soak.run(args.seconds)
    shutil.rmtree(os.environ['MIRRORCFE_CACHE'], ignore_errors=True)
    text = report(soak, args.seconds, args.seed, trials)
    print(text)
    if args.store: (RESULTS/'soak.md').write_text(text, encoding='utf-8')
    return bool(soak.wrong)

if __name__ == '__main__': raise SystemExit(main())
