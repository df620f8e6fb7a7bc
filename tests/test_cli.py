"The command line: light help, refusals in one line, and every command from its words to the files it leaves."
import errno, inspect, io, os, subprocess, sys
from pathlib import Path
import pytest, torchvision
from PIL import Image
import mirrorcfe.checks as checks, mirrorcfe.cli as cli, mirrorcfe.outcomes as outcomes
import mirrorcfe.own as own, mirrorcfe.runs as runs
from mirrorcfe import __version__
from mirrorcfe.classifiers import ARCHITECTURES
from mirrorcfe.cli import COMMANDS, FOR_PROGRAMMERS, PLACEHOLDERS, main, parse, show_warning
from mirrorcfe.core import MirrorError
from mirrorcfe.data import DATASETS
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import NORMALISE
from mirrorcfe.forecast import Forecast
from mirrorcfe.images import fit_image, read_image
from mirrorcfe.runs import check_writable, load_explainer, save_network
from mirrorcfe.training import PRESETS
from commands import refused, rows

@pytest.fixture
def no_warnings(monkeypatch):
    "Leave warnings out, where files that cannot be read are not the point."
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)

# --- start-up --------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "numpy", "matplotlib", "PIL", "fastai")

def test_nothing_heavy_at_start_up():
    code = f"""
import sys
from mirrorcfe.cli import COMMANDS, main
main(['--help'])
for name in COMMANDS: main([name, '--help'])
print([m for m in {HEAVY} if m in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr

REFUSED = [["explian"], ["demo", "--n", "0"], ["demo", "--preset", "best"], ["demo", "--device", "tpu9"],
           ["demo", "--out", "file"], ["train", "--data", "nothing"], ["train", "--size", "4"],
           ["train", "--fit", "no"], ["train", "--pair", "a"],
           ["train", "--classifier", "none.pth"], ["train", "--classes", "none.txt"],
           ["train", "--factory", "none.py:f"], ["train", "--normalise", "much"], ["train", "--levels", "9", "1"],
           ["train", "--arch", "resnet18"], ["train", "--attribute", "2"],
           ["train", "--classifier", "file", "--arch", "resnet81"], ["train", "--factory", "file:f", "--arch", "lenet"],
           ["train", "--resize", "big"], ["train", "--interpolation", "bilinear"],
           ["train", "--crop", "8", "--fit", "whole"], ["explain", "none.png"], ["explain", "file"],
           ["explain", "file", "--explainer", "e", "--target", "emu"], ["evaluate", "--steps", "1"],
           ["explain", "file", "--explainer", "e", "--target-confidence", "1"], ["evaluate", "--explainer", "nowhere"],
           ["evaluate", "--explainer", "e", "--pair", "cat", "cow"], ["animate", "--fps", "0"],
           ["animate", "--size", "161"], ["animate", "--format", "avi"]]

def test_refused_without_torch(tmp_path):
    "What can be refused is refused within a moment: nothing heavy is imported, and no picture is read."
    (tmp_path/"file").touch()
    (tmp_path/"e").mkdir()
    (tmp_path/"e"/"classifier.json").write_text('{"classes": ["cat", "dog"]}')
    code = f"""
