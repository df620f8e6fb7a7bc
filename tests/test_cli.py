"The command line: refusals in one line, folders that are whole or not there, the user's own images."
import contextlib, csv, errno, io, json, os, shutil, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
import mirrorcfe.cli as cli, mirrorcfe.own as own, mirrorcfe.runs as runs
from mirrorcfe import __version__
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.cli import COMMANDS, UsageError, main, parse
from mirrorcfe.core import MirrorError
from mirrorcfe.runs import (NORMALISE, NewFolder, Progress, check_writable, finish_run, load_explainer, load_network, measure_explanation, open_network,
                            pick_test_images, save_explainer, save_network, slug)
from mirrorcfe.own import CHECKPOINT_STEPS, CLASSIFIER_STEPS, match_classes, open_classifier, open_data, read_weights
from mirrorcfe.images import find_images, fit_image, look_of, oddities, read_image
from mirrorcfe.outcomes import EVALUATION_COLUMNS, film_name
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from tiny import tiny

@pytest.fixture(scope="session")
def small():
    "Data, an untrained classifier, an untrained oracle, and an explainer trained for one step."
    dls = get_dls("digits", size=16, n_train=64, device="cpu")
    dls.test.dataset = dls.test.dataset.subset(slice(0, 6))
    torch.manual_seed(0)
    net = small_resnet(10, 1, (4, 8), 16, dls.vocab).freeze()
    net.accuracy = .5
    oracle = small_resnet(10, 1, (4, 6), 16, dls.vocab).freeze()
    oracle.accuracy = .5
    return dls, net, oracle, MirrorCFE(net, steps=1).fit(dls, progress=False)

@pytest.fixture(scope="session")
def saved(small, tmp_path_factory):
    "What the demo leaves for `explain`."
    folder = tmp_path_factory.mktemp("demo")
    dls, net, oracle, model = small
    save_explainer(folder, model, oracle, look=look_of(dls.train.dataset[:][0]), dataset="digits", preset="robust", seed=0)
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
    code = "import sys; from mirrorcfe.cli import main; main(['--help']); [main([c, '--help']) for c in ('demo', 'train', 'evaluate', 'animate')]; print([m for m in ('torch', 'numpy', 'matplotlib', 'PIL', 'fastai') if m in sys.modules])"
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
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "mirrorcfe: no command 'explian': there are demo, train, explain, evaluate, animate\n")

# --- refusals --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv,message", [
    (["explain"], "the following arguments are required: IMAGE"), (["demo", "--n", "x"], "invalid int value: 'x'"), (["demo", "--nothing"], "unrecognized arguments"),
    (["demo", "--n", "0"], "--n must be 1 to 300: found 0"), (["demo", "--n", "301"], "--n must be"), (["demo", "--seed", "-1"], "--seed must be"),
    (["demo", "--steps", "-5"], "--steps must be"), (["demo", "--device", "tpu9"], "no device 'tpu9' here"), (["demo", "--preset", "best"], "preset must be one of robust, near, paper"),
    (["demo", "--out", "one.png"], "is a file"), (["explain", "none.png"], "no such image: none.png"), (["explain", "folder"], "no image in the folder folder"),
    (["explain", "one.png"], "no explainer in mirrorcfe-out: run mirrorcfe demo or mirrorcfe train first"), (["explain", "one.png", "--explainer", "folder"], "no explainer in folder"),
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
    shutil.copytree(saved/"explainer", "mine")
    Path("mine/classifier.safetensors").write_bytes(b"half")
    assert "classifier is damaged" in refused(capsys, "explain", "one.png", "--explainer", "mine")
    Path("mine/classifier.safetensors").unlink()
    assert "classifier is missing" in refused(capsys, "explain", "one.png", "--explainer", "mine")

def test_explainer_of_another_classifier(here, saved, capsys, small):
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

@pytest.mark.parametrize("error", [MirrorError, KeyboardInterrupt])
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
    assert abs(look_of(half[None])['extent'] - .5) < .06
    assert fit_image(Image.new("L", (9, 9), 7), 8, extent=.9).unique().numel() == 1, "nothing to crop to"

