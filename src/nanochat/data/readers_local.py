"""Documents out of a user's own files: .parquet and .jsonl (a column or key of text), .txt (a file is a document).

A .jsonl or .txt file may be packed with gzip (.gz) or zstd (.zst); it is unpacked while it is read, never onto the disk.

What cannot be read is refused with the file and the place in it; what is left out or cut is counted, and the fetch says so.
"""

import codecs
import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nanochat.artifacts import canonical_json, sha256_bytes, sha256_file
from nanochat.data.json_lines import json_lines
from nanochat.data.text import MAX_DOCUMENT_CHARS, cut_at
from nanochat.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SUFFIXES = (".parquet", ".jsonl", ".txt")
PACKED = {".gz": "gzip", ".zst": "zstd"}  # behind .jsonl and .txt; parquet is packed inside
KINDS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file (.jsonl and .txt also with {' or '.join(PACKED)})"
READ_BYTES = 1 << 20
PARQUET_BATCH_ROWS = 64


def kind_of(file: Path) -> str | None:
    """One of SUFFIXES, what packs the file left out of its name; None for a file of another kind."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        return suffixes[0] if len(suffixes) == 2 and suffixes[0] in SUFFIXES[1:] else None
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def local_files(path: str, name: str) -> list[Path]:
    """Usable files at `path`, a file or a folder, sorted by their path; hidden ones and other kinds are left out."""
    place = Path(path).expanduser()
    if place.is_file():
        if kind_of(place) is None:
            raise UserError(f"sources.{name}.path={path}: not a {KINDS}; convert it to one of them")
        return [place]
    if not place.is_dir():
        raise UserError(f"sources.{name}.path={path}: no such file or folder; give one that exists on this machine")
    files = sorted(file for file in _visible_files(place) if kind_of(file) is not None)
    if not files:
        raise UserError(f"sources.{name}.path={path}: holds no {KINDS}; put text there or give another folder")
    if broken := next((file for file in files if not file.is_file()), None):
        raise UserError(f"{broken}: not a file, or a link to one that is gone; repair or remove it")
    return files


def _visible_files(place: Path) -> Iterator[Path]:
    """Files in a folder and all folders below it; linked folders count, each real folder once."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(place, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def listing(files: list[Path]) -> str:
    """How many files, how large, and a hash of their names and sizes: another one means other text. Reads no content."""
    if not files:
        return "no files"
    folder = os.path.commonpath([file.parent for file in files])
    sizes = [(str(file.relative_to(folder)), file.stat().st_size) for file in files]
    digest = sha256_bytes(canonical_json(sizes).encode(errors="surrogateescape"))
    return f"{len(files)} files, {sum(size for _, size in sizes)} bytes, {digest[:16]}"


def files_identity(files: list[Path]) -> dict[str, Any]:
    """What a manifest says about input files: how many, how large, and one hash over all of them in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(sha256_file(file)))
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files), "sha256": digest.hexdigest()}


def read_documents(file: Path, column: str) -> Iterator[str | None]:
    """Documents of one file; None for a missing value."""
    match kind_of(file):
        case ".parquet":
            yield from read_parquet(file, column)
        case ".jsonl":
            yield from read_jsonl(file, column)
        case _:
            yield from read_txt(file)


def read_parquet(file: Path, column: str) -> Iterator[str | None]:
    """Values of a string column, a few rows at a time."""
    import pyarrow as pa

    with opened_parquet(file) as table:
        if column not in table.schema_arrow.names:
            raise UserError(f"{file}: has no column {column!r}; set column: to one of {', '.join(table.schema_arrow.names)}")
        kind = table.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{file}: column {column!r} is of type {kind}; set column: to one that holds strings")
        row = 0
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=[column]):
            for value in batch.column(0):
                yield _text_of(value, file, row)
                row += 1


@contextlib.contextmanager
def opened_parquet(file: Path) -> Iterator["pq.ParquetFile"]:
    """A parquet file to be read in this block, which ends with a UserError where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            yield table
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{file}: not readable as parquet, perhaps cut off ({' '.join(str(error).split())[:160]}); copy or make it again") from None


def _text_of(value: Any, file: Path, row: int) -> str | None:
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError as error:  # parquet files may hold any bytes in a string column
        raise UserError(f"{file}: row {row}: invalid UTF-8 at byte {error.start} of the text; repair or leave out this row") from None
    return text


def opened(file: Path) -> BinaryIO:
    """The bytes of a file, unpacked if its name says that it is packed."""
    codec = PACKED.get(file.suffix.lower())
    return file.open("rb") if codec is None else io.BufferedReader(Unpacked(file, codec), READ_BYTES)


class Unpacked(io.RawIOBase):
    """What a packed file holds, in a stream. Several archives behind one another are one text, as gzip and zstd take them."""

    def __init__(self, file: Path, codec: str) -> None:
        import pyarrow as pa

        self.file, self.codec, self.position = file, codec, 0
        self.damages = (pa.ArrowInvalid, OSError)
        self.packed = file.open("rb")
        self.stream = pa.CompressedInputStream(pa.PythonFile(self.packed, mode="r"), codec)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack into `buffer`. Raises UserError with the place where the archive cannot be unpacked further."""
        try:
            data = self.stream.read(len(buffer))
            if not data and not self.packed.tell():
                raise self.damages[0]("the file is empty")  # an archive of nothing is not
        except self.damages as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            why = " ".join(str(error).split())[:160]
            raise UserError(
                f"{self.file}: not readable as {self.codec} after {self.position:,} bytes of its text, damaged or cut off ({why}); copy or make it again"
            ) from None
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        """Let go of the file."""
        if not self.closed:
            self.stream.close()
            self.packed.close()
        super().close()


def read_jsonl(file: Path, column: str) -> Iterator[str | None]:
    """The value of one key of every line; empty lines are passed over."""
    with opened(file) as lines:
        for number, row in json_lines(lines, file, "repair or remove the line"):
            if not isinstance(row, dict) or column not in row:
                keys = f"; its keys are {', '.join(map(repr, list(row)[:8]))}" if isinstance(row, dict) else ""
                raise UserError(f"{file}: line {number}: has no key {column!r}{keys}; set column: to the key of the text")
            if row[column] is not None and not isinstance(row[column], str):
                raise UserError(f"{file}: line {number}: {column!r} is a {type(row[column]).__name__}; set column: to a key that holds text")
            yield row[column]


def read_txt(file: Path) -> Iterator[str | None]:
    """The file as one document, handed out in pieces when it is long."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    buffer = ""
    position = 0
    with opened(file) as content:
        while True:
            data = content.read(READ_BYTES)
            waiting = len(decoder.getstate()[0])
            try:
                buffer += decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}: invalid UTF-8 at byte {position - waiting + error.start}; convert the file to UTF-8 or remove it from the folder"
                ) from None
            position += len(data)
            if position == len(data):
                buffer = buffer.removeprefix("\ufeff")  # the mark some editors put first
            while len(buffer) > 2 * MAX_DOCUMENT_CHARS:
                end = cut_at(buffer, MAX_DOCUMENT_CHARS)
                yield buffer[:end]
                buffer = buffer[end:]
            if not data:
                break
    yield buffer
