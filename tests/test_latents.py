"Where reflections lie: neighbours, misses and their parts, on latents made by hand."
import pytest, torch
from mirrorcfe.latents import DRAWN, miss, nearest_table, neighbours, split_miss, tsne

REAL = torch.tensor([[float(i), 0., 0.] for i in range(10)] + [[100. + i, 0., 0.] for i in range(10)])
CLASSES = torch.tensor([0]*10 + [1]*10)

def made(source, intended, drawn):
    "Latents of one image of class 0 that goes to class 1; both loops draw the same."
    kinds = dict(source=source, intended=intended) | dict.fromkeys(DRAWN, drawn)
    return {k: torch.tensor([v]) for k, v in kinds.items()} | dict(s=torch.tensor([0]), t=torch.tensor([1]))

def test_neighbours_come_nearest_first():
    distances, positions = neighbours(torch.tensor([[2.2, 0., 0.]]), REAL, 3)
    assert positions.tolist() == [[2, 3, 1]] and distances.tolist()[0] == pytest.approx([.2, .8, 1.2], abs=1e-5)

def test_the_table_counts_classes_among_ten_neighbours():
    table = nearest_table(made([4.5, 0, 0], [104.5, 0, 2.], [54.5, 0, 0]), REAL, CLASSES).set_index('latent')
    assert table.loc['source', ['of the target', 'of the source']].tolist() == [0, 1]
    assert table.loc['intended', ['of the target', 'all ten']].tolist() == [1, 1]
    between = table.loc['drawn, open loop']
    assert between['of the target'] == pytest.approx(.5) and between['all ten'] == between['most of the target'] == 0
    assert table.loc['intended', 'nearest, over that of a real image'] == pytest.approx(17**.5)

def test_a_miss_has_a_part_that_logits_see_and_one_that_they_do_not():
    r = made([3., 4., 0.], [0., 0., 0.], [1., 0., 2.])
    W = torch.tensor([[1., 0., 0.], [1., 1., 0.]])   # its rows span the first two directions
    kind = next(iter(DRAWN))
    assert miss(r, kind).item() == pytest.approx(5**.5/5) and miss(r, 'source').item() == 1
    assert split_miss(r, kind, W).tolist()[0] == pytest.approx([.2, .4])

def test_a_map_has_one_point_for_each_latent():
    real, stars = tsne(made([4.5, 0, 0], [104.5, 0, 2.], [54.5, 0, 0]), REAL, ['source'], 12, steps=250)
    assert real.shape == (12, 2) and stars.shape == (1, 2)
