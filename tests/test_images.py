"Files to tensors and back: every kind of pixel, position and size, files that are no images, and folders as they are."
import errno, io, os, struct, subprocess, sys, warnings, zlib
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from mirrorcfe import images
from mirrorcfe.benchmark import markdown_table
from mirrorcfe.core import MirrorError
from mirrorcfe.own import load_images, open_data
from mirrorcfe.runs import md_table
from mirrorcfe.stream import Files
from mirrorcfe.images import (SUFFIXES, UnreadableImage, cut_middle, find_images, fit_image, from_bytes, images_below,
                              in_markdown, look_of, oddities, printable, read_fitted, read_image, read_images,
                              to_bytes, to_picture, to_tensor)

posix = pytest.mark.skipif(os.name == "nt", reason="needs links, pipes and names of POSIX")

# --- bytes ------------------------------------------------------------------------------------------------------------

def test_there_and_back():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(x)), x) and from_bytes(x)[[0, 255]].tolist() == [-1, 1]
    for dtype in (torch.float64, torch.bfloat16):
        assert to_bytes(torch.tensor([-1, 1, 9, float("nan")], dtype=dtype)).tolist() == [0, 255, 255, 0]

@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3)])
def test_tensors_and_pictures(mode, channels):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).convert(mode)
    x = to_tensor(im)
    assert x.shape == (channels, 5, 7) and x.dtype == torch.uint8 and x.is_contiguous()
    back = to_picture(from_bytes(x))
    assert back.mode == mode and np.array_equal(np.asarray(back), np.asarray(im))

# --- one file ---------------------------------------------------------------------------------------------------------

@given(mode=st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "F", "I;16"]),
       w=st.integers(1, 9), h=st.integers(1, 9),
       turn=st.integers(0, 9), channels=st.sampled_from([1, 3]))
@settings(max_examples=60, deadline=None)
def test_every_mode_is_read(tmp_path_factory, mode, w, h, turn, channels):
    file = tmp_path_factory.mktemp("m")/"a.tif"
    exif = Image.Exif()
    exif[0x112] = turn
    grey = Image.new("RGB", (w, h), (100,)*3) if mode == "YCbCr" else Image.new("L", (w, h), 100)
    grey.convert(mode).save(file, exif=exif)
    im = read_image(file, channels, levels=(0, 255))
    if mode[0] in "IF": assert np.unique(np.asarray(im)).tolist() == [100]
    assert im.size == ((h, w) if 5 <= turn <= 8 else (w, h)) and im.mode == ("L" if channels == 1 else "RGB")

@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_upright(tmp_path, suffix, turn):
    "A picture stored in each of the eight positions of EXIF is upright again."
    T = Image.Transpose
    up = Image.new("L", (32, 16), 230)
    up.paste(20, (0, 0, 8, 8))
    stored = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
              7: T.TRANSVERSE, 8: T.ROTATE_270}[turn]
    for mode in ("L", "RGB", "CMYK") if suffix != "png" else ("L", "RGB"):
        exif = Image.Exif()
        exif[0x112] = turn
        (up if stored is None else up.transpose(stored)).convert(mode).save(tmp_path/f"a.{suffix}", exif=exif)
        assert np.abs(np.asarray(read_image(tmp_path/f"a.{suffix}")).astype(int) - np.asarray(up)).max() < 12, mode

def test_unsound_exif_is_not_a_reason(tmp_path):
    "A JPEG whose EXIF block is noise is read as it lies."
    Image.new("L", (6, 4), 90).save(tmp_path/"a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffnoise")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(tmp_path/"a.jpg").size == (6, 4)

