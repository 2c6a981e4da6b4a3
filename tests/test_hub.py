"""Fetching from the Hub: the real client against a server on the loopback that breaks in the ways the real one does."""

import json
from pathlib import Path

import pytest
from hub_client import WAITS, fetch, parquet, part_folder, refusal
from hub_server import COMMIT, Fault, hub_server


def question(n: int) -> dict:
    return {"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"}


@pytest.fixture
def hub():
    """Six shards, a few rows, and a file of the user's."""
    files = {f"shard_{n:05d}.parquet": parquet([{"text": f"document {n} {i}"} for i in range(20)]) for n in range(6)}
    files |= {"main/train/0000.parquet": parquet([question(1), question(2)]), "main/train/0001.parquet": parquet([question(3)])}
    files |= {f"sample/10BT/{n:03d}.parquet": parquet([{"id": n, "text": f"listed {n} {i}"} for i in range(10)]) for n in range(4)}
    files |= {"default/train/0000.parquet": parquet([{"body": f"row {i}"} for i in range(25)])}
    files |= {"main/test/0000.parquet": parquet([question(4)]), "lines.jsonl": b"".join(b'{"body": "line %d"}\n' % n for n in range(30))}
    with hub_server("owner/corpus", files) as server:
        yield server


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_a_chunk_of_shards_survives_every_fault_of_the_network(hub, tmp_path):
    hub.faults = {"GET shard_00002.parquet": [Fault("status"), Fault("damage")], "GET shard_00003.parquet": [Fault("reset", 0.0)]}
    part = {"source": "corpus", "part": "train-001", "chunk_shards": 2, "shards": 5}
    folder = part_folder(tmp_path, part)
    code, said = fetch(hub, tmp_path, part)
    assert code == 0, said
    assert manifest(folder)["counts"] == {"rows": {"train": 40}, "bytes": 500, "split_bytes": {"train": 500}}
    assert manifest(folder)["config"]["revision"] == COMMIT
    for n in (2, 3):
        assert (folder / f"train-{n:05d}.parquet").read_bytes() == hub.files[f"shard_{n:05d}.parquet"]
    assert hub.downloads.count("shard_00002.parquet") == 3
    assert hub.downloads.count("shard_00003.parquet") == 2
    assert "licence: ODC-By 1.0" in said

    (folder / "manifest.json").unlink()  # as Snakemake does: what is complete is not downloaded again
    code, said = fetch(hub, tmp_path, part)
    assert code == 0, said
    assert len(hub.downloads) == 5
    assert hub.revisions == ["main"], "the commit is locked at the first fetch"


def test_the_validation_shard_is_the_pinned_one(hub, tmp_path):
    part = {"source": "corpus", "part": "validation", "chunk_shards": 2}
    code, said = fetch(hub, tmp_path, part)
    assert code == 0, said
    folder = part_folder(tmp_path, part)
    assert (folder / "validation.parquet").read_bytes() == hub.files["shard_00005.parquet"]
    assert manifest(folder)["counts"]["rows"] == {"validation": 20}


