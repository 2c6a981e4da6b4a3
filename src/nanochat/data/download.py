"""The bytes of files of the Hub or behind an address: a download that goes on where the last one ended, in this process or an earlier one.

A file arrives under a hidden name beside a stamp that says which content it is the beginning of. Whatever a server or a line does to
the bytes in between, the hash of the whole file is the judge: only what has it gets the file's name. Where nobody has stated a hash yet, the
server's word for the version has to stay the same, and the size has to be right.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nanochat.artifacts import HASH_CHUNK_BYTES, read_json, sha256_file, sync_folder, write_json
from nanochat.data.network import KEPT, Patience, TransientError, answered, check
from nanochat.data.transfer import Transfer, in_threads
from nanochat.errors import UserError

WRONG_HASHES = 3  # so many whole files with wrong content, or two with the same one, are enough
CHANGES = 3  # so often a file may change while it is downloaded
SPARE_BYTES = 50_000_000  # must stay free: for manifests and logs
ALTERED = "a proxy or mirror alters it, try another network or HF_ENDPOINT"

Result = TypeVar("Result")
Then = Callable[[Path, Callable[[str], None]], Result]


class ChangedError(Exception):
    """The server has begun to state another hash or version for the file."""


@dataclass(frozen=True)
class RemoteFile:
    """One file as its server states it."""

    what: str  # how messages call it: owner/name/path, or the address
    url: str
    etag: str  # sha256, or git's blob sha1 of a small file of the Hub; "" where nobody has stated one
    size: int | None
    repo: str = ""  # of the Hub, which alone is sent the token; "": an address
    commit: str = ""
    version: str = ""  # of an address without a hash: its ETag
    wrong: str = ALTERED  # what to say of another hash

    def is_changed(self, stated: str) -> bool:
        """Whether the ETag of an answer means another content. That of an address is the server's own and says nothing of a hash."""
        return is_hash(stated) and stated != self.etag if self.repo else bool(self.version) and stated != self.version


# asks the server what it states, with the function that waits between its attempts
Look = Callable[[Callable[[float], object]], RemoteFile]


class Partial:
    """The beginning of a file, kept from one attempt to the next: `.NAME.partial`, and `.NAME.partial.json` that says of what."""

    def __init__(self, target: Path, file: RemoteFile) -> None:
        self.target, self.path = target, target.with_name(f".{target.name}.partial")
        self.stamp = target.with_name(f".{target.name}.partial.json")
        self.wanted = asdict(file)
        for name in ("url", "wrong"):  # a mirror has the same content
            del self.wanted[name]

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


# --- several files ---------------------------------------------------------------------------------------------------


def fetch_files(looks: Sequence[Look], targets: Sequence[Path], *, label: str, then: Then[Result]) -> list[Result]:
    """Fetch files, a few at a time, and return what `then` makes of each: it is handed the file, and a log that does not break the bar.

    The space is looked at first; a file that is already there with the right hash is kept. All go into one folder, which is the
    caller's alone: two processes that write there must exclude each other. `label` names the progress.
    """
    transfer = Transfer(label)
    found = in_threads([partial(_missing, look, target, transfer) for look, target in zip(looks, targets, strict=True)], transfer.stopped)
    files = list(zip(found, looks, targets, strict=True))
    for file, _, target in files:
        if file is not None:
            there = Partial(target, file).size()
            transfer.expect(max(file.size or 0, there), there)
    if transfer.total > transfer.done:
        _require_room(label, transfer.total - transfer.done, targets[0].parent)

    def one(file: RemoteFile | None, look: Look, target: Path) -> Result:
        if file is not None:
            _fetch(file, look, target, transfer)
        return then(target, transfer.say)

    with transfer.shown():
        return in_threads([partial(one, *each) for each in files], transfer.stopped)


def _missing(look: Look, target: Path, transfer: Transfer) -> RemoteFile | None:
    """The file to fetch, or None if it is here."""
    file = look(transfer.sleep)
    return None if file.etag and target.is_file() and file_etag(target, file.etag) == file.etag else file


