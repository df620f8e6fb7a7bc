"How long a training takes is said beforehand, steps are as many as were asked for, and silence is never long."
import io, re, time
from dataclasses import replace
from types import SimpleNamespace
import pytest, torch
from fastai.callback.core import Callback
from fastcore.basics import defaults
from mirrorcfe.autoencoder import shown_steps
from mirrorcfe.classifiers import ClassifierPlan, small_resnet, train_classifier
from mirrorcfe.cli import Printer, heartbeat
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.forecast import Beside, Forecast, JudgeTimes, SayAgain, make_forecast, time_classifier
from mirrorcfe.judges import train_judge
from mirrorcfe.own import _with_time, keep_pair
from mirrorcfe.runs import Progress, training_progress
from mirrorcfe.storage import tensors_hash, write_state
from mirrorcfe.training import get_recipe, painting_networks

QUICK = dict(autoencoder_steps=2, student_steps=2)

def test_one_step_is_not_many():
    assert Forecast(1., 2.).said(1) == ("This will take about 3 s: 1 step of the explainer 1 s, "
                                        "explaining and measuring 2 s")
    assert "2 steps of" in Forecast(1., 2.).said(2)

@pytest.fixture
def digits(): return get_dls("digits", size=16, n_train=40, bs=8, device="cpu")

@pytest.mark.parametrize("steps", [1, 3])
def test_fewer_steps_than_an_epoch(small, digits, steps):
    "One step is one step, and the loaders of the caller stay what they were."
    cfe = MirrorCFE(small[1], steps=steps, **QUICK).fit(digits, progress=False)
    assert cfe.learn.train_iter == steps and len(digits.train) == 5

def test_a_forecast_changes_nothing(small, digits):
    "Neither the random state nor the order of the batches; what it times is used up and thrown away."
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    before = digits.train.epoch
    recipe = replace(small[3].recipe, **QUICK)
    forecast = make_forecast(small[1], digits, recipe, 50)
    assert torch.equal(torch.rand(3), want) and digits.train.epoch == before and len(digits.train) == 5
    assert forecast.step > 0 == forecast.after

def test_a_pair_of_more_classes_is_timed(small, digits):
    "The classes that are left out of the training have no images."
    forecast = make_forecast(small[1], keep_pair(digits, (3, 8)), replace(small[3].recipe, **QUICK), 50)
    assert forecast.step > 0 and digits.train.dataset.y.unique().tolist() == [3, 8]

def test_what_is_in_the_cache_takes_no_time(small, digits, tmp_path, monkeypatch):
    "The networks that the training would read, not train, are left out."
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path))
    recipe = replace(small[3].recipe, **QUICK)
    forecast = make_forecast(small[1], digits, recipe, 50)
    assert {name: b.asked for name, b in forecast.beside.items()} == {"the autoencoder": 2, "the student": 2}
    painting_networks(small[1], digits, recipe)
    assert make_forecast(small[1], digits, recipe, 50).beside == {}

@pytest.fixture
def seconds(monkeypatch):
    "A second for every step of whatever is tried, none for an image that is looked at."
    monkeypatch.setattr("mirrorcfe.forecast._usual", lambda ends: 1.)
    monkeypatch.setattr("mirrorcfe.forecast.StepTimes.image", 0.)

def test_a_forecast_is_the_number_of_steps_that_are_made(digits, tmp_path, monkeypatch, seconds):
    "What is forecast and what is then trained: classifier, judge, autoencoder, student, explainer."
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path))
    for module in ("forecast", "judges"): monkeypatch.setattr(f"mirrorcfe.{module}.conv_steps", lambda n: 6)
    made = []
    class Count(Callback):
        def after_step(self): made.append("learner")
    def counted(n, label):
        made.extend([label]*n)
        return range(n)
    net = small_resnet(10, 1, (4, 8), 16)
    how = dict(epochs=2, lr=1e-3, shift=0)
    plan = ClassifierPlan(net, digits, how, None, None)
    recipe = get_recipe(steps=1, autoencoder_steps=5)   # the student's are not asked for: 4 times 1
    forecast = make_forecast(net.freeze(), digits, recipe, 50, None, {"the classifier": plan}, ["conv"])
    monkeypatch.setattr(defaults, "callbacks", [*defaults.callbacks, Count])
    train_classifier(net, digits, progress=False, **how)
    train_judge("conv", digits)
    MirrorCFE(net.freeze(), recipe).fit(digits, progress=counted)
    assert forecast.parts(1) == {"the classifier": 10, "the judges": 6, "the autoencoder": 5, "the student": 4,
                                 "the explainer": 1, "explaining and measuring": 0}
    assert len(made) == forecast.seconds(1), made

