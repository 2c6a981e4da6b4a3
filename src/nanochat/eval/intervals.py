"""How sure a score is: Wilson's interval of a proportion, a seeded bootstrap of any other mean."""

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # standard normal quantile of 0.975
RESAMPLES = 1000


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: never outside 0..1, sensible for few rows and for 0 or n correct."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct={correct} of n={n}: no proportion")
    p, square = correct / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    # at the ends the formula gives exactly 0 and 1, rounding errors aside
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)


def numbers_of(seed: int) -> np.random.RandomState:
    """Random numbers of a seed; RandomState, because numpy promises that its numbers never change."""
    return np.random.RandomState(seed % (1 << 32))


def middle(means: np.ndarray) -> tuple[float, float]:
    """The middle 95 percent of resampled means."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_means(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of `resamples` samples of the rows, drawn with replacement; weighted means where `weights` are given."""
    given = np.asarray(values, dtype=np.float64)
    if len(given) == 0:
        raise ValueError("values: none, no mean to be sure of")
    weight = np.ones_like(given) if weights is None else np.asarray(weights, dtype=np.float64)
    if (weight <= 0).any():
        raise ValueError(f"weights: {weight.min():g} among them; rows without weight are left out before")
    weighted = given * weight
    draws, means = numbers_of(seed), np.empty(resamples)
    for number in range(resamples):
        rows = draws.randint(0, len(given), len(given))
        means[number] = weighted[rows].sum() / weight[rows].sum()
    return means


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int) -> tuple[float, float]:
    """The middle 95 percent of the resampled means."""
    return middle(bootstrap_means(values, weights, seed=seed))
