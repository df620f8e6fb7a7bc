"Full disks, damaged files, broken training: nothing half-written, nothing lost, a message that says what to do."
import errno, json, os, re
from pathlib import Path
import pytest, torch
import mirrorcfe.game, mirrorcfe.loop, mirrorcfe.storage
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.storage import write_json, write_tensors
from processes import Started

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

def loaders(**kw): return get_dls('digits', **{'bs': 8, 'steps': 2, 'size': 16, 'device': 'cpu'} | kw)

@pytest.fixture(scope='module')
def clf():
    torch.manual_seed(0)
    return small_resnet(10, 1, (4, 6, 8), 16).freeze()

@pytest.fixture(scope='module')
def cfe(clf):
    return MirrorCFE(clf, amp=False, steps=2, autoencoder_steps=2, student_steps=2).fit(loaders(), progress=False)

def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')

def tree(path): return sorted(p.relative_to(path).as_posix() for p in Path(path).rglob('*'))

# --- saving ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('what', ['save_file', 'rename'])
def test_a_full_disk_leaves_nothing(cfe, tmp_path, monkeypatch, what):
    monkeypatch.setattr(mirrorcfe.storage if what == 'save_file' else os, what, full)
    with pytest.raises(MirrorError, match='No space left.*nothing was kept'): cfe.save(tmp_path/'e')
    assert tree(tmp_path) == []

def test_a_full_disk_in_the_middle(cfe, tmp_path, monkeypatch):
    "The weights are written, the description is not."
    write = Path.write_text
    def fails(self, *a, **kw): return full() if self.name == 'about.json' else write(self, *a, **kw)
    monkeypatch.setattr(Path, 'write_text', fails)
    with pytest.raises(MirrorError, match='No space left'): cfe.save(tmp_path/'e')
    assert tree(tmp_path) == []

LIMITED = """
import sys, resource, signal, torch
from test_failures import loaders, small_resnet, MirrorCFE
torch.manual_seed(0)
clf = small_resnet(10, 1, (4, 6, 8), 16).freeze()
fitted = MirrorCFE(clf, amp=False, steps=2, autoencoder_steps=2, student_steps=2).fit(loaders(), progress=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
def says(f):
    try: f()
    except BaseException as e: print(type(e).__name__, e)
    else: print('nothing')
says(lambda: fitted.save(sys.argv[1] + '/e'))
cfe = MirrorCFE(clf, amp=False, steps=4, autoencoder_steps=2, student_steps=2)
says(lambda: cfe.fit(loaders(), folder=sys.argv[1] + '/f', progress=False))
"""

@pytest.fixture(scope='module')
def limited(tmp_path_factory):
    "A process whose files may not grow beyond 20 kB saves and trains: what a disk that fills up does, for real."
    pytest.importorskip('resource')
    folder = tmp_path_factory.mktemp('limited')
    run = Started(LIMITED, [folder], folder/'said')
    assert run.wait() == 0, run.said
    return folder, *run.said.splitlines()

def test_a_file_that_cannot_grow(limited):
    folder, said, _ = limited
    assert 'MirrorError' in said or 'CannotWrite' in said, said
    assert 'cannot write' in said and 'nothing was kept' in said and not (folder/'e').exists(), said

def test_a_training_whose_files_cannot_grow(limited):
    folder, _, said = limited
    assert 'MirrorError' in said and 'cannot write to' in said and 'no checkpoint yet' in said, said
    assert not list(folder.rglob('*.part'))

