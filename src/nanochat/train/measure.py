"""What is measured of an update besides its loss: norms of every parameter group, memory, and the time spent on fetching rows.

None of it touches what is learnt: norms are read beside the optimizer's step, before and after it, on some updates only.
"""

import math
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.train.update import Batches, Rows

SAMPLED = 1 << 16  # elements of a tensor that the norm of its update is taken from: the weights before it, kept meanwhile, are a copy of so many
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


class TimedBatches:
    """Batches, and the seconds in which an update waited for their rows, counted until somebody sets them back."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.seconds = batches, 0.0

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """As the batches give them."""
        started = time.perf_counter()
        try:
            return self.batches.rows(step, positions)
        finally:
            self.seconds += time.perf_counter() - started

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


class MeasuredOptimizer:
    """Stands in for an optimizer during one update and takes the norms of each group around its step."""

    def __init__(self, optimizer: MuonAdamW) -> None:
        self.optimizer = optimizer
        self.sums: Tensor | None = None  # (2, groups): update, weights

    @torch.no_grad()
    def step(self, norm: float | None = None) -> None:
        """The optimizer's step. All ranks have all weights before and after it, so one of them is enough."""
        groups = [group["params"] for group in self.optimizer.param_groups]
        before = [[_sample(parameter).clone() for parameter in parameters] for parameters in groups]
        self.optimizer.step(norm)
        updates = [_update_norm(kept, parameters) for kept, parameters in zip(before, groups, strict=True)]
        self.sums = torch.stack([torch.stack(updates), torch.stack([_norm(parameters) for parameters in groups])])

    def norms(self) -> dict[str, float]:
        """What metrics.jsonl says of each group; gradients as they were before clipping."""
        if self.sums is None:
            return {}
        names = [group["name"] for group in self.optimizer.param_groups]
        updates, weights = self.sums.tolist()
        line: dict[str, float] = {}
        for name, gradient, update, weight in zip(names, self.optimizer.group_norms(), updates, weights, strict=True):
            line |= {f"grad_norm/{name}": _short(gradient), f"update_norm/{name}": _short(update), f"weight_norm/{name}": _short(weight)}
            if weight:
                line[f"update_ratio/{name}"] = _short(update / weight)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


def memory(device: torch.device) -> dict[str, int]:
    """The most memory that this process has held so far."""
    held = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT_BYTES}
    if device.type == "cuda":
        held["peak_cuda_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        held["peak_cuda_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return held


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))).float())
    return norm


def _sample(parameter: Tensor) -> Tensor:
    """All elements of a small tensor; of a large one every n-th, where n has no divisor in common with its rows, so that all columns are met."""
    flat: Tensor = parameter.detach().reshape(-1)
    stride = -(-flat.numel() // SAMPLED)
    while stride > 1 and math.gcd(stride, parameter.shape[-1]) > 1:
        stride += 1
    return flat[::stride]


def _update_norm(kept: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """Of all elements, as the sampled ones tell. `kept`: the samples before the update, overwritten."""
    torch._foreach_sub_(kept, [_sample(parameter) for parameter in parameters])
    norms = torch.stack(torch._foreach_norm(kept)).float()
    share = torch.tensor([parameter.numel() / sample.numel() for parameter, sample in zip(parameters, kept, strict=True)], device=norms.device)
    norm: Tensor = (norms.square() * share).sum().sqrt()
    return norm


def _short(value: float) -> float:
    """Six digits say all there is to see."""
    return float(f"{value:.6g}")
