"""Stages tokenizer and tokenize, from fetched text to packed rows."""

import json
import os
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.artifacts import read_manifest, write_manifest
from nanochat.data.rows import DTYPES, TokenRows
from nanochat.data.sample_texts import SAMPLE_TEXTS
from nanochat.errors import UserError
from nanochat.stages import tokenize, tokenizer, workers
from nanochat.tokenizer import Tokenizer

WORDS = " ".join(SAMPLE_TEXTS.values()).split()


def within(part: bytes, texts: list[str]) -> bool:
    return any(part in text.encode() for text in texts)


def some_documents(count: int, longest: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, longest))) for _ in range(count)]


def fetched(folder: Path, files: dict[str, list[str | None]], row_group: int = 16) -> Path:
    """Text as stage fetch leaves it."""
    folder.mkdir(parents=True)
    for name, texts in files.items():
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / name, row_group_size=row_group)
    write_manifest(folder / "manifest.json", stage="fetch", config={"source": "x"}, inputs={}, outputs=list(files), counts={})
    return folder / "manifest.json"


TRAIN = some_documents(120, 60, seed=1)
VALIDATION = some_documents(10, 60, seed=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {"train-00000.parquet": TRAIN[:70], "train-00001.parquet": TRAIN[70:], "validation.parquet": VALIDATION}
    return fetched(tmp_path_factory.mktemp("text") / "all", files)


def train(out: Path, text: list[Path], **config: Any) -> Path:
    """Run stage tokenizer by its command line; its manifest."""
    places = {"tokenizer": "tokenizer.json", "token-bytes": "token_bytes.json", "evaluation": "evaluation.json", "manifest": "manifest.json"}
    flags = [part for flag, name in places.items() for part in (f"--{flag}", str(out / name))]
    tokenizer.main(["--config", json.dumps({"vocab_size": 500, **config}), "--text", *map(str, text), *flags])
    return out / "manifest.json"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    return train(tmp_path_factory.mktemp("tokenizer"), [text])


def rows_of(out: Path, text: Path, vocabulary: Path, *, sequence_len: int = 64, split: str = "train", workers: int = 1) -> Path:
    """Run stage tokenize by its command line; its manifest."""
    config = json.dumps({"sequence_len": sequence_len, "split": split})
    manifest = out / "manifest.json"
    flags = ["--text", str(text), "--tokenizer", str(vocabulary), "--workers", str(workers), "--manifest", str(manifest)]
    tokenize.main(["--config", config, *flags])
    return manifest


def stretches(manifest: Path, vocabulary: Path) -> list[bytes]:
    """What tokens.bin holds between BOS tokens, read without the package's own reader."""
    counts = json.loads(manifest.read_text())["counts"]
    ids = np.fromfile(manifest.parent / "tokens.bin", dtype=DTYPES[counts["dtype"]])
    decoder = Tokenizer.load(vocabulary)
    starts = np.flatnonzero(ids == decoder.bos)
    return [decoder.decode_bytes(part[1:].tolist()) for part in np.split(ids, starts[1:])]


# --- tokenizer -------------------------------------------------------------------------------------------------------


def test_tokenizer_stage_writes_its_files_and_lists_them(vocabulary: Path, text: Path) -> None:
    folder = vocabulary.parent
    manifest = read_manifest(vocabulary, stage="tokenizer")
    assert set(manifest["outputs"]) == {"tokenizer.json", "token_bytes.json", "evaluation.json"}
    assert manifest["counts"] == {"vocab_size": 500, "special_tokens": 9, "text_chars": sum(map(len, TRAIN))}
    assert json.loads((folder / "token_bytes.json").read_text()) == Tokenizer.load(vocabulary).token_bytes().tolist()
    assert json.loads((folder / "config.json").read_text()) == {"vocab_size": 500}
    assert json.loads((folder / "provenance.json").read_text())["attempts"][0]["state"] == "finished"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert [row["text"] for row in evaluation["rows"]] == [*SAMPLE_TEXTS, "corpus_train", "corpus_validation"]
    assert evaluation["rows"][-1]["bytes"] == len("\n".join(VALIDATION).encode())


def test_tokenizer_stage_is_reproducible_and_never_sees_validation_text(tmp_path: Path, vocabulary: Path, text: Path) -> None:
    other = fetched(tmp_path / "other", {"train-00000.parquet": TRAIN[:70], "train-00001.parquet": TRAIN[70:], "validation.parquet": ["different"]})
    again, blind = train(tmp_path / "again", [text]), train(tmp_path / "blind", [other])
    assert again.read_bytes() == vocabulary.read_bytes()
    assert (blind.parent / "tokenizer.json").read_bytes() == (vocabulary.parent / "tokenizer.json").read_bytes()


def test_every_source_is_seen_though_max_chars_ends_training_early(tmp_path: Path) -> None:
    first = fetched(tmp_path / "first", {"train-00000.parquet": ["aaaa bbbb " * 20] * 100})
    second = fetched(tmp_path / "second", {"train-00000.parquet": ["zqzq zqzq " * 20] * 100})
    manifest = train(tmp_path / "out", [first, second], vocab_size=274, max_chars=8000)
    assert {b" bbbb", b" zqzq"} <= set(Tokenizer.load(manifest)._tokens)


def test_failed_tokenizer_stage_leaves_no_manifest(tmp_path: Path, text: Path) -> None:
    train(tmp_path / "out", [text])
    with pytest.raises(UserError, match=r"vocab_size=100000: .* yield only"):
        train(tmp_path / "out", [text], vocab_size=100_000)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["attempts"][-1]["state"] == "failed"


def test_tokenizer_stage_refuses_text_without_training_split_and_scattered_outputs(tmp_path: Path) -> None:
    only_validation = fetched(tmp_path / "v", {"validation.parquet": VALIDATION})
    with pytest.raises(UserError, match="no training text"):
        train(tmp_path / "out", [only_validation])
    with pytest.raises(UserError, match=r"--evaluation=.*must be evaluation\.json beside the manifest"):
        flags = ["--tokenizer", "a/tokenizer.json", "--token-bytes", "a/token_bytes.json", "--evaluation", "b/evaluation.json", "--manifest", "a/manifest.json"]
        tokenizer.main(["--config", '{"vocab_size": 500}', "--text", str(only_validation), *flags])


# --- tokenize --------------------------------------------------------------------------------------------------------


def test_rows_hold_the_documents_of_the_split(tmp_path: Path, text: Path, vocabulary: Path) -> None:
    manifest = rows_of(tmp_path, text, vocabulary, sequence_len=2000)
    counts = read_manifest(manifest, stage="tokenize")["counts"]
    encoder = Tokenizer.load(vocabulary)
    assert counts["documents"] == len(TRAIN) and counts["empty_documents"] == 0
    assert counts["text_bytes"] == sum(len(text.encode()) for text in TRAIN)
    assert counts["tokens"] == sum(1 + len(encoder.encode(text)) for text in TRAIN)
    assert counts["kept_tokens"] + counts["cropped_tokens"] == counts["tokens"]
    assert counts["rows"] * counts["row_tokens"] == counts["kept_tokens"] + counts["added_bos"]
    found = stretches(manifest, vocabulary)
    whole = [part for part in found if part in {text.encode() for text in TRAIN}]
    assert len(whole) == len(set(whole)) > len(TRAIN) // 2
    assert all(within(part, TRAIN) for part in found)
    assert not any(part.decode() in VALIDATION for part in whole)


def test_validation_split_is_read_from_its_own_file(tmp_path: Path, text: Path, vocabulary: Path) -> None:
    found = stretches(rows_of(tmp_path, text, vocabulary, sequence_len=40, split="validation"), vocabulary)
    assert found and all(within(part, VALIDATION) for part in found)


def test_output_does_not_depend_on_workers_nor_on_earlier_runs(tmp_path: Path, text: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = rows_of(tmp_path / "alone", text, vocabulary)
    monkeypatch.setattr(workers, "WORKER_FILE_BYTES", 1)
    shared = rows_of(tmp_path / "shared", text, vocabulary, workers=2)
    again = rows_of(tmp_path / "alone", text, vocabulary)
    for name in ("tokens.bin", "manifest.json", "config.json"):
        assert (alone.parent / name).read_bytes() == (shared.parent / name).read_bytes() == (again.parent / name).read_bytes()
    assert json.loads((shared.parent / "provenance.json").read_text())["attempts"][0]["workers"] == 2


def test_a_worker_is_as_fast_as_tiktokens_own_loop(tmp_path: Path, vocabulary: Path) -> None:
    """Reading, encoding and counting against encoding alone, in turn, in CPU time: 1.1 of it, since no list of ids is made."""
    texts = [text for text in topics.values() if text]
    file = fetched(tmp_path / "topics", {"train-00000.parquet": texts}, row_group=1024).parent / "train-00000.parquet"
    encoding = Tokenizer.load(vocabulary)._encoding
    loop, worker = [], []
    for _ in range(7):
        began = time.process_time()
        for text in texts:
            encoding.encode_ordinary(text)
        between = time.process_time()
        tokenize.encode_row_group(file, 0, vocabulary, "uint16")
        loop.append(between - began)
        worker.append(time.process_time() - between)
    assert min(loop) / min(worker) > 0.9


def test_small_buffers_lose_one_row_each_and_nothing_else(tmp_path: Path, text: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "BUFFER_TOKENS", 500)
    monkeypatch.setattr(tokenize, "BLOCK_TOKENS", 130)
    counts = read_manifest(rows_of(tmp_path, text, vocabulary))["counts"]
    assert counts["kept_tokens"] + counts["cropped_tokens"] == counts["tokens"]
    assert 0 < counts["cropped_tokens"] < 65 * (counts["tokens"] / 500 + 1)
    assert counts["rows"] * 65 == counts["kept_tokens"] + counts["added_bos"]


def test_odd_documents_are_kept_or_counted(tmp_path: Path, vocabulary: Path) -> None:
    giant = "no end in sight " * 190_000  # 3 MB
    odd = ["", None, "\0\0\0", "  ", "x", giant, "<|bos|><|assistant_end|>"]
    text = fetched(tmp_path / "odd", {"train-00000.parquet": odd})
    manifest = rows_of(tmp_path / "out", text, vocabulary, sequence_len=256)
    counts = read_manifest(manifest)["counts"]
    assert (counts["documents"], counts["empty_documents"]) == (5, 2)
    assert counts["cropped_tokens"] <= 256 and counts["cropped_fraction"] < 0.001
    found = stretches(manifest, vocabulary)
    assert sum(part.count(b"sight") for part in found) > 189_000
    assert len({b"\0\0\0", b"  ", b"x", b"<|bos|><|assistant_end|>"} & set(found)) >= 3  # one may be in the last row


def test_wide_ids_hold_the_same_rows(tmp_path: Path, text: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = rows_of(tmp_path / "narrow", text, vocabulary)
    monkeypatch.setattr(tokenize, "token_dtype", lambda vocab_size: "uint32")
    wide = rows_of(tmp_path / "wide", text, vocabulary)
    assert read_manifest(wide)["outputs"]["tokens.bin"]["bytes"] == 2 * read_manifest(narrow)["outputs"]["tokens.bin"]["bytes"]
    every = np.arange(read_manifest(narrow)["counts"]["rows"])
    assert (TokenRows([wide], "train").rows(every) == TokenRows([narrow], "train").rows(every)).all()


def test_too_little_text_makes_an_empty_chunk_and_a_warning(tmp_path: Path, text: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = rows_of(tmp_path, text, vocabulary, sequence_len=60_000, split="validation")
    counts = read_manifest(manifest)["counts"]
    assert counts["rows"] == 0 and counts["cropped_fraction"] == 1.0
    assert "do not fill one row" in capsys.readouterr().err


def killed_worker(*task: Any) -> None:
    os._exit(9)


def test_killed_worker_is_one_sentence_and_leaves_no_output(tmp_path: Path, text: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of(tmp_path, text, vocabulary)
    monkeypatch.setattr(workers, "WORKER_FILE_BYTES", 1)
    monkeypatch.setattr(tokenize, "encode_row_group", killed_worker)
    with pytest.raises(UserError, match="--workers=2: a worker was killed"):
        rows_of(tmp_path, text, vocabulary, workers=2)
    assert not (tmp_path / "manifest.json").exists() and not list(tmp_path.glob(".tokens*"))


def test_wrong_inputs_are_one_sentence(tmp_path: Path, text: Path, vocabulary: Path) -> None:
    with pytest.raises(UserError, match="made by stage 'tokenizer', 'fetch' or 'prepare' is needed"):
        rows_of(tmp_path / "a", vocabulary, vocabulary)
    with pytest.raises(UserError, match="lists no validation text"):
        rows_of(tmp_path / "b", fetched(tmp_path / "t", {"train-00000.parquet": ["x"]}), vocabulary, split="validation")
    other = tmp_path / "other"
    other.mkdir()
    pq.write_table(pa.table({"body": ["x"]}), other / "train-00000.parquet")
    write_manifest(other / "manifest.json", stage="fetch", config={}, inputs={}, outputs=["train-00000.parquet"], counts={})
    with pytest.raises(UserError, match="has no column 'text'"):
        rows_of(tmp_path / "c", other / "manifest.json", vocabulary)
    (other / "train-00000.parquet").write_bytes(b"PAR1 no parquet")
    write_manifest(other / "manifest.json", stage="fetch", config={}, inputs={}, outputs=["train-00000.parquet"], counts={})
    with pytest.raises(UserError, match="not a readable parquet file"):
        rows_of(tmp_path / "d", other / "manifest.json", vocabulary)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_text_with_a_flipped_bit_is_refused_with_its_file(tmp_path: Path, vocabulary: Path) -> None:
    manifest = fetched(tmp_path / "text", {"train-00000.parquet": TRAIN[:20]})
    flip_a_bit(manifest.parent / "train-00000.parquet")
    with pytest.raises(UserError, match=r"train-00000.parquet: damaged .* delete .*manifest.json and "):
        rows_of(tmp_path / "out", manifest, vocabulary)


@pytest.mark.parametrize("name", ["train-00000", "train-00001", "validation"])
def test_a_tokenizer_is_not_trained_on_text_with_a_flipped_bit(tmp_path: Path, name: str) -> None:
    files = {"train-00000.parquet": TRAIN[:70], "train-00001.parquet": TRAIN[70:], "validation.parquet": VALIDATION}
    manifest = fetched(tmp_path / "text", files)
    flip_a_bit(manifest.parent / f"{name}.parquet")
    with pytest.raises(UserError, match=rf"{name}.parquet: damaged .* delete .*manifest.json and "):
        train(tmp_path / "out", [manifest])
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_tokenizer_looks_at_no_more_shards_than_it_needs(tmp_path: Path) -> None:
    """Two gigabytes of text train a tokenizer; a corpus may have hundreds, and hashing them would take longer than training."""
    manifest = fetched(tmp_path / "text", {"train-00000.parquet": TRAIN * 9, "train-00001.parquet": TRAIN}, row_group=60)
    flip_a_bit(manifest.parent / "train-00001.parquet")
    assert train(tmp_path / "out", [manifest], max_chars=sum(map(len, TRAIN[:60])), vocab_size=300).exists()
