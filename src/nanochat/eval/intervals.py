"""How sure a score is."""

import math

Z95 = 1.959963984540054  # standard normal quantile of 0.975


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: never outside 0..1, sensible for few rows and for 0 or n correct."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct={correct} of n={n}: no proportion")
    p, square = correct / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    # at the ends the formula gives exactly 0 and 1, rounding errors aside
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)
