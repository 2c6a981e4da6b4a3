"""Many ranks at the price of one start: `python tests/rank_lab.py OUT` imports torch once and forks the ranks of each scenario.

Ranks meet through gloo and a file. A process that has run a backward pass cannot be forked into ones that do, so the tests start this program.
Each scenario writes what it saw as OUT/NAME.json.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nanochat.optim.muon_adamw import MuonAdamW

OUT = Path(sys.argv[1]) if __name__ == "__main__" else Path()
EVERYTHING = {"variance_reduction": True, "row_equilibration": True, "cautious_weight_decay": True, "weight_decay": 0.1, "orthogonalizer": "polar_express"}
MATRICES = [*[(16, 16)] * 4, *[(48, 16)] * 2, (16, 48), (8, 40)]
CUT = [(151, 120), (7, 13), (1,)]  # 18,212 elements: no number of ranks divides them
EVEN = [(210, 84)]  # 17,640: 1, 2, 3, 5, 6 and 7 do
SMALL = [(3,), (5,)]
WORLDS = (2, 3, 5, 6, 7)


def ranks(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work` returns on each of `count` ranks, each a process of its own."""
    meeting = OUT / "meeting"
    meeting.unlink(missing_ok=True)
    children = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        try:
            torch.set_num_threads(1)
            if count > 1:
                dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
            torch.save(work(rank), OUT / f"answer.{rank}")
            if count > 1:
                dist.destroy_process_group()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count, "a rank has failed"
    return [torch.load(OUT / f"answer.{rank}", weights_only=False) for rank in range(count)]


def note(name: str, **facts: Any) -> None:
    """For the tests to read."""
    (OUT / f"{name}.json").write_text(json.dumps(facts))


# --- the optimizer alone ---------------------------------------------------------------------------------------------


def parameters() -> list[torch.nn.Parameter]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in (*MATRICES, *CUT, *EVEN, *SMALL)]


def give_gradients(given: list[torch.nn.Parameter], step: int, rank: int, world: int) -> None:
    """Parts that add up to the same whole with any number of ranks. One parameter has no gradient."""
    generator = torch.Generator().manual_seed(100 + step)
    for place, parameter in enumerate(given):
        whole = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if place == 1 else whole * (rank + 1) / (world * (world + 1) / 2)


def optimizer_of(given: list[torch.nn.Parameter], rank: int, world: int) -> MuonAdamW:
    """One group of each kind of exchange."""
    rest = iter(given[len(MATRICES) :])
    groups: list[dict[str, Any]] = [{"kind": "muon", "params": given[: len(MATRICES)], "lr": 0.02, **EVERYTHING}]
    groups += [{"kind": "adamw", "params": [next(rest) for _ in shapes], "lr": 0.01, "weight_decay": 0.1} for shapes in (CUT, EVEN, SMALL)]
    return MuonAdamW(groups, rank=rank, world_size=world)


def three_steps(rank: int, world: int) -> dict[str, Any]:
    """Weights, norms and the size of the state after three clipped steps, and what a bad gradient on the last rank does to all."""
    given = parameters()
    optimizer = optimizer_of(given, rank, world)
    norms = []
    for step in range(3):
        optimizer.zero_grad()
        give_gradients(given, step, rank, world)
        norms.append(optimizer.reduce())
        optimizer.scale_gradients(0.5)
        optimizer.step(norms[-1])
    gradients = sum(parameter.grad.numel() for parameter in given if parameter.grad is not None)
    state = sum(value.numel() for entry in optimizer.state.values() for key, value in entry.items() if key in ("momentum", "mean", "square"))
    weights = [parameter.detach().clone() for parameter in given]
    groups = optimizer.group_norms()
    give_gradients(given, 3, rank, world)
    if rank == world - 1:
        given[9].grad[0, 0] = math.nan  # type: ignore[index]
    try:
        optimizer.step()
        said = "nothing"
    except FloatingPointError as error:
        said = str(error)
    untouched = all(torch.equal(old, new) for old, new in zip(weights, given, strict=True))
    return {"weights": weights, "norms": norms, "groups": groups, "state": state, "gradients": gradients, "said": said, "untouched": untouched}


def optimizers() -> None:
    """One rank against several."""
    [alone] = ranks(1, lambda rank: three_steps(rank, 1))
    for world in WORLDS:
        found = ranks(world, lambda rank, world=world: three_steps(rank, world))  # type: ignore[misc]
        first = found[0]
        note(
            f"optimizer.{world}",
            difference=max(float((a - b).abs().max()) for a, b in zip(first["weights"], alone["weights"], strict=True)),
            all_equal=all(torch.equal(a, b) for other in found for a, b in zip(first["weights"], other["weights"], strict=True)),
            norms=[entry["norms"] for entry in found],
            groups=[entry["groups"] for entry in found],
            state=[entry["state"] for entry in found],
            said=sorted({entry["said"] for entry in found}),
            untouched=all(entry["untouched"] for entry in found),
        )
    note("optimizer.1", norms=alone["norms"], groups=alone["groups"], state=alone["state"], said=alone["said"])


if __name__ == "__main__":
    optimizers()
