"The benchmark on a task small enough for numbers by hand: cells, resuming, failures, tables, the cache of explainers."
import dataclasses, errno, json, math, pickle, time, warnings
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from torch import nn
import mirrorcfe.loop
from mirrorcfe import benchmark as b
from mirrorcfe.baselines.cem import CEM
from mirrorcfe.baselines.floors import Identity, PixelBlend
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.explanation import two_ended
from mirrorcfe.core import MirrorError
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.data import ImageSet, TensorLoader, get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.storage import CannotWrite
from tiny import hash_of
from mirrorcfe.features import Classifier
from mirrorcfe.judges import Judge, Panel

class Pixels(nn.Module):
    "The left and the right half of an image as two channels."
    def forward(self, x):
        left = x.clone()
        left[..., 4:] = 0
        right = x.clone()
        right[..., :4] = 0
        return torch.cat([left, right], 1)

def network(gain):
    net = Classifier([Pixels()], nn.Linear(2, 2), ['left', 'right'])
    net.head.weight.data = gain*torch.tensor([[1., -1], [-1, 1]])
    net.head.bias.data = torch.zeros(2)
    return net.freeze()

class Tiny(b.Task):
    "Ten images, 8 x 8, six bright on the left and four on the right; the classifier reads the brighter half."
    classifier = network(4.)
    oracle = network(5.)
    panel = Panel([Judge('conv', network(6.), 1.), Judge('conv_half', network(7.), .9)], ['left', 'right'])
    title = 'Tiny'
    names = ['left', 'right']

    @property
    def test(self):
        x = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
        x[:6, :, :, :4] = 255
        x[6:, :, :, 4:] = 255
        return ImageSet(x, torch.tensor([0]*6 + [1]*4), self.names)

    def sources(self):
        images = self.test
        return b.Sources(images[:][0], images.y, 1 - images.y, images.y, torch.arange(10))

@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setattr(b, '_fingerprint', lambda *a: '0'*16)
    b._real_images.cache_clear()

class Mirrored:
    "Swap the halves; of every batch leave out the images at `absent`."
    def __init__(self, task, absent=()):
        self.net = task.classifier
        self.absent = list(absent)

    def explain(self, x, target, truth=None):
        out = x.flip(3)
        out[[i for i in self.absent if i < len(x)]] = torch.nan
        return two_ended(self.net, x, out, target, truth)

task = Tiny('digits', (0, 1))
run = partial(b.run_benchmark, progress=False)

# --- numbers ---------------------------------------------------------------------------------------

NOT_BY_HAND = ('LPIPS', 'IM1', 'IM2')

def test_numbers_by_hand(tmp_path):
    t = run({'mirrored': Mirrored}, task, tmp_path, [n for n in b.METRICS if n not in NOT_BY_HAND], bs=3)
    assert list(t['direction']) == ['left->right']*2 + ['right->left']*2
    assert list(t['N']) == [6, 6, 4, 4] and list(t['end']) == ['first', 'reflection']*2
    for n, want in dict(Val=1, Oracle=1, L1=2, Prox=2, coverage=1).items():
        assert t[n].tolist() == pytest.approx([want]*4), n
    assert list(t['%Fail']) == [0]*4 and list(t['first k'].dropna()) == [1, 1]
    assert t['KID@oracle'].tolist() == pytest.approx([0]*4, abs=1e-6)
    assert t[['confidence error', 'feature error']].isna().all(axis=None)
    assert (t['Val low'] == 1).all() and 'FID@oracle low' not in t
    assert (t['seconds a sample'] > 0).all() and (t['passes'] > 0).all()
    assert not t['flag'].any() and (t['status'] == 'ok').all()

def test_absent_images_count_where_successes_are_counted(tmp_path):
    names = ['Val', '%Fail', 'L1', 'Oracle', 'FID', 'KID']
    t = run({'half': lambda t: Mirrored(t, [0])}, task, tmp_path, names, at=['reflection'], bs=2)
    assert list(t['coverage']) == [.5, .5] and list(t['Val']) == [.5, .5]
    assert list(t['L1']) == [2, 2] and list(t['%Fail']) == [50, 50]
    cell = b.load_cells(tmp_path)[0]['rows']['reflection']['metrics']
    assert cell['L1']['n'] == 3 and cell['L1']['coverage'] == .5
    assert cell['Val']['n'] == 6 and cell['FID@oracle']['n'] == 3
    assert '| 0.500 |' in b.markdown_table(t) and 'coverage' in b.markdown_table(t)

def test_nothing_found_is_a_row_of_zeros_and_dashes(tmp_path):
    names = ['Val', 'L1', 'FID', 'KID', 'COUT', 'first k']
    t = run({'none': lambda t: Mirrored(t, range(6))}, task, tmp_path, names, bs=64)
    assert list(t['Val'])[:2] == [0, 0] and list(t['coverage'])[:2] == [0, 0]
    assert t['L1'][:2].isna().all() and t['FID@oracle'][:2].isna().all()

def test_the_flag_needs_validity_and_disbelief(tmp_path):
    class Deaf(Tiny): oracle = network(-5.)
    Deaf.oracle.accuracy = 0.
    sees = Deaf('digits', (0, 1))
    assert b._real_images(sees, (1,)).accuracy == 0   # an oracle that is never right cannot disbelieve
    assert not run({'mirrored': Mirrored}, sees, tmp_path, ['Val', 'Oracle'])['flag'].any()
    assert b.is_adversarial(1, .69) and not b.is_adversarial(1, .71)
    assert not b.is_adversarial(.89, 0) and not b.is_adversarial(1, .3, at_end=False)

