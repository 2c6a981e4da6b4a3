"""Score one model on one task.

reads   --model: manifest of a training stage; its model.json says which phase the model is
        --tokenizer: manifest of the tokenizer that the model was trained with
        --data: fetch manifests of the task's source (generated tasks need none)
        --tokens: tokenize manifests with validation rows (task bpb only)
writes  --score: one JSON file with score, 95% interval, settings, a few answers, what was read (sha256 of each manifest) and
        provenance (commit, package versions, host, device); a score that cannot be computed is null, with the reason
resumes nothing: it starts again

Tasks: bpb (bits per byte of validation text) and those of nanochat.tasks. Answers are greedy, so a score is repeatable.
A base model is asked in plain text, the others as in a chat.

by hand: nanochat evaluate --config '{"task": "arc_easy", "limit": 100}' --model results/RUN/chat_sft/manifest.json
         --tokenizer results/tokenizers/NAME/manifest.json --data resources/arc_easy/all/manifest.json --score score.json
"""

import math
import platform
import socket
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanochat import sandbox
from nanochat.artifacts import git_state, package_versions, read_manifest, sha256_file, write_json
from nanochat.config import EvaluateStage
from nanochat.data.rows import TokenRows
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.eval import categorical
from nanochat.eval.bpb import text_loss
from nanochat.eval.generative import answer_freely
from nanochat.eval.prompts import form_of
from nanochat.eval.results import score_file, score_of
from nanochat.model.gpt import GPT
from nanochat.model.weights import WEIGHTS, load_model
from nanochat.runtime import Runtime, log, slurm_job_id
from nanochat.stages.common import add_machine_flags, read_stage_config, stage_parser
from nanochat.tasks import TASKS, open_task
from nanochat.tasks.base import Task
from nanochat.tasks.draw import sample_indices
from nanochat.tokenizer import Tokenizer

BPB_VERSION = "1"
LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Subject:
    """The model that is scored."""

    model: GPT
    tokenizer: Tokenizer
    phase: str


@dataclass(frozen=True)
class Finding:
    """What one evaluation found: the result's part of the score file, or why there is none."""

    result: dict[str, Any]
    version: str
    baseline: float | None
    settings: dict[str, Any]
    unavailable: str | None = None


def main(arguments: list[str]) -> None:
    """Load, ask, grade, write."""
    flags = _flags(arguments)
    config = read_stage_config(flags.config, EvaluateStage)
    runtime = Runtime.start(seed=config.seed, device=flags.device, threads=flags.threads)
    story, started = provenance(runtime), time.monotonic()
    subject = load_subject(flags, runtime)
    finding = evaluate_bpb(subject, config, flags) if config.task == "bpb" else evaluate_task(subject, config, flags)
    content = score_file(
        finding.result,
        task=config.task,
        version=finding.version,
        phase=subject.phase,
        baseline=finding.baseline,
        seed=config.seed,
        limit=config.limit,
        settings={**finding.settings, "device": runtime.device.type, "dtype": str(runtime.dtype).removeprefix("torch.")},
        model_sha256=read_manifest(flags.model)["outputs"][WEIGHTS]["sha256"],
        seconds=time.monotonic() - started,
        unavailable=finding.unavailable,
    )
    read = {"model": flags.model, "tokenizer": flags.tokenizer, **_numbered("tokens" if config.task == "bpb" else "data", flags)}
    write_json(flags.score, {**content, "inputs": {name: sha256_file(path) for name, path in read.items()}, "provenance": story})
    log(f"{config.task} of {subject.phase}: {summary(content)}")


def provenance(runtime: Runtime) -> dict[str, Any]:
    """By what code, where and when a score is made: keys as in an attempt of provenance.json."""
    where = {"host": socket.gethostname(), "platform": platform.platform(), "job": slurm_job_id(), **runtime.facts}
    return {"start": time.time(), "git": git_state(Path(__file__).parent), "packages": package_versions(), **where}


def _numbered(name: str, flags: Namespace) -> dict[str, Path]:
    return {f"{name}.{index}": path for index, path in enumerate(getattr(flags, name))}