def test_pictures_of_every_kind(tmp_path):
    def one(im, channels=3, **kw):
        im.save(tmp_path/"x.png", **kw)
        return read_fitted(tmp_path/"x.png", 8, channels)
    red = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    assert one(red)[:, 0, 0].tolist() == [255, 0, 0] and one(red, 1).shape == (1, 8, 8)
    assert one(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))[:, 0, 0].tolist() == [255]*3, "transparent is white"
    assert one(red.convert("RGB").quantize())[:, 0, 0].tolist() == [255, 0, 0]
    assert one(Image.fromarray(np.full((8, 8), 65535, np.uint16)), 1).unique().tolist() == [255]
    assert one(Image.new("1", (8, 8), 1), 1).unique().tolist() == [255]
    exif = Image.Exif()
    exif[0x112] = 3
    up = Image.new("L", (8, 8))
    up.paste(255, (0, 0, 8, 4))
    assert one(up, 1, exif=exif)[0, :, 0].tolist() == [0]*4 + [255]*4, "turned by 180 degrees"
    wide = Image.new("L", (24, 8))
    wide.paste(255, (8, 0, 16, 8))
    assert one(wide, 1).unique().tolist() == [255], "the square in the middle"

def test_transparent_parts_are_white_and_a_note_says_so(tmp_path, monkeypatch):
    "Also a half of them; a picture with an alpha channel that hides nothing has no note."
    monkeypatch.chdir(tmp_path)
    a = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    a.save("a.png")
    a.convert("P").save("a.gif", transparency=a.convert("P").getpixel((0, 0)))
    Image.new("LA", (8, 8), (0, 128)).save("half.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save("opaque.png")
    for name, value in (("a.png", 255), ("a.gif", 255), ("half.png", 127)):
        with pytest.warns(UserWarning, match="^pictures in the current folder have transparent parts, .* as white"):
            assert np.unique(np.asarray(read_image(name, 3))).tolist() == [value]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image("opaque.png").getpixel((0, 0)) == 9

# --- brightness -------------------------------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))

def read_as(tmp_path, a, name="a.tif", **kw):
    "Brightest byte, darkest byte, and what was said."
    Image.fromarray(a).save(tmp_path/name)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        im = np.asarray(read_image(tmp_path/name, **kw))
    return int(im.max()), int(im.min()), " ".join(str(w.message) for w in heard)

INT32 = (RAMP*2000 - 1000).astype(np.int32)

@pytest.mark.parametrize("a, b, levels", [((RAMP*250).astype(np.int32), (RAMP*260).astype(np.int32), (0, 260)),
                                          ((RAMP*.9).astype(np.float32), (RAMP*1.02).astype(np.float32), (0, 1.02)),
                                          (INT32, INT32//2, (-1000, 1000))], ids=["int32", "float", "Hounsfield"])
def test_one_picture_does_not_change_the_scale_of_another(tmp_path, a, b, levels):
    top_a, low_a, said = read_as(tmp_path, a, levels=levels)
    top_b, low_b, _ = read_as(tmp_path, b, levels=levels)
    black, white = levels
    want = [(v - black)/(white - black)*255 for v in (a.max(), a.min(), b.max(), b.min())]
    assert [top_a, low_a, top_b, low_b] == pytest.approx(want, abs=.51) and said == ""
    with pytest.raises(MirrorError, match=r"a\.tif cannot .* it holds .* do not say .* levels=\(black, white\)"):
        for picture in (a, b): read_as(tmp_path, picture)

@pytest.mark.parametrize("a, levels", [((RAMP*1000).astype(np.float32), (0, 1000)), (INT32, (-1000, 1000)),
                                       ((RAMP*80_000).astype(np.int32), (0, 80_000)),
                                       (np.array([[0, 500], [np.nan, 1000]], np.float32), (0, 1000)),
                                       (np.array([[0, .5], [np.inf, 1]], np.float32), (0, 1)),
                                       ((RAMP*200).astype(np.int32), (0, 200))],
                         ids=["to 1000", "Hounsfield", "above 16 bits", "NaN", "infinity", "bytes in 32 bits"])
def test_numbers_without_a_known_range_ask_for_levels(tmp_path, a, levels):
    with pytest.raises(MirrorError, match="give levels="): read_as(tmp_path, a)
    top, low, said = read_as(tmp_path, a, levels=levels)
    assert (top, low) == (255, 0) and said.endswith("levels 0 to 1, which are cut off" if np.isinf(a).any() else "")

def test_fractions_from_0_to_1_are_as_they_are(tmp_path):
    for high in (.25, .5, 1): assert read_as(tmp_path, (RAMP*high).astype(np.float32)) == (round(255*high + .01), 0, "")

@pytest.mark.parametrize("train", [False, True])
def test_doubts_are_said_once_and_of_which_pictures(tmp_path, train):
    "Values outside the levels, dark pictures and transparent parts, in the folders of several classes."
    def tenth(i): return np.where(np.arange(100).reshape(10, 10) < 10*i, 5000, 4000 + (i > 0)).astype(np.uint16)
    for c in "abc":
        (tmp_path/c).mkdir()
        for i in range(3): Image.fromarray(tenth(i)).save(tmp_path/c/f"{i}.png")
        Image.new("LA", (10, 10), (9, 99)).save(tmp_path/c/"3.png")
    def said(**levels):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            if train: open_data(tmp_path, 10, 1, **levels)
            else: read_images(find_images(tmp_path), **levels)
        return sorted(str(w.message).replace(str(tmp_path), "in") for w in heard)
    clear = "pictures have transparent parts, which are read as white: paste them on another ground where white is "
    clear += "wrong (3 of 12: in/a/3.png, in/b/3.png, in/c/3.png)"
    names = ", ".join(f"in/{c}/{i}.png with {10*i} % of its pixels" for c in "ab" for i in (1, 2))
    cut_off = "pictures have values outside the levels 0 to 4001, which are cut off (6 of 12: "
    assert said(levels=(0, 4001)) == [clear, f"{cut_off}{names}, in/c/1.png with 10 % of its pixels ...)"]
    dark = said()
    assert len(dark) == 2 and dark[0] == clear and dark[1].startswith("pictures use less than an eighth of the range")
    assert dark[1].endswith("(9 of 12: in/a/0.png, in/a/1.png, in/a/2.png, in/b/0.png, in/b/1.png ...)")

def test_twelve_bits_in_sixteen(tmp_path):
    a = (RAMP*4095).astype(np.uint16)
    top, _, said = read_as(tmp_path, a)
    assert top == 16 and "less than an eighth of the range 0 to 65,535" in said
    assert "give levels=(black, white), on the command line --levels BLACK WHITE" in said and "read_image" not in said
    assert read_as(tmp_path, a, levels=(0, 4095)) == (255, 0, "")

def tiff(tmp_path, pixels, levels=None, **tags):
    "A little-endian TIFF of one strip, its tags by number, as a detector may write it."
    height, width = pixels[1]
    all_tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(pixels[0])}
    all_tags |= {int(k[1:]): v for k, v in tags.items()}
    body = pixels[0] + bytes(len(pixels[0]) % 2)
    entries = b"".join(struct.pack("<HHIHH", k, 3, 1, v, 0) for k, v in sorted(all_tags.items()))
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    (tmp_path/"t.tif").write_bytes(head + body + struct.pack("<H", len(all_tags)) + entries + bytes(4))
    return np.asarray(read_image(tmp_path/"t.tif", levels=levels)).tolist()

def test_what_a_tiff_says_of_its_numbers(tmp_path):
    sixteen = struct.pack("<4H", 0, 65535, 257, 0), (2, 2)
    assert tiff(tmp_path, sixteen) == [[0, 255], [1, 0]]
    assert tiff(tmp_path, sixteen, t262=0) == [[255, 0], [254, 255]], "0 is white"
    signed = struct.pack("4b", -128, -1, 0, 127), (2, 2)
    assert tiff(tmp_path, signed, (-128, 127), t258=8, t339=2) == [[0, 127], [128, 255]]
    unsigned = struct.pack("<2I", 0, 2**32 - 1), (1, 2)
    assert tiff(tmp_path, unsigned, (0, 2**32 - 1), t258=32) == [[0, 255]]
    for pixels, tags in ((signed, dict(t258=8, t339=2)), (unsigned, dict(t258=32))):
        with pytest.raises(MirrorError, match="holds integers .* give levels"): tiff(tmp_path, pixels, **tags)
    twelve = bytes([0xff, 0xf0, 0x00, 0x80, 0x00, 0x00]), (2, 2)   # 4095 and 0, 2048 and 0
    assert tiff(tmp_path, twelve, t258=12) == [[255, 0], [128, 0]]

@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_several_pages_are_said(tmp_path, suffix):
    pages = [Image.new("L", (4, 4), v) for v in (10, 200)]
    pages[0].save(tmp_path/f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="have several pages or frames, of which the first is read"):
        assert read_image(tmp_path/f"a.{suffix}").getpixel((0, 0)) == 10

def test_sixteen_bits_of_a_pgm(tmp_path):
    (tmp_path/"a.pgm").write_bytes(b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095))
    assert np.asarray(read_image(tmp_path/"a.pgm")).tolist() == [[0, 128, 255]]

def test_a_sixteen_bit_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    up = np.zeros((4, 4), np.uint16)
    up[:2] = 65535
    Image.fromarray(up).save(tmp_path/"a.png", exif=exif)
    assert np.asarray(read_image(tmp_path/"a.png"))[:, 0].tolist() == [0, 0, 255, 255]

@pytest.mark.parametrize("levels", [5, (1,), (1, 0), (0, 0), ("a", "b"), (0, np.nan), (0, np.inf), "ab", (0, 1, 2)])
def test_levels_are_two_numbers(tmp_path, levels):
    with pytest.raises(MirrorError, match="levels must be two numbers"): images.check_levels(levels)

def test_levels_reach_every_reader(tmp_path):
    for c in "ab":
        (tmp_path/"in"/c).mkdir(parents=True)
        for i in range(5): Image.fromarray(np.full((9, 9), -1000 + 500*i, np.int32)).save(tmp_path/"in"/c/f"{i}.tif")
    files = find_images(tmp_path/"in")
    want = [0, 64, 128, 191, 255]
    levels = ("-1000", "1000")   # as they come from a command line
    assert [int(p.getpixel((0, 0))) for p in read_images(files, levels=levels)[1]] == want*2
    assert to_bytes(Files(files, 9, 1, levels=levels).read(0, 5)[0])[:, 0, 0, 0].tolist() == want
    assert Files(files, 9, 1).key() != Files(files, 9, 1, levels=levels).key()
    dls = open_data(tmp_path/"in", 9, levels=levels)
    assert dls.spec.levels == (-1000, 1000) and dls.spec.channels == 1
    assert {v for l in dls.loaders for v in to_bytes(l.dataset[:][0]).unique().tolist()} == set(want)
    about = dict(look=look_of(dls.train.dataset[:][0]), fit="middle", size=9, in_channels=1, classes=["a", "b"])
    assert to_bytes(load_images(files[:5], about | dict(levels=list(dls.spec.levels)))[1])[:, 0, 4, 4].tolist() == want
    readers = dict(images=lambda: read_images(files), folder=lambda: open_data(tmp_path/"in", 9),
                   explain=lambda: load_images(files, about))
    for name, read in readers.items():
        with pytest.raises(MirrorError, match=r"0\.tif cannot .*: it holds integers .* give levels"): read()
    assert "it holds integers" in Files(files, 9, 1).read(0, 5)[2][4]

def test_one_picture_of_unknown_levels_does_not_stop_the_others(tmp_path):
    "Where pictures are explained; one that is trained with says that the others may be read wrongly too."
    for c in "ab":
        (tmp_path/"in"/c).mkdir(parents=True)
        for i in range(5): Image.fromarray(np.full((9, 9), .1*i, np.float32)).save(tmp_path/"in"/c/f"{i}.tif")
    Image.fromarray(np.full((9, 9), 7., np.float32)).save(tmp_path/"in"/"a"/"2.tif")
    files = find_images(tmp_path/"in")
    with pytest.warns(UserWarning, match=r"^1 of 10 images are left out: .*2\.tif cannot be read as an image: it holds "
                                         "fractions from 7 to 7, .* give levels"):
        assert read_images(files)[0] == [*files[:2], *files[3:]]
    x, numbers, bad = Files(files, 9, 1).read(0, 10)
    assert len(x) == len(numbers) == 9 and list(bad) == [2] and bad[2].startswith("it holds fractions from 7 to 7, ")
    with pytest.raises(MirrorError, match="it holds fractions .* give levels"): open_data(tmp_path/"in", 9)

def test_sixteen_bits_are_scaled_exactly(tmp_path):
    a = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name in ("a.png", "a.tif"):
        Image.fromarray(a).save(tmp_path/name)
        assert np.array_equal(np.asarray(read_image(tmp_path/name)), (a/257).round().astype(np.uint8))

def test_strips_are_the_whole(monkeypatch):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (13, 7), np.uint16))
    whole = np.asarray(images._to_8_bits(im, 65535)[0])
    monkeypatch.setattr(images._strips, "__defaults__", (20,))
    assert len(list(images._strips(im))) == 7 and np.array_equal(np.asarray(images._to_8_bits(im, 65535)[0]), whole)

