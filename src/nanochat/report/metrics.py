"""Scores of a run side by side: display names, the order of the summary, and ChatCORE over named task lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.report.inputs import Score

CHATCORE = {
    "ChatCORE-5": ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval"),
    "ChatCORE-6": ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling_bee"),
}
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
    """Mean of (score - baseline) / (1 - baseline) over the task list `name`; not available unless every task has a score."""
    tasks = CHATCORE[name]
    lacking = [title(task) for task in tasks if task not in scores or scores[task].value is None]
    if len(lacking) == len(tasks):
        return Aggregate(None, "none of its tasks was scored", tasks, ())
    if lacking:
        return Aggregate(None, f"no score of {', '.join(lacking)}", tasks, ())
    centered = []
    for task in tasks:
        value, baseline = scores[task].value, scores[task].baseline
        if value is None or baseline is None:
            return Aggregate(None, f"{title(task)} has no baseline", tasks, ())
        centered.append((value - baseline) / (1 - baseline))
    return Aggregate(sum(centered) / len(centered), "", tasks, tuple(task for task in tasks if is_sampled(scores[task].content)))


GUESSING = {"arc_easy": 0.25, "arc_challenge": 0.25, "mmlu": 0.25}  # of the tasks of ChatCORE; 0 elsewhere


def centered_mean(values: Mapping[str, float], tasks: Sequence[str]) -> float | None:
    """ChatCORE of bare scores, as published ones are; None unless every task has one."""
    if not all(task in values for task in tasks):
        return None
    return sum((values[task] - GUESSING.get(task, 0.0)) / (1 - GUESSING.get(task, 0.0)) for task in tasks) / len(tasks)


def is_sampled(content: Mapping[str, Any]) -> bool:
    """Whether the config's limit left rows out; a split with fewer rows than the limit was used whole. The limit of CORE is for each of its tasks."""
    limit = content.get("limit")
    sizes = [task.get("n") for task in content.get("tasks") or [content]]
    return limit is not None and any(n is None or n >= limit for n in sizes)