def test_small_content_is_odd(small):
    x = small[0].train.dataset[:][0]
    assert "--crop" in oddities(torch.nn.functional.pad(x[0], (16,)*4, value=-1.), look_of(x))[0]

def test_folders_in_order(here):
    for p in ("text.png", "empty.png", "half.png"): Path(p).unlink()
    assert [p.name for p in find_images([".", "two.jpg"])] == ["one.png", "two.jpg", "two.jpg"]

def test_folders_below(here):
    Path("folder/a").mkdir()
    for f in ("folder/a/1.PNG", "folder/2.webp", "folder/.3.png", "folder/4.txt"): Path(f).touch()
    assert [p.as_posix() for p in find_images(["folder"])] == ["folder/2.webp", "folder/a/1.PNG"]

def test_oddities(small):
    x = small[0].train.dataset[:][0]
    look = look_of(x)
    assert not any(map(lambda i: oddities(i, look), x)), "no training image is odd"
    assert all("--invert" in oddities(-i, look)[0] for i in x)
    assert oddities(torch.zeros(1, 16, 16), look) == ["it is blank"]

# --- networks and numbers --------------------------------------------------------------------------------------------------------

def test_network_comes_back(small, saved):
    dls, net, second, model = small
    x = dls.test.dataset[:][0]
    again, oracle, about = load_explainer(saved)
    torch.testing.assert_close(again.classifier(x), net(x))
    torch.testing.assert_close(oracle(x), second(x))
    assert about["classes"] == list("0123456789")
    a, b = (m.explain(x, ks=[0, 1]) for m in (model, again))
    torch.testing.assert_close(a.path, b.path)
    assert load_explainer(saved/"explainer")[2] == about

def test_numbers_of_an_explanation():
    "Each column is what its name says, computed here from the explanation itself."
    ex = tiny(gains=(1., .9, .3, 1.), same=True)
    ex.target[2] = 2
    bright = lambda x, place: x[:, 0, 8, place]   # the bar is there
    classifier = lambda x: torch.stack([bright(x, 0), bright(x, -1), torch.zeros(len(x))], 1)
    oracle = lambda x: torch.stack([torch.ones(len(x)), 2*bright(x, -1), torch.zeros(len(x))], 1)
    r = measure_explanation(ex, classifier, oracle)
    assert r["images"] == 3 and r["ks"] == len(ex.ks)
    assert r["val"] == r["oracle"] == r["coverage"] == pytest.approx(2/3)
    assert r["confidence_error"] == pytest.approx(float((ex.intended - ex.achieved)[:3].abs().mean()))
    assert r["l1_reflection"] == pytest.approx(float(ex.difference[:3, -1].mean()))
    first = [ex.difference[i, ex.first_index[i]] for i in (0, 1)]
    assert r["l1_first"] == pytest.approx(float(torch.stack(first).mean()))
    without = measure_explanation(ex, classifier)
    assert without["oracle"] != without["oracle"], "no oracle, no number"
    nothing = measure_explanation(ex[3], classifier)
    assert nothing["images"] == 0 and nothing["val"] != nothing["val"]

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
    monkeypatch.setattr(runs, "prepare_demo", lambda *a: small)
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
    assert parse("explain", ["a.png", "b", "--invert", "--target", "3"]) == dict(images=["a.png", "b"], explainer="mirrorcfe-out", target="3",
                                                                                 target_confidence=None, out="mirrorcfe-out-explain", invert=True, crop=False, device="auto")
    assert parse("demo", []) == dict(out="mirrorcfe-out", n=8, seed=0, preset="robust", steps=450, measure=300, device="auto")

# --- file names ------------------------------------------------------------------------------------------------------------------

@given(st.text(max_size=60))
def test_slugs_are_safe(name):
    s = slug(name)
    assert s and len(s) <= 40 and not set(s) & set('/\\:*?"<>|._\0\n ') and s[0] != "-" and s[-1] != "-" and slug(s) == s