def test_the_flag_is_the_panels_where_there_is_one(tmp_path):
    """The oracle believes, the panel does not: flagged; a panel that is never right about real images cannot flag."""
    class Doubted(Tiny):
        panel = Panel([Judge('conv', network(-5.), 1.), Judge('conv_half', network(5.), 1.),
                       Judge('svm', network(-5.), 1.)], ['left', 'right'])
    task = Doubted('digits', (0, 1))
    names = ['Val', 'Believed', 'Majority', 'Oracle']
    real = b.RealImages(None, 1., .9)
    row = b.measure(Mirrored(task), LEFT, 1, task.classifier, task.oracle, real=real, metrics=names,
                    panel=task.panel)['rows']['reflection']
    assert [round(row['metrics'][n]['mean'], 3) for n in names] == [1, .333, 0, 1] and row['flag'] == 'adversarial'
    assert b._real_images(task, (1,), True).believed == pytest.approx(1/3)
    assert not run({'mirrored': Mirrored}, task, tmp_path, names)['flag'].any()
    assert run({'mirrored': Mirrored}, Tiny('digits', (0, 1)), tmp_path/'b', names)['Believed'].tolist() == [1]*4

def test_what_is_not_found_is_not_believed():
    got = b.measure(Mirrored(task, [0, 2]), LEFT, 1, task.classifier, None, metrics=['Believed'], panel=task.panel)
    assert got['rows']['reflection']['metrics']['Believed']['mean'] == pytest.approx(4/6)
    assert got['left_out'] == {}

def test_the_panel_is_asked_once_for_all_metrics():
    calls = []
    class Counting(Panel):
        def votes(self, x):
            calls.append(len(x))
            return super().votes(x)
    panel = Counting(Tiny.panel.judges, ['left', 'right'])
    b.measure(Mirrored(task), LEFT, 1, task.classifier, None, metrics=['Believed', 'Majority'], panel=panel)
    assert calls == [6, 6], 'once an end'
    calls.clear()
    b.measure(Mirrored(task), LEFT, 1, task.classifier, None, metrics=['Val'], panel=panel)
    assert calls == []

def test_the_judges_are_in_the_file_and_in_the_key(tmp_path):
    run({'mirrored': Mirrored}, task, tmp_path, ['Val', 'Believed'])
    assert 'panel conv 1.000, conv_half 0.900; ' in (tmp_path/'results.md').read_text()
    class Other(Tiny): panel = Panel([Judge('conv', network(6.), .95)], ['left', 'right'])
    before = {c['key'] for c in b.load_cells(tmp_path)}
    run({'mirrored': Mirrored}, Other('digits', (0, 1)), tmp_path, ['Val', 'Believed'])
    assert before.isdisjoint({c['key'] for c in b.load_cells(tmp_path)})

# --- one measurer ----------------------------------------------------------------------------------

measure = partial(b.measure, classifier=Tiny.classifier, oracle=Tiny.oracle)
X, S = task.sources().x, task.sources().source
LEFT, RIGHT = X[S == 0], X[S == 1]

def means(found, *names, end='reflection'):
    "The means of some metrics at one end."
    return [found['rows'][end]['metrics'][n]['mean'] for n in names]

def test_measure_is_what_the_benchmark_writes(tmp_path):
    names = ['Val', 'L1', 'COUT', 'FID', 'Oracle']
    run({'half': lambda t: Mirrored(t, [0])}, task, tmp_path, names, bs=2)
    cell = b.load_cells(tmp_path)[0]
    got = measure(Mirrored(task, [0]), LEFT, 1, real=RIGHT, metrics=names, bs=2)
    assert json.loads(json.dumps(got)) == got   # plain data
    for n in ('rows', 'curves', 'oracle_on_real'): assert got[n] == cell[n], n
    assert (got['images'], got['already'], got['left_out']) == (6, 0, {})

def test_one_target_for_all_or_one_each():
    for_all = measure(Mirrored(task), LEFT, 1, metrics=['Val', 'L1'])
    assert for_all == measure(Mirrored(task), LEFT, torch.ones(6, dtype=torch.long), metrics=['Val', 'L1'])
    three = torch.ones(3, dtype=torch.long)
    with pytest.raises(MirrorError, match='3 targets for 6 images'): measure(Mirrored(task), LEFT, three)

class Chooser:
    "A method that goes to the other half where no target is given, and marks images that are there already."
    def __init__(self): self.seen = []
    def explain(self, x, target, truth=None, ks=None):
        self.seen.append((len(x), ks))
        if target is None: target = 1 - task.classifier(x).argmax(1)
        ex = two_ended(task.classifier, x, x.flip(3), target, truth)
        same = ex.source == ex.target
        ex.path[same] = torch.nan
        ex.achieved_probs[same] = torch.nan
        return ex

def test_the_method_may_choose_and_gets_its_arguments():
    method = Chooser()
    done = []
    got = measure(method, X, None, metrics=['Val', 'L1'], bs=4, progress=lambda i, n: done.append((i, n)), ks=[0, 1])
    assert got['images'] == 10 and means(got, 'Val') == [1]
    assert method.seen == [(4, [0, 1]), (4, [0, 1]), (2, [0, 1])] and done == [(4, 10), (8, 10), (10, 10)]

def test_images_that_are_their_target_already_are_no_failures():
    got = measure(Chooser(), X, 1, metrics=['Val', 'L1', '%Fail'], bs=3)   # six have a way to go, four are there
    assert (got['images'], got['already']) == (6, 4) and means(got, 'Val', 'L1', '%Fail') == [1, 2, 0]
    assert got['rows']['reflection']['coverage'] == 1 and got['rows']['reflection']['metrics']['Val']['n'] == 6

def test_nothing_to_go_is_no_number():
    got = measure(Chooser(), RIGHT, 1, metrics=['Val', 'FID'], real=RIGHT)
    assert got['images'] == 0 and got['curves'] is None
    assert got['rows']['first']['coverage'] is None and means(got, 'Val', 'FID@oracle', end='first') == [None, None]

def test_values_of_every_image():
    names = ['Val', 'L1', 'first k', 'FID']
    got = measure(Mirrored(task, [0]), LEFT, 1, metrics=names, real=RIGHT, bs=3, per_image=True)['values']
    assert got['first']['Val'] == [0, 1, 1, 0, 1, 1] and got['first']['L1'] == [None, 2, 2, None, 2, 2]
    assert got['first']['first k'] == [None, 1, 1, None, 1, 1] and set(got['reflection']) == {'Val', 'L1'}

