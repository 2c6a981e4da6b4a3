"""Numbers as words: counts, sizes, durations, money, and the one way to say that a number is missing."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from nanochat.history import Cost
from nanochat.report.document import Cell

ABSENT = "-"  # in a table, where there is no such number

MISSING = "not available"


def unavailable(why: str) -> Cell:
    """A number that is missing, with its reason. Never 0, never a guess."""
    return Cell(MISSING, why)


def count(value: float) -> str:
    """11,200,000 or, for what is not whole, four digits."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.4g}"


def counted(number: int, noun: str) -> str:
    """1 attempt, 3 attempts."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def attempts(cost: Cost) -> str:
    """3 attempts, 1 not finished."""
    return counted(cost.attempts, "attempt") + (f", {cost.unfinished} not finished" if cost.unfinished else "")


def large(value: float) -> str:
    """A count in short: 561M, 11.2B; 3.92e+19 beyond a million billions."""
    if value >= 1e15:
        return f"{value:.2e}"
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return count(value)


def axis(value: float) -> str:
    """A count below a curve, in little room: 800k, 1.2M, 3.92e+19."""
    return f"{value / 1e3:.3g}k" if 1e4 <= value < 1e6 else large(value)


def size(size_bytes: float) -> str:
    """Bytes in decimal units: 47.2 MB."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= scale:
            return f"{size_bytes / scale:,.1f} {unit}"
    return f"{size_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """3h51m, 2m26s, 12 s or 0.35 s."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def moment(time: float) -> str:
    """A Unix time: 2026-11-26 04:08, in UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


def money(amount: float) -> str:
    """$92.40"""
    return f"${amount:,.2f}"


def percent(fraction: float) -> str:
    """12.3%, or 0.0017%: a small share is not none."""
    return f"{100 * fraction:.2g}%" if 0 < fraction < 0.001 else f"{100 * fraction:.1f}%"


def score(value: float) -> str:
    """Scores and bits per byte have four decimals."""
    assert math.isfinite(value)
    return f"{value:.4f}"


def valued(value: float | None, interval: Sequence[float] | None) -> Cell:
    """A score and, small, its interval; ABSENT where there is none."""
    if value is None:
        return Cell(ABSENT)
    return Cell(score(value), f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else "")


def listed(names: "list[str] | tuple[str, ...]", most: int = 8) -> str:
    """a, b and 3 more."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