def test_the_sentence_of_a_run_names_all_of_it(digits, tmp_path, monkeypatch, seconds):
    "A first run on own images trains two classifiers and every judge; one that goes on says what is left of it."
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path))
    monkeypatch.setattr("mirrorcfe.forecast.time_classifier", lambda plan: 80.)
    monkeypatch.setattr("mirrorcfe.forecast.time_judge", lambda name, dls: JudgeTimes(30., 0.))
    monkeypatch.setattr("mirrorcfe.own.missing_judges", lambda dls: ["svm", "trees"])
    monkeypatch.setattr("mirrorcfe.own.time_results", lambda *args, **how: 7.)
    said = []
    monkeypatch.setattr("mirrorcfe.own.echo", said.append)
    recipe = get_recipe(steps=3, **QUICK)
    with training_progress("nothing"): kept = _with_time(None, digits, None, recipe, 1, 1, None, tmp_path)
    assert kept == (recipe, 7.)
    assert said == ["This will take about 4 minutes: the classifier 80 s, the oracle 80 s, the judges 60 s, "
                    "the autoencoder 2 s, the student 2 s, 3 steps of the explainer 3 s, explaining and measuring 7 s. "
                    "--minutes fits the steps to a time"]
    def again(): return _with_time(None, digits, None, replace(recipe, steps=9), 1, 1, None, tmp_path)
    without_hint = said[0].removesuffix(". --minutes fits the steps to a time")
    assert again() == kept and said[1] == without_hint, "nothing is done"
    monkeypatch.setattr("mirrorcfe.own.missing_judges", lambda dls: [])
    monkeypatch.setattr("mirrorcfe.own._untrained", lambda dls, folder: {})
    monkeypatch.setattr("mirrorcfe.own.CHECKPOINT_STEPS", 1)
    (tmp_path/"explainer").mkdir()
    write_state(tmp_path/"explainer"/"checkpoint.pt", dict(epoch=0))
    assert again() == kept and said[2] == ("This will take about 9 s: 2 steps of the explainer 2 s, explaining and "
                                           "measuring 7 s"), "but for one step"

