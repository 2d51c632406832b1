"""`make page-test`: the pages of all runs in a real browser, at the width of a desk and of a phone, in light and dark.

What is looked for: errors in the console, images that are not drawn, links that lead nowhere, anything that is loaded
from elsewhere, and a page that is wider than its window. Screenshots are stored in the folder that SHOTS names.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import chain, product
from pathlib import Path
from urllib.parse import unquote

import websocket  # which JupyterLab brings

from fomo.paths import runs_folder

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = "page-test needs Chromium, which is not installed: apt-get install chromium (Debian, as root)"
SIZES, SCHEMES = ((1280, 900), (390, 844)), ("light", "dark")
WATCHED = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
LOOK = """({
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt),
  lost: [...document.querySelectorAll('a[href^="#"]')].filter(a => !document.querySelector(a.hash)).map(a => a.hash),
  links: [...document.querySelectorAll('a:not([href^="#"])')].map(a => a.href),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""


class Tab:
    """A tab of a browser (its DevTools protocol): `call` asks something of it, `events` is what it has told."""

    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=60)
        self.events: list[dict] = []
        self.number = 0

    def call(self, method: str, **options) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": options}))
        while (message := json.loads(self.socket.recv())).get("id") != self.number:
            self.events.append(message)
        return message["result"]

    def wait(self, method: str) -> None:
        while all(event.get("method") != method for event in self.events):
            self.events.append(json.loads(self.socket.recv()))


def open_tab(browser: str, folder: Path) -> tuple[subprocess.Popen, Tab]:
    """A browser without a window, whose files lie in `folder`, and its tab."""
    options = [
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
    ]
    options += ["--no-sandbox"] * (os.geteuid() == 0)  # root has none
    process = subprocess.Popen([browser, *options, "about:blank"], stderr=subprocess.DEVNULL)
    port = folder / "DevToolsActivePort"
    for _ in range(600):
        if port.exists() and len(port.read_text().splitlines()) == 2:
            break
        time.sleep(0.1)
    number, path = port.read_text().splitlines()
    tab = Tab(f"ws://127.0.0.1:{number}{path}")
    target = tab.call("Target.createTarget", url="about:blank")["targetId"]
    return process, Tab(f"ws://127.0.0.1:{number}/devtools/page/{target}")


def look(tab: Tab, page: Path, size: tuple[int, int], scheme: str) -> list[str]:
    """What is wrong with a page at this size."""
    width, height = size
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.events.clear()
    tab.call("Page.navigate", url=page.as_uri())
    tab.wait("Page.loadEventFired")
    seen = tab.call("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
    wrong = [f"console: {event['params']}" for event in tab.events if event.get("method") in WATCHED]
    asked = [
        event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"
    ]
    wrong += [f"loads {url}" for url in asked if not url.startswith("data:") and url != page.as_uri()]
    wrong += [f"image is not drawn: {text}" for text in seen["broken"]]
    wrong += [f"link leads nowhere: {name}" for name in seen["lost"]]
    linked = [Path(unquote(url.removeprefix("file://"))) for url in seen["links"]]
    wrong += [f"link leads nowhere: {path}" for path in linked if not path.is_file()]
    wrong += [f"{seen['wide']} pixels wider than its window"] if seen["wide"] > 0 else []
    if shots := os.environ.get("SHOTS"):
        shot = tab.call("Page.captureScreenshot", format="png")["data"]
        Path(shots).mkdir(parents=True, exist_ok=True)
        (Path(shots) / f"{page.parent.name}-{width}-{scheme}.png").write_bytes(base64.b64decode(shot))
    return [f"{page} at {width} x {height}, {scheme}: {text}" for text in wrong]


def main() -> str:
    """Looks at all pages; returns what is wrong, empty where nothing is."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    pages = sorted(runs_folder("fashion_sample").parent.glob("*/*/index.html"))
    if browser is None or not pages:
        return "there is no page yet: make report" if browser else MISSING
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process, tab = open_tab(browser, Path(folder))
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.call(f"{domain}.enable")
            looks = [look(tab, *one) for one in product(pages, SIZES, SCHEMES)]
        finally:
            process.terminate()
            process.wait()
    print(f"{len(pages)} pages, {len(looks)} looks")
    return "\n".join(chain.from_iterable(looks))


if __name__ == "__main__":
    sys.exit(main() or 0)
