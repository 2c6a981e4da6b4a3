"""Wall time, GPU-hours and money of a stage, every attempt included: failed and interrupted ones were paid for too."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PRICES = {"H100": 3.00, "A100": 1.79, "V100": 0.55}  # usual price per GPU and hour, US dollars
OTHER_PRICE = 2.00


@dataclass(frozen=True)
class Cost:
    """What some attempts took. `gpu_hours` and `money` are None without a GPU."""

    wall_s: float
    gpu_hours: float | None
    money: float | None
    attempts: int
    unfinished: int  # attempts that did not end with state "finished"


def price_of(device_name: str, configured: float = 0.0) -> float:
    """Price per hour of one GPU: the configured one, else the usual one of its kind."""
    if configured > 0:
        return configured
    return next((price for kind, price in PRICES.items() if kind in device_name.upper()), OTHER_PRICE)


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