def test_nan_is_black(tmp_path):
    a = np.full((4, 4), .5, np.float32)
    a[0, 0] = np.nan
    Image.fromarray(a).save(tmp_path/"a.tif")
    assert read_image(tmp_path/"a.tif").getpixel((0, 0)) == 0 and read_image(tmp_path/"a.tif").getpixel((1, 1)) == 128

def test_black_is_not_doubtful(tmp_path): assert read_as(tmp_path, np.zeros((4, 4), np.uint16)) == (0, 0, "")

# --- what is no image -------------------------------------------------------------------------------------------------

def why(file, **kw):
    with pytest.raises(UnreadableImage) as e: read_image(file, **kw)
    assert e.value.file == file and str(e.value) == f"{printable(file)} cannot be read as an image: {e.value.reason}"
    return e.value.reason

def test_reasons(tmp_path):
    Image.new("L", (40, 40), 9).save(tmp_path/"good.png")
    (tmp_path/"empty.png").touch()
    (tmp_path/"text.png").write_bytes(b"no picture")
    (tmp_path/"cut.png").write_bytes((tmp_path/"good.png").read_bytes()[:60])
    assert why(tmp_path/"empty.png") == "it is empty"
    assert why(tmp_path/"text.png") == "its contents are of no known kind" and "truncated" in why(tmp_path/"cut.png")
    assert why(tmp_path/"none.png") == "it is gone" and why(tmp_path) == "it is not a regular file"

