"""How sure a score is: closed forms for whatever is made of right and wrong answers, a seeded bootstrap for any other mean.

A bootstrap of answers that are all wrong draws the same ones each time and is sure of 0, however few they are; the closed forms are not.
"""

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
Z95 = 1.959963984540054  # standard normal quantile of 0.975
RESAMPLES = 1000


def wilson(correct: float, n: float, z: float = Z95) -> Interval:
    """Wilson's score interval of a proportion: never outside 0..1, sensible for few rows and for 0 or n correct."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct={correct} of n={n}: no proportion")
    p, square = correct / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    # at the ends the formula gives exactly 0 and 1, rounding errors aside
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)


def wilson_of_mean(values: Sequence[float], most: int) -> Interval:
    """Of the mean of shares between 0 and 1: Wilson's, of as many right and wrong answers as would vary as the shares do around their mean.

    One to `most` for each share; one where all are 0 or all are 1, since then nothing tells. After Korn, Graubard, Survey Methodology 24 (1998), 193-201.
    """
    n, mean = len(values), math.fsum(values) / len(values)
    answers = 1.0
    if n > 1 and 0 < mean < 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        answers = min(most, max(1.0, mean * (1 - mean) / variance)) if variance else most
    return wilson(mean * n * answers, n * answers)


def newcombe(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """Of the difference of two proportions of the same rows, second less first: Wilson's intervals of both, squared and added, less what they share.

    Method 10 of Newcombe, Statistics in Medicine 17 (1998), 2635-2650.
    """
    n, firsts, seconds = both + only_first + only_second + neither, both + only_first, both + only_second
    first, second = firsts / n, seconds / n
    (first_low, first_high), (second_low, second_high) = wilson(firsts, n), wilson(seconds, n)
    spread = firsts * (n - firsts) * seconds * (n - seconds)
    alike = both * neither - only_first * only_second
    phi = (alike if alike < 0 else max(alike - n / 2, 0.0)) / math.sqrt(spread) if spread else 0.0

    def distance(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    difference = second - first
    return difference - distance(second - second_low, first_high - first), difference + distance(second_high - second, first - first_low)


def interval_of_mean(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Of the mean of independent values, from the interval of each: distances to the limits are added as squares.

    The method of variance estimates recovery (Zou, Huang, Zhang, Computational Statistics & Data Analysis 53 (2009), 1080-1085), which keeps the
    skewness of Wilson's intervals near 0 and 1.
    """
    mean = sum(values) / len(values)
    below = math.sqrt(sum((value - low) ** 2 for value, (low, _) in zip(values, intervals, strict=True)))
    above = math.sqrt(sum((high - value) ** 2 for value, (_, high) in zip(values, intervals, strict=True)))
    return mean - below / len(values), mean + above / len(values)


def numbers_of(seed: int) -> np.random.RandomState:
    """Random numbers of a seed; RandomState, because numpy promises that its numbers never change."""
    return np.random.RandomState(seed % (1 << 32))


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


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int) -> Interval:
    """The middle 95 percent of the resampled means."""
    low, high = np.percentile(bootstrap_means(values, weights, seed=seed), [2.5, 97.5])
    return float(low), float(high)
