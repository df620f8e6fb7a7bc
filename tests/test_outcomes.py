"Numbers and films of a saved explainer."
import os, re, shutil
from types import SimpleNamespace
import pytest, torch
from PIL import Image, ImageOps
import mirrorcfe.cli as cli, mirrorcfe.outcomes as outcomes, mirrorcfe.own as own
from mirrorcfe.cli import main
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet
from mirrorcfe.outcomes import EVALUATION_COLUMNS, EVALUATION_METRICS, evaluation_rows, film_name
from mirrorcfe.storage import read_json, write_json
from commands import refused, rows, train_quickly
from tiny import tiny

def test_evaluate_whole(trained, tmp_path, capsys):
    argv = ["--explainer", str(trained[0]), "--n", "3", "--steps", "5", "--out", str(tmp_path/"res"), "--device", "cpu"]
    assert main(["evaluate", *argv]) == 0
    got = rows(tmp_path/"res"/"results.csv")
    assert {r["direction"] for r in got} <= {"three to ei ght", "ei ght to three"}
    assert {r["image"] for r in got} == {"first counterfactual", "reflection"}
    for column in ("validity", "oracle", "denoised_validity", "denoised_validity_real", "confidence_error", "found"):
        assert all(0 <= float(r[column]) <= 1 for r in got), column
    columns = {k for k in got[0] if not k.endswith(("_low", "_high"))} - {"direction", "image"}
    assert columns <= set(EVALUATION_COLUMNS), "every column is explained"
    page = (tmp_path/"res"/"results.md").read_text()
    said = capsys.readouterr().out
    assert "95 % bootstrap intervals" in page and "res: results.md (read it first), results.csv" in said
    assert ": taken for the target by classifier " in said
    assert "| validity | share that the classifier takes for the target |" in page
    assert all(r["word"] for r in got), "a word for every result"

def test_evaluate_says_how_accurate_the_classifier_is_on_other_data(trained, pets, tmp_path, capsys):
    shutil.copytree(pets/"three", tmp_path/"data"/"ei ght")
    shutil.copytree(pets/"ei ght", tmp_path/"data"/"three")
    found = []
    printed = []
    for name, data in ("as trained", []), ("exchanged", ["--data", str(tmp_path/"data")]):
        argv = ["--explainer", str(trained[0]), *data, "--n", "2", "--steps", "3", "--out", str(tmp_path/name)]
        assert main(["evaluate", *argv, "--device", "cpu"]) == 0
        found.append(re.search("Classifier ([.0-9]+), oracle", (tmp_path/name/"results.md").read_text())[1])
        printed.append(re.search(r": classifier ([.0-9]+)%, oracle .* images right", capsys.readouterr().out)[1])
    assert [f"{float(v)/100:.3f}" for v in printed] == found, "on the terminal too"
    known = read_json(trained[0]/"explainer"/"classifier.json")["accuracy"]
    assert found[0] == f"{known:.3f}", "the same images"
    assert abs(float(found[1]) - (1 - known)) < .3, "right became wrong"
    assert found[0] != found[1]

def test_columns_of_the_table():
    "What was not measured is left out; intervals stand beside the three means that have one."
    assert set(EVALUATION_METRICS.values()) < set(EVALUATION_COLUMNS)
    value = dict(mean=.5, low=.4, high=.6)
    nothing = dict(mean=None, low=None, high=None)
    of_end = dict(coverage=1., metrics={"Val": value, "COUT": value, "L1": nothing}, flag="")
    first, last = evaluation_rows(dict(images=2, rows=dict(first=of_end, reflection=of_end)))
    assert first == dict(image="first counterfactual", images=2, found=1., cout=.5,
                         validity=.5, validity_low=.4, validity_high=.6, word="not judged")
    assert last == first | dict(image="reflection")

@pytest.mark.parametrize("valid,word", [(0., "valid by less than half"), (.5, "believed")])
def test_what_the_classifier_does_not_take_is_not_called_believed(valid, word):
    of_end = dict(coverage=1., metrics={"Val": dict(mean=valid, low=0., high=1.),
                                        "Believed": dict(mean=1., low=1., high=1.)}, flag="")
    assert evaluation_rows(dict(images=2, rows=dict(first=of_end, reflection=of_end)))[1]["word"] == word