def _flags(arguments: list[str]) -> Namespace:
    parser = stage_parser(__doc__, "evaluate")
    parser.add_argument("--config", required=True, help="task and settings: JSON or a JSON file")
    parser.add_argument("--model", type=Path, required=True, metavar="MANIFEST", help="of base_train, mid_train, chat_sft or chat_rl")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="MANIFEST", help="of stage tokenizer")
    parser.add_argument("--data", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched sources of the task")
    parser.add_argument("--tokens", type=Path, nargs="*", default=[], metavar="MANIFEST", help="token chunks, for task bpb")
    parser.add_argument("--score", type=Path, required=True, metavar="OUT", help="JSON file to write")
    add_machine_flags(parser)
    return parser.parse_args(arguments)


def summary(content: dict[str, Any]) -> str:
    """A score file in a few words."""
    if content["score"] is None:
        return f"not available: {content['unavailable']}"
    counted = f" ({content['correct']} of {content['n']} right)" if content["correct"] is not None else f" ({content['n']} rows)"
    return f"{content['score']:.4f}{counted}, {content['seconds']:.1f} s"


def load_subject(flags: Namespace, runtime: Runtime) -> Subject:
    """Model and tokenizer, after checking that they belong together. Damaged files are refused (UserError)."""
    tokenizer = Tokenizer.load(flags.tokenizer)
    model, description = load_model(flags.model, runtime.device, runtime.dtype, inference=True)
    if description["tokenizer_sha256"] != tokenizer.sha256:
        raise UserError(f"--tokenizer={flags.tokenizer}: not the tokenizer that {flags.model} was trained with; give that one's manifest")
    return Subject(model, tokenizer, description["phase"])


def evaluate_bpb(subject: Subject, config: EvaluateStage, flags: Namespace) -> Finding:
    """Bits per byte of a seeded sample of the validation rows, or all of them."""
    if not flags.tokens:
        raise UserError("--tokens: none given; task bpb needs the tokenize manifests of the run's corpus")
    rows = TokenRows(flags.tokens, "validation", verify=True)
    if rows.tokenizer_manifest_sha256 != sha256_file(flags.tokenizer):
        raise UserError(f"--tokens={flags.tokens[0]}: tokenized with another tokenizer than {flags.tokenizer}; tokenize the text again")
    if rows.row_tokens - 1 > subject.model.config.sequence_len:
        raise UserError(
            f"--tokens={flags.tokens[0]}: rows of {rows.row_tokens - 1} tokens, the model reads {subject.model.config.sequence_len}; give shorter rows"
        )
    chosen = np.array(sample_indices(len(rows), config.limit, config.seed), dtype=np.int64)
    loss = text_loss(subject.model, _batches(rows, chosen, config.batch_rows), subject.tokenizer.token_bytes())
    settings = {"split": "validation", "row_tokens": rows.row_tokens, "batch_rows": config.batch_rows, "text_bytes": loss.text_bytes, "tokens": loss.tokens}
    if loss.bpb is None or not math.isfinite(loss.bpb):
        return Finding({}, BPB_VERSION, None, settings, "the loss is not a finite number" if loss.bpb else "the rows hold no text")
    return Finding({"score": loss.bpb, "n": len(chosen)}, BPB_VERSION, None, settings)


def _batches(rows: TokenRows, chosen: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), size):
        yield rows.rows(chosen[start : start + size])


def evaluate_task(subject: Subject, config: EvaluateStage, flags: Namespace) -> Finding:
    """Ask every row of a task, or a seeded sample of them."""
    if config.task in TASKS and TASKS[config.task].kind == "conversation":
        raise UserError(f"task={config.task}: conversations that nobody grades; evaluate another task")
    task = open_task(config.task, config.split, flags.data, source=config.source, seed=config.seed, rows=config.limit)
    engine, form = Engine(subject.model, subject.tokenizer), form_of(subject.phase)
    settings: dict[str, Any] = {"split": config.split, "source": config.source, "form": form, "kind": task.kind, "batch_rows": config.batch_rows}
    if task.kind == "categorical":
        why = categorical.unavailable(task, subject.tokenizer)
    else:
        why = task.unavailable()
        settings |= {"max_new_tokens": _answer_tokens(engine, config), "temperature": 0.0, "tool": "calculator"}
        if task.name == "humaneval":
            settings["protection"] = sandbox.protection()
    if why:
        return Finding({}, task.version, task.baseline, settings, why)
    if task.kind == "categorical":
        answered = categorical.answer_letters(subject.model, subject.tokenizer, task, form=form, batch_rows=config.batch_rows)
    else:
        answered = answer_freely(
            engine,
            subject.tokenizer,
            task,
            form=form,
            max_new_tokens=config.max_new_tokens,
            batch_rows=config.batch_rows,
            progress=_progress(task),
        )
    return Finding(score_of(answered, task), task.version, task.baseline, settings)


def _answer_tokens(engine: Engine, config: EvaluateStage) -> int:
    """How long answers may be; said aloud where that is less than was asked for."""
    tokens = engine.answer_tokens(config.max_new_tokens)
    if tokens < config.max_new_tokens:
        log(f"max_new_tokens={config.max_new_tokens} asked, {tokens} used: half of the context of {engine.context} tokens")
    return tokens


def _progress(task: Task) -> Any:
    said = time.monotonic()

    def say(done: int) -> None:
        nonlocal said
        if time.monotonic() - said > LOG_EVERY_S:
            said = time.monotonic()
            log(f"{task.name}: {done} of {len(task)} answered")

    return say
