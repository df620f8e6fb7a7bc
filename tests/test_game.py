"The adversarial loop: discriminators first, the average of the generators, checkpoints of other runs, random numbers."
import pytest, torch
from dataclasses import dataclass
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastcore.basics import AttrDict
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError
from mirrorcfe.data import ImageSet, get_dls
from mirrorcfe.distributed import ProcessGroup
from mirrorcfe.game import BaseRecipe, Game, RealImages, Sampler
from mirrorcfe.loop import game_learner
from mirrorcfe.storage import DamagedFile
from tiny import hash_of

@dataclass(frozen=True)
class GreyRecipe(BaseRecipe):
    steps:int = 6
    lr:float = .05
    betas:tuple = (0., .9)
    adv:float = 1.

class Value(nn.Module):
    "One number, and one that counts how often it was used: a buffer of the generator."
    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.zeros(()))
        self.register_buffer('used', torch.zeros(()))

class GreyGame(Game):
    "A grey value with noise against a line; it writes down whose turn it was and with which weights."
    loss_names = ('adv',)
    score_names = ('off',)
    def __init__(self, classifier, recipe=GreyRecipe()):
        torch.manual_seed(0)
        super().__init__(classifier, recipe, dict(value=Value()), dict(line=nn.Linear(1, 1)))
        self.moves = []
        self.validated = []

    def weights(self): return self.G.value.v.item(), self.D.line.bias.item()
    def judge(self, x): return self.D.line(x.mean((1, 2, 3))[:, None])
    def forward(self, x, y, sampler):
        if self.training: self.G.value.used += 1
        return AttrDict(x=x, drawn=self.G.value.v + .1*sampler.randn(len(x), *x.shape[1:]))

    def generator_losses(self, d, sampler):
        if self.training:
            assert d.drawn.requires_grad and not any(p.requires_grad for p in self.D.parameters())
            self.moves.append(('G', *self.weights()))
        return dict(adv=(self.judge(d.drawn) - 1).pow(2).mean())

    def discriminator_loss(self, d, sampler):
        assert not d.drawn.requires_grad and all(p.requires_grad for p in self.D.parameters())
        self.moves.append(('D', *self.weights()))
        return (self.judge(d.x) - 1).pow(2).mean() + self.judge(d.drawn).pow(2).mean()

    def score(self, d):
        self.validated.append(self.G.value.v.item())
        return dict(off=d.drawn.mean())

class OtherGame(GreyGame): pass

class Follow(Callback):
    "The grey value after every step."
    def __init__(self): self.values = []
    def after_batch(self):
        if self.training: self.values.append(self.model.G.value.v.item())

@pytest.fixture(scope='module')
def clf(): return small_resnet(widths=(8, 16), size=16)

@pytest.fixture(scope='module')
def dls(): return get_dls('digits', bs=8, n_train=64, steps=2, size=16, device='cpu')

def play(clf, dls, kind=GreyGame, folder=None, seed=0, cbs=(), **changes):
    return game_learner(kind(clf, GreyRecipe(**changes)), dls, seed, folder).fit_game(progress=False, cbs=cbs).model

def test_the_discriminators_move_first(clf, dls):
    turns = play(clf, dls).moves
    assert [who for who, *_ in turns] == ['D', 'G']*6
    for (_, v, bias), (_, v_after, bias_after) in zip(turns[::2], turns[1::2]):
        assert v_after == v, 'the generators wait for the discriminators'
        assert bias_after != bias, 'the generators answer to discriminators that have just moved'
    for (_, v, bias), (_, v_next, bias_next) in zip(turns[1::2], turns[2::2]):
        assert v_next != v and bias_next == bias

def test_the_loop_is_a_plain_loop(clf, dls):
    "Discriminator, then generator, on detached images, AdamW on both sides, noise that follows from seed and epoch."
    follow = Follow()
    play(clf, dls, cbs=[follow])
    game = GreyGame(clf).train()
    values = []
    opts = [torch.optim.AdamW(m.parameters(), lr=.05, betas=(0., .9), weight_decay=0.) for m in (game.D, game.G)]
    def move(opt, loss):
        opt.zero_grad()
        loss.backward()
        opt.step()
    for epoch in range(3):
        sampler = play_sampler(clf, dls, epoch)
        for x, y in dls.train.set_epoch(epoch):
            drawn = game.G.value.v + .1*sampler.randn(len(x), *x.shape[1:])
            move(opts[0], (game.judge(x) - 1).pow(2).mean() + game.judge(drawn.detach()).pow(2).mean())
            move(opts[1], (game.judge(drawn) - 1).pow(2).mean())
            values.append(game.G.value.v.item())
    assert follow.values == values

def play_sampler(clf, dls, epoch):
    "The random numbers of an epoch."
    turns = game_learner(GreyGame(clf), dls).turns
    turns.reseed(ProcessGroup(), 'train', epoch)
    return turns.sampler

def test_no_average_unless_asked_for(clf, dls):
    plain, off, on = (play(clf, dls, **how) for how in ({}, dict(ema=0.), dict(ema=.5)))
    assert hash_of(plain.G, plain.D) == hash_of(off.G, off.D) != hash_of(on.G, on.D)

