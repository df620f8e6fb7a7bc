"""Keep pictures small: what the other scripts here save their figures with.

    python benchmarks/pictures.py FILE.png ...     (make stored pictures smaller in place; a second each)

Strips and curves need few colours. A palette of 48 shows grey images as they were, and one of 128 keeps what is rare in
coloured ones, such as the magenta specks beside a blood cell, at a quarter of the bytes of a full-colour PNG.
"""
import io, sys
from pathlib import Path
import numpy as np
from PIL import Image

def is_grey(picture):
    "Whether fewer than a fifth of the pixels have a colour; frames and lines around grey images take a twentieth."
    pixels = np.asarray(picture.convert('RGB')).astype(int)
    return (np.ptp(pixels, axis=2) > 24).mean() < .2

def few_colours(picture):
    "The picture with a palette of 48 colours where it is grey, else of 128."
    if is_grey(picture): how = dict(colors=48, method=Image.Quantize.MEDIANCUT)
    else: how = dict(colors=128, method=Image.Quantize.MAXCOVERAGE)
    return picture.convert('RGB').quantize(**how, kmeans=6, dither=Image.Dither.NONE)

def save_small(figure, file, **kwargs):
    "Save a matplotlib figure as a PNG of few colours; the rest goes to `savefig`."
    drawn = io.BytesIO()
    figure.savefig(drawn, format='png', **kwargs)
    few_colours(Image.open(drawn)).save(file, optimize=True)

if __name__ == '__main__':
    for file in map(Path, sys.argv[1:]):
        before = file.stat().st_size
        if Image.open(file).mode == 'P': continue
        few_colours(Image.open(file)).save(file, optimize=True)
        print(f'{file.name}: {before:,} to {file.stat().st_size:,} bytes')
