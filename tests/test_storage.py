"What is kept: whole or not at all, readable by others, checked when it is read, and never called damaged unread."
import errno, gc, json, os, signal, stat, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from mirrorcfe import storage
from mirrorcfe.core import MirrorError
from mirrorcfe.storage import (CannotWrite, DamagedFile, MissingFile, atomic, cache_dir, check_files, expand, file_hash,
                               file_lock, json_hash, new_folder, read_about,
                               read_json, read_nets, read_state, read_tensors, reading, sweep, tensors_hash, workspace,
                               write_checksums, write_json,
                               write_nets, write_state, write_tensors)

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork, signals and modes of POSIX")
root_may = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0,
                              reason="root may read and write anything")

def names(folder): return sorted(p.name for p in folder.iterdir())

def flips(file, every=3):
    "Ways to flip one bit of `file`, one of `every` so many, written in turn; the file is whole again at the end."
    good = file.read_bytes()
    for i in range(0, 8*len(good), every):
        bad = bytearray(good)
        bad[i//8] ^= 1 << i % 8
        file.write_bytes(bytes(bad))
        yield i
    file.write_bytes(good)

# --- where ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty home folder."
    for v in ("MIRRORCFE_CACHE", "XDG_CACHE_HOME"): monkeypatch.delenv(v, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path

def test_cache_dir(home, monkeypatch):
    monkeypatch.setattr(storage, "user_cache_path", lambda name, appauthor: home/"Library"/name)
    assert cache_dir() == home/"Library"/"mirrorcfe", "the usual place of the system"
    (home/".cache"/"mirrorcfe").mkdir(parents=True)
    assert cache_dir() == home/".cache"/"mirrorcfe", "what an earlier version made is found"
    (home/"Library"/"mirrorcfe").mkdir(parents=True)
    assert cache_dir() == home/"Library"/"mirrorcfe"
    monkeypatch.setenv("MIRRORCFE_CACHE", "~/mine")
    assert cache_dir() == home/"mine"

def test_xdg_cache(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home/"x"))
    (home/"x"/"mirrorcfe").mkdir(parents=True)
    assert cache_dir() == home/"x"/"mirrorcfe"

def test_no_home(home, monkeypatch):
    def none(self): raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(Path, "expanduser", none)
    assert cache_dir().is_absolute() and "~" not in str(cache_dir())
    with pytest.raises(MirrorError, match="no home folder for ~/a"): expand("~/a")

def test_tilde_is_the_home_folder(home, monkeypatch):
    monkeypatch.chdir(home)
    atomic("~/a.txt", lambda p: p.write_text("a"))
    assert new_folder("~/f", lambda f: None) == home/"f"
    write_json("~/b.json", dict(b=1)); write_tensors("~/c.safetensors", dict(c=torch.ones(1)))
    assert read_json("~/b.json") == dict(b=1) and read_tensors("~/c.safetensors")[1]["c"] == 1
    assert names(home) == ["a.txt", "b.json", "c.safetensors", "f"]

# --- writing ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError(), MirrorError("no")])
def test_what_is_broken_off_leaves_the_old_file(tmp_path, error):
    (tmp_path/"a").write_text("old")
    def write(p):
        p.write_text("half")
        raise error
    with pytest.raises(type(error)): atomic(tmp_path/"a", write)
    with pytest.raises(type(error)): new_folder(tmp_path/"f", lambda f: write(f/"x"))
    assert names(tmp_path) == ["a"] and (tmp_path/"a").read_text() == "old"

def test_threads_do_not_meet(tmp_path):
    "Eight writers, one reader: whole files only, and nobody fails."
    file, sizes, stop = tmp_path/"x.html", set(), threading.Event()
    def look():
        while not stop.is_set():
            if file.exists(): sizes.add(file.stat().st_size)
    reader = threading.Thread(target=look)
    reader.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: atomic(file, lambda p: p.write_text("x"*1_000_000)), range(60)))
    finally:
        stop.set()
        reader.join()
    assert sizes == {1_000_000} and names(tmp_path) == ["x.html"]

