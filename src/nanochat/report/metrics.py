"""Scores of a run side by side: display names, the order of the summary, and ChatCORE over named task lists."""

from collections.abc import Mapping
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
    limited: tuple[str, ...]  # tasks of which only a sample of the rows was used, in words


def title(task: str) -> str:
    """The name that people know a task by."""
    return TITLES.get(task, task)


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
    return Aggregate(sum(centered) / len(centered), "", tasks, tuple(limits(scores[task]) for task in tasks if limits(scores[task])))


def is_sampled(content: Mapping[str, Any]) -> bool:
    """Whether the config's limit left rows out; a split with fewer rows than the limit was used whole."""
    limit, n = content.get("limit"), content.get("n")
    return limit is not None and (n is None or n >= limit)


def limits(score: Score) -> str:
    """ "MMLU: a sample of 200 rows" where the config limited the rows; empty where all were used."""
    return f"{title(score.task)}: a sample of {score.content.get('n', score.content['limit']):,} rows" if is_sampled(score.content) else ""
