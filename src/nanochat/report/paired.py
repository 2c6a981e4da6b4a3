"""Two models on the same questions: is the difference more than luck? Only questions that one answered and the other did not can tell."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


def paired(right_a: Sequence[bool], right_b: Sequence[bool]) -> tuple[float, tuple[float, float], float]:
    """(b - a, its 95% interval, p): Agresti and Min's interval of a difference of paired proportions, and McNemar's exact test, two-sided."""
    assert len(right_a) == len(right_b) > 0
    n = len(right_a)
    gained = sum(b and not a for a, b in zip(right_a, right_b, strict=True))
    lost = sum(a and not b for a, b in zip(right_a, right_b, strict=True))
    # half an answer is added to each of the four cells
    difference, changed, rows = gained - lost, gained + lost + 1, n + 2
    half = Z95 * math.sqrt(max(0.0, changed - difference**2 / rows)) / rows
    middle = difference / rows
    return difference / n, (max(-1.0, middle - half), min(1.0, middle + half)), _mcnemar(gained, lost)


def _mcnemar(gained: int, lost: int) -> float:
    """Two-sided probability that a fair coin divides so many changes at least as unevenly."""
    changes, fewer = gained + lost, min(gained, lost)
    if changes == 0:
        return 1.0
    logs = [math.lgamma(changes + 1) - math.lgamma(k + 1) - math.lgamma(changes - k + 1) - changes * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * sum(map(math.exp, logs)))
