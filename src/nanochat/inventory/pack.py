"""Fetched parts into one archive, each file checked against its manifest while it is written."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from nanochat.artifacts import atomic_path, read_json, sha256_bytes
from nanochat.data.lockfile import Lock
from nanochat.data.parts import COMPANIONS, MANIFEST
from nanochat.data.sources import WHEELS
from nanochat.data.transfer import Transfer
from nanochat.errors import UserError
from nanochat.inventory.archive import (
    COMPRESSED,
    INDEX,
    MEMBER_OVERHEAD,
    SOURCE_LOCK,
    Index,
    Member,
    header,
    suffix_of,
    total_bytes,
    writer,
)
from nanochat.inventory.parts import RESOURCES, WHEEL_FOLDER, Experiments, Part, is_whole, parts_here, stated_files

NAMED = 5  # how many of many are named in a sentence
SPARE_BYTES = 10_000_000  # stay free


def pack(archive: Path, experiments: Experiments, *, everything: bool = False, root: Path = Path()) -> tuple[Index, int]:
    """Write the parts that the experiments need, or all that are whole and the wheels. Returns what was packed and the archive's size."""
    compressed = suffix_of(archive) == COMPRESSED
    if archive.exists():
        raise UserError(f"{archive}: is there already; delete it or give another name")
    parts = [part for part in parts_here(root) if is_whole(part, root)] if everything else needed_parts(experiments, root)
    if not parts:
        raise UserError(f"{RESOURCES}: nothing is fetched yet; type nanochat data fetch first")
    index, small = _index(parts, wheels=everything, root=root)
    archive.parent.mkdir(parents=True, exist_ok=True)
    needed = total_bytes(index.members) + MEMBER_OVERHEAD * (len(index.members) + 1) + SPARE_BYTES
    free = shutil.disk_usage(archive.parent).free
    if not compressed and needed > free:  # how small it becomes compressed shows when it is done
        raise UserError(f"{archive}: {needed / 1e6:,.1f} MB to be written, {free / 1e6:,.1f} MB are free there; free some space or write it to another disk")
    transfer = Transfer(f"pack {archive.name}")
    transfer.expect(total_bytes(index.members), 0)
    with transfer.shown(), atomic_path(archive) as temporary, temporary.open("wb") as file, writer(file, compressed=compressed) as tar:
        _add(tar, INDEX, index.content())
        for member in index.members:
            if member.name in small:
                _add(tar, member.name, small[member.name])
                transfer.add(member.bytes)
            else:
                _copy(tar, member, root / member.name, transfer.add)
    return index, archive.stat().st_size


def needed_parts(experiments: Experiments, root: Path) -> list[Part]:
    """Every part that the experiments need. Raises UserError if one is not fetched, or not as its experiment wants it."""
    missing = [part for part in experiments.parts if not is_whole(part, root)]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(f"not fetched: {', '.join(part.name for part in missing[:NAMED])}{more}; type nanochat data fetch{experiments.flag} first")
    for part in experiments.parts:
        made_with = root / part.name / "config.json"
        recorded = read_json(made_with) if made_with.is_file() else None
        for file in experiments.of(part):
            if recorded not in (None, experiments.fetch_config(part, file)):
                raise UserError(f"{part.name}: was fetched with other settings than those of {file}; type nanochat data fetch --configfile {file} first")
    return experiments.parts


def _index(parts: Iterable[Part], *, wheels: bool, root: Path) -> tuple[Index, dict[str, bytes]]:
    """Every member in order, and the content of the small ones: it is read once, so that it is what the index says."""
    members, small = list[Member](), dict[str, bytes]()

    def take(name: str) -> None:
        if (root / name).is_file():
            small[name] = (root / name).read_bytes()
            members.append(Member(name, len(small[name]), sha256_bytes(small[name])))

    Lock(root / SOURCE_LOCK).check()
    take(SOURCE_LOCK)
    for part in parts:
        members += [Member(f"{part.name}/{name}", *stated) for name, stated in sorted(stated_files(part, root).items())]
        for name in (*COMPANIONS, MANIFEST):
            take(f"{part.name}/{name}")
    if wheels:
        here = sorted((f"{RESOURCES}/{WHEEL_FOLDER}/{wheel.filename}", wheel) for wheel in WHEELS.values())
        members += [Member(name, wheel.size, wheel.sha256) for name, wheel in here if (root / name).is_file()]
    return Index(tuple(members)), small


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    tar.addfile(header(name, len(content)), io.BytesIO(content))


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], object]) -> None:
        self.file, self.on_bytes, self.digest = file, on_bytes, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        piece = self.file.read(size)
        self.digest.update(piece)
        self.on_bytes(len(piece))
        return piece


def _copy(tar: tarfile.TarFile, member: Member, file: Path, on_bytes: Callable[[int], object]) -> None:
    """A file into the archive. Raises UserError if it is not the one that its manifest states."""
    damaged = f"{file}: damaged (not the file that was fetched); type nanochat data verify --repair, then pack again"
    if not file.is_file() or file.stat().st_size != member.bytes:
        raise UserError(damaged)
    with file.open("rb") as content:
        hashed = _Hashed(content, on_bytes)
        tar.addfile(header(member.name, member.bytes), hashed)
    if hashed.digest.hexdigest() != member.sha256:
        raise UserError(damaged)
