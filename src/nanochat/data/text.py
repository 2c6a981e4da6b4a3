"""Documents to parquet shards: cleaned, exactly deduplicated, split, shuffled, in bounded memory and with the same bytes every time.

A keyed hash of the text decides everything: equal hashes are duplicates, the order of the hashes is the shuffle, and its
last 8 bytes decide whether a document is held out. So neither the order of the input nor the documents added later move
a document from training to validation or back.

Documents are first spilled to 64 files by hash; then one file after the other is sorted and written. Memory is the
largest of: one document, one spill file (1/64 of the text), one row group.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from nanochat.artifacts import atomic_path
from nanochat.errors import UserError

HASH_KEY = b"nanochat text 1"  # a new key would shuffle and split every corpus anew
HASH_BYTES = 24  # 16 order the documents, 8 decide the split
VALIDATION_FRACTION = 0.02
SPILL_FILES = 64
SHARD_BYTES = 50_000_000  # of text
ROW_GROUP_ROWS = 1024
ROW_GROUP_BYTES = 16_000_000  # of text: fewer rows where documents are long, to bound the memory of writer and reader
MAX_DOCUMENT_CHARS = 100_000  # longer ones are cut at a paragraph, so that one file of a book is many documents
SCHEMA_COLUMN = "text"


def clean(text: str) -> str:
    """Text without NUL characters and outer white space, lines ended by a line feed."""
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n").strip()


def cut_at(text: str, limit: int) -> int:
    """Where to cut a text longer than `limit`: after its last paragraph, line or word in the second half of the limit."""
    for mark in ("\n\n", "\n", " "):
        if (place := text.rfind(mark, limit // 2, limit)) >= 0:
            return place + len(mark)
    return limit


def pieces(text: str, limit: int = MAX_DOCUMENT_CHARS) -> Iterator[str]:
    """A document in pieces of at most `limit` characters."""
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        end = start + cut_at(window, limit)
        yield text[start:end]
        start = end
    yield text[start:]


def text_digest(data: bytes) -> bytes:
    """The keyed hash that orders, deduplicates and splits."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES, key=HASH_KEY).digest()


def draw(digest: bytes) -> int:
    """The part of the hash that decides the split: uniform in [0, 2**64)."""
    return int.from_bytes(digest[16:])


