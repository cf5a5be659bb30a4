"""A page in headless Chromium, driven by its DevTools protocol over a pipe: no port, no further package.

with Browser(folder) as browser:
    browser.open(path)
    browser.run("document.title")
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Flags that keep it quiet and alone: nothing is fetched in the background.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find_chromium() -> str | None:
    """The program, or None where none is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One Chromium with one page.

    Parameters
    ----------
    folder : Path
        For its profile and for downloads.
    timeout : float
        Seconds after which a call that has no answer fails.
    """

    def __init__(self, folder: Path, timeout: float = 120.0) -> None:
        program = find_chromium()
        if program is None:
            raise FileNotFoundError("Chromium is not installed")
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        self._timeout = timeout
        self._count = 0
        self._events: list[dict[str, Any]] = []
        self._rest = b""
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()

        def hand_over() -> None:  # Chromium reads from 3 and writes to 4
            for there, number in ((os.dup(their_in), 3), (os.dup(their_out), 4)):
                os.dup2(there, number)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=hand_over,
        )  # fmt: skip
        os.close(their_in)
        os.close(their_out)
        os.set_blocking(self._in, False)
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        behaviour = {"behavior": "allow", "downloadPath": str(self.downloads), "eventsEnabled": True}
        self._call("Browser.setDownloadBehavior", **behaviour)
        self.call("Page.enable")
        self.call("Network.enable")

    _session: str | None = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the page's protocol and its result."""
        return self._call(method, **parameters)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        number = self._count
        answer = self._wait(lambda given: given.get("id") == number, method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _wait(self, wanted: Any, what: str) -> dict[str, Any]:
        end = time.monotonic() + self._timeout
        while time.monotonic() < end:
            message = self._read()
            if message is None:
                time.sleep(0.002)
            elif wanted(message):
                return message
            elif "method" in message:
                self._events.append(message)
        raise TimeoutError(f"Chromium gave no answer to {what} in {self._timeout:g} s")

    def _read(self) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            try:
                piece = os.read(self._in, 1 << 20)
            except BlockingIOError:
                return None
            if not piece:
                raise RuntimeError("Chromium ended")
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def wait_for(self, event: str) -> dict[str, Any]:
        """The parameters of the next event of this name, one that already came included."""
        for at, message in enumerate(self._events):
            if message["method"] == event:
                parameters: dict[str, Any] = self._events.pop(at)["params"]
                return parameters
        found: dict[str, Any] = self._wait(lambda given: given.get("method") == event, event)["params"]
        return found

    def size(self, width: int, height: int = 1000, *, mobile: bool = False) -> None:
        """Show the page in a window of this size, CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip

    def open(self, path: Path) -> None:
        """Load a local page and wait for its load event."""
        self._events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.wait_for("Page.loadEventFired")

    def reload(self) -> None:
        """Load the page again."""
        self._events.clear()
        self.call("Page.reload")
        self.wait_for("Page.loadEventFired")

    def requests(self) -> list[str]:
        """URLs that the page asked for since it was opened, ``data:`` left out."""
        asked = (
            m["params"]["request"]["url"] for m in self._events if m["method"] == "Network.requestWillBeSent"
        )
        return [url for url in asked if not url.startswith("data:")]

    def run(self, script: str) -> Any:
        """The value of an expression (a promise is awaited)."""
        given = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **given)
        if "exceptionDetails" in answer:
            raise RuntimeError(
                answer["exceptionDetails"]["exception"].get("description", "the script failed")
            )
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """A real click of the mouse in the middle of an element."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key that is a letter, pressed and let go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    def screenshot(self, path: Path) -> None:
        """The window as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
