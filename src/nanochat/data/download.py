"""The bytes of one file of the Hub: a download that goes on where the last one ended, in this process or an earlier one.

A file arrives under a hidden name beside a stamp that says which content it is the beginning of. Whatever a server or a line does to
the bytes in between, the hash of the whole file is the judge: only what has it gets the file's name.
"""

import hashlib
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.artifacts import HASH_CHUNK_BYTES, read_json, sha256_file, sync_folder, write_json
from nanochat.data.network import KEPT, Patience, TransientError, answered, check
from nanochat.data.transfer import Transfer
from nanochat.errors import UserError

WRONG_HASHES = 3  # so many whole files with wrong content, or two with the same one, are enough


class ChangedError(Exception):
    """The Hub has begun to state another hash for the file."""


@dataclass(frozen=True)
class HubFile:
    """One file of the Hub as it states it."""

    repo: str
    commit: str
    name: str
    url: str
    etag: str  # sha256 of a large file, git's blob sha1 of a small one
    size: int | None

    @property
    def what(self) -> str:
        """How messages call it."""
        return f"{self.repo}/{self.name}"


class Partial:
    """The beginning of a file, kept from one attempt to the next: `.NAME.partial`, and `.NAME.partial.json` that says of what."""

    def __init__(self, target: Path, file: HubFile) -> None:
        self.target, self.path = target, target.with_name(f".{target.name}.partial")
        self.stamp = target.with_name(f".{target.name}.partial.json")
        self.wanted = asdict(file)
        del self.wanted["url"]  # a mirror has the same content

    def size(self) -> int:
        """How many bytes are here; 0 if they are of another content."""
        if not self.path.is_file() or not self._is_ours():
            return 0
        return self.path.stat().st_size

    def prepare(self) -> str:
        """Make what is here usable; returns why something had to be thrown away, or ""."""
        why = ""
        if self.path.is_file() and not self._is_ours():
            why = "what was here of it is of another revision or content"
        elif self.wanted["size"] is not None and self.size() > self.wanted["size"]:
            why = "more was here of it than there is"
        if why:
            self.discard()
        if not self._is_ours():
            write_json(self.stamp, self.wanted)
        return why

    def discard(self) -> None:
        """Begin again from nothing."""
        self.path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the complete file its name."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        sync_folder(self.target.parent)
        self.stamp.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        try:
            return bool(read_json(self.stamp) == self.wanted)
        except UserError:
            return False


def fetch_file(file: HubFile, target: Path, transfer: Transfer) -> None:
    """Download `file` to `target`. Raises ChangedError if the Hub states another hash meanwhile, UserError if it does not come right."""
    partial, wrong = Partial(target, file), list[str]()
    if why := partial.prepare():
        transfer.say(f"{file.what}: {why}; starting again")
    while True:
        _complete(file, partial, transfer)
        found = file_etag(partial.path, file.etag)
        if found == file.etag:
            partial.finish()
            return
        transfer.add(-partial.size())
        partial.discard()
        if found in wrong or len(wrong) == WRONG_HASHES - 1:
            raise UserError(
                f"{file.what}: arrived {len(wrong) + 1} times with a wrong hash, lastly {found} instead of {file.etag}; "
                "a proxy or mirror alters it, try another network or HF_ENDPOINT"
            )
        wrong.append(found)
        transfer.say(f"{file.what}: arrived with hash {found} instead of {file.etag}; starting again")


def _complete(file: HubFile, partial: Partial, transfer: Transfer) -> None:
    """Receive until the file is whole. An attempt that got further than any before it makes the earlier failures forgotten."""
    patience, furthest = Patience(file.what, sleep=transfer.sleep, say=transfer.say), partial.size()
    while True:
        try:
            _receive(file, partial, transfer)
            return
        except TransientError as error:
            if (here := partial.size()) > furthest:
                furthest, patience.failures = here, 0
            patience.wait(error, f"check the network and run again, it will go on after {here:,} bytes" if here else KEPT)


def _receive(file: HubFile, partial: Partial, transfer: Transfer) -> None:
    """One request for what is missing. Raises TransientError if it did not bring all of it."""
    have = partial.size()
    if have == file.size:
        partial.path.touch()  # an empty file has nothing to receive
        return
    with answered("GET", file.url, file.what, {"Range": f"bytes={have}-"} if have else None) as answer:
        response = answer.response
        if answer.etag != file.etag and is_hash(answer.etag):
            raise ChangedError
        if response.status_code != 416:
            check(response, file.what, file.repo)
        start = _first_byte(response)
        if start != have:
            transfer.add(-have)
            partial.discard()
            if start != 0:
                raise TransientError(f"asked for bytes from {have:,} on, got HTTP {response.status_code}; starting again")
            have = 0
        have += _store(response, partial, None if file.size is None else file.size - have, transfer)
    if file.size is not None and have < file.size:
        raise TransientError(f"the answer ended after {have:,} of {file.size:,} bytes")


def _first_byte(response: Any) -> int | None:
    """Where the body of an answer begins in the file; None if it cannot be known. A server may ignore what it was asked for."""
    if response.status_code == 200:
        return 0
    stated = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/(?:[0-9]+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status_code != 206 or stated is None or response.headers.get("Content-Encoding", "identity") != "identity":
        return None  # a part of a compressed file cannot be continued with
    return int(stated.group(1))


def _store(response: Any, partial: Partial, missing: int | None, transfer: Transfer) -> int:
    """Append the body, at most `missing` bytes; returns how many. What came before a failure stays."""
    stored = 0
    try:
        with partial.path.open("ab") as file:
            for piece in response.iter_bytes():  # as it comes: a larger chunk would be lost with the connection
                kept = piece if missing is None else piece[: missing - stored]
                file.write(kept)
                file.flush()
                stored += len(kept)
                transfer.add(len(kept))
                if stored == missing:  # a longer body ends here; the hash says whether this is the file
                    break
    except OSError as error:
        error.filename = str(partial.target)
        raise
    return stored


def is_hash(etag: str) -> bool:
    """Whether an ETag is the hash of the content, as the Hub's are, and not something of a server's own."""
    return re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) is not None


def file_etag(path: Path, like: str) -> str:
    """Hash of a file in the form of `like`: sha256 (large files) or git's blob sha1 (small ones)."""
    if len(like) == 64:
        return sha256_file(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(HASH_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
