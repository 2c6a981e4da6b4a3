"""How long training takes: model FLOPs over the speed that the cards are expected to reach, plus what stands beside it.

    seconds = start-up + FLOPs / (GPUs x peak x utilisation) + validation + saving

Utilisation comes from published runs (`nanochat.hardware`), or from this machine's own finished stages where there are any: a
measured rate always wins. Validation is a forward pass: a third of the FLOPs of training. docs/explanation/estimates.md compares
the estimates with published runs.
"""

import math
from dataclasses import dataclass

from nanochat.hardware import Accelerator

START_UP_S = 60.0  # python, torch, opening the tokens, NCCL, the first slow steps
SAVE_BYTES_PER_S = 1e9  # of resume states, to a cluster's file system
EVERY_NODE_COUNTS = 0.92  # share of the speed that is left by gradients crossing the network, for each doubling of nodes
CPU_FLOPS = 150e9  # of one core, in fp32 matrix products; assumption for a machine that has not been measured
CPU_UTILISATION = 0.4
MARGIN = 1.15  # of the time asked from a scheduler over the estimate
MINIMUM_RUNTIME_MIN = 30  # queues favour short jobs, but a slow file system at the start must not kill one


@dataclass(frozen=True)
class Machine:
    """What a job is given."""

    accelerator: Accelerator | None  # None: CPU
    gpus: int = 0  # of all nodes together
    nodes: int = 1
    cores: int = 1  # used only without GPUs
    measured_flops: float | None = None  # of all GPUs (or cores) together: what a finished stage reached here

    def flops(self, width: int) -> float:
        """Model FLOPs per second in training."""
        if self.measured_flops is not None:
            return self.measured_flops
        if self.accelerator is None:
            return CPU_FLOPS * CPU_UTILISATION * self.cores
        network = float(EVERY_NODE_COUNTS ** math.log2(self.nodes))
        return self.gpus * self.accelerator.peak_flops * self.accelerator.utilisation(width) * network


@dataclass(frozen=True)
class TrainingWork:
    """What a training stage has to compute and to write."""

    tokens: int
    flops_per_token: int  # forward and backward
    width: int
    validations: int = 0
    validation_tokens: int = 0  # of each validation
    state_bytes: int = 0  # of a saved state: weights and optimizer
    save_every_s: float = 600.0

    @property
    def flops(self) -> float:
        """Model FLOPs of the updates."""
        return float(self.tokens) * self.flops_per_token

    @property
    def validation_flops(self) -> float:
        """FLOPs of all validations: forward only, a third of training."""
        return self.validations * self.validation_tokens * self.flops_per_token / 3


@dataclass(frozen=True)
class Duration:
    """Seconds of a stage by what they are spent on."""

    start_up: float
    training: float
    validation: float
    saving: float

    @property
    def total(self) -> float:
        """Of one attempt that is not interrupted."""
        return self.start_up + self.training + self.validation + self.saving


def training_duration(work: TrainingWork, machine: Machine) -> Duration:
    """Expected duration of a training stage."""
    speed = machine.flops(work.width)
    training, validation = work.flops / speed, work.validation_flops / speed
    saves = (training + validation) / work.save_every_s + 1
    return Duration(START_UP_S, training, validation, saves * work.state_bytes / SAVE_BYTES_PER_S)


@dataclass(frozen=True)
class Attempts:
    """How a stage is cut into jobs of a scheduler."""

    runtime_min: int  # asked for each job
    jobs: int  # 1: it fits

    @property
    def restarts(self) -> int:
        """Jobs after the first."""
        return self.jobs - 1


def attempts(seconds: float, limit_min: int | None) -> Attempts:
    """The run time to ask for: the estimate and a margin; at most `limit_min`, and then as many jobs as it takes.

    Every job pays the start-up again and ends 5% before its limit to save its state.
    """
    wanted = max(MINIMUM_RUNTIME_MIN, math.ceil(seconds * MARGIN / 60))
    if limit_min is None or wanted <= limit_min:
        return Attempts(wanted, 1)
    useful = limit_min * 60 * 0.95 - START_UP_S
    if useful <= 0:
        raise ValueError(f"runtime limit of {limit_min} minutes: start-up alone takes {START_UP_S:.0f} s; raise the limit")
    return Attempts(limit_min, math.ceil((seconds - START_UP_S) * MARGIN / useful))
