"""What mid_train and chat_sft share: a parent model, a mixture of conversations as packed rows, the parent's rates scaled down."""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat import progress
from nanochat.artifacts import read_json, read_manifest, sha256_file, verified_file, write_json
from nanochat.config import TuneStage, dump, identity
from nanochat.errors import UserError
from nanochat.model.gpt import GPT
from nanochat.model.weights import DESCRIPTION, load_model
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.runtime import Runtime, log
from nanochat.stages.common import StageParser, add_training_flags, read_stage_config, stage_parser
from nanochat.stages.samples import Sampler
from nanochat.stages.training import OPTIMIZER, Session, Work, finish, rows_that_fit, session, stop_now, train, validation_hook
from nanochat.tokenizer import Tokenizer
from nanochat.train.batches import ConversationBatches
from nanochat.train.conversations import LossOn, PackedRows, pack_mixture, render_mixture
from nanochat.train.metrics import Heartbeat
from nanochat.train.resume import FOLDER
from nanochat.train.scaling import plan_tune
from nanochat.train.sizes import shape_of
from nanochat.train.state import restore_optimizer
from nanochat.train.tensorfile import TensorFiles
from nanochat.train.update import build_optimizer

TRAINING, VALIDATION, PACKED = "rows.bin", "validation.bin", "packed.json"
PARENTS = ("base_train", "mid_train", "chat_sft")


@dataclass(frozen=True)
class Tuning:
    """One tuning stage: its name, the phase it makes, what its loss counts, and whether a later stage may take up its optimizer."""

    stage: str
    phase: str
    loss_on: LossOn
    keep_optimizer: bool


def tuning_parser(docstring: str | None, name: str) -> StageParser:
    """Flags of mid_train and chat_sft."""
    parser = stage_parser(docstring, name)
    parser.add_argument("--config", required=True, help=f"the run's {name} subtree: JSON or the path of a JSON file")
    parser.add_argument("--model", type=Path, required=True, metavar="MANIFEST", help="manifest of the stage whose model is trained further")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--data", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched sources of the mixture")
    add_training_flags(parser)
    return parser


def tune(kind: Tuning, docstring: str | None, arguments: list[str]) -> None:
    """Run one tuning stage from its command line."""
    flags = tuning_parser(docstring, kind.stage).parse_args(arguments)
    section = read_stage_config(flags.config, TuneStage)
    settings = section.model_dump(mode="json")
    inputs = {"model": flags.model, "tokenizer": flags.tokenizer, **named_sources(flags.data)}
    work = Work(kind.stage, flags.weights, flags.manifest, dump(section), identity(settings), inputs)
    tokenizer = Tokenizer.load(flags.tokenizer)
    parent = read_parent(flags.model, tokenizer)
    if work.is_finished():
        return

    with session(work, flags, seed=section.seed) as current:
        runtime = current.runtime
        progress.enter("model")
        model, _ = load_model(flags.model, runtime.device, runtime.dtype)
        row_tokens = model.config.sequence_len + 1
        progress.enter("data")
        counts = packed_rows(current, kind, section, flags.data, tokenizer, row_tokens)
        rows, held_out = (PackedRows(work.folder / FOLDER / name, row_tokens) for name in (TRAINING, VALIDATION))
        progress.enter("model")
        shape = shape_of(model.config, model.config)
        most = rows_that_fit(model.config, runtime, settings)
        plan = plan_tune(*(kind.stage, settings, parent["training"], shape), rows=len(rows), ranks=runtime.world_size, most_rows=most)
        optimizer = build_optimizer(model, plan, runtime)
        if section.warm_start_optimizer:
            warm_start(model, optimizer, flags, runtime)
        batches = ConversationBatches(rows, rows_per_step=plan.rows_per_step, seed=section.seed)
        validate = validation_hook(model, runtime, held_out.pairs, len(held_out), tokenizer.token_bytes())
        sampler = Sampler.chat(model, tokenizer)
        description = {"phase": kind.phase, "tokenizer_sha256": tokenizer.sha256, "training": parent["training"]}
        counters = train(current, model, optimizer, plan, batches, settings, description=description, validate=validate, sampler=sampler)
        finish(
            *(current, model, plan, counters),
            description=description,
            counts={**counts, "epochs": round(plan.steps * plan.rows_per_step / len(rows), 4)},
            sampler=sampler,
            optimizer=optimizer if kind.keep_optimizer else None,
        )


def named_sources(manifests: Sequence[Path]) -> dict[str, Path]:
    """Fetched sources by name."""
    named: dict[str, Path] = {}
    for path in manifests:
        name = f"data.{read_manifest(path, stage='fetch')['config']['source']}"
        if name in named:
            raise UserError(f"--data={path}: the same source as {named[name]}; give each source once")
        named[name] = path
    return named


