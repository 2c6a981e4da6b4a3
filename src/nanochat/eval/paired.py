"""Two models on the same items: is the difference more than chance? Exact for right and wrong, a seeded bootstrap for the rest.

Two intervals that overlap say little: both models stumble over the same hard items, and a paired test does not count those. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanochat.eval.intervals import bootstrap_means, middle, numbers_of

RESAMPLES = 10_000
LOWER_IS_BETTER = frozenset({"bpb"})
MEANS_OVER_TASKS = ("core",)  # each task counts the same there however many rows it has: a test over rows would be of another number


@dataclass(frozen=True)
class Paired:
    """Scores of both models on the `n` items that both answered; `difference` is second less first, with its 95% interval and two-sided p."""

    n: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p: float
    method: str
    only_first: int | None = None  # items that the first alone has right
    only_second: int | None = None

    @property
    def is_significant(self) -> bool:
        """At the usual 5 percent."""
        return self.p < 0.05


def why_not_paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Why the score files of two models have no test row by row; empty where they have one."""
    for score in (first, second):
        if score["score"] is None:
            return f"not available: {score['unavailable']}"
        if "items" not in score:
            return "no items beside a score; delete that score and evaluate it again"
        if score["task"] in MEANS_OVER_TASKS:
            return "not available: a mean over tasks has no test over rows; compare the intervals of the two scores"
    if first["version"] != second["version"]:
        return f"graded by versions {first['version']} and {second['version']} of the task; evaluate the older score again"
    return ""


def second_is_better(task: str, difference: float) -> bool:
    """What a difference, second less first, says."""
    return (difference > 0) != (task in LOWER_IS_BETTER)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of so uneven a split of the items on which two models differ, if each was as likely to be the right one."""
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / float(2**n)) if n < 1000 else min(1.0, math.exp(math.log(2 * tail) - n * math.log(2)))


def compare_items(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Paired | None:
    """Compare two items files, row by row as their keys say; None if they have no row in common."""
    here, there = ({item.get("key", item["index"]): item for item in items} for items in (first, second))
    both = [(here[key], there[key]) for key in here if key in there]
    if not both:
        return None
    if all("right" in item for pair in both for item in pair):
        return _right_or_wrong([(bool(a["right"]), bool(b["right"])) for a, b in both], seed)
    usable = [(a, b) for a, b in both if a.get("score") is not None and b.get("score") is not None]
    if not usable:
        return None
    weights = [float(a.get("bytes", 1)) for a, _ in usable]
    a_scores, b_scores = ([float(pair[side]["score"]) for pair in usable] for side in (0, 1))
    total = math.fsum(weights)
    a_mean, b_mean = (math.fsum(s * w for s, w in zip(scores, weights, strict=True)) / total for scores in (a_scores, b_scores))
    differences = [b - a for a, b in zip(a_scores, b_scores, strict=True)]
    means = bootstrap_means(differences, weights, seed=seed, resamples=RESAMPLES)
    return Paired(len(usable), a_mean, b_mean, b_mean - a_mean, middle(means), _bootstrap_p(means), "paired bootstrap")


def _right_or_wrong(both: Sequence[tuple[bool, bool]], seed: int) -> Paired:
    only_first, only_second = sum(a and not b for a, b in both), sum(b and not a for a, b in both)
    n = len(both)
    a_mean, b_mean = sum(a for a, _ in both) / n, sum(b for _, b in both) / n
    # a resampled mean is a multinomial draw of how many rows were gained, lost and neither: what a bootstrap of the rows gives, 1,000 times as fast
    drawn = numbers_of(seed).multinomial(n, [only_second / n, only_first / n, 1 - (only_first + only_second) / n], RESAMPLES)
    means = (drawn[:, 0] - drawn[:, 1]) / n
    p = mcnemar_exact(only_first, only_second)
    return Paired(n, a_mean, b_mean, (only_second - only_first) / n, middle(means), p, "exact McNemar", only_first, only_second)


def _bootstrap_p(means: np.ndarray) -> float:
    """Twice the share of resampled differences on the other side of 0, never below what so many resamples can show."""
    below, above = int((means <= 0).sum()), int((means >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1))