@posix
def test_links_and_pipes(tmp_path):
    (tmp_path/"link.png").symlink_to("nowhere.png")
    (tmp_path/"loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path/"pipe.png")
    assert why(tmp_path/"link.png") == "it is a link to nothing"
    assert why(tmp_path/"pipe.png") == "it is not a regular file"
    why(tmp_path/"loop.png")

def test_no_memory(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path/"a.png")
    def none(*a): raise MemoryError
    monkeypatch.setattr(images, "_upright", none)
    assert why(tmp_path/"a.png") == "it needs more memory than there is"

@posix
def test_no_program_is_started(tmp_path, monkeypatch):
    "EPS in a file called .png made Pillow start Ghostscript."
    (tmp_path/"gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path/"gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path/"cat.png").write_bytes(eps)
    assert why(tmp_path/"cat.png") == "its contents are of no known kind" and not (tmp_path/"ran").exists()

@pytest.mark.parametrize("format", images._FORMATS)
def test_every_format_named_is_one_that_pillow_has(tmp_path, format):
    im = Image.new("RGB", (9, 9), (10, 200, 30))
    out = io.BytesIO()
    im.save(out, format)
    (tmp_path/"a").write_bytes(out.getvalue())
    assert read_image(tmp_path/"a", 3).getpixel((4, 4)) == pytest.approx((10, 200, 30), abs=9)

def test_what_cameras_call_a_jpeg(tmp_path):
    "Two pictures in one JPEG, the format MPO."
    im = Image.new("RGB", (16, 16), (10, 200, 30))
    im.save(tmp_path/"a.jpg", "MPO", save_all=True, append_images=[im])
    assert Image.open(tmp_path/"a.jpg").format == "MPO"
    assert read_image(tmp_path/"a.jpg", 3).getpixel((4, 4)) == pytest.approx((10, 200, 30), abs=9)

# --- large ones -------------------------------------------------------------------------------------------------------

def deep_png(file, side):
    "A black PNG of 16 bits, written row by row: a few hundred kB that unpack to a thousand times as much."
    def chunk(kind, body=b""):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    z = zlib.compressobj(9)
    rows = b"".join([z.compress(bytes(1 + 2*side)) for _ in range(side)] + [z.flush()])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND"))

LARGE = """
import sys, resource, warnings; warnings.simplefilter("ignore")
from pathlib import Path; from mirrorcfe.images import *
def grown():
    global before
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    before, more = now, now - before
    return more
before = 0; grown()
read_images([Path(sys.argv[1])]*8, 3, fit=lambda im: fit_image(im, 64)); photos = grown()
read_fitted(sys.argv[2], 64, 3); print(photos, grown())
"""

@posix
def test_memory(tmp_path, root):
    "Eight photos of six million pixels, and a 16-bit PNG of 25 million, in megabytes."
    Image.new("RGB", (3000, 2000), (9, 99, 199)).save(tmp_path/"a.jpg")
    deep_png(tmp_path/"a.png", 5000)
    run = subprocess.run([sys.executable, "-c", LARGE, str(tmp_path/"a.jpg"), str(tmp_path/"a.png")], cwd=root,
                         text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    photos, deep = map(int, run.stdout.split())
    assert photos < 130 and deep < 300, (photos, deep)   # held all at once, and as numbers of 8 bytes: 190 and 600

def test_a_giant_is_reduced_first(tmp_path, monkeypatch):
    a = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8), 50, 0), 50, 1)
    Image.fromarray(a).save(tmp_path/"a.png")
    whole = read_fitted(tmp_path/"a.png", 8, 1).int()
    monkeypatch.setattr(images, "GIANT", 1000)
    assert read_image(tmp_path/"a.png", near=8).size == (34, 34)
    assert (read_fitted(tmp_path/"a.png", 8, 1) - whole).abs().float().mean() < 6
    assert read_image(tmp_path/"a.png").size == (400, 400)

