"""A Hugging Face Hub on the loopback: one dataset, the part of the protocol that a fetch uses, with faults on request.

Parquet files answer as the Hub's large files do: a redirect to another host name, with the sha256 in X-Linked-Etag.
"""

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """`files`: path -> content. `faults`: path -> what its next downloads suffer: "503", "reset", "cut" or "damage"."""

    daemon_threads = True

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo, self.files = repo, files
        self.faults: dict[str, list[str]] = {}
        self.downloads: list[str] = []
        self.revisions: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://localhost:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        api = f"/api/datasets/{self.server.repo}"
        if path.startswith("/large/"):
            self._body(path.removeprefix("/large/"))
        elif path.startswith(f"/datasets/{self.server.repo}/resolve/{COMMIT}/"):
            self._resolve(path.removeprefix(f"/datasets/{self.server.repo}/resolve/{COMMIT}/"))
        elif path.startswith(f"{api}/revision/"):
            self.server.revisions.append(path.removeprefix(f"{api}/revision/"))
            self._json({"_id": "1", "id": self.server.repo, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{api}/tree/{COMMIT}/"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}/")
            inside = [(name, data) for name, data in self.server.files.items() if name.startswith(folder + "/")]
            self._json([{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in inside])
        else:
            self._missing("RepoNotFound" if self.server.repo not in path else "EntryNotFound")

    def _resolve(self, name: str) -> None:
        if name not in self.server.files:
            self._missing("EntryNotFound")
            return
        data = self.server.files[name]
        self.send_response(302)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/large/{name}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self, name: str) -> None:
        data = self.server.files[name]
        fault = None
        if self.command == "GET":
            self.server.downloads.append(name)
            fault = self.server.faults[name].pop(0) if self.server.faults.get(name) else None
        if fault == "503":
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"x"')
        self.end_headers()
        if self.command == "HEAD":
            return
        damaged = bytes([data[0] ^ 1]) + data[1:]
        self.wfile.write(damaged if fault == "damage" else data[: len(data) // 2] if fault else data)
        if fault == "reset":  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = fault is not None
        if fault == "reset":
            self.wfile.flush()
            self.connection.close()

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self.send_response(401 if code == "RepoNotFound" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def hub_server(repo: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """A running hub."""
    with Hub(repo, files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
