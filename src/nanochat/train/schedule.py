"""What changes while training: learning rate, Muon momentum, weight decay, each a pure function of the step.

Steps count from 0; `step` is the update about to be made, `total_steps` how many there will be.
"""

import math
from typing import Literal

WeightDecaySchedule = Literal["constant", "linear", "cosine"]


def warmdown_progress(step: int, *, total_steps: int, warmdown_fraction: float) -> float:
    """How far the warmdown has come: 0 before it, 1 at `total_steps` (which is after the last update)."""
    warmdown_steps = round(warmdown_fraction * total_steps)
    remaining = total_steps - step
    return 0.0 if remaining >= warmdown_steps else 1.0 - remaining / warmdown_steps


def lr_multiplier(step: int, *, total_steps: int, warmup_steps: int = 0, warmdown_fraction: float = 0.0, final_fraction: float = 0.0) -> float:
    """Trapezoid: linear up over `warmup_steps`, 1, then linear down towards `final_fraction`; the lower of the two where they overlap."""
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = 1.0 - (1.0 - final_fraction) * warmdown_progress(step, total_steps=total_steps, warmdown_fraction=warmdown_fraction)
    return min(rise, fall)


def momentum_at(step: int, *, total_steps: int, start: float, peak: float, final: float, warmup_steps: int = 0, warmdown_fraction: float = 0.0) -> float:
    """Muon momentum: linear from `start` to `peak` over `warmup_steps`, then towards `final` during the warmdown of the learning rate."""
    risen = start + (peak - start) * min(1.0, step / warmup_steps) if warmup_steps else peak
    return risen + (final - risen) * warmdown_progress(step, total_steps=total_steps, warmdown_fraction=warmdown_fraction)


def weight_decay_multiplier(step: int, *, total_steps: int, schedule: WeightDecaySchedule) -> float:
    """Share of the weight decay that acts at `step`: all of it, or falling to 0 at `total_steps`, in a line or half a cosine."""
    progress = step / total_steps
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[schedule]