def test_a_long_strip_is_no_giant_square():
    x = fit_image(Image.new("L", (200_000, 1), 77), 32)
    assert x.shape == (1, 32, 32) and to_bytes(x).unique().tolist() == [77]

# --- files and folders ------------------------------------------------------------------------------------------------

@pytest.fixture
def tree(tmp_path):
    for f in ("b.png", "a/1.PNG", "a/2.webp", "a/.3.png", "a/4.txt", ".hidden/5.png",
              "a/.ipynb_checkpoints/1-checkpoint.png", "a/6.jfif"):
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/f).touch()
    return tmp_path

def test_folders_in_order(tree):
    names = ["a/1.PNG", "a/2.webp", "a/6.jfif", "b.png"]
    assert [f.relative_to(tree).as_posix() for f in images_below(tree)] == names
    for where in (tree, str(tree), [tree], [tree/"a", tree/"b.png"]):
        assert [f.relative_to(tree).as_posix() for f in find_images(where)] == names
    assert find_images([tree/"a/4.txt"]) == [tree/"a/4.txt"], "a file that is named is tried"

def test_what_is_not_there(tree, monkeypatch):
    (tree/"empty").mkdir()
    for bad, says in ((tree/"c.png", "no such image: .*c.png"), (tree/"none", "no folder .*none"),
                      (tree/"empty", "no image in the folder .*looked for .png, .jpg")):
        for where in (bad, [bad]):
            with pytest.raises(MirrorError, match=says): find_images(where)
    monkeypatch.setenv("HOME", str(tree))
    assert find_images("~/a")[0] == tree/"a/1.PNG"