import sys
from mirrorcfe.cli import main
print([(argv, main(argv)) for argv in {REFUSED!r} if main(argv) != 2])
print([m for m in {HEAVY} if m in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.stdout.splitlines() == ["[]", "[]"], run.stdout + run.stderr
    assert len(set(run.stderr.splitlines())) == len(REFUSED), "each for a reason of its own"

def test_names_that_stand_twice():
    "The lists that are there before torch is say what the modules say."
    assert set(checks.PRESET_NAMES) == set(PRESETS) and set(checks.DATASET_NAMES) == set(DATASETS)
    assert set(checks.NORMALISE_NAMES) == set(NORMALISE) and set(checks.NETWORK_NAMES) == set(ARCHITECTURES)
    for name in torchvision.models.list_models(module=torchvision.models): checks.check_arch(name)
    assert checks.RANGES.keys() == COMMANDS.keys() - {"app"}, "which looks at its own words, without torch"
    assert all(ranges.keys() <= parse(name, ["x"]*(name == "explain")).keys() for name, ranges in checks.RANGES.items())

class Reader(io.StringIO):
    "A stream whose reader leaves after some writes."
    encoding = "utf-8"
    def __init__(self, writes, error):
        super().__init__()
        self.writes = writes
        self.error = error
    def write(self, text):
        self.writes -= 1
        if self.writes < 0: raise self.error
        return super().write(text)

GONE = [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.ENOSPC, "No space left"), ValueError("closed file")]

@pytest.mark.parametrize("error", GONE, ids=str)
def test_results_do_not_depend_on_a_reader(here, saved, monkeypatch, no_warnings, error):
    "The reader leaves after the first line, as in `| head -1`: the results are those of a run that is read."
    for name in ("stdout", "stderr"): monkeypatch.setattr(sys, name, Reader(1, error))
    assert main(["explain", "one.png", "--explainer", str(saved), "--out", "out"]) == 0
    assert {"results.md", "samples.csv", "strips"} <= {f.name for f in Path("out").iterdir()}
    assert main(["explain", "none.png", "--explainer", str(saved)]) == 2

def test_nowhere_to_print(here, saved, monkeypatch, no_warnings):
    for name in ("stdout", "stderr"): monkeypatch.setattr(sys, name, None)
    assert main(["explain", "one.png", "--explainer", str(saved), "--out", "out"]) == 0 and Path("out").is_dir()

@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "utf-8"])
def test_any_console_will_do(here, saved, monkeypatch, no_warnings, encoding):
    "Names and arrows are written out where the console does not know them, and nothing in a name reaches the terminal."
    if encoding not in ("ascii", "cp437"): monkeypatch.setattr(own, "write_pictures", lambda *a: {})   # it prints a bar
    Path("one.png").rename("größe \x1b[31m→.png")
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["explain", "größe \x1b[31m→.png", "--explainer", str(saved), "--out", "out"]) == 0
    said = out.buffer.getvalue().decode(encoding)
    assert Path("out/results.md").exists() and "\x1b" not in said and r"\x1b[31m" in said
    assert ("größe" in said) == (encoding != "ascii") and ("→" in said) == (encoding == "utf-8")

@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_output(root):
    code = "import sys; from mirrorcfe.cli import main; sys.exit(main())"
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-c", code, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (0, "")

def test_process_ends_with_code_2():
    code = "import sys; from mirrorcfe.cli import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", code, "explian"], capture_output=True, text=True)
    message = "mirrorcfe: no command 'explian': there are demo, train, explain, evaluate, animate, app\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", message)

