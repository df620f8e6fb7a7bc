"The page: what it shows, what it refuses, two visitors at once; with Gradio served, and opened in a browser."
import asyncio, json, os, runpy, subprocess, sys, time
from pathlib import Path
from unittest.mock import MagicMock
import pytest, torch
from PIL import Image
import mirrorcfe.app as app
from browser import Tab, browser
from mirrorcfe.cli import main
from mirrorcfe.core import MirrorError
from mirrorcfe.images import to_picture
from mirrorcfe.runs import load_explainer

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope="module", autouse=True)
def few_steps():
    "Paths of six steps."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(app, "STEPS", 6)
        yield

@pytest.fixture(scope="module")
def viewer(saved, small, tmp_path_factory):
    "The explainer that `saved` has, with two pictures to begin with."
    model, _, about = load_explainer(saved)
    folder = tmp_path_factory.mktemp("examples")
    for i in (0, 1): to_picture(small[0].test.dataset[i:i + 1][0][0]).save(folder/f"{i}.png")
    return app.Viewer(model, about, examples=sorted(folder.iterdir()))

# --- uploads ---------------------------------------------------------------------------------------------------------

def test_uploads_are_refused_with_the_reason(viewer, tmp_path, monkeypatch):
    (tmp_path/"notes.png").write_text("no picture")
    (tmp_path/"empty.jpg").touch()
    (tmp_path/"sound.mp3").write_bytes(bytes(99))
    Image.new("1", (10_000, 6_000)).save(tmp_path/"map.png")
    for name, why in (("notes.png", "no known kind"), ("empty.jpg", "it is empty"), ("sound.mp3", "no known kind"),
                      ("map.png", "10000 x 6000 pixels, the page takes 50 million")):
        with pytest.raises(MirrorError) as e: viewer.read(tmp_path/name)
        assert name in str(e.value) and why in str(e.value)
        assert str(tmp_path) not in str(e.value), "where uploads lie is nobody's business"
    monkeypatch.setattr(app, "MOST_BYTES", 100)
    with pytest.raises(MirrorError, match="0.png has 0 MB, the page takes 0"): viewer.read(viewer.examples[0])

def test_a_picture_of_a_third_class_is_refused(viewer):
    model, pair = viewer.model, viewer.model.pair
    with torch.no_grad(): c = int(model.classifier(app.read_upload(viewer.examples[0], viewer.about)[0]).argmax())
    model.pair = tuple({0, 1, 2} - {c})[:2]
    try:
        with pytest.raises(MirrorError, match="this explainer knows the path between"): viewer.read(viewer.examples[0])
    finally: model.pair = pair

# --- what is shown ---------------------------------------------------------------------------------------------------

def test_views(viewer):
    shown = viewer.read(viewer.examples[0])
    assert app.first_view(shown).count("<figure>") == 3 and "Reflection" in app.first_view(shown)
    assert len(viewer.targets(shown)) == 9 and int(shown.ex.source[0]) not in [c for _, c in viewer.targets(shown)]
    assert app.step_view(shown, 0) != app.step_view(shown, 1) and "nan" not in app.step_view(shown, 1).lower()
    shown.ex.classes = ["<b>"]*10
    for page in (app.first_view(shown), app.verdict_line(shown), app.step_view(shown, 1)):
        assert "<b><b>" not in page and "<b>, " not in page, "names of classes are text"

def test_the_verdict_is_that_of_the_judges(viewer):
    shown = viewer.read(viewer.examples[0])
    assert "No judges came with this explainer" in app.verdict_line(shown)
    shown.ex.believed = torch.tensor([[.2, 1.]])
    shown.ex.achieved_probs[0, -1] = torch.nn.functional.one_hot(shown.ex.target[0], 10).float()
    assert 'verdict good"><b>believed</b>: 100 % of the judges' in app.verdict_line(shown)
    shown.ex.believed[:] = .2
    assert 'verdict bad"><b>valid, not believed</b>: 20 % of the judges' in app.verdict_line(shown)

def test_films_of_an_hour_ago_go(viewer, tmp_path):
    old, young = tmp_path/"film-a"/"old.mp4", tmp_path/"film-b"/"young.mp4"
    for file in (old, young):
        file.parent.mkdir()
        file.touch()
    os.utime(old, (time.time() - 2*app.FILM_SECONDS,)*2)
    film = app.write_film(viewer.read(viewer.examples[0]), tmp_path)
    assert not old.exists() and young.exists() and film.read_bytes()[4:8] == b"ftyp"

