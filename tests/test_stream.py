"A stream: the same numbers as at once, resumed where it stopped, every file accounted for, memory flat."
import csv, errno, os, signal
from pathlib import Path
import pytest, torch
from PIL import Image
import mirrorcfe.storage, mirrorcfe.stream
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet, get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.stream import Files, InMemory, Streamed, as_source, read_stream
from mirrorcfe.images import find_images

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

def make(pair=None):
    torch.manual_seed(0)
    clf = small_resnet(10, 1, (4, 6, 8), 16).freeze()
    dls = get_dls('digits', bs=8, steps=1, size=16, pair=pair, device='cpu')
    return MirrorCFE(clf, amp=False, pair=pair, steps=1, **SHORT).fit(dls, epochs=1, progress=False)

@pytest.fixture(scope='module')
def cfe(): return make()

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'in/deep').mkdir(parents=True)
    x = get_dls('digits', size=16, device='cpu').test.dataset.x[:20]
    for i, im in enumerate(x):
        Image.fromarray(im[0].numpy()).save(tmp_path/'in'/('deep' if i % 2 else '.')/f'{i:02}.png')
    for name in ('05b.jpg', 'notes.txt', '.hidden.png'): (tmp_path/'in'/name).write_bytes(b'junk')
    return tmp_path/'in'

def rows(out):
    with open(out/'table.csv', newline='', encoding='utf-8') as f: return list(csv.DictReader(f))

def chunks(out): return sorted(p.name for p in (out/'chunks').glob('*.csv'))

def test_every_file_has_one_row_in_order(cfe, folder, tmp_path):
    run = cfe.explain_folder(folder, tmp_path/'out', ks=[0, 1], chunk=8, bs=3, progress=False)
    got = rows(tmp_path/'out')
    assert isinstance(run, Streamed)
    assert [r['image'] for r in got] == [os.path.relpath(f, folder) for f in find_images(folder)]
    assert len(got) == run.images == 21
    assert [r['image'] for r in got if r['status'] == 'unreadable'] == ['05b.jpg'] and run.counts['unreadable'] == 1
    assert run.rate > 0 and '21 images' in str(run)

@pytest.mark.parametrize('bs, chunk', [(1, 1), (3, 7), (256, 256)])
def test_chunks_do_not_change_the_numbers(cfe, tmp_path, bs, chunk):
    data = get_dls('digits', size=16, device='cpu').test.dataset.subset(torch.arange(12))
    cfe.explain_folder(data, tmp_path/'out', ks=[0, .5, 1], bs=bs, chunk=chunk, progress=False)
    whole = cfe.explain(data[:][0], ks=[0, .5, 1]).table()
    got = rows(tmp_path/'out')
    assert [r['target'] for r in got] == whole.target.tolist() and [r['status'] for r in got] == whole.status.tolist()
    assert [float(r['confidence_last']) for r in got] == pytest.approx(whole.confidence_last.tolist(), abs=2e-3)

def test_broken_off_it_goes_on(cfe, folder, tmp_path, monkeypatch):
    class Stop(Exception): pass
    def stop(done, total):
        if done >= 10: raise Stop
    with pytest.raises(Stop): cfe.explain_folder(folder, tmp_path/'out', ks=[0, 1], chunk=5, progress=stop)
    assert chunks(tmp_path/'out') == ['00000.csv', '00001.csv']
    assert cfe.explain_folder(folder, tmp_path/'out', ks=[0, 1], chunk=5, progress=False).explained == 11
    cfe.explain_folder(folder, tmp_path/'whole', ks=[0, 1], chunk=5, progress=False)
    assert (tmp_path/'out/table.csv').read_text() == (tmp_path/'whole/table.csv').read_text()

@pytest.mark.parametrize('name', ['00001.csv', '00001.sha256'])
def test_a_full_disk_keeps_the_chunks_before(cfe, folder, tmp_path, monkeypatch, name):
    replace = os.replace
    def full(old, new):
        if str(new).endswith(name): raise OSError(errno.ENOSPC, 'No space left on device')
        return replace(old, new)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', full)
        with pytest.raises(MirrorError, match=f'cannot write .*{name}: No space left.*chunks before it are kept'):
            cfe.explain_folder(folder, tmp_path/'out', ks=[0, 1], chunk=5, progress=False)
    assert chunks(tmp_path/'out')[0] == '00000.csv' and not list((tmp_path/'out').rglob('.*'))
    assert cfe.explain_folder(folder, tmp_path/'out', ks=[0, 1], chunk=5, progress=False).explained == 16

