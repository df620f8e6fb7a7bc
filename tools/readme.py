"""Write README.md from nbs/index.ipynb, without Quarto.

Markdown cells stay, code cells become fenced Python followed by their stored output, and pictures become files in
nbs/images/. Usage: python tools/readme.py [--check]
--check writes nothing, and fails if README.md is not what would be written.
"""
import base64, json, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT/"nbs"/"index.ipynb"
NOTE = "<!-- Generated from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"
HIDDEN = {"hide", "include: false", "default_exp"}
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(```.*?```)", re.S)

def text(source):
    "Return a string of a notebook, which may be stored as lines."
    return "".join(source) if isinstance(source, list) else source

def directives(source):
    "Return the `#|` lines of a code cell, and the rest."
    lines = source.split("\n")
    marks = {re.sub(r"^#\|\s*", "", l).strip() for l in lines if l.startswith("#|")}
    return marks, "\n".join(l for l in lines if not l.startswith("#|")).strip("\n")

def relink(md, base="nbs"):
    "Make the links of a page in `base` relative to the folder above it; fenced code is left alone."
    def one(m):
        target = m[2]
        if re.match(r"[a-z]+:|#|/", target): return m[0]
        return m[1] + posixpath.normpath(posixpath.join(base, target)) + m[3]
    return "".join(p if p.startswith("```") else LINK.sub(one, p) for p in FENCE.split(md))

def opening(md):
    "Turn `# title` and `> description` into a heading and a paragraph."
    return re.sub(r"^> ?", "", md, flags=re.M)

def front_matter(raw):
    "Turn a raw cell of `title:` and `description:` into a heading and a paragraph."
    def field(name):
        found = re.search(rf"^{name}:\s*(.+)$", raw, re.M)
        return found[1].strip().strip("\"'") if found else ""
    return f"# {field('title')}\n\n{field('description')}".strip()

def fenced(body, lang=""):
    "Return a fenced block; nothing for an empty body."
    return f"```{lang}\n{body.rstrip()}\n```" if body.strip() else ""

def output(out, name):
    "Return one stored output as Markdown, and the picture it needs: (relative path, bytes) or None."
    if out["output_type"] == "stream": return fenced(text(out["text"])), None
    if out["output_type"] == "error": raise SystemExit(f"index.ipynb stores an error: {out['ename']}")
    data = out["data"]
    if "image/png" in data: return f"![]({name})", (name, base64.b64decode(text(data["image/png"])))
    if "text/markdown" in data: return text(data["text/markdown"]).strip(), None
    return fenced(text(data.get("text/plain", ""))), None

def is_hidden(mark):
    "Whether a `#|` line keeps its cell out of the page."
    return any(mark == h or mark.startswith(h + " ") for h in HIDDEN)

def code(cell, n):
    "Return the Markdown blocks and the pictures of one code cell."
    marks, source = directives(text(cell["source"]))
    if any(is_hidden(m) for m in marks): return [], []
    blocks = [] if "echo: false" in marks else [fenced(source, "python")]
    pictures = []
    outputs = [] if "output: false" in marks else cell["outputs"]
    for i, out in enumerate(outputs):
        md, picture = output(out, f"images/index-{n}-{i}.png")
        blocks.append(md)
        if picture: pictures.append(picture)
    return blocks, pictures

def readme(index=INDEX):
    "Return the text of README.md and its pictures, `{path in nbs/: bytes}`."
    blocks = []
    pictures = {}
    for n, cell in enumerate(json.loads(index.read_text(encoding="utf-8"))["cells"]):
        source = text(cell["source"]).strip()
        if cell["cell_type"] == "code":
            new, pics = code(cell, n)
            blocks += new
            pictures.update(pics)
        elif cell["cell_type"] == "raw": blocks.append(front_matter(source))
        else: blocks.append(source if blocks else opening(source))
    return NOTE + "\n\n" + "\n\n".join(relink(b) for b in blocks if b) + "\n", pictures

def stale(root=ROOT):
    "Return what would be written, `{path: bytes}`, of the files that are not there or differ."
    md, pictures = readme(root/"nbs"/"index.ipynb")
    wanted = {"README.md": md.encode(), **{f"nbs/{k}": v for k, v in pictures.items()}}
    return {f: b for f, b in wanted.items() if not (root/f).exists() or (root/f).read_bytes() != b}

def main():
    found = stale()
    if "--check" in sys.argv:
        if found: sys.exit(f"not what nbs/index.ipynb says: {', '.join(found)}; run `make readme`")
        return
    for name, body in found.items():
        (ROOT/name).parent.mkdir(exist_ok=True)
        (ROOT/name).write_bytes(body)
    print(f"Wrote {', '.join(found)}" if found else "README.md is up to date")

if __name__ == "__main__": main()