def test_the_page_opens_on_photographs(tmp_path):
    "With the explainer that comes with the package; a picture to begin with is the very picture."
    viewer = app.open_viewer(device="cpu")
    assert len(viewer.examples) == 10 and len(viewer.panel.voters) == 3 and "Acevedo" in app._what(viewer)
    shown = viewer.read(viewer.examples[0])
    assert shown.ex.prepared == "the middle, bicubic" and shown.note == "" and shown.ex.status == ["found"]
    assert viewer.examples[0].stem.endswith(shown.ex.classes[int(shown.ex.source[0])])
    to_picture(shown.ex.x[0]).save(tmp_path/"again.png")
    assert torch.equal(app.read_upload(tmp_path/"again.png", viewer.about)[0], shown.ex.x)

def test_what_stands_beside_a_step(viewer):
    "Each view is shown or not, whatever the others are."
    shown = viewer.read(viewer.examples[0])
    shown.heat = ()   # as if captum were not installed
    alone = app.step_view(shown, .4, [])
    assert alone.count("<figure>") == 1 and "<svg" not in alone and "<table" not in alone
    for chosen, marks in (("Mask", "held back"), ("Change", "brighter"), ("Confidence", "<svg"),
                          ("Heat maps", "captum")):
        assert marks in app.step_view(shown, .4, [chosen]) and marks not in alone, chosen
        assert marks not in app.step_view(shown, .4, [b for b in app.BESIDE if b != chosen])

def test_heat_maps_are_those_of_captum(viewer):
    "Of the class that is predicted; for a last map that is averaged, Grad-CAM is the class activation map."
    pytest.importorskip("captum", reason="captum is not installed")
    shown = viewer.with_heat(viewer.read(viewer.examples[0]))
    assert [name for name, _ in shown.heat] == ["Grad-CAM", "Integrated Gradients"]
    assert all(picture.size == tuple(shown.ex.x.shape[:1:-1]) for _, picture in shown.heat)
    assert app.step_view(shown, .4, ["Heat maps"]).count("<figure>") == 3

def test_heat_maps_are_drawn_only_for_who_looks_at_them(viewer, monkeypatch, tmp_path):
    "Once for a picture, whatever the target and the step."
    drawn = []
    monkeypatch.setattr(app, "heat_maps", lambda net, x, c: drawn.append(x) or ())
    monkeypatch.setattr(app, "import_gradio", lambda: MagicMock())
    page = app.Page(viewer, tmp_path)
    shown = page.upload(viewer.examples[0], ["Mask", "Change", "Confidence"])[0]
    other = next(c for _, c in viewer.targets(shown) if c != int(shown.ex.target[0]))
    page.target(shown, other, .4, ["Mask"])
    assert not drawn and shown.heat is None
    page.step(shown, .4, ["Heat maps"])
    page.step(shown, .6, ["Heat maps"])
    page.target(shown, other, .4, app.BESIDE)
    assert len(drawn) == 1 and shown.heat == ()

# --- the command -----------------------------------------------------------------------------------------------------

def test_no_gradio_is_said_before_torch_is_imported():
    code = ("import importlib.util, sys; importlib.util.find_spec = lambda name: None; from mirrorcfe.cli import main; "
            "print(main(['app']), 'torch' in sys.modules)")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert run.stdout.split() == ["2", "False"], run.stdout + run.stderr
    assert run.stderr == ("mirrorcfe: the page is made with Gradio, which is not installed: "
                          "pip install 'mirrorcfe[app]'\n")

def gradio(): return pytest.importorskip("gradio", reason="gradio is not installed: the page is not served")

def test_refusals_of_the_command(tmp_path, capsys):
    gradio()
    for argv, why in ((["a", "b"], "one explainer at a time"), ([str(tmp_path)], "no explainer in"),
                      ([str(tmp_path), "--space", str(tmp_path/"s")], "no explainer in")):
        assert main(["app", *argv]) == 2
        assert why in capsys.readouterr().err

# --- served ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def served(viewer, tmp_path_factory):
    "The address of the page."
    gradio()
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("GRADIO_TEMP_DIR", str(work/"gradio"))
        blocks = app.build(viewer, work)
        try:
            _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
            yield url
        finally: blocks.close(verbose=False)

def test_only_this_computer_is_served(served): assert served.startswith("http://127.0.0.1:")

BESIDE = list(app.BESIDE)

def test_two_visitors(served, viewer, tmp_path):
    "Each sees a picture of their own; a refusal leaves it in place."
    client = pytest.importorskip("gradio_client")
    one, two = (client.Client(served, verbose=False, download_files=tmp_path) for _ in range(2))
    for visitor, file in zip((one, two), viewer.examples):
        visitor.predict(client.handle_file(str(file)), BESIDE, api_name="/upload")
    steps = [v.predict(1., BESIDE, api_name="/step") for v in (one, two)]
    assert steps == [app.step_view(viewer.read(f), 1.) for f in viewer.examples] and steps[0] != steps[1]
    (tmp_path/"notes.png").write_text("no picture")
    refused = one.predict(client.handle_file(str(tmp_path/"notes.png")), BESIDE, api_name="/upload")[0]
    assert "notes.png cannot be read as an image" in refused["value"] and refused["visible"]
    assert one.predict(1., BESIDE, api_name="/step") == steps[0]
    film = one.predict(api_name="/film")
    assert Path(film["value"]).read_bytes()[4:8] == b"ftyp"

