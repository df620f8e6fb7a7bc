"What the commands share: folders that are whole or not there, networks on disk, numbers, names of files."
import json, os, shutil
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from hypothesis import given, strategies as st
from mirrorcfe import runs
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.judges import train_panel
from mirrorcfe.runs import (RESULT_COLUMNS, NewFolder, Progress, ProgressLine, finish_run, format_time, load_explainer,
                            get_judges, load_network, load_panel, measure_explanation, measure_run, pick_test_images,
                            save_explainer, save_network, slug, summarise, write_pictures, write_results)
from commands import refused, rows
from tiny import tiny

SHORT = dict(autoencoder_steps=2, student_steps=2)   # networks that hardly know anything, made in no time

# --- folders ---------------------------------------------------------------------------------------------------------

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

def test_folder_is_for_others_too(tmp_path):
    "The folder has the permissions of any new folder, not those of a temporary one."
    (tmp_path/"plain").mkdir()
    with NewFolder(tmp_path/"out") as new: pass
    assert new.path.stat().st_mode == (tmp_path/"plain").stat().st_mode

# --- progress --------------------------------------------------------------------------------------------------------

def test_progress_in_a_pipe(capsys):
    line = Progress("train")
    for i in range(1, 101): line(i, 100)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5 and "100%" in out[-1] and "left" in out[1]

def test_time_left_counts_this_run_alone(monkeypatch, capsys):
    "A training that continues at 50 of 100 and does 10 in 20 seconds has 80 seconds to go."
    now = [0.]
    monkeypatch.setattr("mirrorcfe.runs.time.monotonic", lambda: now[0])
    line = Progress("train", first=50)
    now[0] = 20.
    line(60, 100)
    assert f" {format_time(80)} left" in capsys.readouterr().out

def test_a_resumed_training_counts_from_where_it_was():
    "Two epochs of ten batches were done before: they took no time, and are not counted as work of this run."
    line = ProgressLine("train")
    line.learn = SimpleNamespace(epoch=2, dls=SimpleNamespace(train=range(10)))
    line.before_fit()
    line.before_train()
    assert line.done == line.line.first == 20

# --- networks --------------------------------------------------------------------------------------------------------

def test_explainer_comes_back(small, saved):
    dls, net, second, model = small
    x = dls.test.dataset[:][0]
    again, oracle, about = load_explainer(saved)
    torch.testing.assert_close(again.classifier(x), net(x))
    torch.testing.assert_close(oracle(x), second(x))
    assert about["classes"] == list("0123456789")
    a, b = (m.explain(x, ks=[0, 1]) for m in (model, again))
    torch.testing.assert_close(a.path, b.path)
    assert load_explainer(saved/"explainer")[2] == about

def test_damaged_explainer(here, saved, capsys):
    shutil.copytree(saved/"explainer", "mine")
    Path("mine/classifier.safetensors").write_bytes(b"half")
    assert "classifier.safetensors is damaged" in refused(capsys, "explain", "one.png", "--explainer", "mine")
    Path("mine/classifier.safetensors").unlink()
    assert "classifier is missing" in refused(capsys, "explain", "one.png", "--explainer", "mine")

