"""Two models on the same items: is the difference more than chance? No torch.

Two intervals that overlap say little: both models stumble over the same hard items, and a paired test does not count those. If the models
were equal, each item's difference could as well have the other sign: p is the share of all such signs with a difference at least so large,
counted exactly for right and wrong (McNemar), drawn for the rest.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.data.core import core_name
from nanochat.errors import UserError
from nanochat.eval.chatcore import centred
from nanochat.eval.intervals import Interval, bootstrap, interval_of_mean, newcombe, numbers_of

FLIPS = 10_000
LOWER_IS_BETTER = frozenset({"bpb"})
ASKED = ("shots", "type", "baseline")  # a task of CORE in which they differ is another task
WAYS = ("form", "max_new_tokens", "context")  # settings that say how a model is asked, and that need not be the same

Scored = tuple[Path, Mapping[str, Any]]  # a score file and what it says
Pairs = list[tuple[bool, bool]]  # of each item: whether the first model is right, and the second


@dataclass(frozen=True)
class Paired:
    """Scores of both models on the `n` items that both answered; `difference` is second less first, with its 95% interval and two-sided p."""

    n: int
    first: float
    second: float
    difference: float
    interval: Interval
    p: float
    name: str | None = None  # of a mean over tasks: what it is called
    remarks: tuple[str, ...] = ()  # what is not the same in both, for the reader

    @property
    def is_significant(self) -> bool:
        """At the usual 5 percent."""
        return self.p < 0.05


def compare_scores(first: Scored, second: Scored) -> Paired | str:
    """The paired test of two scores of a task, or why there is none. Damaged answers are a UserError."""
    contents = first[1], second[1]
    for score in contents:
        if score["score"] is None:
            return f"not available: {score.get('unavailable')}"
        if not isinstance(score.get("items"), str):
            return "no answers to single rows beside a score; delete that score and evaluate it again"
    versions = [score.get("version") for score in contents]
    if versions[0] != versions[1]:
        return f"graded by versions {versions[0]} and {versions[1]} of the task; evaluate the older score again"
    items = []
    for path, score in (first, second):
        file = path.parent / score["items"]
        if not file.is_file():
            return f"{file} is gone, though the score names it; delete {path} and evaluate it again"
        items.append(read_items(file, path, score.get("n")))
    found = _compare_core(contents, items) if contents[0].get("task") == "core" else compare_items(*items)
    if found is None:
        return "they have no row in common"
    return found if isinstance(found, str) else replace(found, remarks=(*found.remarks, *_ways(*contents)))


def read_items(file: Path, score: Path, n: int | None) -> list[dict[str, Any]]:
    """The answers to the rows of a score, `n` of them if it says how many."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{file}: not the answers to a task ({error}); delete it and {score}, and run the evaluation again") from None
    if not all(isinstance(line, dict) and "index" in line and isinstance(line.get("right", False), bool) for line in lines):
        raise UserError(
            f"{file}: not the answers to a task (a line without index, or right is not true or false); delete it and {score}, and run the evaluation again"
        )
    if n is not None and len(lines) != n:
        raise UserError(f"{file}: {len(lines):,} answers, the score is of {n:,}; delete it and {score}, and run the evaluation again")
    return lines