def test_what_is_in_the_cache_is_not_left(small, digits, tmp_path, monkeypatch, seconds):
    "A run that was killed before its first checkpoint, but after its autoencoder and its student were trained."
    monkeypatch.setenv("MIRRORCFE_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr("mirrorcfe.own.missing_judges", lambda dls: [])
    monkeypatch.setattr("mirrorcfe.own._untrained", lambda dls, folder: {})
    monkeypatch.setattr("mirrorcfe.own.time_results", lambda *args, **how: 7.)
    said = []
    monkeypatch.setattr("mirrorcfe.own.echo", said.append)
    recipe = get_recipe(steps=3, **QUICK)
    def run(): _with_time(small[1], digits, (3, 8), recipe, 1, 1, None, tmp_path)
    run()
    run()
    assert "the autoencoder 2 s, the student 2 s, 3 steps" in said[0] and said[0].startswith(said[1])
    painting_networks(small[1], keep_pair(digits, (3, 8)), recipe)
    run()
    assert said[2] == "This will take about 10 s: 3 steps of the explainer 3 s, explaining and measuring 7 s"

def test_what_is_tried_shows_nothing(digits, capfd):
    "No line of progress from networks that are thrown away."
    net = small_resnet(10, 1, (4, 8), 16)
    plan = ClassifierPlan(net, digits, dict(epochs=2, lr=1e-3), None, None)
    with training_progress("a network"): time_classifier(plan)
    assert "".join(capfd.readouterr()) == ""

def test_everything_before_the_explainer_counts(digits):
    "A classifier that is not trained yet, and judges."
    net = small_resnet(10, 1, (4, 8), 16)
    plan = ClassifierPlan(net, digits, dict(epochs=1000, lr=1e-3, shift=0), None, None)
    before = tensors_hash(net)
    recipe = get_recipe(painter="pixels", student=0.)
    forecast = make_forecast(net.freeze(), digits, recipe, 50, None, {"the classifier": plan}, ["perceptron", "conv"])
    assert tensors_hash(net) == before
    once = replace(forecast, before={})
    assert forecast.seconds(1) - once.seconds(1) == pytest.approx(sum(forecast.before.values()))
    assert forecast.before["the classifier"] > 1000*len(digits.train)*1e-4, "each of its thousand epochs"
    said = "This will take about .*: the classifier .*, the judges .*, 7 steps of the explainer"
    assert re.match(said, forecast.said(7))

def test_the_rest_is_said_after_ten_steps(small, digits, monkeypatch):
    "By what ten steps took, with what comes after the training."
    said = []
    now = iter(range(10**6))
    monkeypatch.setattr("mirrorcfe.forecast.time", SimpleNamespace(monotonic=lambda: next(now)/2))
    MirrorCFE(small[1], steps=15, **QUICK).fit(digits, progress=False, cbs=[SayAgain(said.append, 20.)])
    assert said == ["After ten steps: 22 s left, explaining and measuring included"]

def test_steps_for_a_time():
    "As many as fit: networks whose steps were not asked for are trained for fewer, too."
    beside = dict(autoencoder=Beside(.5, 0, 300), student=Beside(.1, 200, 300))
    forecast = Forecast(2., 30., dict(classifier=5.), beside)
    assert forecast.seconds(10) == 10*2 + 40*.5 + 200*.1 + 30 + 5
    for minutes in (1, 7.5, 60):
        steps = forecast.steps_in(minutes)
        assert forecast.seconds(steps) <= 60*minutes < forecast.seconds(steps + 1)
    with pytest.raises(MirrorError, match=r"0.5 minutes are too few: one step takes 2 s"):
        forecast.steps_in(.5)

def test_a_line_where_nothing_is_said():
    out = Printer(io.StringIO())
    out.write("training explainer     ####   3%\n")
    with heartbeat(out, .01):
        end = time.monotonic() + 20
        while out.stream.getvalue().count("still at") < 2 and time.monotonic() < end: time.sleep(.01)
    said = out.stream.getvalue().splitlines()
    wanted = re.compile(r"still at: training explainer  \(0:\d\d since the start\)")
    assert len(said) > 2 and all(map(wanted.fullmatch, said[1:]))
    n = len(said)
    time.sleep(.05)
    assert len(out.stream.getvalue().splitlines()) == n, "it ends with the work"
    terminal = Printer(io.StringIO())
    terminal.stream.isatty = lambda: True
    with heartbeat(terminal, .01): time.sleep(.1)
    assert terminal.stream.getvalue() == "", "a terminal has a line that moves"

def test_progress_into_a_pipe(monkeypatch):
    "A line for each quarter, and one after half a minute without."
    now = [0.]
    monkeypatch.setattr("mirrorcfe.runs.time.monotonic", lambda: now[0])
    out = io.StringIO()
    line = Progress("slow", out)
    for done in range(1, 101):
        now[0] += 12.
        line(done, 100)
    assert 30 < len(out.getvalue().splitlines()) < 50

def test_steps_are_shown_by_a_function():
    seen = []
    def show(n, label):
        seen.append((n, label))
        return range(n)
    assert list(shown_steps(3, show, "student")) == [0, 1, 2] == list(shown_steps(3, False))
    assert seen == [(3, "student")]