@pytest.mark.parametrize("name", ["classifier.safetensors", "classifier.json", "oracle.safetensors", "oracle.json"])
def test_a_flipped_bit_in_a_network_is_refused(here, saved, name):
    "The oracle too: no fingerprint would notice that it judges otherwise."
    shutil.copytree(saved/"explainer", "mine")
    whole = Path("mine", name).read_bytes()
    for at in range(len(whole)//10, len(whole), len(whole)//9):
        broken = bytearray(whole)
        broken[at] ^= 1
        Path("mine", name).write_bytes(broken)
        with pytest.raises(MirrorError, match=f"{name} is damaged"): load_explainer("mine")
    Path("mine", name).write_bytes(whole)
    load_explainer("mine")

def test_weights_and_description_of_two_networks_are_refused(here, saved):
    "Each file is whole, but they do not belong together."
    shutil.copytree(saved/"explainer", "mine")
    save_network(small_resnet(10, 1, (4, 6), 16).freeze(), "other")
    shutil.copy("other.safetensors", "mine/oracle.safetensors")
    with pytest.raises(MirrorError, match="oracle.json and the weights beside it do not belong together"):
        load_explainer("mine")

def test_a_json_file_that_is_not_ours_is_not_called_damaged(here):
    "A user's own settings may lie beside the weights."
    Path("net.json").write_text('{"lr": 0.1}')
    with pytest.raises(MirrorError, match="net.json is not a network saved by mirrorcfe: .*--arch") as e:
        load_network("net")
    assert "damaged" not in str(e.value)

@pytest.mark.skipif(not hasattr(os, "umask"), reason="no umask here")
def test_the_files_of_an_explainer_have_the_users_permissions(small, tmp_path):
    before = os.umask(0o027)
    try: save_explainer(tmp_path, small[3], small[2], look={})
    finally: os.umask(before)
    modes = {f.name: f.stat().st_mode & 0o777 for f in tmp_path.rglob("*") if f.is_file()}
    assert len(modes) == 6 and set(modes.values()) == {0o640}

def test_explainer_of_another_classifier(here, saved, capsys):
    shutil.copytree(saved/"explainer", "mine")
    torch.manual_seed(1)   # the classifier was drawn with seed 0
    other = small_resnet(10, 1, (4, 8), 16).freeze()
    about = json.loads(Path("mine/classifier.json").read_text())
    save_network(other, "mine/classifier", **{k: about[k] for k in ("look", "seed", "preset")})
    assert "was trained for classifier" in refused(capsys, "explain", "one.png", "--explainer", "mine")

# --- judges ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def panel(): return train_panel(get_dls("digits", size=16, n_train=400, device="cpu"), ("trees", "neighbours"))

def test_judges_are_kept_with_the_explainer(small, panel, tmp_path, saved):
    dls, net, oracle, model = small
    save_explainer(tmp_path, model, oracle, panel, dataset="digits")
    x, _ = dls.test.dataset[:]
    for folder in (tmp_path, tmp_path/"explainer"): assert load_panel(folder).votes(x).equal(panel.votes(x))
    assert load_panel(saved) is None

def test_results_say_who_believes_them(small, panel, tmp_path):
    dls, net, oracle, model = small
    with NewFolder(tmp_path/"out") as new:
        r = finish_run(new, model, oracle, dls, 2, 6, 0., panel, True, dataset="digits", preset="default", seed=0)
    assert 0 <= r["believed"] <= 1 and r["believed_real"] > .8 and set(r) <= set(RESULT_COLUMNS)
    page = (tmp_path/"out"/"results.md").read_text()
    assert "| trees | 0." in page and "`first_k` is set by the mirror" in page and "No panel" not in page
    assert "Shown are 2 of 6 held-out images: those with a counterfactual first, and of these" in page
    got = rows(tmp_path/"out"/"samples.csv")
    assert all(s["verdict"] for s in got) and {"believed_last", "unlike", "first_drawn_k"} <= set(got[0])
    assert load_panel(tmp_path/"out") is not None

def test_too_few_images_for_judges_are_said(capsys):
    assert get_judges(get_dls("digits", n_train=60, device="cpu")) is None
    assert "note: too few training images for a panel of judges" in capsys.readouterr().out

def test_judges_that_know_nothing_are_said(monkeypatch, capsys):
    def useless(*a, **k): raise MirrorError("a panel needs a judge")
    monkeypatch.setattr(runs, "panel_of", useless)
    assert get_judges(get_dls("digits", device="cpu")) is None
    assert "note: a panel needs a judge; results are judged by the oracle alone" in capsys.readouterr().out

@pytest.mark.parametrize("change,flagged,says", [
    (dict(believed=.3, oracle=1.), True, "for the target, 30.0% of the judges' votes see the target in them"),
    (dict(believed=.69, believed_real=.9), False, "see the target in them (90.0% see the true class in real images)"),
    (dict(val=0., coverage=0., believed=1.), False, "0.0% of the reflections for the target, 100.0% of the "
                                                    "judges' votes see the target in them"),
    (dict(believed=.9, oracle=0.), False, "90.0% of the judges"),
    (dict(oracle=.3), True, "the oracle 30.0%, no panel judged them"),
    (dict(), False, "nobody else judged them")])
def test_the_judges_are_the_headline(change, flagged, says):
    nan = float("nan")
    results = dict(images=2, val=1., believed=nan, oracle=nan, coverage=1., confidence_error=.1, l1_reflection=.2)
    text = summarise(results | change)
    assert says in text and ("adversarial" in text) == flagged and "agree" not in text
    assert ("(--steps of mirrorcfe train or demo)" in text) == flagged, "explain has no such option"

@pytest.mark.parametrize("unlike, says", [([.5]*3, ": "), ([.5, 2., 2.], " (1 is unlike"), ([2.]*3, " (2 are unlike")])
def test_that_votes_say_little_stands_before_them(unlike, says):
    "Of those that are taken for their target already there is nothing to be said."
    ex = tiny(same=True)
    ex.unlike = torch.tensor(unlike)
    results = measure_explanation(ex, lambda x: x[:, 0, 8, :3])
    text = summarise(results)
    assert text.startswith(f"2 images{says}") and ("so votes say little" in text.split(":")[0]) == (says != ": ")
    one = summarise(results | dict(images=1, unlike=1))
    assert one.startswith("1 image (it is unlike the training images, so votes say little): the classifier")

def test_what_is_listed_is_there(tmp_path, monkeypatch, capsys):
    "Also where nothing was drawn: no empty folders, no picture that is not there."
    monkeypatch.chdir(tmp_path)
    ex = tiny(same=True)
    results = measure_explanation(ex, lambda x: x[:, 0, 8, :3])
    pictures, folders = ["animation.gif", "grid.png"], ["confidence/", "strips/"]
    for one, drawn, folders in ((ex[2:], [], []), (ex[:1], pictures, folders)):
        with NewFolder("out") as new: write_results(new.tmp, one, results, "T", write_pictures(one, new.tmp, 2))
        runs.echo_results(new, results)
        said = capsys.readouterr().out.splitlines()[-1]
        files = ["results.md (read it first)", *drawn, "results.csv", "samples.csv", *folders]
        assert said == f"Results in {new.path.name}: {', '.join(files)}"
        assert ("KFE for a third class" in (new.path/"results.md").read_text()) == bool(drawn)

def test_found_ones_are_shown_first():
    "However much the panel believes one that never flipped; of those found, the best of each class in turn."
    shares = torch.tensor([.9, .2, .5, .8, .4])
    status = ["never flipped", "found", "found", "never flipped", "found"]
    def explain(x, on_same): return SimpleNamespace(x_reflection=x, target=torch.zeros(5, dtype=int), status=status)
    panel = SimpleNamespace(believed=lambda x, target: SimpleNamespace(share=shares))
    model, y = SimpleNamespace(explain=explain), torch.tensor([0, 0, 1, 1, 1])
    chosen = runs.most_believed(model, torch.zeros(5, 1, 4, 4), y, panel, lambda x: torch.zeros(len(x), 2), 4)
    assert chosen.tolist() == [2, 1, 4, 0]

# --- numbers ---------------------------------------------------------------------------------------------------------

def test_numbers_of_an_explanation():
    "Each column is what its name says, computed here from the explanation itself."
    ex = tiny(gains=(1., .9, .3, 1.), same=True)
    ex.target[2] = 2
    ex.path[:3, -1, :, 0] = .5   # only the reflection has this line: it is further away than the first counterfactual
    bright = lambda x, column: x[:, 0, 8, column]   # the bar is there
    classifier = lambda x: torch.stack([bright(x, 0), bright(x, -1), torch.zeros(len(x))], 1)
    oracle = lambda x: torch.stack([torch.ones(len(x)), 2*bright(x, -1), torch.zeros(len(x))], 1)
    r = measure_explanation(ex, classifier, oracle)
    assert r["images"] == 3 and r["ks"] == len(ex.ks) and set(r) <= set(RESULT_COLUMNS)
    assert r["val"] == r["oracle"] == r["coverage"] == pytest.approx(2/3)
    assert r["confidence_error"] == pytest.approx(float((ex.intended - ex.achieved)[:3].abs().mean()))
    assert r["l1_reflection"] == pytest.approx(float(ex.difference[:3, -1].mean()))
    first = [ex.difference[i, ex.first_index[i]] for i in (0, 1)]
    assert r["l1_first"] == pytest.approx(float(torch.stack(first).mean()))
    without = measure_explanation(ex, classifier)
    assert without["oracle"] != without["oracle"], "no oracle, no number"
    nothing = measure_explanation(ex[3], classifier)
    assert nothing["images"] == 0 and nothing["val"] != nothing["val"]

def test_numbers_of_a_run_are_those_of_its_explanation(small):
    dls, net, oracle, model = small
    x, y = dls.test.dataset[:]
    by_hand = measure_explanation(model.explain(x, ks=torch.linspace(0, 1, 5)), net, oracle)
    assert measure_run(model, net, oracle, x, y, steps=5) == pytest.approx(by_hand, rel=1e-5, nan_ok=True)

def test_what_is_taken_for_a_third_class_is_left_out(small, tmp_path, capsys):
    dls, net, oracle, _ = small
    c = net(dls.test.dataset[:][0]).argmax(1)
    pair = int(c[0]), int(c[0] + 1) % 10
    of_pair = get_dls("digits", size=16, pair=pair, n_train=64, device="cpu")
    model = MirrorCFE(net, pair=pair, steps=1, **SHORT).fit(of_pair, progress=False)
    x, y, left_out = pick_test_images(model, dls, 9)
    assert left_out == sum(int(v) not in pair for v in c) and len(x) == len(c) - left_out
    with NewFolder(tmp_path/"out") as new:
        r = finish_run(new, model, oracle, dls, 1, 9, 0., dataset="digits", preset="default", seed=0)
    assert r["images"] == len(x) and ("left out" in capsys.readouterr().out) == (left_out > 0)

def test_samples_have_rows_of_plain_values(tmp_path):
    ex = tiny(same=True)
    write_results(tmp_path, ex, measure_explanation(ex, lambda x: x[:, 0, 8, :3]), "T", {}, list("abcd")[:len(ex)])
    got = rows(tmp_path/"samples.csv")
    assert [r["file"] for r in got] == list("abcd")[:len(ex)] and got[-1]["status"] == "already target"
    assert "nan" not in (tmp_path/"samples.csv").read_text() and "nan" not in (tmp_path/"results.md").read_text()
    assert all(len(r["l1_last"]) <= 6 for r in got), "four digits behind the point"

# --- file names ------------------------------------------------------------------------------------------------------

@given(st.text(max_size=60))
def test_slugs_are_safe(name):
    s = slug(name)
    assert s and len(s) <= 40 and s[0] != "-" and s[-1] != "-" and slug(s) == s
    assert not set(s) & set('/\\:*?"<>|._\0\n ')
