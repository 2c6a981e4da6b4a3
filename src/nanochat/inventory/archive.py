"""The archive that carries data to a machine without internet: a tar whose first member is an index with the sha256 of every other.

    nanochat-data.json                      {"format": 1, "members": [{"name", "bytes", "sha256"}, ...]}, in the order of the archive
    sources.lock.json                       what each revision meant, if there is one
    resources/SOURCE/PART/...               the files of a part, its manifest last
    resources/wheels/...                    only with --all

The same data give the same bytes: no dates, no owners. NAME.tar is plain, since shards are compressed already; NAME.tar.zst is compressed.
"""

import contextlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from nanochat.data.parts import MANIFEST
from nanochat.errors import UserError
from nanochat.inventory.parts import FILE, PART, RESOURCES, SHA256, WHEEL_FOLDER, Part

INDEX = "nanochat-data.json"
INDEX_BYTES = 1 << 26  # at most: 300,000 members
FORMAT = 1
SOURCE_LOCK = "sources.lock.json"  # of the checkout: the commits that revisions mean
PLAIN, COMPRESSED = ".tar", ".tar.zst"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MEMBER_OVERHEAD = 2 * tarfile.BLOCKSIZE  # a header, and the rest of the last block
SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Member(NamedTuple):
    """One file of the archive."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What an archive holds, in its order."""

    members: tuple[Member, ...]

    @property
    def parts(self) -> dict[Part, list[Member]]:
        """The members of each part, its manifest last."""
        parts: dict[Part, list[Member]] = {}
        for member in self.members:
            if part := part_of(member.name):
                parts.setdefault(part, []).append(member)
        return parts

    @property
    def others(self) -> list[Member]:
        """Members of no part: locks of revisions, wheels."""
        return [member for member in self.members if part_of(member.name) is None]

    def content(self) -> bytes:
        """The first member."""
        return (json.dumps({"format": FORMAT, "members": [member._asdict() for member in self.members]}, indent=1) + "\n").encode()


def part_of(name: str) -> Part | None:
    """The part that a member belongs to; None for one of no part."""
    pieces = name.split("/")
    return Part(pieces[1], pieces[2]) if len(pieces) == 4 else None


def is_allowed(name: str) -> bool:
    """Whether a member may have this name: nothing leads out of resources/, and nothing in it is hidden."""
    match name.split("/"):
        case [single]:
            return single == SOURCE_LOCK
        case [top, folder, file]:
            return top == RESOURCES and folder == WHEEL_FOLDER and bool(FILE.fullmatch(file)) and file.endswith(".whl")
        case [top, source, part, file]:
            return top == RESOURCES and source != WHEEL_FOLDER and bool(SOURCE.fullmatch(source) and PART.fullmatch(part) and FILE.fullmatch(file))
    return False


def parse_index(content: bytes, archive: Path) -> Index:
    """The index of an archive. Raises UserError if it is none, or names what an archive may not hold."""
    try:
        found = json.loads(content)
        stated = found["format"]
        members = tuple(Member(item["name"], item["bytes"], item["sha256"]) for item in found["members"])
        sound = all(isinstance(m.name, str) and type(m.bytes) is int and m.bytes >= 0 and SHA256.fullmatch(m.sha256) for m in members)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{archive}: its index is damaged; copy it again") from None
    if stated != FORMAT:
        raise UserError(f"{archive}: of format {stated!r}, this version of nanochat reads {FORMAT}; unpack it with the version that packed it")
    if refused := next((member.name for member in members if not is_allowed(member.name)), None):
        raise UserError(f"{archive}: holds {refused!r}, which is no file of resources/; it was not made by nanochat data pack, do not trust it")
    index = Index(members)
    late = any(member.name == SOURCE_LOCK for member in members[1:])
    if not sound or late or len({member.name for member in members}) < len(members) or not _in_order(index):
        raise UserError(f"{archive}: its index is damaged; copy it again")
    return index


def _in_order(index: Index) -> bool:
    """Whether the members of each part stand together, its manifest at the end."""
    grouped = [member for members in index.parts.values() for member in members]
    return grouped == [member for member in index.members if part_of(member.name)] and all(
        Path(members[-1].name).name == MANIFEST for members in index.parts.values()
    )


# --- streams ---------------------------------------------------------------------------------------------------------


def suffix_of(archive: Path) -> str:
    """How an archive that is to be written is stored. Raises UserError for a name that does not say it."""
    for suffix in (COMPRESSED, PLAIN):
        if archive.name.endswith(suffix) and archive.name != suffix:
            return suffix
    raise UserError(f"{archive}: give a name that ends in {PLAIN}, or in {COMPRESSED} to have it compressed")


def header(name: str, size: int) -> tarfile.TarInfo:
    """A regular file of nobody, without a date."""
    found = tarfile.TarInfo(name)
    found.size, found.mode = size, 0o644
    return found


@contextlib.contextmanager
def writer(file: IO[bytes], *, compressed: bool) -> Iterator[tarfile.TarFile]:
    """A tar that is written from its beginning to its end."""
    with contextlib.ExitStack() as stack:
        if compressed:
            import pyarrow as pa

            file = cast(IO[bytes], stack.enter_context(pa.CompressedOutputStream(file, "zstd")))
        yield stack.enter_context(tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT))


class Damaged(Exception):  # noqa: N818  (said of the archive, as UserError is)
    """The archive cannot be read to its end: it is no archive, was cut off, or a byte was changed."""


@contextlib.contextmanager
def reader(archive: Path) -> Iterator[tarfile.TarFile]:
    """A tar that is read from its beginning to its end. Raises Damaged, in the block too, where it cannot be."""
    import pyarrow as pa

    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(archive.open("rb"))
            compressed = file.read(len(ZSTD_MAGIC)) == ZSTD_MAGIC
            file.seek(0)
            if compressed:
                file = stack.enter_context(pa.CompressedInputStream(file, "zstd"))
            yield stack.enter_context(tarfile.open(fileobj=file, mode="r|"))
    except (tarfile.TarError, EOFError, pa.ArrowException) as error:
        raise Damaged(str(error)) from None
    except OSError as error:
        if error.errno is not None:  # of the disk; the decompressor's have none
            raise
        raise Damaged(str(error)) from None


def pieces_of(tar: tarfile.TarFile, found: tarfile.TarInfo, size: int) -> Iterator[bytes]:
    """The content of a member, 4 MiB at a time."""
    content = tar.extractfile(found)
    if content is None:  # no regular file
        raise Damaged("not a file")
    while piece := content.read(min(size, 1 << 22)):
        yield piece


def read_index(tar: tarfile.TarFile, archive: Path) -> Index:
    """The index, which is the first member."""
    found = tar.next()
    if found is None or found.name != INDEX or not found.isreg() or found.size > INDEX_BYTES:
        raise UserError(f"{archive}: not an archive of data; give one that nanochat data pack has made")
    return parse_index(b"".join(pieces_of(tar, found, INDEX_BYTES)), archive)


def total_bytes(members: Iterable[Member]) -> int:
    """Bytes of the members' content."""
    return sum(member.bytes for member in members)
