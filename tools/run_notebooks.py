"""Run notebooks top to bottom in a plain Jupyter kernel, as nbclient and `Run All` do, and say how long each takes.

Without --store it is a check: IN_TEST shrinks them, nothing is written. With --whole they are not shrunk; with --store neither, and they keep
their outputs; nbdev_clean follows. Cells flagged slow, cuda or notest are left out (their stored outputs stay) unless --flags names them, and so is
the export at the end. Times are on the clock and, which other work on the machine changes little, of the processor.
Usage: python tools/run_notebooks.py [--whole | --store] [--flags slow] [--times FILE] [NAME.ipynb ...]     (no names: all)
"""
import argparse, base64, io, json, os, resource, subprocess, sys, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
from readme import directives, text

FLAGS = {"slow", "cuda", "notest"}

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
    "Run one notebook; returns it with its outputs, without what libraries say to their developers if `quiet`. Raises `CellExecutionError` at the first cell that fails."
    nb = nbformat.read(path, 4)
    env = dict(os.environ) | (dict(IN_TEST="1") if test else {}) | (dict(PYTHONWARNINGS="ignore::FutureWarning,ignore::DeprecationWarning") if quiet else {})
    if not test: env.pop("IN_TEST", None)
    client = Client(nb, kernel_name="python3", timeout=timeout, record_timing=False, store_widget_state=False, resources={"metadata": {"path": str(path.parent)}})
    client.flags = flags
    client.execute(env=env)
    return nb

def shrink(nb, colours=256):
    "Give every stored picture a palette, where that makes it smaller."
    from PIL import Image
    for o in (o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]):
        png = base64.b64decode(text(o.get("data", {}).get("image/png", "")))
        if not png: continue
        out = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() < len(png): o["data"]["image/png"] = base64.b64encode(out.getvalue()).decode()

def store(path, nb, most=280_000):
    "Keep the outputs, cleaned as nbdev does; pictures get a palette where the file would be larger than `most` bytes."
    if len(nbformat.writes(nb)) > most: shrink(nb)
    nbformat.write(nb, path)
    subprocess.run([Path(sys.executable).parent/"nbdev_clean", "--fname", str(path)], cwd=ROOT, check=True)

def processor():
    "Processor seconds of all kernels that have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def main(argv=None):
    args = argparse.ArgumentParser(description="Run notebooks in a plain Jupyter kernel.")
    args.add_argument("names", nargs="*", help="in nbs/; none: all of them")
    args.add_argument("--store", action="store_true", help="run whole and keep the outputs")
    args.add_argument("--whole", action="store_true", help="run whole, write nothing")
    args.add_argument("--flags", default="", help="flagged cells to run too, such as slow")
    args.add_argument("--times", help="JSON file for the seconds of each")
    args = args.parse_args(argv)
    paths = [ROOT/"nbs"/n for n in args.names] or sorted((ROOT/"nbs").glob("*.ipynb"))
    times, failed = {}, []
    for path in paths:
        start, used = time.monotonic(), processor()
        try: nb = run(path, not (args.store or args.whole), args.flags.split(), args.store)
        except CellExecutionError as e:
            failed.append(path.name)
            print(f"{path.name}: FAILED\n{e}", flush=True)
            continue
        times[path.name] = dict(seconds=round(time.monotonic() - start, 1), processor_seconds=round(processor() - used, 1))
        if args.store: store(path, nb)
        print("{}: {seconds} s, processor {processor_seconds} s".format(path.name, **times[path.name]), flush=True)
        if args.times: Path(args.times).write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    if failed: sys.exit(f"{len(failed)} of {len(paths)} notebooks failed: {', '.join(failed)}")

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
