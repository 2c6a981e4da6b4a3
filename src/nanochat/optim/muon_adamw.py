"""One optimizer for a whole model: Muon for matrices, AdamW for embeddings, head and scalars.

Groups are dicts: {"kind": "muon" | "adamw", "params": [...], "lr": ...} and the keys of MUON_DEFAULTS or ADAMW_DEFAULTS,
all neutral unless set. Every rank calls `step` with equal gradients; the costly part of Muon is then divided among them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.optim.orthogonalize import ORTHOGONALIZERS

MUON_DEFAULTS: dict[str, Any] = {
    "momentum": 0.95,
    "weight_decay": 0.0,
    "orthogonalizer": "newton_schulz",
    "variance_reduction": False,  # NorMuon: equalise the size of rows (or columns) by a running second moment
    "variance_beta": 0.9,
    "cautious_weight_decay": False,  # decay only where the step, too, shrinks the weight
    "row_equilibration": False,  # MuonEq: rows of equal norm before, exact Frobenius norm after orthogonalizing
}
ADAMW_DEFAULTS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
DEFAULTS = {"muon": MUON_DEFAULTS, "adamw": ADAMW_DEFAULTS}


class MuonAdamW:
    """Muon (momentum with Nesterov's look-ahead, orthogonalized) and AdamW, by group. Same inputs, same bits.

    Groups and state look as in torch.optim, whose base class it does without: that imports torch.compile, 1.8 s at every start.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.param_groups = [_checked(group) for group in groups]
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if len(set(parameters)) < len(parameters):
            raise ValueError("params: a parameter stands in two places; name each once")

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient. Non-finite gradients are an error before anything is changed."""
        norm = gradient_norm(parameter for group in self.param_groups for parameter in group["params"])
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm}: {self._first_bad_parameter()}; lower the learning rates or look at the data of this step")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["kind"] == "adamw":
                self._adamw(group, parameters)
                continue
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in parameters:
                by_shape[parameter.shape].append(parameter)
            for same in by_shape.values():
                self._muon(group, same)

    def _first_bad_parameter(self) -> str:
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    return f"first in parameter {place} of group {number} ({group['kind']}, shape {tuple(parameter.shape)})"
        return "though each gradient alone is finite"

    # --- AdamW -------------------------------------------------------------------------------------------------------

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                step = torch.zeros((), device=parameter.device)  # the fused kernel reads it where the weights are
                self.state[parameter] = {"step": step, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares, steps = ([self.state[parameter][key] for parameter in parameters] for key in ("mean", "square", "step"))
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(  # one pass over memory instead of eight
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    # --- Muon --------------------------------------------------------------------------------------------------------

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Update matrices of one shape (M, N), stacked as (K, M, N)."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        torch._foreach_lerp_(momenta, list(gradients.unbind()), 1 - group["momentum"])
        updates = gradients.lerp_(torch.stack(momenta), group["momentum"])  # Nesterov: this gradient, moved towards the average
        updates = self._orthogonalized(group, updates)
        if group["variance_reduction"]:
            updates = self._equalised(group, parameters, updates)
        rows, columns = updates.shape[-2:]
        lr = group["lr"] * math.sqrt(max(1.0, rows / columns))
        if decay := group["weight_decay"]:
            self._decay(parameters, updates, group["lr"] * decay, cautious=group["cautious_weight_decay"])
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-lr)

    def _orthogonalized(self, group: dict[str, Any], updates: Tensor) -> Tensor:
        """Each matrix of the stack (K, M, N) made orthogonal; ranks share the work."""
        if group["row_equilibration"]:
            updates = updates / (torch.linalg.vector_norm(updates, dim=-1, keepdim=True) + 1e-7)
        work = updates.to(work_dtype(updates.device))
        orthogonalize = ORTHOGONALIZERS[group["orthogonalizer"]]
        if self.world_size == 1:
            done = orthogonalize(work)
        else:
            share = -(-len(work) // self.world_size)
            padded = torch.cat([work, work.new_zeros(share * self.world_size - len(work), *work.shape[1:])])
            mine = orthogonalize(padded[self.rank * share : (self.rank + 1) * share]).contiguous()
            dist.all_gather(list(torch.split(padded, share)), mine)
            done = padded[: len(work)]
        done = done.to(updates.dtype)
        if group["row_equilibration"]:  # the norm that an exactly orthogonal matrix has
            done = done * (math.sqrt(min(done.shape[-2:])) / (torch.linalg.vector_norm(done, dim=(-2, -1), keepdim=True) + 1e-7))
        return done

    def _equalised(self, group: dict[str, Any], parameters: list[Tensor], updates: Tensor) -> Tensor:
        """Divide rows (of a wide matrix: columns) by their running root mean square; the norm of the update stays."""
        axis = -1 if updates.shape[-2] >= updates.shape[-1] else -2
        means = updates.square().mean(dim=axis, keepdim=True)
        for parameter, first in zip(parameters, means, strict=True):
            state = self.state[parameter]
            if "square" not in state:
                state["square"], state["step"] = torch.zeros_like(first), 0
            state["step"] += 1
        squares, steps = [self.state[parameter]["square"] for parameter in parameters], [self.state[parameter]["step"] for parameter in parameters]
        torch._foreach_lerp_(squares, list(means.unbind()), 1 - group["variance_beta"])
        corrected = torch.stack(torch._foreach_div(squares, [1 - group["variance_beta"] ** step for step in steps]))
        scaled = updates * (corrected + 1e-10).rsqrt()
        before, after = (torch.linalg.vector_norm(stack, dim=(-2, -1), keepdim=True) for stack in (updates, scaled))
        equalised: Tensor = scaled * (before / (after + 1e-10))
        return equalised

    def _decay(self, parameters: list[Tensor], updates: Tensor, amount: float, *, cautious: bool) -> None:
        if not cautious:
            torch._foreach_mul_(parameters, 1 - amount)
            return
        weights = torch.stack(parameters)
        shrinks = (updates * weights) >= 0  # the step is minus the update
        torch._foreach_sub_(parameters, list((weights * shrinks * amount).unbind()))


def work_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it many times faster (a GPU, a CPU with AMX); the polynomial corrects its rounding."""
    is_fast = device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if is_fast else torch.float32


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean norm of all gradients together; non-finite if any of them is."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))


def _checked(group: dict[str, Any]) -> dict[str, Any]:
    """The group with every key of its kind. Unknown keys, kinds and shapes are a ValueError."""
    kind = group.get("kind")
    if kind not in DEFAULTS:
        raise ValueError(f"kind={kind!r}: no such kind of group; choose one of {', '.join(DEFAULTS)}")
    known = {"kind", "params", "lr", "name", *DEFAULTS[kind]}
    if unknown := sorted(key for key in set(group) - known if not key.startswith("initial_")):
        raise ValueError(f"{unknown[0]}: unknown key of a {kind} group; known are {', '.join(sorted(known))}")
    if "lr" not in group:
        raise ValueError(f"lr: missing in a {kind} group; give a learning rate")
    full = {**DEFAULTS[kind], **group, "params": list(group["params"])}
    if kind == "muon":
        if full["orthogonalizer"] not in ORTHOGONALIZERS:
            raise ValueError(f"orthogonalizer={full['orthogonalizer']!r}: choose one of {', '.join(ORTHOGONALIZERS)}")
        if wrong := [tuple(parameter.shape) for parameter in full["params"] if parameter.ndim != 2]:
            raise ValueError(f"params: shape {wrong[0]} is not a matrix; put it into an adamw group")
    return full
