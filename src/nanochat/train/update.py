"""One optimizer update, exactly: micro-batches summed, divided by the counted targets of the whole step on all ranks.

So eight micro-batches of one row and one of eight rows are the same update up to rounding, a micro-batch without any
counted target is harmless, and a token weighs the same wherever it stands.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from nanochat import progress
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.runtime import Runtime
from nanochat.train.copies import Rows as Rows  # batches are made of them
from nanochat.train.copies import SentRows
from nanochat.train.fitting import OutOfMemoryError, noticed, unrepeatable
from nanochat.train.scaling import TrainingPlan
from nanochat.train.schedule import lr_multiplier, momentum_at, weight_decay_multiplier


class Model(Protocol):
    """What a trainer needs of a model."""

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(summed cross entropy in nats, number of targets other than -1)."""
        ...

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """(name, parameter) pairs by group."""
        ...


class Batches(Protocol):
    """Rows of training data, addressed by step and by position within the step, so that ranks never change what is seen."""

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs and targets (n, T) at these positions of a step; a target of -1 is not counted."""
        ...


@dataclass(frozen=True)
class MicroLosses:
    """Loss of each micro-batch of this rank, left where it was computed until somebody asks."""

    sums: Tensor
    counted: list[int]

    def means(self) -> list[float]:
        """Nats per counted target; 0 for a micro-batch without any."""
        return [float(total) / max(1, count) for total, count in zip(self.sums.tolist(), self.counted, strict=True)]


@dataclass(frozen=True)
class Update:
    """What one update was."""

    loss: float  # nats per counted target; 0 where `counted` is 0
    grad_norm: float  # before clipping
    counted: int
    lr_multiplier: float
    micro: MicroLosses | None = None


class BadStepError(FloatingPointError):
    """An update that was not made; nothing has changed."""

    def __init__(self, kind: Literal["non_finite", "spike"], why: str, micro: MicroLosses) -> None:
        super().__init__(why)
        self.kind, self.micro = kind, micro


def build_optimizer(model: Model, plan: TrainingPlan, runtime: Runtime) -> MuonAdamW:
    """The optimizer of `plan`: one group per parameter group of the model that is not empty."""
    groups = [{"name": name, "params": [parameter for _, parameter in pairs], **plan.groups[name]} for name, pairs in model.parameter_groups().items() if pairs]
    return MuonAdamW(groups, rank=runtime.rank, world_size=runtime.world_size)


def set_rates(optimizer: MuonAdamW, plan: TrainingPlan, step: int) -> float:
    """Give every group its rate, decay and momentum for update `step`; returns the multiplier of the learning rates."""
    multiplier = lr_multiplier(
        step,
        total_steps=plan.steps,
        warmup_steps=plan.warmup_steps,
        warmdown_fraction=plan.warmdown_fraction,
        final_fraction=plan.final_lr_fraction,
    )
    momentum = momentum_at(
        step,
        total_steps=plan.steps,
        start=plan.momentum_start,
        peak=plan.momentum_peak,
        final=plan.momentum_final,
        warmup_steps=plan.momentum_warmup_steps,
        warmdown_fraction=plan.warmdown_fraction,
    )
    decay = weight_decay_multiplier(step, total_steps=plan.steps, schedule=plan.weight_decay_schedule)
    for group in optimizer.param_groups:
        peak = plan.groups[group["name"]]
        group["lr"] = peak["lr"] * multiplier
        if group["kind"] == "muon":  # AdamW's decay is constant in the published settings
            group["weight_decay"] = peak["weight_decay"] * decay
            group["momentum"] = momentum
    return multiplier


def positions_of(plan: TrainingPlan, rank: int) -> list[list[int]]:
    """Positions within a step that `rank` sees, one list per micro-batch: ranks share a step in contiguous pieces."""
    mine = plan.rows_per_step // plan.ranks
    first = rank * mine
    return [list(range(start, start + plan.micro_batch_rows)) for start in range(first, first + mine, plan.micro_batch_rows)]


def make_update(
    model: Model,
    optimizer: MuonAdamW,
    plan: TrainingPlan,
    batches: Batches,
    runtime: Runtime,
    step: int,
    *,
    refuse: Callable[[float], str | None] = lambda loss: None,
) -> Update:
    """Update number `step`, from 0. A step without counted targets changes nothing.

    `refuse` says why no update shall be made with this loss, the same on every rank. Raises BadStepError, with nothing changed, if it does, or if the
    loss or a gradient is not finite; and OutOfMemoryError, with nothing changed either, if the passes do not fit into the memory of a rank.
    """
    multiplier = set_rates(optimizer, plan, step)
    micro_batches = [batches.rows(step, positions) for positions in progress.each(positions_of(plan, runtime.rank))]
    local = [int((targets >= 0).sum()) for _, targets in micro_batches]
    counted = int(runtime.all_reduce(torch.tensor(sum(local), device=runtime.device)))
    if not counted:
        return Update(0.0, 0.0, 0, multiplier)
    optimizer.zero_grad()
    sums = []
    with noticed() as shortage:
        for ids, targets in progress.each(micro_batches):
            summed, _ = model.loss(to_device(ids, runtime), to_device(targets, runtime))
            (summed / counted).backward()  # type: ignore[no-untyped-call]
            sums.append(summed.detach())
        optimizer.prepare_reduce()
    shortage.agree(runtime)
    micro = MicroLosses(torch.stack(sums), local)
    loss = float(runtime.all_reduce(micro.sums.sum())) / counted
    if not math.isfinite(loss):
        raise BadStepError("non_finite", f"loss is {loss}", micro)
    if why := refuse(loss):
        raise BadStepError("spike", why, micro)
    norm = _reduced(optimizer, runtime)
    if plan.grad_clip and norm > plan.grad_clip:
        optimizer.scale_gradients(plan.grad_clip / norm)
    try:
        with unrepeatable():
            optimizer.step(norm)
    except FloatingPointError as error:
        raise BadStepError("non_finite", str(error), micro) from None
    return Update(loss, norm, counted, multiplier, micro)


def _reduced(optimizer: MuonAdamW, runtime: Runtime) -> float:
    """Norm of the summed gradients. Nothing is changed yet, so a rank alone may begin again; one of several would leave the others waiting in an exchange."""
    with noticed(runtime.world_size == 1) as shortage:
        norm = optimizer.reduce()
    if shortage.met:
        raise OutOfMemoryError
    return norm


def to_device(rows: Rows, runtime: Runtime) -> Tensor:
    """Rows (n, T) as a tensor where the model is; the copy overlaps with the CPU's work on a GPU, or was started a step before."""
    if isinstance(rows, SentRows) and rows.on_gpu is not None:
        return rows.on_gpu.arrived()
    tensor = torch.from_numpy(rows)
    return tensor.pin_memory().to(runtime.device, non_blocking=True) if runtime.device.type == "cuda" else tensor.to(runtime.device)
