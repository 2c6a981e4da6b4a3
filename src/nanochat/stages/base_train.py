"""Pretrain a model on packed tokens: `depth` and a recipe decide its shape, its rates and how long.

reads   --tokens manifests of stage tokenize (training and validation chunks; the tokens are compared with their sha256 at each start),
        --tokenizer the manifest they were made with
writes  beside --manifest: model.safetensors, model.json, optimizer.safetensors (for a warm start of the next stage),
        samples.json, config.json, provenance.json, metrics.jsonl, heartbeat.json; manifest.json last
resumes from resume/ there, saved every save_every_s seconds and when it is asked to stop (SIGTERM, SIGINT, SIGUSR1,
        SIGHUP or --max-seconds; exit code 75). Killed in any way and started again it ends with the same bytes.
by hand: nanochat base_train --config '{"recipe": "compact-2026-11", "depth": 4}' --tokens T/train/manifest.json
         T/validation/manifest.json --tokenizer results/tokenizers/NAME/manifest.json --weights OUT/model.safetensors
         --manifest OUT/manifest.json
         What is finished for the same config and inputs is not trained again: delete its folder for that.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from nanochat import progress
from nanochat.artifacts import sha256_file
from nanochat.config import BaseTrainStage, dump, identity, resolve_base_train
from nanochat.data.rows import TOKENS_FILE, TokenRows
from nanochat.errors import UserError
from nanochat.model.gpt import GPT
from nanochat.runtime import log
from nanochat.stages.common import add_training_flags, read_stage_config, stage_parser
from nanochat.stages.samples import Sampler
from nanochat.stages.training import Work, finish, rows_that_fit, session, train, validation_hook, verify_files
from nanochat.tasks.draw import sample_indices
from nanochat.tokenizer import Tokenizer
from nanochat.train.batches import TextBatches, next_token_pairs
from nanochat.train.scaling import plan_base_train
from nanochat.train.sizes import model_configs, shape_of
from nanochat.train.update import build_optimizer


def main(arguments: list[str]) -> None:
    """Train, or go on training."""
    parser = stage_parser(__doc__, "base_train")
    parser.add_argument("--config", required=True, help="the run's base_train subtree: JSON or the path of a JSON file")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, metavar="MANIFEST", help="training and validation chunks")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="MANIFEST")
    add_training_flags(parser)
    flags = parser.parse_args(arguments)
    section = read_stage_config(flags.config, BaseTrainStage)
    resolved = resolve_base_train(section, section.recipe)
    inputs = {"tokenizer": flags.tokenizer, **named_chunks(flags.tokens)}
    work = Work("base_train", flags.weights, flags.manifest, dump(section), identity(resolved), inputs)
    tokenizer = Tokenizer.load(flags.tokenizer)
    rows, held_out = (open_rows(flags.tokens, split, flags.tokenizer, tokenizer) for split in ("train", "validation"))
    config, reference = model_configs(resolved, section.depth, tokenizer.vocab_size, rows.row_tokens - 1)
    if work.is_finished():
        return

    with session(work, flags, seed=section.seed) as current:
        runtime = current.runtime
        verify_files(current, flags.tokens, TOKENS_FILE)
        progress.enter("model")
        shape = shape_of(config, reference)
        plan = plan_base_train(resolved, shape, ranks=runtime.world_size, most_rows=rows_that_fit(config, runtime, resolved))
        model = GPT(config, dtype=runtime.dtype, generator=torch.Generator().manual_seed(section.seed)).to(runtime.device)
        optimizer = build_optimizer(model, plan, runtime)
        batches = TextBatches(rows, rows_per_step=plan.rows_per_step, seed=section.seed, weights=section.weights)
        source_epochs = batches.epochs(plan.steps)
        say_epochs(source_epochs, section.weights)
        mixture = {"source_epochs": {name: round(count, 4) for name, count in source_epochs.items()}} if source_epochs else {}
        # the rows that evaluation takes for the same limit: the two figures can be compared
        chosen = np.array(sample_indices(len(held_out), section.validation_rows, 0))
        validate = validation_hook(model, runtime, lambda places: next_token_pairs(held_out.rows(chosen[places])), len(chosen), tokenizer.token_bytes())
        sampler = Sampler.text(model, tokenizer)
        description = {"phase": "base", "tokenizer_sha256": tokenizer.sha256, "training": plan.to_dict()}
        counters = train(current, model, optimizer, plan, batches, resolved, description=description, validate=validate, sampler=sampler)
        finish(
            *(current, model, plan, counters),
            description=description,
            counts={"rows": len(rows), "validation_rows": len(chosen), "epochs": round(plan.steps * plan.rows_per_step / len(rows), 4), **mixture},
            sampler=sampler,
            optimizer=optimizer,
        )


def say_epochs(epochs: Mapping[str, float], weights: Mapping[str, float]) -> None:
    """Say how often each source of a mixture will be seen; a small one is repeated."""
    for name, count in epochs.items():
        repeated = ": repeated, its rows are seen several times" if count > 1 else ""
        log(f"source {name}: {weights[name] / sum(weights.values()):.1%} of the training, {count:.2f} epochs{repeated}")


def named_chunks(manifests: list[Path]) -> dict[str, Path]:
    """Token chunks by the names of their folders, which must differ."""
    named = {f"tokens.{path.absolute().parent.name}": path for path in manifests}
    if len(named) < len(manifests):
        raise UserError(f"--tokens: {len(manifests) - len(named)} of {len(manifests)} chunks share a folder name with another; give each chunk once")
    return named


def open_rows(manifests: list[Path], split: str, tokenizer_manifest: Path, tokenizer: Tokenizer) -> TokenRows:
    """Rows of one split, made with this very tokenizer."""
    rows = TokenRows(manifests, split)
    if rows.tokenizer_manifest_sha256 != sha256_file(tokenizer_manifest) or rows.vocab_size != tokenizer.vocab_size:
        raise UserError(f"--tokens: made with another tokenizer than {tokenizer_manifest}; run stage tokenize with this one")
    return rows
