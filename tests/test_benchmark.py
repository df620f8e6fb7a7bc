"The benchmark on a task small enough for numbers by hand: cells, resuming, failures, tables, and the cache of explainers."
import json, math, warnings
from functools import partial
from pathlib import Path
import pandas as pd, pytest, torch
from torch import nn
from mirrorcfe import benchmark as b
from mirrorcfe.baselines.cem import CEM
from mirrorcfe.baselines.floors import Identity, PixelBlend
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.explanation import two_ended
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet
from mirrorcfe.features import GapClassifier

class Pixels(nn.Module):
    "The left and the right half of an image as two channels."
    def forward(self, x): return torch.cat([x.clone().index_fill(3, torch.arange(4, 8), 0), x.clone().index_fill(3, torch.arange(4), 0)], 1)

def network(gain):
    net = GapClassifier([Pixels()], nn.Linear(2, 2), ['left', 'right'])
    net.head.weight.data, net.head.bias.data = gain*torch.tensor([[1., -1], [-1, 1]]), torch.zeros(2)
    return net.freeze()

class Tiny(b.Task):
    "Ten images, 8 x 8, six bright on the left and four on the right; the classifier reads the brighter half."
    classifier, oracle = network(4.), network(5.)
    title, names = 'Tiny', ['left', 'right']
    @property
    def test(self):
        x = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
        x[:6, :, :, :4], x[6:, :, :, 4:] = 255, 255
        return ImageSet(x, torch.tensor([0]*6 + [1]*4), self.names)
    def sources(self):
        d, s = self.test, torch.tensor([0]*6 + [1]*4)
        return b.Sources(d[:][0], s, 1 - s, d.y, torch.arange(10))

@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setattr(b, '_fingerprint', lambda *a: '0'*16)
    b._real_images.cache_clear()

class Mirrored:
    "Swap the halves; of every batch leave out the images at `absent`."
    def __init__(self, task, absent=()): self.net, self.absent = task.classifier, list(absent)
    def explain(self, x, target, truth=None):
        out = x.flip(3)
        out[[i for i in self.absent if i < len(x)]] = torch.nan
        return two_ended(self.net, x, out, target, truth)

task = Tiny('digits', (0, 1))
run = partial(b.run_benchmark, progress=False)

# --- numbers -----------------------------------------------------------------------------------------------------------------------

def test_numbers_by_hand(tmp_path):
    t = run({'mirrored': Mirrored}, task, tmp_path, [n for n in b.METRICS if n not in ('LPIPS', 'IM1', 'IM2')], bs=3)
    assert list(t['direction']) == ['left->right']*2 + ['right->left']*2 and list(t['N']) == [6, 6, 4, 4] and list(t['end']) == ['first', 'reflection']*2
    for n, want in dict(Val=1, Oracle=1, L1=2, Prox=2, coverage=1).items(): assert list(t[n]) == pytest.approx([want]*4), n
    assert list(t['%Fail']) == [0]*4 and list(t['first k'].dropna()) == [1, 1]
    assert list(t['KID@oracle']) == pytest.approx([0]*4, abs=1e-6) and t[['confidence error', 'feature error']].isna().all(axis=None)
    assert (t['Val low'] == 1).all() and 'FID@oracle low' not in t and (t['seconds a sample'] > 0).all() and (t['passes'] > 0).all()
    assert not t['flag'].any() and (t['status'] == 'ok').all()

def test_absent_images_count_where_successes_are_counted(tmp_path):
    t = run({'half': lambda t: Mirrored(t, [0])}, task, tmp_path, ['Val', '%Fail', 'L1', 'Oracle', 'FID', 'KID'], at=['reflection'], bs=2)
    assert list(t['coverage']) == [.5, .5] and list(t['Val']) == [.5, .5] and list(t['L1']) == [2, 2] and list(t['%Fail']) == [50, 50]
    cell = b.load_cells(tmp_path)[0]['rows']['reflection']['metrics']
    assert cell['L1']['n'] == 3 and cell['L1']['coverage'] == .5 and cell['Val']['n'] == 6 and cell['FID@oracle']['n'] == 3
    assert '| 0.500 |' in b.markdown_table(t) and 'coverage' in b.markdown_table(t)

