"""Fetching from the Hub: the real client against a server on the loopback that breaks in the ways the real one does."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import COMMIT, hub_server

# a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported
CHILD = """
import sys
from nanochat.data import hub, sources
hub.RETRY_WAITS_S = (0.05, 0.05, 0.05)
sources.SOURCES["corpus"] = sources._shards("corpus", "owner/corpus", 6, "ODC-By 1.0", "a corpus in shards")
sources.SOURCES["questions"] = sources._hub_rows("questions", "owner/corpus", "main", {"train": 3, "test": 1}, "MIT", "questions", reader="gsm8k")
from nanochat.cli import main
main(["fetch", *sys.argv[1:]])
"""


def parquet(rows: list[dict]) -> bytes:
    """Rows as a parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def question(n: int) -> dict:
    return {"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"}


@pytest.fixture
def hub():
    """Six shards, a few rows, and a file of the user's."""
    files = {f"shard_{n:05d}.parquet": parquet([{"text": f"document {n} {i}"} for i in range(20)]) for n in range(6)}
    files |= {"main/train/0000.parquet": parquet([question(1), question(2)]), "main/train/0001.parquet": parquet([question(3)])}
    files |= {"main/test/0000.parquet": parquet([question(4)]), "lines.jsonl": b"".join(b'{"body": "line %d"}\n' % n for n in range(30))}
    with hub_server("owner/corpus", files) as server:
        yield server


def run(hub, tmp_path: Path, config: dict, *, endpoint: str | None = None) -> tuple[subprocess.CompletedProcess, Path]:
    """One fetch; returns the process and the folder of the part."""
    folder = tmp_path / config["source"] / config.get("part", "all")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint or hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"}
    arguments = ["--config", json.dumps(config), "--manifest", str(folder / "manifest.json")]
    return subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, env=environment, timeout=120), folder


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_a_chunk_of_shards_survives_every_fault_of_the_network(hub, tmp_path):
    hub.faults = {"shard_00002.parquet": ["503", "damage"], "shard_00003.parquet": ["reset"]}
    done, folder = run(hub, tmp_path, {"source": "corpus", "part": "train-001", "chunk_shards": 2, "shards": 5})
    assert done.returncode == 0, done.stderr
    assert manifest(folder)["counts"] == {"rows": {"train": 40}, "bytes": 500, "split_bytes": {"train": 500}}
    assert manifest(folder)["config"]["revision"] == COMMIT
    for n in (2, 3):
        assert (folder / f"train-{n:05d}.parquet").read_bytes() == hub.files[f"shard_{n:05d}.parquet"]
    assert hub.downloads.count("shard_00002.parquet") == 3
    assert hub.downloads.count("shard_00003.parquet") == 2
    assert "licence: ODC-By 1.0" in done.stderr

    (folder / "manifest.json").unlink()  # as Snakemake does: what is complete is not downloaded again
    done, _ = run(hub, tmp_path, {"source": "corpus", "part": "train-001", "chunk_shards": 2, "shards": 5})
    assert done.returncode == 0, done.stderr
    assert len(hub.downloads) == 5
    assert hub.revisions == ["main"], "the commit is locked at the first fetch"


def test_the_validation_shard_is_the_pinned_one(hub, tmp_path):
    done, folder = run(hub, tmp_path, {"source": "corpus", "part": "validation", "chunk_shards": 2})
    assert done.returncode == 0, done.stderr
    assert (folder / "validation.parquet").read_bytes() == hub.files["shard_00005.parquet"]
    assert manifest(folder)["counts"]["rows"] == {"validation": 20}


def test_rows_of_a_task_become_jsonl_and_other_rows_are_refused(hub, tmp_path):
    done, folder = run(hub, tmp_path, {"source": "questions"})
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()] == [question(1), question(2), question(3)]
    assert sorted(manifest(folder)["outputs"]) == ["test.jsonl", "train.jsonl"]
    assert not (folder / ".raw").exists()
    hub.files["main/test/0000.parquet"] = parquet([question(4), question(5)])
    done, folder = run(hub, tmp_path, {"source": "questions"})
    assert done.returncode == 2
    assert "2 rows in split test, the registry promises 1" in done.stderr
    assert not (folder / "manifest.json").exists()


def test_files_of_a_users_dataset_become_a_corpus(hub, tmp_path):
    user = {"kind": "hf", "repo": "owner/corpus", "files": ["lines.jsonl"], "column": "body", "licence": "CC0"}
    done, folder = run(hub, tmp_path, {"source": "mine", "user": user})
    assert done.returncode == 0, done.stderr
    assert sum(manifest(folder)["counts"]["rows"].values()) == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faults": {"shard_00000.parquet": ["damage"] * 9}}, "failed after 4 attempts (hash "),
        ({"files": {}}, "not on the Hub ("),
        ({"repo": "owner/other"}, "not on the Hub ("),
    ],
)
def test_what_does_not_come_right_is_refused_in_one_sentence_and_nothing_is_left(hub, tmp_path, change, message):
    for name, value in change.items():
        setattr(hub, name, value)
    done, folder = run(hub, tmp_path, {"source": "corpus", "part": "train-000", "chunk_shards": 1})
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nanochat: error:")]
    assert message in line
    assert "Traceback" not in done.stderr
    assert not [path for path in folder.iterdir() if "parquet" in path.name or path.name == "manifest.json"]


def test_without_a_network_the_cure_is_said(hub, tmp_path):
    done, _ = run(hub, tmp_path, {"source": "corpus", "part": "validation"}, endpoint="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "check the network and run again" in done.stderr
