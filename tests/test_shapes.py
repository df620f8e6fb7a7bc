"Height and width apart: every network, picture and file takes images that are no squares."
import torch, pytest
from fastai.data.core import DataLoaders
from hypothesis import HealthCheck, example, given, settings, strategies as st
from PIL import Image
from mirrorcfe import own
from mirrorcfe.animate import Film
from mirrorcfe.augmentation import random_affine
from mirrorcfe.autoencoder import AutoencoderForm, LatentAutoencoder
from mirrorcfe.baselines.base import ImageDecoder, ImageEncoder, ToImage
from mirrorcfe.baselines.c3lt import DCGAN
from mirrorcfe.baselines.cem import CEM
from mirrorcfe.baselines.cve import CVE
from mirrorcfe.baselines.cyclegan import CycleGAN
from mirrorcfe.baselines.explaingan import ExplainGAN
from mirrorcfe.baselines.pgd import PGD
from mirrorcfe.benchmark import Task, cut_border, measure
from mirrorcfe.classifiers import small_resnet
from mirrorcfe.core import MirrorError, short_size
from mirrorcfe.data import ImageSet, TensorLoader, get_dls, get_folder_dls
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.generator import Discriminator, MirrorGenerator
from mirrorcfe.features import Classifier
from mirrorcfe.images import fit_image, to_bytes
from mirrorcfe.judges import PlainConvNet, edge_features, pixel_features
from mirrorcfe.metrics import cout, denoised_validity, high_frequency_share, lattice_score
from mirrorcfe.own import load_images
from mirrorcfe.painter import LatentPainter
from mirrorcfe.runs import load_network, save_network
from mirrorcfe.show import strip_panels
from mirrorcfe.ssc import halvings
from mirrorcfe.student import Student
from mirrorcfe.widget import step_picture   # adds `html` and `widget` to explanations
from tiny import TINY_NETWORKS, tiny

# --- training and explaining ----------------------------------------------------------------------------------------

def noise(n, channels, size, seed=0):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed))*2 - 1

def loaders(x, classes=3):
    images = ImageSet(to_bytes(x), torch.arange(len(x)) % classes, list('abc')[:classes])
    return DataLoaders(TensorLoader(images, 6, shuffle=True), TensorLoader(images, 6), device='cpu')

def classifier(size, channels=1, classes=3):
    torch.manual_seed(0)
    return small_resnet(classes, channels, (4, 8), size, list('abc')[:classes]).freeze()

def fitted(size, channels, painter, net=None, steps=1):
    "An explainer after a few steps, with small networks."
    if net is None: net = classifier(size, channels)
    x = noise(6*steps, channels, size)
    kw = dict(autoencoder=LatentAutoencoder(channels, AutoencoderForm(4, 2, 4, 8, 4)).eval().requires_grad_(False),
              student_net=Student(3, channels, min(size), 8).eval().requires_grad_(False))
    recipe = dict(preset='paper') if painter == 'pixels' else {}
    cfe = MirrorCFE(net, steps=steps, amp=False, width=8, d_width=8, **recipe)
    return cfe.fit(loaders(x), 1, progress=False, **(kw if painter == 'latent' else {})), x

SIZES = [(4, 4), (5, 4), (4, 33), (64, 4), (8, 8), (12, 8), (9, 64), (16, 16), (28, 20), (33, 47), (48, 32), (31, 31),
         (61, 97), (97, 61), (96, 64)]   # the maps of the first are 1x1, of the second 2x1

