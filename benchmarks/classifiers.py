"""Train the classifier and the oracle of each dataset, and write what they reach to benchmarks/results/classifiers.md.

    python benchmarks/classifiers.py [digits mnist fashion_mnist]   (no argument: all; earlier results of the others are kept in classifiers.json)

Trained networks go to the cache, where `get_classifier` and `get_oracle` find them. Seconds mean something only on a quiet machine."""
import json, os, platform, sys, time
from datetime import date
from pathlib import Path
import fastai, torch, torchvision
from torch.nn import functional as F
from mirrorcfe.classifiers import CODE_VERSION, RECIPES, accuracy, class_table, classifier_learner, fast_bf16, get_classifier, get_oracle, predict, small_resnet
from mirrorcfe.data import DATASETS, available, data_fingerprint, get_dls

OUT = Path(__file__).parent/"results"/"classifiers.md"
def table(head, rows): return "\n".join(["| " + " | ".join(r) + " |" for r in [head, ["---"]*len(head), *(list(map(str, r)) for r in rows)]])

def train(name, device):
    "One row for the classifier, one for the oracle; and the classes the classifier finds hardest."
    dls, rows = get_dls(name, device=device), []
    for role, get, seed in (("classifier", get_classifier, 0), ("oracle", get_oracle, 1)):
        load, start, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
        net = get(name, device=device, force=True)
        start, cpu = time.perf_counter() - start, time.process_time() - cpu
        logits, y = predict(net, dls.test)
        r = RECIPES[name]
        rows.append([name, role, sum(p.numel() for p in net.parameters()), seed, r["epochs"], f"{net.history.accuracy.iloc[-1]:.4f}", f"{accuracy(net, dls.test):.4f}",
                     f"{logits.softmax(1).amax(1).mean():.3f}", f"{F.cross_entropy(logits, y):.4f}", f"{start:.1f}", f"{cpu:.1f}", f"{load:.1f}"])
        print(*rows[-1], flush=True)
        if role == "classifier": hard = class_table(net, dls.test).sort_values("accuracy").head(3)
    return rows, f"{name} ({data_fingerprint(dls)}): " + "; ".join(f"{r['class']} {r.accuracy:.3f}, taken for {r['taken for']}" for _, r in hard.iterrows() if r.accuracy < 1)

def step_times(bs=128, steps=25):
    "Median processor time of a training step on one thread, for each option."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dls, rows = get_dls("digits", bs=bs, device="cpu"), []
    x, y = dls.one_batch()
    for bf16 in (False, True):
        for last in (False, True):
            learn = classifier_learner(small_resnet(), dls, bf16=bf16, channels_last=last)
            opt, times = torch.optim.AdamW(learn.model.parameters()), []
            for _ in range(steps):
                start = time.process_time()
                F.cross_entropy(learn.model(x), y).backward()
                opt.step()
                opt.zero_grad()
                times.append(time.process_time() - start)
            rows.append(["bfloat16" if bf16 else "float32", "yes" if last else "no", f"{sorted(times)[steps//2]*1000:.0f}"])
    torch.set_num_threads(threads)
    return rows

def page(done):
    "The results as Markdown."
    sets, bullets = [done[n] for n in DATASETS if n in done], lambda items: "\n".join(f"- {i}" for i in items)
    head = ["data", "network", "parameters", "seed", "epochs", "valid", "test", "confidence", "test loss", "seconds", "processor seconds", "load before"]
    return "\n\n".join([
        "# Classifiers and oracles", "Made by `python benchmarks/classifiers.py`:", bullets(s["where"] for s in sets),
        "Marks: digits .975, MNIST .992, Fashion-MNIST .90 on the test images. Seconds include reading the data. Where processor seconds are not about twice the seconds, "
        "or `load before` is far above 1, other work ran beside it: those seconds say little.",
        table(head, [r for s in sets for r in s["rows"]]), "The hardest classes of each classifier, with the data's fingerprint:", bullets(s["hard"] for s in sets),
        "Processor milliseconds of one training step of the classifier (128 images of 32x32, one thread, median of 25):",
        table(["precision", "channels-last", "ms"], done["steps"])]) + "\n"

def main(names):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    what = torch.cuda.get_device_name() if device == "cuda" else f"{getattr(torch.cpu, 'get_capabilities', dict)().get('cpu_name', platform.machine())}, {torch.get_num_threads()} threads"
    where = (f"{device} ({what}), torch {torch.__version__}, torchvision {torchvision.__version__}, fastai {fastai.__version__}, code version {CODE_VERSION}, "
             f"bfloat16 {'on' if fast_bf16(device) else 'off'}, channels-last on")
    kept = OUT.with_suffix(".json")
    done = json.loads(kept.read_text()) if kept.exists() else {}
    done["steps"] = step_times()
    for name in names:
        if not available(name):
            print(f"{name}: its files are not here, left out")
            continue
        rows, hard = train(name, device)
        done[name] = dict(rows=rows, hard=hard, where=f"{name}: {date.today()}, {where}")
        OUT.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(done, indent=1) + "\n")
        OUT.write_text(page(done))
    print(f"written to {OUT}")

if __name__ == "__main__": main(sys.argv[1:] or list(DATASETS))
