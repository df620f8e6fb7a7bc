"""Build the documentation site into _docs: python tools/docs.py

Where Quarto is installed, this is nbdev's own site. Elsewhere it is a plain one that needs no network to be built or to
be read: the sidebar of _quarto.yml, every notebook as nbdev prepares it for documentation, formulas as MathML.
"""
import html, json, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import yaml
from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight as colour
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
from readme import directives, text

# Formats of an output; the first of these that it has is shown.
SHOWN = ("text/html", "image/svg+xml", "image/png", "image/gif", "image/jpeg", "text/plain")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="stylesheet" href="site.css"></head>
<body><nav aria-label="Pages"><a class="brand" href="index.html">{site}</a>
<input type="checkbox" id="menu"><label for="menu">all pages</label><div class="list">{sidebar}</div></nav>
<main><h1>{heading}</h1><p class="lead">{lead}</p>
{body}
<footer>{around}</footer></main></body></html>
"""
CSS = """
body{margin:0;font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1f2328;
 background:#fff;display:grid;grid-template-columns:16rem minmax(0,52rem);gap:2.5rem}
nav{position:sticky;top:0;align-self:start;height:100vh;overflow-y:auto;box-sizing:border-box;padding:1.2rem;
 background:#f6f8fa;border-right:1px solid #d0d7de;font-size:.92rem}
nav a{display:block;padding:.12rem .4rem;color:#1f2328;text-decoration:none;border-radius:4px}
nav a:hover{background:#eaeef2}
nav a.here{background:#ddebfa;color:#0550ae;font-weight:600}
nav a.brand{font-weight:700;font-size:1.15rem}
nav h2{font-size:.78rem;color:#59636e;text-transform:uppercase;letter-spacing:.04em;margin:1rem 0 .2rem .4rem}
nav .inner a{padding-left:1.3rem;font-size:.86rem;color:#59636e}
#menu,nav label{display:none}
main{padding:1rem 1.2rem 4rem 0}
h1{margin-bottom:.2rem}
.lead{font-size:1.1rem;color:#59636e;margin-top:0}
h2{margin-top:2.2rem;border-bottom:1px solid #d0d7de;padding-bottom:.2rem}
h3{margin-top:1.6rem}
a{color:#0550ae}
pre{background:#f6f8fa;border-radius:6px;padding:.7rem .9rem;overflow-x:auto;
 font:.86rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}
code{background:#eff1f3;padding:.1em .3em;border-radius:4px;font-family:ui-monospace,"DejaVu Sans Mono",monospace;
 font-size:.88em}
pre code{background:none;padding:0;font-size:1em}
pre.out{background:#fff;border-left:3px solid #d0d7de;border-radius:0}
.doc{border:1px solid #d0d7de;border-radius:6px;padding:.2rem 1rem .4rem;margin:1rem 0}
.doc hr{display:none}
.doc h3{margin-top:.6rem}
.source{float:right;font-size:.85rem}
.callout{border-left:4px solid #54aeff;background:#f3f9ff;padding:.3rem 1rem;margin:1rem 0}
table{border:0;border-collapse:collapse;font-size:.92rem;display:block;overflow-x:auto}
td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left}
img,svg,video{max-width:100%;height:auto}
math[display=block]{margin:1rem 0;font-size:1.1em}
.eq{display:block;overflow-x:auto;overflow-y:hidden}
h1,h2,h3,code{overflow-wrap:anywhere}
pre code{overflow-wrap:normal}
.anchor-link{display:none}
footer{display:flex;justify-content:space-between;margin-top:3rem;border-top:1px solid #d0d7de;padding-top:1rem}
figure{margin:1rem 0}
@media(max-width:820px){
 body{display:block}
 nav{position:static;height:auto;border-right:0;border-bottom:1px solid #d0d7de;padding:.7rem 1rem}
 main{padding:1rem}
 main p{overflow-x:auto;overflow-y:hidden}
 nav .list{display:none}
 #menu{display:inline-block;position:absolute;opacity:0}
 nav label{display:inline-block;border:1px solid #d0d7de;border-radius:6px;padding:.1rem .6rem;background:#fff;
  cursor:pointer}
 nav a.brand{display:inline-block;margin-right:1rem}
 #menu:checked~.list{display:block}
 #menu:focus-visible+label{outline:2px solid #0550ae}}
"""

def sidebar(root=ROOT):
    "Return `[(section, [notebook names])]` in order; the first section has no name."
    config = yaml.safe_load((root/"_quarto.yml").read_text(encoding="utf-8"))
    groups = [("", [])]
    for item in config["website"]["sidebar"]["contents"]:
        if isinstance(item, str): groups[0][1].append(item)
        else: groups.append((item["section"], item["contents"]))
    return groups

def page_of(name):
    "Return the page of a notebook as nbdev names it: `00_core.ipynb` -> `core.html`."
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", Path(name).name.lower()).replace(".ipynb", ".html")

def page_names(groups):
    "Return notebook -> page in the order of the sidebar; where two would share a name, the later keeps its number."
    pages = {}
    for _, names in groups:
        for name in names:
            page = page_of(name)
            pages[name] = Path(name).stem + ".html" if page in pages.values() else page
    return pages

def slug(heading):
    "Return the anchor of a heading; nbdev links to the names of symbols in lower case."
    return re.sub(r"[^\w.]+", "-", re.sub(r"<[^>]+>", "", heading).lower()).strip("-")

def mathml(tex, display):
    "Return a formula as MathML; its source, marked, where it cannot be converted."
    tex = html.unescape(tex)
    try: made = convert(tex.strip(), display=display)
    except Exception: return f'<code class="unrendered">{html.escape(tex)}</code>'
    return f'<span class="eq">{made}</span>' if display == "block" else made   # the frame scrolls on a narrow page

def highlight(source, lang="python"):
    "Return coloured code, with the colours inline."
    formatter = HtmlFormatter(nowrap=True, noclasses=True, style="friendly")
    return f"<pre><code>{colour(source, get_lexer_by_name(lang), formatter)}</code></pre>"

class Renderer(IPythonRenderer):
    "Markdown to HTML: headings with anchors, formulas as MathML, coloured code."
    def heading(self, text, level, **attrs): return f'<h{level} id="{slug(text)}">{text}</h{level}>\n'
    def block_math(self, body): return mathml(body, "block")
    def multiline_math(self, text): return mathml(text, "block")
    def latex_environment(self, name, body): return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")
    def inline_math(self, body): return mathml(body, "inline")
    def block_code(self, code, info=None):
        # nbdev links names in the comments of a signature too, where a link is not one.
        code = re.sub(r"\[(`[^`]+`)\]\(https?://[^)]+\)", r"\1", code)
        if info in ("python", "bash", "sh", "yaml"): return highlight(code, info)
        return f"<pre><code>{html.escape(code)}</code></pre>"

def markdown():
    "Return a function from Markdown to HTML."
    md = MarkdownWithMath(renderer=Renderer(escape=False))
    def render(source):
        # Attributes of links and fenced divs are Pandoc's, unknown to mistune.
        source = re.sub(r"\[source\]\(([^)]+)\)\{[^}]*\}", r'<a class="source" href="\1">source</a>', source)
        source = re.sub(r"(\))\{[^}\n]*=[^}\n]*\}", r"\1", source)
        source = re.sub(r"^(:{3,})\s*\{.*\}\s*$", '\n<div class="callout">\n', source, flags=re.M)
        source = re.sub(r"^:{3,}\s*$", "\n</div>\n", source, flags=re.M)
        return md.render(source)
    return render

def output(out, md, asis):
    "Return the HTML of one stored output."
    if out["output_type"] == "stream": return f'<pre class="out">{html.escape(text(out["text"]))}</pre>'
    data = out.get("data", {})
    if "text/markdown" in data:
        body = md(text(data["text/markdown"]))
        return f'<div class="doc">{body}</div>' if asis else body
    kind = next((k for k in SHOWN if k in data), None)
    if kind is None: return ""
    body = text(data[kind])
    if kind == "text/plain": return f'<pre class="out">{html.escape(body)}</pre>'
    if kind in ("text/html", "image/svg+xml"): return body
    return f'<p><img alt="Output of the code above" src="data:{kind};base64,{"".join(body.split())}"></p>'

def cell_html(cell, md):
    "Return the HTML of one cell that nbdev has prepared."
    source = text(cell["source"] or "")
    if cell["cell_type"] == "markdown": return "" if source.startswith("<!-- WARNING") else md(source)
    if cell["cell_type"] != "code": return ""
    marks, source = directives(source)
    parts = []
    if source and "echo: false" not in marks: parts.append(highlight(source))
    if "output: false" not in marks: parts += [output(o, md, "output: asis" in marks) for o in cell["outputs"]]
    return "\n".join(parts)

def front(nb):
    "Return the title and the description that nbdev puts into the first cell."
    return yaml.safe_load(text(nb["cells"][0]["source"]).strip().strip("-")) or {}

def relink(body, home, pages=None):
    "Let links to notebooks and to the published site lead to the pages beside this one."
    page = lambda n: (pages or {}).get(n, page_of(n))
    body = re.sub(rf'href="{re.escape(home)}/?([^"]*)"', lambda m: f'href="{m[1] or "index.html"}"', body)
    return re.sub(r'href="([\w./]+\.ipynb)', lambda m: f'href="{page(m[1])}', body)

def nav(groups, titles, here, body, pages):
    "Return the sidebar, with the headings of the page that is open."
    out = []
    for section, names in groups:
        names = [n for n in names if n in titles]
        if section and names: out.append(f"<h2>{section}</h2>")
        for name in names:
            label = "Overview" if name == "index.ipynb" else html.escape(titles[name])
            if name != here:
                out.append(f'<a href="{pages[name]}">{label}</a>')
                continue
            out.append(f'<a class=here href="{pages[name]}">{label}</a>')
            headings = re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', body)
            links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading in headings)
            if links: out.append(f'<div class="inner">{links}</div>')
    return "\n".join(out)

def read_pages(site): return {p.name: p.read_text(encoding="utf-8") for p in site.glob("*.html")}

def mend(site):
    "Give the heading `explain` of a method the second name `mirrorcfe.explain`, by which nbdev links to it."
    pages = read_pages(site)
    wanted = set()
    for page in pages.values(): wanted.update(re.findall(r'href="([\w.]+\.html)#([^"]+)"', page))
    for target, anchor in wanted:
        if target not in pages or f'id="{anchor}"' in pages[target]: continue
        short = re.escape(anchor.rpartition(".")[2])
        pages[target] = re.sub(rf'(<h\d id="{short}">)', rf'<a id="{anchor}"></a>\1', pages[target], count=1)
    for name, page in pages.items(): (site/name).write_text(page, encoding="utf-8")

def broken(site):
    "Return the local links and pictures that lead nowhere."
    pages = read_pages(site)
    ids = {name: set(re.findall(r'id="([^"]+)"', page)) for name, page in pages.items()}
    found = []
    for name, page in pages.items():
        page = re.sub(r"<pre.*?</pre>", "", page, flags=re.S)
        for link in sorted(set(re.findall(r'(?:href|src)="([^"]+)"', page))):
            if re.match(r"[a-z]+:", link): continue
            target, _, anchor = link.partition("#")
            target = target or name
            missing = anchor and target in ids and anchor not in ids[target]
            if missing or not (site/target).exists(): found.append(f"{name}: {link}")
    return found

def settings(root):
    "Return the settings of nbdev."
    ini = ConfigParser(delimiters=["="])
    ini.read(root/"settings.ini", encoding="utf-8")
    return ini["DEFAULT"]

def around(order, name, titles, pages):
    "Return links to the pages before and after."
    i = order.index(name)
    link = lambda n, label: f'<a href="{pages[n]}">{label}</a>'
    before = link(order[i - 1], f"&larr; {html.escape(titles[order[i - 1]])}") if i else "<span></span>"
    after = link(order[i + 1], f"{html.escape(titles[order[i + 1]])} &rarr;") if i + 1 < len(order) else ""
    return before + after

def plain(root=ROOT):
    "Build the site without Quarto; returns its folder."
    from nbdev.serve import proc_nbs   # it reads the settings of the folder it is imported in
    config = settings(root)
    home = config["doc_host"] + config["doc_baseurl"]
    # Forced, because nbdev compares times alone. Without workers, because each would import torch and fastai anew.
    proc = proc_nbs(n_workers=0, force=True)
    groups = sidebar(root)
    pages = page_names(groups)
    nbs = {n: json.loads((proc/n).read_text(encoding="utf-8")) for n in pages if (proc/n).exists()}
    fronts = {n: front(nb) for n, nb in nbs.items()}
    titles = {n: str(f.get("title", n)) for n, f in fronts.items()}
    site = root/"_docs"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir()
    (site/"site.css").write_text(CSS, encoding="utf-8")
    if (root/"nbs"/"images").exists(): shutil.copytree(root/"nbs"/"images", site/"images")
    md = markdown()
    for name, nb in nbs.items():
        body = "\n".join(cell_html(c, md) for c in nb["cells"])
        lead = md(fronts[name].get("description", "")).strip().removeprefix("<p>").removesuffix("</p>")
        title = html.escape(titles[name])
        sections = nav(groups, titles, name, body, pages)
        footer = around(list(nbs), name, titles, pages)
        page = PAGE.format(title=title, heading=title, lead=lead, body=body, site=config["title"], sidebar=sections,
                           around=footer)
        (site/pages[name]).write_text(relink(page, home, pages), encoding="utf-8")
    mend(site)
    return site

def main():
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if shutil.which("quarto"):
        if (ROOT/"README.md").exists(): (ROOT/"README.md").touch()   # else nbdev_docs would write its own over ours
        subprocess.run([Path(sys.executable).parent/"nbdev_docs"], check=True)
        print("Made by Quarto (nbdev_docs): _docs/index.html")
        return
    site = plain()
    n = len(list(site.glob("*.html")))
    print(f"Quarto is not installed, so this is the plain site: _docs/index.html, {n} pages.")
    lost = broken(site)
    if lost: sys.exit("Links that lead nowhere:\n" + "\n".join(lost))

if __name__ == "__main__": main()
