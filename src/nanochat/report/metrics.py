"""Scores of a run side by side: display names, the order of the summary, and ChatCORE over named task lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.eval.chatcore import CHATCORE as CHATCORE  # its users take it from here
from nanochat.eval.chatcore import chatcore as centred_mean
from nanochat.report.inputs import Score

TITLES = {
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "spelling_bee": "SpellingBee",
    "simple_spelling": "SimpleSpelling",
    "arithmetic": "Arithmetic",
    "long_arithmetic": "LongArithmetic",
    "identity": "Identity",
    "core": "CORE",
    "bpb": "bits per byte",
}
LOWER_IS_BETTER = frozenset({"bpb"})


@dataclass(frozen=True)
class Aggregate:
    """A mean over a named task list; `value` is None where `why` says what is missing."""

    value: float | None
    interval: tuple[float, float] | None
    why: str
    tasks: tuple[str, ...]
    limited: tuple[str, ...]  # tasks of which only a sample of the rows was used


def title(task: str) -> str:
    """The name that people know a task by."""
    return TITLES.get(task, task)


def name_of(score: Score) -> str:
    """What a score is called: CORE over fewer tasks than all carries their number, and is another metric."""
    return str(score.content.get("name") or title(score.task)) if score.task == "core" else title(score.task)


def metric_rows(scores: Mapping[tuple[str, str], Score]) -> list[tuple[str, dict[str, Score]]]:
    """(place, task) -> score, where a place is a phase or a run, as rows of a table: (name, place -> score)."""
    rows: dict[str, dict[str, Score]] = {}
    for task in ordered({task for _, task in scores}):
        for (place, of), score in scores.items():
            if of == task:
                rows.setdefault(name_of(score), {})[place] = score
    return list(rows.items())


def ordered(tasks: "list[str] | set[str]") -> list[str]:
    """bits per byte and CORE first, the others by name: the order of the summary table."""
    first = [task for task in ("bpb", "core") if task in tasks]
    return first + sorted((task for task in set(tasks) if task not in first), key=lambda task: title(task).lower())


def chatcore(name: str, scores: Mapping[str, Score]) -> Aggregate:
    """Mean of the centred scores over the task list `name`; not available unless every task has a score."""
    tasks = CHATCORE[name]
    found = centred_mean(name, {task: (score.value, score.interval) for task, score in scores.items()})
    if found.value is None:
        why = found.why if len(found.lacking) == len(tasks) else f"no score of {', '.join(map(title, found.lacking))}"
        return Aggregate(None, None, why, tasks, ())
    return Aggregate(found.value, found.interval, "", tasks, tuple(task for task in tasks if is_sampled(scores[task].content)))


def centered_mean(values: Mapping[str, float], name: str) -> float | None:
    """ChatCORE of bare scores, as published ones are; None unless every task has one."""
    return centred_mean(name, {task: (value, None) for task, value in values.items()}).value


def is_sampled(content: Mapping[str, Any]) -> bool:
    """Whether the config's limit left rows out; a split with fewer rows than the limit was used whole. The limit of CORE is for each of its tasks."""
    limit = content.get("limit")
    sizes = [task.get("n") for task in content.get("tasks") or [content]]
    return limit is not None and any(n is None or n >= limit for n in sizes)
