"""Many ranks at the price of one start: `python tests/rank_lab.py OUT` imports torch once and forks the ranks of each scenario.

Ranks meet through gloo and a file. A process that has run a backward pass cannot be forked into ones that do, so the tests start this program.
Each scenario writes what it saw as OUT/NAME.json.
"""

import json
import math
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nanochat import config
from nanochat.errors import Stopped
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.recipes import RECIPES
from nanochat.runtime import Runtime, StopRequest
from nanochat.train.loop import Settings, Trainer
from nanochat.train.saving import Saver
from nanochat.train.scaling import Shape, plan_base_train
from nanochat.train.state import gathered, named_parameters, own_state
from nanochat.train.tensorfile import write_tensors
from nanochat.train.update import Rows, build_optimizer

OUT = Path(sys.argv[1]) if __name__ == "__main__" else Path()
EVERYTHING = {"variance_reduction": True, "row_equilibration": True, "cautious_weight_decay": True, "weight_decay": 0.1, "orthogonalizer": "polar_express"}
MATRICES = [*[(16, 16)] * 4, *[(48, 16)] * 2, (16, 48), (8, 40)]
CUT = [(151, 120), (7, 13), (1,)]  # 18,212 elements: no number of ranks divides them
EVEN = [(210, 84)]  # 17,640: 1, 2, 3, 5, 6 and 7 do
SMALL = [(3,), (5,)]
WORLDS = (2, 3, 5, 6, 7)


def ranks(count: int, work: Callable[[int], Any], code: int = 0) -> list[Any]:
    """What `work` returns on each of `count` ranks, each a process of its own; nothing for another exit status than 0."""
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
    assert [os.waitpid(child, 0)[1] for child in children] == [code] * count, "a rank has failed"
    return [] if code else [torch.load(OUT / f"answer.{rank}", weights_only=False) for rank in range(count)]


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


# --- trainings -------------------------------------------------------------------------------------------------------

STEPS, ROWS, T, V = 12, 210, 4, 600  # 210 rows are shared by 1, 2, 3, 5, 6 and 7 ranks alike; an embedding of 640 x 32 is cut
RECIPE = "modern-2026-07"
LEGS = ((1, 2), (3, 4), (2, 6), (1, 8), (5, 10), (7, 12))  # (ranks, step at which they stop)


class SeededRows:
    """Rows that follow from step and position; `seen` notes which were asked for."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """As a trainer wants them."""
        self.seen.append((step, list(positions)))
        rows = np.random.default_rng(step).integers(0, V, (ROWS, T + 1))[list(positions)]
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def trained(rank: int, world: int, folder: Path, until: int, *, save_every_s: float = 0.0) -> dict[str, Any]:
    """Train in `folder` until an update, with the state saved in the background as often as possible; what this rank saw."""
    runtime = Runtime(torch.device("cpu"), torch.float64, rank, rank, world)
    architecture = {**RECIPES[RECIPE]["architecture"], "width": 32, "head_dim": 16}
    shape = ModelConfig.from_depth(2, vocab_size=V, sequence_len=T, architecture=architecture)
    model = GPT(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).double()  # a lost moment is no rounding then
    with torch.no_grad():  # outputs start at zero; give every gradient a path
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    overrides = {"horizon": {"steps": STEPS, "batch_tokens": ROWS * T}, "optimizer": {"grad_clip": 0.5}}
    resolved = config.resolve_base_train(config.BaseTrainStage.model_validate({"recipe": RECIPE, "depth": 2, **overrides}), RECIPE)
    plan = plan_base_train(resolved, Shape(2, 32, V, T, {"all": 9000, "scaling": 9000}, {"all": 9000, "scaling": 9000}), ranks=world)
    optimizer, rows, stop = build_optimizer(model, plan, runtime), SeededRows(), StopRequest()

    def look() -> None:
        if trainer.counters.step == until:
            stop.reason = "SIGTERM"

    settings = Settings(name="test", validate_every=1, sample_every=0, save_every_s=save_every_s, flops_per_token=1)
    trainer = Trainer(*(model, optimizer, plan, rows, runtime), folder=folder, fingerprint="f", settings=settings, stop=stop, validate=look)
    try:
        trainer.run()
    except Stopped:
        assert until < STEPS
    state = gathered(own_state(model, optimizer), named_parameters(model), runtime)
    if rank == 0:
        write_tensors(folder / "optimizer.safetensors", state)
    return {"seen": rows.seen, "first": rows.seen[0][0], "weights": [parameter.detach().clone() for parameter in model.parameters()]}


def losses(folder: Path) -> list[float]:
    """Of every update."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def compared(found: list[dict[str, Any]], whole: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Weights and losses of a run beside those of the run that was never interrupted."""
    pairs = [pair for entry in found for pair in zip(entry["weights"], whole["weights"], strict=True)]
    return {"losses": losses(folder), "difference": max(float((one - other).abs().max()) for one, other in pairs)}


def trainings() -> None:
    """One run that changes its number of ranks five times; one whose ranks are killed while they save in the background."""
    [whole] = ranks(1, lambda rank: trained(rank, 1, OUT / "whole", STEPS))
    note("whole", losses=losses(OUT / "whole"), seen=whole["seen"])
    seen: dict[int, list[int]] = {}
    files, firsts = [], []
    for world, until in LEGS:
        found = ranks(world, lambda rank, world=world, until=until: trained(rank, world, OUT / "legs", until))  # type: ignore[misc]
        for step, positions in (entry for rank in found for entry in rank["seen"]):
            seen.setdefault(step, []).extend(positions)
        firsts.append(found[0]["first"])
        files.append(sorted(path.name for path in (OUT / "legs" / "resume").iterdir()))
    note("legs", **compared(found, whole, OUT / "legs"), rows=[sorted(seen[step]) == list(range(ROWS)) for step in range(STEPS)], files=files, firsts=firsts)

    def killed(rank: int) -> None:
        def count(self: Saver) -> None:
            self.pieces += 1
            if self.counters["step"] == 5 and self.pieces % 3 == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        Saver._count = count  # type: ignore[method-assign]
        trained(rank, 3, OUT / "killed", STEPS)

    ranks(3, killed, signal.SIGKILL)
    after = sorted(path.name for path in (OUT / "killed" / "resume").iterdir())
    shutil.copytree(OUT / "killed", OUT / "damaged")
    found = ranks(2, lambda rank: trained(rank, 2, OUT / "killed", STEPS))
    note("killed", **compared(found, whole, OUT / "killed"), after=after, first=found[0]["first"])


if __name__ == "__main__":
    optimizers()
    trainings()
