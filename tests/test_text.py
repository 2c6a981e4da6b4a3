"""Documents to shards: what is held out, what is dropped, and the same bytes whatever the order of the input."""

import itertools
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.data import text
from nanochat.errors import UserError

DOCUMENTS = st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=60)


def split_of(folder: Path, split: str) -> list[str]:
    """Documents of a split, in the order of the files."""
    return [document for file in sorted(folder.glob(f"{split}*.parquet")) for document in pq.read_table(file)["text"].to_pylist()]


def written(documents: list[str], folder: Path) -> tuple[set[str], set[str]]:
    """Training and validation documents after write_corpus."""
    for file in folder.glob("*.parquet"):
        file.unlink()
    text.write_corpus(documents, folder, "corpus")
    return set(split_of(folder, "train")), set(split_of(folder, "validation"))


def distinct(documents: list[str]) -> set[str]:
    """The slow way to clean and deduplicate."""
    return {"\n".join("\n".join(d.replace("\0", "").split("\r\n")).split("\r")).strip() for d in documents} - {""}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS, DOCUMENTS)
def test_no_document_moves_between_splits_when_documents_are_added(tmp_path, documents, more):
    threshold = int(text.VALIDATION_FRACTION * 2**64)
    held_out = [n for n in range(200) if text.draw(text.text_digest(f"held out {n}".encode())) < threshold]
    documents = [*documents, f"held out {held_out[0]}", "surely two"]  # with one below the threshold nothing needs to be moved
    train, validation = written(documents, tmp_path)
    wider_train, wider_validation = written([*more, *documents, *more], tmp_path)
    assert train <= wider_train
    assert validation <= wider_validation
    assert f"held out {held_out[0]}" in validation


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS)
def test_every_distinct_document_is_in_exactly_one_split(tmp_path, documents):
    expected = distinct(documents)
    if len(expected) < 2:
        with pytest.raises(UserError, match=r"no documents after cleaning|only one distinct document"):
            text.write_corpus(documents, tmp_path, "corpus")
        return
    train, validation = written(documents, tmp_path)
    assert train | validation == expected
    assert not train & validation
    assert train
    assert validation


def test_two_percent_are_held_out(tmp_path):
    train, validation = written([f"document {n}" for n in range(20_000)], tmp_path)
    assert len(train) + len(validation) == 20_000
    assert 340 < len(validation) < 460  # 400 expected, standard deviation 20


def test_order_of_the_input_does_not_change_a_byte_and_the_order_written_is_a_shuffle(tmp_path):
    documents = [f"document {n}" for n in range(3000)]
    for name, order in (("a", documents), ("b", documents[::-1]), ("c", [*documents, *documents[:10]])):
        (tmp_path / name).mkdir()
        text.write_corpus(order, tmp_path / name, "corpus")
    files = [(tmp_path / name / "train-00000.parquet").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    shuffled = split_of(tmp_path / "a", "train")
    numbers = [int(document.split()[1]) for document in shuffled]
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(numbers))
    assert neighbours < 10


def test_what_was_dropped_is_counted(tmp_path):
    documents = ["a\0b\0", "ab", " ab\r\n", "", " \n", None, "half a pair \ud800", "other", "line\r\nline\rline"]
    _, counts = text.write_corpus(documents, tmp_path, "corpus")
    assert set(split_of(tmp_path, "train")) | set(split_of(tmp_path, "validation")) == {"ab", "other", "line\nline\nline"}
    assert (counts.documents, counts.duplicates, counts.invalid, counts.nul_characters) == (9, 2, 4, 2)
    assert sum(counts.rows.values()) == 3
    assert sum(counts.split_bytes.values()) == len("ab") + len("other") + len("line\nline\nline")


def test_nothing_left_after_cleaning_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^corpus: no documents after cleaning \(2 read, 2 empty or invalid\)"):
        text.write_corpus(["", "\0"], tmp_path, "corpus")
    with pytest.raises(UserError, match=r"^corpus: only one distinct document"):
        text.write_corpus(["same", "same "], tmp_path, "corpus")
    assert not list(tmp_path.iterdir())


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \n", max_size=300), st.integers(2, 50))
def test_pieces_are_short_and_join_to_the_text(content, limit):
    parts = list(text.pieces(content, limit))
    assert "".join(parts) == content
    assert all(len(part) <= limit for part in parts)


def test_a_long_text_is_cut_between_paragraphs():
    paragraphs = ["x" * 30, "y" * 30, "z" * 30]
    assert [part.strip() for part in text.pieces("\n\n".join(paragraphs), 40)] == paragraphs


def test_shards_roll_over_and_row_groups_hold_1024_documents(tmp_path):
    documents = [f"{n:05d}".encode() for n in range(3000)]
    with text.Shards(tmp_path, "train-{:05d}.parquet", shard_bytes=2500 * 5) as shards:
        for document in documents:
            shards.add(document)
    files = [pq.ParquetFile(tmp_path / name) for name in shards.names]
    assert [[file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in files] == [[1024, 1024, 452], [500]]
    assert [row for name in shards.names for row in pq.read_table(tmp_path / name)["text"].to_pylist()] == [d.decode() for d in documents]
    assert files[0].schema_arrow.names == ["text"]
    assert files[0].metadata.row_group(0).column(0).compression == "ZSTD"


def test_an_error_in_the_middle_leaves_no_file(tmp_path):
    def documents():
        yield from (f"document {n}" for n in range(100))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        text.write_corpus(documents(), tmp_path, "corpus")
    assert not list(tmp_path.iterdir())


BIG = """
import sys
from pathlib import Path
import pyarrow.parquet
from nanochat.data.readers_local import read_documents
from nanochat.data.text import write_corpus

def peak_kib():  # of this program; ru_maxrss would count the parent's memory before exec
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

before = peak_kib()
names, counts = write_corpus(read_documents(Path(sys.argv[1]), "text"), Path(sys.argv[2]), "corpus")
print((peak_kib() - before) // 1024, sum(counts.rows.values()), sum(counts.split_bytes.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(("suffix", "most_mib"), [(".txt", 220), (".jsonl", 280)])
def test_a_document_of_50_megabytes_is_cut_in_bounded_memory(tmp_path, suffix, most_mib):
    """A line of .jsonl must be in memory as bytes and as text; a .txt file is streamed."""
    source = tmp_path / f"big{suffix}"
    with source.open("w", encoding="utf-8") as file:
        file.write('{"text": "' if suffix == ".jsonl" else "")
        for n in range(500_000):
            file.write(f"line {n:08d} of a long document, written out by hand to make up hundred characters, nearly so, and then a break.".ljust(99))
            file.write("\\n" if suffix == ".jsonl" else "\n")
        file.write('"}' if suffix == ".jsonl" else "")
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run([sys.executable, "-c", BIG, str(source), str(out)], capture_output=True, text=True, check=True)
    mib, rows, size = map(int, done.stdout.split())
    assert 490 <= rows <= 1100
    assert size > 49_000_000
    assert mib < most_mib, mib
    lines = sum(document.count("line 0") for split in ("train", "validation") for document in split_of(out, split))
    assert lines == 500_000
