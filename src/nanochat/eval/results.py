"""What an evaluation found, and the score file made of it."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.eval.bpb import TextLoss
from nanochat.eval.intervals import bootstrap, wilson, wilson_of_mean
from nanochat.tasks.base import Task, answer_text
from nanochat.tasks.draw import pass_at

EXAMPLES = 5  # rows shown in a score file
NOT_FINITE = "the model's logits are no finite numbers (NaN or infinity), so its answers mean nothing"


class NotAvailableError(Exception):
    """A score that cannot be computed; the message is its reason."""


@dataclass(frozen=True)
class Answered:
    """One row: the question, what the model said, whether that is right."""

    index: int
    question: str
    answer: str
    is_right: bool
    is_cut: bool  # the prompt did not fit and lost the beginning of its question
    judged: Mapping[str, Any] = field(default_factory=dict)  # what else the task says of it


@dataclass(frozen=True)
class Sampled:
    """One row that was answered several times, with chance."""

    index: int
    answers: list[str]
    are_right: list[bool]
    judged: list[dict[str, Any]] = field(default_factory=list)  # what else the task says of each answer, if anything


def proportion(rights: Iterable[bool]) -> dict[str, Any]:
    """Share of right answers, number of answers, Wilson's interval."""
    found = list(rights)
    correct = sum(found)
    return {"score": correct / len(found), "n": len(found), "interval": list(wilson(correct, len(found)))}


def score_of(answered: Sequence[Answered], task: Task) -> dict[str, Any]:
    """The part of a score file that depends on the answers."""
    whole = proportion(row.is_right for row in answered)
    return {
        **whole,
        "correct": sum(row.is_right for row in answered),
        "interval_method": "wilson",
        "prompts_cut": sum(row.is_cut for row in answered),
        "examples": [
            {"question": row.question, "answer": row.answer, "reference": answer_text(task.conversation(row.index)), "right": row.is_right}
            for row in answered[:EXAMPLES]
        ],
        **parts_of(answered, task),
    }


def ended_programs(judged: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How the programs among some answers ended, and how many so."""
    return dict(sorted(Counter(each["ended"] for each in judged if "ended" in each).items()))


def held_protections(judged: Iterable[Mapping[str, Any]]) -> set[str] | None:
    """What held whenever one of these programs ran, on whichever machine that was; None if none ran."""
    held = [set(each["held"]) for each in judged if each.get("held")]  # empty: the program did not even start
    return set.intersection(*held) if held else None


def parts_of(answered: Sequence[Answered], task: Task) -> dict[str, Any]:
    """`parts` by subject, `metrics` of the other ways of grading; nothing where a task has neither."""
    subjects: dict[str, list[bool]] = {}
    ways: dict[str, list[bool]] = {}
    for row in answered:
        if subject := task.subject(row.index):
            subjects.setdefault(subject, []).append(row.is_right)
        for name, is_right in task.other_grades(row.index, row.answer).items():
            ways.setdefault(name, []).append(is_right)
    parts = [{"name": name, **proportion(subjects[name])} for name in sorted(subjects)]
    found: dict[str, Any] = {"parts": parts} if parts else {}
    return found | ({"metrics": {name: proportion(rights) for name, rights in ways.items()}} if ways else {})


def pass_metrics(sampled: Sequence[Sampled]) -> dict[str, Any]:
    """pass@1, pass@2, pass@4 ... and pass@n, each the mean of the rows' own."""
    n = len(sampled[0].are_right)
    ks = sorted({n, *(1 << power for power in range(n.bit_length()) if 1 << power <= n)})
    found = {}
    for k in ks:
        values = [pass_at(k, n, sum(row.are_right)) for row in sampled]
        interval = list(wilson_of_mean(values, n // k))  # n answers hold so many draws of k that share none
        found[f"pass@{k}"] = {"score": math.fsum(values) / len(values), "n": len(values), "interval": interval, "interval_method": "wilson"}
    return found


def score_of_rows(losses: Sequence[TextLoss], *, seed: int) -> dict[str, Any]:
    """Bits per byte of some rows, with a bootstrap interval: rows weigh as much as they have bytes."""
    rows = [(loss.bpb, float(loss.text_bytes)) for loss in losses]
    total = sum(losses, TextLoss())
    values, weights = [bpb for bpb, _ in rows if bpb is not None], [size for bpb, size in rows if bpb is not None]
    interval = list(bootstrap(values, weights, seed=seed)) if values else None
    return {"score": total.bpb, "n": len(losses), "interval": interval, "interval_method": "bootstrap"}


def items_of(answered: Sequence[Answered], key_of: Callable[[int], str], sampled: Sequence[Sampled] = ()) -> list[dict[str, Any]]:
    """One line of the items file for each row; `key` names the row's content, so that two models are compared on the same rows."""
    rights = {row.index: row.are_right for row in sampled}
    return [
        {"index": row.index, "key": key_of(row.index), "right": row.is_right, "answer": row.answer}
        | ({"samples_right": sum(rights[row.index]), "samples": len(rights[row.index])} if row.index in rights else {})
        for row in answered
    ]


def score_file(
    result: Mapping[str, Any],
    *,
    task: str,
    version: str,
    phase: str,
    baseline: float | None,
    seed: int,
    limit: int | None,
    settings: Mapping[str, Any],
    model_sha256: str,
    seconds: float,
    unavailable: str | None = None,
) -> dict[str, Any]:
    """The whole score file. A score that could not be computed is null, with the reason, never 0."""
    nothing: dict[str, Any] = {"score": None, "n": 0, "correct": None, "interval": None, "interval_method": None, "prompts_cut": 0, "examples": []}
    return {
        **nothing,
        **({} if unavailable else result),
        "task": task,
        "version": version,
        "phase": phase,
        "baseline": baseline,
        "unavailable": unavailable,
        "seed": seed,
        "limit": limit,
        "settings": dict(settings),
        "model_sha256": model_sha256,
        "seconds": round(seconds, 3),
    }
