"""Packed text of a user's own: .gz and .zst behind .jsonl and .txt are read as what they hold, and a damaged archive is refused with its place."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from test_fetch import fetch_local

from nanochat.data.readers_local import READ_BYTES, kind_of, local_files, read_documents
from nanochat.errors import UserError

LINES = "".join(json.dumps({"text": f"Document {number}, {number * number} words, \u00e4\u00f6\u00fc."}) + "\n" for number in range(30_000)).encode()
TEXT = ("A line of a long text, \u20ac 7.\n" * 60_000).encode()


def zstd(data: bytes) -> bytes:
    """Packed as a stream, as the program of this name does it."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}
each_packer = pytest.mark.parametrize("suffix", PACKERS)


@each_packer
@pytest.mark.parametrize(("name", "content"), [("a.jsonl", LINES), ("a.txt", TEXT), ("empty.txt", b"")])
def test_a_packed_file_is_read_as_what_it_holds(tmp_path: Path, suffix: str, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"{name}{suffix}").write_bytes(PACKERS[suffix](content))
    plain, packed = (list(read_documents(tmp_path / file, "text")) for file in (name, f"{name}{suffix}"))
    assert packed == plain and plain


@each_packer
def test_archives_behind_one_another_are_one_text(tmp_path: Path, suffix: str) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](LINES[:half]) + PACKERS[suffix](LINES[half:]))
    assert len(list(read_documents(tmp_path / f"a.jsonl{suffix}", "text"))) == 30_000


@each_packer
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_an_archive_that_was_cut_is_refused_with_its_place(tmp_path: Path, suffix: str, share: float) -> None:
    packed = PACKERS[suffix](LINES)
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(packed[: int(share * len(packed))])
    with pytest.raises(
        UserError, match=r"a\.jsonl\.\w+: not readable as \w+ after [\d,]+ bytes of its text, damaged or cut off \(.+\); copy or make it again"
    ) as refused:
        list(read_documents(file, "text"))
    assert "\n" not in str(refused.value)


@each_packer
def test_an_archive_that_is_none_or_was_damaged_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(b"A text that only has the name of an archive." * 9)
    with pytest.raises(UserError, match="after 0 bytes of its text"):
        list(read_documents(file, "text"))
    packed = bytearray(PACKERS[suffix](TEXT))
    packed[len(packed) // 2] ^= 255
    file.write_bytes(packed)
    with pytest.raises(UserError, match="damaged or cut off"):
        list(read_documents(file, "text"))


@each_packer
def test_a_line_that_is_wrong_is_named_as_in_a_plain_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](b'{"text": "good"}\n{"text": 7}\n'))
    with pytest.raises(UserError, match=r"a\.jsonl\.\w+: line 2: 'text' is a int"):
        list(read_documents(tmp_path / f"a.jsonl{suffix}", "text"))


def test_kinds_are_told_by_their_names(tmp_path: Path) -> None:
    kinds = {"a.jsonl": ".jsonl", "a.TXT.GZ": ".txt", "a.b.jsonl.zst": ".jsonl", "a.parquet": ".parquet"}
    others = ("a.parquet.gz", "a.gz", "gz", "a.csv.gz", "a.tar.gz", "a.json", "a.txt.bz2")
    assert {name: kind_of(Path(name)) for name in (*kinds, *others)} == {**kinds, **dict.fromkeys(others)}
    for name in (*kinds, *others):
        (tmp_path / name).write_bytes(b"")
    assert {file.name for file in local_files(str(tmp_path), "mine")} == set(kinds)


@each_packer
def test_a_packed_file_is_unpacked_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(PACKERS[suffix](b"word " * 10_000_000))
    chars, in_arrow = 0, 0
    tracemalloc.start()
    try:
        for piece in read_documents(tmp_path / f"a.txt{suffix}", "text"):
            chars, in_arrow = chars + len(piece or ""), max(in_arrow, pa.total_allocated_bytes())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chars == 50_000_000
    assert peak + in_arrow < 16 * READ_BYTES


def test_a_corpus_of_packed_files_is_the_one_of_the_plain_ones(tmp_path: Path) -> None:
    for name, content in (("plain/a.jsonl", LINES), ("plain/b.txt", TEXT), ("packed/a.jsonl.gz", gzip.compress(LINES)), ("packed/b.txt.zst", zstd(TEXT))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    plain, packed = (fetch_local(tmp_path / name, tmp_path / f"{name}-out") for name in ("plain", "packed"))
    assert plain["outputs"] == packed["outputs"] and plain["counts"] == packed["counts"]