def test_what_a_metric_needs_and_does_not_get_is_left_out_and_named():
    names = ['Val', 'Oracle', 'FID', 'IM1']
    got = b.measure(Mirrored(task), LEFT, 1, task.classifier, None, metrics=names, real=RIGHT)
    assert got['left_out'] == {'Oracle': 'needs oracle', 'FID@oracle': 'needs oracle', 'IM1': 'needs autoencoder'}
    assert list(got['rows']['first']['metrics']) == ['Val'] and got['rows']['reflection']['flag'] == ''
    assert 'FID@oracle' in measure(Mirrored(task), LEFT, 1)['left_out']

def test_autoencoders_are_an_argument():
    asked = []
    def autoencoder(c):
        asked.append(c)
        return lambda x: x*{0: .5, 1: 0., None: 1.}[c]
    got = measure(Identity(task.classifier), LEFT, 1, at=['reflection'], metrics=['IM1', 'IM2'],
                  autoencoder=autoencoder)
    assert means(got, 'IM1', 'IM2') == pytest.approx([4, 1]) and set(asked) == {0, 1, None}

def test_the_flag_knows_what_the_oracle_can_see():
    deaf = network(-5.)   # calls left what is right
    def flag(real):
        got = b.measure(Mirrored(task), LEFT, 1, task.classifier, deaf, metrics=['Val', 'Oracle'], real=real)
        return got['rows']['reflection']['flag']
    assert flag(None) == 'adversarial'
    assert flag(RIGHT) == ''   # never right about real images of the class: it cannot disbelieve
    assert flag(b.see_real(task.oracle, RIGHT, 1)) == 'adversarial'

def test_real_images_by_labels_or_by_the_classes_asked_for():
    def accuracy(y): return b.see_real(task.oracle, X, y).accuracy
    assert accuracy(S) == 1 and accuracy(1) == pytest.approx(.4) and accuracy([0, 1]) == 1 and accuracy(1 - S) == 0

class Noisy(Mirrored):
    "Swap the halves and add noise."
    def explain(self, x, target, truth=None):
        noisy = x.flip(3) + .1*torch.randn_like(x)
        return two_ended(self.net, x, noisy.clamp(-1, 1), target, truth)

def test_a_seed_repeats_what_is_random_and_leaves_the_callers_draws_alone():
    before = torch.get_rng_state()
    first, again, other = [measure(Noisy(task), LEFT, 1, metrics=['L1'], seed=s) for s in (0, 0, 1)]
    assert first == again and means(first, 'L1') != means(other, 'L1')
    assert torch.equal(before, torch.get_rng_state())

class Stepwise:
    "Three steps: the source, a grey image, the swapped halves; it says which confidences it intends."
    def explain(self, x, target, truth=None):
        ex = two_ended(task.classifier, x, x.flip(3), target, truth)
        path = torch.stack([x, 0*x, x.flip(3)], 1)
        probs = torch.stack([task.classifier(path[:, j]).softmax(1) for j in range(3)], 1).detach()
        intended = probs.clone()
        intended[:, 1] = torch.tensor([.25, .75])   # a grey image has .5
        ks = torch.tensor([0, .5, 1])
        return dataclasses.replace(ex, ks=ks, path=path, achieved_probs=probs, intended_probs=intended)

def test_curves_are_means_over_all_batches():
    got = measure(Stepwise(), X, 1 - S, metrics=['confidence error'], bs=4)
    ks, intended, achieved = (got['curves'][n] for n in ('ks', 'intended', 'achieved'))
    assert ks == [0, .5, 1] and achieved[1] == pytest.approx(.5)
    assert intended[1] == pytest.approx((6*.75 + 4*.25)/10)   # six go right, to class 1, and four go left
    assert means(got, 'confidence error') == [pytest.approx(.25/3)]

@pytest.mark.parametrize('bs', [3, 5])
def test_the_curve_does_not_depend_on_the_batches(bs):
    faint = torch.cat([X[:5], X[5:]/2])   # in the later batches confidences are lower
    def achieved(bs): return measure(Mirrored(task), faint, 1 - S, metrics=['Val'], bs=bs)['curves']['achieved']
    assert achieved(bs) == pytest.approx(achieved(10))

class Standing:
    "Forty-one steps that all show the source; its solver intends latents that move by `3*k`."
    model = SimpleNamespace(solve=lambda z, source, target, k: z + 3*k)
    def explain(self, x, target, truth=None):
        ex = two_ended(task.classifier, x, x, target, truth)
        ks = torch.linspace(0, 1, 41)
        probs = ex.achieved_probs[:, :1].expand(-1, 41, -1)
        path = x[:, None].expand(-1, 41, -1, -1, -1)
        return dataclasses.replace(ex, ks=ks, path=path, achieved_probs=probs, intended_probs=probs)

def test_the_feature_error_is_of_the_methods_own_solver_on_even_steps():
    assert means(measure(Standing(), X, 1 - S, metrics=['feature error']), 'feature error') == pytest.approx([1.5])

# --- the border that a dataset adds ----------------------------------------------------------------

EDGE = torch.minimum(torch.arange(8), 7 - torch.arange(8)).float()
RING = torch.minimum(EDGE[:, None], EDGE)   # of a pixel of 8 x 8: its distance to the edge

class Rings:
    "Bring every pixel nearer to 0: by .1 on the outermost ring, by .4 in the middle."
    def explain(self, x, target, truth=None):
        return two_ended(task.classifier, x, x - x.sign()*(RING + 1)/10, target, truth)

@pytest.mark.parametrize('border', range(4))
def test_distances_leave_out_the_border(border):
    got = measure(Rings(), torch.full((2, 1, 8, 8), -.5), 1, metrics=['L1', 'Prox'], at=['reflection'], border=border)
    want = (RING[RING >= border] + 1).mean().item()/10   # .1875, .2556, .325 and .4
    for n in ('L1', 'Prox'): assert got['rows']['reflection']['metrics'][n]['mean'] == pytest.approx(want, abs=1e-6), n

def test_lpips_leaves_out_the_border_too(monkeypatch):
    seen = []
    monkeypatch.setattr(b, 'lpips_network', lambda *a: None)
    def distance(x, x_cf, reduction):
        seen.append((x.shape, x_cf[0, 0, 0, 0].item()))
        return torch.zeros(len(x))
    monkeypatch.setattr(b, 'lpips_distance', distance)
    measure(Rings(), torch.full((2, 1, 8, 8), -.5), 1, metrics=['LPIPS'], at=['reflection'], border=2)
    assert seen == [((2, 1, 4, 4), pytest.approx(-.2))]

