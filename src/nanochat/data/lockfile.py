"""The lock file of the sources, `sources.lock.json` beside the experiment: which commit a branch of the Hub meant when it was first asked
for, which files a folder of that commit holds, and which content stood behind an address.

Written once, read by every later fetch, committed by the user with the experiment. Only an entry that was deleted is asked for anew.
Several fetches run at once: each asks without holding the lock, and the first to write decides for all.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nanochat.artifacts import lock_beside, read_json, write_json
from nanochat.errors import UserError
from nanochat.runtime import log

FORMAT = 1
COMMIT, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class Lock:
    """One lock file; it need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Raise UserError if there is a file and it is no lock."""
        self._read()

    def commit(self, repo: str, revision: str, ask: Callable[[], str]) -> str:
        """The commit that `revision` of `repo` meant at the first fetch; `ask` is called once and tells it. A commit stands for itself."""
        if COMMIT.fullmatch(revision):
            return revision
        found = self._hub(self._read(), repo, revision).get("commit")
        if found is None:
            asked = ask()
            found = self._keep(lambda content: self._fresh(content, repo, revision), "commit", asked)
            log(f"{repo}: {revision} is {found}, locked in {self.path}")
        return str(found)

    def files(self, repo: str, revision: str, folder: str, ask: Callable[[], list[str]]) -> list[str]:
        """Files in a folder at the locked commit, as first listed. A revision that is a commit needs no entry but for the list."""
        found = self._hub(self._read(), repo, revision).get("files", {}).get(folder)
        if found is None:
            asked = ask()
            found = self._keep(lambda content: self._hub(content, repo, revision).setdefault("files", {}), folder, asked)
        return list(found)

    def content(self, url: str) -> tuple[str, int] | None:
        """(sha256, bytes) of what stood behind an address at the first fetch."""
        found = self._read()["url"].get(url)
        return (found["sha256"], found["bytes"]) if found else None

    def keep_content(self, url: str, sha256: str, size: int) -> None:
        """Write down what stands behind an address. Raises UserError if another fetch has just found something else there."""
        kept = self._keep(lambda content: content["url"], url, {"sha256": sha256, "bytes": size})
        if kept["sha256"] != sha256:
            raise UserError(f"{url}: gave two fetches different contents, {sha256} and {kept['sha256']}; run again")
        log(f"{url}: taken on trust, since nobody states its hash; sha256 {sha256} is locked in {self.path}, and every later fetch is compared with it")

    def _keep(self, place: Callable[[dict[str, Any]], dict[str, Any]], key: str, value: Any) -> Any:
        """Set a key unless it is set meanwhile; returns what stands there then."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock_beside(self.path):
            content = self._read()
            kept = place(content).setdefault(key, value)
            write_json(self.path, content)
        return kept

    @staticmethod
    def _hub(content: dict[str, Any], repo: str, revision: str) -> dict[str, Any]:
        entry: dict[str, Any] = content["hub"].setdefault(repo, {}).setdefault(revision, {})
        return entry

    @classmethod
    def _fresh(cls, content: dict[str, Any], repo: str, revision: str) -> dict[str, Any]:
        """The entry, without lists of files that are not of its commit."""
        entry = cls._hub(content, repo, revision)
        if "commit" not in entry:
            entry.clear()
        return entry

    def _read(self) -> dict[str, Any]:
        """The content; an empty one where there is no file."""
        if not self.path.exists():
            return {"format": FORMAT, "hub": {}, "url": {}}
        cure = "repair it (a merge may have left its marks), or delete it to lock everything anew"
        try:
            content = read_json(self.path)
        except UserError as error:
            raise UserError(f"{str(error).partition('; ')[0]}; {cure}") from None
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise UserError(f"{self.path}: format={content.get('format')!r}, this nanochat reads {FORMAT}; use the version of nanochat that wrote it")
        if fault := _fault(content):
            raise UserError(f"{self.path}: {fault}; {cure}")
        return dict(content)


def _fault(content: Any) -> str:
    """What is wrong with a lock, or ""."""
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in ("hub", "url")):
        return "is no lock of sources"
    for repo, revisions in content["hub"].items():
        for revision, entry in revisions.items() if isinstance(revisions, dict) else [("", None)]:
            if not isinstance(entry, dict) or not _is_entry(entry):
                return f"hub.{repo}.{revision} holds no commit of 40 hexadecimal digits or no lists of files"
    for url, entry in content["url"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int) or not SHA256.fullmatch(str(entry.get("sha256"))):
            return f"url.{url} holds no sha256 and bytes"
    return ""


def _is_entry(entry: Mapping[str, Any]) -> bool:
    files = entry.get("files", {})
    return (
        ("commit" not in entry or COMMIT.fullmatch(str(entry["commit"])) is not None)
        and isinstance(files, dict)
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in files.values())
    )
