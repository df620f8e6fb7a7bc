"""Build the documentation site into _docs: python tools/docs.py

Where Quarto is installed, this is nbdev's own site. Elsewhere it is a plain one that needs no network to be built or to
be read: the sidebar of _quarto.yml, every notebook as nbdev prepares it for documentation, formulas as MathML.
"""
import ast, functools, html, json, os, re, shutil, subprocess, sys
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
<title>{title}</title><link rel="stylesheet" href="site.css"><script src="site.js" defer></script></head>
<body><nav aria-label="Pages"><a class="brand" href="index.html">{site}</a>
<button type="button" id="dark" aria-label="light or dark" title="light or dark">&#9681;</button>
<input type="search" id="search" placeholder="search" aria-label="search these pages"><div id="found"></div>
<input type="checkbox" id="menu"><label for="menu">all pages</label><div class="list">{sidebar}
<a href="api.html">All names</a></div></nav>
<main><h1>{heading}</h1><p class="lead">{lead}</p>
{body}
<footer>{around}</footer></main></body></html>
"""
CSS = """
:root{--ink:#1f2328;--soft:#59636e;--paper:#fff;--side:#f6f8fa;--line:#d0d7de;--hover:#eaeef2;--here:#ddebfa;
 --link:#0550ae;--code:#eff1f3;--note:#f3f9ff;color-scheme:light}
:root.dark{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--side:#151b23;--line:#3d444d;--hover:#21262d;--here:#1c2d41;
 --link:#58a6ff;--code:#21262d;--note:#121d2f;color-scheme:dark}
body{margin:0;font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink);
 background:var(--paper);display:grid;grid-template-columns:16rem minmax(0,52rem);gap:2.5rem}
nav{position:sticky;top:0;align-self:start;height:100vh;overflow-y:auto;box-sizing:border-box;padding:1.2rem;
 background:var(--side);border-right:1px solid var(--line);font-size:.92rem}
nav a{display:block;padding:.12rem .4rem;color:var(--ink);text-decoration:none;border-radius:4px}
nav a:hover{background:var(--hover)}
nav a.here{background:var(--here);color:var(--link);font-weight:600}
nav a.brand{display:inline-block;font-weight:700;font-size:1.15rem}
nav h2{font-size:.78rem;color:var(--soft);text-transform:uppercase;letter-spacing:.04em;margin:1rem 0 .2rem .4rem;
 border:0}
nav .inner a{padding-left:1.3rem;font-size:.86rem;color:var(--soft)}
#dark{float:right;border:0;background:none;color:var(--soft);font-size:1.1rem;cursor:pointer}
#search{width:100%;box-sizing:border-box;margin:.6rem 0 0;padding:.25rem .5rem;border:1px solid var(--line);
 border-radius:6px;background:var(--paper);color:var(--ink);font:inherit}
#found a{padding:.25rem .4rem;border-bottom:1px solid var(--line)}
#found small{display:block;color:var(--soft);line-height:1.3}
#menu,nav label{display:none}
main{padding:1rem 1.2rem 4rem 0}
h1{margin-bottom:.2rem}
.lead{font-size:1.1rem;color:var(--soft);margin-top:0}
h2{margin-top:2.2rem;border-bottom:1px solid var(--line);padding-bottom:.2rem}
h3{margin-top:1.6rem}
a{color:var(--link)}
pre{position:relative;background:var(--side);border-radius:6px;padding:.7rem .9rem;
 font:.86rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}
pre,pre code{overflow-x:auto}
pre code{display:block}
code{background:var(--code);padding:.1em .3em;border-radius:4px;font-family:ui-monospace,"DejaVu Sans Mono",monospace;
 font-size:.88em}
pre code{background:none;padding:0;font-size:1em}
pre.out{background:none;border-left:3px solid var(--line);border-radius:0}
button.copy{position:absolute;top:.35rem;right:.35rem;border:1px solid var(--line);border-radius:5px;cursor:pointer;
 background:var(--paper);color:var(--soft);font:.75rem system-ui,sans-serif;opacity:0}