def test_nothing_found_is_a_row_of_zeros_and_dashes(tmp_path):
    t = run({'none': lambda t: Mirrored(t, range(6))}, task, tmp_path, ['Val', 'L1', 'FID', 'KID', 'COUT', 'first k'], bs=64)
    assert list(t['Val'])[:2] == [0, 0] and t['L1'][:2].isna().all() and t['FID@oracle'][:2].isna().all() and list(t['coverage'])[:2] == [0, 0]

def test_the_flag_needs_validity_and_disbelief(tmp_path):
    class Deaf(Tiny): oracle = network(-5.)
    Deaf.oracle.accuracy = 0.
    sees = Deaf('digits', (0, 1))
    right = b._real_images(sees, (1,))[1]
    assert right == 0   # an oracle that is never right cannot disbelieve
    assert not run({'mirrored': Mirrored}, sees, tmp_path, ['Val', 'Oracle'])['flag'].any()
    assert b.is_adversarial(1, .69) and not b.is_adversarial(1, .71) and not b.is_adversarial(.89, 0) and not b.is_adversarial(1, .3, at_end=False)

# --- one measurer ---------------------------------------------------------------------------------------------------------------------

measure = partial(b.measure, classifier=Tiny.classifier, oracle=Tiny.oracle)
X, S = task.sources().x, task.sources().source

def test_measure_is_what_the_benchmark_writes(tmp_path):
    names = ['Val', 'L1', 'COUT', 'FID', 'Oracle']
    run({'half': lambda t: Mirrored(t, [0])}, task, tmp_path, names, bs=2)
    cell = b.load_cells(tmp_path)[0]
    left = S == 0
    got = measure(Mirrored(task, [0]), X[left], 1, real=X[S == 1], metrics=names, bs=2)
    assert json.loads(json.dumps(got)) == got   # plain data
    assert {n: got[n] for n in ('rows', 'curves', 'oracle_on_real')} == {n: cell[n] for n in ('rows', 'curves', 'oracle_on_real')}
    assert (got['images'], got['already'], got['left_out']) == (6, 0, {})

def test_one_target_for_all_or_one_each():
    both, each = (measure(Mirrored(task), X[S == 0], t, metrics=['Val', 'L1']) for t in (1, torch.ones(6, dtype=torch.long)))
    assert both == each
    with pytest.raises(MirrorError, match='3 targets for 6 images'): measure(Mirrored(task), X[S == 0], torch.ones(3, dtype=torch.long))

class Chooser:
    "A method that goes to the other half where no target is given, and marks images that are there already."
    def __init__(self): self.seen = []
    def explain(self, x, target, truth=None, ks=None):
        self.seen.append((len(x), ks))
        ex = two_ended(task.classifier, x, x.flip(3), 1 - task.classifier(x).argmax(1) if target is None else target, truth)
        same = ex.source == ex.target
        ex.path[same], ex.achieved_probs[same] = torch.nan, torch.nan
        return ex

def test_the_method_may_choose_and_gets_its_arguments():
    method, done = Chooser(), []
    got = measure(method, X, None, metrics=['Val', 'L1'], bs=4, progress=lambda i, n: done.append((i, n)), ks=[0, 1])
    assert got['images'] == 10 and got['rows']['reflection']['metrics']['Val']['mean'] == 1
    assert method.seen == [(4, [0, 1]), (4, [0, 1]), (2, [0, 1])] and done == [(4, 10), (8, 10), (10, 10)]

def test_images_that_are_their_target_already_are_no_failures():
    got = measure(Chooser(), X, 1, metrics=['Val', 'L1', '%Fail'], bs=3)   # six have a way to go, four are there
    row = got['rows']['reflection']
    assert (got['images'], got['already']) == (6, 4) and row['coverage'] == 1
    assert [row['metrics'][n]['mean'] for n in ('Val', 'L1', '%Fail')] == [1, 2, 0] and row['metrics']['Val']['n'] == 6
    nothing = measure(Chooser(), X[S == 1], 1, metrics=['Val', 'FID'], real=X[S == 1])
    assert nothing['images'] == 0 and nothing['rows']['first']['coverage'] is None and nothing['rows']['first']['metrics']['Val']['mean'] is None
    assert nothing['curves'] is None

