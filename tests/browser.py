"""A real Chromium, spoken to in its own protocol over two pipes: what a page asked for, what it complained of, how it is laid out, what it looks like.

The browser is Debian's; nothing but the standard library speaks to it.
"""

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

PATIENCE_S = 60.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers, where Chromium refuses a sandbox of its own; the pages are ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """The browser of this machine; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One Chromium with one tab. `requests`: addresses asked for since the last `open`; `complaints`: console messages and exceptions."""

    def __init__(self, folder: Path) -> None:
        program = chromium()
        assert program is not None
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for _ in range(2) for fd in os.pipe()]
        theirs_in, self._write, self._read, theirs_out = ends
        silence = os.open(os.devnull, os.O_RDWR)
        plan = [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((silence, 0), (silence, 1), (silence, 2), (theirs_in, 3), (theirs_out, 4))]
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self.pid = os.posix_spawn(program, command, {**os.environ, "HOME": str(folder)}, file_actions=plan, setpgroup=0)
        for fd in (theirs_in, theirs_out, silence):
            os.close(fd)
        self._buffer = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._session = ""
        target = next(info for info in self.ask("Target.getTargets")["targetInfos"] if info["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **({"sessionId": self._session} if self._session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"Chromium said nothing for {PATIENCE_S:.0f} s"
            piece = os.read(self._read, 1 << 20)
            assert piece, "Chromium has ended"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(line))

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of this size and wait until it is drawn."""
        self._events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def requests(self) -> list[str]:
        """Every address that the page asked for, its own first."""
        return [event["params"]["request"]["url"] for event in self._events if event.get("method") == "Network.requestWillBeSent"]

    @property
    def complaints(self) -> list[str]:
        """What stands in the console."""
        named = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self._events if event.get("method") in named]

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """What the window shows, or the page from top to bottom."""
        file.write_bytes(
            base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": self._whole()} if whole else {}))["data"])
        )

    def _whole(self) -> dict[str, float]:
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def pdf(self, file: Path) -> None:
        """The page as it is printed on A4."""
        file.write_bytes(base64.b64decode(self.ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)["data"]))

    def close(self) -> None:
        """End the browser and its helpers."""
        try:
            self._session = ""
            with suppress(AssertionError, OSError):
                self.ask("Browser.close")
        finally:
            for fd in (self._write, self._read):
                os.close(fd)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
