"""What an evaluation found, and the score file made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.eval.intervals import wilson
from nanochat.tasks.base import Task, answer_text

EXAMPLES = 5  # rows shown in a score file


@dataclass(frozen=True)
class Answered:
    """One row: the question, what the model said, whether that is right."""

    index: int
    question: str
    answer: str
    is_right: bool
    is_cut: bool  # the prompt did not fit and lost the beginning of its question


def score_of(answered: Sequence[Answered], task: Task) -> dict[str, Any]:
    """The part of a score file that depends on the answers."""
    correct = sum(row.is_right for row in answered)
    n = len(answered)
    return {
        "score": correct / n,
        "n": n,
        "correct": correct,
        "interval": list(wilson(correct, n)),
        "prompts_cut": sum(row.is_cut for row in answered),
        "examples": [
            {"question": row.question, "answer": row.answer, "reference": answer_text(task.conversation(row.index)), "right": row.is_right}
            for row in answered[:EXAMPLES]
        ],
    }


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
    nothing: dict[str, Any] = {"score": None, "n": 0, "correct": None, "interval": None, "prompts_cut": 0, "examples": []}
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
