"The command line: refusals in one line, folders that are whole or not there, the user's own images."
import csv, json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
import mirrorcfe.cli as cli
from mirrorcfe import __version__
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.cli import COMMANDS, NewFolder, Progress, Refused, find_images, fit_image, load_explainer, load_network, look_of, main, oddities, read_image, save_network, score
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from tiny import tiny

@pytest.fixture(scope="session")
def small():
    "Data, an untrained classifier as its own oracle, and an explainer trained for one step."
    dls = get_dls("digits", size=16, n_train=64, device="cpu")
    dls.test.dataset = dls.test.dataset.subset(slice(0, 6))
    torch.manual_seed(0)
    net = small_resnet(10, 1, (4, 8), 16, dls.vocab).freeze()
    net.accuracy = .5
    return dls, net, net, MirrorCFE(net, steps=1).fit(dls, progress=False)

@pytest.fixture(scope="session")
def saved(small, tmp_path_factory):
    "What the demo leaves for `explain`."
    folder = tmp_path_factory.mktemp("demo")
    dls, net, oracle, model = small
    cli._keep(folder, model, oracle, look_of(dls.train.dataset[:][0]), dataset="digits", preset="robust", seed=0)
    return folder

@pytest.fixture
def here(tmp_path, monkeypatch, small):
    "An empty folder to be in, with two digits and some things that are no images."
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("one.png", "two.jpg")):
        Image.fromarray(small[0].test.dataset.x[i, 0].numpy()).resize((40, 40)).save(name)
    Path("text.png").write_text("no image")
    Path("empty.png").touch()
    Path("half.png").write_bytes(Path("one.png").read_bytes()[:60])
    Path("folder").mkdir()
    return tmp_path

def refused(capsys, *argv):
    "Run; it must end with code 2 and one line on stderr. Returns the line."
    assert main(list(map(str, argv))) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("mirrorcfe: "), err
    return err.strip()

# --- start-up --------------------------------------------------------------------------------------------------------------------

def test_nothing_heavy_at_start_up():
    code = "import sys; from mirrorcfe.cli import main; main(['--help']); main(['demo', '--help']); print([m for m in ('torch', 'numpy', 'matplotlib', 'PIL', 'fastai') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr

def test_help_and_version(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {c}" in out for c in COMMANDS) and "usage: mirrorcfe" in out
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"mirrorcfe {__version__}\n"
    for c in COMMANDS:
        assert main([c, "--help"]) == 0
        assert f"usage: mirrorcfe {c}" in capsys.readouterr().out

def test_process_ends_with_code_2():
    run = subprocess.run([sys.executable, "-c", "from mirrorcfe.cli import main; import sys; sys.exit(main())", "explian"], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "mirrorcfe: no command 'explian': there are demo, explain\n")

# --- refusals --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv,message", [
    (["explain"], "the following arguments are required: images"), (["demo", "--n", "x"], "invalid int value: 'x'"), (["demo", "--nothing"], "unrecognized arguments"),
    (["demo", "--n", "0"], "--n must be 1 to 300: found 0"), (["demo", "--n", "301"], "--n must be"), (["demo", "--seed", "-1"], "--seed must be"),
    (["demo", "--steps", "-5"], "--steps must be"), (["demo", "--device", "tpu9"], "no device 'tpu9' here"), (["demo", "--preset", "best"], "preset must be one of robust, paper"),
    (["demo", "--out", "one.png"], "is a file"), (["explain", "none.png"], "no such image: none.png"), (["explain", "folder"], "no image in the folder folder"),
    (["explain", "one.png"], "no explainer in mirrorcfe-out: run mirrorcfe demo first"), (["explain", "one.png", "--explainer", "folder"], "no explainer in folder"),
    (["explain", "text.png"], "text.png cannot be read as an image: its contents are of no known kind"), (["explain", "empty.png"], "it is empty"),
    (["explain", "half.png"], "half.png cannot be read as an image"), (["explain", "one.png", "--target", "eleven"], "no class 'eleven': the classes are 0, 1, 2"),
    (["explain", "one.png", "--target", "10"], "no class '10'"), (["explain", "one.png", "--out", "text.png"], "is a file"),
    (["explain", "one.png", "--device", "cuda:99"], "no device 'cuda:99' here")])
def test_refusals(here, saved, capsys, argv, message):
    before = sorted(os.listdir())
    if argv[0] == "explain" and "no explainer" not in message and "required" not in message: argv = [*argv, "--explainer", saved]
    assert message in refused(capsys, *argv)
    assert sorted(os.listdir()) == before, "nothing is left behind"

def test_damaged_explainer(here, saved, capsys):
    import shutil
    shutil.copytree(saved/"explainer", "mine")
    Path("mine/classifier.safetensors").write_bytes(b"half")
    assert "classifier is damaged" in refused(capsys, "explain", "one.png", "--explainer", "mine")
    Path("mine/classifier.safetensors").unlink()
    assert "classifier is missing" in refused(capsys, "explain", "one.png", "--explainer", "mine")

