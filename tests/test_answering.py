"""Evaluation that is killed, shared out, repeated or enlarged asks for nothing twice and ends with the same score."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import warm
from eval_workshop import Workshop, result_of
from task_rows import GSM, HUMAN, MC

from nanochat.artifacts import write_manifest
from nanochat.errors import UserError
from nanochat.eval import generative
from nanochat.eval.answering import key_of
from nanochat.stages import evaluate
from nanochat.tasks.arithmetic import Arithmetic
from nanochat.tasks.gsm8k import Gsm8k

SUMS = {"task": "arithmetic", "limit": 12, "max_new_tokens": 8, "batch_rows": 5}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def reused(content: dict[str, Any]) -> int:
    return int(content["provenance"]["answers_reused"])


def fetched(folder: Path, source: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder / "manifest.json", stage="fetch", config={"source": source}, inputs={}, outputs=["test.jsonl"], counts={})
    return folder / "manifest.json"


def items(workshop: Workshop, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workshop.folder / "scores" / f"{task}.items.jsonl").read_text().splitlines()]


def command(workshop: Workshop, config: dict[str, Any], *more: str) -> list[str]:
    return [sys.executable, "-m", "nanochat", "evaluate", *workshop.flags(config), *more]


def test_a_killed_evaluation_loses_no_answer_that_was_complete_and_ends_with_the_same_score(workshop: Workshop, tmp_path: Path) -> None:
    config = {**SUMS, "limit": 80, "max_new_tokens": 24, "batch_rows": 2}
    answers = workshop.folder / "scores" / "answers"
    victim = warm.Popen(command(workshop, config))
    deadline = time.monotonic() + 60
    while sum(file.read_bytes().count(b"\n") for file in answers.glob("*")) < 9:
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    (file,) = answers.glob("*")
    kept = file.read_bytes().count(b"\n") - 1  # the first line says whose they are
    assert 8 <= kept < 80 and not (workshop.folder / "scores" / "arithmetic.json").exists()
    ended = workshop.score(config)
    assert reused(ended) == kept
    (tmp_path / "other").mkdir()
    other = Workshop(tmp_path / "other")
    whole = other.score(config)
    assert reused(whole) == 0 and result_of(ended) == result_of(whole)
    assert items(workshop, "arithmetic") == items(other, "arithmetic")


def test_a_repeated_evaluation_asks_the_model_nothing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = workshop.score(SUMS)
    with monkeypatch.context() as patch:
        patch.setattr(generative, "Generation", None)  # whoever asks dies of it
        second = workshop.score(SUMS)
        with pytest.raises(TypeError):
            workshop.score({**SUMS, "limit": 13})
    assert reused(second) == 12 and result_of(second) == result_of(first)


@pytest.mark.parametrize(
    ("change", "known"), [({"limit": 20}, 12), ({"limit": 5}, 5), ({"seed": 1}, 0), ({"max_new_tokens": 9}, 0), ({"batch_rows": 1}, 12), ({"samples": 2}, 12)]
)  # fmt: skip
def test_what_is_asked_again_is_what_differs(change: dict[str, Any], known: int, workshop: Workshop) -> None:
    workshop.score(SUMS)
    assert reused(workshop.score({**SUMS, **change})) == known


def test_another_model_knows_nothing(workshop: Workshop, tmp_path: Path) -> None:
    workshop.score(SUMS)
    (tmp_path / "other").mkdir()
    other = Workshop(tmp_path / "other", seed=5)
    (workshop.folder / "scores").rename(other.folder / "scores")
    assert reused(other.score(SUMS)) == 0


def test_a_damaged_answer_is_asked_again(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    first = workshop.score(SUMS)
    (file,) = (workshop.folder / "scores" / "answers").glob("*")
    lines = file.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b'"right":', b'"rigth":')
    file.write_bytes(b"\n".join(lines))
    second = workshop.score(SUMS)
    assert reused(second) == 11 and result_of(second) == result_of(first)
    assert "1 damaged lines of arithmetic" in capfd.readouterr().err


@pytest.mark.parametrize("task", ["arithmetic", "bpb"])
def test_two_ranks_share_the_rows_and_find_the_same_score(task: str, workshop: Workshop) -> None:
    config = SUMS if task == "arithmetic" else {"task": "bpb", "batch_rows": 3}
    more = () if task == "arithmetic" else ("--tokens", str(workshop.tokens_manifest))
    done = warm.run(command(workshop, config, "--ranks", "2", *more), timeout=120)
    assert done.returncode == 0, done.stderr
    shares = [file.read_bytes().count(b"\n") - 1 for file in (workshop.folder / "scores" / "answers").glob("*.jsonl")]
    rows = 12 if task == "arithmetic" else 10
    assert shares == [rows // 2] * 2
    shared = json.loads((workshop.folder / "scores" / f"{task}.json").read_text())
    for file in (workshop.folder / "scores" / "answers").iterdir():
        file.unlink()
    assert result_of(workshop.score(config, *more)) == result_of(shared) and shared["n"] == rows


def test_a_killed_rank_ends_the_evaluation_and_its_answers_stay(workshop: Workshop) -> None:
    config = {**SUMS, "limit": 100, "max_new_tokens": 24, "batch_rows": 2}
    answers = workshop.folder / "scores" / "answers"
    supervisor = warm.Popen(command(workshop, config, "--ranks", "2"))
    deadline = time.monotonic() + 60
    while len(list(answers.glob("*.1.jsonl"))) < 1 or next(answers.glob("*.1.jsonl")).read_bytes().count(b"\n") < 5:
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    ranks = [int(pid) for pid in Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()]
    os.kill(ranks[1], signal.SIGKILL)
    assert supervisor.wait(timeout=60) == 75, "stopped, to be started again"
    kept = sum(file.read_bytes().count(b"\n") - 1 for file in answers.glob("*"))
    assert reused(workshop.score(config)) == kept > 0


def test_bits_per_byte_are_kept_row_by_row(workshop: Workshop) -> None:
    small = workshop.score({"task": "bpb", "limit": 4}, "--tokens", workshop.tokens_manifest)
    whole = workshop.score({"task": "bpb"}, "--tokens", workshop.tokens_manifest)
    assert (reused(small), reused(whole)) == (0, 4)
    rows = items(workshop, "bpb")
    assert [row["index"] for row in rows] == list(range(10))
    assert sum(row["score"] * row["bytes"] for row in rows) / sum(row["bytes"] for row in rows) == pytest.approx(whole["score"], rel=1e-12)


def test_items_name_the_row_and_the_answer(workshop: Workshop) -> None:
    content = workshop.score(SUMS)
    found = items(workshop, "arithmetic")
    assert content["items"] == "arithmetic.items.jsonl" and len({item["key"] for item in found}) == len(found) == 12
    assert sum(item["right"] for item in found) == content["correct"]
    assert [item["answer"] for item in found[:5]] == [example["answer"] for example in content["examples"]]


def test_samples_give_pass_at_k_and_leave_the_score_alone(workshop: Workshop, tmp_path: Path) -> None:
    plain = workshop.score(SUMS)
    content = workshop.score({**SUMS, "samples": 5, "temperature": 0.8, "top_k": 30})
    assert (content["score"], content["interval"], content["examples"]) == (plain["score"], plain["interval"], plain["examples"])
    assert list(content["metrics"]) == ["pass@1", "pass@2", "pass@4", "pass@5"]
    for metric in content["metrics"].values():
        assert metric["n"] == 12 and metric["interval"][0] <= metric["score"] <= metric["interval"][1]
    assert content["settings"]["samples"] == 5 and content["settings"]["samples_temperature"] == 0.8
    assert all(item["samples"] == 5 and 0 <= item["samples_right"] <= 5 for item in items(workshop, "arithmetic"))
    (tmp_path / "other").mkdir()
    again = Workshop(tmp_path / "other").score({**SUMS, "samples": 5, "temperature": 0.8, "top_k": 30, "batch_rows": 1})
    assert again["metrics"] == content["metrics"], "seeded, and of each row alone"


def test_samples_of_a_row_differ_and_do_not_repeat_those_of_another(workshop: Workshop) -> None:
    workshop.score({**SUMS, "samples": 4})
    stores = [file.read_text().splitlines() for file in (workshop.folder / "scores" / "answers").glob("*")]
    (rows,) = [[json.loads(line)["value"]["answers"] for line in lines[1:]] for lines in stores if '"samples"' in lines[0]]
    assert all(len(set(answers)) > 1 for answers in rows) and len({tuple(answers) for answers in rows}) == len(rows)


def test_parts_are_reported_by_subject_and_ways_of_grading_as_metrics(workshop: Workshop) -> None:
    rows = [{**MC, "question": f"What barks at {number}?", "subject": ["law", "art"][number % 3 > 0]} for number in range(9)]
    content = workshop.score({"task": "mmlu"}, "--data", fetched(workshop.folder / "mmlu", "mmlu", rows))
    assert [(part["name"], part["n"]) for part in content["parts"]] == [("art", 6), ("law", 3)]
    assert sum(part["score"] * part["n"] for part in content["parts"]) == pytest.approx(content["score"] * 9)
    given = fetched(workshop.folder / "gsm8k", "gsm8k", [GSM, {**GSM, "question": "And Ann?"}])
    content = workshop.score({"task": "gsm8k", "max_new_tokens": 4}, "--data", given)
    assert "parts" not in content  # the other way of grading stands among the metrics, once
    assert content["metrics"]["robust"]["n"] == 2 and content["version"] == Gsm8k.version


def test_logits_that_are_no_numbers_give_no_score(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = evaluate.load_model

    def broken(*arguments: Any, **keywords: Any) -> Any:
        model, description = loaded(*arguments, **keywords)
        model.head.weight.fill_(float("nan"))
        return model, description

    monkeypatch.setattr(evaluate, "load_model", broken)
    choices = fetched(workshop.folder / "arc", "arc_easy", [MC])
    for config, more in (
        (SUMS, ()),
        ({**SUMS, "samples": 2}, ()),
        ({"task": "arc_easy"}, ("--data", choices)),
        ({"task": "bpb"}, ("--tokens", workshop.tokens_manifest)),
    ):
        content = workshop.score(config, *more)
        assert content["score"] is None and "finite number" in content["unavailable"] and "items" not in content


def test_a_row_is_known_by_all_that_its_grade_depends_on(tmp_path: Path) -> None:
    from nanochat.tasks.humaneval import HumanEval

    (tmp_path / "a.jsonl").write_text(json.dumps(HUMAN) + "\n" + json.dumps({**HUMAN, "test": "def check(f): pass\n"}) + "\n")
    task = HumanEval("test", files=[tmp_path / "a.jsonl"])
    assert task.conversation(0) == task.conversation(1) and key_of(task, 0) != key_of(task, 1)
    sums = Arithmetic("test", rows=50)
    assert len({key_of(sums, index) for index in range(50)}) > 45


def test_a_model_without_its_tokenizer_is_one_sentence(workshop: Workshop) -> None:
    described = workshop.folder / "model" / "model.json"
    content = json.loads(described.read_text())
    del content["tokenizer_sha256"]
    described.write_text(json.dumps(content))
    write_manifest(workshop.model_manifest, stage="chat_sft", config={}, inputs={}, outputs=["model.safetensors", "model.json"], counts={})
    with pytest.raises(UserError, match="not the tokenizer that"):
        workshop.score(SUMS)
    workshop.tokenizer_manifest.unlink()
    with pytest.raises(UserError, match=r"tokenizer/manifest.json: no such file; run the stage that makes it"):
        workshop.score(SUMS)


def test_samples_of_letters_are_refused(workshop: Workshop) -> None:
    choices = fetched(workshop.folder / "arc", "arc_easy", [MC])
    with pytest.raises(UserError, match="samples=3: task arc_easy"):
        workshop.score({"task": "arc_easy", "samples": 3}, "--data", choices)