@posix
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_modes_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path/"plain").touch()
        write_tensors(tmp_path/"t.safetensors", dict(x=torch.ones(2)))
        atomic(tmp_path/"a", lambda p: p.touch(mode=0o600))
        new_folder(tmp_path/"f", lambda f: storage.save_file(dict(x=torch.ones(2)), f/"x"))
        with file_lock(tmp_path/"l"): pass
    finally: os.umask(before)
    for f in ("t.safetensors", "a", "f/x"): assert (tmp_path/f).stat().st_mode == (tmp_path/"plain").stat().st_mode, f
    assert (tmp_path/"l.lock").stat().st_mode & 0o777 == 0o666, "whoever may enter the folder may wait there"

KILLED = "import sys, time; from pathlib import Path; from mirrorcfe.storage import workspace\n" \
         "with workspace(Path(sys.argv[1]), 'net') as part:\n" \
         "    (part/'half').write_text('x'); print('ready', flush=True); time.sleep(600)"

@posix
def test_what_a_kill_leaves_is_swept(tmp_path, root):
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "ready\n"
    assert sweep(tmp_path) == 0 and len(names(tmp_path)) == 1, "it is being written"
    run.send_signal(signal.SIGKILL)
    run.wait()
    atomic(tmp_path/"other", lambda p: p.write_text("x"))
    assert names(tmp_path) == ["other"]

def test_only_our_strays_are_swept(tmp_path):
    for name in (".mine.part", ".a.0123456789abcdef.part", "b.0123456789abcdef.part"): (tmp_path/name).mkdir()
    (tmp_path/".a.0123456789abcdef.part"/"mine").touch()
    (tmp_path/".f.0123456789abcdef.part").touch()
    (tmp_path/"elsewhere").mkdir(); (tmp_path/"elsewhere"/storage._LOCK).touch()
    (tmp_path/".l.0123456789abcdef.part").symlink_to(tmp_path/"elsewhere")
    assert sweep(tmp_path) == 0 and len(names(tmp_path)) == 6

def test_a_folder_that_somebody_else_makes_meanwhile(tmp_path):
    def fill(folder):
        (folder/"a").touch()
        (tmp_path/"it").mkdir()
        (tmp_path/"it"/"theirs").touch()
    with pytest.raises(MirrorError, match="it was made by somebody else in the meantime") as e:
        new_folder(tmp_path/"it", fill)
    assert not isinstance(e.value, CannotWrite) and names(tmp_path/"it") == ["theirs"]

@pytest.mark.parametrize("moment", ["before the lock", "while it is removed"])
def test_a_kill_leaves_nothing_that_is_not_swept(tmp_path, moment, monkeypatch):
    "Killed between the folder and its lock, or between the first file that is removed and the last."
    class Killed(BaseException): pass
    def killed(folder, **kw):
        (Path(folder)/storage._LOCK).unlink(missing_ok=True)   # the first that is removed may be this one
        raise Killed
    with monkeypatch.context() as m, pytest.raises(Killed):
        if moment == "before the lock": m.setattr(storage, "FileLock", killed)
        with workspace(tmp_path, "net") as part:
            for name in ("a", "b", "z"): (part/name).mkdir()
            m.setattr(storage.shutil, "rmtree", killed)
    assert len(names(tmp_path)) == 1
    gc.collect()   # the lock of a process that is gone is free
    assert sweep(tmp_path) == 1 and names(tmp_path) == []


def test_long_names_and_names_that_are_no_utf8(tmp_path):
    name = "ü"*110 + ".txt"
    atomic(tmp_path/name, lambda p: p.write_text("x"))
    if os.name != "nt": atomic(tmp_path/os.fsdecode(b"caf\xe9"), lambda p: p.write_text("x"))
    assert (tmp_path/name).read_text() == "x"

