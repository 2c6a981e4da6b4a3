"""One optimizer for a whole model: Muon for matrices, AdamW for embeddings, head and scalars.

Groups are dicts: {"kind": "muon" | "adamw", "params": [...], "lr": ...} and the keys of MUON_DEFAULTS or ADAMW_DEFAULTS,
all neutral unless set. The same class serves one rank and many: each brings the gradients of its own rows, keeps a share of the state
(optim/shares.py), and has all weights afterwards.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.optim.orthogonalize import ORTHOGONALIZERS
from nanochat.optim.shares import EVERYBODY, Copies, Exchange, Piece, exchange_of, layout

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


class Part(NamedTuple):
    """What this rank updates of a parameter: all of it, or a flat view of its piece, and the summed gradient of that."""

    parameter: Tensor  # the key of its state
    weight: Tensor
    gradient: Tensor


class MuonAdamW:
    """Muon (momentum with Nesterov's look-ahead, orthogonalized) and AdamW, by group. Same inputs, same bits.

    Groups and state look as in torch.optim, whose base class it does without: that imports torch.compile, 1.8 s at every start.
    `state` holds what this rank keeps; `reduce` and `step` are called by all ranks together.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.param_groups = [_checked(group) for group in groups]
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if len(set(parameters)) < len(parameters):
            raise ValueError("params: a parameter stands in two places; name each once")
        pieces = layout([(group["kind"], [parameter.shape for parameter in group["params"]]) for group in self.param_groups], world_size)
        self.pieces: dict[Tensor, list[Piece]] = dict(zip(parameters, (piece for group in pieces for piece in group), strict=True))
        self.exchanges: list[Exchange] = []
        if world_size > 1:
            groups_pieces = zip(self.param_groups, pieces, strict=True)
            self.exchanges = [exchange_of(group["kind"], group["params"], of_group, rank, world_size) for group, of_group in groups_pieces]
        self._parts: list[list[Part]] = []  # by group, once gradients are reduced
        self._is_prepared = False
        self._norms: list[list[Tensor]] = []  # by group; their norm is that of the group

    def own_piece(self, parameter: Tensor) -> Piece | None:
        """What this rank keeps of a parameter; None: nothing."""
        return next((piece for piece in self.pieces[parameter] if piece.rank in (self.rank, EVERYBODY)), None)

    def zero_grad(self) -> None:
        """Forget all gradients, and what was prepared of them."""
        self._parts, self._is_prepared = [], False
        for exchange in self.exchanges:
            exchange.forget()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def reduce(self) -> float:
        """Sum the gradients of all ranks, of which each keeps its share; returns the norm of them all, the same on every rank.

        It is not finite if any gradient is not. Until here a rank holds whole gradients: they are sums over its micro-batches.
        """
        self.start_reduce()
        return float(self.finish_reduce())

    @torch.no_grad()
    def prepare_reduce(self) -> None:
        """Take the memory that `reduce` needs, before any rank waits for another: where it is short, `zero_grad` undoes it and nothing is changed."""
        self._parts = []
        self._present = [[parameter for parameter in group["params"] if parameter.grad is not None] for group in self.param_groups]
        for number, exchange in enumerate(self.exchanges):
            exchange.prepare(self._present[number])
        self._is_prepared = True

    def start_reduce(self) -> None:
        """Start to send everything."""
        if not self._is_prepared:
            self.prepare_reduce()
        self._is_prepared = False
        for exchange in self.exchanges:
            exchange.start_reduce()

    def finish_reduce(self) -> Tensor:
        """Wait, group by group, and take norms meanwhile; returns the norm of all gradients."""
        if self.world_size == 1:
            self._parts = [[Part(parameter, parameter, parameter.grad) for parameter in present] for present in self._present]
            gradients = [part.gradient for parts in self._parts for part in parts]
            every = iter(norms := list(torch._foreach_norm(gradients)) if gradients else [])
            self._norms = [list(islice(every, len(parts))) for parts in self._parts]
            return _norm(norms)
        own, zero = list[Tensor](), next(iter(self.pieces)).new_zeros(())
        for exchange, present in zip(self.exchanges, self._present, strict=True):
            parts = [Part(*part) for part in exchange.reduced(present)]
            self._parts.append(parts)
            counted = [] if isinstance(exchange, Copies) and self.rank > 0 else [part.gradient for part in parts]  # copies: once
            own.append(_norm(torch._foreach_norm(counted)) if counted else zero)
        mine = torch.stack(own)
        every_rank = mine.new_empty(self.world_size * len(mine))
        dist.all_gather_single(every_rank, mine)  # and not summed on the way, so that all ranks have the very same norm
        of_groups = torch.linalg.vector_norm(every_rank.view(self.world_size, -1), dim=0)
        self._norms = [[norm] for norm in of_groups]
        return _norm(list(of_groups))

    def gradient_bytes(self) -> int:
        """Size of what this rank holds of the summed gradients."""
        return sum(part.gradient.numel() * part.gradient.element_size() for parts in self._parts for part in parts)

    def group_norms(self) -> list[float]:
        """Norm of the gradient of each group, as last reduced; the same on every rank."""
        return [float(_norm(norms)) for norms in self._norms]

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        """Multiply what was reduced."""
        if gradients := [part.gradient for parts in self._parts for part in parts]:
            torch._foreach_mul_(gradients, factor)

    @torch.no_grad()
    def step(self, norm: float | None = None) -> None:
        """Update every parameter that has a gradient. Non-finite gradients are an error before anything is changed.

        `norm`: what `reduce` has returned; without it gradients are reduced first.
        """
        norm = self.reduce() if norm is None else norm
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm}: {self._first_bad_parameter()}; lower the learning rates or look at the data of this step")
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Update this rank's share from what was reduced, and exchange weights; a group is on its way while the next one is computed."""
        for number, (group, parts) in enumerate(zip(self.param_groups, self._parts, strict=True)):
            if group["kind"] == "adamw":
                self._adamw(group, parts)
                self._send(number, self._present[number])
                continue
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in self._present[number]:
                by_shape[parameter.shape].append(parameter)
            own = {part.parameter: part for part in parts}
            for same in by_shape.values():
                if mine := [own[parameter] for parameter in same if parameter in own]:
                    self._muon(group, mine)
                self._send(number, same)
        for exchange in self.exchanges:
            exchange.gathered()

    def _send(self, number: int, parameters: Sequence[Tensor]) -> None:
        if self.exchanges and parameters:
            self.exchanges[number].start_gather(parameters)

    def _first_bad_parameter(self) -> str:
        """In the order of groups and parameters; with several ranks each looks at its own share."""
        places = [(number, place) for number, group in enumerate(self.param_groups) for place in range(len(group["params"]))]
        bad = {part.parameter for parts in self._parts for part in parts if not torch.isfinite(part.gradient).all()}
        found = [index for index, (number, place) in enumerate(places) if self.param_groups[number]["params"][place] in bad]
        first = torch.tensor(min(found, default=len(places)), device=self.param_groups[0]["params"][0].device)
        if self.world_size > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        if first == len(places):
            return "though each gradient alone is finite"
        number, place = places[int(first)]
        group = self.param_groups[number]
        return f"first in parameter {place} of group {number} ({group['kind']}, shape {tuple(group['params'][place].shape)})"

    # --- AdamW -------------------------------------------------------------------------------------------------------

    def _adamw(self, group: dict[str, Any], parts: list[Part]) -> None:
        if not parts:
            return
        for parameter, weight, _ in parts:
            if not self.state[parameter]:
                step = torch.zeros((), device=parameter.device)  # the fused kernel reads it where the weights are
                self.state[parameter] = {"step": step, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        states = [self.state[part.parameter] for part in parts]
        means, squares, steps = ([state[key] for state in states] for key in ("mean", "square", "step"))
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(  # one pass over memory instead of eight
            [part.weight for part in parts],
            [part.gradient for part in parts],
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

    def _muon(self, group: dict[str, Any], parts: list[Part]) -> None:
        """Update matrices of one shape (M, N), stacked as (K, M, N)."""
        parameters = [part.parameter for part in parts]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = torch.stack([part.gradient for part in parts])
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
        """Each matrix of the stack (K, M, N) made orthogonal."""
        if group["row_equilibration"]:
            updates = updates / (torch.linalg.vector_norm(updates, dim=-1, keepdim=True) + 1e-7)
        done = ORTHOGONALIZERS[group["orthogonalizer"]](updates.to(work_dtype(updates.device)))
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


def _norm(norms: Sequence[Tensor]) -> Tensor:
    """Norm of all vectors together that have these norms."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(norms))) if norms else torch.zeros(())
    return norm


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