SPOILT = {'empty, as after a power cut': lambda b: b'', 'cut in half': lambda b: b[:len(b)//2],
          'a flipped bit': lambda b: b[:90] + bytes([b[90] ^ 1]) + b[91:],
          'a word changed': lambda b: b.replace(b'never flipped', b'never flippe!', 1)
          if b'never flipped' in b else b + b' ', 'no UTF-8': lambda b: b[:60] + b'\xe9' + b[61:]}

@pytest.mark.parametrize('how', SPOILT)
@pytest.mark.parametrize('name', ['00001.csv', '00001.safetensors', '00001.sha256'])
def test_a_spoilt_chunk_is_drawn_again(cfe, tmp_path, name, how):
    data = get_dls('digits', size=16, device='cpu').test.dataset.subset(torch.arange(12))
    go = lambda: cfe.explain_folder(data, tmp_path/'out', ks=[0, 1], chunk=5, keep='images', closed_loop=False,
                                    progress=False)
    go()
    table, file = (tmp_path/'out/table.csv').read_text(), tmp_path/'out/chunks'/name
    sound = file.read_bytes()
    file.write_bytes(SPOILT[how](sound))
    assert file.read_bytes() != sound
    said = f'{name} is damaged'
    if name == '00001.sha256': said = '00001.[a-z0-9]* is damaged'   # the list, or a file that does not fit it
    with pytest.raises(MirrorError, match=f'{said}.*call explain_folder again'): list(read_stream(tmp_path/'out'))
    with pytest.warns(UserWarning, match=f'{said}.*its chunk is drawn again'): assert go().explained == 5
    assert (tmp_path/'out/table.csv').read_text() == table
    assert [len(r) for r, _ in read_stream(tmp_path/'out')] == [5, 5, 2]

def test_a_chunk_that_cannot_be_opened_is_left_alone(cfe, tmp_path, monkeypatch):
    data = get_dls('digits', size=16, device='cpu').test.dataset.subset(torch.arange(4))
    go = lambda: cfe.explain_folder(data, tmp_path/'out', ks=[1], chunk=2, progress=False)
    go()
    def busy(file, *a, **kw): raise OSError(errno.EMFILE, 'Too many open files', str(file))
    with monkeypatch.context() as m:
        m.setattr(mirrorcfe.storage, 'open', busy, raising=False)
        with pytest.raises(MirrorError, match='cannot read .*left as it is'): go()
    assert go().explained == 0

def test_images_come_back(cfe, tmp_path):
    data = get_dls('digits', size=16, device='cpu').test.dataset.subset(torch.arange(6))
    cfe.explain_folder(data, tmp_path/'out', ks=[0, .5, 1], chunk=4, keep='images', closed_loop=False, progress=False)
    whole = cfe.explain(data[:][0], ks=[0, .5, 1], closed_loop=False)
    last = torch.cat([t['last'] for _, t in read_stream(tmp_path/'out')])
    assert (last.float() - (whole.x_reflection + 1)*127.5).abs().max() < 1
    (tmp_path/'out/chunks/00001.safetensors').write_bytes(b'cut')
    with pytest.raises(MirrorError, match='00001.safetensors is damaged'): list(read_stream(tmp_path/'out'))

def test_a_pair_marks_what_is_outside(tmp_path):
    cfe = make((4, 9))
    data = get_dls('digits', size=16, device='cpu').test.dataset.subset(torch.arange(12))
    with torch.no_grad(): inside = torch.isin(cfe.classifier(data[:][0]).argmax(1), torch.tensor([4, 9])).sum().item()
    counts = cfe.explain_folder(data, tmp_path/'out', ks=[1], progress=False).counts
    assert counts.get('outside the pair', 0) == 12 - inside and sum(counts.values()) == 12

def test_sources(folder):
    data = get_dls('digits', size=16, device='cpu').test
    assert isinstance(as_source(data), InMemory) and len(as_source(data)) == len(data.dataset)
    one = as_source(find_images(folder), 16, 1)
    assert isinstance(one, Files) and as_source(one) is one and one.read(0, 2)[0].shape == (2, 1, 16, 16)

def test_a_key_changes_with_the_images(folder):
    x = get_dls('digits', size=16, device='cpu').test.dataset.x[:200].clone()
    keys = {as_source(ImageSet(x.clone(), torch.zeros(200, dtype=torch.long))).key() for _ in range(2)}
    x[101, 0, 3, 3] ^= 1
    assert len(keys) == 1 and as_source(ImageSet(x, torch.zeros(200, dtype=torch.long))).key() not in keys
    keys = {as_source(folder, 16, 1).key() for _ in range(2)}
    for f in (folder/'00.png', folder/'05b.jpg'):
        f.write_bytes(f.read_bytes() + b' ')
        keys.add(as_source(folder, 16, 1).key())
    assert len(keys) == 3

@pytest.mark.skipif(os.name == 'nt', reason='needs links, pipes and names of POSIX')
def test_odd_files_are_rows_too(cfe, folder, tmp_path):
    os.mkfifo(folder/'fifo.png')
    (folder/'lost.png').symlink_to('nowhere.png')
    (folder/'loop.png').symlink_to('loop.png')
    (folder/'00.png').rename(folder/os.fsdecode(b'caf\xe9.png'))
    counts = cfe.explain_folder(folder, tmp_path/'out', ks=[1], progress=False).counts
    got = {r['image']: r['reason'] for r in rows(tmp_path/'out') if r['status'] == 'unreadable'}
    assert counts['unreadable'] == 4 and got['fifo.png'] == 'it is not a regular file'
    assert got['lost.png'] == got['loop.png'] == 'it is a link to nothing'
    assert r'caf\xe9.png' in [r['image'] for r in rows(tmp_path/'out')]

def test_only_unreadable_files(cfe, tmp_path):
    (tmp_path/'in').mkdir()
    for n in 'ab': (tmp_path/f'in/{n}.png').write_bytes(b'x')
    assert cfe.explain_folder(tmp_path/'in', tmp_path/'out', ks=[1], progress=False).counts == {'unreadable': 2}

def test_refusals(cfe, folder, tmp_path):
    go = lambda src=folder, out=tmp_path/'o', **kw: cfe.explain_folder(src, out, progress=False, **({'ks': [1]} | kw))
    (tmp_path/'empty').mkdir()
    for bad, says in ((dict(keep='x'), 'keep'), (dict(bs=0), 'bs'), (dict(chunk=True), 'chunk'),
                      (dict(target=[1, 2]), 'one class'), (dict(target=10), 'one class'), (dict(ks=[2]), 'ascending'),
                      (dict(src=tmp_path/'none'), 'no folder'), (dict(src=tmp_path/'empty'), 'no image'),
                      (dict(src=3), 'found int'), (dict(out=folder), 'holds no stream'),
                      (dict(out=folder/'00.png'), '.')):
        with pytest.raises(MirrorError, match=says): go(**bad)
    assert not (tmp_path/'o').exists()
    go()
    assert 'remove' not in str(pytest.raises(MirrorError, go, out=folder).value), 'a folder may hold the only copies'
    for other in (dict(ks=[0, 1]), dict(target=3), dict(chunk=2), dict(closed_loop=False)):
        with pytest.raises(MirrorError, match='another stream'): go(**other)
    (tmp_path/'o/stream.json').write_text('{')
    with pytest.raises(MirrorError, match='stream.json is damaged.*give another folder'): go()
    with pytest.raises(MirrorError, match='call fit'): MirrorCFE(cfe.classifier).explain_folder(folder, tmp_path/'p')

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork and SIGKILL')
def test_killed_at_the_start_it_starts_again(cfe, folder, tmp_path):
    pid = os.fork()
    if pid == 0:
        os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        mirrorcfe.stream._open_stream(tmp_path/'out', dict(format=2))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL and len(list((tmp_path/'out').iterdir())) == 1
    assert cfe.explain_folder(folder, tmp_path/'out', ks=[1], progress=False).explained == 21
    assert not list((tmp_path/'out').glob('.*'))

def test_progress_prints_the_rate(cfe, tmp_path, capsys):
    data = get_dls('digits', size=16, device='cpu').test.dataset.subset(torch.arange(4))
    for _ in range(2): cfe.explain_folder(data, tmp_path/'out', ks=[1], chunk=2)
    lines = capsys.readouterr().out.splitlines()
    assert 'images a second' in lines[0] and lines[-1] == '4 of 4, there already'

@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='no /proc here')
def test_memory_is_flat(cfe, tmp_path):
    "A thousand images: what is resident after the first fifth is all there will be."
    x = get_dls('digits', size=16, device='cpu').train.dataset.x[:1000]
    data = ImageSet(x, torch.zeros(1000, dtype=torch.long))
    seen = []
    def resident(done, total):
        line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith('VmRSS'))
        seen.append(int(line.split()[1]))
    cfe.explain_folder(data, tmp_path/'out', ks=[0, .5, 1], closed_loop=False, chunk=100, progress=resident)
    assert max(seen[2:]) - seen[1] < 20_000, seen   # kilobytes; all images at once would take more with every chunk

def test_one_table_has_one_set_of_names(cfe, tmp_path, monkeypatch):
    "A stream that was begun under other class names is not gone on with."
    data = get_dls('digits', size=16, device='cpu').test.dataset.subset(torch.arange(2))
    go = lambda: cfe.explain_folder(data, tmp_path/'out', ks=[1], closed_loop=False, progress=False)
    go()
    monkeypatch.setattr(cfe.classifier, 'classes', [f'digit {i}' for i in range(10)])
    with pytest.raises(MirrorError, match='holds another stream .classes differ'): go()