def test_formats_that_are_not_read_are_named(tree):
    for f in ("a/1.heic", "a/2.HEIC", "3.dng"): (tree/f).touch()
    with pytest.warns(UserWarning, match=r"passed over, since their formats are not read \(1 .dng, 2 .heic\)"):
        assert len(images_below(tree)) == 4
    assert not set(SUFFIXES) & images._NOT_READ

@pytest.mark.parametrize("fit", [np.array([0, 1]), None, "crop", 3])
def test_another_way_to_fit_is_refused(fit):
    with pytest.raises(MirrorError, match="fit must be 'middle'.*found"): images.check_fit(fit)

@posix
def test_links_to_folders_are_named(tree):
    (tree/"a/more").symlink_to(tree)
    with pytest.warns(UserWarning, match=r"links to folders are not followed.*a/more; what is in them is left out"):
        assert len(images_below(tree)) == 4

@posix
def test_odd_names_are_listed_and_printable(tree):
    (tree/"a"/os.fsdecode(b"caf\xe9.png")).touch()
    (tree/"a/lost.png").symlink_to("nowhere")
    (tree/"a/\x1b[2Jred.png").touch()
    found = [printable(f.relative_to(tree)) for f in images_below(tree/"a")]
    assert r"a/caf\xe9.png" in found and "a/lost.png" in found and r"a/\x1b[2Jred.png" in found
    assert "".join(found).encode("utf-8")
    assert printable("ä b.png") == "ä b.png" and printable(Path("a/b")) == str(Path("a/b"))

