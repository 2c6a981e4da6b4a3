"""Wall time, GPU-hours and money of a stage, every attempt included: failed and interrupted ones were paid for too."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.hardware import price_of


@dataclass(frozen=True)
class Cost:
    """What some attempts took. `gpu_hours` and `money` are None without a GPU."""

    wall_s: float
    gpu_hours: float | None
    money: float | None
    attempts: int
    unfinished: int  # attempts that did not end with state "finished"


def wall_seconds(attempt: Mapping[str, Any]) -> float:
    """Duration of an attempt; one that was killed lasted until its last sign of life."""
    return float(attempt.get("wall_s") or max(0.0, attempt.get("heartbeat", attempt["start"]) - attempt["start"]))


def cost_of(attempts: Iterable[Mapping[str, Any]], configured_price: float = 0.0) -> Cost:
    """Sum over attempts."""
    wall, hours, paid, number, unfinished = 0.0, 0.0, 0.0, 0, 0
    on_gpu = False
    for attempt in attempts:
        seconds = wall_seconds(attempt)
        wall += seconds
        number += 1
        unfinished += attempt.get("state") != "finished"
        if attempt.get("device") == "cuda":
            on_gpu = True
            used = seconds / 3600 * int(attempt.get("world_size", 1))
            hours += used
            paid += used * price_of(str(attempt.get("device_name", "")), configured_price)
    return Cost(wall, hours if on_gpu else None, paid if on_gpu else None, number, unfinished)
