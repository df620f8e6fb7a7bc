"Films: the frames are right, the files whole, refusals clear."
import shutil, sys
import numpy as np, pytest
from PIL import Image
from imageio_ffmpeg import read_frames
from mirrorcfe.animate import Film
from mirrorcfe.core import MirrorError
from mirrorcfe.show import to_rgb
from tiny import tiny

@pytest.fixture(scope="module")
def ex(): return tiny(K=11)

def test_frames(ex):
    film = Film(ex, 0, 240)
    frames = [film[j] for j in range(len(film))]
    assert len(frames) == 11 and all(f.shape == (240, 240, 3) and f.dtype == np.uint8 for f in frames)
    assert all((a != b).any() for a, b in zip(frames, frames[1:]))
    np.testing.assert_array_equal(film[4], frames[4])
    np.testing.assert_array_equal(film[-1], frames[-1])
    with pytest.raises(IndexError): film[11]

def test_frame_holds_the_image(ex):
    film = Film(ex, 0, 480)
    box = film.image.axes.get_window_extent()
    shot = film[7][480 - int(box.y1) + 2:480 - int(box.y0) - 2, int(box.x0) + 2:int(box.x1) - 2]
    want = np.asarray(Image.fromarray(to_rgb(ex.path[0, 7])).resize(shot.shape[1::-1], Image.Resampling.NEAREST))
    assert np.abs(shot.astype(int) - want).mean() < 12

def test_titles(ex):
    film = Film(ex, 0, 200)
    def title(j):
        film[j]
        return film.title.get_text()
    first = int(ex.first_index[0])
    titles = [title(j) for j in (0, first - 1, first, first + 1, 10)]
    assert titles == ["SFE (left)", "SFE (left)", "1st CFE (right)", "CFE (right)", "Reflection (right)"]

def test_numbers_are_those_of_the_step():
    film = Film(tiny(K=11, gains=(.9,)), 0, 200)
    film[0]
    assert film.intended.get_text() == "k = 0.00   intended  S: 0.90  T: 0.05"
    film[10]
    assert film.intended.get_text() == "k = 1.00   intended  S: 0.05  T: 0.90"
    assert film.predicted.get_text() == "          predicted  S: 0.14  T: 0.81"

def test_frame_is_the_nearest_step(ex):
    np.testing.assert_array_equal(np.asarray(ex.frame(0, .52, size=200)), Film(ex, 0, 200)[5])
    for k in (-.1, 1.1, float("nan")):
        with pytest.raises(MirrorError, match="k runs from 0"): ex.frame(0, k)

@pytest.mark.parametrize("channels", [1, 3])
def test_gif(tmp_path, channels):
    ex, seen = tiny(K=11, channels=channels), []
    path = ex.animate(tmp_path/"a.gif", size=240, fps=20, hold=.5, progress=lambda *a: seen.append(a))
    assert seen == [(n, 11) for n in range(1, 12)] and [p.name for p in tmp_path.iterdir()] == ["a.gif"]
    times = []
    with Image.open(path) as gif:
        assert gif.format == "GIF" and gif.size == (240, 240) and gif.n_frames == 11 and gif.info["loop"] == 0
        for n in range(11):
            gif.seek(n)
            times.append(gif.info["duration"])
        last = np.asarray(gif.convert("RGB")).astype(int)
    assert times == [500] + [50]*9 + [500]
    assert np.abs(last - Film(ex, 0, 240)[10]).mean() < 3, "the palette keeps the colours"

def test_colours_survive_the_palette(ex, tmp_path):
    with Image.open(ex.animate(tmp_path/"a.gif", size=480)) as gif:
        shades = set(map(tuple, np.asarray(gif.convert("RGB")).reshape(-1, 3).tolist()))
    lines = dict(source=(214, 39, 40), achieved=(31, 119, 180), intended=(255, 127, 14), first=(50, 205, 50))
    for name, rgb in lines.items(): assert np.abs(np.array(list(shades)) - rgb).max(1).min() <= 2, name

def test_frames_chosen(ex, tmp_path):
    for frames, n in ((3, 3), (500, 11)):   # an older film is replaced
        with Image.open(ex.animate(tmp_path/"a.gif", size=200, frames=frames)) as gif: assert gif.n_frames == n

