"A short form of the soak in benchmarks/: it ends well, and it sees what does not."
import json, os
from pathlib import Path
import pytest
from processes import Started

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forks of a process")

SOAK = Path(__file__).resolve().parent.parent/"benchmarks"/"soak.py"

# Each test has a process of its own, with one thread: the process of the tests has a pool of them, which no fork gets.
LOAD = """
import importlib.util, json, os, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("soak", sys.argv[1])
soak = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soak)
def tell(**found): Path(sys.argv[2]).write_text(json.dumps(found))
"""

@pytest.fixture
def found(tmp_path):
    "Runs code after LOAD, and returns what it told."
    def run(code):
        process = Started(LOAD + code, [SOAK, tmp_path/"found.json"], tmp_path/"said.txt",
                          MIRRORCFE_CACHE=tmp_path/"cache")
        assert process.wait(240) == 0, process.said
        return json.loads((tmp_path/"found.json").read_text())
    return run

def test_a_short_soak(found):
    it = found("""
run = soak.Soak(0, ("save", "keep_explanation", "network", "cache"))
run.fuzz(60)
trials = run.run(0, ("kill", "fill", "flip", "kill", "fill", "flip"))
tell(trials=trials, wrong=run.wrong, outcomes=sum(run.counts.values()), table=run.table())
""")
    assert it["trials"] == 6 and not it["wrong"], it["wrong"]
    assert "| SIGKILL, then the same call |" in it["table"] and it["outcomes"] == 60 + 8

def test_it_sees_what_is_torn(found):
    "A file that is written in place and read without a checksum."
    it = found("""
def torn(folder):
    file = folder/"it.txt"
    if not file.exists():
        with open(file, "wb", 0) as f:
            for _ in range(40):
                f.write(b"x")
                os.fsync(f.fileno())
    return len(file.read_bytes()), set(file.read_bytes())
soak.JOBS["torn"] = torn
soak.SHOWN["torn"] = "a torn file"
run = soak.Soak(0, ["torn"])
run.run(0, ("kill",)*6 + ("flip",)*3)
tell(wrong=run.wrong, words=[word for *_, word in run.counts])
""")
    assert "ANOTHER RESULT" in it["words"] and len(it["wrong"]) >= 4

def test_outcomes(found):
    it = found("""
def broken(): raise IndexError("list index out of range")
def refused(): raise soak.storage.DamagedFile("a is damaged")
hung = soak.in_child(lambda: time.sleep(60), patience=.2)
tell(same=soak.judged(("value", 1), 1), other=soak.judged(("value", 2), 1),
     named=soak.judged(("refused", "a.json is damaged"), 1, "a.json"),
     nameless=soak.judged(("refused", "it is damaged"), 1, "a.json"),
     broken=soak.outcome_of(broken)[0], refused=soak.outcome_of(refused), hung=hung, as_word=soak.judged(hung, 1))
""")
    assert it["same"] == ["the same result", None] and it["other"][0] == "ANOTHER RESULT"
    assert it["named"][0] == "refused by name" and it["nameless"][0] == "REFUSED WITHOUT THE NAME"
    assert it["broken"] == "foreign" and it["refused"] == ["refused", "a is damaged"]
    assert it["hung"] == ["hung", None] and it["as_word"][0] == "HUNG"
