"""Items of evaluations that stand in a training text are counted, whatever their spacing, and no others; the text is read once, in any portions."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from workspace import Workspace

from nanochat.artifacts import write_manifest
from nanochat.data import overlap
from nanochat.data.ngrams import words_of
from nanochat.data.overlap import Items, Passage, found_in_texts, tables_of
from nanochat.errors import UserError
from nanochat.stages import contamination

DRAW = random.Random(0)
VOCABULARY = [f"w{number}" for number in range(400)]


def sentence(words: int) -> str:
    return " ".join(DRAW.choice(VOCABULARY) for _ in range(words))


def slowly(passages: list[Passage], texts: list[str], longest: int) -> set[int]:
    """Every run of every passage looked for in every text, as strings."""
    spaced = [" " + " ".join(words_of(text)) + " " for text in texts]
    held = set()
    for passage in passages:
        words = words_of(passage.text)
        length = min(len(words), longest)
        runs = [" " + " ".join(words[start : start + length]) + " " for start in range(len(words) - length + 1)] if len(words) >= passage.least else []
        if any(run in text for run in runs for text in spaced):
            held.add(passage.item)
    return held


@pytest.mark.parametrize("portion_chars", [1, 3_000, 10_000_000])
def test_overlap_is_what_a_slow_search_finds(portion_chars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "PORTION_CHARS", portion_chars)
    texts = [sentence(DRAW.randrange(5, 120)) for _ in range(60)]
    passages = []
    for item in range(80):
        words = sentence(DRAW.randrange(4, 40)).split()
        if item % 2:  # a piece of a text, long enough or a word too short, in other clothes
            source, length = DRAW.choice(texts).split(), DRAW.choice((5, 7, 8, 13, 14, 20, 30))
            start = DRAW.randrange(max(1, len(source) - length))
            words[3:3] = ["  ".join(source[start : start + length]).upper() + "!"]
        passages += [Passage(item, " ".join(words), 8), Passage(item, sentence(3), 8)]
    items = Items(passages, longest=13)
    found = found_in_texts(texts, tables_of(items.known))
    expected = slowly(passages, texts, 13)
    assert 3 < len(expected) < 60 and set(items.held(found).tolist()) == expected
    for item in expected:
        example = items.example(item, found)
        assert any(f" {example} " in f" {' '.join(words_of(text))} " for text in texts) and len(example.split()) in range(8, 14)


def test_an_item_that_two_tasks_share_counts_for_both_and_short_ones_are_not_told() -> None:
    shared = sentence(20)
    items = Items([Passage(0, shared, 8), Passage(5, shared, 8), Passage(7, "too short to tell", 8)], longest=13)
    assert items.told.tolist() == [0, 5]
    assert items.held(found_in_texts([f"x {shared} y"], tables_of(items.known))).tolist() == [0, 5]
    assert items.held(found_in_texts(["nothing"], tables_of(items.known))).tolist() == []
    assert Items([Passage(7, "too short", 8)], longest=13).told.tolist() == []
    assert found_in_texts(["anything"], tables_of(Items([], longest=13).known)) == {}


def text_manifest(folder: Path, train: list[str], validation: list[str]) -> Path:
    folder.mkdir()
    for name, texts in (("train-00000", train), ("validation", validation)):
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet", row_group_size=2)
    outputs = ["train-00000.parquet", "validation.parquet"]
    write_manifest(folder / "manifest.json", stage="fetch", config={"source": "own"}, inputs={}, outputs=outputs, counts={})
    return folder / "manifest.json"


def rows_manifest(folder: Path, source: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder / "manifest.json", stage="fetch", config={"source": source}, inputs={}, outputs=["test.jsonl"], counts={})
    return folder / "manifest.json"


def test_the_stage_writes_a_row_for_each_task(tmp_path: Path) -> None:
    known, unknown, choice = sentence(30), sentence(30), sentence(10)
    questions = [{"question": question, "answer": "#### 1"} for question in (known, unknown, "How many?")]
    letters = [{"question": unknown, "choices": [choice, known], "letters": ["A", "B"], "answer": "A"}]
    gsm8k, arc = rows_manifest(tmp_path / "gsm8k", "gsm8k", questions), rows_manifest(tmp_path / "arc", "arc_easy", letters)
    text = text_manifest(tmp_path / "text", ["a", "b", f"It said: {known.replace(' ', '  ').title()}.", choice], [unknown])
    config = {"evaluations": [{"task": "gsm8k"}, {"task": "arc_easy"}, {"task": "arithmetic"}]}
    flags = ["--config", json.dumps(config), "--text", str(text), "--evaluations", str(gsm8k), str(arc), "--table", str(tmp_path / "table.json")]
    contamination.main(flags)
    content = json.loads((tmp_path / "table.json").read_text())
    first, second, third = content["rows"]
    assert {key: first[key] for key in ("task", "split", "items", "items_with_overlap", "items_too_short")} == {
        "task": "gsm8k", "split": "test", "items": 3, "items_with_overlap": 1, "items_too_short": 1
    }  # fmt: skip
    assert first["share"] == pytest.approx(1 / 3) and first["examples"] == [{"index": 0, "words": " ".join(known.split()[:13])}]
    assert (second["items"], second["items_with_overlap"]) == (1, 1), "by its second choice; validation text does not count"
    assert third["items"] == 256 and third["items_with_overlap"] == 0
    again = tmp_path / "again.json"
    contamination.main([*flags[:-1], str(again)])
    assert again.read_bytes() == (tmp_path / "table.json").read_bytes()
    with pytest.raises(UserError, match="needs source gsm8k"):
        contamination.main(["--config", json.dumps(config), "--text", str(text), "--table", str(again)])
    with pytest.raises(UserError, match=r"task='chitchat': no task with items of its own that are graded; choose among .*core"):
        contamination.main(["--config", '{"evaluations": [{"task": "chitchat"}]}', "--text", str(text), "--table", str(again)])
    with pytest.raises(UserError, match="--text: give the training chunks of a corpus, or a mixture in --config, one of the two"):
        contamination.main(["--config", json.dumps(config), "--evaluations", str(gsm8k), str(arc), "--table", str(again)])


def test_a_new_evaluation_is_counted_alone_and_known_ones_ask_for_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = sentence(30)
    gsm8k = rows_manifest(tmp_path / "gsm8k", "gsm8k", [{"question": known, "answer": "#### 1"}])
    arc = rows_manifest(tmp_path / "arc", "arc_easy", [{"question": known, "choices": ["a", "b"], "letters": ["A", "B"], "answer": "A"}])
    text = text_manifest(tmp_path / "text", ["a", "b", f"It said: {known}.", "c"], [])

    def table(*tasks: str, text: Path = text) -> list[dict[str, Any]]:
        config = json.dumps({"evaluations": [{"task": task} for task in tasks]})
        contamination.main(["--config", config, "--text", str(text), "--evaluations", str(gsm8k), str(arc), "--table", str(tmp_path / "table.json")])
        rows: list[dict[str, Any]] = json.loads((tmp_path / "table.json").read_text())["rows"]
        return rows

    first = table("gsm8k")
    capsys.readouterr()
    both = table("arc_easy", "gsm8k")
    said = capsys.readouterr().err
    assert "1 of 2 evaluations were counted before" in said and "arc_easy: 1 of 1 items" in said and "gsm8k: 1 of 1 items" not in said
    assert both[1:] == first and both[0]["items_with_overlap"] == 1
    other = text_manifest(tmp_path / "other", ["nothing"], [])
    for folder in ("text", "other"):
        (tmp_path / folder / "train-00000.parquet").unlink()
    assert table("gsm8k", "arc_easy") == both[::-1]
    with pytest.raises(UserError, match=r"train-00000.parquet"):
        table("gsm8k", text=other)
    for file in (tmp_path / "rows").iterdir():
        file.write_text("{")
    with pytest.raises(UserError, match=r"train-00000.parquet"):
        table("gsm8k")


def test_a_mixture_is_read_as_it_is_trained_on(tmp_path: Path) -> None:
    inside, outside = sentence(30), sentence(30)
    gsm8k = rows_manifest(tmp_path / "gsm8k", "gsm8k", [{"question": question, "answer": "#### 1"} for question in (inside, outside, f"{inside} {outside}")])
    said = [{"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": f"{text} and so on"}]} for text in (inside, outside)]
    chats = rows_manifest(tmp_path / "chats", "smoltalk_hf", [])
    (tmp_path / "chats" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    write_manifest(chats, stage="fetch", config={"source": "smoltalk_hf"}, inputs={}, outputs=["train.jsonl"], counts={})

    def held(**item: Any) -> int:
        config = json.dumps({"evaluations": [{"task": "gsm8k"}], "mixture": [{"task": "smoltalk", **item}]})
        contamination.main(["--config", config, "--data", str(chats), "--evaluations", str(gsm8k), "--table", str(tmp_path / "table.json")])
        found: int = json.loads((tmp_path / "table.json").read_text())["rows"][0]["items_with_overlap"]
        return found

    assert held() == 3
    assert held(rows=1) == 2, "the sample that is trained on, not the whole source"


def test_numbers_are_the_same_in_another_process(tmp_path: Path) -> None:
    text = sentence(50)
    items = Items([Passage(0, text, 8)], longest=13)
    items.save(tmp_path / "runs.npz")
    pq.write_table(pa.table({"text": ["x", text]}), tmp_path / "t.parquet")
    found = overlap.found_in(tmp_path / "t.parquet", 0, tmp_path / "runs.npz")
    assert np.array_equal(found[13], np.arange(38)) and items.held(found).tolist() == [0]


@pytest.mark.workflow
def test_the_table_is_made_where_the_report_asks_for_it(workspace: Workspace) -> None:
    assert not any("contamination" in job for job in workspace.plan())
    workspace.configure(lambda experiment: experiment.update(report={"contamination": True}))
    assert workspace.plan() == {"contamination tiny", "contamination tiny.mid_train", "contamination tiny.chat_sft", "report"}
    tables = [f"results/contamination/{text}.json" for text in ("tiny", "tiny.mid_train")]
    workspace.build(*tables)
    for table in tables:
        assert [row["task"] for row in json.loads(workspace.path(table).read_text(encoding="utf-8"))["rows"]] == ["arithmetic", "identity"]
    workspace.configure(lambda experiment: experiment["runs"]["tiny"]["evaluate"].update(long_arithmetic={"limit": 4, "phases": ["sft"]}))
    assert workspace.plan() == {
        "evaluate tiny sft long_arithmetic", "contamination tiny", "contamination tiny.mid_train", "contamination tiny.chat_sft", "report"
    }  # fmt: skip
