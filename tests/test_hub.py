"Sharing an explainer: a folder, and a hub that is a server on this computer."
import base64, hashlib, http.server, json, re, shutil, threading
from urllib.parse import unquote
import pytest, torch
import mirrorcfe.hub as hub
from mirrorcfe.core import MirrorError
from mirrorcfe.explainer import MirrorCFE
from mirrorcfe.runs import measure_explanation
from mirrorcfe.storage import tensors_hash

TOKEN = "hf_secretsecretsecret"

class Hub(http.server.BaseHTTPRequestHandler):
    "What huggingface_hub asks of a hub to write a small repository and to read it."
    protocol_version = "HTTP/1.1"
    files, tokens, refuse = {}, [], False

    def log_message(self, *args): pass

    def answer(self, what=b"", code=200, **headers):
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(code)
        for name, value in dict(Content_Length=len(body), **headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def body(self): return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        self.tokens.append(self.headers.get("Authorization"))
        asked = self.body()
        if self.refuse: return self.answer({"error": f"not with {self.headers.get('Authorization')}"}, 401)
        if "/preupload/" in self.path:
            paths = [f["path"] for f in json.loads(asked)["files"]]
            return self.answer({"files": [dict(path=p, uploadMode="regular", shouldIgnore=False) for p in paths]})
        if "/commit/" in self.path:
            files = [line["value"] for line in map(json.loads, asked.splitlines()) if line["key"] == "file"]
            for file in files: self.files[file["path"]] = base64.b64decode(file["content"])
            return self.answer(dict(commitUrl="https://huggingface.co/me/digits/commit/1", commitOid="1"*40,
                                    success=True))
        self.answer(dict(url="https://huggingface.co/me/digits", name="me/digits", id="me/digits"))

    def do_GET(self):
        found = re.search("/resolve/[^/]+/(.+)", unquote(self.path.partition("?")[0]))
        if found and found[1] in self.files:
            data = self.files[found[1]]
            return self.answer(data, X_Repo_Commit="1"*40, ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        if found or "nobody" in self.path: return self.answer({"error": "no such file"}, 404)
        if "/tree/" in self.path:
            return self.answer([dict(type="file", path=n, size=len(v), oid="0"*40) for n, v in self.files.items()])
        siblings = [dict(rfilename=name) for name in self.files]
        self.answer(dict(id="me/digits", sha="1"*40, siblings=siblings, private=False, tags=[], downloads=0))

    do_HEAD = do_GET

@pytest.fixture
def server(monkeypatch):
    "The address of an empty hub."
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "tokens", [])
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()

@pytest.fixture(scope="module")
def shared(small, tmp_path_factory):
    "An explainer, a few explained images, and the folder that is shared."
    dls, _, _, model = small
    ex = model.explain(dls.test.dataset[:2][0], ks=5)
    return model, ex, model.write_shared(tmp_path_factory.mktemp("shared")/"digits", ex, "digits <b>")

def test_there_and_back(shared, server, tmp_path, capsys):
    model, ex, folder = shared
    url = model.push_to_hub("me/digits", ex, "digits", token=TOKEN, endpoint=server)
    assert url == "https://huggingface.co/me/digits/commit/1" and set(Hub.tokens) == {f"Bearer {TOKEN}"}
    assert {f.name for f in folder.iterdir()} == set(Hub.files) - {".gitattributes"}
    assert not [f for f in Hub.files if f.endswith((".pkl", ".pt", ".pth", ".bin", ".skops"))]
    Hub.files["evil.pkl"] = b"never fetched"
    again = MirrorCFE.from_pretrained("me/digits", endpoint=server, cache=tmp_path)
    assert tensors_hash(again.model.G) == tensors_hash(model.model.G) and again.classifier.classes == ex.classes
    torch.testing.assert_close(again.explain(ex.x, ks=5).path, ex.path, atol=1e-3, rtol=0)
    assert list(tmp_path.rglob("evil*")) == [] and list(tmp_path.rglob("nets.safetensors"))
    assert TOKEN not in "".join(capsys.readouterr()) and not [f for f, v in Hub.files.items() if TOKEN.encode() in v]

def test_what_was_changed_on_the_way_is_refused(shared, server, tmp_path):
    model, ex, _ = shared
    model.push_to_hub("me/digits", endpoint=server, token=TOKEN)
    Hub.files["nets.safetensors"] = Hub.files["nets.safetensors"][:-1] + b"x"
    with pytest.raises(MirrorError, match="its checksum is not the one in files.sha256"):
        MirrorCFE.from_pretrained("me/digits", endpoint=server, cache=tmp_path)

def test_no_token_is_told(shared, server, tmp_path, monkeypatch):
    model, *_ = shared
    monkeypatch.setattr(Hub, "refuse", True)
    with pytest.raises(MirrorError, match="me/digits cannot be written") as e:
        model.push_to_hub("me/digits", endpoint=server, token=TOKEN)
    assert TOKEN not in str(e.value) and e.value.__suppress_context__
    assert hub._silent(ValueError(f"bad {TOKEN}"), TOKEN) == "ValueError: bad ***"
    with pytest.raises(MirrorError, match="me/nobody is no folder here, and cannot be fetched"):
        MirrorCFE.from_pretrained("me/nobody", endpoint=server, cache=tmp_path)

def test_no_package(shared, monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    for act in (lambda: shared[0].push_to_hub("me/digits"), lambda: MirrorCFE.from_pretrained("me/digits")):
        with pytest.raises(MirrorError, match="pip install huggingface_hub$"): act()
    assert MirrorCFE.from_pretrained(shared[2]), "a folder needs no package"

def test_card(shared):
    model, ex, folder = shared
    card = (folder/"README.md").read_text()
    assert card.startswith("---\nlibrary_name: mirrorcfe") and (folder/"strip.png").stat().st_size > 1000
    assert "right about 50.0% of its test images" in card and "digits &lt;b>" in card
    assert "No judges looked at the results" in card and "from_pretrained('digits')" in card
    assert "nan" not in card

def test_numbers_are_those_of_the_tables(shared):
    "The same as what the command line measures, and the votes that came with the explanation."
    model, ex, folder = shared
    numbers = measure_explanation(ex, model.classifier)
    card = (folder/"README.md").read_text()
    known = {name: value for name, value in numbers.items() if value == value and name != "ks"}
    assert {"images", "val", "confidence_error", "l1_reflection", "coverage"} <= set(known)
    for name, value in known.items(): assert f"| {name} | {f'{value:.3f}' if name != 'images' else value} |" in card
    judged = ex[:]
    judged.believed = torch.full((len(ex), 2), .25)
    seen = measure_explanation(judged, model.classifier)
    assert seen["believed"] == seen["believed_first"] == .25
    card = hub.model_card(model, "me/x", seen)
    assert "| believed | 0.250 |" in card and "No judges" not in card

@pytest.mark.parametrize("kind", ["ours", "factory"])
def test_whose_classifier_goes_along(shared, tmp_path, kind, monkeypatch):
    "A named network does; one of a user's own function does not, and is asked for."
    net = shared[0].classifier
    if kind == "factory": monkeypatch.setattr(net, "origin", dict(kind=kind, factory="nets.py:build"), raising=False)
    folder = shared[0].write_shared(tmp_path/kind)
    assert (folder/"classifier.json").exists() == (kind != "factory")
    assert ("', classifier)" in (folder/"README.md").read_text()) == (kind == "factory")
    if kind == "factory":
        with pytest.raises(MirrorError, match="give the network that it explains"): MirrorCFE.from_pretrained(folder)
        assert MirrorCFE.from_pretrained(folder, net).pair == shared[0].pair

def test_damage_is_named(shared, tmp_path):
    folder = shutil.copytree(shared[2], tmp_path/"copy")
    (folder/"classifier.safetensors").unlink()
    with pytest.raises(MirrorError, match="classifier.safetensors"): MirrorCFE.from_pretrained(folder)
    shutil.copy(shared[2]/"classifier.safetensors", folder)
    (folder/"files.sha256").write_text("0"*64 + "  ../about.json\n")
    with pytest.raises(MirrorError, match="a line is not a checksum"): MirrorCFE.from_pretrained(folder)