def test_the_border_of_a_task_reaches_the_numbers(tmp_path):
    class Bordered(Tiny): border = 2
    for kind, want in ((Tiny, .1875), (Bordered, .325)):
        t = run({'rings': lambda t: Rings()}, kind('digits', (0, 1)), tmp_path/kind.__name__, ['L1'], at=['reflection'])
        assert t['L1'][0] == pytest.approx(want)

BORDERS = [('mnist', None, 2), ('mnist', 64, 4), ('fashion_mnist', None, 2), ('bloodmnist', None, 2),
           ('digits', None, 0), ('celeba_hq', 64, 0)]

@pytest.mark.parametrize('data, size, border', BORDERS)
def test_border_of_the_datasets(data, size, border): assert b.Task(data, size=size).border == border

# --- cells -----------------------------------------------------------------------------------------

class Counting:
    "A function of a task that notes its calls and dies after so many images."
    fingerprint = staticmethod(lambda: 'counting')
    def __init__(self, dies=math.inf):
        self.made = 0
        self.seen = 0
        self.dies = dies

    def __call__(me, task):
        me.made += 1
        net = Mirrored(task)
        class Method:
            def explain(self, x, target, truth=None):
                me.seen += len(x)
                if me.seen > me.dies: raise RuntimeError('killed')
                return net.explain(x, target, truth)
        return Method()

def test_a_finished_cell_is_not_computed_again(tmp_path):
    c = Counting()
    first = run({'c': c}, task, tmp_path, ['Val', 'L1'])
    again = run({'c': c}, task, tmp_path, ['L1', 'Val'])
    assert (c.made, c.seen) == (1, 10)
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, b.load_results(tmp_path))

def test_killed_in_the_middle(tmp_path):
    dying = Counting(dies=7)   # the first direction has 6 images
    with pytest.raises(RuntimeError, match='killed'): run({'c': dying}, task, tmp_path, ['Val'], bs=2)
    assert [c['direction'] for c in b.load_cells(tmp_path)] == ['left->right'] and not list(tmp_path.rglob('*.part'))
    later = Counting()
    t = run({'c': later}, task, tmp_path, ['Val'], bs=2)
    assert later.seen == 4 and len(t) == 4

@pytest.mark.parametrize('change', [dict(metrics=['Val', 'L1']), dict(seed=1), dict(at=['first']), dict(bs=3)])
def test_other_settings_are_computed_again(tmp_path, change):
    c = Counting()
    for kw in (dict(metrics=['Val']), dict(metrics=['Val']) | change): run({'c': c}, task, tmp_path, **kw)
    assert c.seen == 20 and len(b.load_cells(tmp_path)) == 2

DAMAGE = [lambda s: s[:50], lambda s: '', lambda s: s.replace('"N": 6', '"N": 7'), lambda s: '[]']

@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_cell_is_computed_again(tmp_path, damage):
    c = Counting()
    first = run({'c': c}, task, tmp_path, ['Val'])
    file = next(f for f in (tmp_path/'cells').glob('*.json') if json.loads(f.read_text())['N'] == 6)
    file.write_text(damage(file.read_text()))
    with pytest.warns(UserWarning, match='1 damaged'): assert len(b.load_results(tmp_path)) == 2
    pd.testing.assert_frame_equal(first, run({'c': c}, task, tmp_path, ['Val']))
    assert c.seen == 16

def test_a_method_that_fails_holds_up_nobody_and_is_tried_again(tmp_path):
    def picky(t): raise MirrorError('no way')
    class Short(Mirrored):
        def explain(self, x, target, truth=None): return super().explain(x[:1], target[:1])
    t = run({'picky': picky, 'short': Short, 'mirrored': Mirrored}, task, tmp_path, ['Val'])
    assert list(t['status'])[:4] == ['failed: no way']*4 and list(t['Val'])[8:] == [1]*4
    assert t['status'][4].startswith('failed: 6 images were asked for, 1')
    assert 'failed: no way' in (tmp_path/'results.md').read_text()
    assert (run({'picky': Mirrored}, task, tmp_path, ['Val'])['Val'] == 1).all()

def test_a_failed_cell_is_no_finished_one(tmp_path):
    class Shaky:
        "Raises an error the first time, and is one and the same method by its fingerprint."
        fingerprint = staticmethod(lambda: 'shaky')
        calls = 0
        def __call__(self, t):
            self.calls += 1
            if self.calls == 1: raise MirrorError('not today')
            return Mirrored(t)
    shaky = Shaky()
    assert set(run({'shaky': shaky}, task, tmp_path, ['Val'])['status']) == {'failed: not today'}
    assert set(run({'shaky': shaky}, task, tmp_path, ['Val'])['status']) == {'ok'}
    assert shaky.calls == 2

def test_a_second_run_that_was_stopped_does_not_mix_with_the_first(tmp_path):
    "Of two seeds only the last is in the table, and going on completes it."
    run({'m': Counting()}, task, tmp_path, ['Val'], seed=0)
    with pytest.raises(RuntimeError, match='killed'): run({'m': Counting(dies=7)}, task, tmp_path, ['Val'], seed=7)
    with pytest.warns(UserWarning, match='1 cells of an earlier run are left out .seed 0, now 7.'):
        assert {c['about']['seed'] for c in b.load_cells(tmp_path)} == {7}
    with pytest.warns(UserWarning, match='left out'): t = b.load_results(tmp_path)
    assert len(t) == 2 and t.attrs['about']['Tiny']['seed'] == 7
    later = Counting()
    run({'m': later}, task, tmp_path, ['Val'], seed=7)
    assert later.seen == 4 and len(b.load_results(tmp_path)) == 4
    assert 'seed 7' in (tmp_path/'results.md').read_text()

