"A short form of the soak in benchmarks/: it ends well, and it sees what does not."
import importlib.util, os
from pathlib import Path
import pytest
from mirrorcfe import storage

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forks of a process")

@pytest.fixture(scope="module")
def soak():
    file = Path(__file__).resolve().parent.parent/"benchmarks"/"soak.py"
    spec = importlib.util.spec_from_file_location("soak", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def test_a_short_soak(soak, monkeypatch, tmp_path):
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path))
    run = soak.Soak(0, ("save", "keep_explanation", "network", "cache"))
    run.fuzz(60)
    assert run.run(0, ("kill", "fill", "flip", "kill", "fill", "flip")) == 6 and not run.wrong, run.wrong
    assert "| SIGKILL, then the same call |" in run.table() and sum(run.counts.values()) == 60 + 8

def test_it_sees_what_is_torn(soak, monkeypatch):
    "A file that is written in place and read without a checksum."
    def torn(folder):
        file = folder/"it.txt"
        if not file.exists():
            with open(file, "wb", 0) as f:
                for _ in range(40):
                    f.write(b"x")
                    os.fsync(f.fileno())
        return len(file.read_bytes()), set(file.read_bytes())
    monkeypatch.setitem(soak.JOBS, "torn", torn)
    monkeypatch.setitem(soak.SHOWN, "torn", "a torn file")
    run = soak.Soak(0, ["torn"])
    run.run(0, ("kill",)*6 + ("flip",)*3)
    words = {word for *_, word in run.counts}
    assert "ANOTHER RESULT" in words and len(run.wrong) >= 4

def test_outcomes(soak):
    assert soak.judged(("value", 1), 1) == ("the same result", None)
    assert soak.judged(("value", 2), 1)[0] == "ANOTHER RESULT"
    assert soak.judged(("refused", "a.json is damaged"), 1, "a.json")[0] == "refused by name"
    assert soak.judged(("refused", "it is damaged"), 1, "a.json")[0] == "REFUSED WITHOUT THE NAME"
    def broken(): raise IndexError("list index out of range")
    assert soak.outcome_of(broken)[0] == "foreign"
    def refused(): raise storage.DamagedFile("a is damaged")
    assert soak.outcome_of(refused) == ("refused", "a is damaged")