def test_explainer_of_another_classifier(here, saved, capsys, small):
    import shutil
    shutil.copytree(saved/"explainer", "mine")
    other = small_resnet(10, 1, (4, 8), 16).freeze()
    about = json.loads(Path("mine/classifier.json").read_text())
    save_network(other, "mine/classifier", **{k: about[k] for k in ("look", "seed", "preset")})
    assert "was trained for classifier" in refused(capsys, "explain", "one.png", "--explainer", "mine")

def test_a_bug_is_not_a_refusal(monkeypatch):
    monkeypatch.setitem(COMMANDS, "broken", lambda: {}["key"])
    with pytest.raises(KeyError): main(["broken"])

def test_interrupt(monkeypatch, capsys):
    def stop(): raise KeyboardInterrupt
    monkeypatch.setitem(COMMANDS, "broken", stop)
    assert main(["broken"]) == 130 and "stopped" in capsys.readouterr().err

# --- folders ---------------------------------------------------------------------------------------------------------------------

def test_new_folders_are_numbered(tmp_path):
    (tmp_path/"out").mkdir()
    for name in ("out", "out-2", "out-3"):
        with NewFolder(tmp_path/"out") as new: (new.tmp/"a").touch()
        assert new.path == tmp_path/name and (new.path/"a").exists()
    assert sorted(os.listdir(tmp_path)) == ["out", "out-2", "out-3"]

def test_folder_taken_meanwhile(tmp_path):
    with NewFolder(tmp_path/"a"/"out") as new:
        (new.tmp/"mine").touch()
        new.out.mkdir()
        (new.out/"theirs").touch()
    assert new.path.name == "out-2" and os.listdir(new.path) == ["mine"] and os.listdir(new.out) == ["theirs"]

@pytest.mark.parametrize("error", [Refused, KeyboardInterrupt])
def test_failure_leaves_no_folder(tmp_path, error):
    with pytest.raises(error):
        with NewFolder(tmp_path/"out") as new:
            (new.tmp/"a").touch()
            raise error
    assert os.listdir(tmp_path) == []

# --- images ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode,channels", [("L", 1), ("RGB", 1), ("RGBA", 1), ("P", 1), ("1", 1), ("LA", 1), ("CMYK", 1), ("I;16", 1), ("L", 3), ("RGBA", 3)])
def test_kinds_of_images(tmp_path, mode, channels):
    a = np.zeros((20, 20), np.uint8)
    a[5:15, 5:15] = 255
    img = Image.fromarray(a.astype(np.uint16)*257) if mode == "I;16" else Image.fromarray(a).convert(mode)
    img.save(tmp_path/(name := "a.tif" if mode == "CMYK" else "a.png"))
    x = fit_image(read_image(tmp_path/name, channels), 20)
    assert x.shape == (channels, 20, 20) and x.dtype == torch.float32 and abs(float(x.min()) + 1) < .05 and abs(float(x.max()) - 1) < .05

def test_transparent_paper(tmp_path):
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path/"a.png")
    assert float(fit_image(read_image(tmp_path/"a.png", 1, paper=0), 8).max()) == -1

def test_oblong_images_are_padded_with_their_border():
    a = np.full((10, 30), 200, np.uint8)
    a[3:7, 10:20] = 0
    x = fit_image(Image.fromarray(a), 30)
    assert x.shape == (1, 30, 30) and float(x[0, 0, 0]) == pytest.approx(200/127.5 - 1) and float(x[0, 15, 15]) == -1

def test_upright(tmp_path):
    img = Image.fromarray(np.pad(np.full((10, 10), 255, np.uint8), ((0, 10), (0, 10))))
    exif = Image.Exif()
    exif[274] = 3
    img.save(tmp_path/"a.jpg", exif=exif)
    assert fit_image(read_image(tmp_path/"a.jpg"), 20)[0, -1, -1] > .9

def test_crop_fills_the_square():
    a = np.full((60, 40), 250, np.uint8)
    a[30:50, 5:15] = 0
    x = fit_image(Image.fromarray(a), 40, extent=1.)
    assert x[0, 0, 20] == x[0, -1, 20] == -1 and x[0, 20, 0] > .9
    half = fit_image(Image.fromarray(a), 40, extent=.5)
    assert abs(cli._extent(half) - .5) < .06
    assert fit_image(Image.new("L", (9, 9), 7), 8, extent=.9).unique().numel() == 1, "nothing to crop to"

def test_small_content_is_odd(small):
    x = small[0].train.dataset[:][0]
    assert "--crop" in oddities(torch.nn.functional.pad(x[0], (16,)*4, value=-1.), look_of(x))[0]

def test_folders_in_order(here):
    for p in ("text.png", "empty.png", "half.png"): Path(p).unlink()
    assert [p.name for p in find_images([".", "two.jpg"])] == ["one.png", "two.jpg", "two.jpg"]

