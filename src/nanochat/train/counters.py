"""Where a training stands, as its resume state, heartbeat and manifest say it, and what it is measured by on the way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nanochat.train.update import Update

SMOOTHING = 0.9  # of the logged loss


@dataclass(frozen=True)
class Validation:
    """Loss on held-out rows: bits per byte of text, and nats per token of text (special tokens do not count)."""

    bpb: float
    loss: float


@dataclass(frozen=True)
class Scores:
    """What held-out problems say where the measure is no loss: values by name."""

    values: Mapping[str, float]


@dataclass
class Counters:
    """Where a run stands. All but `elapsed_s` are the same in a run that was never interrupted."""

    step: int = 0
    counted_tokens: int = 0  # targets that the loss was taken on
    skipped_steps: int = 0  # updates without any counted target
    smoothed: float = 0.0  # sum of the exponential mean of the loss, not yet divided by its weight
    smoothed_weight: float = 0.0
    first_loss: float | None = None
    final_loss: float | None = None
    val_step: int = -1
    val_bpb: float | None = None
    val_loss: float | None = None
    min_val_bpb: float | None = None
    recent: list[float] = field(default_factory=list)  # the last losses, to tell a spike by
    non_finite_steps: int = 0
    spikes: int = 0
    passed_over: int = 0  # of both, those that no update was made for
    passed_over_in_a_row: int = 0
    elapsed_s: float = 0.0  # of all attempts, what was lost in a crash excluded
    fewer_rows: int = 0  # at a time, since memory ran out; 0: as planned

    @property
    def smoothed_loss(self) -> float:
        """Exponential mean of the loss, unbiased from the first update on."""
        return self.smoothed / self.smoothed_weight if self.smoothed_weight else 0.0

    @property
    def bad_steps(self) -> dict[str, int]:
        """What heartbeat and manifest say of bad steps: nothing where there were none."""
        counts = {"bad_steps": self.non_finite_steps + self.spikes, "bad_steps_skipped": self.passed_over}
        return {name: count for name, count in counts.items() if count}

    def add(self, update: Update, seconds: float) -> None:
        """Take one update into account."""
        self.step += 1
        self.elapsed_s += seconds
        self.counted_tokens += update.counted
        if not update.counted:
            self.skipped_steps += 1
            return
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * update.loss
        self.smoothed_weight = SMOOTHING * self.smoothed_weight + (1 - SMOOTHING)
        self.first_loss = update.loss if self.first_loss is None else self.first_loss
        self.final_loss = update.loss

    def add_bad(self, kind: str) -> None:
        """Count a bad step."""
        if kind == "spike":
            self.spikes += 1
        else:
            self.non_finite_steps += 1

    def add_passed_over(self, kind: str, seconds: float) -> None:
        """Take a bad step into account that no update was made for."""
        self.add_bad(kind)
        self.step += 1
        self.elapsed_s += seconds
        self.passed_over += 1
        self.passed_over_in_a_row += 1

    def add_validation(self, validation: Validation) -> None:
        """Take one validation into account."""
        self.val_step, self.val_bpb, self.val_loss = self.step, validation.bpb, validation.loss
        self.min_val_bpb = min(validation.bpb, math.inf if self.min_val_bpb is None else self.min_val_bpb)
