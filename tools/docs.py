"""Build the documentation site into _docs.

With Quarto installed it is nbdev's own site; without, a plain one that needs no network to build or to read: the sidebar of
_quarto.yml, every notebook as nbdev prepares it for documentation, formulas as MathML. Usage: python tools/docs.py
"""
import html, json, os, re, shutil, subprocess, sys
from pathlib import Path
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
from readme import directives, text

# The lighter formats stand last: the first one that an output has is shown.
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
body{margin:0;font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1f2328;background:#fff;
 display:grid;grid-template-columns:16rem minmax(0,52rem);gap:2.5rem}
nav{position:sticky;top:0;align-self:start;height:100vh;overflow-y:auto;box-sizing:border-box;padding:1.2rem;background:#f6f8fa;
 border-right:1px solid #d0d7de;font-size:.92rem}
nav a{display:block;padding:.12rem .4rem;color:#1f2328;text-decoration:none;border-radius:4px}
nav a:hover{background:#eaeef2}nav a.here{background:#ddebfa;color:#0550ae;font-weight:600}nav a.brand{font-weight:700;font-size:1.15rem}
nav h2{font-size:.78rem;color:#59636e;text-transform:uppercase;letter-spacing:.04em;margin:1rem 0 .2rem .4rem}
#menu,nav label{display:none}nav .inner a{padding-left:1.3rem;font-size:.86rem;color:#59636e}
main{padding:1rem 1.2rem 4rem 0}h1{margin-bottom:.2rem}.lead{font-size:1.1rem;color:#59636e;margin-top:0}
h2{margin-top:2.2rem;border-bottom:1px solid #d0d7de;padding-bottom:.2rem}h3{margin-top:1.6rem}a{color:#0550ae}
pre{background:#f6f8fa;border-radius:6px;padding:.7rem .9rem;overflow-x:auto;font:.86rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}
code{background:#eff1f3;padding:.1em .3em;border-radius:4px;font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.88em}
pre code{background:none;padding:0;font-size:1em}pre.out{background:#fff;border-left:3px solid #d0d7de;border-radius:0}
.doc{border:1px solid #d0d7de;border-radius:6px;padding:.2rem 1rem .4rem;margin:1rem 0}.doc hr{display:none}.doc h3{margin-top:.6rem}
.source{float:right;font-size:.85rem}.callout{border-left:4px solid #54aeff;background:#f3f9ff;padding:.3rem 1rem;margin:1rem 0}
table{border:0;border-collapse:collapse;font-size:.92rem;display:block;overflow-x:auto}td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left}
img,svg,video{max-width:100%;height:auto}math[display=block]{margin:1rem 0;font-size:1.1em}.eq{display:block;overflow-x:auto;overflow-y:hidden}
h1,h2,h3,code{overflow-wrap:anywhere}pre code{overflow-wrap:normal}.anchor-link{display:none}
footer{display:flex;justify-content:space-between;margin-top:3rem;border-top:1px solid #d0d7de;padding-top:1rem}
figure{margin:1rem 0}
@media(max-width:820px){body{display:block}nav{position:static;height:auto;border-right:0;border-bottom:1px solid #d0d7de;padding:.7rem 1rem}main{padding:1rem}
 main p{overflow-x:auto;overflow-y:hidden}nav .list{display:none}#menu{display:inline-block;position:absolute;opacity:0}nav label{display:inline-block;border:1px solid #d0d7de;border-radius:6px;padding:.1rem .6rem;background:#fff;cursor:pointer}
 nav a.brand{display:inline-block;margin-right:1rem}#menu:checked~.list{display:block}#menu:focus-visible+label{outline:2px solid #0550ae}}
"""

def sidebar(root=ROOT):
    "`[(section, [notebook names])]` in order; the first section may be unnamed."
    groups = [("", [])]
    for item in yaml.safe_load((root/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]:
        if isinstance(item, str): groups[0][1].append(item)
        else: groups.append((item["section"], item["contents"]))
    return groups

def page_of(name):
    "`00_core.ipynb` -> `core.html`, as nbdev names it."
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", Path(name).name.lower()).replace(".ipynb", ".html")

def page_names(groups):
    "Notebook -> page, in the order of the sidebar; where two would have one name the later one keeps its number."
    pages = {}
    for name in (n for _, names in groups for n in names):
        pages[name] = page_of(name) if page_of(name) not in pages.values() else Path(name).stem + ".html"
    return pages

def slug(heading):
    "The anchor of a heading; nbdev links to lower-case symbol names."
    return re.sub(r"[^\w.]+", "-", re.sub(r"<[^>]+>", "", heading).lower()).strip("-")

def mathml(tex, display):
    "A formula as MathML, or its source where that fails."
    try:
        from latex2mathml.converter import convert
        made = convert(html.unescape(tex).strip(), display=display)
        return f'<span class="eq">{made}</span>' if display == "block" else made   # a frame that scrolls where the page is narrow
    except Exception: return f"<code class=\"unrendered\">{html.escape(html.unescape(tex))}</code>"

def highlight(source, lang="python"):
    "Coloured code, colours inline."
    from pygments import highlight as hl
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    return f"<pre><code>{hl(source, get_lexer_by_name(lang), HtmlFormatter(nowrap=True, noclasses=True, style='friendly'))}</code></pre>"

def markdown():
    "A function from Markdown to HTML."
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    class Renderer(IPythonRenderer):
        def heading(self, text, level, **attrs): return f'<h{level} id="{slug(text)}">{text}</h{level}>\n'
        def block_math(self, body): return mathml(body, "block")
        def multiline_math(self, text): return mathml(text, "block")
        def latex_environment(self, name, body): return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")
        def inline_math(self, body): return mathml(body, "inline")
        def block_code(self, code, info=None):
            code = re.sub(r"\[(`[^`]+`)\]\(https?://[^)]+\)", r"\1", code)     # nbdev links names in the comments of a signature too
            return highlight(code, info) if info in ("python", "bash", "sh", "yaml") else f"<pre><code>{html.escape(code)}</code></pre>"
    md = MarkdownWithMath(renderer=Renderer(escape=False))
    def render(source):     # link attributes and fenced divs are Pandoc's, unknown to mistune
        source = re.sub(r"\[source\]\(([^)]+)\)\{[^}]*\}", r'<a class="source" href="\1">source</a>', source)
        source = re.sub(r"^(:{3,})\s*\{.*\}\s*$", '\n<div class="callout">\n', re.sub(r"(\))\{[^}\n]*=[^}\n]*\}", r"\1", source), flags=re.M)
        return md.render(re.sub(r"^:{3,}\s*$", "\n</div>\n", source, flags=re.M))
    return render

def output(out, md, asis):
    "HTML of one stored output."
    if out["output_type"] == "stream": return f'<pre class="out">{html.escape(text(out["text"]))}</pre>'
    data = out.get("data", {})
    if asis and "text/markdown" in data: return f'<div class="doc">{md(text(data["text/markdown"]))}</div>'
    if "text/markdown" in data: return md(text(data["text/markdown"]))
    kind = next((k for k in SHOWN if k in data), None)
    if kind is None: return ""
    if kind == "text/plain": return f'<pre class="out">{html.escape(text(data[kind]))}</pre>'
    if kind in ("text/html", "image/svg+xml"): return text(data[kind])
    return f'<p><img alt="Output of the code above" src="data:{kind};base64,{"".join(text(data[kind]).split())}"></p>'

def cell_html(cell, md):
    "HTML of one processed cell."
    source = text(cell["source"] or "")
    if cell["cell_type"] == "markdown": return md(source) if not source.startswith("<!-- WARNING") else ""
    if cell["cell_type"] != "code": return ""
    marks, source = directives(source)
    shown = highlight(source) if source and "echo: false" not in marks else ""
    outs = [] if "output: false" in marks else [output(o, md, "output: asis" in marks) for o in cell["outputs"]]
    return "\n".join([shown, *outs])

def front(nb):
    "Title and description that nbdev put in the first cell."
    return yaml.safe_load(text(nb["cells"][0]["source"]).strip().strip("-")) or {}

def relink(body, home, pages=None):
    "Links to notebooks and to the published site become links to the pages beside this one."
    page = lambda n: (pages or {}).get(n, page_of(n))
    body = re.sub(rf'href="{re.escape(home)}/?([^"]*)"', lambda m: f'href="{m[1] or "index.html"}"', body)
    return re.sub(r'href="([\w./]+\.ipynb)', lambda m: f'href="{page(m[1])}', body)

def nav(groups, titles, here, body, pages):
    "The sidebar, with the headings of the page that is open."
    out = []
    for section, names in groups:
        if section and any(n in titles for n in names): out.append(f"<h2>{section}</h2>")
        for name in (n for n in names if n in titles):
            label = "Overview" if name == "index.ipynb" else titles[name]
            out.append(f'<a{" class=here" if name == here else ""} href="{pages[name]}">{html.escape(label)}</a>')
            heads = re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', body) if name == here else []
            if heads: out.append('<div class="inner">' + "".join(f'<a href="#{i}">{h}</a>' for i, h in heads) + "</div>")
    return "\n".join(out)

def mend(site):
    "A method with a second decorator is headed `explain` and linked to as `mirrorcfe.explain`: its heading gets that name too."
    pages = {p.name: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    for target, anchor in {tuple(l.split("#", 1)) for p in pages.values() for l in re.findall(r'href="([\w.]+\.html#[^"]+)"', p)}:
        if target not in pages or f'id="{anchor}"' in pages[target]: continue
        short = re.escape(anchor.rpartition(".")[2])
        pages[target] = re.sub(rf'(<h\d id="{short}">)', rf'<a id="{anchor}"></a>\1', pages[target], count=1)
    for name, page in pages.items(): (site/name).write_text(page, encoding="utf-8")

def broken(site):
    "Local links and pictures that lead nowhere."
    pages = {p.name: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    ids = {n: set(re.findall(r'id="([^"]+)"', p)) for n, p in pages.items()}
    found = []
    for name, page in pages.items():
        page = re.sub(r"<pre.*?</pre>", "", page, flags=re.S)
        for link in sorted(set(re.findall(r'(?:href|src)="([^"]+)"', page))):
            if re.match(r"[a-z]+:", link): continue
            target, _, anchor = link.partition("#")
            target = target or name
            if not (site/target).exists() or (anchor and target in ids and anchor not in ids[target]): found.append(f"{name}: {link}")
    return found

def plain(root=ROOT):
    "The site without Quarto; returns its folder."
    from configparser import ConfigParser
    from nbdev.serve import proc_nbs
    ini = ConfigParser(delimiters=["="])
    ini.read(root/"settings.ini", encoding="utf-8")
    cfg, site = ini["DEFAULT"], root/"_docs"
    proc = proc_nbs(n_workers=min(4, os.cpu_count() or 1), force=True)   # forced: nbdev looks at times alone
    groups, pages = sidebar(root), page_names(sidebar(root))
    nbs = {n: json.loads((proc/n).read_text(encoding="utf-8")) for _, names in groups for n in names if (proc/n).exists()}
    fronts, md = {n: front(nb) for n, nb in nbs.items()}, markdown()
    titles = {n: str(f.get("title", n)) for n, f in fronts.items()}
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir()
    (site/"site.css").write_text(CSS, encoding="utf-8")
    if (root/"nbs"/"images").exists(): shutil.copytree(root/"nbs"/"images", site/"images")
    order = list(nbs)
    for i, (name, nb) in enumerate(nbs.items()):
        body = "\n".join(cell_html(c, md) for c in nb["cells"])
        link = lambda n, before="", after="": f'<a href="{pages[n]}">{before}{html.escape(titles[n])}{after}</a>'
        around = (link(order[i-1], before="&larr; ") if i else "<span></span>") + (link(order[i+1], after=" &rarr;") if i+1 < len(order) else "")
        page = PAGE.format(title=html.escape(titles[name]), site=cfg["title"], sidebar=nav(groups, titles, name, body, pages), body=body, around=around,
                           heading=html.escape(titles[name]), lead=md(fronts[name].get("description", "")).strip().removeprefix("<p>").removesuffix("</p>"))
        (site/pages[name]).write_text(relink(page, cfg["doc_host"] + cfg["doc_baseurl"], pages), encoding="utf-8")
    mend(site)
    return site

if __name__ == "__main__":
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if shutil.which("quarto"):
        if (ROOT/"README.md").exists(): (ROOT/"README.md").touch()  # else nbdev_docs would write its own over ours
        subprocess.run([Path(sys.executable).parent/"nbdev_docs"], check=True)
        print("Made by Quarto (nbdev_docs): _docs/index.html")
    else:
        site = plain()
        lost = broken(site)
        print(f"Quarto is not installed, so this is the plain site: _docs/index.html, {len(list(site.glob('*.html')))} pages.")
        if lost: sys.exit("Links that lead nowhere:\n" + "\n".join(lost))