def test_oddities(small):
    x = small[0].train.dataset[:][0]
    look = look_of(x)
    assert not any(map(lambda i: oddities(i, look), x)), "no training image is odd"
    assert all("--invert" in oddities(-i, look)[0] for i in x)
    assert oddities(torch.zeros(1, 16, 16), look) == ["it is blank"]

# --- networks and numbers --------------------------------------------------------------------------------------------------------

def test_network_comes_back(small, saved):
    dls, net, _, model = small
    x = dls.test.dataset[:][0]
    again, oracle, about = load_explainer(saved)
    for other in (again.classifier, oracle): torch.testing.assert_close(other(x), net(x))
    assert about["classes"] == list("0123456789")
    a, b = (m.explain(x, ks=[0, 1]) for m in (model, again))
    torch.testing.assert_close(a.path, b.path)
    assert load_explainer(saved/"explainer")[2] == about

def test_score():
    ex = tiny(gains=(1., .9, .3, 1.), same=True)
    r = score(ex, lambda x: torch.tensor([[0., 1, 0], [0, 1, 0], [1, 0, 0]]))
    assert r["images"] == 3 and r["val"] == r["oracle"] == r["coverage"] == pytest.approx(2/3)
    assert r["confidence_error"] == pytest.approx(float((ex.intended - ex.achieved)[:3].abs().mean()))
    assert r["l1_reflection"] == pytest.approx(float(ex.difference[:3, -1].mean()))
    assert r["l1_first"] == pytest.approx(float(torch.stack([ex.difference[i, ex.first_index[i]] for i in (0, 1)]).mean()))
    assert score(ex)["oracle"] != score(ex)["oracle"], "no oracle, no number"

def test_progress_in_a_pipe(capsys):
    line = Progress("train")
    for i in range(1, 101): line(i, 100)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5 and "100%" in out[-1] and "left" in out[1]

# --- whole runs ------------------------------------------------------------------------------------------------------------------

def rows(path):
    with open(path, encoding="utf-8") as f: return list(csv.DictReader(f))

def test_explain_whole(here, saved, capsys):
    argv = ["explain", "one.png", "two.jpg", "--explainer", str(saved), "--out", "res", "--device", "cpu"]
    assert main(argv) == 0
    printed, res = capsys.readouterr().out, here/"res"
    assert "Results in res:" in printed and "one.png: " in printed
    files = {p.relative_to(res).as_posix() for p in res.rglob("*") if p.is_file()}
    assert {"results.md", "results.csv", "samples.csv", "grid.png", "animation.gif"} <= files and len([f for f in files if f.startswith("strips/")]) == 2
    page = (res/"results.md").read_text(encoding="utf-8")
    assert all((res/link.split(")")[0]).is_file() for link in page.split("](")[1:])
    assert [r["file"] for r in rows(res/"samples.csv")] == ["one.png", "two.jpg"]
    assert rows(res/"results.csv")[0]["images"] == "2"
    for f in files:
        if f.endswith((".png", ".gif")):
            with Image.open(res/f) as img: img.load()
    assert not [p for p in here.iterdir() if p.name.startswith(".")]

def test_already_target_is_a_row(here, saved, small, capsys):
    c = small[1](fit_image(read_image("one.png"), 16)[None]).argmax().item()
    assert main(["explain", "one.png", "--target", str(c), "--explainer", str(saved), "--out", "res"]) == 0
    assert "already target" in capsys.readouterr().out and rows("res/samples.csv")[0]["status"] == "already target"
    assert rows("res/results.csv")[0]["images"] == "0"

def test_demo_whole(here, small, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_prepare", lambda *a: small)
    monkeypatch.setattr(MirrorCFE, "fit", lambda self, *a, **k: self)
    Path("mirrorcfe-out").mkdir()
    Path("mirrorcfe-out/kept").touch()
    assert main(["demo", "--n", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "mirrorcfe-out is not empty: writing to mirrorcfe-out-2" in printed and os.listdir("mirrorcfe-out") == ["kept"]
    r = rows("mirrorcfe-out-2/results.csv")[0]
    assert r["images"] == "6" and r["device"] == "cpu" and {"val", "oracle", "confidence_error", "l1_reflection", "coverage", "seed", "classifier_accuracy"} <= r.keys()
    assert len(rows("mirrorcfe-out-2/samples.csv")) == 2 and "truth" in rows("mirrorcfe-out-2/samples.csv")[0]
    assert load_explainer("mirrorcfe-out-2")[0] is not None

def test_arguments():
    assert cli._parse("explain", ["a.png", "b", "--invert", "--target", "3"]) == dict(images=["a.png", "b"], explainer="mirrorcfe-out", target="3",
                                                                                 out="mirrorcfe-out-explain", invert=True, crop=False, device="auto")
    assert cli._parse("demo", []) == dict(out="mirrorcfe-out", n=8, seed=0, preset="robust", steps=450, measure=300, device="auto")
