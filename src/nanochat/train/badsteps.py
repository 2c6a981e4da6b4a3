"""Steps that look wrong: a loss or gradient that is not finite, a loss far above the recent ones. What they are, and which rows they held.

What is done about them is `on_bad_step` of a stage. A step that is passed over leaves weights and optimizer as they are; the step counter goes on, so
the next step has the next rows. All of it follows from losses that are equal on all ranks and that the resume state holds.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from nanochat.config import OnBadStep
from nanochat.runtime import Runtime
from nanochat.train.scaling import TrainingPlan
from nanochat.train.update import MicroLosses, positions_of

LEAST_DEVIATION = 1e-3  # of the mean; assumption: losses that hardly differ at all are no measure of what is unusual
MOST_IN_A_ROW = 10  # assumption: what does not end after so many steps is no accident of a batch
SHOWN_ROWS = 8  # in the log; metrics.jsonl has all

RowIds = Callable[[int, Sequence[int]], Iterable[int]]


def spike(loss: float, recent: Sequence[float], policy: OnBadStep) -> str | None:
    """Why a loss is a spike; None if it is none, or too few losses are known to tell."""
    if len(recent) < policy.history:
        return None
    mean = math.fsum(recent) / len(recent)
    deviation = max(math.sqrt(math.fsum((value - mean) ** 2 for value in recent) / len(recent)), LEAST_DEVIATION * mean)
    above = (loss - mean) / deviation
    if above <= policy.sigma:
        return None
    return f"loss {loss:.4f} is a spike, {above:.1f} standard deviations above the mean of the last {len(recent)} losses, {mean:.4f}"


def goes_on(old: Mapping[str, Any], new: Mapping[str, Any], counters: Mapping[str, Any]) -> bool:
    """Whether a state made under policy `old` is what policy `new` would have made: no step has been met that they judge differently."""
    was, now = (OnBadStep(**policy) for policy in (old, new))
    if was.non_finite != now.non_finite and counters.get("non_finite_steps", 0):
        return False
    if was.spike == now.spike == "ignore":
        return True
    measured_alike = (was.sigma, was.history) == (now.sigma, now.history)
    return measured_alike and (was.spike == now.spike or counters.get("spikes") == 0)


def rows_of(micro: MicroLosses, plan: TrainingPlan, runtime: Runtime, step: int, row_ids: RowIds | None) -> dict[str, Any]:
    """The rows of a step, those of the micro-batch with the highest loss first, for metrics.jsonl. Every rank has to ask, as it is gathered from all."""
    mine = micro.means()
    losses = torch.zeros(plan.ranks * len(mine), dtype=torch.float32, device=runtime.device)
    losses[runtime.rank * len(mine) : (runtime.rank + 1) * len(mine)] = torch.tensor(mine, dtype=torch.float32)
    values = runtime.all_reduce(losses).tolist()
    positions = [places for rank in range(plan.ranks) for places in positions_of(plan, rank)]
    order = sorted(range(len(values)), key=lambda place: (math.isfinite(values[place]), -values[place] if math.isfinite(values[place]) else 0.0))
    found: dict[str, Any] = {"micro_batch_losses": [values[place] if math.isfinite(values[place]) else str(values[place]) for place in order]}
    if row_ids is not None:
        found |= {"rows": [int(row) for place in order for row in row_ids(step, positions[place])], "micro_batch_rows": plan.micro_batch_rows}
    return found


def named_rows(found: Mapping[str, Any], folder: str) -> str:
    """The rows most to blame, and the command that shows them, for the log."""
    if "rows" not in found:
        return "which rows it held is not known"
    worst = " ".join(map(str, found["rows"][: min(SHOWN_ROWS, found["micro_batch_rows"])]))
    return (
        f"the highest loss, {found['micro_batch_losses'][0]}, is that of the micro-batch with rows {worst}; to read them: nanochat data show {folder} {worst}"
    )
