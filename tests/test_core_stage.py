"""Stage evaluate on task core: the score file, the items, and what is known when it is asked again."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from eval_workshop import Workshop, result_of
from test_core import fetched, source_files

from nanochat.artifacts import read_json, write_manifest
from nanochat.errors import UserError
from nanochat.model.gpt import GPT
from nanochat.model.weights import load_model, save_weights
from nanochat.stages import contamination

LABELS = ("jeopardy", "arc_easy", "copa", "winograd")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, phase="base")


def read_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each forward pass."""
    passes: list[int] = []
    hidden = GPT.hidden
    monkeypatch.setattr(GPT, "hidden", lambda self, *given, **named: (passes.append(1), hidden(self, *given, **named))[1])
    return passes


def test_core_is_scored_named_and_known_when_it_is_asked_again(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fetched(tmp_path / "data", source_files(*LABELS))
    passes = read_by(monkeypatch)
    some = workshop.score({"task": "core", "source": "core_wheels", "tasks": ["copa", "jeopardy"]}, "--data", data, "--tokens")
    assert (some["name"], some["n"], [task["label"] for task in some["tasks"]]) == ("CORE-2", 24, ["jeopardy", "copa"])
    asked = len(passes)
    content = workshop.score({"task": "core", "source": "core_wheels"}, "--data", data, "--tokens")
    assert content["tasks"][0] | {"seconds": 0} == some["tasks"][0] | {"seconds": 0} and content["provenance"]["answers_reused"] == 24
    assert 0 < asked < len(passes)
    assert (content["name"], content["n"], content["phase"], content["baseline"], content["version"]) == ("CORE-4", 48, "base", 0.0, "1")
    assert content["score"] == pytest.approx(sum(task["centered"] for task in content["tasks"]) / 4)
    assert content["interval"][0] <= content["score"] <= content["interval"][1] and len(content["missing"]) == 18
    assert content["settings"]["sources"] == ["core_wheels"] and content["settings"]["context"] == 96 and content["prompts_cut"] > 0
    items = [json.loads(line) for line in (workshop.folder / "scores" / content["items"]).read_text().splitlines()]
    assert len({item["key"] for item in items}) == len(items) == 48
    for task in content["tasks"]:
        rights = [item["right"] for item in items if item["key"].startswith(f"{task['label']}/")]
        assert sum(rights) == round(task["accuracy"] * 12) and len(rights) == 12
    asked = len(passes)
    again = workshop.score({"task": "core", "source": "core_wheels"}, "--data", data, "--tokens")
    assert len(passes) == asked, "nothing is asked again"
    again["tasks"] = [task | {"seconds": 0} for task in again["tasks"]]
    content["tasks"] = [task | {"seconds": 0} for task in content["tasks"]]
    assert result_of(again) == result_of(content)
    workshop.score({"task": "core", "source": "core_wheels", "limit": 11}, "--data", data, "--tokens")
    assert len(passes) > asked, "a limit shows other examples"


def test_a_model_of_nan_has_no_core_and_a_missing_source_is_named(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data: none given; task core needs a manifest of core_bundle or core_wheels"):
        workshop.score({"task": "core"}, "--data", "--tokens")
    with pytest.raises(UserError, match="source=core_bundle: is made of core_bundle, but --data gives core_wheels"):
        workshop.score({"task": "core", "source": "core_bundle"}, "--data", fetched(tmp_path / "data", source_files(*LABELS)), "--tokens")
    with pytest.raises(UserError, match="limit=10: task jeopardy shows 10 other rows"):
        workshop.score({"task": "core", "limit": 10}, "--data", fetched(tmp_path / "data", source_files(*LABELS)), "--tokens")
    model, _ = load_model(workshop.model_manifest, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        model.head.weight[:] = torch.nan
    folder = workshop.model_manifest.parent
    save_weights(model, folder / "model.safetensors")
    manifest: dict[str, Any] = read_json(workshop.model_manifest)
    write_manifest(workshop.model_manifest, stage=manifest["stage"], config={}, inputs={}, outputs=["model.safetensors", "model.json"], counts={})
    content = workshop.score({"task": "core"}, "--data", tmp_path / "data" / "manifest.json", "--tokens")
    assert content["score"] is None and content["unavailable"].startswith("jeopardy: ") and "not finite numbers" in content["unavailable"]


def test_rows_that_stand_in_the_training_text_are_counted_for_each_task(tmp_path: Path) -> None:
    data = fetched(tmp_path / "data", source_files("copa", "squad"))
    rows = [json.loads(line) for line in (data.parent / "squad.jsonl").read_text().splitlines()]
    longest = max(rows, key=lambda row: len(row["context"].split()))
    text = tmp_path / "text"
    text.mkdir()
    pq.write_table(pa.table({"text": [f"Somebody wrote: {longest['context'].upper()} and more."]}), text / "train-00000.parquet")
    write_manifest(text / "manifest.json", stage="fetch", config={"source": "mine"}, inputs={}, outputs=["train-00000.parquet"], counts={})
    asked = {"evaluations": [{"task": "core", "split": label, "source": "core_wheels"} for label in ("copa", "squad")], "run_words": 8}
    flags = ["--config", json.dumps(asked), "--text", text / "manifest.json", "--evaluations", data, "--table", tmp_path / "table.json"]
    contamination.main([str(flag) for flag in flags])
    table = {row["split"]: row for row in read_json(tmp_path / "table.json")["rows"]}
    assert table["squad"]["items_with_overlap"] >= 1 and table["squad"]["examples"][0]["index"] == rows.index(longest)
    assert (table["copa"]["items"], table["copa"]["items_with_overlap"]) == (12, 0)
    flags[1] = json.dumps({"evaluations": [{"task": "core", "split": "boolq", "source": "core_wheels"}]})
    with pytest.raises(UserError, match="task core, boolq: is in none of the manifests given; pass that of core_wheels"):
        contamination.main([str(flag) for flag in flags])
