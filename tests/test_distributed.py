"Two processes with half of each batch train the explainer that one process trains with the whole of it."
import csv, os, socket, subprocess, sys
import pytest, torch

RUN = """
import sys, torch
if sys.argv[2] == 'double': torch.Tensor.float = torch.Tensor.double      # nowhere on the way is anything rounded to single
from contextlib import nullcontext
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.data import get_dls
from mirrorcfe.training import mirror_learner
torch.set_num_threads(1)
torch.manual_seed(7)
kind = torch.double if sys.argv[2] == 'double' else torch.float
torch.set_default_dtype(kind)
dls = get_dls('digits', bs=8, n_train=64, steps=2, size=16, device='cpu')
learn = mirror_learner(small_resnet(widths=(8, 16), size=16).to(kind), dls, amp=False, folder=sys.argv[3], steps=4, ramp=0.)
start = learn.model.G.state_dict()['start.1.0.weight'].clone()
if sys.argv[1] == 'fastai':
    import fastai.distributed
    with learn.distrib_ctx(cpu=True):
        learn.fit_mirror(progress=False)
        assert len([c for c in learn.cbs if type(c).__name__ == 'DistributedTrainer']) == 1
else: learn.fit_mirror(progress=False)
assert all(type(m).__name__ != '_WholeNorm' for m in learn.model.modules()) and not learn.mirror_turns.discriminator.mix._forward_pre_hooks
turns = learn.mirror_turns
torch.save(dict(start=start, G=learn.model.G.state_dict(), D=turns.discriminator.state_dict(), of=sys.argv[1]), f"{sys.argv[4]}.{__import__('os').environ.get('RANK', 0)}")
"""

def processes(n, out, kind='double', how='env'):
    "Start the run in `n` processes, as a launcher does; return exit codes and what they said."
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    env = os.environ | dict(OMP_NUM_THREADS='1', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(n))
    args = [sys.executable, '-W', 'ignore', '-c', RUN, how, kind, str(out.with_name(out.name + '_folder')), str(out)]
    runs = [subprocess.Popen(args, env=env | dict(RANK=str(i), LOCAL_RANK=str(i)), stderr=subprocess.PIPE, text=True) for i in range(n)]
    said = [r.communicate(timeout=300)[1] for r in runs]
    return [r.returncode for r in runs], said

def weights(out, rank=0): return torch.load(out.with_name(f'{out.name}.{rank}'), weights_only=True)

def furthest(a, b): return max((a[p][n].double() - b[p][n].double()).abs().max().item() for p in 'GD' for n in a[p])

@pytest.fixture(scope='module')
def one(tmp_path_factory):
    "The run of a single process, in double precision."
    out = tmp_path_factory.mktemp('one')/'one'
    codes, said = processes(1, out)
    assert codes == [0], said
    return out

def test_two_processes_end_at_the_weights_of_one(one, tmp_path):
    out = tmp_path/'two'
    codes, said = processes(2, out)
    assert codes == [0, 0], said
    a, b, c = weights(one), weights(out, 0), weights(out, 1)
    moved = (a['G']['start.1.0.weight'] - a['start']).abs().max().item()
    assert moved > 1e-4, 'four steps moved nothing: the comparison would be empty'
    assert furthest(b, c) == 0, 'the two processes disagree'
    assert furthest(a, b) < 1e-6*moved
    rows = [list(csv.DictReader(open(p.with_name(p.name + '_folder')/'history.csv'))) for p in (one, out)]
    assert len(rows[1]) == 2 and [r['epoch'] for r in rows[1]] == ['0', '1']    # one of them wrote
    for x, y in zip(*rows):
        for n in x.keys() - {'time', 'train_loss'}: assert float(x[n]) == pytest.approx(float(y[n]), abs=1e-6), n

def test_inside_fastais_context(one, tmp_path):
    pytest.importorskip('accelerate')
    codes, said = processes(2, tmp_path/'two', how='fastai')
    assert codes == [0, 0], said
    assert furthest(weights(one), weights(tmp_path/'two')) < 1e-9

def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    from mirrorcfe import training
    from mirrorcfe.classifiers import small_resnet
    from mirrorcfe.core import MirrorError
    from mirrorcfe.data import get_dls
    from mirrorcfe.distributed import Share
    learn = training.mirror_learner(small_resnet(widths=(8, 16), size=16), get_dls('digits', bs=7, n_train=64, steps=2, size=16, device='cpu'), amp=False)
    monkeypatch.setattr(training, 'join', lambda device: (Share(0, 2), device))
    with pytest.raises(MirrorError, match='2 processes cannot share a batch of 7 evenly'): learn.fit_mirror(progress=False)
    assert learn.mirror_turns.share.of == 1
