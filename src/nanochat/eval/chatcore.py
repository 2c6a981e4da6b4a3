"""ChatCORE: one number for a chat model, the mean of its centred scores over a named list of tasks. No torch: the report reads it too.

centred = (score - baseline) / (1 - baseline), so that guessing is 0 and all right is 1. The two lists give numbers that must not be compared:
SpellingBee, which trained models solve, adds about 0.167 alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.eval.intervals import Interval, interval_of_mean

FIVE = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")
CHATCORE = {"ChatCORE-5": FIVE, "ChatCORE-6": (*FIVE, "spelling_bee")}
BASELINES = {"arc_easy": 0.25, "arc_challenge": 0.25, "mmlu": 0.25}  # the others: 0


@dataclass(frozen=True)
class ChatCore:
    """`value` is None where `why` says what is missing; `interval` is None too where a task came without one."""

    value: float | None
    interval: Interval | None
    why: str
    lacking: tuple[str, ...] = ()  # tasks without a score


def centred(score: float, baseline: float) -> float:
    """0 for guessing, 1 for all right."""
    return (score - baseline) / (1 - baseline)


def chatcore(name: str, scores: Mapping[str, tuple[float | None, Interval | None]]) -> ChatCore:
    """The mean over the task list `name`, of {task: (score, its 95% interval)}; not available unless every task has a score."""
    tasks = CHATCORE[name]
    values: list[float] = []
    limits: list[Interval] = []
    lacking = []
    for task in tasks:
        score, interval = scores.get(task, (None, None))
        baseline = BASELINES.get(task, 0.0)
        if score is None:
            lacking.append(task)
            continue
        values.append(centred(score, baseline))
        if interval is not None:
            limits.append((centred(interval[0], baseline), centred(interval[1], baseline)))
    if lacking:
        return ChatCore(None, None, "none of its tasks was scored" if len(lacking) == len(tasks) else f"no score of {', '.join(lacking)}", tuple(lacking))
    value = sum(values) / len(values)
    return ChatCore(value, interval_of_mean(values, limits) if len(limits) == len(values) else None, "")