def test_what_never_flipped_is_animated_too(ex): assert Film(ex, 2, 200)[10].shape == (200, 200, 3)

def test_already_target(tmp_path):
    ex = tiny(K=11, same=True)
    says = "sample 2 has no path to animate: the classifier predicts right already"
    with pytest.raises(MirrorError, match=says): ex.animate(tmp_path/"a.gif", 2)

@pytest.mark.parametrize("kw,message", [
    (dict(path="a.avi"), "ends in .gif or .mp4: found 'a.avi'"), (dict(path="a"), "found 'a'"),
    (dict(path="no/a.gif"), "no folder"), (dict(fps=0), "fps must be 1 to 60"), (dict(fps=100), "fps"),
    (dict(size=201), "even number"), (dict(size=100), "160 to 2000"), (dict(size=200.), "even number"),
    (dict(frames=1), "2 frames or more"), (dict(hold=-1), "hold must be"), (dict(i=3), "sample 3 is outside")])
def test_refusals(ex, tmp_path, kw, message):
    kw = {"path": "a.gif", **kw}
    with pytest.raises(MirrorError, match=message): ex.animate(tmp_path/kw.pop("path"), **kw)
    assert list(tmp_path.iterdir()) == []

def test_failure_leaves_the_old_film(ex, tmp_path):
    path = tmp_path/"a.gif"
    path.write_bytes(b"old")
    def stop(done, n): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ex.animate(path, size=200, progress=stop)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

def test_no_ffmpeg(ex, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MirrorError, match="pip install imageio-ffmpeg"): ex.animate(tmp_path/"a.mp4", size=200)
    assert list(tmp_path.iterdir()) == []

def test_ffmpeg_that_fails(ex, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    with pytest.raises(MirrorError, match="ffmpeg could not write"): ex.animate(tmp_path/"a.mp4", size=200)
    assert list(tmp_path.iterdir()) == []

def read(path):
    "What the reader of imageio-ffmpeg says of a film, and its frames."
    reader = read_frames(str(path))
    about = next(reader)
    return about, [np.frombuffer(f, np.uint8).reshape(*about["size"][::-1], 3) for f in reader]

def test_mp4(tmp_path):
    ex = tiny(K=30)
    path = ex.animate(tmp_path/"a.mp4", size=240)
    about, frames = read(path)
    assert (len(frames), about["size"], about["fps"], about["codec"]) == (30, (240, 240), 10., "h264")
    assert about["pix_fmt"].startswith("yuv420p")
    film = Film(ex, 0, 240)
    for j in (0, 12, 29): assert np.abs(frames[j].astype(int) - film[j]).mean() < 4, "they come out as they went in"
    data = path.read_bytes()
    assert data[4:8] == b"ftyp" and data.index(b"moov") < data.index(b"mdat"), "it starts before it is loaded"

def test_mp4_chosen_frames_rate_and_hold(ex, tmp_path):
    about, frames = read(ex.animate(tmp_path/"a.mp4", size=200, fps=5, frames=4, hold=2))
    assert len(frames) == 10 + 2 + 10 and about["fps"] == 5
    with pytest.raises(MirrorError, match="hold"): ex.animate(tmp_path/"b.mp4", hold=-1)

def test_stopped_mp4_leaves_nothing(ex, tmp_path):
    def stop(done, n): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ex.animate(tmp_path/"a.mp4", size=200, progress=stop)
    assert list(tmp_path.iterdir()) == []

def test_layout(ex):
    "Source and K dots, the green one, both rows of confidences, as in the paper's own films."
    film = Film(ex, 0, 240)
    said = [t.get_text() for t in film.fig.findobj(lambda a: hasattr(a, "get_text"))]
    wanted = {"Source (left)", "Source", "Reflection", "1st CFE point", "K", "Target Class Confidence (right)",
              "intended", "predicted", "difference"}
    assert wanted <= set(said)
    film[5]
    assert film.dot.get_xdata()[0] == film.letter.get_position()[0] == film.now.get_xdata()[0] == .5
    assert "intended" in film.intended.get_text() and "predicted" in film.predicted.get_text()