ERRORS = {"system": (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, "No space left on device"),
          "safetensors": (storage.SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
                          27, os.strerror(27)),
          "torch": (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), errno.EIO,
                    "PytorchStreamWriter failed")}

@pytest.mark.parametrize("kind", ERRORS)
def test_what_a_disk_says_names_the_file(tmp_path, kind):
    error, number, says = ERRORS[kind]
    def write(p):
        p.write_text("half")
        raise error
    for go in (lambda: atomic(tmp_path/"a", write), lambda: new_folder(tmp_path/"a", lambda f: write(f/"x"))):
        with pytest.raises(CannotWrite, match=f"cannot write .*a: {says}.*nothing was kept.*can be written") as e:
            go()
        assert e.value.errno == number and e.value.filename == str(tmp_path/"a") and isinstance(e.value, MirrorError)
        assert isinstance(e.value, OSError)
    assert names(tmp_path) == []

def test_other_errors_stay_what_they_are(tmp_path):
    def write(p): raise RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="^a bug$"): atomic(tmp_path/"a", write)

def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path/"file").touch()
    for go in (atomic, new_folder):
        with pytest.raises(CannotWrite, match="cannot write .*file.below.x"):
            go(tmp_path/"file"/"below"/"x", lambda p: None)

FULL = "import sys, resource, signal, torch; from mirrorcfe.storage import *\n" \
       "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); x = dict(x=torch.zeros(9_000)); p = sys.argv[1]\n" \
       "tries = [lambda: write_tensors(p + '/a', x), lambda: write_state(p + '/b', x),\n" \
       "         lambda: write_json(p + '/c', dict(x='y'*30_000))]\n" \
       "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n" \
       "for t in tries:\n    try: t()\n    except CannotWrite as e: print(e)"

@posix
def test_a_file_that_cannot_grow(tmp_path, root):
    "In a process whose files may not grow beyond 20 kB: what a disk that fills up does, for real."
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path)], cwd=root, text=True,
                         capture_output=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 3, run.stdout + run.stderr
    for name, line in zip("abc", lines): assert line.startswith(f"cannot write {tmp_path/name}: ")
    assert names(tmp_path) == []

def test_new_folder_leaves_what_is_there(tmp_path):
    for kind in ("file", "folder", "link"):
        path = tmp_path/kind
        if kind == "file": path.write_text("mine")
        elif kind == "folder": path.mkdir()
        else: path.symlink_to("nowhere")
        with pytest.raises(MirrorError, match="exists: give another folder"): new_folder(path, lambda f: None)
    assert names(tmp_path) == ["file", "folder", "link"] and (tmp_path/"file").read_text() == "mine"

# --- locks ------------------------------------------------------------------------------------------------------------

def test_one_at_a_time(tmp_path):
    order = []
    def work(i):
        with file_lock(tmp_path/"net"):
            order.append(i)
            time.sleep(.01)
            order.append(i)
    with ThreadPoolExecutor(4) as pool: list(pool.map(work, range(8)))
    assert order[::2] == order[1::2]

def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with file_lock(tmp_path/"net"): 1/0
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: file_lock(tmp_path/"net").__enter__()).result(timeout=5) is None

def test_names_with_dots_have_locks_of_their_own(tmp_path):
    with file_lock(tmp_path/"a.1"):
        with file_lock(tmp_path/"a.2"): assert {"a.1.lock", "a.2.lock"} <= set(names(tmp_path))

def test_no_lock_where_none_can_be_made(tmp_path):
    (tmp_path/"file").touch()
    with file_lock(tmp_path/"file"/"net"): pass
    (tmp_path/"net.lock").mkdir()
    with file_lock(tmp_path/"net"): pass