def test_values_of_every_image():
    got = measure(Mirrored(task, [0]), X[S == 0], 1, metrics=['Val', 'L1', 'first k', 'FID'], real=X[S == 1], bs=3, per_image=True)['values']
    assert got['first']['Val'] == [0, 1, 1, 0, 1, 1] and got['first']['L1'] == [None, 2, 2, None, 2, 2]
    assert got['first']['first k'] == [None, 1, 1, None, 1, 1] and set(got['reflection']) == {'Val', 'L1'}

def test_what_a_metric_needs_and_does_not_get_is_left_out_and_named():
    got = b.measure(Mirrored(task), X[S == 0], 1, task.classifier, None, metrics=['Val', 'Oracle', 'FID', 'IM1'], real=X[S == 1])
    assert got['left_out'] == {'Oracle': 'needs oracle', 'FID@oracle': 'needs oracle', 'IM1': 'needs autoencoder'}
    assert list(got['rows']['first']['metrics']) == ['Val'] and got['rows']['reflection']['flag'] == ''
    assert 'FID@oracle' in measure(Mirrored(task), X[S == 0], 1)['left_out']

def test_autoencoders_are_an_argument():
    asked = []
    def autoencoder(c):
        asked.append(c)
        return lambda x: x*{0: .5, 1: 0., None: 1.}[c]
    got = measure(Identity(task.classifier), X[S == 0], 1, metrics=['IM1', 'IM2'], at=['reflection'], autoencoder=autoencoder)
    assert [got['rows']['reflection']['metrics'][n]['mean'] for n in ('IM1', 'IM2')] == pytest.approx([4, 1]) and set(asked) == {0, 1, None}

def test_the_flag_knows_what_the_oracle_can_see():
    deaf = network(-5.)   # calls left what is right
    flag = lambda real: b.measure(Mirrored(task), X[S == 0], 1, task.classifier, deaf, metrics=['Val', 'Oracle'], real=real)['rows']['reflection']['flag']
    assert flag(None) == 'adversarial' and flag(X[S == 1]) == ''   # never right about real images of the class: it cannot disbelieve
    assert flag(b.see_real(task.oracle, X[S == 1], 1)) == 'adversarial'

def test_real_images_by_labels_or_by_the_classes_asked_for():
    assert b.see_real(task.oracle, X, S).accuracy == 1 and b.see_real(task.oracle, X, 1).accuracy == pytest.approx(.4)
    assert b.see_real(task.oracle, X, [0, 1]).accuracy == 1 and b.see_real(task.oracle, X, 1 - S).accuracy == 0

def test_a_seed_repeats_what_is_random_and_leaves_the_callers_draws_alone():
    class Noisy(Mirrored):
        def explain(self, x, target, truth=None): return two_ended(self.net, x, (x.flip(3) + .1*torch.randn_like(x)).clamp(-1, 1), target, truth)
    before = torch.get_rng_state()
    a, c, d = (measure(Noisy(task), X[S == 0], 1, metrics=['L1'], seed=s) for s in (0, 0, 1))
    assert a == c and a['rows']['first']['metrics']['L1']['mean'] != d['rows']['first']['metrics']['L1']['mean']
    assert torch.equal(before, torch.get_rng_state())

# --- the border that a dataset adds ---------------------------------------------------------------------------------------------------

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
    monkeypatch.setattr(b, 'lpips_distance', lambda x, x_cf, reduction: seen.append((x.shape, x_cf[0, 0, 0, 0].item())) or torch.zeros(len(x)))
    measure(Rings(), torch.full((2, 1, 8, 8), -.5), 1, metrics=['LPIPS'], at=['reflection'], border=2)
    assert seen == [((2, 1, 4, 4), pytest.approx(-.2))]

def test_the_border_of_a_task_reaches_the_numbers(tmp_path):
    class Bordered(Tiny): border = 2
    tables = [run({'rings': lambda t: Rings()}, kind('digits', (0, 1)), tmp_path/kind.__name__, ['L1'], at=['reflection'])
              for kind in (Tiny, Bordered)]
    assert [t['L1'][0] for t in tables] == pytest.approx([15/8/10, 3.25/10])

BORDERS = [('mnist', None, 2), ('mnist', 64, 4), ('fashion_mnist', None, 2), ('digits', None, 0), ('bloodmnist', None, 2), ('celeba_hq', 64, 0)]

