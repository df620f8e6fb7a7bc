"The documentation site without Quarto: built whole, then read by a browser where one is installed."
import asyncio, functools, http.server, json, os, re, shutil, subprocess, sys, threading
from pathlib import Path
import pytest
from browser import Tab, browser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import docs

# Run in the page. It returns the pictures that did not load, the formulas without a size, the formulas left as source,
# and what sticks out at the right.
LOOK = """JSON.stringify((() => {
 const page = document.body.cloneNode(true), all = q => [...document.querySelectorAll(q)];
 page.querySelectorAll('pre,code,math,script,style').forEach(e => e.remove());
 const left = page.textContent.match(/\\$\\$|\\\\(frac|sum|mathrm|begin)\\b/g) || [];
 const sticks = e => e.getBoundingClientRect().right > window.innerWidth + 1 && !e.closest('pre,table,.eq');
 return {
  pictures: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80)),
  flat: all('math').filter(m => !m.getBoundingClientRect().height).map(m => m.textContent.slice(0, 40)),
  source: left.concat(all('.unrendered').map(e => e.textContent)),
  wide: document.documentElement.scrollWidth - window.innerWidth,
  out: all('main *').filter(sticks).slice(0, 3).map(e => e.tagName + ' ' + e.textContent.slice(0, 50)),
  title: document.title,
  cut: all('.pieces').filter(e => e.offsetHeight).map(e => e.children.length),
  math: all('math').length}})())"""
# Run in any page: what the search finds, the colours before and after the button, what is copied.
TOOLS = """new Promise(done => {
  const part = name => document.getElementById(name), ground = () => getComputedStyle(document.body).backgroundColor;
  const seen = [ground()];
  part('dark').click();
  seen.push(ground());
  part('dark').click();
  let copied = null;
  Object.defineProperty(navigator, 'clipboard', {value: {writeText: async t => { copied = t; }}});
  document.querySelector('button.copy').click();
  part('search').value = 'reflect';
  part('search').dispatchEvent(new Event('input'));
  const go = () => {
    const links = [...document.querySelectorAll('#found a')].map(a => a.getAttribute('href'));
    if (links.length) done(JSON.stringify({seen, copied, links})); else setTimeout(go, 50);
  };
  go();
})"""
# Run in the page of the slider: its first and its last step, the change, and another target.
SLIDE = """new Promise(done => {
  const root = document.querySelector('[id^=path-]'), part = name => root.querySelector('.' + name);
  const shot = () => part('after').toDataURL(), tell = (name, what) => part(name).dispatchEvent(new Event(what));
  const go = () => {
    if (!root.dataset.ready) return setTimeout(go, 50);
    const out = [];
    for (const j of [0, part('step').max]) {
      part('step').value = j;
      tell('step', 'input');
      out.push([part('k').textContent, part('title').textContent, shot()]);
    }
    part('change').click();
    out.push(['', '', shot()]);
    part('target').value = '1';
    tell('target', 'change');
    setTimeout(() => { out.push([part('headline').textContent, '', shot()]); done(JSON.stringify(out)); }, 500);
  };
  go();
})"""

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The plain site of a copy of the project: the folder, and what the build said."
    root = tmp_path_factory.mktemp("project")
    for name in ("settings.ini", "setup.py", "_quarto.yml", "README.md"): shutil.copy(ROOT/name, root/name)
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "mirrorcfe", "tools"): shutil.copytree(ROOT/name, root/name, symlinks=True, ignore=skip)
    without = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p)/"quarto").exists())
    env = dict(os.environ, PATH=without, PYTHONWARNINGS="ignore", OMP_NUM_THREADS="1")
    run = subprocess.run([sys.executable, "tools/docs.py"], cwd=root, env=env, text=True, capture_output=True)
    return root/"_docs", run

def test_build_says_which_of_the_two(site):
    folder, run = site
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "Quarto is not installed, so this is the plain site: _docs/index.html" in run.stdout

def test_every_page_of_the_sidebar_is_there(site):
    names = docs.page_names(docs.sidebar())
    assert {p.name for p in site[0].glob("*.html")} == {*names.values(), "api.html"}
    assert len(names) == len(set(names.values()))
    page = (site[0]/"index.html").read_text(encoding="utf-8")
    assert [n for n in names.values() if f'href="{n}"' not in page] == []

def test_no_link_leads_nowhere(site): assert docs.broken(site[0]) == []

FETCHED = re.compile(r'<(?:script|img|iframe|video|source)[^>]+src="(?:https?:)?//[^"]*"'
                     r'|<link[^>]+href="(?:https?:)?//[^"]*"|@import')

def test_readable_offline(site):
    "Nothing is fetched from elsewhere: no script, style, picture or frame with an address of its own."
    for page in site[0].glob("*.html"):
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page.read_text(encoding="utf-8"), flags=re.S)
        assert FETCHED.findall(text) == [], page.name

def test_figures_are_there(site):
    "Every stored picture of a notebook is on its page."
    names = docs.page_names(docs.sidebar())
    for nb in ("00_core.ipynb", "40_show.ipynb", "77_masks.ipynb"):
        cells = json.loads((ROOT/"nbs"/nb).read_text(encoding="utf-8"))["cells"]
        n = sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
        assert (site[0]/names[nb]).read_text(encoding="utf-8").count("data:image/png") >= n > 0 or n == 0

