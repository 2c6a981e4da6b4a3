"""Scores of a run side by side: display names, the order of the summary, and ChatCORE."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanochat.eval.chatcore import CHATCORE, ChatCore
from nanochat.eval.chatcore import chatcore as chatcore_of
from nanochat.report.inputs import Score
from nanochat.report.text import listed

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


def metric_names(scores: Sequence[Score]) -> list[str]:
    """The name of each score's metric: of one name, what differs in tasks, sample or version is told, since such numbers do not compare."""
    same_name: dict[str, list[Score]] = {}
    for score in scores:
        if score.value is not None:
            same_name.setdefault(name_of(score), []).append(score)
    return [name_of(score) if score.value is None else _distinct_name(score, same_name[name_of(score)]) for score in scores]


def _distinct_name(score: Score, others: Sequence[Score]) -> str:
    """`others`: every score of the name, this one too."""
    version, sample, tasks = _identity(score)
    kinds = [_identity(other) for other in others]
    notes = []
    if len({kind[2] for kind in kinds}) > 1:
        own = sorted(tasks - frozenset.intersection(*(kind[2] for kind in kinds)))
        notes.append(f"with {listed(own, 1)}" if own else "common tasks alone")
    if len({kind[1] for kind in kinds}) > 1:
        notes.append("all rows" if sample is None else f"sample of {sample:,}" + (" a task" if tasks else ""))
    if len({kind[0] for kind in kinds}) > 1:
        notes.append(f"version {version}")
    return f"{name_of(score)} ({', '.join(notes)})" if notes else name_of(score)


def _identity(score: Score) -> tuple[str, int | None, frozenset[str]]:
    """Version, limit where it left rows out, tasks of CORE."""
    content = score.content
    tasks = frozenset(str(task["label"]) for task in content.get("tasks") or ())
    return str(content.get("version", "")), content["limit"] if is_sampled(content) else None, tasks


def metric_rows(scores: Mapping[tuple[str, str], Score]) -> list[tuple[str, dict[str, Score]]]:
    """(place, task) -> score, where a place is a phase or a run, as rows of a table: (name, place -> score)."""
    names = dict(zip(scores, metric_names(list(scores.values())), strict=True))
    rows: dict[str, dict[str, Score]] = {}
    for task in ordered({task for _, task in scores}):
        for (place, of), score in scores.items():
            if of == task:
                rows.setdefault(names[place, of], {})[place] = score
    return list(rows.items())


def ordered(tasks: "list[str] | set[str]") -> list[str]:
    """bits per byte and CORE first, the others by name: the order of the summary table."""
    first = [task for task in ("bpb", "core") if task in tasks]
    return first + sorted((task for task in set(tasks) if task not in first), key=lambda task: title(task).lower())


def chatcore(name: str, scores: Mapping[str, Score]) -> ChatCore:
    """ChatCORE over the task list `name`, with its interval; what is missing is told by the names that people know."""
    mean = chatcore_of(name, {task: (score.value, score.interval) for task, score in scores.items() if not score.outdated})
    if mean.value is not None or not scores.keys() & set(CHATCORE[name]):
        return mean
    outdated = "current " if any(task in scores and scores[task].outdated for task in mean.lacking) else ""
    return replace(mean, why=f"no {outdated}score of {', '.join(map(title, mean.lacking))}")


def is_sampled(content: Mapping[str, Any]) -> bool:
    """Whether the config's limit left rows out; a split with fewer rows than the limit was used whole. The limit of CORE is for each of its tasks."""
    limit = content.get("limit")
    sizes = [task.get("n") for task in content.get("tasks") or [content]]
    return limit is not None and any(n is None or n >= limit for n in sizes)
