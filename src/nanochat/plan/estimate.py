"""How long training takes: model FLOPs over the speed that the cards are expected to reach, plus what stands beside it.

    seconds = start-up + FLOPs / (GPUs x peak x utilisation) + validation + saving (+ answers drawn, in reinforcement learning)

Utilisation comes from published runs (`nanochat.hardware`), or from this machine's own finished stages where there are any: a
measured rate always wins. Validation is a forward pass: a third of the FLOPs of training. docs/explanation/estimates.md compares
the estimates with published runs.
"""

import math
from dataclasses import dataclass

from nanochat.hardware import Accelerator

START_UP_S = 60.0  # on a GPU: python, torch, opening the tokens, NCCL, the first slow steps
START_UP_CPU_S = 5.0  # measured on two cores: 3 to 7 s
SAVE_BYTES_PER_S = 1e9  # of resume states, to a cluster's file system
VERIFY_BYTES_PER_S = 1e9  # of the tokens, at each start; 0.4 GB/s per thread on the slowest machine met
EVERY_NODE_COUNTS = 0.92  # share of the speed that is left by gradients crossing the network, for each doubling of nodes
CPU_FLOPS = 150e9  # of one core, in fp32 matrix products; assumption for a machine that has not been measured
CPU_UTILISATION = 0.3  # measured with the quickstart on two cores: 44e9 each
# a step cannot be shorter, however small its batch: gradients are summed over GPUs and every parameter is updated. Published fine-tuning
# of 561M parameters on 8 H100: 701 steps in 146 s, its start included
UPDATE_S_PER_PARAM = 2e-10
RENDER_S = 2e-4  # of one conversation, before training on a mixture begins; measured with the quickstart
# one step of generation waits for some 40 small kernels per layer, whatever the card; assumption
DECODE_S_PER_LAYER = 5e-4
DECODE_CPU_SHARE = 0.3  # of a CPU's speed in training that is reached token by token; measured: a third, with 256 answers at a time at depth 4
MARGIN = 1.15  # of the time asked from a scheduler over the estimate
MINIMUM_RUNTIME_MIN = 30  # queues favour short jobs, but a slow file system at the start must not kill one
USABLE = 0.95  # of a job's time: a stage stops before the limit to save its state (rules/shell.sh)


@dataclass(frozen=True)
class Machine:
    """What a job is given."""

    accelerator: Accelerator | None  # None: CPU
    gpus: int = 0  # of all nodes together
    nodes: int = 1
    cores: int = 1  # used only without GPUs
    measured: float | None = None  # speed of finished stages here, relative to the published one: 1.1 is 10% faster

    @property
    def start_up_s(self) -> float:
        """From the start of the job to the first update."""
        return START_UP_CPU_S if self.accelerator is None else START_UP_S

    def published_flops(self, width: int) -> float:
        """Model FLOPs per second in training, by published runs."""
        if self.accelerator is None:
            return CPU_FLOPS * CPU_UTILISATION * self.cores
        network = float(EVERY_NODE_COUNTS ** math.log2(self.nodes))
        return self.gpus * self.accelerator.peak_flops * self.accelerator.utilisation(width) * network

    def training_s(self, *, flops: float, width: int, steps: int = 0, params: int = 0) -> float:
        """Seconds of updates alone."""
        least = 0.0 if self.accelerator is None else steps * params * UPDATE_S_PER_PARAM
        return max(flops / self.published_flops(width), least) / (self.measured or 1.0)


@dataclass(frozen=True)
class TrainingWork:
    """What a training stage has to compute and to write."""

    tokens: int
    flops_per_token: int  # forward and backward
    width: int
    steps: int = 0
    params: int = 0
    validations: int = 0
    validation_tokens: int = 0  # of each validation
    read_bytes: int = 0  # compared with their sha256 at each start
    conversations: int = 0  # rendered and packed at the first start
    state_bytes: int = 0  # of a saved state: weights and optimizer
    save_every_s: float = 600.0
    sampled_tokens: int = 0  # of answers drawn to learn from
    sampled_columns: int = 0  # of these, those made one after another
    depth: int = 0  # layers

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
    training = machine.training_s(flops=work.flops, width=work.width, steps=work.steps, params=work.params)
    training += sampling_s(work, machine)
    validation = machine.training_s(flops=work.validation_flops, width=work.width)
    saves = (training + validation) / work.save_every_s + 1
    start_up = machine.start_up_s + work.read_bytes / VERIFY_BYTES_PER_S + work.conversations * RENDER_S
    return Duration(start_up, training, validation, saves * work.state_bytes / SAVE_BYTES_PER_S)


def sampling_s(work: TrainingWork, machine: Machine) -> float:
    """Seconds of drawing answers: on a CPU by their tokens, on a GPU by the steps of generation, which wait for one another."""
    if machine.accelerator is None:
        return work.sampled_tokens * work.flops_per_token / 3 / DECODE_CPU_SHARE / machine.published_flops(work.width) / (machine.measured or 1.0)
    return work.sampled_columns * work.depth * DECODE_S_PER_LAYER


@dataclass(frozen=True)
class Attempts:
    """How a stage is cut into jobs of a scheduler."""

    runtime_min: int  # asked for each job
    jobs: int  # 1: it fits

    @property
    def restarts(self) -> int:
        """Jobs after the first."""
        return self.jobs - 1


def attempts(seconds: float, limit_min: int | None, *, start_up_s: float = START_UP_S) -> Attempts:
    """The run time to ask for: the estimate and a margin; at most `limit_min`, and then as many jobs as it takes.

    `seconds` includes one start-up; every job pays it again and ends 5% before its limit to save its state.
    """
    wanted = max(MINIMUM_RUNTIME_MIN, math.ceil(seconds * MARGIN / USABLE / 60))
    if limit_min is None or wanted <= limit_min:
        return Attempts(wanted, 1)
    return Attempts(limit_min, jobs_needed(seconds * MARGIN, limit_min, start_up_s=start_up_s))


def jobs_needed(seconds: float, runtime_min: int, *, start_up_s: float = START_UP_S) -> int:
    """How many jobs of `runtime_min` minutes `seconds` of work take, one start-up included. Raises ValueError if none ever ends."""
    useful = runtime_min * 60 * USABLE - start_up_s
    if useful <= 0:
        raise ValueError(f"run time of {runtime_min} minutes: start-up alone takes {start_up_s:.0f} s; ask for more")
    return max(1, math.ceil((seconds - start_up_s) / useful))
