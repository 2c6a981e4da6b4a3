"""`nanochat compare`: a table of paired tests from the items of two models, and one sentence for what is not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.artifacts import read_json
from nanochat.cli import main
from nanochat.eval.intervals import interval_of_mean, newcombe
from nanochat.eval.paired import Paired, compare_scores, mean_over
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


def scored(results: Path, model: str, task: str) -> tuple[Path, Any]:
    path = results / model.replace("/", "/scores/") / f"{task}.json"
    return path, read_json(path)


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
    assert "versions 1 and 2" in " ".join(rows["gsm8k"]) and "no answers to single rows" in " ".join(rows["arithmetic"])
    assert "not available: the loss" in " ".join(rows["bpb"])
    put(results, "d4/sft", "gsm8k", [{**item, "key": "other" + item["key"]} for item in right("11")])
    assert "no row in common" in " ".join(compared(capsys, "d4/mid", "d4/sft", "--results", results)["gsm8k"])


Rights = dict[str, str]


def put_core(results: Path, model: str, rights: Rights, *, limit: object = "all", shots: int = 10) -> None:
    """Right and wrong answers of tasks of CORE; arc_easy has twice as many rows, which count no more for it."""
    baselines = {"arc_easy": 0.25, "squad": 0.0, "boolq": 0.62, "coqa": 0.0}
    rows = [{**row, "key": f"{label}/f00d/{limit}/{row['index']}"} for label, pattern in rights.items() for row in right(pattern)]
    tasks = [{"label": label, "type": "multiple_choice", "shots": shots if label == "boolq" else 0, "baseline": baselines[label]} for label in rights]
    put(results, model, "core", rows, tasks=tasks)


def test_core_is_compared_task_by_task(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of arc_easy 4 of 40 more: 0.1 / 0.75; of squad 10 of 20: 0.5; their mean. boolq and coqa are not the same for both."""
    put_core(results, "d4/mid", {"arc_easy": "1" * 10 + "0" * 30, "squad": "0" * 20, "boolq": "1010", "coqa": "10"})
    put_core(results, "d4/sft", {"arc_easy": "1" * 14 + "0" * 26, "squad": "0" * 10 + "1" * 10, "boolq": "1111"}, shots=0)
    main(["compare", "d4/mid", "d4/sft", "--results", str(results), "--task", "core"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:5] == ["CORE-2", "60", "0.0000", f"{(0.1 / 0.75 + 0.5) / 2:.4f}", f"{(0.1 / 0.75 + 0.5) / 2:+.4f}"]
    assert lines[3].split()[-4:] == ["<0.001", "second", "is", "better"]
    assert lines[5] == "core: left out, shots 10 and 0: boolq; left out, asked of one model only: coqa"
    found = compare_scores(*(scored(results, model, "core") for model in ("d4/mid", "d4/sft")))
    assert isinstance(found, Paired) and found.interval == pytest.approx(
        interval_of_mean([0.1 / 0.75, 0.5], [tuple(limit / 0.75 for limit in newcombe(10, 0, 4, 26)), newcombe(0, 0, 10, 10)])
    )
    put_core(results, "d4/sft", {"arc_easy": "1" * 40}, limit=40)
    row = " ".join(compared(capsys, "d4/mid", "d4/sft", "--results", results)["core"])
    assert "no task was asked alike (left out, other rows or another limit: arc_easy; left out, asked of one model only: squad, boolq, coqa)" in row
    items = results / "d4/scores/sft/core.items.jsonl"
    items.write_text("")
    row = " ".join(compared(capsys, "d4/mid", "d4/sft", "--results", results)["core"])
    assert "(left out, its answers to single rows are gone: arc_easy; " in row


def test_the_tests_of_core_are_right_as_often_as_they_say() -> None:
    """Of equal models 1 in 20 is found better; of models that differ, 19 in 20 intervals hold the difference: within what 300 simulations can tell."""
    draws, baselines = np.random.RandomState(0), {"arc_easy": 0.25, "boolq": 0.62, "squad": 0.0, "coqa": 0.0}
    rates = {"arc_easy": (0.3, 0.45), "boolq": (0.6, 0.6), "squad": (0.01, 0.04), "coqa": (0.0, 0.05)}
    truth = sum((second - first) / (1 - baselines[label]) for label, (first, second) in rates.items()) / 4
    found_better = held = 0
    for _ in range(300):
        hard = {label: draws.uniform(size=40) for label in rates}  # the same rows are hard for both
        noise = {label: draws.uniform(size=(2, 40)) < 0.3 for label in rates}
        again = {label: np.where(noise[label], draws.uniform(size=(2, 40)), hard[label]) for label in rates}
        equal = {label: [(bool(a < rates[label][0]), bool(b < rates[label][0])) for a, b in again[label].T] for label in rates}
        apart = {label: [(bool(a < rates[label][0]), bool(b < rates[label][1])) for a, b in again[label].T] for label in rates}
        found_better += mean_over(equal, baselines).is_significant
        low, high = mean_over(apart, baselines).interval
        held += low <= truth <= high
    assert found_better / 300 <= 0.08 and 0.92 <= held / 300 <= 1.0


def test_what_is_not_the_same_for_both_is_said(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(results, "d4/mid", "gsm8k", right("0" * 12 + "1" * 8), settings={"form": "text", "max_new_tokens": 64, "split": "test"})
    put(results, "d4/sft", "gsm8k", right("1" * 12), settings={"form": "chat", "max_new_tokens": 64, "split": "test"})
    main(["compare", "d4/mid", "d4/sft", "--results", str(results)])
    assert capsys.readouterr().out.splitlines()[-2:] == ["gsm8k: 12 rows in common of 20 and 12", "gsm8k: other form: text and chat"]


def test_what_is_not_there_is_named_with_what_is(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--results", results)
    assert "no scores of run 'd5' in" in (said := refused(capsys, "d5/sft", "d4/sft", *given)) and "choose one of d4" in said
    assert "choose one of d4/mid, d4/sft" in refused(capsys, "d4/sft", "d4/rl", *given)
    assert "choose one of d4/mid, d4/sft" in refused(capsys, "d4", "d4/sft", *given)
    assert "choose one of arithmetic, bpb, gsm8k" in refused(capsys, "d4/mid", "d4/sft", "--task", "mmlu", *given)
    assert "nothing was evaluated" in refused(capsys, "d4/mid", "d4/sft", "--results", results / "none")
    (results / "d4/scores/sft/gsm8k.items.jsonl").write_text('{"index": 0, "ri\n')
    assert "gsm8k.items.jsonl: not the answers to a task" in refused(capsys, "d4/mid", "d4/sft", "--task", "gsm8k", *given)
    (results / "d4/scores/sft/gsm8k.items.jsonl").unlink()
    row = " ".join(compared(capsys, "d4/mid", "d4/sft", *given)["gsm8k"])
    assert "gsm8k.items.jsonl is gone, though the score names it; delete" in row and "sft/gsm8k.json and evaluate it again" in row
    (results / "d4/scores/sft/gsm8k.json").write_text("[]")
    assert "gsm8k.json: not a score" in refused(capsys, "d4/mid", "d4/sft", "--task", "gsm8k", *given)


def test_small_chances_are_not_written_as_zero() -> None:
    assert [p_text(p) for p in (1e-9, 0.001, 0.0494, 1.0)] == ["<0.001", "0.001", "0.049", "1.000"]
    assert table([("a", "b", ""), ("long", "1", "x")]) == "a     b\nlong  1  x"
