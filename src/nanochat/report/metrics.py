"""Scores of a run side by side: display names, the order of the summary, and ChatCORE."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nanochat.eval.chatcore import CHATCORE, ChatCore
from nanochat.eval.chatcore import chatcore as chatcore_of
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


def chatcore(name: str, scores: Mapping[str, Score]) -> ChatCore:
    """ChatCORE over the task list `name`, with its interval; what is missing is told by the names that people know."""
    mean = chatcore_of(name, {task: (score.value, score.interval) for task, score in scores.items()})
    lacking = [title(task) for task in CHATCORE[name] if task not in scores or scores[task].value is None]
    return mean if mean.value is not None or len(lacking) == len(CHATCORE[name]) else replace(mean, why=f"no score of {', '.join(lacking)}")


def is_sampled(content: Mapping[str, Any]) -> bool:
    """Whether the config's limit left rows out; a split with fewer rows than the limit was used whole. The limit of CORE is for each of its tasks."""
    limit = content.get("limit")
    sizes = [task.get("n") for task in content.get("tasks") or [content]]
    return limit is not None and any(n is None or n >= limit for n in sizes)
