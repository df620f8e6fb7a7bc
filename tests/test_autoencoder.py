"Autoencoders: they learn, they repeat, they leave the caller's random state alone."
import pytest, torch
from torch.nn import functional as F
from mirrorcfe.autoencoder import AutoEncoder, train_autoencoder
from mirrorcfe.core import MirrorError

@pytest.fixture(scope='module')
def x():
    "Two by two squares of random grey: a narrow map holds all there is to them."
    grey = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))*2 - 1
    return F.interpolate(grey, size=8)

def test_it_learns_and_repeats(x):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b = (train_autoencoder(x, epochs=20, bs=16, latent=2) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a(x), b(x))
    assert not a.training and not any(p.requires_grad for p in a.parameters())
    assert F.mse_loss(a(x), x) < .5*x.var()

def test_seeds_differ(x):
    a, b = (train_autoencoder(x, epochs=1, seed=s) for s in (0, 1))
    assert not torch.equal(a(x), b(x))

def test_every_image_is_seen_in_every_epoch(x, monkeypatch):
    "Also the last, smaller step: 64 images in steps of 24."
    seen = []
    forward = AutoEncoder.forward
    monkeypatch.setattr(AutoEncoder, 'forward', lambda self, v: (seen.append(v), forward(self, v))[1])
    train_autoencoder(x, epochs=2, bs=24)
    assert [len(v) for v in seen] == [24, 24, 16]*2
    for epoch in (seen[:3], seen[3:]):
        assert torch.equal(torch.cat(epoch).flatten(1).sort(0).values, x.flatten(1).sort(0).values)

def test_the_map_between_is_narrow():
    net = AutoEncoder(channels=3, width=4, latent=2)
    x = torch.zeros(2, 3, 6, 10)
    assert net.down(x).shape == (2, 2, 3, 5) and net(x).shape == x.shape

@pytest.mark.parametrize('cut', [(0, 1), (1, 0), (3, 5), (7, 7)])
def test_odd_sides_are_padded_inside(x, cut):
    odd = x[..., cut[0]:, cut[1]:]
    assert AutoEncoder()(odd).shape == odd.shape

def test_refusals(x):
    with pytest.raises(MirrorError, match='found no image'): train_autoencoder(x[:0])
    with pytest.raises(MirrorError, match='must lie in'): train_autoencoder(x*3)
