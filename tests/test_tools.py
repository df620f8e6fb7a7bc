"The tools: README without Quarto, the check of the export, the plain documentation site, the counts of lines."
import base64, json, shutil, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import docs, lines, readme, sync

def notebook(path, *cells):
    "Write a notebook of `(kind, source, outputs)`."
    made = []
    for i, (kind, source, outputs) in enumerate(cells):
        cell = dict(cell_type=kind, id=f"c{i}", metadata={}, source=source.splitlines(keepends=True))
        if kind == "code": cell |= dict(execution_count=None, outputs=outputs)
        made.append(cell)
    meta = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    nb = dict(cells=made, metadata=meta, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(nb, indent=1) + "\n", encoding="utf-8")
    return path

def stream(text): return dict(output_type="stream", name="stdout", text=[text])

def data(**kw):
    "An output of the formats given: `image_png=` is that of image/png."
    return dict(output_type="display_data", metadata={}, data={k.replace("_", "/"): v for k, v in kw.items()})

# --- README ----------------------------------------------------------------------------------------------------------

def test_readme_of_a_notebook(tmp_path):
    png = base64.b64encode(b"picture").decode()
    links = "[a](00_core.ipynb) [b](https://x.org/y) ![c](images/c.png)\n```\n[d](e)\n```"
    nb = notebook(tmp_path/"index.ipynb",
                  ("markdown", "# Name\n\n> What it is.", []),
                  ("code", "#| hide\nsecret = 1", []),
                  ("code", "print(1)", [stream("1\n")]),
                  ("code", "#| echo: false\nplot()", [data(image_png=png, text_plain=["<Figure>"])]),
                  ("markdown", links, []))
    md, pictures = readme.readme(nb)
    expected = [readme.NOTE,
                "# Name\n\nWhat it is.",
                "```python\nprint(1)\n```",
                "```\n1\n```",
                "![](nbs/images/index-3-0.png)",
                "[a](nbs/00_core.ipynb) [b](https://x.org/y) ![c](nbs/images/c.png)\n```\n[d](e)\n```\n"]
    assert md == "\n\n".join(expected)
    assert pictures == {"images/index-3-0.png": b"picture"}

def test_readme_of_a_raw_first_cell():
    assert readme.front_matter("---\ntitle: Name\ndescription: 'What it is.'\n---") == "# Name\n\nWhat it is."

def test_readme_refuses_a_stored_error(tmp_path):
    error = dict(output_type="error", ename="ZeroDivisionError", evalue="", traceback=[])
    nb = notebook(tmp_path/"index.ipynb", ("markdown", "# N", []), ("code", "1/0", [error]))
    with pytest.raises(SystemExit, match="ZeroDivisionError"): readme.readme(nb)

def test_readme_says_what_is_stale(tmp_path):
    (tmp_path/"nbs").mkdir()
    notebook(tmp_path/"nbs"/"index.ipynb", ("markdown", "# N\n\n> d", []))
    assert list(readme.stale(tmp_path)) == ["README.md"]
    (tmp_path/"README.md").write_text(readme.readme(tmp_path/"nbs"/"index.ipynb")[0], encoding="utf-8")
    assert readme.stale(tmp_path) == {}

# --- the check of the export -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project of one notebook, exported."
    root = tmp_path_factory.mktemp("project")
    for name in ("settings.ini", "setup.py", "_quarto.yml"): shutil.copy(ROOT/name, root/name)
    (root/"nbs").mkdir()
    (root/"mirrorcfe").mkdir()
    notebook(root/"nbs"/"00_one.ipynb",
             ("markdown", "# One\n\n> d", []),
             ("code", "#| default_exp one", []),
             ("code", "#| export\nx = 1", []))
    for name in ("nbdev_export", "nbdev_clean"): sync.nbdev(name, root)
    return root

def test_sync_of_a_fresh_export(project): assert sync.differences(project) == []

def test_sync_sees_edits_and_leftovers(project):
    module = project/"mirrorcfe"/"one.py"
    stale = project/"mirrorcfe"/"old.py"
    nb = project/"nbs"/"00_one.ipynb"
    kept = module.read_text()
    page = nb.read_text()
    stale.write_text(kept)
    module.write_text(kept.replace("x = 1", "x = 2"))
    nb.write_text(page.replace('"execution_count": null', '"execution_count": 7'))
    assert sync.differences(project) == ["mirrorcfe/old.py: has no notebook",
                                         "mirrorcfe/one.py: would change",
                                         "nbs/00_one.ipynb: would change"]
    assert module.read_text() != kept, "the check writes nothing"
    stale.unlink()
    module.write_text(kept)
    nb.write_text(page)

# --- the plain site --------------------------------------------------------------------------------------------------

def test_pages_and_anchors():
    assert docs.page_of("00_core.ipynb") == "core.html" and docs.page_of("index.ipynb") == "index.html"
    assert docs.slug("Mirror.reflect") == "mirror.reflect"
    assert docs.slug("The naive <em>first</em> version!") == "the-naive-first-version"

def test_links_of_a_page():
    link = '<a href="{}">x</a>'.format
    there = {"https://h.io/p/core.html#reflect": "core.html#reflect", "01_multiclass.ipynb#x": "multiclass.html#x",
             "https://other.io": "https://other.io"}
    for before, after in there.items(): assert docs.relink(link(before), "https://h.io/p") == link(after)

def test_markdown_of_the_site():
    md = docs.markdown()
    inline = md("the latent $z_k$ here")
    assert "<math" in inline and "$" not in inline
    assert 'display="block"' in md("$$\n\\frac{m}{2}\n$$")
    assert '<h2 id="one-idea">' in md("## One idea")
    assert '<a class="source" href="u">source</a>' in md('[source](u){target="_blank" style="float:right"}')
    signature = md("```python\nx # a [`reflect`](https://h.io/core.html#reflect)\n```")
    assert "https" not in signature and "reflect" in signature
    assert '<div class="callout">' in md("::: {.callout-note}\ntext\n:::")

def test_broken_links_are_found(tmp_path):
    links = '<a href="#x">1</a><a href="b.html">2</a><a href="#y">3</a><a href="https://z.org">4</a>'
    (tmp_path/"a.html").write_text('<h2 id="x">x</h2>' + links)
    assert docs.broken(tmp_path) == ["a.html: #y", "a.html: b.html"]

# --- counts ----------------------------------------------------------------------------------------------------------

def test_counts_of_lines(tmp_path):
    (tmp_path/"a.py").write_text("""
a, b = 1, 2
a, b = b, a
c = [x for x in [y for y in range(3)]]
d = [x for x in c for y in c]
def f():
    import os
""" + "#"*121 + "\n")
    assert lines.counts(tmp_path/"a.py") == [7, 1, 1, 2, 1], "lines, long, packed (a swap is not), nested, late imports"
    assert "longest 121" in lines.report(tmp_path) and "longest 121" in lines.report(tmp_path/"a.py")
