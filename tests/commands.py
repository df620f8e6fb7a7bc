"What the tests of the command line share: its refusals, its tables, and data that are quick to train on."
import csv
from pathlib import Path
from PIL import Image
import mirrorcfe.forecast as forecast, mirrorcfe.own as own, mirrorcfe.runs as runs
from mirrorcfe.cli import main

def refused(capsys, *argv):
    "Run a command that must end with code 2 and one line on stderr; returns the line."
    assert main(list(map(str, argv))) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("mirrorcfe: "), err
    return err.strip()

def rows(path):
    "A CSV file as a list of dicts."
    with open(path, encoding="utf-8") as f: return list(csv.DictReader(f))

def train_quickly(monkeypatch, with_forecast=False):
    "Let `train` stop early, keep a checkpoint after every other step, and take no time to say how long it will take."
    monkeypatch.setattr(own, "CLASSIFIER_STEPS", 10)
    monkeypatch.setattr(own, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(forecast, "STEPS", 2)
    monkeypatch.setattr(forecast, "TRIED", 30)
    monkeypatch.setattr(runs, "TRIED_FRAMES", 2)
    known = forecast.Forecast(step=.1, after=1.)
    if not with_forecast: monkeypatch.setattr(own, "make_forecast", lambda *a: known)

def write_pets(folder, digits):
    "Threes and eights as files of every kind, and two that cannot be read."
    turn = Image.Exif()
    turn[0x112] = 3   # upside down
    for c, name in ((3, "three"), (8, "ei ght")):
        here = Path(folder)/name
        here.mkdir(parents=True)
        pictures = [Image.fromarray(v.numpy()) for v in digits.x[digits.y == c][:30, 0]]
        pictures[0].convert("CMYK").save(here/"00.jpg")
        pictures[1].rotate(180).save(here/"01.png", exif=turn)
        pictures[2].convert("RGBA").save(here/"02.webp", lossless=True)
        pictures[3].resize((90, 50)).save(here/"03.bmp")
        for i, picture in enumerate(pictures[4:], 4): picture.save(here/f"{i:02}.png")
        (here/"broken.jpg").write_bytes(b"no picture")
    return Path(folder)

# What `trained` is made with, but for --data and --out.
TRAIN = ["--size", "16", "--pair", "three", "ei ght", "--steps", "4", "--n", "2", "--measure", "4", "--device", "cpu",
         "--levels", "-1000", "1000"]