def test_pages_of_one_name_are_told_apart():
    names = docs.page_names([("", ["index.ipynb"]), ("A", ["01_x.ipynb"]), ("B", ["71_x.ipynb"])])
    assert names == {"index.ipynb": "index.html", "01_x.ipynb": "x.html", "71_x.ipynb": "71_x.html"}
    assert docs.relink('<a href="71_x.ipynb#a">', "https://h", names) == '<a href="71_x.html#a">'

def test_second_names_of_headings(tmp_path):
    (tmp_path/"a.html").write_text('<h3 id="explain">explain</h3>')
    (tmp_path/"b.html").write_text('<a href="a.html#m.explain">x</a><a href="a.html#m.other">y</a>')
    docs.mend(tmp_path)
    assert docs.broken(tmp_path) == ["b.html: a.html#m.other"]

def test_search_index(site):
    "Every page and heading can be found, and every address leads somewhere."
    text = (site[0]/"search.js").read_text(encoding="utf-8")
    entries = json.loads(text.removeprefix("window.SEARCH=").rstrip(";\n"))
    assert {e[0].partition("#")[0] for e in entries} == {p.name for p in site[0].glob("*.html")}
    assert [e for e in entries if e[2] == "reflect" and e[0].startswith("core.html")]
    assert len(text) < 2_000_000

def test_list_of_names(site):
    page = (site[0]/"api.html").read_text(encoding="utf-8")
    for name in ("Explanation.to_frame", "MirrorCFE.explain", "reflect", "read_image"):
        assert f"<code>{name}</code></a>" in page
    assert '"><code>_' not in page, "only public names"

def test_user_pages_show_no_tests(site):
    for name in ("getting_started", "how_to_read", "faq"):
        page = docs.plain_text((site[0]/f"{name}.html").read_text(encoding="utf-8"))
        assert "test_eq(" not in page
    check = lambda source: docs.is_check(dict(cell_type="code", source=source))
    assert check("test_eq(1, 1)\nassert 2") and not check("x = 1\ntest_eq(x, 1)") and not check("x")

# --- in a browser ----------------------------------------------------------------------------------------------------

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

async def visit(port, address, pages):
    "Every page, wide and narrow; and the slider moved by hand."
    tab = await Tab.of(port)
    out = {}
    for page in pages:
        await tab.size(1280, 900)
        wrong = await tab.open(f"{address}/{page}")
        seen = json.loads(await tab.run(LOOK))
        await tab.size(390, 800)
        narrow = json.loads(await tab.run(LOOK))
        out[page] = dict(seen, wrong=wrong, narrow=narrow["wide"], out=narrow["out"], pieces=narrow["cut"])
    await tab.size(1280, 900)
    await tab.open(f"{address}/core.html")
    found = json.loads(await tab.run(TOOLS))
    await tab.open(f"{address}/widget.html")
    return out, found, json.loads(await tab.run(SLIDE))

@pytest.fixture(scope="module")
def read(site):
    "What a headless browser found on every page, and what the slider did."
    with browser() as port:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site[0])))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            pages = list(docs.page_names(docs.sidebar()).values())
            return asyncio.run(visit(port, f"http://127.0.0.1:{server.server_port}", pages))
        finally: server.shutdown()

def of(read, what, fine):
    "What was found on each page, where that is not `fine`."
    return {p: r[what] for p, r in read[0].items() if r[what] not in fine}

def test_every_page_opens(read):
    "Nothing is missing, no error in the console, nothing asked from elsewhere."
    assert of(read, "title", ()) and not of(read, "wrong", ([],))

def test_no_picture_is_missing(read): assert not of(read, "pictures", ([],))

def test_formulas_are_rendered(read):
    assert not of(read, "flat", ([],)) and not of(read, "source", ([],))
    assert read[0]["core.html"]["math"] >= 15 and sum(r["math"] for r in read[0].values()) > 200

def test_nothing_sticks_out(read):
    wide = {p: r for p, r in read[0].items() if r["wide"] > 0 or r["narrow"] > 0}
    assert {p: (r["wide"], r["narrow"], r["out"]) for p, r in wide.items()} == {}

def test_strips_wrap_on_a_narrow_screen(read):
    "A strip of many pictures goes on below; on a wide screen it is whole."
    assert not of(read, "cut", ([],))
    for page in ("gallery.html", "show.html"): assert min(read[0][page]["pieces"], default=0) > 1

def test_the_slider_moves(read):
    first, last, change, other = read[2]
    assert first[0] == "k = 0.00" and first[1].startswith("Source")
    assert last[0] == "k = 1.00" and last[1].startswith("Reflection")
    assert len({first[2], last[2], change[2], other[2]}) == 4 and "→" in other[0]

def test_search_dark_pages_and_copying(read):
    tools = read[1]
    assert any(link.startswith("core.html") for link in tools["links"])
    assert tools["seen"][0] != tools["seen"][1]
    assert tools["copied"] == "def MirrorError(\n    *args, **kwargs\n):\n", "the code, without the word on the button"
