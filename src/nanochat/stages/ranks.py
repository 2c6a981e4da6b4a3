"""Check a run at any number of ranks on this machine, before any is paid: batches, shares and one whole step, without data or memory.

reads   the experiment
writes  nothing

For each training stage of the run: how a step is shared, then one step (forward, backward, gradients summed, weights updated and exchanged)
of the ranks that keep most and least, with the real model, optimizer and exchanges. Tensors have shapes but no values
and the other ranks answer at once, so depth 26 at 1,024 ranks takes seconds and less than a gigabyte. Says the memory of a rank's weights,
gradients and state, and the files of a saved state. Exit code 2 and one sentence for each stage that could not run.

by hand: nanochat ranks 8 --configfile configs/speedrun.yaml
         nanochat ranks 16 --configfile configs/gpt2.yaml --run d24 --stage base_train --gpu a100
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from nanochat.config import Experiment, load
from nanochat.errors import UserError
from nanochat.hardware import ACCELERATORS, GIB, accelerator
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.optim.shares import EVERYBODY
from nanochat.plan.work import TRAINING, Works
from nanochat.runtime import Runtime
from nanochat.stages.common import positive_int, stage_parser
from nanochat.train.scaling import TrainingPlan
from nanochat.train.state import own_state, own_weights
from nanochat.train.update import build_optimizer, positions_of

META = torch.device("meta")


@dataclass(frozen=True)
class Share:
    """What one rank held in a step."""

    state_bytes: int  # of the optimizer
    saved_bytes: int  # its file of a saved state
    gradient_bytes: int  # once they are summed


def main(arguments: list[str]) -> None:
    """Check every stage asked for, then refuse what would be refused."""
    parser = stage_parser(__doc__, "ranks")
    parser.add_argument("ranks", type=positive_int, help="processes that train together, one per GPU, on all nodes")
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="experiment (default: config.yaml)")
    parser.add_argument("--run", help="one run of it (default: all)")
    parser.add_argument("--stage", choices=TRAINING, help="one stage (default: all that the run has)")
    parser.add_argument("--gpu", help="choose micro-batches for this card: a100, h100, ... (default: as a CPU would, where the run gives none)")
    flags = parser.parse_args(arguments)
    experiment = load(flags.configfile)
    if flags.run is not None and flags.run not in experiment.runs:
        raise UserError(f"--run={flags.run}: not in {flags.configfile}; choose one of {', '.join(experiment.runs)}")
    if flags.gpu is not None and accelerator(flags.gpu) is None:
        raise UserError(f"--gpu={flags.gpu}: not a card that is known; choose one of {', '.join(kind.name for kind in ACCELERATORS)}")
    card = accelerator(flags.gpu)
    memory = card.memory_gib * GIB if card else None
    problems = []
    for name in [flags.run] if flags.run else list(experiment.runs):
        for stage in [flags.stage] if flags.stage else stages_of(experiment, name):
            try:
                print(f"{name} {stage}: {checked(experiment, name, stage, flags.ranks, memory)}", flush=True)
            except UserError as problem:
                problems.append(f"{name} {stage}: {problem}")
    if problems:
        raise UserError("\n".join(problems))


def stages_of(experiment: Experiment, name: str) -> list[str]:
    """Training stages that a run has."""
    return [stage for stage in TRAINING if getattr(experiment.runs[name], stage) is not None]


def checked(experiment: Experiment, name: str, stage: str, ranks: int, memory_bytes: int | None) -> str:
    """What a stage does at so many ranks, as sentences, after one step of it. Raises UserError for what it cannot do."""
    if getattr(experiment.runs[name], stage) is None:
        raise UserError(f"--stage={stage}: the run has no such stage; leave --stage out to see what it has")
    training = Works(experiment).training(stage, name, ranks, memory_bytes)
    config, plan, counts = training.model, training.plan, training.model.parameter_counts()
    rows = [position for rank in range(ranks) for part in positions_of(plan, rank) for position in part]
    assert rows == list(range(plan.rows_per_step))
    [alone], shares = stepped(config, plan, 1, [0]), stepped(config, plan, ranks, looked_at(config, plan, ranks))
    most, least = (pick(share.state_bytes for share in shares) for pick in (max, min))
    return (
        f"{plan.batch_tokens:,} tokens a step = {ranks} ranks x {plan.accumulation} x {plan.micro_batch_rows} rows x {plan.sequence_len:,} tokens; "
        f"of a rank: weights {size(4 * counts['total'])}, gradients {size(4 * counts['total'])} until they are summed and at most "
        f"{size(max(share.gradient_bytes for share in shares))} then, optimizer {size(least)} to {size(most)} (one rank alone: {size(alone.state_bytes)}); "
        f"a saved state is {ranks} file{'s' * (ranks > 1)} of at most {size(max(share.saved_bytes for share in shares))}; one step was taken"
    )


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def model_of(config: ModelConfig) -> GPT:
    """A model with shapes and no values."""
    with META:
        return GPT(config, dtype=torch.bfloat16, blank=True)


def looked_at(config: ModelConfig, plan: TrainingPlan, ranks: int) -> list[int]:
    """The ranks that keep most and least of the parameters."""
    optimizer = build_optimizer(model_of(config), plan, Runtime(META, torch.bfloat16, 0, 0, ranks))
    held = [0] * ranks
    for piece in (piece for pieces in optimizer.pieces.values() for piece in pieces if piece.rank != EVERYBODY):
        held[piece.rank] += piece.stop - piece.start
    order = sorted(range(ranks), key=held.__getitem__)
    return sorted({order[0], order[-1]})


def stepped(config: ModelConfig, plan: TrainingPlan, ranks: int, chosen: list[int]) -> list[Share]:
    """One step of each chosen rank: the first micro-batch, then all that follows the last one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # the other ranks: torch's own, for tests, in the pinned version

    found = []
    for rank in chosen:
        if ranks > 1:
            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
        try:
            found.append(one_step(config, plan, Runtime(META, torch.bfloat16, rank, 0, ranks)))
        finally:
            if ranks > 1:
                dist.destroy_process_group()
    return found


def one_step(config: ModelConfig, plan: TrainingPlan, runtime: Runtime) -> Share:
    """One step of one rank, and what it holds afterwards."""
    model = model_of(config)
    optimizer = build_optimizer(model, plan, runtime)
    ids = torch.zeros(plan.micro_batch_rows, plan.sequence_len, dtype=torch.long, device=META)
    summed, _ = model.loss(ids, ids)
    summed.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        optimizer.start_reduce()
        optimizer.finish_reduce()
        optimizer.update()
    state, weights = own_state(model, optimizer), own_weights(model, optimizer)
    state_bytes, weight_bytes = (sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) for tensors in (state, weights))
    return Share(state_bytes, state_bytes + weight_bytes, optimizer.gradient_bytes())
