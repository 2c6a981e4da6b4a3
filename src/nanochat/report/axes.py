"""The axes over which runs are compared: updates, tokens, FLOPs and hours of training, from the lines of metrics.jsonl."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Series = tuple[tuple[float, ...], tuple[float, ...]]
HOUR_S = 3600.0


@dataclass(frozen=True)
class Axis:
    """What stands below a curve: its name, the quantity that is logged, what it counts in, and a number of it in short."""

    label: str
    logged: str
    unit: float
    words: Callable[[float], str]


def _count(value: float) -> str:
    """62.7k, 1.05M, 3.92e+19."""
    for scale, letter in ((1e15, ""), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}" if letter else f"{value:.2e}"
    return f"{value:.3g}"


def _hours(value: float) -> str:
    return f"{value:.3g}"


AXES = {
    "step": Axis("steps", "step", 1.0, _count),
    "tokens": Axis("tokens", "tokens", 1.0, _count),
    "flops": Axis("FLOPs", "flops", 1.0, _count),
    "hours": Axis("hours of training", "elapsed_s", HOUR_S, _hours),
}


def is_quantity(value: Any) -> bool:
    """Whether this is a finite number; FLOPs are larger than what counters reach."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def series(rows: Iterable[Row], key: str, axis: str) -> Series:
    """(x, y) of one logged quantity in the order of steps; a step that was logged again after a resume counts once, as last logged.

    A line that does not say how far it is along the axis, as those of validations, is where the last update before it is. Empty
    where nothing says.
    """
    chosen = AXES[axis]
    known: dict[int, float] = {0: 0.0}
    values: dict[int, float] = {}
    for row in rows:
        step: Any = row.get("step")
        if not is_quantity(step):
            continue
        if is_quantity(row.get(chosen.logged)):
            known[step] = row[chosen.logged] / chosen.unit
        if is_quantity(row.get(key)):
            values[step] = float(row[key])
    if len(known) == 1 and set(values) - {0}:
        return (), ()
    at, steps = sorted(known), sorted(values)
    return tuple(known[at[bisect_right(at, step) - 1]] for step in steps), tuple(values[step] for step in steps)


def quantities(rows: Iterable[Row]) -> list[str]:
    """Names of everything that can be drawn, in the order in which it was logged first."""
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if key != "step" and is_quantity(value)))


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most so many means of equally many neighbours; short sequences as they are."""
    bucket = -(-len(values) // most)
    if bucket <= 1:
        return list(values)
    pieces = [values[start : start + bucket] for start in range(0, len(values), bucket)]
    return [sum(piece) / len(piece) for piece in pieces]