@pytest.mark.parametrize("flag,mean,word", [("", None, "not judged"), ("", .6, "believed"),
                                            ("", .5, "believed by less than half"),
                                            ("adversarial", .6, "valid, not believed"),
                                            ("adversarial", None, "valid, not believed")])
def test_a_word_for_each_end(flag, mean, word):
    metrics = {} if mean is None else {"Believed": dict(mean=mean, low=mean, high=mean)}
    of_end = dict(coverage=1., metrics=metrics, flag=flag)
    assert [r["word"] for r in evaluation_rows(dict(images=2, rows=dict(first=of_end, reflection=of_end)))] == [word]*2

def test_evaluate_makes_an_oracle(trained, tmp_path, monkeypatch, capsys):
    train_quickly(monkeypatch)
    shutil.copytree(trained[0]/"explainer", tmp_path/"mine")
    for f in (tmp_path/"mine").glob("oracle.*"): f.unlink()
    argv = ["--explainer", str(tmp_path/"mine"), "--n", "2", "--steps", "3", "--out", str(tmp_path/"res")]
    assert main(["evaluate", *argv, "--device", "cpu"]) == 0
    assert "training oracle" in capsys.readouterr().out

def test_evaluate_refusals(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
    refusals = {"nowhere is neither": ["--data", "nowhere"], "knows no 0": ["--data", "digits"],
                "both are three": ["--pair", "three", "three"], "--n must be 1": ["--n", "0"]}
    for message, argv in refusals.items():
        assert message in refused(capsys, "evaluate", "--explainer", trained[0], "--out", tmp_path/"res", *argv)
    shutil.copytree(trained[0]/"explainer", tmp_path/"mine")
    file = tmp_path/"mine"/"classifier.json"
    write_json(file, read_json(file) | dict(dataset="gone"))
    line = refused(capsys, "evaluate", "--explainer", tmp_path/"mine", "--out", tmp_path/"res")
    assert "the explainer was trained on gone: give the images by --data" in line
    assert os.listdir(tmp_path) == ["mine"]
    line = refused(capsys, "evaluate", "--explainer", trained[0], "--out", tmp_path/"res", "--data", "digits")
    assert "rename the folders so, or give images of these classes" in line and "--classes" not in line

def test_film_names():
    ex = tiny(classes=("T-shirt/top", "猫", "up"))
    assert film_name(ex, 0, 3, "mp4", 0) == "no3_T-shirt-top_(GT_T-shirt-top)_to_猫_correct.mp4"
    assert film_name(ex, 0, 3, "gif", 2) == "no3_T-shirt-top_(GT_up)_to_猫_error.gif"
    assert film_name(ex, 0, 1, "gif", -1) == film_name(ex, 0, 1, "gif") == "no1_T-shirt-top_to_猫.gif"

@pytest.fixture
def no_ffmpeg(monkeypatch):
    "A machine without ffmpeg."
    def find(): raise MirrorError("no ffmpeg for an MP4")
    monkeypatch.setattr(outcomes, "find_ffmpeg", find)

FILM = ["--frames", "3", "--size", "160", "--device", "cpu"]

def test_films_of_held_out_images(trained, tmp_path, monkeypatch):
    "However few frames a film has, the first CFE is one of a hundred steps."
    steps = []
    write = outcomes.write_films
    monkeypatch.setattr(outcomes, "write_films", lambda ex, *a: steps.append(len(ex.ks)) or write(ex, *a))
    out = tmp_path/"films"
    argv = ["--explainer", str(trained[0]), "--n", "1", *FILM, "--format", "gif", "--out", str(out)]
    assert main(["animate", *argv]) == 0
    films = rows(out/"films.csv")
    assert {f["film"] for f in films} == set(os.listdir(out)) - {"films.csv"} and 1 <= len(films) <= 2
    for f in films:
        right = f["predicted"] == f["truth"]
        assert f["film"].endswith("correct.gif" if right else "error.gif") and f["target"] != f["predicted"]
        assert right or f["target"] == f["truth"]
        with Image.open(out/f["film"]) as im: assert im.n_frames == 3
    assert steps == [100]

def test_films_without_ffmpeg(trained, pets, tmp_path, capsys, no_ffmpeg):
    argv = ["animate", str(pets/"three"/"05.png"), "--explainer", str(trained[0]), *FILM, "--out"]
    assert main([*argv, str(tmp_path/"one")]) == 0
    assert "the films are GIFs" in capsys.readouterr().out
    assert any("(GT_three)_to_" in f and f.endswith(".gif") for f in os.listdir(tmp_path/"one"))
    assert "no ffmpeg" in refused(capsys, *argv, tmp_path/"two", "--format", "mp4")

def test_animate_reads_pictures_as_explain_does(here, saved, monkeypatch, capfd):
    "The same options and the same notes; the list of films says which file each is of."
    monkeypatch.setattr(own, "write_pictures", lambda *a: {})   # they take seconds
    dark = Image.open("one.png")
    ImageOps.invert(dark).save("bright.png")
    Image.merge("RGB", [dark, dark.point(lambda v: 0), dark]).save("colour.png")
    dark.convert("I;16").save("deep.png")
    Image.new("LA", (40, 40), (0, 0)).save("clear.png")
    padded = Image.new("L", (200, 200))
    padded.paste(dark, (80, 80))
    padded.save("small.png")
    files = ["bright.png", "colour.png", "deep.png", "clear.png", "small.png"]
    def notes(command, *argv):
        assert main([command, *files, "--explainer", str(saved), "--out", command, "--device", "cpu", *argv]) == 0
        said = capfd.readouterr()
        return [line for line in (said.err + said.out).splitlines() if line.startswith("note: ")]
    as_gif = "--frames", "2", "--size", "160", "--format", "gif"
    plain = notes("animate", *as_gif)
    assert plain == notes("explain")
    for words in ("bright.png: it looks inverted", "1 of 5 pictures is in colour", "small.png: it is small: it fills",
                  "use less than an eighth of the range", "have transparent parts, which are read as white"):
        assert any(words in line for line in plain), words
    assert [f["file"] for f in rows("animate/films.csv")] == files
    changed = "--invert", "--trim", "--levels", "0", "255"
    mended = notes("animate", *changed, *as_gif)
    assert mended == notes("explain", *changed) != plain and not any("bright.png: it looks" in line for line in mended)

@pytest.mark.parametrize("argv,says", [
    (["--trim"], "--invert and --trim are for picture files of your own"),
    (["one.png", "--data", "digits"], "the images are named, so --data is not read")])
def test_what_animate_would_not_use_is_refused(here, saved, capsys, argv, says):
    assert says in refused(capsys, "animate", *argv, "--explainer", saved)

def test_films_that_are_not_made_are_counted(here, saved, monkeypatch, capsys):
    load = outcomes.load_images_and_targets
    def one_is_there(*a, **kw):
        model, files, x, y, targets = load(*a, **kw)
        targets[0] = model.classifier(x)[0].argmax()
        return model, files, x, y, targets
    monkeypatch.setattr(outcomes, "load_images_and_targets", one_is_there)
    argv = "animate", "one.png", "two.jpg", *FILM, "--format", "gif", "--explainer", str(saved), "--out", "res"
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "note: taken for the target already, so without a film: 1 image\n1 film in res, listed in films.csv" in said
    assert "gif of two.jpg: " in said and "of one.png" not in said

def test_a_direction_without_images_is_named(monkeypatch, capsys):
    "Nobody should take one direction for both."
    monkeypatch.setattr(outcomes, "predict", lambda network, dl: (torch.tensor([[1., 0.]]*4), None))
    data = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    model = SimpleNamespace(pair=(0, 1), classifier=SimpleNamespace(classes=["cat", "dog"]))
    found = outcomes.directions(model, SimpleNamespace(test=SimpleNamespace(dataset=data)), None, 3)
    assert [label for label, *_ in found] == ["cat to dog"]
    assert "dog to cat: left out: no held-out image is taken for dog" in capsys.readouterr().out
