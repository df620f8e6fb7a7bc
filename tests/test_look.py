"What `make look` draws: chosen by rank, absent data left out, no face kept, nothing drawn twice."
import json, sys
from pathlib import Path
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'benchmarks'))
import look
from mirrorcfe.benchmark import Task

def test_best_median_and_worst_by_votes_then_by_the_oracle():
    share = torch.tensor([.2, 1., .6, .6, .0, 1., .8, .4, .6])
    confidence = torch.tensor([.5, .1, .3, .9, .5, .7, .5, .5, .6])
    assert look.choose(share, confidence) == [5, 1, 6, 3, 8, 2, 7, 0, 4]

def test_every_data_set_has_a_sheet_but_faces():
    sheets = {task.title: look.sheet_of(task) for task in look.TASKS if task.data in ('digits', 'mnist', 'celeba_hq')}
    kept = {title: file.name for title, file in sheets.items() if file}
    assert kept['Digits 16 px'] == 'look-digits-16-px.png' and kept['MNIST 3-8'] == 'look-mnist-3-8.png'
    assert [title[:9] for title, file in sheets.items() if file is None] == ['CelebA-HQ']

def test_data_that_are_not_here_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(look, 'RESULTS', tmp_path)
    monkeypatch.setattr(look, 'TASKS', [Task('bloodmnist', (2, 4))])
    monkeypatch.setenv('MIRRORCFE_DATA', str(tmp_path))
    look.main([])
    folder, data = capsys.readouterr().out.splitlines()
    assert folder.startswith('folder:blood_cells_128: left out')
    assert data.startswith('BloodMNIST erythroblast-lymphocyte: left out: no medmnist')

class Model:
    class model: G = torch.nn.Linear(1, 1)

@pytest.fixture
def drawn(monkeypatch, tmp_path):
    "Nothing is explained: the titles that would be are in a list."
    titles = []
    def draw(task, model):
        titles.append(task.title)
        look.sheet_of(task).write_text('')
        return dict(task=task.title, believed=.5)
    monkeypatch.setattr(look, 'RESULTS', tmp_path)
    monkeypatch.setattr(look, 'SHEET', tmp_path)
    monkeypatch.setattr(look, 'TASKS', [Task('digits'), Task('digits', (4, 9))])
    monkeypatch.setattr(look, 'explainer', lambda task: Model())
    monkeypatch.setattr(look, 'made_of', lambda task, model: f'{task.title} {task.n}')
    monkeypatch.setattr(look, 'look', draw)
    return titles

def test_what_was_drawn_is_not_drawn_again(drawn, tmp_path):
    look.main(['digits 4'])
    assert drawn == ['Digits 4-9']
    look.main([])
    assert drawn == ['Digits 4-9', 'Digits']
    (tmp_path/'look-digits.png').unlink()
    look.main([])
    assert drawn == ['Digits 4-9', 'Digits', 'Digits']
    look.main(['--n', '7'])
    assert drawn[3:] == ['Digits', 'Digits 4-9']
    assert set(json.loads((tmp_path/'look.json').read_text())) == {'Digits', 'Digits 4-9'}
    assert (tmp_path/'look.md').read_text().count('0.500') == 2
