"""A Hugging Face Hub on the loopback that holds several data sets, each branch with files and a commit of its own. No faults: those are hub_server.py's.

Its protocol is what a fetch and huggingface_hub ask for: revisions, trees, and files behind a redirect to storage under another host name.
"""

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

from hub_server import Handler, entry, etag_of, is_large

Files = Mapping[str, bytes]
Repositories = Mapping[str, Mapping[str, Files]]  # repository -> branch -> files


def commit_of(files: Files) -> str:
    """A commit follows from its content."""
    return hashlib.sha1("".join(f"{name} {etag_of(name, data)}\n" for name, data in sorted(files.items())).encode()).hexdigest()


class MiniHub(ThreadingHTTPServer):
    """`downloads` are the files whose bytes were asked for, as "repository/name"."""

    daemon_threads = True

    def __init__(self, repositories: Repositories) -> None:
        super().__init__(("127.0.0.1", 0), MiniHandler)
        self.commits = {repo: {branch: commit_of(files) for branch, files in branches.items()} for repo, branches in repositories.items()}
        self.trees = {repo: {self.commits[repo][branch]: files for branch, files in branches.items()} for repo, branches in repositories.items()}
        self.storage: dict[str, bytes] = {}
        self.downloads: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://localhost:{self.server_address[1]}"

    def revision(self, repo: str, rest: str) -> tuple[str, str] | None:
        """(commit, what follows it) of "branch/name" or "commit/name"; a branch may hold slashes."""
        for known in (*self.commits[repo], *self.trees[repo]):
            if rest == known or rest.startswith(f"{known}/"):
                return self.commits[repo].get(known, known), rest[len(known) + 1 :]
        return None


class MiniHandler(Handler):
    server: MiniHub

    def do_GET(self) -> None:  # noqa: N802 -- named by http.server
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if path.startswith("/storage/"):
            self._stored(hub.storage[path.removeprefix("/storage/")])
            return
        found = re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/(resolve|revision|tree)/(.+))?", path)
        if not found or found.group(1) not in hub.trees:
            self._refuse(401, "RepoNotFound")
            return
        repo, kind = found.group(1), found.group(2) or "revision"
        revision = hub.revision(repo, found.group(3) or "main")
        if revision is None:
            self._refuse(404, "RevisionNotFound")
        elif kind == "revision":
            commit = revision[0]
            self._json({"_id": "1", "id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in hub.trees[repo][commit]]})
        elif kind == "tree":
            below = [name for name in sorted(hub.trees[repo][revision[0]]) if name.startswith(f"{revision[1]}/")]
            self._json([entry(name, hub.trees[repo][revision[0]][name]) for name in below]) if below else self._refuse(404, "EntryNotFound")
        else:
            self._file(repo, *revision)

    def _file(self, repo: str, commit: str, name: str) -> None:
        hub = self.server
        if name not in hub.trees[repo][commit]:
            self._refuse(404, "EntryNotFound")
            return
        data = hub.trees[repo][commit][name]
        etag = etag_of(name, data)
        if self.command != "HEAD":
            hub.downloads.append(f"{repo}/{name}")
        if not is_large(name):
            self._answer(200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Length": str(len(data))}, data)
            return
        hub.storage[etag] = data
        place = f"http://127.0.0.1:{hub.server_address[1]}/storage/{quote(etag)}"
        self._answer(302, {"Location": place, "X-Repo-Commit": commit, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))})

    def _stored(self, data: bytes) -> None:
        first = int(found.group(1)) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        part = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        self._answer(206 if first else 200, {"ETag": '"storage"', "Accept-Ranges": "bytes", "Content-Length": str(len(data) - first), **part}, data[first:])


@contextmanager
def mini_hub(repositories: Repositories) -> Iterator[MiniHub]:
    """A running hub."""
    with MiniHub(repositories) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
