"""How long a training takes by the clock, and what it is worth: a pair, all ninety directions, the demo.

    python benchmarks/training_time.py [--images 400] [--only pair all demo]

On two threads; needs two idle cores. MNIST is read from $MIRRORCFE_DATA or fetched; classifiers and judges come from
the cache, or are trained first. Autoencoder and student are trained anew and timed apart, since all pairs and seeds of
a data set share them. Kept in results/training_time.json and training_time.md, with the numbers of that very training
at k = 1.
"""
import argparse, json, os, platform, tempfile, time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import torch
from mirrorcfe import __version__
from mirrorcfe.autoencoder import form_of, train_latent_autoencoder
from mirrorcfe.benchmark import Task, run_benchmark
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.runs import DEMO, DEMO_SIZE, md_table
from mirrorcfe.student import train_student, usual_steps
from mirrorcfe.training import get_recipe, painting_networks, training_images

RESULTS = Path(__file__).parent/'results'
THREADS = 2
METRICS = ['Val', 'Believed', 'L1', 'confidence error']

@dataclass(frozen=True)
class Case:
    "What is trained, and how many seconds it may take."
    title:str
    data:str
    pair:tuple|None
    measured:tuple   # the pairs that are measured; (None,): all classes
    changes:dict     # of the default recipe
    seconds:int
    size:int|None=None   # pixels; None: as the data come

CASES = dict(
    pair=Case('MNIST 4-9', 'mnist', (4, 9), ((4, 9),), {}, 60),
    all=Case('MNIST, all 90 directions', 'mnist', None, ((3, 8), (4, 9), (5, 6)), dict(steps=1200), 300),
    demo=Case('the demo', 'digits', None, (None,), DEMO, 60, DEMO_SIZE))

def seconds(f, *args):
    "What `f` returns, and how long that took by the clock."
    start = time.perf_counter()
    result = f(*args)
    return result, time.perf_counter() - start

def time_networks(classifier, dls):
    "Seconds that an autoencoder and a student take, without the cache."
    x = training_images(dls)
    _, of_autoencoder = seconds(train_latent_autoencoder, x, form_of(x))
    _, of_student = seconds(train_student, classifier, x, usual_steps(len(x)))
    return of_autoencoder, of_student

def numbers(cfe, case, n):
    "Means over directions and images at k = 1."
    tasks = [Task(case.data, pair, case.size, n) for pair in case.measured]
    with tempfile.TemporaryDirectory() as folder:
        rows = run_benchmark({'Mirror-CFE': lambda task: cfe}, tasks, folder, METRICS, progress=False)
    return rows[rows['end'] == 'reflection'][METRICS].mean().to_dict()

def run(case, n):
    "Train once by the clock, and measure what came of it."
    classifier = get_classifier(case.data, size=case.size, device='cpu')
    dls = get_dls(case.data, size=case.size, device='cpu')
    recipe = get_recipe(**case.changes)
    of_autoencoder, of_student = time_networks(classifier, dls)
    networks = painting_networks(classifier, dls, recipe)
    dls = get_dls(case.data, pair=case.pair, size=case.size, steps=100, device='cpu')
    cfe = MirrorCFE(classifier, recipe, case.pair)
    _, training = seconds(partial(cfe.fit, dls, autoencoder=networks[0], student_net=networks[1], progress=False))
    found = dict(steps=recipe.steps, training=training, mark=case.seconds, autoencoder=of_autoencoder,
                 student=of_student, load=os.getloadavg()[0])
    return found | numbers(cfe, case, n)

def page(found):
    "The results as Markdown."
    columns = ['training of', 'steps', 'seconds', 'mark', 'autoencoder, s', 'student, s', *METRICS]
    rows = []
    for title, r in found['cases'].items():
        said = f"{r['mark']} {'reached' if r['training'] <= r['mark'] else 'MISSED'}"
        rows.append([title, r['steps'], f"{r['training']:.0f}", said, f"{r['autoencoder']:.0f}", f"{r['student']:.0f}",
                     *[f'{r[m]:.3f}' for m in METRICS]])
    return '\n'.join([
        '# How long a training takes', '',
        f"Made by `python benchmarks/training_time.py`: by the clock, {THREADS} threads, {found['machine']}, torch "
        f"{found['torch']}, mirrorcfe {__version__}; one seed; numbers at k = 1 of this very training, means over "
        f"directions, on {found['images']} test images of a pair, or of all classes. Autoencoder and student are "
        'trained once a data set and kept.', '', md_table(rows, columns)]) + '\n'

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=400)
    parser.add_argument('--only', nargs='+', choices=CASES, default=list(CASES))
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    file = RESULTS/'training_time.json'
    found = json.loads(file.read_text()) if file.exists() else dict(cases={})
    found |= dict(machine=f'{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores',
                  torch=torch.__version__, images=args.images)
    for name in args.only:
        case = CASES[name]
        found['cases'][case.title] = run(case, args.images)
        print(case.title, {k: round(v, 3) for k, v in found['cases'][case.title].items()}, flush=True)
        file.write_text(json.dumps(found, indent=1) + '\n')
    (RESULTS/'training_time.md').write_text(page(found))

if __name__ == '__main__': main()