@dataclass
class Counts:
    """What happened to the documents."""

    documents: int = 0  # read
    invalid: int = 0  # empty after cleaning, or no valid Unicode
    duplicates: int = 0
    cut: int = 0  # longer than MAX_DOCUMENT_CHARS
    nul_characters: int = 0  # removed
    rows: dict[str, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    split_bytes: dict[str, int] = field(default_factory=lambda: {"train": 0, "validation": 0})

    def manifest(self) -> dict[str, Any]:
        """As the manifest states it."""
        return {
            "rows": self.rows,
            "bytes": sum(self.split_bytes.values()),
            "split_bytes": self.split_bytes,
            "documents_read": self.documents,
            "invalid_documents": self.invalid,
            "duplicates_removed": self.duplicates,
            "documents_cut": self.cut,
            "nul_characters_removed": self.nul_characters,
        }


def treatment(counts: Mapping[str, Any]) -> list[str]:
    """What was not taken as it stood, out of the counts of a manifest: a few words for each kind that occurred."""
    kinds = (
        ("invalid_documents", "left out, empty or no valid Unicode"),
        ("duplicates_removed", "left out, repeated"),
        ("documents_cut", f"longer than {MAX_DOCUMENT_CHARS:,} characters, cut into pieces"),
        ("nul_characters_removed", "NUL characters removed"),
    )
    return [f"{counts[key]:,} {what}" for key, what in kinds if counts.get(key)]


def write_corpus(documents: Iterable[str | None], folder: Path, name: str) -> tuple[list[str], Counts]:
    """Write train-00000.parquet ... and validation.parquet to `folder`; returns their names and the counts.

    A document that is None counts as invalid. `name` stands in errors. Raises UserError for fewer than two distinct documents.
    """
    spill = folder / ".spill"
    shutil.rmtree(spill, ignore_errors=True)  # of a killed fetch
    try:
        with Spill(spill) as spilled:
            for document in documents:
                spilled.add(document)
        counts, cutoff = spilled.counts, spilled.validation_cutoff(name)
        with contextlib.ExitStack() as stack:
            train = stack.enter_context(Shards(folder, "train-{:05d}.parquet"))
            validation = stack.enter_context(Shards(folder, "validation.parquet", shard_bytes=None))
            for digest, data in spilled.documents():
                split, shards = ("validation", validation) if draw(digest) < cutoff else ("train", train)
                shards.add(data)
                counts.rows[split] += 1
                counts.split_bytes[split] += len(data)
        return [*train.names, *validation.names], counts
    finally:
        shutil.rmtree(spill, ignore_errors=True)


class Spill:
    """Documents in files by the first bits of their hash; read back in the order of the hash, without duplicates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = Counts()
        self.lowest: bytes | None = None  # hashes of the documents with the lowest and highest draw
        self.highest: bytes | None = None
        self.files: list[BinaryIO] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self.files = [(self.folder / f"{index:02d}").open("wb") for index in range(SPILL_FILES)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self.files:
            if kind is None:
                file.close()
            else:  # the disk may be full: what cannot be flushed is no second error
                with contextlib.suppress(OSError):
                    file.close()

    def add(self, document: str | None) -> None:
        """Take in one document, in pieces if it is long."""
        self.counts.documents += 1
        if document is None:
            self.counts.invalid += 1
            return
        self.counts.nul_characters += document.count("\0")
        text = clean(document)
        self.counts.cut += len(text) > MAX_DOCUMENT_CHARS
        for piece in pieces(text):
            self._add_piece(piece.strip())

    def _add_piece(self, text: str) -> None:
        try:
            data = text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, out of a \u escape in JSON
            data = b""
        if not data:
            self.counts.invalid += 1
            return
        digest = text_digest(data)
        if self.lowest is None or draw(digest) < draw(self.lowest):
            self.lowest = digest
        if self.highest is None or draw(digest) > draw(self.highest):
            self.highest = digest
        file = self.files[digest[0] * SPILL_FILES // 256]
        file.write(digest + len(data).to_bytes(4) + data)

    def validation_cutoff(self, name: str) -> int:
        """Draws below it are held out: 2%, moved as little as needed to leave at least one document on either side."""
        if self.lowest is None or self.highest is None:
            raise UserError(f"{name}: no documents after cleaning ({self.counts.documents} read, {self.counts.invalid} empty or invalid); give it text")
        if self.lowest == self.highest:
            raise UserError(
                f"{name}: only one distinct document; a corpus needs two, one to hold out: split it into several files, lines or rows of one text each"
            )
        cutoff = int(VALIDATION_FRACTION * 2**64)
        return min(max(cutoff, draw(self.lowest) + 1), draw(self.highest))

    def documents(self) -> Iterator[tuple[bytes, bytes]]:
        """(hash, UTF-8) of every distinct document, in the order of the hashes."""
        for index in range(SPILL_FILES):
            previous = b""
            path = self.folder / f"{index:02d}"
            for digest, data in sorted(_records(path.read_bytes()), key=lambda record: record[0]):
                if digest == previous:
                    self.counts.duplicates += 1
                    continue
                previous = digest
                yield digest, data
            path.unlink()


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start < len(content):
        digest = content[start : start + HASH_BYTES]
        size = int.from_bytes(content[start + HASH_BYTES : start + HASH_BYTES + 4])
        start += HASH_BYTES + 4
        yield digest, content[start : start + size]
        start += size


class Shards:
    """Parquet files with one column, text; each takes its final name only when it is complete. Without documents there are none."""

    def __init__(self, folder: Path, pattern: str, *, shard_bytes: int | None = SHARD_BYTES, at_least_one: bool = False) -> None:
        self.folder, self.pattern, self.shard_bytes = folder, pattern, shard_bytes
        self.at_least_one = at_least_one  # a file without rows, where there are no documents
        self.names: list[str] = []
        self.rows: list[bytes] = []
        self.bytes = 0  # of text in this shard
        self.group_bytes = 0
        self.stack = contextlib.ExitStack()
        self.writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            if self.at_least_one and not self.names:
                self._open()
            self._close()
        else:
            self.stack.__exit__(kind, error, trace)

    def add(self, data: bytes) -> None:
        """Append one document (UTF-8)."""
        if self.writer is None:
            self._open()
        self.rows.append(data)
        self.bytes += len(data)
        self.group_bytes += len(data)
        if len(self.rows) == ROW_GROUP_ROWS or self.group_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if self.shard_bytes is not None and self.bytes >= self.shard_bytes:
            self._close()

    def _open(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = self.pattern.format(len(self.names))
        temporary = self.stack.enter_context(atomic_path(self.folder / name))
        # zstd 3 as the public corpora use; texts do not repeat and are never filtered on: no dictionary, no statistics
        schema = pa.schema([(SCHEMA_COLUMN, pa.string())])
        options = {"compression": "zstd", "compression_level": 3, "use_dictionary": False, "write_statistics": False, "store_schema": False}
        self.writer = self.stack.enter_context(pq.ParquetWriter(temporary, schema, **options))
        self.names.append(name)

    def _flush(self) -> None:
        import pyarrow as pa

        if self.rows:
            column = pa.array(self.rows, pa.binary()).cast(pa.string())
            self.writer.write_table(pa.table({SCHEMA_COLUMN: column}), row_group_size=ROW_GROUP_ROWS)
            self.rows, self.group_bytes = [], 0

    def _close(self) -> None:
        if self.writer is not None:
            self._flush()
            self.stack.close()
            self.stack, self.writer, self.bytes = contextlib.ExitStack(), None, 0


def squeeze(text: str) -> str:
    """Text with runs of spaces inside lines made one."""
    return re.sub(r"[ \t\xa0]+", " ", text)