def test_help_and_version(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {c}" in out for c in COMMANDS) and "usage: mirrorcfe" in out
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"mirrorcfe {__version__}\n"
    for c in COMMANDS:
        assert main([c, "--help"]) == 0
        assert f"usage: mirrorcfe {c}" in capsys.readouterr().out

@pytest.mark.parametrize("name,module", [("demo", runs), ("train", own), ("explain", own), ("evaluate", outcomes),
                                         ("animate", outcomes)])
def test_a_command_has_the_parameters_of_its_function(name, module):
    "Same names and defaults, but for images that are none: a command line has no default for its words."
    assert name in COMMANDS
    defaults = lambda f: {n: p.default for n, p in inspect.signature(f).parameters.items() if n != "images"}
    assert defaults(COMMANDS[name]) == defaults(getattr(module, name))

def test_every_option_is_explained(capsys):
    for c in COMMANDS:
        main([c, "--help"])
        out = capsys.readouterr().out
        parameters = inspect.signature(COMMANDS[c]).parameters.values()
        for option in (p.name for p in parameters if p.default is not p.empty):   # the others are arguments
            assert f"--{option.replace('_', '-')} " in out, (c, option)
        assert "_" not in out.split("options:")[0] and "(default: None)" not in out and "(default: False)" not in out
    names = set().union(*(inspect.signature(f).parameters for f in COMMANDS.values()))
    assert PLACEHOLDERS.keys() <= names

def test_arguments():
    got = parse("explain", ["a.png", "b", "--invert", "--target", "3", "--target-confidence", ".5", ".8"])
    assert got == dict(images=["a.png", "b"], explainer="mirrorcfe-out", target="3", target_confidence=[".5", ".8"],
                       out="mirrorcfe-out-explain", invert=True, trim=False, resize=None,
                       crop=None, interpolation=None, levels=None, factory=None, device="auto")
    defaults = dict(out="mirrorcfe-out", n=8, seed=0, preset="default", steps=600, measure=300, device="auto")
    assert parse("demo", []) == defaults

def test_warnings_take_one_line(capsys):
    for kind in FOR_PROGRAMMERS: show_warning("old", kind)
    assert capsys.readouterr().err == ""
    show_warning("dark", UserWarning, "file", 3)
    assert capsys.readouterr().err == "note: dark\n", "as the notes of the commands begin"

# --- refusals --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv,message", [
    (["explain"], "the following arguments are required: IMAGE"),
    (["demo", "--n", "x"], "invalid int value: 'x'"),
    (["demo", "--nothing"], "unrecognized arguments"),
    (["demo", "--n", "0"], "--n must be 1 to 300: found 0"),
    (["demo", "--n", "301"], "--n must be"),
    (["demo", "--seed", "-1"], "--seed must be"),
    (["demo", "--steps", "-5"], "--steps must be"),
    (["demo", "--device", "tpu9"], "no device 'tpu9' here"),
    (["demo", "--preset", "best"], "preset must be one of default"),
    (["demo", "--out", "one.png"], "is a file"),
    (["explain", "one.png"], "no explainer in mirrorcfe-out: run mirrorcfe demo or mirrorcfe train first"),
    (["explain", "one.png", "--explainer", "folder"], "no explainer in folder")])
def test_refusals(here, capsys, argv, message):
    before = sorted(os.listdir())
    assert message in refused(capsys, *argv)
    assert sorted(os.listdir()) == before, "nothing is left behind"

@pytest.mark.parametrize("argv,message", [
    (["none.png"], "no such image: none.png"),
    (["folder"], "no image in the folder folder"),
    (["text.png"], "text.png cannot be read as an image: its contents are of no known kind"),
    (["empty.png"], "it is empty"),
    (["half.png"], "half.png cannot be read as an image"),
    (["one.png", "--target", "eleven"], "no class 'eleven': the classes are 0, 1, 2"),
    (["one.png", "--target", "10"], "no class '10'"),
    (["one.png", "--target", "far"], "no class 'far'"),
    (["one.png", "--out", "text.png"], "is a file"),
    (["one.png", "--device", "cuda:99"], "no device 'cuda:99' here"),
    (["one.png", "--target-confidence", "1"], "neither included: found 1"),
    (["one.png", "--target-confidence", "much"], "such as .8: found much"),
    (["one.png", "--target-confidence"], "expected at least one argument")])
def test_explain_refusals(here, saved, capsys, argv, message):
    before = sorted(os.listdir())
    assert message in refused(capsys, "explain", *argv, "--explainer", saved)
    assert sorted(os.listdir()) == before, "nothing is left behind"

@pytest.mark.parametrize("argv,message", [
    (["--data", "nothing"], "nothing is neither a folder nor a dataset"),
    (["--data", "one"], "must have a folder for each of two or more classes, with three images or more: found 1 in a"),
    (["--pair", "three"], "--pair takes two classes: found three"),
    (["--pair", "three", "cow"], "no class 'cow': the classes are ei ght, three"),
    (["--pair", "three", "1"], "both are three"),
    (["--steps", "0"], "--steps must be 1"),
    (["--preset", "best"], "preset must be one of"),
    (["--size", "4"], "size must be 8 to 1024"),
    (["--classifier", "none.pth"], "no such file: none.pth"),
    (["--classifier", "one/a/x.png"], "cannot be read as plain weights"),
    (["--device", "tpu"], "no device 'tpu' here")])