@pytest.mark.parametrize('data, size, border', BORDERS)
def test_border_of_the_datasets(data, size, border): assert b.Task(data, size=size).border == border

# --- cells ---------------------------------------------------------------------------------------------------------------------------

class Counting:
    "A function of a task that notes its calls and dies after so many images."
    fingerprint = staticmethod(lambda: 'counting')
    def __init__(self, dies=math.inf): self.made, self.seen, self.dies = 0, 0, dies
    def __call__(self, task):
        self.made += 1
        net, me = Mirrored(task), self
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

@pytest.mark.parametrize('change', [dict(metrics=['Val', 'L1']), dict(seed=1), dict(at=['first'])])
def test_other_settings_are_computed_again(tmp_path, change):
    c = Counting()
    for kw in (dict(metrics=['Val']), dict(metrics=['Val']) | change): run({'c': c}, task, tmp_path, **kw)
    assert c.seen == 20 and len(b.load_cells(tmp_path)) == 2

@pytest.mark.parametrize('damage', [lambda s: s[:50], lambda s: '', lambda s: s.replace('"N": 6', '"N": 7'), lambda s: '[]'])
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
    assert list(t['status'])[:4] == ['failed: no way']*4 and t['status'][4].startswith('failed: 6 images were asked for, 1') and list(t['Val'])[8:] == [1]*4
    assert 'failed: no way' in (tmp_path/'results.md').read_text()
    assert (run({'picky': Mirrored}, task, tmp_path, ['Val'])['Val'] == 1).all()

def test_provenance_is_in_cell_and_file(tmp_path):
    run({'m': Mirrored}, task, tmp_path, ['Val'])
    about = b.load_cells(tmp_path)[0]['about']
    assert about['classifier'] == task.classifier.fingerprint() and about['torch'] == torch.__version__ and about['settings']['data'] == 'digits'
    head = (tmp_path/'results.md').read_text()
    for n in ('data_fingerprint', 'classifier', 'oracle', 'date', 'mirrorcfe'): assert str(about[n]) in head

def test_a_method_is_known_by_what_it_does():
    a, c = 5, lambda steps: lambda t: PGD(t.classifier, steps=steps)
    assert b.method_fingerprint(c(5)) == b.method_fingerprint(c(5)) != b.method_fingerprint(c(6))
    assert b.method_fingerprint(partial(b.get_explainer, 'digits')) != b.method_fingerprint(partial(b.get_explainer, 'mnist'))
    assert b.method_fingerprint(lambda t: [PGD(t, eps=a) for _ in 'a']) != b.method_fingerprint(lambda t: [PGD(t, alpha=a) for _ in 'a'])

# --- tables ---------------------------------------------------------------------------------------------------------------------------

def test_csv_and_markdown_say_the_same(tmp_path):
    run({'m': Mirrored, 'half': lambda t: Mirrored(t, [0])}, task, tmp_path, ['Val', 'L1', 'FID', 'COUT'], bs=2)
    csv, text = pd.read_csv(tmp_path/'results.csv'), (tmp_path/'results.md').read_text().splitlines()
    head = next(i for i, l in enumerate(text) if l.startswith('| method'))
    names = [n.strip(' |').split(' ')[0] for n in text[head].split(' | ')]
    rows = [dict(zip(names, (v.strip(' |') for v in l.split(' | ')))) for l in text[head + 2:head + 2 + len(csv)]]
    for got, want in zip(rows, csv.to_dict('records')):
        for n in ('Val', 'L1', 'FID@oracle', 'COUT'):
            number = got[n].split(' ')[0].rstrip('*')
            assert float(number) == pytest.approx(want[n], rel=.06, abs=5e-4) if want[n] == want[n] else number == '–'
        assert (got['method'], got['direction'], got['end']) == (want['method'], want['direction'], want['end'])

def test_published_numbers_are_there():
    assert set(b.PUBLISHED) == {'main', 'faithfulness', 'fail', 'tri', 'c3lt', 'seconds', 'accuracy'} and len(b.PUBLISHED['main']) == 17
    for t in b.PUBLISHED.values(): assert t.attrs['source'] and not t.isna().any(axis=None) and b.markdown_table(t)
    assert b.PUBLISHED['main'].set_index(['data', 'row']).loc[('MNIST', 'PGD'), 'D.Val'] == .74