# --- reading ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def kept(tmp_path):
    "Three files of the three kinds, and how each is read."
    write_json(tmp_path/"a.json", dict(steps=3, pair=(4, 9)))
    write_tensors(tmp_path/"b.safetensors", dict(x=torch.arange(3.)), dict(of="b"))
    (tmp_path/"c.csv").write_text("a,b\n1,2\n")
    write_checksums(tmp_path/"c.sha256", [tmp_path/"c.csv"])
    return {tmp_path/"a.json": lambda: read_json(tmp_path/"a.json"),
            tmp_path/"b.safetensors": lambda: read_tensors(tmp_path/"b.safetensors"),
            tmp_path/"c.csv": lambda: check_files(tmp_path/"c.sha256"),
            tmp_path/"c.sha256": lambda: check_files(tmp_path/"c.sha256")}

def test_a_checkpoint_is_what_was_written_or_refused(tmp_path):
    "No flipped bit, and no cut, gives other numbers: torch alone would take most of them as they are."
    file, state = tmp_path/"c.pt", dict(epoch=3, weights=dict(w=torch.arange(8.)), lr=[.1, .2])
    write_state(file, state)
    assert str(read_state(file)) == str(state)
    for i in flips(file, 17):
        with pytest.raises(DamagedFile, match="c.pt is damaged .its checksum"): read_state(file)
    good = file.read_bytes()
    for n in range(0, len(good) - 1, 97):
        file.write_bytes(good[:n])
        with pytest.raises(DamagedFile): read_state(file)
    with pytest.raises(MissingFile): read_state(tmp_path/"none.pt")

class Evil:
    def __reduce__(self): return os.mkdir, ("executed",)

def test_a_checkpoint_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_state(tmp_path/"c.pt", Evil())
    with pytest.raises(DamagedFile): read_state(tmp_path/"c.pt")
    torch.save(Evil(), tmp_path/"c.pt")
    with pytest.raises(DamagedFile): read_state(tmp_path/"c.pt")
    assert names(tmp_path) == ["c.pt"]

def test_torch_reads_our_checkpoints(tmp_path):
    write_state(tmp_path/"c.pt", dict(w=torch.arange(3.)))
    assert torch.load(tmp_path/"c.pt", weights_only=True)["w"].tolist() == [0, 1, 2]

def test_what_is_written_is_read(kept, tmp_path):
    a, b, c, _ = (read() for read in kept.values())
    assert a == dict(steps=3, pair=[4, 9]) and b[0] == dict(of="b") and b[1]["x"].tolist() == [0, 1, 2]
    assert c == [tmp_path/"c.csv"]

def test_a_flipped_bit_is_refused(kept):
    for file, read in kept.items():
        sound = read()
        for i in flips(file):
            try: found = read()
            except (DamagedFile, MissingFile) as e: assert str(file.parent) in str(e)
            else: assert found == sound, f"bit {i} of {file.name}"   # e for E in a number: the same value

def test_a_cut_is_refused(kept):
    for file, read in kept.items():
        good = file.read_bytes()
        for n in range(0, len(good) - 1, 7):
            file.write_bytes(good[:n])
            with pytest.raises((DamagedFile, MissingFile)): read()
        file.write_bytes(good)

def test_missing_is_said(kept):
    for file, read in kept.items():
        good = file.read_bytes()
        file.unlink()
        with pytest.raises(MissingFile, match="the file is missing"): read()
        file.write_bytes(good)
    with pytest.raises(MissingFile): read_json(file/"below")

@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_opened_is_not_damaged(kept, monkeypatch, number):
    def refuse(file, *a, **kw): raise OSError(number, os.strerror(number), str(file))
    monkeypatch.setattr(storage, "open", refuse, raising=False)
    for file, read in kept.items():
        with pytest.raises(MirrorError, match="cannot read .*left as it is") as e: read()
        assert not isinstance(e.value, (DamagedFile, MissingFile)) and os.strerror(number) in str(e.value)