def test_the_parent_cannot_be_written(cfe, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    with pytest.raises(MirrorError, match='cannot write'): cfe.save(tmp_path/'file'/'e')
    def refuse(self, *a, **kw): raise PermissionError(errno.EACCES, 'Permission denied', str(self))
    monkeypatch.setattr(Path, 'mkdir', refuse)
    with pytest.raises(MirrorError, match='Permission denied.*a folder that can be written'): cfe.save(tmp_path/'e')
    assert tree(tmp_path) == ['file']

def test_what_is_there_stays(cfe, tmp_path):
    (tmp_path/'file').write_text('mine')
    (tmp_path/'folder').mkdir()
    (tmp_path/'link').symlink_to('nowhere')
    for kind in ('file', 'folder', 'link'):
        with pytest.raises(MirrorError, match='exists: give another folder'): cfe.save(tmp_path/kind)
    assert (tmp_path/'file').read_text() == 'mine' and tree(tmp_path) == ['file', 'folder', 'link']

# --- loading ---------------------------------------------------------------------------------------------------------

def change(path, **kw):
    "Write the description again, with changes: a whole file of another content."
    about = json.loads((path/'about.json').read_text()) | kw
    write_json(path/'about.json', {k: v for k, v in about.items() if v != 'gone' and k != 'check'})

def cut(path, name, share=.5):
    data = (path/name).read_bytes()
    (path/name).write_bytes(data[:int(share*len(data))])

class Evil:
    def __reduce__(self): return os.mkdir, ('executed',)

ABOUT, NETS = 'about.json', 'nets.safetensors'
CASES = {'no json': (lambda p: (p/ABOUT).unlink(), 'about.json is missing'),
         'no weights': (lambda p: (p/NETS).unlink(), 'nets.safetensors: the file is missing'),
         'half a json': (lambda p: cut(p, ABOUT), 'about.json is damaged'),
         'half the weights': (lambda p: cut(p, NETS), 'nets.safetensors is damaged'),
         'one byte less': (lambda p: cut(p, NETS, .9999), 'nets.safetensors is damaged'),
         'empty weights': (lambda p: cut(p, NETS, 0), 'nets.safetensors is damaged'),
         'binary json': (lambda p: (p/ABOUT).write_bytes(b'\xff\xfe\x00'), 'about.json is damaged'),
         'a foreign json': (lambda p: (p/ABOUT).write_text('{"model": "resnet"}'), 'about.json is damaged'),
         'a list': (lambda p: (p/ABOUT).write_text('[1, 2]'), 'about.json is damaged'),
         'a pickle': (lambda p: torch.save(Evil(), p/NETS), 'nets.safetensors is damaged'),
         'a later format': (lambda p: change(p, format=99), 'found MirrorCFE in format 99'),
         'another method': (lambda p: change(p, kind='CycleGAN'), 'found CycleGAN in format'),
         'a field of another version': (lambda p: change(p, recipe={'magic': 1}), 'describes no explainer of'),
         'no recipe': (lambda p: change(p, recipe='gone'), "describes no explainer of this version ('recipe')"),
         'shapes of no kind': (lambda p: change(p, shapes='x'), 'describes no explainer of this version'),
         'other shapes': (lambda p: change(p, shapes=[[4, 8], [6, 4]]), 'do not fit together'),
         'another classifier': (lambda p: change(p, classifier='0'*16), 'was trained for classifier 0000'),
         'foreign weights': (lambda p: write_tensors(p/NETS, {'w': torch.zeros(2)}), 'do not fit together')}

@pytest.mark.parametrize('case', CASES)
def test_files_that_are_not_whole_are_refused_by_name(cfe, clf, tmp_path, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = cfe.save(tmp_path/'e')
    spoil, says = CASES[case]
    spoil(path)
    with pytest.raises(MirrorError, match=re.escape(says)): MirrorCFE.load(path, clf)
    assert not (tmp_path/'executed').exists()

def test_a_sound_one_is_read(cfe, clf, tmp_path):
    back = MirrorCFE.load(cfe.save(tmp_path/'e'), clf)
    assert same(back.model.G.state_dict(), cfe.model.G.state_dict())
    about = json.loads((tmp_path/'e/about.json').read_text())
    assert about['classes'] == clf.classes and about['classifier'] == clf.fingerprint()
    assert about['version'] and about['torch']

# --- training --------------------------------------------------------------------------------------------------------

def same(a, b): return all(torch.equal(a[n], b[n]) for n in a)

@pytest.fixture
def fit(clf):
    "A function that trains three epochs of two steps in a folder, or as long as `steps` says."
    def run(folder, steps=6, **kw):
        return MirrorCFE(clf, amp=False, steps=steps, **SHORT, **kw).fit(loaders(), folder=folder, progress=False)
    return run

class Losses:
    "In the place of the game's loss: it counts, and returns NaN from call `last` on."
    def __init__(self, last=None):
        self.loss = mirrorcfe.game.Game.weighted_loss
        self.last = last
        self.calls = 0
    def __call__(self, *args):
        self.calls += 1
        return self.loss(*args)*(1 if self.last is None or self.calls <= self.last else float('nan'))

def state_of(folder): return torch.load(folder/'checkpoint.pt', weights_only=True)

def same_generator(cfe, folder):
    "Whether an explainer has the averaged generator of a checkpoint."
    state = state_of(folder)
    kept = {n.removeprefix('mirror.'): state['average'][f'module.{n}'] for n in state['G']}
    return same(kept, cfe.model.G.state_dict())

def test_nan_stops_with_the_last_good_checkpoint(clf, fit, tmp_path, monkeypatch):
    "Two epochs of two steps and their validation pass; the third breaks."
    counted = Losses()
    with monkeypatch.context() as m:
        m.setattr(mirrorcfe.game.Game, 'weighted_loss', lambda *a: counted(*a))
        fit(tmp_path/'whole')
    broken = Losses(last=counted.calls*2//3)
    cfe = MirrorCFE(clf, amp=False, steps=6, **SHORT)
    with monkeypatch.context() as m:
        m.setattr(mirrorcfe.game.Game, 'weighted_loss', lambda *a: broken(*a))
        says = '(?s)the loss is nan in epoch 2: lower lr=0.001.*keeps the generator of epoch 2'
        with pytest.raises(MirrorError, match=says):
            cfe.fit(loaders(), folder=tmp_path/'f', progress=False)
    state = state_of(tmp_path/'f')
    assert state['epoch'] == 1 and all(v.isfinite().all() for v in state['G'].values() if v.is_floating_point())
    assert same_generator(cfe, tmp_path/'f')
    assert cfe.explain(loaders().test.one_batch()[0][:2], ks=[0, 1]).path.isfinite().all()
    cfe.save(tmp_path/'e')
    says = 'belongs to another run.*give another folder, or delete it'
    with pytest.raises(MirrorError, match=says): fit(tmp_path/'f', lr=1e-4)
    assert state_of(tmp_path/'f')['epoch'] == 1
    assert same_generator(fit(tmp_path/'f'), tmp_path/'whole'), 'the cause is gone: it goes on'

def test_nan_at_once_keeps_nothing(clf, tmp_path):
    cfe = MirrorCFE(clf, amp=False, steps=2, prox=float('nan'), **SHORT)
    with pytest.raises(MirrorError, match='lower lr=') as e: cfe.fit(loaders(), folder=tmp_path/'f', progress=False)
    assert 'keeps the generator' not in str(e.value) and cfe.model is None and not (tmp_path/'f/checkpoint.pt').exists()

DISK_ERRORS = {'of the system': OSError(errno.ENOSPC, 'No space left on device'),
               'of torch': RuntimeError('PytorchStreamWriter failed writing file data/3: file write failed')}

@pytest.mark.parametrize('error', DISK_ERRORS)
def test_a_disk_that_fills_while_training(fit, tmp_path, monkeypatch, error):
    save, calls = torch.save, []
    def second_fails(state, f, *a, **kw):
        calls.append(f)
        if len(calls) == 2:
            Path(f).write_bytes(b'half of it')
            raise DISK_ERRORS[error]
        return save(state, f, *a, **kw)
    monkeypatch.setattr(torch, 'save', second_fails)
    with pytest.raises(MirrorError, match='(?s)cannot write to .*checkpoint of epoch 1 is whole'): fit(tmp_path/'f')
    assert state_of(tmp_path/'f')['epoch'] == 0 and not list((tmp_path/'f').glob('.*.part'))
    assert fit(tmp_path/'f').model is not None and len(calls) == 4, 'two more epochs, not three'

def test_an_error_of_the_data_is_not_one_of_the_disk(clf, tmp_path, monkeypatch):
    "A missing image is reported as that, also where a folder is written."
    def gone(*a): raise FileNotFoundError(errno.ENOENT, 'No such file or directory', 'image.png')
    monkeypatch.setattr(mirrorcfe.game.Game, 'weighted_loss', gone)
    cfe = MirrorCFE(clf, amp=False, **SHORT)
    with pytest.raises(FileNotFoundError, match='image.png'): cfe.fit(loaders(), folder=tmp_path/'f', progress=False)

def test_a_folder_that_cannot_be_written_is_said_before_training(fit, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    trained = []
    monkeypatch.setattr(mirrorcfe.loop.Turns, 'before_batch', lambda self: trained.append(1))
    for folder in (tmp_path/'file', tmp_path/'file/f'):
        with pytest.raises(MirrorError, match='cannot write to'): fit(folder)
    assert trained == [] and (tmp_path/'file').read_text() == ''

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_folder(fit, cfe, tmp_path):
    (tmp_path/'f').mkdir(mode=0o500)
    with pytest.raises(MirrorError, match='cannot write to'): fit(tmp_path/'f')
    with pytest.raises(MirrorError, match='cannot write'): cfe.save(tmp_path/'f/e')