def test_film_names():
    ex = tiny(classes=("T-shirt/top", "猫", "up"))
    assert film_name(ex, 0, 3, "mp4", 0) == "no3_T-shirt-top_(GT_T-shirt-top)_to_猫_correct.mp4"
    assert film_name(ex, 0, 3, "gif", 2) == "no3_T-shirt-top_(GT_up)_to_猫_error.gif" and film_name(ex, 0, 1, "gif", -1) == film_name(ex, 0, 1, "gif") == "no1_T-shirt-top_to_猫.gif"

# --- classifiers from files ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    "Weights of a resnet18 of two classes, in the forms in which they come."
    from safetensors.torch import save_file
    from torchvision.models import resnet18
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    net = resnet18(num_classes=2).eval()
    w = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(w, folder/"net.safetensors")
    torch.save(w, folder/"net.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in w.items()}}, folder/"parallel.pt")
    torch.save(net, folder/"whole.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(folder/"script.pt")
    torch.save([1, 2], folder/"list.pth")
    (folder/"half.safetensors").write_bytes((folder/"net.safetensors").read_bytes()[:5000])
    return folder, net

@pytest.mark.parametrize("file", ["net.safetensors", "net.pth", "parallel.pt"])
def test_weights_of_torchvision(networks, file):
    folder, net = networks
    ours, x = open_classifier(folder/file, "resnet18", ["a", "b"], normalise="none"), torch.rand(2, 3, 64, 64)*2 - 1
    torch.testing.assert_close(ours(x), net(x), rtol=1e-4, atol=1e-4)
    assert ours.classes == ["a", "b"]

@pytest.mark.parametrize("normalise,change", [("unit", lambda x: (x + 1)/2), ("none", lambda x: x)])
def test_normalise(networks, normalise, change):
    assert normalise in NORMALISE and CHECKPOINT_STEPS > 1 and CLASSIFIER_STEPS > CHECKPOINT_STEPS
    x = torch.rand(2, 3, 64, 64)*2 - 1
    torch.testing.assert_close(open_classifier(networks[0]/"net.pth", "resnet18", normalise=normalise)(x), networks[1](change(x)), rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize("file,message", [("whole.pth", "whole model, save its weights alone"), ("script.pt", "cannot be read as plain weights"), ("list.pth", "holds no state dict"),
                                          ("half.safetensors", "cannot be read as plain weights"), ("none.pth", "no such file")])
def test_nothing_is_executed(networks, file, message):
    with pytest.raises(MirrorError, match=message): open_classifier(networks[0]/file, "resnet18")

def test_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return (Path(tmp_path/"ran").touch, ())
    torch.save({"weight": Evil()}, tmp_path/"evil.pth")
    with pytest.raises(MirrorError, match="cannot be read as plain weights"): read_weights(tmp_path/"evil.pth")
    assert not (tmp_path/"ran").exists()

@pytest.mark.parametrize("arch,message", [("resnet50", "not those of resnet50"), ("resnet", "no network 'resnet'"), ("small_resnet", "not those of small_resnet"), (None, "add --arch")])
def test_wrong_network(networks, arch, message):
    with pytest.raises(MirrorError, match=message): open_classifier(networks[0]/"net.pth", arch)

def test_network_without_gap(monkeypatch):
    from mirrorcfe.core import MirrorError
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Flatten(), torch.nn.Linear(4*31*31, 2)).eval()
    monkeypatch.setattr(runs, "_torchvision_network", lambda *a: net)
    with pytest.raises(MirrorError, match="not the spatial mean of a map"): open_network("flat", net.state_dict())

def test_opened_network_comes_back(networks, tmp_path):
    net = open_network("resnet18", read_weights(networks[0]/"net.pth"), ["a", "b"], size=64)
    save_network(net, tmp_path/"classifier")
    again, about = load_network(tmp_path/"classifier")
    assert again.fingerprint() == net.fingerprint() and about["kind"] == "torchvision"
    assert open_classifier(tmp_path).fingerprint() == open_classifier(tmp_path/"classifier.safetensors").fingerprint() == net.fingerprint()

# --- your own images, whole ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    "Threes and eights as files of every kind, and two that cannot be read."
    top, d = tmp_path_factory.mktemp("pets"), get_dls("digits", size=16, device="cpu").train.dataset
    for c, name in ((3, "three"), (8, "ei ght")):
        (top/"pets"/name).mkdir(parents=True)
        for i, v in enumerate(d.x[d.y == c][:30, 0]):
            im, turn = Image.fromarray(v.numpy()), Image.Exif()
            turn[0x112] = 3
            if i == 0: im.convert("CMYK").save(top/"pets"/name/"00.jpg")
            elif i == 1: im.rotate(180).save(top/"pets"/name/"01.png", exif=turn)
            elif i == 2: im.convert("RGBA").save(top/"pets"/name/"02.webp", lossless=True)
            elif i == 3: im.resize((90, 50)).save(top/"pets"/name/"03.bmp")
            else: im.save(top/"pets"/name/f"{i:02}.png")
        (top/"pets"/name/"broken.jpg").write_bytes(b"no picture")
    return top/"pets"

@pytest.fixture(scope="module")
def trained(pets, tmp_path_factory):
    "What `mirrorcfe train` leaves, and what it prints."
    out = tmp_path_factory.mktemp("trained")/"out"
    with pytest.MonkeyPatch.context() as m, contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        m.setattr(own, "CLASSIFIER_STEPS", 10); m.setattr(own, "CHECKPOINT_STEPS", 2)
        assert main(["train", "--data", str(pets), "--size", "16", "--pair", "three", "ei ght", "--steps", "4", "--n", "2", "--measure", "4", "--out", str(out), "--device", "cpu"]) == 0
    return out, said.getvalue()

def quick(monkeypatch, every=2):
    monkeypatch.setattr(own, "CLASSIFIER_STEPS", 10); monkeypatch.setattr(own, "CHECKPOINT_STEPS", every)

def test_train_whole(trained):
    out, said = trained
    assert "2 of 62 images cannot be read and are left out" in said and "held-out images right" in said and "Results in" in said and "training explainer" in said
    assert sorted(os.listdir(out.parent)) == ["out"], "the unfinished folder is gone"
    model, oracle, about = load_explainer(out)
    assert about["classes"] == ["ei ght", "three"] and model.pair == (1, 0) and about["fit"] == "middle" and about["in_channels"] == 1 and oracle.accuracy is not None   # grey digits, some stored in colour
    assert {"results.md", "results.csv", "samples.csv", "training.csv", "explainer"} <= set(os.listdir(out))
    page = (out/"results.md").read_text(encoding="utf-8")
    assert page.startswith("# Mirror-CFE on pets") and all((out/link.split(")")[0]).is_file() for link in page.split("](")[1:])
    assert len(rows(out/"training.csv")) == 2 and all("ei-ght" in f for f in os.listdir(out/"strips"))

def weights(out):
    from safetensors.torch import load_file
    return load_file(next((out/"explainer"/"generator").glob("*.safetensors")))

def test_what_is_taken_for_a_third_class_is_left_out(small, tmp_path, capsys):
    dls, net, oracle, model = small
    c = net(dls.test.dataset[:][0]).argmax(1)
    of = MirrorCFE(net, pair=(int(c[0]), int(c[0] + 1) % 10), seed=0)
    of.model = MirrorCFE(net, pair=of.pair, steps=1).fit(get_dls("digits", size=16, pair=of.pair, n_train=64, device="cpu"), progress=False).model
    x, y, gone = pick_test_images(of, dls, 9)
    assert gone == sum(int(v) not in of.pair for v in c) and len(x) == len(c) - gone
    with NewFolder(tmp_path/"out") as new: r = finish_run(new, of, oracle, dls, 1, 9, 0., dataset="digits", preset="robust", seed=0)
    assert r["images"] == len(x) and ("left out" in capsys.readouterr().out) == (gone > 0)

def test_killed_training_goes_on(pets, tmp_path, monkeypatch, capsys, trained):
    "Stopped after the first checkpoint, the same command ends with the weights of an unbroken run."
    quick(monkeypatch)
    from mirrorcfe.game import Checkpoint
    argv = ["train", "--data", str(pets), "--size", "16", "--pair", "three", "ei ght", "--steps", "4", "--n", "2", "--measure", "4", "--out", str(tmp_path/"out"), "--device", "cpu"]
    after_epoch = Checkpoint.after_epoch
    def stop(self):
        after_epoch(self)
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, "after_epoch", stop)
        assert main(argv) == 130
    assert "the same command goes on from there" in capsys.readouterr().err and os.listdir(tmp_path) == ["out.unfinished"]
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
    assert "of another training (steps 4, now 6)" in refused(capsys, *argv, "--steps", "6")
    with monkeypatch.context() as m:
        m.setattr(own, "train_network", lambda *a: 1/0)
        assert main(argv) == 0, "the networks are not trained again"
    assert "Going on with the training in out.unfinished" in capsys.readouterr().out and os.listdir(tmp_path) == ["out"]
    for k, v in weights(trained[0]).items(): torch.testing.assert_close(v, weights(tmp_path/"out")[k], rtol=0, atol=0)

def test_train_for_weights_of_torchvision(pets, networks, tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    (tmp_path/"names.txt").write_text("three\nei ght\n")
    argv = ["train", "--data", str(pets), "--classifier", str(networks[0]/"net.safetensors"), "--arch", "resnet18", "--classes", str(tmp_path/"names.txt"), "--size", "64",
            "--steps", "1", "--bs", "4", "--n", "1", "--measure", "2", "--out", str(tmp_path/"out"), "--device", "cpu"]
    assert main(argv) == 0
    model, _, about = load_explainer(tmp_path/"out")
    assert about["arch"] == "resnet18" and model.classifier.classes == ["three", "ei ght"] and model.pair is None
    assert main(["explain", str(pets/"three"/"05.png"), "--explainer", str(tmp_path/"out"), "--out", str(tmp_path/"mine"), "--device", "cpu"]) == 0

@pytest.mark.parametrize("argv,message", [
    (["--data", "nothing"], "nothing is neither a folder nor a dataset"), (["--data", "one"], "must have a folder for each of two or more classes"),
    (["--pair", "three"], "--pair takes two classes: found three"), (["--pair", "three", "cow"], "no class 'cow': the classes are ei ght, three"),
    (["--pair", "three", "1"], "both are three"), (["--steps", "0"], "--steps must be 1"), (["--preset", "best"], "preset must be one of"), (["--size", "4"], "size must be 8 to 1024"),
    (["--classifier", "none.pth"], "no such file: none.pth"), (["--classifier", "one/a/x.png"], "cannot be read as plain weights"), (["--device", "tpu"], "no device 'tpu' here")])
def test_train_refusals(pets, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("one/a").mkdir(parents=True)
    Image.new("L", (9, 9)).save("one/a/x.png")
    kw = {} if "--data" in argv else {"--data": str(pets)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
        assert message in refused(capsys, "train", *sum(map(list, kw.items()), []), "--out", "out", *argv)
    assert os.listdir() == ["one"], "nothing is left behind"

def test_wrong_classes_are_named(pets, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
    save_network(small[1], tmp_path/"net")
    assert "the classifier knows no ei ght, three: its classes are 0, 1" in refused(capsys, "train", "--data", pets, "--classifier", tmp_path/"net", "--out", tmp_path/"out")

def test_fewer_classes_than_the_classifier(small, tmp_path):
    d = small[0].test.dataset
    for c in ("5", "2"):
        (tmp_path/c).mkdir()
        for i in range(4): Image.fromarray(d.x[0, 0].numpy()).save(tmp_path/c/f"{i}.png")
    dls = match_classes(open_data(tmp_path, 16), small[1].classes)
    assert dls.c == 10 and set(dls.train.dataset.y.tolist()) == {2, 5} and dls.train.dataset.vocab == small[1].classes and dls.train.dataset.x.shape[1] == 1

def test_explain_lists_and_skips(trained, pets, tmp_path, capsys):
    (tmp_path/"three").mkdir()
    for f in ("00.jpg", "05.png", "broken.jpg"): shutil.copy(pets/"three"/f, tmp_path/"three"/f)
    out = tmp_path/"res"
    assert main(["explain", str(tmp_path/"three"), "--explainer", str(trained[0]), "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "note: 1 of 3 images are left out: " in said
    assert "broken.jpg cannot be read as an image: its contents are of no known kind" in said
    got = rows(out/"samples.csv")
    assert [r["file"] for r in got] == ["00.jpg", "05.png"] and {r["truth"] for r in got} == {"three"}

@pytest.mark.parametrize("argv,message", [(["--target-confidence", "1"], "neither included: found 1"), (["--target-confidence", "much"], "such as .8: found much"),
                                          (["--target", "far"], "no class 'far'"), (["--target-confidence"], "expected at least one argument")])
def test_wish_refusals(here, saved, capsys, argv, message): assert message in refused(capsys, "explain", "one.png", "--explainer", saved, *argv)

def test_wishes(here, saved, capsys):
    assert main(["explain", "one.png", "two.jpg", "--target", "closest", "--target-confidence", ".5", ".99", "--explainer", str(saved), "--out", "res", "--device", "cpu"]) == 0
    got = rows("res/target_confidence.csv")
    assert [(r["image"], float(r["p"])) for r in got] == [("one.png", .5), ("one.png", .99), ("two.jpg", .5), ("two.jpg", .99)]
    page = Path("res/results.md").read_text(encoding="utf-8")
    assert "## Target confidences" in page and all((Path("res")/r["picture"]).is_file() for r in got)

def test_all_targets(here, saved, capsys):
    assert main(["explain", "one.png", "--target", "all", "--explainer", str(saved), "--out", "res", "--device", "cpu"]) == 0
    got = rows("res/samples.csv")
    assert len(got) == 9 and len({r["target"] for r in got}) == 9 and {r["file"] for r in got} == {"one.png"}

def test_evaluate_whole(trained, pets, tmp_path, capsys):
    assert main(["evaluate", "--explainer", str(trained[0]), "--n", "3", "--steps", "5", "--out", str(tmp_path/"res"), "--device", "cpu"]) == 0
    got = rows(tmp_path/"res"/"results.csv")
    assert {r["direction"] for r in got} <= {"three to ei ght", "ei ght to three"} and {r["image"] for r in got} == {"first counterfactual", "reflection"}
    assert all(0 <= float(r[k]) <= 1 for r in got for k in ("validity", "oracle", "denoised_validity", "confidence_error", "found"))
    assert {k for k in got[0] if not k.endswith(("_low", "_high"))} - {"direction", "image"} <= set(EVALUATION_COLUMNS), "every column is explained"
    page = (tmp_path/"res"/"results.md").read_text()
    assert "95 % bootstrap intervals" in page and "| validity | share that the classifier takes for the target |" in page and "Results in" in capsys.readouterr().out

def test_evaluate_makes_an_oracle(trained, tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    shutil.copytree(trained[0]/"explainer", tmp_path/"mine")
    for f in (tmp_path/"mine").glob("oracle.*"): f.unlink()
    assert main(["evaluate", "--explainer", str(tmp_path/"mine"), "--n", "2", "--steps", "3", "--out", str(tmp_path/"res"), "--device", "cpu"]) == 0
    assert "training oracle" in capsys.readouterr().out

def test_evaluate_refusals(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
    for argv, message in ((["--data", "nowhere"], "nowhere is neither"), (["--data", "digits"], "knows no 0"), (["--pair", "three", "three"], "both are three"), (["--n", "0"], "--n must be 1")):
        assert message in refused(capsys, "evaluate", "--explainer", trained[0], "--out", tmp_path/"res", *argv)
    shutil.copytree(trained[0]/"explainer", tmp_path/"mine")
    about = json.loads((tmp_path/"mine"/"classifier.json").read_text())
    (tmp_path/"mine"/"classifier.json").write_text(json.dumps(about | dict(dataset="gone")))
    assert "the explainer was trained on gone: give the images by --data" in refused(capsys, "evaluate", "--explainer", tmp_path/"mine", "--out", tmp_path/"res")
    assert os.listdir(tmp_path) == ["mine"]

def test_animate_whole(trained, pets, tmp_path, capsys, monkeypatch):
    from mirrorcfe.core import MirrorError
    import mirrorcfe.animate, mirrorcfe.outcomes
    argv = ["animate", "--explainer", str(trained[0]), "--n", "1", "--frames", "3", "--size", "160", "--device", "cpu", "--out", str(tmp_path/"films")]
    assert main(argv + ["--format", "gif"]) == 0
    films = rows(tmp_path/"films"/"films.csv")
    assert {f["film"] for f in films} == set(os.listdir(tmp_path/"films")) - {"films.csv"} and 1 <= len(films) <= 2
    for f in films:
        right = f["predicted"] == f["truth"]
        assert f["film"].endswith("correct.gif" if right else "error.gif") and (right or f["target"] == f["truth"]) and f["target"] != f["predicted"]
        with Image.open(tmp_path/"films"/f["film"]) as im: assert im.n_frames == 3
    def no_ffmpeg(): raise MirrorError("no ffmpeg for an MP4")
    for module in (mirrorcfe.animate, mirrorcfe.outcomes): monkeypatch.setattr(module, "find_ffmpeg", no_ffmpeg)
    assert main([argv[0], str(pets/"three"/"05.png"), *argv[1:-1], str(tmp_path/"one")]) == 0
    assert "the films are GIFs" in capsys.readouterr().out and any("(GT_three)_to_" in f and f.endswith(".gif") for f in os.listdir(tmp_path/"one"))
    assert "no ffmpeg" in refused(capsys, *argv[:-1], tmp_path/"two", "--format", "mp4")

# --- where nothing can be written ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv", [["explain", "one.png"], ["evaluate"], ["animate"], ["train"], ["demo"]])
def test_read_only_place(here, saved, capsys, monkeypatch, argv):
    "MirrorError in one line, before anything is read or trained."
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode, **k: False if Path(p) == here else access(p, mode, **k))
    line = refused(capsys, *argv, *([] if argv[0] in ("train", "demo") else ["--explainer", saved]), "--out", "new")
    assert "cannot be written to: give another place by --out" in line and not Path("new").exists()
    with pytest.raises(MirrorError, match="is a file, not a folder"): check_writable("one.png/new")

def test_folder_cannot_be_made(here, saved, capsys, monkeypatch):
    def no(*a, **k): raise OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(runs.tempfile, "mkdtemp", no)
    assert "no folder can be made in" in refused(capsys, "explain", "one.png", "--explainer", saved, "--out", "new")

@pytest.mark.parametrize("where", ["write_pictures", "write_results", "write_target_confidence"])
def test_disk_full(here, saved, capsys, monkeypatch, where):
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(own, where, full)
    before = sorted(os.listdir())
    assert "No space left on device" in refused(capsys, "explain", "one.png", "--target-confidence", ".5", "--explainer", saved, "--out", "new")
    assert sorted(os.listdir()) == before

def test_disk_full_while_training(pets, tmp_path, capsys, monkeypatch):
    "The networks trained so far stay, and the same command goes on."
    quick(monkeypatch)
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
    argv = ["train", "--data", str(pets), "--size", "16", "--steps", "1", "--n", "1", "--measure", "2", "--out", str(tmp_path/"out"), "--device", "cpu"]
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(torch, "save", full)
        assert "No space left on device" in refused(capsys, *argv)
    assert "classifier.safetensors" in os.listdir(tmp_path/"out.unfinished") and os.listdir(tmp_path) == ["out.unfinished"]
    assert main(argv) == 0 and os.listdir(tmp_path) == ["out"]
