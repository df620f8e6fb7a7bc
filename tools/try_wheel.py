"""Run every command of the installed package in a temporary folder, with few steps. Usage: python tools/try_wheel.py

It is for an environment into which a wheel was installed without the dev extra: `make wheel` makes one. It fails if the
package that is imported is the one of the checkout.
"""
import subprocess, sys, tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SAVE_DIGITS = """
from pathlib import Path
from PIL import Image
from mirrorcfe.data import get_dls
data = get_dls('digits', device='cpu').train.dataset
for c in (4, 9):
    Path(f'own/{c}').mkdir(parents=True)
    for i, x in enumerate(data.x[data.y == c][:60, 0]): Image.fromarray(x.numpy()).save(f'own/{c}/{i:02}.png')
"""
COMMANDS = ("--version", "--help", "demo --help", "train --help", "explain --help", "evaluate --help", "animate --help",
            "app --help",
            "demo --steps 3 --n 1 --measure 4 --out demo",
            "explain own/4/00.png --explainer demo --out explained",
            "evaluate --explainer demo --pair 4 9 --n 2 --steps 3 --out evaluated",
            "animate own/9/00.png --explainer demo --frames 3 --format gif --out films",
            "train --data own --size 16 --steps 3 --n 1 --measure 4 --out trained")

def run(*argv, cwd):
    "Run a command with this interpreter; stop at the first that fails."
    print("$", *argv, flush=True)
    done = subprocess.run([sys.executable, *argv], cwd=cwd, timeout=1800)
    if done.returncode: sys.exit(f"{' '.join(argv)} ended with code {done.returncode}")

def main():
    with tempfile.TemporaryDirectory() as here:
        ask = [sys.executable, "-c", "import mirrorcfe; print(mirrorcfe.__file__)"]
        where = subprocess.run(ask, cwd=here, text=True, capture_output=True, check=True).stdout.strip()
        if CHECKOUT/"mirrorcfe" in Path(where).resolve().parents:
            sys.exit("this is the package of the checkout: install a wheel into an environment of its own")
        run("-c", SAVE_DIGITS, cwd=here)
        for command in COMMANDS: run("-m", "mirrorcfe", *command.split(), cwd=here)
    print("every command ran")

if __name__ == "__main__": main()