def test_the_average(clf, dls, tmp_path, stop_after):
    "Training is the same with it; what is validated and kept is the moving average, after a resumption as well."
    raw = Follow()
    follow = Follow()
    plain = play(clf, dls, cbs=[raw])
    kept = play(clf, dls, cbs=[follow], ema=.7)
    assert follow.values == raw.values and hash_of(kept.D) == hash_of(plain.D)
    means = [raw.values[0]]
    for n, v in enumerate(raw.values[1:], 1):
        beta = min(.7, (1 + n)/(10 + n))
        means.append(beta*means[-1] + (1 - beta)*v)
    assert kept.G.value.v.item() == pytest.approx(means[-1], rel=1e-5) != raw.values[-1]
    assert kept.validated[::len(kept.validated)//3] == pytest.approx(means[1::2], rel=1e-5)
    assert kept.G.value.used == 6   # buffers are those of the generator itself
    with pytest.raises(KeyboardInterrupt): play(clf, dls, folder=tmp_path, ema=.7, cbs=[stop_after(1)])
    again = play(clf, dls, folder=tmp_path, ema=.7)
    assert hash_of(again.G, again.D) == hash_of(kept.G, kept.D)
    fresh = GreyGame(clf)
    assert fresh.load_generators(tmp_path/'checkpoint.pt') == 3 and hash_of(fresh.G) == hash_of(kept.G)

@pytest.mark.parametrize('ema', [-.1, 1., 2., float('nan')])
def test_a_decay_that_is_none(ema):
    with pytest.raises(MirrorError, match='decay'): GreyRecipe(ema=ema)

def test_the_average_costs_no_pass(clf, dls):
    calls = []
    class Counting(GreyGame):
        def forward(self, *args):
            calls.append(self.training)
            return super().forward(*args)
    for ema, want in ((0., None), (.9, None)):
        calls.clear()
        play(clf, dls, Counting, ema=ema)
        assert calls.count(True) == 6

def test_killed_and_resumed(clf, dls, tmp_path, stop_after):
    whole = play(clf, dls)
    with pytest.raises(KeyboardInterrupt): play(clf, dls, folder=tmp_path, cbs=[stop_after(2)])
    resumed = play(clf, dls, folder=tmp_path)
    assert hash_of(resumed.G, resumed.D) == hash_of(whole.G, whole.D) and len(resumed.moves) == 4
    history = (tmp_path/'history.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in history] == ['epoch', '0', '1', '2']
    assert hash_of(play(clf, dls, folder=tmp_path).G) == hash_of(whole.G), 'nothing is left to do'

@pytest.mark.parametrize('how, says', [
    (dict(kind=OtherGame), r'\(game GreyGame, here OtherGame\)'),
    (dict(kind=OtherGame, lr=.1), r'\(game GreyGame, here OtherGame\)'),
    (dict(seed=1), r'\(seed 0, here 1\)'),
    (dict(lr=.1, adv=2.), r'\(lr 0.05, here 0.1, adv 1.0, here 2.0\)'),
    (dict(epochs=2), 'length 3 epochs of 2 steps, here 2 epochs of 2 steps'),
    (dict(ema=.5), 'ema 0.0, here 0.5')])
def test_a_checkpoint_of_another_run_is_refused_by_name(clf, dls, tmp_path, how, says):
    play(clf, dls, folder=tmp_path)
    before = (tmp_path/'checkpoint.pt').read_bytes()
    with pytest.raises(MirrorError, match=f'belongs to another run .*{says}.*: give another folder, or delete it'):
        play(clf, dls, folder=tmp_path, **how)
    assert (tmp_path/'checkpoint.pt').read_bytes() == before

def test_a_checkpoint_for_another_classifier_is_refused(clf, dls, tmp_path):
    play(clf, dls, folder=tmp_path)
    other = small_resnet(widths=(8, 16), size=16)
    with pytest.raises(MirrorError, match='belongs to another run .classifier'): play(other, dls, folder=tmp_path)

OTHER_DATA = {
    'one pixel': (lambda dl: retouched(dl, lambda d: d.x[-1, 0, -1].add_(1)), 'training images'),
    'one label': (lambda dl: retouched(dl, lambda d: d.y[:1].fill_((int(d.y[0]) + 1) % 10)), 'training images'),
    'batch size': (lambda dl: dl.new(bs=4), r'training batch size 8, here 4\)'),
    'order': (lambda dl: dl.new(seed=5), r'training order seed 0, here seed 5\)'),
    'as stored': (lambda dl: dl.new(shuffle=False), 'training order seed 0, here as stored')}

def retouched(dl, change):
    "The loader with a copy of its images that is changed."
    data = ImageSet(dl.dataset.x.clone(), dl.dataset.y.clone(), dl.dataset.vocab)
    change(data)
    return dl.new(data)

@pytest.mark.parametrize('what', OTHER_DATA)
def test_a_checkpoint_of_other_data_is_refused_by_name(clf, dls, tmp_path, stop_after, what):
    "Images, labels, batch size and order decide the weights; a run on the same data goes on."
    change, says = OTHER_DATA[what]
    with pytest.raises(KeyboardInterrupt): play(clf, dls, folder=tmp_path, cbs=[stop_after(1)])
    other = DataLoaders(change(dls.train), dls.valid)
    with pytest.raises(MirrorError, match=f'another run .*{says}'): play(clf, other, folder=tmp_path)
    same = DataLoaders(retouched(dls.train, lambda d: None), dls.valid)
    assert len(play(clf, same, folder=tmp_path).moves) == 8, 'two epochs were left'

def test_a_checkpoint_of_other_validation_images_is_refused(clf, dls, tmp_path):
    "The scores of the epochs stand in one table."
    play(clf, dls, folder=tmp_path)
    other = DataLoaders(dls.train, retouched(dls.valid, lambda d: d.x[0].add_(1)))
    with pytest.raises(MirrorError, match='another run .validation images'): play(clf, other, folder=tmp_path)

def test_a_checkpoint_in_other_precision_is_refused(clf, dls, tmp_path):
    class InBf16(GreyGame): amp = True
    InBf16.__name__ = 'GreyGame'
    play(clf, dls, folder=tmp_path)
    with pytest.raises(MirrorError, match='another run .bf16 False, here True'): play(clf, dls, InBf16, folder=tmp_path)

def test_a_flipped_bit_in_a_checkpoint_is_refused(clf, dls, tmp_path):
    "Wherever it is: in the weights, in what is said of them, in the checksum."
    play(clf, dls, folder=tmp_path)
    file = tmp_path/'checkpoint.pt'
    whole = file.read_bytes()
    for at in [*range(0, len(whole), len(whole)//40), len(whole) - 1]:
        broken = bytearray(whole)
        broken[at] ^= 64
        file.write_bytes(broken)
        with pytest.raises(DamagedFile, match='checkpoint.pt is damaged'): play(clf, dls, folder=tmp_path)
        with pytest.raises(DamagedFile, match='checkpoint.pt is damaged'): GreyGame(clf).load_generators(file)
    file.write_bytes(whole)
    play(clf, dls, folder=tmp_path)

class Broken(Callback):
    "Stop before an epoch begins, as if killed."
    def __init__(self, epoch): self.stop = epoch
    def before_train(self):
        if self.epoch == self.stop: raise KeyboardInterrupt('killed')

def test_the_log_keeps_every_epoch_that_counts(clf, dls, tmp_path):
    "Also where the run is killed just after it went on, and where somebody has cut the file."
    play(clf, dls, folder=tmp_path/'whole', epochs=5)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt): play(clf, dls, folder=tmp_path/'f', epochs=5, cbs=[Broken(3)])
        assert epochs_of(tmp_path/'f') == ['epoch', '0', '1', '2']
    (tmp_path/'f/history.csv').write_text('epoch,ad')
    play(clf, dls, folder=tmp_path/'f', epochs=5)
    assert epochs_of(tmp_path/'f') == ['epoch', '0', '1', '2', '3', '4']
    def values(folder):   # without fastai's running mean of all losses, which begins anew, and the time
        return [line.split(',')[2:-1] for line in (tmp_path/folder/'history.csv').read_text().splitlines()]
    assert values('f') == values('whole'), 'the losses are those of an unbroken run'

def epochs_of(folder): return [line.split(',')[0] for line in (folder/'history.csv').read_text().splitlines()]

@pytest.mark.parametrize('content', [b'half a file', b''])
def test_a_file_that_is_no_checkpoint(clf, dls, tmp_path, content):
    (tmp_path/'checkpoint.pt').write_bytes(content)
    with pytest.raises(MirrorError, match='checkpoint.pt is damaged .*delete it to start again'):
        play(clf, dls, folder=tmp_path)

def test_a_loss_that_is_not_finite(clf, dls):
    with pytest.raises(MirrorError, match='the loss is nan in epoch 0: lower lr=0.05$'):
        play(clf, dls, adv=float('nan'))

def test_what_is_drawn_for_a_process_is_its_part_of_the_whole():
    def draw(rank, world_size):
        s = Sampler(torch.Generator().manual_seed(3), ProcessGroup(rank, world_size))
        n = 6//world_size
        return [s.rand(n), s.randn(n, 2), s.randint(2, 5, n), s.draw(lambda n, **how: torch.rand(2, n, **how), n, 1).T]
    for whole, *parts in zip(draw(0, 1), *(draw(i, 3) for i in range(3))):
        for i, part in enumerate(parts): assert torch.equal(part, whole[i::3])
    assert {*Sampler(torch.Generator().manual_seed(0)).randint(2, 5, 100).tolist()} == {2, 3, 4}

def test_real_images_are_of_the_classes_asked_for(dls):
    real = RealImages(dls.train, range(10))
    (x, y) = dls.train.dataset[:]
    c = torch.arange(10).repeat(3)
    for u in (0., .5, .999):
        for image, j in zip(real(c, torch.full((30,), u)), c): assert any(torch.equal(image, v) for v in x[y == j])