# --- stored results -------------------------------------------------------------------------------------------------------------------

STORED = Path(__file__).resolve().parent.parent/'benchmarks'/'results'
GROUPS = sorted(f.parent for f in STORED.glob('reproduction/*/cells'))

def test_there_are_stored_results():
    assert {g.name for g in GROUPS} >= {'main', 'colour', 'paper', 'prox', 'floors', 'multi', 'ssc', 'tri', 'pgd', 'methods', 'c3lt'}
    assert len(list(STORED.glob('reproduction/*/cells/*'))) == len(list(STORED.glob('reproduction/*/cells/*.json')))
    assert sum(f.stat().st_size for f in STORED.rglob('*.png')) < 2.5e6

@pytest.mark.parametrize('group', GROUPS, ids=lambda g: g.name)
def test_every_stored_cell_is_read_and_the_tables_are_of_the_cells(group):
    with warnings.catch_warnings():
        warnings.simplefilter('error')   # of damaged cells
        cells = b.load_cells(group)
    files = sorted((group/'cells').glob('*.json'))
    assert len(cells) == len(files) > 0
    for cell, file in ((json.loads(f.read_text()), f) for f in files):
        who = [cell['task'], cell['method'], cell['direction']]
        assert file.name.endswith(f'-{b._short_hash(who)[:6]}.json') and cell['status'] == 'ok'
        assert len(file.read_text().splitlines()) < 400   # a curve of a hundred steps is one line
    stored, now = pd.read_csv(group/'results.csv'), b.load_results(group)
    assert list(stored) == list(now) and stored['method'].tolist() == now['method'].tolist()
    assert stored['L1'].tolist() == pytest.approx(now['L1'].tolist(), nan_ok=True)

def test_a_list_is_one_line(tmp_path):
    cell = dict(a=[1., 2., None], b=dict(c=[], d=['x [', '], y', 'z,\n w']), e=[[1, 2], [3, 4]], f=[dict(g=[True])])
    b._write_cell(tmp_path/'c.json', cell)
    assert b._read_cell(tmp_path/'c.json') == cell
    assert '"a": [1.0, 2.0, null],' in (tmp_path/'c.json').read_text()

# --- refusals ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('args, message', [
    (dict(methods={}), 'nothing to run'), (dict(tasks=[]), 'nothing to run'), (dict(tasks=[task, task]), 'two tasks are called Tiny'),
    (dict(methods=[('a', Mirrored)]*2), 'two methods are called a'), (dict(methods={'a': Mirrored(task)}), 'must be a function'),
    (dict(metrics=['Val', 'beauty']), "no metric 'beauty'"), (dict(metrics=[]), 'no metric to measure'), (dict(at=['end']), 'at takes')])
def test_bad_input(tmp_path, args, message):
    with pytest.raises(MirrorError, match=message): run(**(dict(methods={'m': Mirrored}, tasks=task, out=tmp_path, metrics=['Val']) | args))

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(MirrorError, match='cannot be written'): run({'m': Mirrored}, task, tmp_path/'file', ['Val'])
    with pytest.raises(MirrorError, match='no benchmark in'): b.load_results(tmp_path/'nothing')

# --- real tasks -----------------------------------------------------------------------------------------------------------------------

def test_sources_are_what_the_classifier_calls_the_pair():
    t = b.Task('digits', (4, 9))
    s = t.sources()
    with torch.no_grad(): said = t.classifier(s.x).argmax(1)
    assert torch.equal(said, s.source) and set(said.tolist()) == {4, 9} and torch.equal(s.source + s.target, torch.full_like(said, 13))
    assert torch.equal(t.test[s.index][0], s.x) and torch.equal(t.test[s.index][1], s.truth)
    assert torch.equal(b.Task('digits', (4, 9), n=7).sources().x, s.x[:7]) and sum(len(i) for _, i in t.directions()) == len(s.x)
    with torch.no_grad(): everyone = t.classifier(t.test[:][0]).argmax(1)
    assert len(s.x) == torch.isin(everyone, torch.tensor([4, 9])).sum()

def test_without_a_pair_targets_are_drawn_and_never_the_own_class():
    a, c = b.Task('digits', n=200).sources(), b.Task('digits', n=200, seed=1).sources()
    assert (a.source != a.target).all() and set(a.target.tolist()) == set(range(10)) and not torch.equal(a.index, c.index)