FIRST = "[...document.querySelectorAll('#first figure')].map(f => f.outerHTML).join('')"
SLIDE = """(() => {
  const slider = document.querySelector('#k input[type=range]');
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, '0.2');
  slider.dispatchEvent(new Event('input', {bubbles: true}));
})()"""
OTHER = "[...document.querySelectorAll('[role=option]')].find(o => o.getAttribute('aria-selected') != 'true')"

async def use(port, url, viewer, folder):
    "Open the page, upload, slide, choose another target, download the film, and give a file that is no picture."
    tab = await Tab.of(port)
    await tab.size(390, 800)
    wrong = await tab.open(url)
    await tab.until("document.querySelectorAll('#first figure').length == 3")
    narrow = await tab.run("document.documentElement.scrollWidth - window.innerWidth")
    await tab.size(1280, 900)
    seen = [await tab.run(FIRST)]
    async def changed():
        "Wait for another first view, and keep it."
        await tab.until(f"{FIRST} != {json.dumps(seen[-1])} && document.querySelectorAll('#first figure').length == 3")
        seen.append(await tab.run(FIRST))
    await tab.give_file("#picture input[type=file]", viewer.examples[1])
    await changed()
    await tab.run(SLIDE)
    await tab.until("document.querySelector('#step').textContent.includes('k = 0.20')")
    slid = await tab.run(FIRST)
    views = "document.querySelectorAll('#step .row:not(.heat) figure').length"
    await tab.click("document.querySelector('#beside input')")
    await tab.until(f"{views} == 3")
    beside = [await tab.run(FIRST), await tab.run("document.querySelector('#k input[type=range]').value")]
    await tab.click("document.querySelector('#target input')")
    await tab.until(OTHER)
    target = await tab.run(f"{OTHER}.getAttribute('aria-label')")
    await tab.click(OTHER)
    await changed()
    k = await tab.run("document.querySelector('#k input[type=range]').value")
    await tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await tab.click("document.querySelector('#make')")
    await tab.until("document.querySelector('#download')", 60)
    await tab.click("document.querySelector('#download')")
    for _ in range(100):
        if list(folder.glob("*.mp4")): break
        await asyncio.sleep(.1)
    (folder/"notes.png").write_text("no picture")
    await tab.until("document.querySelector('#picture input[type=file]')")
    await tab.give_file("#picture input[type=file]", folder/"notes.png")
    await tab.until("document.querySelector('#refused')?.textContent.includes('notes.png')")
    refused = await tab.run("document.querySelector('#refused').textContent")
    asked = [e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"]
    return dict(wrong=wrong, narrow=narrow, seen=seen, slid=slid, beside=beside, target=target, k=k, refused=refused,
                asked=asked, after=await tab.run(FIRST))

def test_in_a_browser(served, viewer, tmp_path):
    with browser() as port: got = asyncio.run(use(port, served, viewer, tmp_path))
    assert got["wrong"] == [] and got["narrow"] <= 0
    assert len(set(got["seen"])) == 3, "the first picture, the uploaded one, and that on its way to another target"
    assert got["slid"] == got["seen"][1], "the slider moves the step, and nothing else"
    assert got["beside"] == [got["slid"], "0.2"], "a view beside the step goes alone"
    assert got["k"] == "0.2", "another target leaves the slider where it was"
    film, = tmp_path.glob("*.mp4")
    assert film.read_bytes()[4:8] == b"ftyp" and film.stem.endswith(f"_to_{got['target']}")
    assert "no known kind" in got["refused"] and got["after"] == got["seen"][2]
    assert [u for u in got["asked"] if not u.startswith((served, "data:", "blob:"))] == [], "nothing from elsewhere"

# --- as a Space ------------------------------------------------------------------------------------------------------

def test_space_runs_as_it_is(saved, viewer, tmp_path):
    package = gradio()
    folder = app.write_space(tmp_path/"space", saved, "My digits")
    head = folder.joinpath("README.md").read_text().split("---")[1]
    assert f"sdk_version: {package.__version__}" in head and "app_file: app.py" in head and "title: My digits" in head
    with pytest.raises(MirrorError, match="exists"): app.write_space(folder, saved)
    demo = runpy.run_path(str(folder/"app.py"))["demo"]
    assert "mirrorcfe[app]" in (folder/"requirements.txt").read_text()
    labels = [c["props"].get("label") for c in demo.config["components"]]
    assert "Step k: 0 is the source, 1 its reflection" in labels
