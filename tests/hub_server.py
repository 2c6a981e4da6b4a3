"""A Hugging Face Hub on the loopback: one dataset, the protocol that huggingface_hub and a fetch use, with faults on request and a log.

Parquet files answer as the Hub's large files do: a redirect to storage under another host name, with the sha256 in X-Linked-Etag.
Other files answer themselves, with git's blob sha1. `test_hub_server.py` reads all of it with the real client. Below /files/ the same files
stand at plain addresses, as on any other server: with an ETag of its own and no hash.
"""

import gzip
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "c" * 40
TOKEN = "hf_" + "A" * 30  # the one that may read a gated dataset


@dataclass
class Fault:
    """What one answer suffers.

    status     this code instead         cut, reset   FIN or RST after the part `at` of the body        stall    a pause there, of `seconds`
    damage     one wrong byte            short        a whole answer that ends at `at`                  long     announces and sends 50 bytes more
    overflow   sends 50 bytes more than announced     whole        200 with everything, whatever was asked for      chunked  without Content-Length
    elsewhere  206 that begins one byte too early     unsaid       206 without Content-Range                        gzip     compressed, unasked
    redirect   to `to`                   silent       closes the connection without a word              foreign  the bytes of another file
    """

    kind: str
    at: float = 0.5
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 30.0
    to: str = ""


@dataclass(frozen=True)
class Request:
    """One line of the log."""

    method: str
    path: str
    range: str | None
    authorized: bool
    host: str


