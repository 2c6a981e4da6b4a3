"""Prepared text in the workflow: judged, written, used by what follows; a changed filter reruns that, and a corpus without filters is left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from workspace import REPOSITORY, Workspace

from nanochat.artifacts import read_json, read_manifest, sha256_file

pytestmark = pytest.mark.workflow


def follows(corpus: str, *sources: str) -> set[str]:
    """What is made from the prepared text of a corpus, and that text."""
    chunks = [f"{source}.{split}" for source in sources for split in ("train", "validation")]
    prepared = {f"prepare {corpus}", *(f"prepare {corpus} {chunk}" for chunk in chunks)}
    return prepared | {f"tokenizer {corpus}", *(f"tokenize {corpus} {corpus} {chunk}" for chunk in chunks)}


def two_corpora(content: dict[str, Any]) -> None:
    """The miniature on other text, and a second run on text of its own that is prepared."""
    content["sources"] = {"letters": {"kind": "local", "path": "letters"}, "other": {"kind": "local", "path": "LICENSE.txt"}}
    content["corpora"] = {"tiny": {"sources": ["other"], "sequence_len": 64}, "own": {"sources": ["other", "letters"], "sequence_len": 64}}
    content["tokenizers"] = {name: {"corpus": name, "vocab_size": 300} for name in ("tiny", "own")}
    content["runs"]["tiny"]["evaluate"] = {"identity": {"limit": 4}}
    content["runs"]["own"] = {**content["runs"]["tiny"], "corpus": "own", "tokenizer": "own"}
    content["corpora"]["own"]["prepare"] = {"min_chars": 50}


def test_prepared_text_is_made_and_used_and_follows_its_filters(tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path / "workspace", REPOSITORY / "tests" / "tiny.yaml")
    licence = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    (workspace.path("LICENSE.txt")).write_text(licence * 200, encoding="utf-8")
    letters = [f"Letter {number}. {licence[number * 20 :]}" for number in range(40)] + ["Short."]
    lines = "".join(json.dumps({"text": letter}) + "\n" for letter in letters)
    workspace.path("letters").mkdir()
    (workspace.path("letters") / "all.jsonl").write_text(lines, encoding="utf-8")
    workspace.configure(two_corpora)
    assert "documents too short" in workspace.build("tokens")
    report = read_json(workspace.path("results/text/own/removed.json"))
    assert sum(counts.get("too_short", {"documents": 0})["documents"] for counts in report["splits"].values()) == 1
    chunk = workspace.path("results/text/own/letters.train/manifest.json")
    tokens = read_manifest(workspace.path("results/tokens/own.own/letters.train/manifest.json"), stage="tokenize")
    assert tokens["inputs"]["text"] == sha256_file(chunk)
    assert tokens["counts"]["documents"] == read_manifest(chunk, stage="prepare")["counts"]["rows"]["train"]
    stages = json.loads(workspace.nanochat("status", "--json").stdout)["stages"]
    shown = next(line for line in stages if (line["run"], line["stage"]) == ("own", "prepare"))
    assert shown["chunks"] == {"finished": 5}

    def prepare(corpus: str, **filters: Any) -> set[str]:
        workspace.configure(lambda content: content["corpora"][corpus].update(prepare=filters))
        return workspace.plan("tokens")

    assert prepare("own", min_chars=50, max_chars=None, near_similarity=0.8) == set(), "defaults, spelt out"
    assert prepare("own", min_chars=60) == follows("own", "other", "letters")
    workspace.configure(lambda content: content["corpora"]["own"].update(prepare={"min_chars": 50}))
    assert prepare("tiny", min_chars=9) == follows("tiny", "other"), "of the other corpus nothing, and nothing is fetched"