@pytest.mark.parametrize('n, size', list(enumerate(SIZES)), ids=[f'{h}x{w}' for h, w in SIZES])
def test_fit_and_explain(tmp_path, n, size):
    channels = (1, 3)[n % 2]
    cfe, x = fitted(size, channels, ('latent', 'pixels')[n//2 % 2])
    ex = cfe.explain(x[:2], ks=[0, .5, 1], closed_loop=False)
    assert ex.path.shape == (2, 3, channels, *size) and (ex.path.abs() <= 1).all()
    deepest = cfe.classifier.features(x[:1])[-1].shape[2:]
    assert cfe.masks(ex).shape == (2, 3, *deepest) and cfe.model.shapes[-1] == (8, short_size(deepest))
    if cfe.recipe.painter == 'pixels':
        again = MirrorCFE.load(cfe.save(tmp_path/'kept'), classifier(size, channels))
        torch.testing.assert_close(again.explain(x[:2], ks=[0, .5, 1], closed_loop=False).path, ex.path)

sides = st.integers(1, 97)

@pytest.mark.usefixtures('one_thread')   # for networks so small, threads only wait for each other
@given(head=st.sampled_from(list(TINY_NETWORKS)), h=sides, w=sides, channels=st.sampled_from([1, 3]),
       painter=st.sampled_from(['latent', 'pixels']), closed_loop=st.booleans())
@example('flatten and MLP', 1, 1, 1, 'latent', True)
@example('class token', 1, 7, 3, 'latent', True)
@example('average', 5, 1, 1, 'pixels', False)        # maps of other proportions than the image's
@example('average', 5, 97, 3, 'latent', True)
@example('mean of tokens', 4, 3, 1, 'pixels', False)
@example('norm behind the average', 5, 4, 3, 'pixels', True)
@example('average', 4, 4, 3, 'latent', False)        # its last map is one place
@example('average', 97, 61, 1, 'latent', True)
@example('class token', 97, 61, 3, 'latent', False)
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_head_at_any_size(head, h, w, channels, painter, closed_loop):
    "A network as its owner has it: opened, two steps of training, an explanation."
    torch.manual_seed(0)
    model = TINY_NETWORKS[head](channels, h, w).eval()
    cfe, x = fitted((h, w), channels, painter, model, steps=2)
    assert (cfe.classifier.size, cfe.classifier.n_classes) == ((h, w), 3)
    if head == 'average': assert cfe.classifier.is_gap == (max(h, w) > 4)   # of more than one place
    ex = cfe.explain(x[:2], ks=[0, .5, 1], closed_loop=closed_loop)
    assert ex.path.shape == (2, 3, channels, h, w) and ex.path.isfinite().all() and (ex.path.abs() <= 1).all()
    if painter == 'latent': assert torch.equal(ex.path[:, 0], x[:2])
    maps = cfe.classifier.features(x[:2])
    assert cfe.masks(ex).shape == (2, 3, *maps[-1].shape[2:])
    assert all(f.shape[2] <= h and f.shape[3] <= w for f in maps)
    with torch.no_grad():
        torch.testing.assert_close(cfe.classifier(x), model(x), rtol=1e-4, atol=1e-4)
        achieved = torch.stack([model(ex.path[:, k]).softmax(1) for k in range(3)], 1)
    torch.testing.assert_close(ex.achieved_probs, achieved, rtol=1e-3, atol=1e-4)
    rows = torch.arange(2)
    start, end = ex.intended_probs[:, 0], ex.intended_probs[:, 2]
    torch.testing.assert_close(start[rows, ex.source], end[rows, ex.target], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(start, model(x[:2]).softmax(1), rtol=1e-3, atol=1e-4)

def test_the_closed_loop_takes_them_too():
    cfe, x = fitted((12, 8), 1, 'pixels')
    assert cfe.explain(x[:2], ks=[0, 1]).path.shape == (2, 2, 1, 12, 8)
    with pytest.raises(MirrorError, match='takes 12x8 pixels, the images have 8x12'): cfe.explain(x.transpose(2, 3))

# --- networks -------------------------------------------------------------------------------------------------------

@given(h=st.integers(2, 97), w=st.integers(2, 97),
       strides=st.lists(st.sampled_from([(1, 2), (2, 1), (2, 2), (3, 2)]), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_networks_of_any_height_and_width(h, w, strides):
    "Also of classifiers that halve one side alone."
    x = torch.randn(2, 1, h, w)
    maps = []
    for down, along in strides:
        last = maps[-1].shape[2:] if maps else (h, w)
        maps.append(torch.randn(2, 6, -(-last[0]//down), -(-last[1]//along)))
    shapes = [(6, short_size(f.shape[2:])) for f in maps]
    mask = torch.ones(2, 1, *maps[-1].shape[2:])
    assert MirrorGenerator(shapes, 1, (h, w), width=8, floor=4).eval()(maps, maps[-1], mask).shape == x.shape
    code = torch.randn(2, 3, -(-h//4), -(-w//4))
    painter = LatentPainter(shapes, (3, short_size(code.shape[2:])), width=8, floor=4).eval()
    assert painter(maps[painter.first:], code, maps[-1], mask).shape == code.shape
    assert Discriminator(1, (h, w), 3, width=4).eval()(x, torch.tensor([0, 1])).shape == (2,)
    assert Student(3, 1, min(h, w), 4)(x).shape == (2, 3)
    decoder = ImageDecoder(5, (h, w), 4).eval()
    assert ToImage(decoder.out, 1, (h, w))(decoder(torch.randn(2, 5))).shape == x.shape
    assert ImageEncoder(1, (h, w), 7, 4).eval()(x).shape == (2, 7)
    assert PlainConvNet(3, 1, (max(h, 8), max(w, 8)), (4, 4)).eval()(x).shape == (2, 3)

@given(large=st.integers(1, 2000), small=st.integers(1, 2000))
def test_no_side_is_halved_below_one_pixel(large, small):
    (n, m) = halvings((large, large), small)
    assert n == m and large >> n >= 1 and abs((large >> n) - small) <= small or large < small and n == 0

def test_a_rotation_does_not_shear():
    "What stands in the middle turns in an oblong picture as it does in a square one."
    x = torch.zeros(4, 1, 64, 64)
    x[:, :, 24:40, 26:34] = noise(4, 1, (16, 8))
    turn = lambda x: random_affine(x, 40., .2, 0., torch.Generator().manual_seed(2))
    for part in ((..., slice(8, 56)), (..., slice(8, 56), slice(None))):
        torch.testing.assert_close(turn(x[part]), turn(x)[part], atol=1e-4, rtol=0)
    assert (turn(x) - x).abs().max() > .5

# --- data -----------------------------------------------------------------------------------------------------------

def folder_of(tmp_path, size=(30, 20)):
    "Two classes of pictures 20 wide and 30 high: dark with a bright row on top, and bright."
    for name, ground in (('dark', 40), ('light', 200)):
        (tmp_path/'pictures'/name).mkdir(parents=True)
        for i in range(6):
            im = Image.new('L', size[::-1], ground)
            im.paste(120 + i, (0, 0, size[1], 2))
            im.save(tmp_path/'pictures'/name/f'{i}.png')
    return tmp_path/'pictures'

def test_folders_are_cut_or_padded(tmp_path):
    folder = folder_of(tmp_path)
    def images(**kw): return get_folder_dls(folder, 1, device='cpu', **kw).train.dataset
    same = images(size=(30, 20)).x
    assert same.shape[1:] == (1, 30, 20) and (same[:, :, 0] >= 120).all()   # nothing to do
    cut = images(size=(20, 20)).x
    assert cut.unique().tolist() == [40, 200]                               # the bright row is outside of the middle
    whole = images(size=(30, 30), fit='whole').x
    assert torch.equal(whole[..., 5:25], same) and (whole[..., :5] < 205).all()
    assert torch.equal(images(size=20).x, cut) and cut.shape == (10, 1, 20, 20)
    with pytest.raises(MirrorError, match="fit must be 'middle'"): images(fit='stretch')
    about = dict(look=dict(border=-.7, extent=1., least=1., darkest=-1., brightest=1.), in_channels=1, classes=['dark'])
    for fit, wanted in (('middle', images(size=(24, 20)).x), ('whole', images(size=(24, 20), fit='whole').x)):
        _, x, _, truth = load_images(folder/'dark', about | dict(size=[24, 20], fit=fit))
        assert x.shape == (6, 1, 24, 20) and (truth == 0).all()
        assert {tuple(v.flatten().tolist()) for v in wanted} & {tuple(v.flatten().tolist()) for v in to_bytes(x)}

@given(w=st.integers(16, 60), h=st.integers(16, 60), size=st.sampled_from([(24, 16), (19, 66), (64, 16)]),
       extent=st.sampled_from([0., .5, 1.]), middle=st.booleans())
@settings(max_examples=40, deadline=None)
def test_nothing_is_stretched(w, h, size, extent, middle):
    "A white picture in a thin black frame is scaled alike along both sides."
    frame = Image.new('L', (w + 2, h + 2))
    frame.paste(255, (1, 1, w + 1, h + 1))
    assert fit_image(frame, size, extent=extent, middle=middle).shape == (1, *size)
    white = fit_image(frame, size)[0] > 0
    scale = min(size[0]/(h + 2), size[1]/(w + 2))
    tall, wide = white.any(1).sum().item(), white.any(0).sum().item()
    assert abs(tall - h*scale) <= 2 and abs(wide - w*scale) <= 2

def test_digits_are_padded_and_squares_stay():
    tall = get_dls('digits', size=(12, 8), device='cpu')
    square = get_dls('digits', size=8, device='cpu')
    assert tall.spec.size == (12, 8) and get_dls('digits', size=(8, 8), device='cpu').spec.size == 8
    assert torch.equal(tall.test.dataset.x[:, :, 2:10], square.test.dataset.x)
    assert not tall.test.dataset.x[:, :, [0, 1, 10, 11]].any()
    cut = get_dls('digits', size=(8, 12), fit='middle', device='cpu').test.dataset.x
    assert cut.shape[1:] == (1, 8, 12) and cut[..., 0].any()
    for wrong in ((12, 4), (8, 8, 8), '12x8', (12, 2000)):
        with pytest.raises(MirrorError, match='size must be 8 to 1024 pixels'): get_dls('digits', size=wrong)

def test_keys_of_squares_are_those_of_numbers():
    assert Task('mnist', (4, 9), (28, 28)) == Task('mnist', (4, 9), 28)
    assert Task('mnist', size=28).title == 'MNIST 28 px'
    tall = Task('mnist', size=[48, 32])
    assert tall.title == 'MNIST 48x32 px' and tall.border == (10, 2)
    assert hash(tall) == hash(Task('mnist', size=(48, 32)))
    assert cut_border(torch.zeros(2, 1, 48, 32), tall.border).shape == (2, 1, 28, 28)
    for given, size in ((None, None), ('64', 64), ('96x64', (96, 64)), ('64X64', 64), (64, 64), ((96, 64), (96, 64))):
        assert own.parse_size(given) == size

def test_kept_networks_know_their_size(tmp_path):
    for size, kept in (((16, 16), 16), ((20, 12), [20, 12])):
        save_network(classifier(size), tmp_path/f'net{size[0]}')
        net, about = load_network(tmp_path/f'net{size[0]}')
        assert net.size == size and about['size'] == kept

# --- methods and metrics --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind, kw', [(DCGAN, dict(width=4)), (ExplainGAN, dict(width=4)),
                                      (CycleGAN, dict(width=4, blocks=1)), (CEM, dict(steps=2, rounds=1, ae_steps=1)),
                                      (CVE, {}), (PGD, {})], ids=lambda v: getattr(v, '__name__', ''))
def test_baselines(tmp_path, kind, kw):
    size = (25, 14)
    net = classifier(size, 3)
    x = noise(6, 3, size)
    dls = loaders(x)
    dls.pair = (0, 1)
    if kind is PGD: method = PGD(net, steps=1)
    else: method = kind(net, 'cpu', **kw)
    method.fit(dls, **(dict(steps=1, progress=False) if hasattr(method, 'game') else {}))
    if kind is DCGAN: assert method.sample(2).shape == (2, 3, *size)
    else: assert method.explain(x).path.shape == (6, 2, 3, *size)
    if hasattr(method, 'game'):
        assert kind.load(method.save(tmp_path/'kept'), net).fingerprint() == method.fingerprint()

def test_metrics_and_features():
    net = classifier((20, 33), 3)
    x, y = noise(3, 3, (20, 33)), noise(3, 3, (20, 33), 1)
    assert cout(net, x, y, 0, 1).target_confidence.shape[0] == 3
    assert 0 < high_frequency_share(y - x) < 1 and lattice_score(y - x) > 0
    assert 0 <= denoised_validity(net, y, 1) <= 1
    assert pixel_features(x).shape == (3, 768) and edge_features(x).shape == (3, 1764 + 96)

def test_a_lattice_is_found_along_either_side():
    for step in ((1, 4), (4, 1)):
        change = torch.randn(4, 1, 24, 48, generator=torch.Generator().manual_seed(0))
        change[..., ::step[0], ::step[1]] += 8
        assert lattice_score(change) > 20

# --- pictures -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [(24, 16), (12, 30)])
def test_pictures_keep_the_proportions(size):
    ex = tiny(K=5, size=size)
    h, w = size
    fig = ex.show(0, 4, difference=True)
    for ax in fig.axes:
        box = ax.get_window_extent()
        assert box.height/box.width == pytest.approx(h/w, rel=.01)
    film = Film(ex, 0, 240)
    box = film.image.axes.get_window_extent()
    assert box.height/box.width == pytest.approx(h/w, rel=.03) and film[2].shape == (240, 240, 3)
    picture = step_picture(ex, 0, 2, torch.ones(3, 2), size=120)
    assert picture.size == ((80, 120) if h > w else (120, 48))
    assert strip_panels(ex, 0, 3)[0].image.shape == (h, w, 3)

def test_films_pages_and_numbers_of_an_oblong_network_with_another_head(tmp_path):
    torch.manual_seed(0)
    size = (25, 14)
    cfe, x = fitted(size, 3, 'latent', TINY_NETWORKS['class token'](3, *size).eval(), steps=2)
    net = cfe.classifier
    ex = cfe.explain(x[:2], ks=5, target_confidence=[.5])
    assert not net.is_gap and ex.target_confidence.x.shape == (2, 1, 3, *size)
    masks = cfe.masks(ex)
    assert masks.shape == (2, 5, *net.features(x[:1])[-1].shape[2:]) and masks.shape[2] > masks.shape[3]
    cams = net.hires_cams(x[:2], ex.source, ex.target)
    assert cams.shape[2:] == masks.shape[2:] and cams.isfinite().all()
    ex.animate(tmp_path/'film.gif', size=160, frames=2)
    assert ex.html(tmp_path/'page.html', masks).stat().st_size > 10_000
    assert len(ex.widget(cfe).images) == len(ex.widget(masks=masks).images) == 2
    names = ['Val', 'D.Val', 'Oracle', 'L1', 'confidence error', 'COUT']
    ends = measure(cfe, x[:4], None, net, classifier(size, 3), metrics=names, ks=5)['rows']
    for name in names: assert 'mean' in ends['reflection']['metrics'][name], name