def read_parent(manifest: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """model.json of the parent. Refuses one that was trained with another tokenizer."""
    stage = read_manifest(manifest)["stage"]
    if stage not in PARENTS:
        raise UserError(f"--model={manifest}: made by stage {stage!r}; give the manifest of one of {', '.join(PARENTS)}")
    parent: dict[str, Any] = read_json(verified_file(manifest, DESCRIPTION))
    if parent["tokenizer_sha256"] != tokenizer.sha256:
        raise UserError(f"--tokenizer: not the one that {manifest} was trained with (sha256 differs); give that one or train the model again")
    return parent


def warm_start(model: GPT, optimizer: MuonAdamW, flags: Namespace, runtime: Runtime) -> None:
    """Take up the parent's momentum buffers, where it kept them."""
    if OPTIMIZER not in read_manifest(flags.model)["outputs"]:
        if runtime.is_main:
            log(f"warm_start_optimizer=true asked, fresh optimizer used: {flags.model} has no {OPTIMIZER}")
        return
    try:
        file = verified_file(flags.model, OPTIMIZER)
    except UserError as problem:
        raise UserError(f"{problem}; or, without training that model again, set warm_start_optimizer: false") from None
    found = restore_optimizer(model, optimizer, TensorFiles([file]))
    if runtime.is_main:
        log(f"optimizer warm-started: {found} parameters from {flags.model}")


# --- rows ------------------------------------------------------------------------------------------------------------


def packed_rows(current: Session, kind: Tuning, section: TuneStage, data: Sequence[Path], tokenizer: Tokenizer, row_tokens: int) -> dict[str, Any]:
    """Have the mixture's rows in the resume folder, made by rank 0 unless an earlier attempt left them; returns their counts.

    The other ranks watch the file system: rendering may take longer than a collective may wait.
    """
    folder, runtime = current.work.folder / FOLDER, current.runtime
    description = folder / PACKED
    if runtime.is_main and not rows_are_whole(current.work):
        description.unlink(missing_ok=True)
        runtime.barrier()
        counts = make_rows(current, kind, section, data, tokenizer, row_tokens)
        hashes = {name: sha256_file(folder / name) for name in (TRAINING, VALIDATION)}
        write_json(description, {"fingerprint": current.work.fingerprint, "sha256": hashes, "counts": counts})
    else:
        runtime.barrier()
    while not description.is_file():
        stop_now(current.stop)
        time.sleep(0.2)
    counts = read_json(description)["counts"]
    if runtime.is_main:
        log(f"{kind.stage}: " + ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items()))
        if skipped := counts["conversations_too_long"]:
            log(f"{kind.stage}: {skipped:,} conversations are longer than a row of {row_tokens} tokens and left out")
    return dict(counts)


def rows_are_whole(work: Work) -> bool:
    """Whether the rows of an earlier attempt at this very work can be used."""
    folder = work.folder / FOLDER
    if not (folder / PACKED).is_file():
        return False
    try:
        stated = read_json(folder / PACKED)
        whole = stated["fingerprint"] == work.fingerprint and all(sha256_file(folder / name) == digest for name, digest in stated["sha256"].items())
    except (UserError, KeyError, TypeError, FileNotFoundError):
        whole = False
    if not whole:
        log(f"{folder / PACKED}: made for other work or damaged, made again")
    return whole


def make_rows(current: Session, kind: Tuning, section: TuneStage, data: Sequence[Path], tokenizer: Tokenizer, row_tokens: int) -> dict[str, Any]:
    """Render and pack the mixture."""
    folder, heartbeat = current.work.folder / FOLDER, Heartbeat(current.work.folder)

    def on_batch(done: int) -> None:
        stop_now(current.stop)
        progress.beat()
        heartbeat.beat("render", step=done)

    heartbeat.beat("render")
    mixture, validation = ([item.model_dump() for item in items] for items in (section.mixture, section.validation))
    training = render_mixture(mixture, data, tokenizer, seed=section.seed, on_batch=on_batch)
    held_out = render_mixture(validation, data, tokenizer, seed=section.seed, on_batch=on_batch) if validation else None
    return pack_mixture(
        *(training, held_out),
        epochs=[item["epochs"] for item in mixture],
        row_tokens=row_tokens,
        loss_on=kind.loss_on,
        padding=tokenizer.bos,
        validation_rows=section.validation_rows,
        seed=section.seed,
        files=(folder / TRAINING, folder / VALIDATION),
    ).counts