def test_two_runs_at_once_measure_once_and_write_one_table(tmp_path):
    class Slow(Counting):
        fingerprint = staticmethod(lambda: 'slow')
        def __call__(self, task):
            time.sleep(.2)
            return super().__call__(task)
    methods = [Slow(), Slow()]
    def run_one(method): return run({'m': method}, task, tmp_path, ['Val'])
    with ThreadPoolExecutor() as pool: tables = list(pool.map(run_one, methods))
    assert sorted(m.seen for m in methods) == [0, 10]
    pd.testing.assert_frame_equal(*tables)
    pd.testing.assert_frame_equal(tables[0], b.load_results(tmp_path))

def test_rows_of_other_numbers_of_images_say_so(tmp_path):
    "Ten images and four in one table: a column says which row has how many."
    class Few(Tiny):
        def sources(self): return b.Sources(*(v[4:8] for v in super().sources()))
    assert '| N |' not in b.markdown_table(run({'m': Mirrored}, task, tmp_path, ['Val']))
    run({'few': Mirrored}, Few('digits', (0, 1)), tmp_path, ['Val'])
    text = (tmp_path/'results.md').read_text()
    assert ', up to 10 images;' in text
    rows = [[c.strip() for c in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('| ')]
    at, who = rows[0].index('N'), rows[0].index('method')
    found = {(r[who], r[at]) for r in rows[2:]}
    assert found == {('m', '6'), ('m', '4'), ('few', '2')}

def test_provenance_is_in_cell_and_file(tmp_path):
    run({'m': Mirrored}, task, tmp_path, ['Val'])
    about = b.load_cells(tmp_path)[0]['about']
    assert about['classifier'] == task.classifier.weights_hash() and about['torch'] == torch.__version__
    assert about['settings']['data'] == 'digits'
    head = (tmp_path/'results.md').read_text()
    for n in ('data_fingerprint', 'classifier', 'oracle', 'date', 'mirrorcfe'): assert str(about[n]) in head

def test_a_method_is_known_by_what_it_does():
    def steps(n): return lambda t: PGD(t.classifier, steps=n)
    key = b.method_fingerprint
    a = 5
    assert key(steps(5)) == key(steps(5)) != key(steps(6))
    assert key(partial(b.get_explainer, 'digits')) != key(partial(b.get_explainer, 'mnist'))
    assert key(lambda t: [PGD(t, eps=a) for _ in 'a']) != key(lambda t: [PGD(t, alpha=a) for _ in 'a'])
    assert key(Mirrored) == key(Mirrored) != key(Chooser)

@dataclasses.dataclass
class Options:
    n:int = 1
    more:tuple = ()

class Plain:
    "An object with attributes and no fingerprint."
    def __init__(self, v): self.v = v
    def make(self, task): return PGD(task.classifier, steps=self.v)

def linear(v):
    net = nn.Linear(1, 1)
    net.weight.data.fill_(v)
    return net

CARRIED = {
    'a recipe': (b.get_recipe('default', steps=1), b.get_recipe('default', steps=2)),
    'a tuple in a dataclass': (Options(more=(torch.zeros(1),)), Options(more=(torch.ones(1),))),
    'a tensor': (torch.zeros(3), torch.tensor([0, 0, 1e-7])),
    'its number type': (torch.zeros(3), torch.zeros(3).double()),
    'an array': (np.zeros(2000), np.eye(1, 2000, 1000)[0]),   # their texts are the same
    'an array of text': (np.array(['a', 'b'], object), np.array(['a', 'c'], object)),
    'a number of NumPy': (np.float32(1), np.float32(2)),
    'a path': (Path('a'), Path('b')),
    'bytes': (b'a', b'b'),
    'a set': ({1, 2}, {1, 3}),
    'a table': (pd.DataFrame(dict(a=[1])), pd.DataFrame(dict(a=[2]))),
    'a network': (linear(1.), linear(2.)),
    'an object': (Plain(1), Plain(2)),
    'a method of an object': (Plain(1).make, Plain(2).make),
    'an object that holds itself': (Plain([Plain(1)]), Plain([Plain(2)])),
    'images': (task.test, ImageSet(255 - task.test.x, task.test.y)),
    'a loader': (TensorLoader(task.test, 2), TensorLoader(task.test, 3)),
    'a counter': (Counter('aab'), Counter('abb')),
    'a deque': (deque([1]), deque([2])),
    'a class': (float, int)}

@pytest.mark.parametrize('what', CARRIED)
def test_a_method_is_known_by_what_it_carries(what):
    "In whatever way it carries it; a copy is the same method."
    key = b.method_fingerprint
    one, other = CARRIED[what]
    class Callable:
        def __init__(self, v): self.v = v
        def __call__(self, task): return self.v
    def defaults(v):
        def make(task, v=v): return v
        return make
    ways = dict(captured=lambda v: lambda task: v, partial=lambda v: partial(b.get_explainer, preset=v),
                default=defaults, attribute=Callable, nested=lambda v: lambda task: [v for _ in 'ab'])
    same = pickle.loads(pickle.dumps(one)) if what != 'a class' else one
    for name, way in ways.items():
        assert key(way(one)) != key(way(other)), name
        assert key(way(one)) == key(way(same)) == key(way(one)), name

def test_a_method_is_known_by_the_globals_it_names(monkeypatch):
    "Functions, classes and values, also where only a function inside it names them."
    key = b.method_fingerprint
    def keys(*values):
        def of(v):
            monkeypatch.setitem(globals(), 'given', v)
            return key(lambda task: given(task)), key(lambda task: [given for _ in 'ab'])   # noqa: F821
        return {of(v) for v in values}
    assert len(keys(lambda t: 1, lambda t: 2)) == 2
    assert len(keys(torch.zeros(1), torch.ones(1), Options(1), Options(2), Path('a'))) == 5
    class One:
        def explain(self): return 1
    class Two:
        def explain(self): return 2
    for kind in (One, Two): kind.__qualname__ = 'Method'
    assert len(keys(One, Two)) == 2 and key(One) != key(Two)
    assert len(keys(dict(a=1), dict(a=1))) == 1

def test_what_changes_by_itself_makes_no_other_method():
    "A loader counts its passes, a recursive function names itself, a learner is a run of a training."
    loader = TensorLoader(task.test, 2, shuffle=True)
    def recursive(n): return n and recursive(n - 1)
    def make(t): return loader, recursive
    before = b.method_fingerprint(make)
    list(loader)
    assert b.method_fingerprint(make) == before

def test_two_explainers_are_two_methods(tmp_path):
    "Also where a function only hands out one that was made before."
    def keys(models): return {b.method_fingerprint(lambda task, m=m: m) for m in models}
    dls = get_dls('digits', bs=8, steps=1, size=16, device='cpu')
    net = small_resnet(10, 1, (4, 8), 16).freeze()
    models = [MirrorCFE(net, steps=1, seed=s).fit(dls, progress=False) for s in (0, 1)]
    assert len(keys(models)) == 2 and len(keys(models[:1]*2)) == 1

def test_a_metric_of_ones_own_is_known_by_its_code(tmp_path, monkeypatch):
    def cells(f):
        monkeypatch.setitem(b.METRICS, 'own', b.Metric(f, 'up', '', ''))
        return run({'m': Mirrored}, task, tmp_path, ['own'])['own'].tolist()
    assert cells(lambda v: 0*v.x.mean((1, 2, 3)) + 1) == [1]*4
    assert cells(lambda v: 0*v.x.mean((1, 2, 3)) + 2) == [2]*4   # not the old cells

def test_another_classifier_or_oracle_is_computed_again(tmp_path):
    class Sharp(Tiny): classifier = network(8.)
    class Blunt(Tiny): oracle = network(1.)
    c = Counting()
    for kind in (Tiny, Sharp, Blunt, Blunt): run({'c': c}, kind('digits', (0, 1)), tmp_path, ['Val'])
    assert c.seen == 30

# --- tables ----------------------------------------------------------------------------------------

def test_csv_and_markdown_say_the_same(tmp_path):
    run({'m': Mirrored, 'half': lambda t: Mirrored(t, [0])}, task, tmp_path, ['Val', 'L1', 'FID', 'COUT'], bs=2)
    csv = pd.read_csv(tmp_path/'results.csv')
    text = (tmp_path/'results.md').read_text().splitlines()
    head = next(i for i, line in enumerate(text) if line.startswith('| method'))
    def entries(line): return [v.strip(' |') for v in line.split(' | ')]
    names = [n.split(' ')[0] for n in entries(text[head])]
    rows = [dict(zip(names, entries(line))) for line in text[head + 2:head + 2 + len(csv)]]
    for got, want in zip(rows, csv.to_dict('records')):
        for n in ('Val', 'L1', 'FID@oracle', 'COUT'):
            number = got[n].split(' ')[0].rstrip('*')
            if want[n] != want[n]: assert number == '–'
            else: assert float(number) == pytest.approx(want[n], rel=.06, abs=5e-4)
        assert (got['method'], got['direction'], got['end']) == (want['method'], want['direction'], want['end'])

def test_few_images_carry_a_star(tmp_path):
    t = run({'m': Mirrored}, task, tmp_path, ['Val', 'FID'], at=['reflection'])   # 6 and 4 images of two features
    assert '*' not in b.markdown_table(t)
    few = t.assign(notes='FID@oracle: few (2)')
    assert b.markdown_table(few, ['FID']).count('*') == 2 and '*' not in b.markdown_table(few, ['Val'])

@pytest.mark.parametrize('n, few', [(2, True), (3, False)])
def test_few_is_below_one_image_a_feature_and_one(n, few):
    got = measure(Mirrored(task), LEFT[:n], 1, real=RIGHT, metrics=['FID'])   # the oracle has two features
    assert got['rows']['reflection']['metrics']['FID@oracle']['few'] == few

def test_pooled_intervals_are_those_of_independent_means():
    "Four cells whose intervals reach .2 to both sides: their mean reaches .1."
    cell = dict(method='a', status='ok', N=5, coverage=1.)
    cells = [cell | {'L1': v, 'L1 low': v - .2, 'L1 high': v + .2} for v in (1., 2., 3., 4.)]
    cells.append({**cells[0], 'status': 'failed: no', 'L1': 99.})
    got = b.pooled(pd.DataFrame(cells), 'method').iloc[0]
    assert (got['cells'], got['N']) == (4, 20)
    assert [got['L1'], got['L1 low'], got['L1 high']] == pytest.approx([2.5, 2.4, 2.6])

def test_published_numbers_are_there():
    assert set(b.PUBLISHED) == {'main', 'faithfulness', 'fail', 'tri', 'c3lt', 'seconds', 'accuracy'}
    assert len(b.PUBLISHED['main']) == 17
    for t in b.PUBLISHED.values(): assert t.attrs['source'] and not t.isna().any(axis=None) and b.markdown_table(t)
    assert b.PUBLISHED['main'].set_index(['data', 'row']).loc[('MNIST', 'PGD'), 'D.Val'] == .74

# --- stored results --------------------------------------------------------------------------------

STORED = Path(__file__).resolve().parent.parent/'benchmarks'/'results'
GROUPS = sorted(f.parent for f in STORED.glob('reproduction/*/cells'))

def test_there_are_stored_results():
    groups = 'main colour paper floors multi ssc tri pgd methods c3lt heads errors attributes levers'
    assert set(groups.split()) <= {g.name for g in GROUPS}
    assert len(list(STORED.glob('reproduction/*/cells/*'))) == len(list(STORED.glob('reproduction/*/cells/*.json')))
    assert sum(f.stat().st_size for f in STORED.rglob('*.png')) < 2.5e6

@pytest.mark.parametrize('group', GROUPS, ids=lambda g: g.name)
def test_every_stored_cell_is_read_and_the_tables_are_of_the_cells(group):
    with warnings.catch_warnings():
        warnings.simplefilter('error')   # of damaged cells
        cells = b.load_cells(group)
    files = sorted((group/'cells').glob('*.json'))
    assert len(cells) == len(files) > 0
    for file in files:
        cell = json.loads(file.read_text())
        who = [cell['task'], cell['method'], cell['direction']]
        assert file.name.endswith(f'-{b.json_hash(who)[:6]}.json') and cell['status'] == 'ok'
        assert len(file.read_text().splitlines()) < 400   # a curve of a hundred steps is one line
    stored = pd.read_csv(group/'results.csv')
    now = b.load_results(group)
    assert list(stored) == list(now) and stored['method'].tolist() == now['method'].tolist()
    assert stored['L1'].tolist() == pytest.approx(now['L1'].tolist(), nan_ok=True)

def test_a_list_is_one_line(tmp_path):
    cell = dict(a=[1., 2., None], b=dict(c=[], d=['x [', '], y', 'z,\n w']), e=[[1, 2], [3, 4]], f=[dict(g=[True])])
    b._write_cell(tmp_path/'c.json', cell)
    assert b._read_cell(tmp_path/'c.json') == cell
    assert '"a": [1.0, 2.0, null],' in (tmp_path/'c.json').read_text()

# --- refusals --------------------------------------------------------------------------------------

REFUSED = [
    (dict(methods={}), 'nothing to run'),
    (dict(tasks=[]), 'nothing to run'),
    (dict(tasks=[task, task]), 'two tasks are called Tiny'),
    (dict(methods=[('a', Mirrored)]*2), 'two methods are called a'),
    (dict(methods={'a': Mirrored(task)}), 'must be a function'),
    (dict(metrics=['Val', 'beauty']), "no metric 'beauty'"),
    (dict(metrics=[]), 'no metric to measure'),
    (dict(at=['end']), 'at takes')]

@pytest.mark.parametrize('args, message', REFUSED)
def test_bad_input(tmp_path, args, message):
    good = dict(methods={'m': Mirrored}, tasks=task, out=tmp_path, metrics=['Val'])
    with pytest.raises(MirrorError, match=message): run(**(good | args))

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(MirrorError, match='cannot be written'): run({'m': Mirrored}, task, tmp_path/'file', ['Val'])
    with pytest.raises(MirrorError, match='no benchmark in'): b.load_results(tmp_path/'nothing')

# --- real tasks ------------------------------------------------------------------------------------

def test_sources_are_what_the_classifier_calls_the_pair():
    t = b.Task('digits', (4, 9))
    s = t.sources()
    with torch.no_grad(): said = t.classifier(s.x).argmax(1)
    assert torch.equal(said, s.source) and set(said.tolist()) == {4, 9}
    assert torch.equal(s.source + s.target, torch.full_like(said, 13))
    assert torch.equal(t.test[s.index][0], s.x) and torch.equal(t.test[s.index][1], s.truth)
    assert torch.equal(b.Task('digits', (4, 9), n=7).sources().x, s.x[:7])
    assert sum(len(i) for _, i in t.directions()) == len(s.x)
    with torch.no_grad(): everyone = t.classifier(t.test[:][0]).argmax(1)
    assert len(s.x) == torch.isin(everyone, torch.tensor([4, 9])).sum()

def test_without_a_pair_targets_are_drawn_and_never_the_own_class():
    a = b.Task('digits', n=200).sources()
    c = b.Task('digits', n=200, seed=1).sources()
    assert (a.source != a.target).all() and set(a.target.tolist()) == set(range(10))
    assert not torch.equal(a.index, c.index)

NO_TASK = [
    (dict(data='cats'), 'no dataset'),
    (dict(data='digits', pair=(4, 4)), 'target'),
    (dict(data='digits', n=0), 'n must be'),
    (dict(data='digits', pair=(4, 9, 1)), 'takes two classes')]

@pytest.mark.parametrize('kw, message', NO_TASK)
def test_a_task_that_is_none(kw, message):
    with pytest.raises(MirrorError, match=message): b.Task(**kw).title

def test_im1_and_im2_take_the_autoencoders_of_each_images_classes(tmp_path, monkeypatch):
    "That of class 0 keeps half of an image, that of class 1 nothing, that of all everything."
    monkeypatch.setattr(b, '_autoencoder', lambda data, size, c=None: lambda x: x*{0: .5, 1: 0., None: 1.}[c])
    t = run({'identity': lambda t: Identity(t.classifier)}, task, tmp_path, ['IM1', 'IM2'], at=['reflection'])
    # x is -1 or 1 everywhere: |x|^2 = |x|_1 = 64; to class 1: 64 far from it, 16 from class 0; to class 0 the reverse
    assert list(t['IM1']) == pytest.approx([4, .25]) and list(t['IM2']) == pytest.approx([1, .25])

# --- the cache of explainers -----------------------------------------------------------------------

@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    clf = b.get_classifier('digits', device='cpu')
    monkeypatch.setattr(b, 'get_classifier', lambda *a, **k: clf)
    monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path))
    return tmp_path/'explainers'