@root_may
def test_no_permission_is_not_damage(kept):
    for file, read in kept.items():
        file.chmod(0)
        with pytest.raises(MirrorError, match="cannot read .*Permission denied"): read()
        file.chmod(0o600)

DESCRIPTORS = """
import sys, resource; from mirrorcfe.core import MirrorError; from mirrorcfe.storage import *
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try: read_tensors(sys.argv[1])
except MirrorError as e: said = type(e).__name__, str(e)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(*said)
"""

@posix
def test_no_free_descriptor(tmp_path, root):
    "safetensors calls this a missing file."
    write_tensors(tmp_path/"a", dict(x=torch.ones(1)))
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", DESCRIPTORS, str(tmp_path/"a")], cwd=root, text=True,
                         capture_output=True)
    assert run.stdout.startswith("MirrorError cannot read")
    assert "Too many open files" in run.stdout, run.stdout + run.stderr

@posix
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop"])
def test_what_is_no_file_is_said_at_once(tmp_path, kind):
    path = tmp_path/"x"
    if kind == "fifo": os.mkfifo(path)
    elif kind == "folder": path.mkdir()
    else: path.symlink_to("x")
    with pytest.raises(MirrorError, match="cannot read|is not a regular file") as e: read_tensors(path)
    assert not isinstance(e.value, (DamagedFile, MissingFile))

def test_foreign_files(tmp_path):
    storage.save_file(dict(x=torch.ones(1)), tmp_path/"plain")
    storage.save_file(dict(x=torch.ones(1)), tmp_path/"torch", {"format": "pt"})
    for f in ("plain", "torch"): assert read_tensors(tmp_path/f)[0] is None
    (tmp_path/"mine.json").write_text('{"a": 1}')
    assert read_json(tmp_path/"mine.json", checked=False) == dict(a=1)
    with pytest.raises(DamagedFile, match="it has no checksum"): read_json(tmp_path/"mine.json")
    (tmp_path/"list.json").write_text("[1]")
    with pytest.raises(DamagedFile, match="it holds a list"): read_json(tmp_path/"list.json", checked=False)
    (tmp_path/"up.sha256").write_text(f"{'0'*64}  ../../etc/passwd\n")
    with pytest.raises(DamagedFile, match="not a checksum and a name"): check_files(tmp_path/"up.sha256")

def test_the_list_is_what_sha256sum_reads(tmp_path):
    (tmp_path/"a").write_text("a")
    write_checksums(tmp_path/"l", [tmp_path/"a"])
    try: run = subprocess.run(["sha256sum", "-c", "l"], cwd=tmp_path, text=True, capture_output=True)
    except FileNotFoundError: pytest.skip("no sha256sum here")
    assert run.stdout == "a: OK\n"

# --- hashes -----------------------------------------------------------------------------------------------------------

def test_hashes_of_tensors():
    x = torch.arange(6.).view(2, 3)
    sums = [tensors_hash(t) for t in (dict(x=x), dict(y=x), dict(x=x.view(6)), dict(x=x.double()), dict(x=x + 1),
                                      dict(x=x, y=x), {})]
    assert len(set(sums)) == len(sums) and all(len(s) == 16 for s in sums)
    assert tensors_hash(dict(a=x, b=-x)) == tensors_hash(dict(b=-x, a=x)), "order is not content"
    assert tensors_hash(dict(x=x.T)) == tensors_hash(dict(x=x.T.contiguous())) != tensors_hash(dict(x=x))
    net = nn.BatchNorm2d(3)
    assert tensors_hash(net) == tensors_hash(net.state_dict()) and len(tensors_hash(net, 64)) == 64

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool,
                                   torch.complex64])
def test_every_number_type_is_kept_and_hashed(tmp_path, dtype):
    x = dict(x=torch.tensor([[0, 1], [1, 0]]).to(dtype), scalar=torch.tensor(1).to(dtype),
             none=torch.zeros(0, 3).to(dtype))
    write_tensors(tmp_path/"x", x)
    back = read_tensors(tmp_path/"x")[1]
    assert tensors_hash(back) == tensors_hash(x)
    assert all(back[n].dtype == dtype and torch.equal(back[n], x[n]) for n in x)

