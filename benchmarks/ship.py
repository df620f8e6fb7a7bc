"""Train the explainer of photographs that comes with the package, and write it to mirrorcfe/shipped/blood_cells.

    python benchmarks/ship.py   # five minutes on one core, then cached

It is for photographs of blood cells, erythroblasts and lymphocytes, as BloodMNIST has them, read from $MIRRORCFE_DATA.
All weights are rounded to half precision after the training and before they are measured: what is measured is what is
in the files.
"""
import copy, json, shutil
import torch
from mirrorcfe.benchmark import get_explainer
from mirrorcfe.classifiers import get_classifier, get_oracle, predict
from mirrorcfe.data import DATASETS, get_dls
from mirrorcfe.images import look_of, to_picture
from mirrorcfe.judges import Panel, Usual, get_panel
from mirrorcfe.runs import (RESULT_COLUMNS, SHIPPED, load_explainer, load_panel, md_table, measure_run,
                            pick_test_images, save_explainer, slug)
from mirrorcfe.storage import file_hash, new_folder, read_json, read_tensors, tensors_hash, write_json, write_tensors

NAME = 'bloodmnist'
PAIR = (2, 4)
JUDGES = 'perceptron', 'conv', 'conv_half'   # the small ones of the panel; the others keep training images
MEASURED = 100   # test images
USUAL = 250      # training images by which others are found unlike them
EXAMPLES = 10
CREDIT = ('Photographs: A. Acevedo et al., Hospital Clinic of Barcelona (doi.org/10.17632/snkd93bnjr.1), CC BY 4.0, '
          'scaled to 28 pixels as in MedMNIST v2 (J. Yang et al.).')

def rounded(net):
    "A copy of a network whose weights half precision can hold."
    net = copy.deepcopy(net)
    for v in [*net.parameters(), *net.buffers()]:
        if v.is_floating_point(): v.data = v.data.half().to(v.dtype)
    return net

def halve(folder):
    "Store the weights of an explainer in half precision, and the checksums anew."
    for file in folder.rglob('*.safetensors'):
        about, tensors = read_tensors(file)
        write_tensors(file, {n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}, about)
    for file, weights in (('classifier.json', 'classifier.safetensors'),
                          ('generator/about.json', 'generator/nets.safetensors')):
        hashed = tensors_hash(read_tensors(folder/weights)[1])
        write_json(folder/file, read_json(folder/file) | dict(weights=hashed))
    panel = read_json(folder/'panel'/'panel.json')
    for name, judge in panel['judges'].items():
        kind = 'safetensors' if judge['form'] else 'skops'
        judge['sha256'] = file_hash(folder/'panel'/f'{name}.{kind}')
    write_json(folder/'panel'/'panel.json', panel)

def small_panel(panel, dls):
    "Those judges of a panel that are small, with few of the images that it knows."
    judges = [copy.copy(j) for j in panel.judges if j.name in JUDGES]
    for j in judges:
        if isinstance(j.model, torch.nn.Module): j.model = rounded(j.model)
        else: vars(j.model).pop('_optimizer', None)   # two thirds of the file, and needed for training only
    x, y = dls.test.dataset[:]
    for j in judges: j.accuracy = (j(x) == y).float().mean().item()
    return Panel(judges, panel.classes, Usual.of(dls.train.dataset.subset(torch.arange(USUAL))))

def write_page(folder, results, panel):
    "Say what the files are and where they come from."
    known = RESULT_COLUMNS | dict(
        agree='share of test images that the rounded classifier calls what the exact one does')
    numbers = [(k, f'{v:.4g}' if isinstance(v, float) else v, known[k]) for k, v in results.items()]
    files = [(f.relative_to(folder).as_posix(), f'{f.stat().st_size:,}', file_hash(f))
             for f in sorted(folder.rglob('*')) if f.is_file()]
    judges = [(j.name, f'{j.accuracy:.3f}') for j in panel.judges]
    page = ['# An explainer of photographs of blood cells',
            'Made by `python benchmarks/ship.py`: do not edit. It draws the path between erythroblasts and lymphocytes '
            'for a small network that tells eight kinds of blood cells apart. Weights are in half precision.',
            CREDIT + ' The weights were trained on those photographs, and the pictures in examples/ are the first test '
            'images of each of the two classes that the classifier is right about. The images were made from the '
            'original photographs (middle, bicubic) with a split of their own; they are not the official file of '
            'MedMNIST. No physician has judged what is drawn: this is no medical device.',
            '## What it is worth', md_table(numbers, ['', 'value', 'what it is']),
            "`believed` is by all judges of the data's panel, which is too large to ship. "
            f'These {len(judges)} are here:',
            md_table(judges, ['judge', 'accuracy']),
            '## Files', md_table(files, ['file', 'bytes', 'SHA-256'])]
    (folder/'README.md').write_text('\n\n'.join(page) + '\n', encoding='utf-8')

def main():
    dls = get_dls(NAME, pair=PAIR, device='cpu')
    whole = get_dls(NAME, device='cpu')
    exact = get_classifier(NAME, device='cpu', progress=False)
    net = rounded(exact)
    answers = [predict(f, whole.test)[0].argmax(1) for f in (exact, net)]
    agree = (answers[0] == answers[1]).float().mean().item()
    net.accuracy = (answers[1] == whole.test.dataset.y).float().mean().item()
    print(f'the rounded classifier agrees with the exact one on {agree:.2%} of {len(answers[0])} test images')
    model = get_explainer(NAME, PAIR, device='cpu', progress=True)   # that of page 70
    model.classifier = model.model.F = net
    model.model.G = rounded(model.model.G)
    if model.model.autoencoder is not None: model.model.autoencoder = rounded(model.model.autoencoder)
    panel = get_panel(NAME, device='cpu')
    small = small_panel(panel, whole)
    look = look_of(dls.train.dataset[:1000][0])
    title = f'{DATASETS[NAME].title}, erythroblasts and lymphocytes'

    def fill(folder):
        save_explainer(folder, model, None, small, look=look, pair=PAIR, dataset=NAME, preset='default', seed=0,
                       fit='middle', title=title, credit=CREDIT)
        halve(folder/'explainer')
        loaded, _, _ = load_explainer(folder)
        x, y, _ = pick_test_images(loaded, dls, MEASURED)
        results = measure_run(loaded, loaded.classifier, get_oracle(NAME, device='cpu', progress=False), x, y,
                              panel=panel)
        results |= dict(classifier_accuracy=net.accuracy, steps=loaded.recipe.steps, agree=agree)
        (folder/'examples').mkdir()
        with torch.no_grad(): right = loaded.classifier(x).argmax(1) == y
        for i, at in enumerate(right.nonzero()[:EXAMPLES, 0].tolist()):
            to_picture(x[at]).save(folder/'examples'/f'{i:02}_{slug(net.classes[y[at]])}.png')
        write_page(folder, results, load_panel(folder))
        print(json.dumps(results, indent=1))

    made = SHIPPED.with_name('new')
    shutil.rmtree(made, ignore_errors=True)
    new_folder(made, fill)
    shutil.rmtree(SHIPPED, ignore_errors=True)
    made.rename(SHIPPED)
    print(f"{sum(f.stat().st_size for f in SHIPPED.rglob('*') if f.is_file())/2**20:.1f} MB in {SHIPPED.name}")

if __name__ == '__main__': main()