quick = partial(b.get_explainer, 'digits', (4, 9), device='cpu', steps=2, autoencoder_steps=2, student_steps=2)
published = partial(quick, preset='paper')   # trains no autoencoder and no student first

def test_an_explainer_is_trained_once(own_cache, capsys):
    first = quick()
    assert capsys.readouterr().out.startswith('Training an explainer of Digits, classes 4 and 9')
    again = quick()
    src = b.Task('digits', (4, 9), n=2).sources()
    assert capsys.readouterr().out == '' and again.about['train_seconds'] >= 0 and again.about['pair'] == [4, 9]
    paths = [m.explain(src.x, src.target, [0, 1], closed_loop=False).path for m in (first, again)]
    assert torch.allclose(*paths, atol=1e-4)
    assert not list(own_cache.glob('*.part'))
    assert [p.name.startswith('digits-4-9-default-') for p in own_cache.iterdir()] == [True]*3
    quick(seed=1)
    quick(tri=0.)
    assert len([p for p in own_cache.iterdir() if p.is_dir()]) == 3

def test_a_killed_training_goes_on(own_cache, monkeypatch):
    from mirrorcfe.loop import Checkpoint
    saved = []
    after = Checkpoint.after_epoch
    def stop(self):
        after(self)
        saved.append(self.epoch)
        if len(saved) == 1: raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'after_epoch', stop)
    real = b.get_dls
    monkeypatch.setattr(b, 'get_dls', lambda *a, **k: real(*a, **k | dict(steps=1)))
    with pytest.raises(KeyboardInterrupt): quick()
    folders = [p for p in own_cache.iterdir() if p.is_dir()]
    assert list(own_cache.glob('*.part/checkpoint.pt')) and all(p.name.endswith('.part') for p in folders)
    quick()
    assert [e for e in saved if e] == [1] and not list(own_cache.glob('*.part'))

