"Two processes share a stream: one whole table, the same as of one; the share of one that dies is made up for."
import csv, socket
from processes import Started

STREAM = """
import os, sys, torch
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet
from mirrorcfe.explainer import MirrorCFE
import mirrorcfe.stream
from mirrorcfe.training import MirrorModel
out, dies = sys.argv[1:]
torch.manual_seed(0)
clf = small_resnet(3, 1, [4, 6], 16, ['a', 'b', 'c']).eval()
cfe = MirrorCFE(clf, 'paper', steps=1)
shapes = [(f.shape[1], f.shape[2]) for f in clf.encode(torch.zeros(1, 1, 16, 16)).maps]
cfe.model = MirrorModel(clf, shapes, 1, 16, cfe.recipe)
data = ImageSet((255*torch.rand(22, 1, 16, 16)).byte(), torch.zeros(22, dtype=torch.long))
if dies == os.environ.get('RANK'): mirrorcfe.stream._write_chunk = lambda *a: os._exit(9)
try: done = cfe.explain_folder(data, out, ks=[0, 1], closed_loop=False, bs=4, chunk=4, progress=False)
except MirrorError as e: sys.exit(print(e) or 1)
print('explained', done.explained, sorted(done.counts.items()))
"""

def launched(code, argv, said, n):
    "Exit codes and what was said of `n` processes, as a launcher starts them."
    env = {}
    if n > 1:
        with socket.create_server(('127.0.0.1', 0)) as s: port = str(s.getsockname()[1])
        env = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=n)
    runs = []
    for i in range(n):
        if n > 1: env |= dict(RANK=i, LOCAL_RANK=i)
        runs.append(Started(code, argv, said.with_name(f'{said.name}.{i}'), **env))
    try: return [r.wait(120) for r in runs], [r.said for r in runs]
    finally:
        for r in runs: r.kill()

def run(out, n=1, dies='none'):
    return launched(STREAM, [out, dies], out.with_name(f'said-{out.name}-{n}-{dies}'), n)

def table(out): return (out/'table.csv').read_text()

def test_two_processes_make_the_table_of_one(tmp_path):
    codes, said = run(tmp_path/'one')
    assert codes == [0], said
    codes, said = run(tmp_path/'two', 2)
    assert codes == [0, 0], said
    assert table(tmp_path/'two') == table(tmp_path/'one')
    assert len(list(csv.reader(open(tmp_path/'two/table.csv')))) == 23
    assert said[0] == said[1] and 'explained 22' in said[0]
    codes, said = run(tmp_path/'lost', 2, dies='1')
    assert codes[1] == 9 and codes[0] != 0 and 'start the same command again' in said[0]
    assert len(list((tmp_path/'lost/chunks').glob('*.csv'))) == 3, 'those of the other are kept'
    codes, said = run(tmp_path/'lost', 2)
    assert codes == [0, 0] and 'explained 10' in said[0], said
    assert table(tmp_path/'lost') == table(tmp_path/'one')

COMMAND = """
import runpy
import mirrorcfe.outcomes as outcomes
outcomes.get_judges = lambda dls: None   # they take longer to train than all the rest
whole = outcomes.directions
def halves(*args):
    "Two directions, where this classifier knows one."
    label, x, y, target = whole(*args)[0]
    return [(f'{label}, {i}', x[i::2], y[i::2], target) for i in (0, 1)]
outcomes.directions = halves
runpy.run_module('mirrorcfe', run_name='__main__')
"""

def command(tmp_path, name, n, *argv):
    return launched(COMMAND, argv, tmp_path/f'said-{name}-{n}', n)

def test_the_command_line_shares_its_work(here, saved, tmp_path):
    "As under `accelerate launch -m mirrorcfe`: the first process speaks, and there is one whole table."
    tables = {}
    for n in (1, 2):
        argv = ['evaluate', '--explainer', saved, '--n', '4', '--steps', '3', '--device', 'cpu']
        codes, said = command(tmp_path, 'evaluate', n, *argv, '--out', tmp_path/f'evaluated{n}')
        assert codes == [0]*n, said
        assert 'Results in' in said[0] and said[1:] == ['']*(n - 1)
        tables[n] = (tmp_path/f'evaluated{n}'/'results.csv').read_text()
    assert tables[1] == tables[2] and len(tables[1].splitlines()) == 5
    argv = ['explain', 'one.png', 'two.jpg', '--explainer', saved, '--device', 'cpu', '--out', tmp_path/'explained']
    codes, said = command(tmp_path, 'explain', 2, *argv)
    assert codes == [0, 0] and said[0].count('table.csv') == 1 and said[1] == '', said
    assert len(list(csv.reader(open(tmp_path/'explained'/'table.csv')))) == 3
    codes, said = command(tmp_path, 'train', 2, 'train')
    assert codes == [2, 2] and 'train runs in one process' in said[0]