def test_train_refusals(pets, tmp_path, monkeypatch, capsys, no_warnings, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("one/a").mkdir(parents=True)
    Image.new("L", (9, 9)).save("one/a/x.png")
    data = [] if "--data" in argv else ["--data", pets]
    assert message in refused(capsys, "train", *data, "--out", "out", *argv)
    assert os.listdir() == ["one"], "nothing is left behind"

def test_wrong_classes_are_named(pets, small, tmp_path, capsys, no_warnings):
    save_network(small[1], tmp_path/"net")
    line = refused(capsys, "train", "--data", pets, "--classifier", tmp_path/"net", "--out", tmp_path/"out")
    assert "the classifier knows no ei ght, three: its classes are 0, 1" in line

def test_what_a_saved_classifier_knows_is_not_passed_over(pets, small, tmp_path, capsys, no_warnings):
    save_network(small[1], tmp_path/"net")
    train = "train", "--data", pets, "--classifier", tmp_path/"net", "--out", tmp_path/"out"
    assert "saved with --size 16x16, here it is 48x48" in refused(capsys, *train, "--size", "48")
    assert "saved with --normalise none, here it is imagenet" in refused(capsys, *train, "--normalise", "imagenet")
    (tmp_path/"names.txt").write_text("three\nbird\n" + "\n".join("abcdefgh"))
    assert "its classes are three, bird" in refused(capsys, *train, "--classes", tmp_path/"names.txt", "--size", "16")

def test_a_bug_is_not_a_refusal(monkeypatch):
    monkeypatch.setitem(COMMANDS, "broken", lambda: {}["key"])
    with pytest.raises(KeyError): main(["broken"])

def test_interrupt(monkeypatch, capsys):
    def stop(): raise KeyboardInterrupt
    monkeypatch.setitem(COMMANDS, "broken", stop)
    assert main(["broken"]) == 130 and "stopped" in capsys.readouterr().err

# --- where nothing can be written ------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv", [["explain", "one.png"], ["evaluate"], ["animate"], ["train"], ["demo"]])
def test_read_only_place(here, saved, capsys, monkeypatch, argv):
    "Refused in one line, before anything is read or trained."
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode, **k: False if Path(p) == here else access(p, mode, **k))
    if argv[0] not in ("train", "demo"): argv = [*argv, "--explainer", saved]
    line = refused(capsys, *argv, "--out", "new")
    assert "cannot be written to: give another place by --out" in line and not Path("new").exists()
    with pytest.raises(MirrorError, match="is a file, not a folder"): check_writable("one.png/new")

def test_folder_cannot_be_made(here, saved, capsys, monkeypatch):
    def no(*a, **k): raise OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(runs.tempfile, "mkdtemp", no)
    assert "no folder can be made in" in refused(capsys, "explain", "one.png", "--explainer", saved, "--out", "new")

@pytest.mark.parametrize("where", ["write_pictures", "write_results", "write_target_confidence"])
def test_disk_full(here, saved, capsys, monkeypatch, where):
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    if where != "write_pictures": monkeypatch.setattr(own, "write_pictures", lambda *a: {})   # they take seconds
    monkeypatch.setattr(own, where, full)
    before = sorted(os.listdir())
    argv = ["explain", "one.png", "--target-confidence", ".5", "--explainer", saved, "--out", "new"]
    assert "No space left on device" in refused(capsys, *argv)
    assert sorted(os.listdir()) == before

# --- whole runs ------------------------------------------------------------------------------------------------------