@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_free_descriptor_is_no_fault_of_the_image(tmp_path, monkeypatch, number):
    "It is neither left out nor noted as unreadable: whoever calls again, reads it."
    file = tmp_path/"a.png"
    Image.new("L", (9, 9)).save(file)
    def busy(*a, **kw): raise OSError(number, os.strerror(number), str(file))
    with monkeypatch.context() as m:
        m.setattr(images, "open", busy, raising=False)
        for read in (lambda: read_image(file), lambda: read_images([file]), lambda: Files([file], 9, 1).read(0, 1)):
            with pytest.raises(MirrorError, match="cannot read .*a.png just now: .*call again") as e: read()
            assert not isinstance(e.value, UnreadableImage)
    assert read_image(file).size == (9, 9)

def test_names_are_data_in_markdown():
    "In the tables of a run and of a benchmark: no HTML, formula, code or terminal command, and one cell."
    name = "<img src=x onerror=y>$x$`z`|\x1b[2J\n"
    shown = r"&lt;img src=x onerror=y>\$x\$\`z\`\|\x1b[2J "
    assert in_markdown(name) == shown and in_markdown("4->9, größe_1 *") == "4->9, größe_1 *"
    assert md_table([[name, 1]], ["a", "b"]).splitlines()[2] == f"| {shown} | 1 |"
    frame = pd.DataFrame([dict(method=name, Val=1.)])
    assert markdown_table(frame).splitlines()[2] == f"| {shown} | 1.000 |"

def test_what_can_be_read_is_read(tmp_path):
    for i in range(3): Image.new("L", (10 + i, 10), 9).save(tmp_path/f"{i}.png")
    bad = [tmp_path/f"bad{i}.png" for i in range(7)]
    for f in bad: f.touch()
    files = [*bad[:1], tmp_path/"0.png", *bad[1:], tmp_path/"2.png"]
    says = "7 of 9 images are left out: .*bad0.png cannot be read as an image: it is empty; .* ...$"
    with pytest.warns(UserWarning, match=says) as heard:
        good, sizes = read_images(files, fit=lambda im: im.size)
    assert good == [tmp_path/"0.png", tmp_path/"2.png"] and sizes == [(10, 10), (12, 10)]
    assert str(heard[0].message).count("; ") == 4
    with pytest.raises(MirrorError, match=r"it is empty \(nor can the other 6\)"): read_images(bad)
    with pytest.raises(MirrorError, match="it is empty$"): read_images(bad[:1])
    assert read_images([]) == ([], [])

