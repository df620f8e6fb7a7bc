"Two processes with half of each batch train what one trains with the whole of it: Mirror-CFE and the baselines."
import csv, socket
import pytest, torch
from mirrorcfe import loop
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.distributed import ProcessGroup
from mirrorcfe.training import mirror_learner
from processes import Started

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

START = """
import os, sys, torch
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.data import get_dls
how, folder, out = sys.argv[1:]
torch.Tensor.float = torch.Tensor.double      # nothing on the way is rounded to single precision
torch.set_num_threads(1)
torch.manual_seed(7)
torch.set_default_dtype(torch.double)
torch.set_default_dtype = lambda dtype: None    # and no training goes back to single precision
clf = small_resnet(widths=(8, 16), size=16).double()
def keep(learn, start):
    left = [m for m in learn.model.modules() if type(m).__name__ == '_WholeBatchNorm' or m._forward_pre_hooks]
    assert not left, 'batch norm and hooks are what they were'
    state = dict(start=start, G=learn.model.G.state_dict(), D=learn.model.D.state_dict())
    torch.save(state, f"{out}.{os.environ['RANK']}.{type(learn.model).__name__}")
"""
MIRROR = START + """
from mirrorcfe.training import mirror_learner
dls = get_dls('digits', bs=8, n_train=64, steps=2, size=16, device='cpu')
learn = mirror_learner(clf, dls, amp=False, folder=folder, steps=4, ramp=0., autoencoder_steps=2, student_steps=2)
start = {n: v.clone() for n, v in learn.model.G.state_dict().items()}
if how == 'fastai':
    import fastai.distributed
    with learn.distrib_ctx(cpu=True):
        learn.fit_game(progress=False)
        assert len([c for c in learn.cbs if type(c).__name__ == 'DistributedTrainer']) == 1
else: learn.fit_game(progress=False)
keep(learn, start)
"""
BASELINES = START + """
from mirrorcfe.baselines.explaingan import ExplainGAN
from mirrorcfe.baselines.c3lt import DCGAN
from mirrorcfe.baselines.cyclegan import CycleGAN
dls = get_dls('digits', n_train=200, size=16, device='cpu')
kinds = ((DCGAN, None, dict(width=4)), (ExplainGAN, (4, 9), dict(width=4, z=6)),
         (CycleGAN, (4, 9), dict(width=4, blocks=1, pool=3)))
for kind, pair, sizes in kinds:
    method = kind(clf, 'cpu', pair, steps=3, bs=8, **sizes)
    start = {n: v.clone() for n, v in method.new_game(1, 16).G.state_dict().items()}
    method.fit(dls, folder=f'{folder}/{kind.__name__}', progress=False)
    keep(method.learn, start)
"""

def processes(script, n, out, how='env'):
    "Start the run in `n` processes, as a launcher does; return exit codes and what they said."
    with socket.create_server(('127.0.0.1', 0)) as s: port = str(s.getsockname()[1])
    env = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=n)
    args = [how, folder(out), out]
    runs = [Started(script, args, out.with_name(f'{out.name}.said.{i}'), RANK=i, LOCAL_RANK=i, **env) for i in range(n)]
    return [r.wait() for r in runs], [r.said for r in runs]

def folder(out): return out.with_name(f'{out.name}_folder')

def weights(out, rank=0, kind='MirrorGame'):
    return torch.load(out.with_name(f'{out.name}.{rank}.{kind}'), weights_only=True)

def furthest(a, b, parts='GD'):
    return max((a[p][n].double() - b[p][n].double()).abs().max().item() for p in parts for n in a[p])

def moved(a): return max((v - a['start'][n]).abs().max().item() for n, v in a['G'].items() if v.is_floating_point())

def ran(script, n, out, how='env'):
    codes, said = processes(script, n, out, how)
    assert codes == [0]*n, said
    return out

@pytest.fixture(scope='module')
def one(tmp_path_factory):
    "Mirror-CFE trained by a single process, in double precision."
    return ran(MIRROR, 1, tmp_path_factory.mktemp('one')/'one')

@pytest.fixture(scope='module')
def baselines(tmp_path_factory):
    "Three baselines' games, by one process and by two."
    folder = tmp_path_factory.mktemp('baselines')
    return ran(BASELINES, 1, folder/'one'), ran(BASELINES, 2, folder/'two')

def check_log(one, two, epochs):
    "Both logs have these epochs and the same numbers: one process wrote."
    rows = [list(csv.DictReader(open(f/'history.csv'))) for f in (one, two)]
    assert [r['epoch'] for r in rows[1]] == [str(i) for i in range(epochs)]
    for x, y in zip(*rows):
        for n in x.keys() - {'time', 'train_loss'}: assert float(x[n]) == pytest.approx(float(y[n]), abs=1e-6), n

def test_two_processes_end_at_the_weights_of_one(one, tmp_path):
    out = ran(MIRROR, 2, tmp_path/'two')
    a, b, c = weights(one), weights(out, 0), weights(out, 1)
    assert moved(a) > 1e-4, 'four steps moved nothing: the comparison would be empty'
    assert furthest(b, c) == 0, 'the two processes disagree'
    assert furthest(a, b) < 1e-6*moved(a)
    check_log(folder(one), folder(out), 2)

@pytest.mark.parametrize('kind', ['DCGAN', 'ExplainGAN', 'CycleGAN'])
def test_a_baseline_in_two_processes(baselines, kind):
    "Batch norm on both sides; networks for one class, of which a process may have no image; a pool of older images."
    runs = ((baselines[0], 0), (baselines[1], 0), (baselines[1], 1))
    a, b, c = (weights(out, rank, f'{kind}Game') for out, rank in runs)
    assert moved(a) > 1e-4, 'three steps moved nothing: the comparison would be empty'
    assert furthest(b, c) == 0, 'the two processes disagree'
    assert furthest(a, b) < 1e-6*moved(a)
    if kind == 'CycleGAN': assert a['D']['pool.4.held'] == b['D']['pool.4.held'] == 3
    check_log(*(folder(out)/kind for out in baselines), 1)

def test_inside_fastais_context(one, tmp_path):
    pytest.importorskip('accelerate')
    out = ran(MIRROR, 2, tmp_path/'two', how='fastai')
    assert furthest(weights(one), weights(out)) < 1e-9

def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    dls = get_dls('digits', bs=7, n_train=64, steps=2, size=16, device='cpu')
    learn = mirror_learner(small_resnet(widths=(8, 16), size=16), dls, amp=False, **SHORT)
    monkeypatch.setattr(loop, 'join_group', lambda device: (ProcessGroup(0, 2), device))
    with pytest.raises(MirrorError, match='2 processes cannot share a batch of 7 evenly'):
        learn.fit_game(progress=False)
    assert learn.turns.group.world_size == 1
