"""`nanochat compare`: a table of paired tests from the items of two models, and one sentence for what is not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli import main
from nanochat.stages.compare import p_text, table

Scored = dict[str, Any]


def put(results: Path, model: str, task: str, rows: list[dict[str, Any]], /, **changes: Any) -> None:
    run, phase = model.split("/")
    folder = results / run / "scores" / phase
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task}.items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    content = {"task": task, "score": 0.5, "unavailable": None, "version": "1", "items": f"{task}.items.jsonl", **changes}
    (folder / f"{task}.json").write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def right(pattern: str) -> list[dict[str, Any]]:
    return [{"index": place, "key": str(place), "right": mark == "1", "answer": "x"} for place, mark in enumerate(pattern)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    put(tmp_path, "d4/mid", "gsm8k", right("0" * 12 + "1" * 8))
    put(tmp_path, "d4/sft", "gsm8k", right("1" * 10 + "0" * 2 + "1" * 8))
    put(tmp_path, "d4/mid", "arithmetic", right("0101"))
    put(tmp_path, "d4/sft", "arithmetic", right("1001"))
    for model, gain in (("d4/mid", 0.0), ("d4/sft", 0.05)):
        put(tmp_path, model, "bpb", [{"index": i, "key": str(i), "score": 1.0 + i / 10 + gain, "bytes": 100} for i in range(20)])
    return tmp_path


def compared(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, list[str]]:
    main(["compare", *map(str, arguments)])
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split() for line in lines[3:]}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_each_task_has_a_line_with_its_verdict(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = compared(capsys, "d4/mid", "d4/sft", "--results", results)
    assert list(rows) == ["arithmetic", "bpb", "gsm8k"]
    assert rows["gsm8k"][1:5] == ["20", "0.4000", "0.9000", "+0.5000"] and rows["gsm8k"][-4:] == ["0.002", "second", "is", "better"]
    assert rows["arithmetic"][-4:] == ["1.000", "no", "difference", "shown"]
    assert rows["bpb"][4] == "+0.0500" and rows["bpb"][-3:] == ["first", "is", "better"], "lower is better"
    turned = compared(capsys, "d4/sft", "d4/mid", "--results", results, "--task", "gsm8k")
    assert list(turned) == ["gsm8k"] and turned["gsm8k"][-3:] == ["first", "is", "better"]


def test_what_cannot_be_compared_says_why(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(results, "d4/sft", "gsm8k", right("1"), version="2")
    put(results, "d4/sft", "arithmetic", right("1"), items="absent")
    put(results, "d4/sft", "bpb", [], score=None, unavailable="the loss is not a finite number")
    rows = compared(capsys, "d4/mid", "d4/sft", "--results", results)
    assert "versions 1 and 2" in " ".join(rows["gsm8k"]) and "no items" in " ".join(rows["arithmetic"])
    assert "not available: the loss" in " ".join(rows["bpb"])
    put(results, "d4/sft", "gsm8k", [{**item, "key": "other" + item["key"]} for item in right("11")])
    assert "no row in common" in " ".join(compared(capsys, "d4/mid", "d4/sft", "--results", results)["gsm8k"])


def test_a_mean_over_tasks_is_not_tested_row_by_row(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("d4/mid", "d4/sft"):
        put(results, model, "core", right("1101"))
    row = " ".join(compared(capsys, "d4/mid", "d4/sft", "--results", results)["core"])
    assert "not available: a mean over tasks" in row and "0.75" not in row


def test_what_is_not_there_is_named_with_what_is(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--results", results)
    assert "no scores of run 'd5' in" in (said := refused(capsys, "d5/sft", "d4/sft", *given)) and "choose one of d4" in said
    assert "choose one of d4/mid, d4/sft" in refused(capsys, "d4/sft", "d4/rl", *given)
    assert "choose one of d4/mid, d4/sft" in refused(capsys, "d4", "d4/sft", *given)
    assert "choose one of arithmetic, bpb, gsm8k" in refused(capsys, "d4/mid", "d4/sft", "--task", "mmlu", *given)
    assert "nothing was evaluated" in refused(capsys, "d4/mid", "d4/sft", "--results", results / "none")
    (results / "d4/scores/sft/gsm8k.items.jsonl").write_text('{"index": 0, "ri\n')
    assert "not JSON lines" in refused(capsys, "d4/mid", "d4/sft", "--task", "gsm8k", *given)
    (results / "d4/scores/sft/gsm8k.items.jsonl").unlink()
    assert "missing" in refused(capsys, "d4/mid", "d4/sft", "--task", "gsm8k", *given)


def test_small_chances_are_not_written_as_zero() -> None:
    assert [p_text(p) for p in (1e-9, 0.001, 0.0494, 1.0)] == ["<0.001", "0.001", "0.049", "1.000"]
    assert table([("a", "b", ""), ("long", "1", "x")]) == "a     b\nlong  1  x"