def test_a_folder_of_listed_files_is_a_corpus_in_chunks_with_its_list_locked(hub, tmp_path):
    lock, texts = tmp_path / "sources.lock.json", {}
    for part in ("train-000", "train-001", "validation"):
        config = {"source": "listed", "part": part, "chunk_shards": 2, "shards": 3}
        code, said = fetch(hub, tmp_path, config)
        assert code == 0, said
        folder = part_folder(tmp_path, config)
        texts |= {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
        assert manifest(folder)["config"]["shards"] == [f"sample/10BT/{n:03d}.parquet" for n in {"train-000": (0, 1), "train-001": (2,)}.get(part, (3,))]
    files = {"train-00000.parquet": 0, "train-00001.parquet": 1, "train-00002.parquet": 2, "validation.parquet": 3}
    assert texts == {name: hub.files[f"sample/10BT/{n:03d}.parquet"] for name, n in files.items()}
    listings = [request.path for request in hub.requests if "/tree/" in request.path]
    assert len(listings) == len(hub.revisions) == 1, "asked once, for all chunks"
    assert json.loads(lock.read_text())["hub"] == {
        "owner/corpus": {"main": {"commit": COMMIT, "files": {"sample/10BT": [f"sample/10BT/{n:03d}.parquet" for n in range(4)]}}}
    }

    content = json.loads(lock.read_text())
    content["hub"]["owner/corpus"]["main"]["files"]["sample/10BT"] = ["sample/10BT/000.parquet", "sample/10BT/003.parquet"]
    lock.write_text(json.dumps(content))
    last = {"source": "listed", "part": "train-001", "chunk_shards": 2, "shards": 3}
    assert "owner/corpus has 1 training shards in sample/10BT; set shards: 1 in the corpus" in refusal(fetch(hub, tmp_path, last))
    content["hub"]["owner/corpus"]["main"]["files"]["sample/10BT"] = ["sample/10BT/000.parquet"]
    lock.write_text(json.dumps(content))
    assert "owner/corpus has no sample/10BT/003.parquet, the pinned validation shard" in refusal(fetch(hub, tmp_path, last))


def test_shards_of_two_commits_are_not_one_corpus(hub, tmp_path):
    part = {"source": "corpus", "part": "train-000", "chunk_shards": 2}
    assert fetch(hub, tmp_path, part)[0] == 0
    lock = tmp_path / "sources.lock.json"
    lock.write_text(lock.read_text().replace(COMMIT, "d" * 40))
    told = refusal(fetch(hub, tmp_path, part | {"part": "train-001"}))
    assert f"{part_folder(tmp_path, part)} is of commit {COMMIT}, the lock file says {'d' * 40}; delete {tmp_path / 'corpus'} to fetch all" in told


def test_rows_of_a_task_become_jsonl_and_other_rows_are_refused(hub, tmp_path):
    code, said = fetch(hub, tmp_path, {"source": "questions"})
    assert code == 0, said
    folder = part_folder(tmp_path, {"source": "questions"})
    assert [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()] == [question(1), question(2), question(3)]
    assert sorted(manifest(folder)["outputs"]) == ["test.jsonl", "train.jsonl"]
    assert not (folder / ".raw").exists()
    hub.files["main/test/0000.parquet"] = parquet([question(4), question(5)])
    assert "2 rows in split test, the registry promises 1" in refusal(fetch(hub, tmp_path, {"source": "questions"}))
    assert not (folder / "manifest.json").exists()


def test_files_of_a_users_dataset_become_a_corpus(hub, tmp_path):
    user = {"kind": "hf", "repo": "owner/corpus", "files": ["lines.jsonl"], "column": "body", "licence": "CC0"}
    code, said = fetch(hub, tmp_path, {"source": "mine", "user": user})
    assert code == 0, said
    assert sum(manifest(part_folder(tmp_path, {"source": "mine"}))["counts"]["rows"].values()) == 30


def test_a_users_whole_dataset_is_read_from_the_hubs_own_parquet_export(hub, tmp_path):
    user = {"kind": "hf", "repo": "owner/corpus", "column": "body", "licence": "CC0"}
    code, said = fetch(hub, tmp_path, {"source": "mine", "user": user})
    assert code == 0, said
    assert sum(manifest(part_folder(tmp_path, {"source": "mine"}))["counts"]["rows"].values()) == 25
    assert hub.revisions == ["refs/convert/parquet"]
    told = refusal(fetch(hub, tmp_path, {"source": "mine", "user": user | {"split": "test"}}))
    assert "owner/corpus/default/test: not on the Hub (no such file or folder" in told and told.endswith("; or name its files under sources.mine.files")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faults": {"GET shard_00000.parquet": [Fault("damage")] * 9}}, "arrived 2 times with a wrong hash, lastly "),
        ({"faults": {"GET shard_00000.parquet": [Fault("status")] * 9}}, f"failed after {WAITS + 1} attempts (HTTP 503 from "),
        ({"files": {}}, "not on the Hub (no such file"),
        ({"repo": "owner/other"}, "not on the Hub (no such repository"),
    ],
)
def test_what_does_not_come_right_is_refused_in_one_sentence_and_nothing_is_left(hub, tmp_path, change, message):
    for name, value in change.items():
        setattr(hub, name, value)
    part = {"source": "corpus", "part": "train-000", "chunk_shards": 1}
    assert message in refusal(fetch(hub, tmp_path, part))
    assert not [path for path in part_folder(tmp_path, part).iterdir() if path.suffix == ".parquet" or path.name == "manifest.json"]


def test_without_a_network_the_cure_is_said(hub, tmp_path):
    told = refusal(fetch(hub, tmp_path, {"source": "corpus", "part": "validation"}, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "check the network and run again" in told