def test_a_damaged_explainer_is_trained_again(own_cache):
    quick()
    next(own_cache.glob('*/nets.safetensors')).write_bytes(b'x')
    with pytest.warns(UserWarning, match='damaged'): quick()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        quick()

def other_images(*a, **kw):
    "The digits, brighter by one."
    dls = get_dls(*a, **kw)
    for loader in dls.loaders: loader.dataset.x = loader.dataset.x.clamp(max=254) + 1
    return dls

def test_an_explainer_of_other_images_is_another_one(own_cache, monkeypatch):
    "The classifier is the same; that the images are not is seen."
    monkeypatch.undo()
    monkeypatch.setenv('MIRRORCFE_CACHE', str(own_cache.parent))
    net = small_resnet(10, 1, (4, 8), 16).freeze()
    first = published(classifier=net, size=16)
    monkeypatch.setattr(b, 'get_dls', other_images)
    monkeypatch.setattr(b, '_fingerprint', lambda data, size: b.data_fingerprint(other_images(data, size=size)))
    other = published(classifier=net, size=16)
    assert hash_of(first.model.G) != hash_of(other.model.G)
    assert len([p for p in own_cache.iterdir() if p.is_dir()]) == 2

def test_images_in_memory_are_those_of_the_folder(tmp_path, capsys):
    "A picture is changed between two calls: neither the images nor their fingerprint are those of before."
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(6): Image.new('L', (8, 8), 40*i).save(tmp_path/c/f'{i}.png')
    def look():
        dls = b._all_classes(f'folder:{tmp_path}', 8)
        return dls, b.data_fingerprint(dls)
    dls, before = look()
    assert look()[0] is dls, 'the same folder is read once'
    Image.new('L', (9, 9), 255).save(tmp_path/'a'/'0.png')
    assert look()[1] != before