class Hub(ThreadingHTTPServer):
    """`faults`: what the next answers suffer, by "HEAD name", "GET name" (the bytes), "LINK name" (the redirect to them) or "API"."""

    daemon_threads = True

    def __init__(self, repo: str, files: dict[str, bytes], *, ipv6: bool = False) -> None:
        self.address_family = socket.AF_INET6 if ipv6 else socket.AF_INET
        super().__init__(("::1" if ipv6 else "127.0.0.1", 0), Handler)
        self.repo, self.files, self.ipv6 = repo, files, ipv6
        self.branches = {"main": COMMIT, "refs/convert/parquet": COMMIT}
        self.faults: dict[str, list[Fault]] = {}
        self.gated = False
        self.version = '"v1"'  # ETag below /files/
        self.page_entries = 1000
        self.requests: list[Request] = []
        self.released = threading.Event()  # ends every stall
        self.stalled = threading.Event()  # set when an answer begins to stall

    @property
    def endpoint(self) -> str:
        return f"http://{'[::1]' if self.ipv6 else 'localhost'}:{self.server_address[1]}"

    @property
    def storage(self) -> str:
        """Where large files lie: the same server under another name, or under the same where there is no other."""
        return self.endpoint if self.ipv6 else f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def downloads(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        kept = f"/datasets/{self.repo}/resolve/{COMMIT}/"
        paths = [request.path for request in self.requests if request.method == "GET"]
        small = [path.removeprefix(kept) for path in paths if path.startswith(kept) and not is_large(path)]
        return small + [path.removeprefix("/storage/") for path in paths if path.startswith("/storage/")]

    @property
    def revisions(self) -> list[str]:
        """Revisions whose commit was asked for."""
        return [request.path.partition("/revision/")[2] for request in self.requests if "/revision/" in request.path]

    def fault(self, key: str) -> Fault | None:
        """The next fault of `key`, used up."""
        return self.faults[key].pop(0) if self.faults.get(key) else None

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is what some tests are about."""


def is_large(name: str) -> bool:
    """Whether the Hub would keep a file in its storage."""
    return name.endswith(".parquet")


def etag_of(name: str, data: bytes) -> str:
    """What the Hub states: sha256 of a large file, git's blob sha1 of a small one."""
    return hashlib.sha256(data).hexdigest() if is_large(name) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)  # a proxy is asked for the whole address
        path, hub = unquote(url.path), self.server
        hub.requests.append(Request(self.command, path, self.headers.get("Range"), "Authorization" in self.headers, self.headers.get("Host", "")))
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))) if self.command == "POST" else b""
        if path.startswith("/storage/"):
            self._bytes(path.removeprefix("/storage/"), {"ETag": '"storage"'})
        elif path.startswith("/files/"):
            if (name := path.removeprefix("/files/")) in hub.files:
                self._bytes(name, {"ETag": hub.version} if hub.version else {})
            else:
                self._answer(404, {})
        elif path.startswith("/loop/"):
            self._answer(302, {"Location": f"/loop/{len(hub.requests)}"})
        elif found := re.fullmatch(rf"/(?:datasets/)?{hub.repo}/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(rf"/api/(?:datasets|models)/{hub.repo}(?:/(revision|tree|paths-info|refs)(?:/(.*))?)?", path):
            self._api(found.group(1) or "revision", found.group(2) or "main", parse_qs(url.query), sent)
        else:
            self._refuse(401, "RepoNotFound")

    # --- questions about the repository ---

    def _api(self, kind: str, rest: str, query: dict[str, list[str]], sent: bytes) -> None:
        hub = self.server
        if (fault := hub.fault("API")) and not self._suffers(fault):
            return
        if kind == "refs":
            branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in hub.branches.items()]
            self._json({"branches": branches, "tags": [], "converts": []})
            return
        revision = next((known for known in (*hub.branches, COMMIT) if rest == known or rest.startswith(f"{known}/")), None)
        if revision is None:
            self._refuse(404, "RevisionNotFound")
            return
        inside = rest[len(revision) + 1 :]
        if kind == "revision":
            self._json({"_id": "1", "id": hub.repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]})
        elif kind == "paths-info":
            wanted = json.loads(sent)["paths"] if sent.startswith(b"{") else parse_qs(sent.decode())["paths"]
            self._json([entry(name, hub.files[name]) for name in wanted if name in hub.files])
        else:
            self._tree(inside, query)

    def _tree(self, folder: str, query: dict[str, list[str]]) -> None:
        hub = self.server
        prefix = f"{folder}/" if folder else ""
        below = [name for name in sorted(hub.files) if name.startswith(prefix)]
        if not below:
            self._refuse(404, "EntryNotFound")
            return
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for name in below:
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                inner = prefix + "/".join(parts[:depth])
                entries[inner] = {"type": "directory", "path": inner, "size": 0, "oid": "0" * 40}
            if recursive or len(parts) == 1:
                entries[name] = entry(name, hub.files[name])
        first = int(query.get("cursor", ["0"])[0])
        page = list(entries.values())[first : first + hub.page_entries]
        more = first + hub.page_entries < len(entries)
        following = f"https://huggingface.co{quote(urlsplit(self.path).path)}?recursive={recursive}&cursor={first + hub.page_entries}"  # as a mirror does
        self._json(page, {"Link": f'<{following}>; rel="next"'} if more else {})

    # --- files ---

    def _resolve(self, revision: str, name: str) -> None:
        hub = self.server
        if hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
            return
        if hub.branches.get(revision, revision) != COMMIT:
            self._refuse(404, "RevisionNotFound")
        elif name not in hub.files:
            self._refuse(404, "EntryNotFound")
        elif not is_large(name):
            self._bytes(name, {"ETag": f'"{etag_of(name, hub.files[name])}"', "X-Repo-Commit": COMMIT})
        else:
            fault = hub.fault(f"{'HEAD' if self.command == 'HEAD' else 'LINK'} {name}")
            if fault and not self._suffers(fault):
                return
            data = hub.files[name]
            linked = {"X-Linked-Etag": f'"{etag_of(name, data)}"', "X-Linked-Size": str(len(data))}
            self._answer(302, {"Location": f"{hub.storage}/storage/{quote(name)}", "X-Repo-Commit": COMMIT, **linked, **(fault.headers if fault else {})})

    def _bytes(self, name: str, headers: Mapping[str, str]) -> None:
        """The content of a file, or what a fault makes of it."""
        hub, data = self.server, self.server.files[name]
        fault = hub.fault(f"{self.command} {name}") or Fault("none")
        if not self._suffers(fault):
            return
        stated = {"Accept-Ranges": "bytes", **headers}
        if self.command == "HEAD":
            self._answer(200, {"Content-Length": str(len(data)), **stated, **fault.headers})
            return
        first = int(found.group(1)) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if fault.kind == "whole":
            first = 0
        if first and first >= len(data):
            self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        if first:
            begin = first - (fault.kind == "elsewhere")
            body, status = data[begin:], 206
            stated |= {} if fault.kind == "unsaid" else {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        else:
            body, status = data, 200
        self._body(name, status, first, body, stated, fault)

    def _body(self, name: str, status: int, first: int, body: bytes, stated: dict[str, str], fault: Fault) -> None:
        at = min(round(len(body) * fault.at), len(body) - 1)
        if fault.kind in ("damage", "foreign"):
            body = bytes([body[0] ^ 1]) + body[1:] if fault.kind == "damage" else b"?" * len(body)
        elif fault.kind in ("long", "short"):
            body = body + b"+" * 50 if fault.kind == "long" else body[:at]
        elif fault.kind == "gzip":
            body = gzip.compress(self.server.files[name])[first:]
            stated["Content-Encoding"] = "gzip"
        length = {"Transfer-Encoding": "chunked"} if fault.kind == "chunked" else {"Content-Length": str(len(body))}
        self.send_response(status)
        for header in {**length, **stated}.items():
            self.send_header(*header)
        self.end_headers()
        if fault.kind in ("cut", "reset", "stall"):
            self.wfile.write(body[:at])
            if fault.kind == "stall":
                self._stall(fault)
                self.wfile.write(body[at:])
            else:
                self._hang_up(reset=fault.kind == "reset")
        elif fault.kind == "chunked":
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        else:
            self.wfile.write(body + (b"+" * 50 if fault.kind == "overflow" else b""))
            self.close_connection = fault.kind == "overflow"

    # --- faults ---

    def _suffers(self, fault: Fault) -> bool:
        """Whether an answer follows all the same; what a fault does before the first header is done here."""
        if fault.kind == "status":
            self._answer(fault.status, fault.headers)
        elif fault.kind == "redirect":
            self._answer(302, {"Location": fault.to, **fault.headers})
        elif fault.kind == "silent" or (fault.kind == "reset" and (self.command == "HEAD" or fault.at == 0)):
            self._hang_up(reset=fault.kind == "reset")
        elif fault.kind == "stall" and self.command == "HEAD":
            self._stall(fault)
            return True
        else:
            return True
        return False

    def _stall(self, fault: Fault) -> None:
        self.wfile.flush()
        self.server.stalled.set()
        self.server.released.wait(fault.seconds)

    def _hang_up(self, *, reset: bool) -> None:
        self.wfile.flush()
        self.close_connection = True
        if reset:  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    # --- answers ---

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for header in {"Content-Length": str(len(body)), **headers}.items():
            if header[1]:  # a fault takes a header away by an empty value
                self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self._answer(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": f"the test hub says {code}"})

    def log_message(self, *_: object) -> None:
        """Quiet."""


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A file as the tree lists it."""
    plain = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    return plain | ({"lfs": {"oid": etag_of(name, data), "size": len(data), "pointerSize": 134}} if is_large(name) else {})


@contextmanager
def hub_server(repo: str, files: dict[str, bytes], *, ipv6: bool = False) -> Iterator[Hub]:
    """A running hub."""
    with Hub(repo, files, ipv6=ipv6) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
