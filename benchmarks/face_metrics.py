"""Measure an explainer of an attribute of faces by the metrics of papers: FVA, S3, MNAC, CD, COUT and FR.

    python benchmarks/face_metrics.py [ATTRIBUTE] [SIZE] [IMAGES]   # Mouth_Slightly_Open 64 200; minutes on one core

The explainer is that of `get_explainer`, from the cache, or trained now. CelebA-HQ is read from $MIRRORCFE_DATA. The
numbers are kept in results/face_metrics.json, each with the name of who measured; no picture of a face is.
"""
import json, sys, time
from pathlib import Path
import torch
from mirrorcfe.attributes import attribute_accuracy, attribute_judge, attribute_metrics, labelled_faces
from mirrorcfe.benchmark import get_explainer, measure
from mirrorcfe.data import get_dls
from mirrorcfe.projected import SqueezeFeatures
from mirrorcfe.runs import Explained

OUT = Path(__file__).parent/'results'/'face_metrics.json'
ENDS = {'first CFE': 'first', 'k = 1': 'reflection'}

def embedding():
    "Images to the means of SqueezeNet's maps: no embedding of persons, but one that can be had here."
    net = SqueezeFeatures()
    return lambda x: torch.cat([m.mean((2, 3)) for m in net(x)], 1)

def of_direction(ex, clf, source, judge, labels, query):
    "The numbers of the images that start at one class, a row for each end."
    mine = ex[ex.source == source]
    measured = measure(Explained(mine), mine.x, mine.target, clf, None, metrics=['Val', 'COUT'], bs=len(mine))
    ends = {'first CFE': mine.x_cf, 'k = 1': mine.x_reflection}
    for at, x_cf in ends.items():
        row = measured['rows'][ENDS[at]]['metrics']
        numbers = attribute_metrics(mine.x, x_cf, ('SqueezeNet', embedding()), ('judge of 40', judge), labels, query)
        yield dict(direction=f'{clf.classes[source]} to {clf.classes[1 - source]}', at=at, images=len(mine),
                   FR=row['Val']['mean'], COUT=row['COUT']['mean'], **numbers)

def main(attribute='Mouth_Slightly_Open', size='64', images='200'):
    start = time.process_time()
    name = f'celeba_hq:{attribute}'
    if attribute == 'Mouth_Slightly_Open': name = 'celeba_hq'   # the attribute that the data have without a name
    cfe = get_explainer(name, (0, 1), size=int(size), device='cpu')
    names, faces, has, (train, _, held_out) = labelled_faces(int(size))
    judge = attribute_judge(faces[train], has[train])
    query = names.index(attribute)
    table = attribute_accuracy(judge, faces[held_out], has[held_out], names)
    x = get_dls(name, size=int(size), device='cpu').test.dataset[:int(images)][0]
    ex = cfe.explain(x, ks=[0, 1], quick=True)
    rows = [row for c in (0, 1) for row in of_direction(ex, cfe.classifier, c, judge, has[train], query)]
    accuracy = table.set_index('attribute').accuracy
    about = dict(attribute=attribute, size=int(size), steps=cfe.recipe.steps, classifier=cfe.classifier.fingerprint(),
                 judge_accuracy=float(accuracy.mean()), judge_of_attribute=float(accuracy[attribute]),
                 processor_seconds=round(time.process_time() - start))
    kept = json.loads(OUT.read_text(encoding='utf-8')) if OUT.exists() else {}
    kept[f'{attribute} {size}'] = dict(about=about, rows=rows)
    OUT.write_text(json.dumps(kept, indent=1) + '\n', encoding='utf-8')
    for row in rows: print(row)
    print(about)

if __name__ == '__main__': main(*sys.argv[1:])