def test_demo_whole(here, small, capsys, monkeypatch):
    monkeypatch.setattr(runs, "prepare_demo", lambda *a: (*small, Forecast(1., 1.)))
    monkeypatch.setattr(MirrorCFE, "fit", lambda self, *a, **k: self)
    Path("mirrorcfe-out").mkdir()
    Path("mirrorcfe-out/kept").touch()
    assert main(["demo", "--n", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "mirrorcfe-out is not empty: writing to mirrorcfe-out-2" in printed
    assert os.listdir("mirrorcfe-out") == ["kept"]
    r = rows("mirrorcfe-out-2/results.csv")[0]
    assert r["images"] == "6" and r["device"] == "cpu"
    assert {"val", "oracle", "confidence_error", "l1_reflection", "coverage", "seed", "classifier_accuracy"} <= r.keys()
    samples = rows("mirrorcfe-out-2/samples.csv")
    assert len(samples) == 2 and "truth" in samples[0]
    assert load_explainer("mirrorcfe-out-2")[0] is not None

def test_explain_whole(here, saved, capsys):
    assert main(["explain", "one.png", "two.jpg", "--explainer", str(saved), "--out", "res", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    res = here/"res"
    assert "animation.gif, grid.png, results.csv, samples.csv, confidence/, strips/\n" in printed
    assert "Results in res:" in printed and "one.png: " in printed
    files = {p.relative_to(res).as_posix() for p in res.rglob("*") if p.is_file()}
    assert {"results.md", "results.csv", "samples.csv", "grid.png", "animation.gif"} <= files
    assert len([f for f in files if f.startswith("strips/")]) == 2
    page = (res/"results.md").read_text(encoding="utf-8")
    assert all((res/link.split(")")[0]).is_file() for link in page.split("](")[1:])
    assert [r["file"] for r in rows(res/"samples.csv")] == ["one.png", "two.jpg"]
    assert rows(res/"results.csv")[0]["images"] == "2"
    for f in files:
        if not f.endswith((".png", ".gif")): continue
        with Image.open(res/f) as img: img.load()
    assert not [p for p in here.iterdir() if p.name.startswith(".")]

def test_already_target_is_a_row(here, saved, small, capsys):
    c = small[1](fit_image(read_image("one.png"), 16)[None]).argmax().item()
    argv = ["--target", str(c), "--target-confidence", ".5", "--explainer", str(saved), "--out", "res"]
    assert main(["explain", "one.png", *argv]) == 0
    said = capsys.readouterr().out
    assert "already target" in said
    assert said.endswith("results.md (read it first), results.csv, samples.csv, target_confidence.csv\n")
    assert rows("res/samples.csv")[0]["status"] == "already target" and rows("res/results.csv")[0]["images"] == "0"

def test_target_confidences(here, saved, capsys, monkeypatch):
    monkeypatch.setattr(own, "write_pictures", lambda *a: {})
    argv = ["one.png", "two.jpg", "--target", "closest", "--target-confidence", ".5", ".99", "--explainer", str(saved)]
    assert main(["explain", *argv, "--out", "res", "--device", "cpu"]) == 0
    got = rows("res/target_confidence.csv")
    expected = [("one.png", .5), ("one.png", .99), ("two.jpg", .5), ("two.jpg", .99)]
    assert [(r["image"], float(r["p"])) for r in got] == expected
    page = Path("res/results.md").read_text(encoding="utf-8")
    assert "target_confidence.csv, target_confidence/" in capsys.readouterr().out
    assert "## Target confidences" in page and all((Path("res")/r["picture"]).is_file() for r in got)

def test_all_targets(here, saved, capsys, monkeypatch):
    monkeypatch.setattr(own, "write_pictures", lambda *a: {})
    argv = ["explain", "one.png", "--target", "all", "--explainer", str(saved), "--out", "res", "--device", "cpu"]
    assert main(argv) == 0
    got = rows("res/samples.csv")
    assert len(got) == 9 and len({r["target"] for r in got}) == 9 and {r["file"] for r in got} == {"one.png"}
    assert (rows("res/results.csv")[0]["images"], rows("res/results.csv")[0]["targets"]) == ("1", "9")
    assert "\n1 image toward 9 classes: the classifier takes" in capsys.readouterr().out

def test_how_the_pictures_were_read_is_written_down(here, saved, monkeypatch):
    monkeypatch.setattr(own, "write_pictures", lambda *a: {})
    how = {"--invert": ", inverted", "--trim": "", "--levels 0 4095.5": ", levels 0 4095.5"}
    for options, fitted in (([], "all of it"), (how, "trimmed")):
        argv = ["explain", "one.png", *" ".join(options).split(), "--explainer", str(saved), "--out", "res"]
        assert main([*argv, "--device", "cpu"]) == 0
        says = f"{fitted}, padded, bicubic{''.join(how[o] for o in options)}, in grey"
        out = "res-2" if options else "res"
        assert rows(f"{out}/results.csv")[0]["pictures"] == says
        assert f"| pictures | {says} |" in Path(out, "results.md").read_text(encoding="utf-8")