pre:hover button.copy,button.copy:focus{opacity:1}
@media(hover:none){button.copy{opacity:.8}}
.doc{border:1px solid var(--line);border-radius:6px;padding:.2rem 1rem .4rem;margin:1rem 0}
.doc hr{display:none}
.doc h3{margin-top:.6rem}
.source{float:right;font-size:.85rem}
.callout{border-left:4px solid #54aeff;background:var(--note);padding:.3rem 1rem;margin:1rem 0}
table{border:0;border-collapse:collapse;font-size:.92rem;display:block;overflow-x:auto}
td,th{border:1px solid var(--line);padding:.3rem .6rem;text-align:left}
td code{white-space:nowrap}
td img{max-width:none}
img,svg,video{max-width:100%;height:auto}
:root.dark main img{background:#fff}
:root.dark [id^=path-]{background:#fff;padding:.5rem;border-radius:6px;color-scheme:light}
math[display=block]{margin:1rem 0;font-size:1.1em}
.eq{display:block;overflow-x:auto;overflow-y:hidden}
h1,h2,h3,p code,li code{overflow-wrap:anywhere}
pre code{overflow-wrap:normal}
.anchor-link{display:none}
footer{display:flex;justify-content:space-between;margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem}
figure{margin:1rem 0}
.pieces{display:none}
.pieces canvas{max-width:100%;margin:.15rem 0}
@media(max-width:640px){
 img.cut{display:none}
 .pieces{display:block}}
@media(max-width:820px){
 body{display:block}
 nav{position:static;height:auto;border-right:0;border-bottom:1px solid var(--line);padding:.7rem 1rem}
 main{padding:1rem}
 main p{overflow-x:auto;overflow-y:hidden}
 nav .list{display:none}
 #menu{display:inline-block;position:absolute;opacity:0}
 nav label{display:inline-block;border:1px solid var(--line);border-radius:6px;padding:.1rem .6rem;
  background:var(--paper);cursor:pointer}
 nav a.brand{margin-right:1rem}
 #search{width:10rem;margin:0 .5rem 0 0}
 #menu:checked~.list{display:block}
 #menu:focus-visible+label{outline:2px solid var(--link)}}
"""
# Light or dark as the system has it, until somebody chooses; a button that copies code; the search.
SCRIPT = """
(function () {
const root = document.documentElement, byId = name => document.getElementById(name);
const kept = () => { try { return localStorage.getItem('dark'); } catch (e) { return null; } };
const system = matchMedia('(prefers-color-scheme: dark)');
const paint = () => root.classList.toggle('dark', kept() === null ? system.matches : kept() === '1');
system.addEventListener('change', paint);
paint();
byId('dark').onclick = () => {
  const dark = root.classList.toggle('dark');
  try { localStorage.setItem('dark', dark ? '1' : '0'); } catch (e) {}
};

// On a narrow screen a strip of pictures goes on below, where a column of it is empty from top to bottom.
const emptyColumns = (context, width, height) => {
  const data = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
  const empty = [];
  for (let x = 0; x < width; x++) {
    let y = 1;
    while (y < height && data[y*width + x] === data[x]) y++;
    empty.push(y === height && data[x] === data[0]);
  }
  return empty;
};

const cuts = (empty, most) => {   // between the pieces, each at most so wide; null where there is no place to cut
  const middles = [];
  for (let x = 1, start = 0; x < empty.length; x++) {
    if (empty[x] && !empty[x - 1]) start = x;
    if (!empty[x] && empty[x - 1] && start) middles.push((start + x) >> 1);
  }
  const out = [0];
  while (empty.length - out[out.length - 1] > most) {
    const before = out[out.length - 1];
    const next = middles.filter(x => x > before && x - before <= most).pop();
    if (next === undefined) return null;
    out.push(next);
  }
  return out;
};

const cut = picture => {
  const width = picture.naturalWidth, height = picture.naturalHeight;
  const most = picture.parentElement.clientWidth;
  if (picture.classList.contains('cut') || !most || width < 1.3*most || width < 1.2*height) return;
  const whole = document.createElement('canvas');
  whole.width = width;
  whole.height = height;
  const context = whole.getContext('2d', {willReadFrequently: true});
  context.drawImage(picture, 0, 0);
  let places;
  try { places = cuts(emptyColumns(context, width, height), most); } catch (e) { return; }   // opened as a file
  if (!places) return;
  const pieces = document.createElement('span');
  pieces.className = 'pieces';
  pieces.setAttribute('role', 'img');
  pieces.setAttribute('aria-label', picture.alt);
  places.forEach((from, i) => {
    const piece = document.createElement('canvas');
    piece.width = (i + 1 < places.length ? places[i + 1] : width) - from;
    piece.height = height;
    piece.getContext('2d').drawImage(whole, -from, 0);
    pieces.append(piece);
  });
  picture.after(pieces);
  picture.classList.add('cut');
};

const narrow = matchMedia('(max-width:640px)');
const cutAll = () => {
  if (!narrow.matches) return;
  for (const p of document.querySelectorAll('main img')) {
    if (p.complete) cut(p);
    else p.addEventListener('load', () => cut(p));
  }
};
narrow.addEventListener('change', cutAll);
cutAll();

document.querySelectorAll('main pre:not(.out)').forEach(pre => {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'copy';
  button.textContent = 'copy';
  button.onclick = () => {
    const text = pre.querySelector('code').textContent;
    const done = () => { button.textContent = 'copied'; setTimeout(() => { button.textContent = 'copy'; }, 1500); };
    const by_hand = () => {   // a page that was opened as a file may not write to the clipboard
      const area = document.createElement('textarea');
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
      done();
    };
    navigator.clipboard ? navigator.clipboard.writeText(text).then(done, by_hand) : by_hand();
  };
  pre.append(button);
});

let loading = null;
function index() {   // a script and not a request, so that pages opened as files can search too
  return loading ||= new Promise(done => {
    const script = document.createElement('script');
    script.src = 'search.js';
    script.onload = () => done(window.SEARCH);
    document.head.append(script);
  });
}

function score(entry, words) {   // 0 unless every word is there; a title counts most
  const [page, title, heading, text] = entry.map(v => v.toLowerCase());
  let sum = 0;
  for (const w of words) {
    const hit = 9*heading.includes(w) + 6*title.includes(w) + text.includes(w);
    if (!hit) return 0;
    sum += hit + 9*(heading === w);
  }
  return sum;
}

function snippet(text, word) {
  const at = Math.max(0, text.toLowerCase().indexOf(word) - 30);
  return (at ? '…' : '') + text.slice(at, at + 90) + '…';
}

async function search() {
  const words = byId('search').value.toLowerCase().split(/\\s+/).filter(Boolean), found = byId('found');
  found.textContent = '';
  if (!words.length) return;
  const ranked = (await index()).map(e => [score(e, words), e]).filter(([s]) => s);
  ranked.sort((a, b) => b[0] - a[0]);
  if (!ranked.length) found.textContent = 'nothing found';
  for (const [, [page, title, heading, text]] of ranked.slice(0, 12)) {
    const link = document.createElement('a'), small = document.createElement('small');
    link.href = page;
    link.textContent = heading && heading !== title ? title + ': ' + heading : title;
    small.textContent = snippet(text, words[0]);
    link.append(small);
    found.append(link);
  }
}
byId('search').oninput = search;
})();
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

PLAIN_LINES = HtmlFormatter(nowrap=True)   # made once: a page has hundreds of pieces of code
lexer = functools.lru_cache(get_lexer_by_name)

def highlight(source, lang="python"):
    "Return coloured code; the colours are those of `colours`."
    return f"<pre><code class=hl>{colour(source, lexer(lang), PLAIN_LINES)}</code></pre>"

def colours():
    "Return the styles of code, for light and for dark pages."
    light = HtmlFormatter(style="friendly").get_style_defs(".hl")
    dark = HtmlFormatter(style="github-dark").get_style_defs(":root.dark .hl")
    return "\n".join(l for l in f"{light}\n{dark}".splitlines() if re.match(r"\S*\s?\.hl \.", l))

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

def is_check(cell):
    "Whether a cell holds nothing but tests."
    if cell["cell_type"] != "code": return False
    lines = [l for l in directives(text(cell["source"] or ""))[1].splitlines() if l.strip() and not l.startswith(" ")]
    return bool(lines) and all(re.match(r"(test_\w+|assert)\b", l) for l in lines)

def plain_text(body):
    "Return the text of HTML, without code, formulas, styles and scripts."
    body = re.sub(r"<(pre|script|style|math|table)\b.*?</\1>", " ", body, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())

def search_entries(page, title, lead, body):
    "Yield address, title, heading and text of each section of a page."
    parts = re.split(r'(<h[23] id="[^"]*">.*?</h[23]>)', body, flags=re.S)
    yield [page, title, title, plain_text(f"{lead} {parts[0]}")[:800]]
    for head, section in zip(parts[1::2], parts[2::2]):
        anchor, heading = re.match(r'<h[23] id="([^"]*)">(.*)</h[23]>', head, re.S).groups()
        yield [f"{page}#{anchor}", title, plain_text(heading), plain_text(section)[:800]]

def api_rows(root, pages, notebooks):
    "Yield module, name, link and first line of the docstring of every public name."
    for name, page in pages.items():
        exported = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(notebooks.get(name, ())), re.M)
        if not exported: continue
        tree = ast.parse((root/"mirrorcfe"/f"{exported[1].replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"): continue
            said = (ast.get_docstring(node) or "").partition("\n")[0]
            owner = node.args.args[0].annotation if isinstance(node, ast.FunctionDef) and node.args.args else None
            patched = node.args.args[0].arg in ("self", "cls") if owner is not None else False
            label = f"{ast.unparse(owner)}.{node.name}" if patched else node.name
            if label.startswith("_"): continue   # a method of a private class
            yield exported[1], label, f"{page}#{node.name.lower()}", said

def api_page(rows, site):
    "Return the HTML of the list of names; a name whose page has no such heading leads to the page."
    ids = {}
    def target(link):
        page, _, anchor = link.partition("#")
        if page not in ids:
            ids[page] = set(re.findall(r'id="([^"]+)"', (site/page).read_text(encoding="utf-8")))
        return link if anchor in ids[page] else page
    cells = []
    for module, label, link, said in rows:
        name = f'<a href="{target(link)}"><code>{html.escape(label)}</code></a>'
        said = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(said))
        cells.append(f"<tr><td><code>{module}</code></td><td>{name}</td><td>{said}</td></tr>")
    return f"<table><tr><th>module</th><th>name</th><th>what it does</th></tr>{''.join(cells)}</table>"

def front(nb):
    "Return the title and the description that nbdev puts into the first cell."
    return yaml.safe_load(text(nb["cells"][0]["source"]).strip().strip("-")) or {}

def lead_of(nb):
    "Return what stands behind `>` in the first cell of a notebook; nbdev keeps the first line alone."
    lines = [l for l in text(nb["cells"][0]["source"]).splitlines() if l.startswith(">")]
    return " ".join(l.lstrip("> ") for l in lines)

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
    (site/"site.css").write_text(f"{CSS}{colours()}\n", encoding="utf-8")
    (site/"site.js").write_text(SCRIPT, encoding="utf-8")
    if (root/"nbs"/"images").exists(): shutil.copytree(root/"nbs"/"images", site/"images")
    md = markdown()
    entries = []
    for_users = {n for section, names in groups if section == "Start here" for n in names}
    def write(name, page, title, lead, body):
        sections = nav(groups, titles, name, body, pages)
        footer = around(list(nbs), name, titles, pages) if name in nbs else ""
        filled = PAGE.format(title=html.escape(title), heading=html.escape(title), lead=lead, body=body,
                             site=config["title"], sidebar=sections, around=footer)
        (site/page).write_text(relink(filled, home, pages), encoding="utf-8")
        entries.extend(search_entries(page, title, lead, body))
    raw = {n: json.loads((root/"nbs"/n).read_text(encoding="utf-8")) for n in nbs}
    for name, nb in nbs.items():
        shown = [c for c in nb["cells"] if name not in for_users or not is_check(c)]
        body = "\n".join(cell_html(c, md) for c in shown)
        lead = md(lead_of(raw[name])).strip().removeprefix("<p>").removesuffix("</p>")
        write(name, pages[name], titles[name], lead, body)
    sources = {n: [text(c["source"]) for c in nb["cells"]] for n, nb in raw.items()}
    rows = list(api_rows(root, pages, sources))
    write(None, "api.html", "All names", "Every public function, class and method, and the page that explains it.",
          api_page(rows, site))
    known = {e[0] for e in entries}
    entries += [[link, label, label, said.replace("`", "")] for _, label, link, said in rows if link not in known]
    data = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    (site/"search.js").write_text(f"window.SEARCH={data};\n", encoding="utf-8")
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
