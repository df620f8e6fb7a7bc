"The benchmarks run: tiny, on a processor; their marks can be missed."
import copy, importlib.util, sys
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from mirrorcfe.baselines.floors import Identity
from mirrorcfe.benchmark import METRICS
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.explanation import Explanation
from mirrorcfe.runs import Explained
from mirrorcfe.search import fold_batch_norms

def script(name):
    "A file of benchmarks/ as a module."
    file = Path(__file__).resolve().parent.parent/'benchmarks'/f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def test_training_and_explaining_by_size_run_dry(capsys):
    row, = script('gpu').main(['--dry'])
    assert row['size'] == 16 and min(row['step'], row['first CFE'], row['reflection, open loop']) > 0
    assert '| 16 |' in capsys.readouterr().out

def test_convolutions_are_counted_and_timed_alone():
    speed = script('training_speed')
    conv = torch.nn.Conv2d(2, 3, 3)
    with speed.Convolutions() as seen:
        for _ in range(2): conv(torch.rand(1, 2, 5, 5)).sum().backward()
    assert sorted(seen.calls.values()) == [2, 2], 'forward and backward'
    ticks = iter(range(99))
    assert speed.alone(seen.calls, lambda: next(ticks)) == 4
    page = speed.limit_page('cpu', {32: dict(step=17., convolutions=10.), 64: dict(step=34., convolutions=20.)})
    assert '1.70** times its convolutions (mark 1.6: MISSED)' in page
    assert '2.00** times a step at 32 (mark 4: reached)' in page

def test_a_search_that_misses_is_seen():
    speed = script('explaining_speed')
    shaped = speed.C3LTShaped()
    assert round(sum(p.numel() for p in shaped.parameters())/1e6, 1) == 4.7
    assert shaped(torch.zeros(2, 1, 32, 32)).shape == (2, 1, 32, 32)
    row = dict(data='x', loop='open', images=200, same=199, near=200, drawings=9., error=[.1, .1], l1=[.1, .1])
    ms = {'C3LT-shaped pass': 2., 'C3LT-shaped pass, 256 at once': 4., 'first CFE, closed loop': 17.,
          'reflection, open loop, 256 at once': 1.}
    page = speed.page(dict(compared=[row], ms=ms, parameters=4.7e6, rounds=1, machine='m', torch='t',
                           folder=dict(rate=199., images=1, early=1., late=1.)))
    assert '**99.50 %**' in page and '| 8.50 | 8 MISSED |' in page and '| 0.25 | 0.35 reached |' in page
    assert 'mark 200: MISSED' in page

def test_studies_ask_the_measurer(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(Path(__file__).resolve().parent.parent/'benchmarks'), *sys.path])
    monkeypatch.setattr('mirrorcfe.benchmark.METRICS', dict(METRICS))   # a study adds metrics of its own
    studies = script('studies')
    x = -torch.ones(2, 1, 8, 8)
    path = torch.stack([x, x], 1)
    path[0, 1, :, 2:] = 1         # the first becomes white but for two rows, which are border; the second stays black
    p = torch.tensor([[[.9, .1], [.3, .7]], [[.8, .2], [.6, .4]]])
    ks = torch.tensor([0., 1.])
    ex = Explanation(x, torch.tensor([0, 0]), torch.tensor([1, 1]), ks, path, p, p, ['dark', 'bright'])
    def bright(at): return lambda x: torch.stack([-x[:, 0, at, 0], x[:, 0, at, 0]], 1)
    asked = ('L1', 'Val', 'Oracle', 'confidence', 'still the source')
    assert studies.at_end(Explained(ex), x, 1, bright(4), bright(0), *asked) == pytest.approx([1, .5, 0, .55, 1])
    assert studies.METRICS_OF == [n for n in METRICS if n not in ('first k', 'seconds a sample', 'passes')]

def test_a_training_that_takes_longer_than_its_mark_is_seen():
    numbers = dict(steps=300, mark=60, autoencoder=9., student=9., Val=1., Believed=.9, L1=.1)
    def said(seconds):
        row = dict(numbers, training=seconds) | {'confidence error': .01}
        return script('training_time').page(dict(cases={'a pair': row}, machine='m', torch='t', images=4))
    assert '| 60 | 60 reached |' in said(60.) and '| 61 | 60 MISSED |' in said(61.)

def test_levers_that_keep_the_result_keep_it(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(Path(__file__).resolve().parent.parent/'benchmarks'), *sys.path])
    levers = script('levers')
    torch.manual_seed(0)
    plain = fold_batch_norms(small_resnet(3))
    x = torch.randn(2, 1, 32, 32)
    net = copy.deepcopy(plain)
    levers.pair_pixels(SimpleNamespace(model=SimpleNamespace(quick=SimpleNamespace(F=net))))
    assert net.state_dict().keys() != plain.state_dict().keys(), 'something was changed'
    torch.testing.assert_close(net(x), plain(x))
