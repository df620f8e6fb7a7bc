"How long a training takes is said beforehand, steps are as many as were asked for, and silence is never long."
import io, re, time
from dataclasses import replace
import pytest, torch
from mirrorcfe.autoencoder import shown_steps
from mirrorcfe.cli import Printer, heartbeat
from mirrorcfe.core import MirrorError
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.own import Forecast, make_forecast
from mirrorcfe.runs import Progress

QUICK = dict(autoencoder_steps=2, student_steps=2)

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
    forecast = make_forecast(small[1], digits, recipe, 2, 10)
    assert torch.equal(torch.rand(3), want) and digits.train.epoch == before and len(digits.train) == 5
    assert min(forecast.step, forecast.autoencoder, forecast.student, forecast.after) > 0
    assert (forecast.autoencoder_steps, forecast.student_steps) == (2, 2)
    later = make_forecast(small[1], digits, replace(recipe, painter="pixels", student=0.), 0, 0)
    assert later.autoencoder == later.student == 0 == later.after

def test_steps_for_a_time():
    "As many as fit: the networks before them are shorter, too, where there are few steps."
    forecast = Forecast(step=2., autoencoder=.5, student=.1, autoencoder_steps=300, student_steps=300, after=30.)
    assert forecast.seconds(10) == 10*2 + 40*.5 + 40*.1 + 30
    for minutes in (1, 7.5, 60):
        steps = forecast.steps_in(minutes)
        assert forecast.seconds(steps) <= 60*minutes < forecast.seconds(steps + 1)
    with pytest.raises(MirrorError, match=r"0.5 minutes are too few: measuring takes 30 s and a step 2 s"):
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
