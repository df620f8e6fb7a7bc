"""Run notebooks top to bottom in a plain Jupyter kernel, as `Run All` does, and say how long each takes.

python tools/run_notebooks.py                           check all notebooks in their short form; nothing is written
python tools/run_notebooks.py 00_core.ipynb             check one
python tools/run_notebooks.py --store 00_core.ipynb     run one in full and store its outputs: refreshes a page
python tools/run_notebooks.py --whole                   run all in full; nothing is written

In the short form IN_TEST is set, which the notebooks ask to train less. Cells flagged slow, cuda or notest are left
out, and their stored outputs stay, unless --flags names them; the export at the end is always left out. With --store,
nbdev_clean follows, and pictures get a palette where the file would be too large. Seconds are given on the clock and of
the processor, which other work on the machine changes little.
"""
import argparse, base64, io, json, os, resource, subprocess, sys, time
from pathlib import Path
import nbformat
from PIL import Image
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
from readme import directives, text

FLAGS = {"slow", "cuda", "notest"}
QUIET = "ignore::FutureWarning,ignore::DeprecationWarning"   # what libraries tell their developers is not stored

def skipped(cell, flags=()):
    "Whether a code cell is left out."
    marks, source = directives(text(cell["source"]))
    return bool(marks & (FLAGS - set(flags))) or "nbdev_export(" in source

class Client(NotebookClient):
    "Leaves flagged cells as they are."
    flags = ()
    async def async_execute_cell(self, cell, cell_index, **kw):
        if cell["cell_type"] == "code" and skipped(cell, self.flags): return cell
        return await super().async_execute_cell(cell, cell_index, **kw)

def run(path, test=True, flags=(), quiet=False, timeout=3600):
    "Run one notebook and return it with its outputs; raises `CellExecutionError` at the first cell that fails."
    nb = nbformat.read(path, 4)
    env = dict(os.environ)
    env.pop("IN_TEST", None)
    if test: env["IN_TEST"] = "1"
    if quiet: env["PYTHONWARNINGS"] = QUIET
    client = Client(nb, kernel_name="python3", timeout=timeout, record_timing=False, store_widget_state=False,
                    extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(path.parent)}})
    client.flags = flags
    client.execute(env=env)
    return nb

def with_palette(png, colours=256):
    "Return a PNG with a palette, or the PNG itself where that is no smaller."
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return min(png, out.getvalue(), key=len)

def shrink(nb):
    "Give every stored picture a palette, where that makes it smaller."
    for cell in nb["cells"]:
        if cell["cell_type"] != "code": continue
        for out in cell["outputs"]:
            data = out.get("data", {})
            if "image/png" not in data: continue
            png = base64.b64decode(text(data["image/png"]))
            data["image/png"] = base64.b64encode(with_palette(png)).decode()

def store(path, nb, most=280_000):
    "Write the notebook and clean it as nbdev does; pictures get a palette where it would have more than `most` bytes."
    if len(nbformat.writes(nb)) > most: shrink(nb)
    nbformat.write(nb, path)
    subprocess.run([Path(sys.executable).parent/"nbdev_clean", "--fname", str(path)], cwd=ROOT, check=True)

def find(name):
    "Return the path of a notebook that is given as a path or as a name in nbs/, with or without the suffix."
    candidates = [Path(name), ROOT/"nbs"/name, ROOT/"nbs"/f"{name}.ipynb"]
    found = next((p for p in candidates if p.suffix == ".ipynb" and p.is_file()), None)
    if found is None: sys.exit(f"no notebook {name}: give a name in nbs/, such as 00_core.ipynb")
    return found.resolve()

def processor():
    "Return the processor seconds of all kernels that have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks, as paths or as names in nbs/; none: all")
    parser.add_argument("--store", action="store_true", help="run in full and keep the outputs")
    parser.add_argument("--whole", action="store_true", help="run in full, write nothing")
    parser.add_argument("--flags", default="", help="flagged cells to run too, such as slow")
    parser.add_argument("--times", metavar="FILE", help="JSON file to write the seconds of each notebook to")
    return parser.parse_args(argv)

def main(argv=None):
    args = parse(argv)
    paths = [find(n) for n in args.names] or sorted((ROOT/"nbs").glob("*.ipynb"))
    times = {}
    failed = []
    for path in paths:
        start = time.monotonic()
        used = processor()
        try: nb = run(path, not (args.store or args.whole), args.flags.split(), quiet=args.store)
        except CellExecutionError as e:
            failed.append(path.name)
            print(f"{path.name}: FAILED\n{e}", flush=True)
            continue
        seconds = round(time.monotonic() - start, 1)
        processor_seconds = round(processor() - used, 1)
        times[path.name] = dict(seconds=seconds, processor_seconds=processor_seconds)
        if args.store: store(path, nb)
        print(f"{path.name}: {seconds} s, processor {processor_seconds} s", flush=True)
        if args.times: Path(args.times).write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    if failed: sys.exit(f"{len(failed)} of {len(paths)} notebooks failed: {', '.join(failed)}")

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