@pytest.mark.parametrize('kw, message', [(dict(data='cats'), 'no dataset'), (dict(data='digits', pair=(4, 4)), 'target'), (dict(data='digits', n=0), 'n must be'),
                                         (dict(data='digits', pair=(4, 9, 1)), 'takes two classes')])
def test_a_task_that_is_none(kw, message):
    with pytest.raises(MirrorError, match=message): b.Task(**kw).title

def test_im1_and_im2_take_the_autoencoders_of_each_images_classes(tmp_path, monkeypatch):
    "That of class 0 keeps half of an image, that of class 1 nothing, that of all everything."
    monkeypatch.setattr(b, '_autoencoder', lambda data, size, c=None: lambda x: x*{0: .5, 1: 0., None: 1.}[c])
    t = run({'identity': lambda t: Identity(t.classifier)}, task, tmp_path, ['IM1', 'IM2'], at=['reflection'])
    # x is -1 or 1 everywhere: |x|^2 = |x|_1 = 64; to class 1: far from it 64, from class 0 16; to class 0 the other way round
    assert list(t['IM1']) == pytest.approx([4, .25]) and list(t['IM2']) == pytest.approx([1, .25])

# --- the cache of explainers ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    clf = b.get_classifier('digits', device='cpu')
    monkeypatch.setattr(b, 'get_classifier', lambda *a, **k: clf)
    monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path))
    return tmp_path/'explainers'

quick = partial(b.get_explainer, 'digits', (4, 9), device='cpu', steps=2)

def test_an_explainer_is_trained_once(own_cache, capsys):
    first = quick()
    assert capsys.readouterr().out.startswith('Training an explainer of Digits, classes 4 and 9')
    again, x = quick(), b.Task('digits', (4, 9), n=2).sources()
    assert capsys.readouterr().out == '' and again.about['train_seconds'] >= 0 and again.about['pair'] == [4, 9]
    assert torch.allclose(*(m.explain(x.x, x.target, [0, 1], closed_loop=False).path for m in (first, again)), atol=1e-4)
    assert not list(own_cache.glob('*.part')) and [p.name.startswith('digits-4-9-robust-') for p in own_cache.iterdir()] == [True]*3
    quick(seed=1), quick(tri=0.)
    assert len([p for p in own_cache.iterdir() if p.is_dir()]) == 3

def test_a_killed_training_goes_on(own_cache, monkeypatch):
    from mirrorcfe.game import Checkpoint
    saved, after = [], Checkpoint.after_epoch
    def stop(self):
        after(self)
        saved.append(self.epoch)
        if len(saved) == 1: raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'after_epoch', stop)
    real = b.get_dls
    monkeypatch.setattr(b, 'get_dls', lambda *a, **k: real(*a, **k | dict(steps=1)))
    with pytest.raises(KeyboardInterrupt): quick()
    assert list(own_cache.glob('*.part/checkpoint.pt')) and not [p for p in own_cache.iterdir() if p.is_dir() and not p.name.endswith('.part')]
    quick()
    assert [e for e in saved if e] == [1] and not list(own_cache.glob('*.part'))

def test_a_damaged_explainer_is_trained_again(own_cache):
    quick()
    next(own_cache.glob('*/nets.safetensors')).write_bytes(b'x')
    with pytest.warns(UserWarning, match='damaged'): quick()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        quick()

def test_a_baseline_is_fitted_once_and_again_where_its_file_is_damaged(tmp_path, monkeypatch):
    task = b.Task("digits", (4, 9), n=2)
    clf, fits = task.classifier, []
    monkeypatch.setenv('MIRRORCFE_CACHE', str(tmp_path))
    class Counted(CEM):
        def fit(self, dls, progress=False): fits.append(1); return super().fit(dls, progress=progress)
    get = lambda: b.get_baseline(Counted, task, classifier=clf, steps=2, rounds=1, ae_steps=2)
    get(); get()
    assert len(fits) == 1 and get().about['preset'] == 'cpu'
    kept, = (p for p in (tmp_path/'baselines').iterdir() if p.suffix not in ('.json', '.lock'))
    kept.write_bytes(kept.read_bytes()[:40])
    with pytest.warns(UserWarning, match='damaged'): get()
    assert len(fits) == 2
