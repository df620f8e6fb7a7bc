"A headless browser for the tests, over the DevTools protocol; a test that asks for one is skipped where there is none."
import asyncio, base64, json, shutil, subprocess, tempfile, time
from contextlib import contextmanager
from pathlib import Path
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ("--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
            "--disable-quic --disable-component-update --disable-extensions --remote-debugging-port=0").split()

@contextmanager
def browser():
    "The port of a browser with an empty profile; it is ended in any case."
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None: pytest.skip("no chromium is installed: the page is made, but not opened in a browser")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            file = Path(profile)/"DevToolsActivePort"
            for _ in range(300):
                if file.exists() and file.read_text().count("\n"): break
                time.sleep(.1)
            else: pytest.skip(f"{program} does not start here: the page is made, but not opened in it")
            yield int(file.read_text().split()[0])
        finally:
            run.kill()
            run.wait()

class Tab:
    "One page of a browser."
    @classmethod
    async def of(cls, port):
        "The first page of the browser at a port."
        from tornado.httpclient import AsyncHTTPClient   # comes with the tools that run notebooks
        from tornado.websocket import websocket_connect
        found = json.loads((await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")).body)
        socket = next(t["webSocketDebuggerUrl"] for t in found if t["type"] == "page")
        self = cls()
        self.socket = await websocket_connect(socket, max_message_size=2**28)
        self.n = 0
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"): await self.call(f"{domain}.enable")
        return self

    async def call(self, method, **params):
        self.n += 1
        await self.socket.write_message(json.dumps(dict(id=self.n, method=method, params=params)))
        while "id" not in (m := await self.next()) or m["id"] != self.n: pass
        assert "error" not in m, m
        return m["result"]

    async def next(self):
        m = json.loads(await asyncio.wait_for(self.socket.read_message(), 30))
        if "id" not in m: self.events.append(m)
        return m

    async def run(self, code):
        got = await self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        return got["result"].get("value")

    async def until(self, code, seconds=30):
        "Wait until a line of JavaScript is true."
        end = time.monotonic() + seconds
        while not await self.run(f"!!({code})"):
            assert time.monotonic() < end, f"after {seconds} s this is still not so: {code}"
            await asyncio.sleep(.1)

    async def size(self, width, height):
        shape = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        await self.call("Emulation.setDeviceMetricsOverride", **shape)

    async def open(self, url):
        "Load a page; returns what went wrong on the way."
        self.events.clear()
        await self.call("Page.navigate", url=url)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events): await self.next()
        wrong = []
        for e in self.events: wrong += complaints(e["method"], e["params"], url)
        return wrong

    async def give_file(self, selector, file):
        "Choose a file in an input of the page."
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    async def click(self, element):
        "Click into the middle of an element, which is a line of JavaScript, as a hand does."
        middle = "const b = e.getBoundingClientRect(); return [b.x + b.width/2, b.y + b.height/2]"
        x, y = await self.run(f"(e => {{e.scrollIntoView({{block: 'center'}}); {middle}}})({element})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def picture(self, file):
        "Keep a picture of the whole page."
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(file).write_bytes(base64.b64decode(shot["data"]))

def complaints(method, p, url):
    "Yield what an event says went wrong."
    host = url.rsplit("/", 1)[0]
    if method == "Runtime.exceptionThrown": yield str(p["exceptionDetails"])[:300]
    if method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"): yield str(p["args"])[:300]
    if method == "Log.entryAdded":
        entry = p["entry"]
        if entry["level"] == "error": yield f"{entry['text']} {entry.get('url', '')}"
    if method == "Network.responseReceived":
        response = p["response"]
        if response["status"] >= 400: yield f"{response['status']} {response['url']}"
    if method == "Network.requestWillBeSent":
        asked = p["request"]["url"]
        if not asked.startswith((host, "data:", "blob:")): yield f"asks {asked}"