def _ways(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    here, there = (score.get("settings") or {} for score in (first, second))
    return [f"other {key.replace('_', ' ')}: {here[key]} and {there[key]}" for key in WAYS if key in here and key in there and here[key] != there[key]]


def second_is_better(task: str, difference: float) -> bool:
    """What a difference, second less first, says."""
    return (difference > 0) != (task in LOWER_IS_BETTER)


def compare_items(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Paired | None:
    """Compare two items files, row by row as their keys say; None if they have no row in common."""
    here, there = _by_key(first), _by_key(second)
    both = [(here[key], there[key]) for key in here if key in there]
    if not both:
        return None
    remarks = () if len(both) == len(first) == len(second) else (f"{len(both):,} rows in common of {len(first):,} and {len(second):,}",)
    if all("right" in item for pair in both for item in pair):
        return replace(_right_or_wrong([(bool(a["right"]), bool(b["right"])) for a, b in both]), remarks=remarks)
    usable = [(a, b) for a, b in both if a.get("score") is not None and b.get("score") is not None]
    if not usable:
        return None
    weights = np.array([float(a.get("bytes", 1)) for a, _ in usable])
    scores = np.array([[float(a["score"]), float(b["score"])] for a, b in usable])
    means, differences = weights @ scores / weights.sum(), scores[:, 1] - scores[:, 0]
    interval, p = bootstrap(differences.tolist(), weights.tolist(), seed=seed), sign_flips(differences * weights, seed=seed)
    return Paired(len(usable), float(means[0]), float(means[1]), float(means[1] - means[0]), interval, p, remarks=remarks)


def _by_key(items: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, int], Mapping[str, Any]]:
    """(key, which of the rows of the same content) -> item."""
    seen: Counter[Any] = Counter()
    found = {}
    for item in items:
        key = item.get("key", item["index"])
        found[key, seen[key]] = item
        seen[key] += 1
    return found


def _counts(pairs: Pairs) -> tuple[int, int, int, int]:
    """How many items both have right, the first alone, the second alone, neither."""
    found = Counter(pairs)
    return found[True, True], found[True, False], found[False, True], found[False, False]


def _right_or_wrong(pairs: Pairs) -> Paired:
    n, counts = len(pairs), _counts(pairs)
    both, only_first, only_second, _ = counts
    difference = (only_second - only_first) / n
    return Paired(n, (both + only_first) / n, (both + only_second) / n, difference, newcombe(*counts), mcnemar_exact(only_first, only_second))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of so uneven a split of the items on which two models differ, if each was as likely to be the right one."""
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / float(2**n)) if n < 1000 else min(1.0, math.exp(math.log(2 * tail) - n * math.log(2)))


def sign_flips(parts: np.ndarray, *, seed: int) -> float:
    """Two-sided p of the sum of `parts`, if each could as well have the other sign; never below what so many draws can show."""
    total, extreme, draws, left = float(parts.sum()), 0, numbers_of(seed), FLIPS
    least = abs(total) - 1e-9 * float(np.abs(parts).sum())  # equal sums differ by rounding
    width = -(-len(parts) // 8)
    while left:
        rows = min(left, 1 + 4_000_000 // max(1, len(parts)))
        bits = np.unpackbits(np.frombuffer(draws.bytes(rows * width), dtype=np.uint8).reshape(rows, width), axis=1)[:, : len(parts)]
        extreme += int((np.abs(2 * (bits @ parts) - total) >= least).sum())
        left -= rows
    return (extreme + 1) / (FLIPS + 1)


# --- CORE ------------------------------------------------------------------------------------------------------------


def _compare_core(scores: Sequence[Mapping[str, Any]], items: Sequence[Sequence[Mapping[str, Any]]]) -> Paired | str:
    """The difference of the means over the tasks that both were asked alike; each task counts the same there however many rows it has."""
    first, second = ({task["label"]: task for task in score["tasks"]} for score in scores)
    first_rows, second_rows = map(_rows_by_label, items)
    tasks: dict[str, Pairs] = {}
    left_out: dict[str, list[str]] = {}
    for label in dict.fromkeys([*first, *second]):
        if label not in first or label not in second:
            why = "asked of one model only"
        elif other := [f"{key} {first[label][key]} and {second[label][key]}" for key in ASKED if first[label][key] != second[label][key]]:
            why = ", ".join(other)
        elif not (first_rows.get(label) and second_rows.get(label)):
            why = "its answers to single rows are gone"
        elif first_rows[label].keys() != second_rows[label].keys():
            why = "other rows or another limit"
        else:
            tasks[label] = [(right, second_rows[label][key]) for key, right in first_rows[label].items()]
            continue
        left_out.setdefault(why, []).append(label)
    without = "; ".join(f"left out, {why}: {', '.join(labels)}" for why, labels in left_out.items())
    if not tasks:
        return f"not available: no task was asked alike ({without})"
    test = mean_over(tasks, {label: first[label]["baseline"] for label in tasks})
    return replace(test, name=core_name(tasks), remarks=(without,) if without else ())


def _rows_by_label(items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Label of a task -> key -> whether the answer is right. A key names the task, the file of its rows, the limit and the row."""
    found: dict[str, dict[str, bool]] = {}
    for item in items:
        found.setdefault(item["key"].partition("/")[0], {})[item["key"]] = bool(item["right"])
    return found


def mean_over(tasks: Mapping[str, Pairs], baselines: Mapping[str, float], *, seed: int = 0) -> Paired:
    """The paired test of the means of centred accuracies: Newcombe's intervals squared and added, signs flipped within each task."""
    firsts, differences, limits, parts = [], [], [], []
    for label, pairs in tasks.items():
        both, only_first, only_second, _ = counts = _counts(pairs)
        scale, n = 1 / (1 - baselines[label]), len(pairs)
        firsts.append(centred((both + only_first) / n, baselines[label]))
        differences.append(scale * (only_second - only_first) / n)
        low, high = newcombe(*counts)
        limits.append((scale * low, scale * high))
        parts.append(np.repeat([-scale / n, scale / n], [only_first, only_second]))
    first, difference = (sum(values) / len(tasks) for values in (firsts, differences))
    p = sign_flips(np.concatenate(parts), seed=seed)
    return Paired(sum(map(len, tasks.values())), first, first + difference, difference, interval_of_mean(differences, limits), p)