def _fetch(file: RemoteFile, look: Look, target: Path, transfer: Transfer) -> None:
    where, cure = ("on the Hub", "pin a commit that stays, and run again") if file.repo else ("there", "run again later")
    for _ in range(CHANGES):
        try:
            fetch_file(file, target, transfer)
            return
        except ChangedError:
            transfer.say(f"{file.what}: its content has changed {where}; starting again")
            transfer.add(-Partial(target, file).size())
            file = look(transfer.sleep)
    raise UserError(f"{file.what}: changes {where} while it is downloaded; {cure}")


def _require_room(label: str, missing: int, folder: Path) -> None:
    """Refuse a download that the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if missing + SPARE_BYTES > free:
        raise UserError(f"{label}: {missing / 1e6:,.1f} MB to download, {free / 1e6:,.1f} MB are free in {folder}; free some space and run again")


# --- one file --------------------------------------------------------------------------------------------------------


def fetch_file(file: RemoteFile, target: Path, transfer: Transfer) -> None:
    """Download `file` to `target`. Raises ChangedError if the server states another content meanwhile, UserError if it does not come right."""
    here, wrong = Partial(target, file), list[str]()
    if why := here.prepare():
        transfer.say(f"{file.what}: {why}; starting again")
    while True:
        _complete(file, here, transfer)
        found = file_etag(here.path, file.etag) if file.etag else ""
        if found == file.etag:
            here.finish()
            return
        transfer.add(-here.size())
        here.discard()
        if found in wrong or len(wrong) == WRONG_HASHES - 1:
            raise UserError(f"{file.what}: arrived {len(wrong) + 1} times with a wrong hash, lastly {found} instead of {file.etag}; {file.wrong}")
        wrong.append(found)
        transfer.say(f"{file.what}: arrived with hash {found} instead of {file.etag}; starting again")


def _complete(file: RemoteFile, here: Partial, transfer: Transfer) -> None:
    """Receive until the file is whole. An attempt that got further than any before it makes the earlier failures forgotten."""
    patience, furthest = Patience(file.what, sleep=transfer.sleep, say=transfer.say), here.size()
    while True:
        try:
            _receive(file, here, transfer)
            return
        except TransientError as error:
            if (have := here.size()) > furthest:
                furthest, patience.failures = have, 0
            patience.wait(error, f"check the network and run again, it will go on after {have:,} bytes" if have else KEPT)


def _receive(file: RemoteFile, here: Partial, transfer: Transfer) -> None:
    """One request for what is missing. Raises TransientError if it did not bring all of it."""
    have = here.size()
    if have and not (file.etag or file.version):  # nothing would say that the rest is of the same content
        transfer.add(-have)
        here.discard()
        have = 0
    if have == file.size:
        here.path.touch()  # an empty file has nothing to receive
        return
    with answered("GET", file.url, file.what, {"Range": f"bytes={have}-"} if have else None, of_hub=bool(file.repo)) as answer:
        response = answer.response
        if response.status_code < 400 and file.is_changed(answer.etag):
            raise ChangedError
        if response.status_code != 416:
            check(response, file.what, file.repo)
        start = _first_byte(response)
        if start == 0 and not file.etag and answer.size not in (None, file.size):
            raise ChangedError
        if start != have:
            transfer.add(-have)
            here.discard()
            if start != 0:
                raise TransientError(f"asked for bytes from {have:,} on, got HTTP {response.status_code}; starting again")
            have = 0
        have += _store(response, here, None if file.size is None else file.size - have, transfer)
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


def _store(response: Any, here: Partial, missing: int | None, transfer: Transfer) -> int:
    """Append the body, at most `missing` bytes; returns how many. What came before a failure stays."""
    stored = 0
    try:
        with here.path.open("ab") as file:
            for piece in response.iter_bytes():  # as it comes: a larger chunk would be lost with the connection
                kept = piece if missing is None else piece[: missing - stored]
                file.write(kept)
                file.flush()
                stored += len(kept)
                transfer.add(len(kept))
                if stored == missing:  # a longer body ends here; the hash says whether this is the file
                    break
    except OSError as error:
        error.filename = str(here.target)
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