@pytest.mark.parametrize('damage', ['cut', 'of another run'])
def test_half_an_explainer_that_cannot_be_gone_on_with_is_begun_again(own_cache, monkeypatch, stop_after, damage):
    "A killed training whose checkpoint is damaged, or of other settings, holds nobody up."
    write = mirrorcfe.loop.write_state
    def dies(path, state):
        write(path, state if damage == 'cut' else state | dict(run=dict(game='Chess')))
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(mirrorcfe.loop, 'write_state', dies)
        with pytest.raises(KeyboardInterrupt): published()
    checkpoint, = own_cache.glob('*.part/checkpoint.pt')
    if damage == 'cut': checkpoint.write_bytes(checkpoint.read_bytes()[:99])
    with pytest.warns(UserWarning, match='training of the explainer begins again: .*checkpoint.pt'): published()
    assert not list(own_cache.glob('*.part'))

NO_SPACE = CannotWrite(errno.ENOSPC, 'No space left on device', 'nets.safetensors')

def fails(*a, **kw): raise NO_SPACE

def test_a_full_cache_does_not_throw_an_explainer_away(own_cache, monkeypatch):
    "The fitted model comes back; the next call keeps it, from the checkpoint of the run."
    clf = b.Task('digits', (4, 9)).classifier   # the same in both caches
    monkeypatch.setattr(MirrorCFE, 'save', fails)
    with pytest.warns(UserWarning, match='the explainer is trained but not kept: .*No space.*MIRRORCFE_CACHE'):
        first = published(classifier=clf)
    x = b.Task('digits', (4, 9), n=2).sources().x
    assert first.explain(x, ks=[0, 1], closed_loop=False).path.isfinite().all()
    monkeypatch.undo()
    monkeypatch.setenv('MIRRORCFE_CACHE', str(own_cache.parent))
    monkeypatch.setattr(mirrorcfe.loop.Turns, 'before_batch', lambda self: pytest.fail('it trains again'))
    monkeypatch.setattr(b, '_fingerprint', lambda *a: '0'*16)
    again = published(classifier=clf)
    assert hash_of(again.model.G) == hash_of(first.model.G) and not list(own_cache.glob('*.part'))

@pytest.mark.parametrize('when', ['full', 'a file in its place'])
def test_a_cache_that_cannot_be_written_does_not_throw_a_baseline_away(tmp_path, monkeypatch, when):
    task = b.Task("digits", (4, 9), n=2)
    clf = task.classifier
    if when == 'full':
        monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path))
        monkeypatch.setattr(CEM, 'save', fails)
    else:
        (tmp_path/'file').touch()
        monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path/'file'))
    with pytest.warns(UserWarning, match='the CEM is trained but not kept: .*MIRRORCFE_CACHE'):
        fitted = b.get_baseline(CEM, task, classifier=clf, steps=2, rounds=1, ae_steps=2)
    assert fitted.about['kind'] == 'CEM' and len(fitted.explain(task.sources().x, task.sources().target)) == 2

def test_a_baseline_is_fitted_once_and_again_where_its_file_is_damaged(tmp_path, monkeypatch):
    task = b.Task("digits", (4, 9), n=2)
    clf = task.classifier
    fits = []
    monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path))
    class Counted(CEM):
        def fit(self, dls, progress=False):
            fits.append(1)
            return super().fit(dls, progress=progress)
    def get(): return b.get_baseline(Counted, task, classifier=clf, steps=2, rounds=1, ae_steps=2)
    get()
    get()
    assert len(fits) == 1 and get().about['preset'] == 'cpu'
    kept, = (p for p in (tmp_path/'baselines').iterdir() if p.suffix not in ('.json', '.lock'))
    kept.write_bytes(kept.read_bytes()[:40])
    with pytest.warns(UserWarning, match='damaged'): get()
    assert len(fits) == 2

def test_a_task_has_the_panel_of_its_data(monkeypatch):
    seen = []
    monkeypatch.setattr(b, 'get_panel', lambda data, size: seen.append((data, size)) or 'panel')
    assert b.Task('digits', (4, 9)).panel == 'panel' and seen == [('digits', None)]