def test_views_and_tied_tensors_are_kept(tmp_path):
    w = nn.Parameter(torch.arange(6.).view(2, 3))
    write_tensors(tmp_path/"x", dict(a=w, b=w, c=w.T, d=w[:1]))
    back = read_tensors(tmp_path/"x")[1]
    assert torch.equal(back["b"], w) and torch.equal(back["c"], w.T) and torch.equal(back["d"], w[:1])

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                     lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=6)

@given(what=st.dictionaries(st.text().filter(lambda k: k != "check"), plain, max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_plain_data_comes_back(tmp_path_factory, what):
    file = tmp_path_factory.mktemp("j")/"a.json"
    write_json(file, what)
    assert read_json(file) == what and json_hash(what) == json_hash(json.loads(json.dumps(what)))

def test_file_hash(tmp_path):
    (tmp_path/"a").write_bytes(b"abc")
    assert file_hash(tmp_path/"a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

# --- networks ---------------------------------------------------------------------------------------------------------

class Classifier:
    def __init__(self, name="c"): self.name = name
    def fingerprint(self): return self.name

def test_networks_come_back(tmp_path):
    torch.manual_seed(0)
    nets, again = ({n: nn.Linear(2, 2) for n in ("G", "D")} for _ in range(2))
    folder = new_folder(tmp_path/"m", lambda f: write_nets(f, nets, dict(kind="M", classifier="c", seed=3)))
    assert read_about(folder, "M", Classifier())["seed"] == 3
    read_nets(folder, again)
    assert all(tensors_hash(nets[n]) == tensors_hash(again[n]) for n in nets)
    assert names(folder) == ["about.json", "nets.safetensors"]
    for bad, says in ((lambda: read_about(folder, "N", Classifier()), "not of a N in format 3: found M"),
                      (lambda: read_about(folder, "M", Classifier("d")), "trained for classifier c, this one is d"),
                      (lambda: read_about(tmp_path, "M", Classifier()), "no M in .*about.json is missing"),
                      (lambda: read_nets(folder, dict(G=nn.Linear(3, 2))), "do not fit together")):
        with pytest.raises(MirrorError, match=says): bad()
    other = new_folder(tmp_path/"o", lambda f: write_nets(f, again | dict(G=nn.Linear(2, 2)),
                                                          dict(kind="M", classifier="c")))
    os.replace(other/"nets.safetensors", folder/"nets.safetensors")
    with pytest.raises(DamagedFile, match="do not fit together .the weights are of another training"):
        read_nets(folder, again)
    (folder/"nets.safetensors").write_bytes(b"half")
    with pytest.raises(DamagedFile, match="nets.safetensors is damaged.*fit and save again"): read_nets(folder, again)

def test_reading_passes_its_own_errors_on(tmp_path):
    (tmp_path/"a").touch()
    with pytest.raises(MirrorError, match="^mine$"):
        with reading(tmp_path/"a"): raise MirrorError("mine")
    with pytest.raises(ZeroDivisionError):
        with reading(tmp_path/"a"): 1/0

@pytest.mark.parametrize("v", [pytest.param(torch.tensor(9).expand(1), id="one, expanded"),
                               pytest.param(torch.tensor([9]).expand(3), id="three, expanded"),
                               pytest.param(torch.arange(6).view(2, 3).T, id="transposed"),
                               pytest.param(torch.zeros(0), id="empty"), pytest.param(torch.tensor(2.), id="scalar")])
def test_bytes_of_a_tensor_do_not_depend_on_its_strides(v):
    assert bytes(storage.tensor_bytes(v)) == v.clone(memory_format=torch.contiguous_format).numpy().tobytes()