# --- one size ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("w, h", [(40, 30), (30, 40), (33, 33), (7, 50)])
def test_cut_middle(w, h):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, w), np.uint8))
    side = min(w, h)
    left = (w - side)/2
    top = (h - side)/2
    by_hand = im.resize((16, 16), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    assert np.abs(np.asarray(cut_middle(im, 16)).astype(int) - np.asarray(by_hand)).max() <= 1

def old_fit_image(img, size=32, invert=False, extent=0., middle=False):
    "As it was before it had to save memory: the oracle of the test below."
    array = lambda: np.atleast_3d(np.asarray(img)).transpose(2, 0, 1)
    border = lambda a: np.concatenate([a[:, 0], a[:, -1], a[:, :, 0], a[:, :, -1]], 1)
    a = array()
    fill = tuple(int(v) for v in np.median(border(a), 1))
    out = (np.abs(a.astype(int) - np.median(border(a), 1)[:, None, None]) > 50).any(0)
    rows = np.flatnonzero(out.any(1))
    cols = np.flatnonzero(out.any(0))
    if extent and len(rows): img = img.crop((int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1))
    elif middle: img = ImageOps.fit(img, (size, size), Image.Resampling.BICUBIC)
    side = max(round(max(img.size)/(extent or 1)), *img.size)
    if img.size != (side, side):
        square = Image.new(img.mode, (side, side), fill if len(fill) > 1 else fill[0])
        square.paste(img, ((side - img.width)//2, (side - img.height)//2))
        img = square
    if invert: img = ImageOps.invert(img)
    if side != size: img = img.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(array().copy()).float()/127.5 - 1

@given(mode=st.sampled_from(["L", "RGB"]), w=st.integers(1, 60), h=st.integers(1, 60), size=st.sampled_from([8, 32]),
       invert=st.booleans(),
       extent=st.sampled_from([0., .5, .9, 1.]), middle=st.booleans(), noise=st.booleans())
@settings(max_examples=80, deadline=None)
def test_fit_image_is_what_it_was(mode, w, h, size, invert, extent, middle, noise):
    a = np.random.default_rng(w*h).integers(0, 256, (h, w, 3), np.uint8) if noise else np.full((h, w, 3), 200, np.uint8)
    a[h//3:h//2 + 1, w//4:w//2 + 1] = 0
    im = Image.fromarray(a).convert(mode)
    assert torch.equal(fit_image(im, size, invert, extent, middle), old_fit_image(im, size, invert, extent, middle))

def test_oblong_pictures_are_padded_with_their_border():
    a = np.full((10, 30), 200, np.uint8)
    a[3:7, 10:20] = 0
    x = fit_image(Image.fromarray(a), 30)
    assert x.shape == (1, 30, 30) and float(x[0, 0, 0]) == pytest.approx(200/127.5 - 1) and float(x[0, 15, 15]) == -1

def test_oddities():
    x = torch.full((20, 1, 16, 16), -1.)
    for i in range(20): x[i, 0, 3:13, 4 + i % 3:12] = 1
    look = look_of(x)
    assert not any(oddities(i, look) for i in x), "no training image is odd"
    assert all("--invert" in oddities(-i, look)[0] for i in x)
    assert oddities(torch.zeros(1, 16, 16), look) == ["it is blank"]
    small = torch.nn.functional.pad(x[0], (16,)*4, value=-1.)
    assert oddities(small, look)[0].endswith(" or more; try --trim")
    assert oddities(small, look, trimmed=True)[0].endswith(" or more"), "nothing is advised that was done"
    assert oddities(-x[0], look, inverted=True)[0].endswith("; leave out --invert")
    assert "brighter than any" in oddities(x[0].clamp_min(.2), dict(look, border=0.))[0]
