"""Score one model on one task.

reads   --model: manifest of a training stage; its model.json says which phase the model is
        --tokenizer: manifest of the tokenizer that the model was trained with
        --data: fetch manifests of the task's source (generated tasks need none)
        --tokens: tokenize manifests with validation rows (task bpb only)
writes  --score: one JSON file with score, 95% interval, settings, a few answers, what was read (sha256 of each manifest) and
        provenance (commit, package versions, host, device); a score that cannot be computed is null, with the reason
        beside it TASK.items.jsonl: one line for each row, from which `nanochat compare` tells whether two models differ
resumes answers/ beside the score: what was answered is not asked again, after a kill, with another sample, or with more samples a row

Tasks: bpb (bits per byte of validation text), core (the tasks of CORE) and those of nanochat.tasks. Scores are of greedy answers, so they
are repeatable; `samples` draws more answers, with a seed, for pass@k. A base model is asked in plain text, the others as in a chat. --ranks shares the rows.

by hand: nanochat evaluate --config '{"task": "arc_easy", "limit": 100}' --model results/RUN/chat_sft/manifest.json
         --tokenizer results/tokenizers/NAME/manifest.json --data resources/arc_easy/all/manifest.json --score score.json
"""

import math
import platform
import socket
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanochat import progress, sandbox
from nanochat.artifacts import canonical_json, git_state, package_versions, read_manifest, sha256_file, write_json, write_text
from nanochat.config import EvaluateStage, task_sources
from nanochat.config.checks import SCORED
from nanochat.data.core import CORE, CORE_SOURCES, VERSION
from nanochat.data.rows import TokenRows
from nanochat.data.sources import SOURCES, fetch_command
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.eval import categorical
from nanochat.eval.answering import answers_of, key_of, key_of_content
from nanochat.eval.bpb import TextLoss, row_losses
from nanochat.eval.generative import answer_freely, sample_freely
from nanochat.eval.prompts import Form, form_of
from nanochat.eval.results import (
    Answered,
    NotAvailableError,
    Sampled,
    ended_programs,
    held_protections,
    items_of,
    pass_metrics,
    score_file,
    score_of,
    score_of_rows,
)
from nanochat.eval.store import AnswerStore
from nanochat.model.gpt import GPT
from nanochat.model.weights import WEIGHTS, load_model
from nanochat.runtime import Runtime, log, slurm_job_id
from nanochat.stages.common import add_machine_flags, positive_int, read_stage_config, stage_parser
from nanochat.stages.core import ask_core
from nanochat.tasks import TASKS, open_task
from nanochat.tasks.base import Task
from nanochat.tasks.draw import keyed_number, sample_indices
from nanochat.tokenizer import Tokenizer

BPB_VERSION = "2"  # 2: added up row by row, with an interval
ANSWERS = "answers"  # folder of what was answered, beside the scores
LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Subject:
    """The model that is scored."""

    model: GPT
    tokenizer: Tokenizer
    phase: str
    sha256: str  # of its weights


@dataclass(frozen=True)
class Finding:
    """What one evaluation found: the result's part of the score file, or why there is none."""

    result: dict[str, Any]
    version: str
    baseline: float | None
    settings: dict[str, Any]
    unavailable: str | None = None
    items: list[dict[str, Any]] = field(default_factory=list)
    reused: int = 0  # rows whose answers were known


class Asking:
    """What both kinds of evaluation share: who asks, where answers are kept, what is said while it goes on."""

    def __init__(self, subject: Subject, config: EvaluateStage, flags: Namespace, runtime: Runtime) -> None:
        self.subject, self.config, self.flags, self.runtime = subject, config, flags, runtime
        self.computing = {"device": runtime.device.type, "dtype": str(runtime.dtype).removeprefix("torch.")}
        self.said = time.monotonic()

    def store(self, version: str, **settings: Any) -> AnswerStore:
        """Answers of this model under these settings."""
        identity = {"weights": self.subject.sha256, "tokenizer": self.subject.tokenizer.sha256, "task": self.config.task, "version": version}
        store = AnswerStore(self.flags.score.parent / ANSWERS, {**identity, "settings": {**settings, **self.computing}}, self.runtime.rank)
        if store.damaged:
            log(f"{store.path.parent}: {store.damaged} damaged lines of {self.config.task} are left out; their rows are asked again")
        return store

    def answers(self, keys: list[str], store: AnswerStore, ask: Callable[[list[int], Callable[[int, dict[str, Any]], None]], object]) -> tuple[list[Any], int]:
        """Answers to all rows, those that were known among them; every few seconds a line says how many there are."""

        def told(done: int) -> None:
            progress.beat()
            if time.monotonic() - self.said > LOG_EVERY_S:
                self.said = time.monotonic()
                ranks = "" if self.runtime.world_size == 1 else f", of this rank of {self.runtime.world_size}"
                log(f"{self.config.task}: {done} of {len(keys)} answered{ranks}")

        known = sum(key in store.known for key in keys)
        if known:
            log(f"{self.config.task}: {known} of {len(keys)} rows were answered before")
        return answers_of(keys, store, ask, self.runtime, told)


def main(arguments: list[str]) -> None:
    """Load, ask, grade, write."""
    flags = _flags(arguments)
    config = read_stage_config(flags.config, EvaluateStage)
    check_request(config, flags.data)
    progress.enter("join")
    runtime = Runtime.start(seed=config.seed, device=flags.device, threads=flags.threads)
    story, started = provenance(runtime), time.monotonic()
    progress.enter("model")
    subject = load_subject(flags, runtime)
    progress.enter("validate")
    asking = Asking(subject, config, flags, runtime)
    finding = {"bpb": evaluate_bpb, CORE: evaluate_core}.get(config.task, evaluate_task)(asking)
    if runtime.is_main:
        progress.enter("write")
        write_score(finding, asking, story, time.monotonic() - started)
    runtime.stop()


def check_request(config: EvaluateStage, data: list[Path]) -> None:
    """Raises UserError, before a model is loaded, for what is no task with a score, and for data that is not there."""
    kind = TASKS.get(config.task)
    if config.task not in SCORED:
        why = "conversations that nobody grades" if kind else "no such task"
        raise UserError(f"task={config.task!r}: {why}; choose one of {', '.join(SCORED)}")
    if kind is not None and config.split not in kind.sources:
        raise UserError(f"split={config.split!r}: task {config.task} has no such split; choose one of {', '.join(kind.sources)}")
    if config.task == CORE and config.source is not None and config.source not in CORE_SOURCES:
        raise UserError(f"source={config.source!r}: not a source of task core; choose one of {', '.join(CORE_SOURCES)}")
    for path in data:
        if not path.exists():
            fetch = [fetch_command(source) for source in task_sources(config.task, config.split, config.source) if source in SOURCES]
            raise UserError(f"--data={path}: no such file; {'fetch it: ' + '; '.join(fetch) if fetch else 'leave it out, this task reads none'}")


def write_score(finding: Finding, asking: Asking, story: dict[str, Any], seconds: float) -> None:
    """The items, then the score file that names them."""
    subject, config, flags = asking.subject, asking.config, asking.flags
    items = flags.score.with_name(f"{flags.score.stem}.items.jsonl")
    items.unlink(missing_ok=True)
    if finding.items:
        write_text(items, "".join(canonical_json(item) + "\n" for item in finding.items))
    content = score_file(
        {**finding.result, **({"items": items.name} if finding.items else {})},
        task=config.task,
        version=finding.version,
        phase=subject.phase,
        baseline=finding.baseline,
        seed=config.seed,
        limit=config.limit,
        settings={**finding.settings, **asking.computing},
        model_sha256=subject.sha256,
        seconds=seconds,
        unavailable=finding.unavailable,
    )
    read = {"model": flags.model, "tokenizer": flags.tokenizer, **_numbered("tokens" if config.task == "bpb" else "data", flags)}
    told = {**story, "answers_reused": finding.reused}
    write_json(flags.score, {**content, "inputs": {name: sha256_file(path) for name, path in read.items()}, "provenance": told})
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
    parser.add_argument("--ranks", type=positive_int, default=1, help="processes on this machine that share the rows, one per GPU (default: 1)")
    return parser.parse_args(arguments)


def summary(content: dict[str, Any]) -> str:
    """A score file in a few words."""
    if content["score"] is None:
        return f"not available: {content['unavailable']}"
    counted = f" ({content['correct']} of {content['n']} right)" if content["correct"] is not None else f" ({content['n']} rows)"
    notes = [f"{content['prompts_cut']} of {content['n']} prompts cut to the context"] if content["prompts_cut"] else []
    if late := sum(content.get("programs", {}).get(ended, 0) for ended in ("cpu", "timeout")):
        notes.append(f"{late} programs were out of time")
    if missing := content["settings"].get("protection", {}).get("missing"):
        notes.append(f"programs ran without this protection: {'; '.join(missing)}")
    return ", ".join([f"{content['score']:.4f}{counted}", *notes, f"{content['seconds']:.1f} s"])


def load_subject(flags: Namespace, runtime: Runtime) -> Subject:
    """Model and tokenizer, after checking that they belong together. Damaged files are refused (UserError)."""
    tokenizer = Tokenizer.load(flags.tokenizer)
    model, description = load_model(flags.model, runtime.device, runtime.dtype, inference=True)
    if description.get("tokenizer_sha256") != tokenizer.sha256:
        raise UserError(f"--tokenizer={flags.tokenizer}: not the tokenizer that {flags.model} was trained with; give that one's manifest")
    return Subject(model, tokenizer, description["phase"], read_manifest(flags.model)["outputs"][WEIGHTS]["sha256"])


def evaluate_bpb(asking: Asking) -> Finding:
    """Bits per byte of a seeded sample of the validation rows, or all of them."""
    subject, config, flags = asking.subject, asking.config, asking.flags
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
    keys = [key_of_content(rows.rows([row]).tobytes()) for row in chosen]
    token_bytes = subject.tokenizer.token_bytes()

    def ask(places: list[int], keep: Callable[[int, dict[str, Any]], None]) -> None:
        for start in range(0, len(places), config.batch_rows):
            batch = places[start : start + config.batch_rows]
            for place, loss in zip(batch, row_losses(subject.model, rows.rows(chosen[batch]), token_bytes), strict=True):
                if not math.isfinite(loss.nats):
                    raise NotAvailableError("the loss is not a finite number")
                keep(place, {"nats": loss.nats, "bytes": loss.text_bytes, "tokens": loss.tokens})

    settings: dict[str, Any] = {"split": "validation", "row_tokens": rows.row_tokens, "batch_rows": config.batch_rows}
    try:
        found, reused = asking.answers(keys, asking.store(BPB_VERSION), ask)
    except NotAvailableError as error:
        return Finding({}, BPB_VERSION, None, settings, str(error))
    losses = [TextLoss(row["nats"], row["bytes"], row["tokens"]) for row in found]
    total = sum(losses, TextLoss())
    settings |= {"text_bytes": total.text_bytes, "tokens": total.tokens}
    if total.bpb is None:
        return Finding({}, BPB_VERSION, None, settings, "the rows hold no text")
    items = [{"index": int(row), "key": key, "score": loss.bpb, "bytes": loss.text_bytes} for row, key, loss in zip(chosen, keys, losses, strict=True)]
    return Finding(score_of_rows(losses, seed=config.seed), BPB_VERSION, None, settings, None, items, reused)


def evaluate_task(asking: Asking) -> Finding:
    """Ask every row of a task, or a seeded sample of them."""
    subject, config, flags = asking.subject, asking.config, asking.flags
    task = open_task(config.task, config.split, flags.data, source=config.source, seed=config.seed, rows=config.limit)
    if config.samples and task.kind != "generative":
        raise UserError(f"samples={config.samples}: task {task.name} is answered with a letter, drawing says nothing more; leave samples out")
    engine, form = Engine(subject.model, subject.tokenizer), form_of(subject.phase)
    settings: dict[str, Any] = {"split": config.split, "source": config.source, "form": form, "kind": task.kind, "batch_rows": config.batch_rows}
    if task.kind == "categorical":
        why = categorical.unavailable(task, subject.tokenizer)
    else:
        why = task.unavailable()
        settings |= {"max_new_tokens": _answer_tokens(engine, config), "temperature": 0.0, "tool": "calculator"}
        if config.samples:
            settings |= {"samples": config.samples, "samples_temperature": config.temperature, "samples_top_k": config.top_k}
    if why:
        return Finding({}, task.version, task.baseline, settings, why)
    try:
        result, items, reused = _asked(asking, task, engine, form, settings)
    except NotAvailableError as error:
        return Finding({}, task.version, task.baseline, settings, str(error))
    return Finding(result, task.version, task.baseline, settings, None, items, reused)


def _asked(asking: Asking, task: Task, engine: Engine, form: Form, settings: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The result, the items and how many rows were known; empty on all ranks but the first. `settings` learns the protection of programs."""
    tokenizer, config = asking.subject.tokenizer, asking.config
    keys = [key_of(task, index) for index in range(len(task))]

    def ask(indices: list[int], keep: Callable[[int, dict[str, Any]], None]) -> None:
        def on_answer(row: Answered) -> None:
            keep(row.index, {"answer": row.answer, "right": row.is_right, "cut": row.is_cut, **({"judged": row.judged} if row.judged else {})})

        asked: dict[str, Any] = {"form": form, "batch_rows": config.batch_rows, "indices": indices, "on_answer": on_answer}
        if task.kind == "categorical":
            categorical.answer_letters(asking.subject.model, tokenizer, task, **asked)
        else:
            answer_freely(engine, tokenizer, task, max_new_tokens=config.max_new_tokens, **asked)

    greedy: dict[str, Any] = {"form": form}
    if task.kind == "generative":
        greedy |= {"max_new_tokens": engine.answer_tokens(config.max_new_tokens), "tool": "calculator"}
    found, reused = asking.answers(keys, asking.store(task.version, **greedy), ask)
    sampled = _sampled(asking, task, engine, form, keys, greedy) if config.samples else []
    if not asking.runtime.is_main:
        return {}, [], reused
    questions = [task.conversation(index)["messages"][-2]["content"] for index in range(len(task))]
    answered = [Answered(index, questions[index], row["answer"], row["right"], row["cut"], row.get("judged", {})) for index, row in enumerate(found)]
    result = score_of(answered, task)
    judged, drawn = [row.judged for row in answered], [each for row in sampled for each in row.judged]
    if (held := held_protections([*judged, *drawn])) is not None:
        settings["protection"] = sandbox.protection(held)
        result |= {"programs": ended_programs(judged), **({"sampled_programs": ended_programs(drawn)} if sampled else {})}
    if sampled:
        result["metrics"] = {**result.get("metrics", {}), **pass_metrics(sampled)}
    return result, items_of(answered, keys.__getitem__, sampled), reused


def _sampled(asking: Asking, task: Task, engine: Engine, form: Form, keys: list[str], greedy: dict[str, Any]) -> list[Sampled]:
    """Several drawn answers to each row, in a store of their own: asking for them asks for no greedy answer again."""
    config = asking.config
    assert config.samples is not None
    drawing: dict[str, Any] = {"samples": config.samples, "temperature": config.temperature, "top_k": config.top_k}

    def ask(indices: list[int], keep: Callable[[int, dict[str, Any]], None]) -> None:
        sample_freely(
            engine,
            asking.subject.tokenizer,
            task,
            form=form,
            max_new_tokens=config.max_new_tokens,
            **drawing,
            seed_of=lambda index: keyed_number("samples", config.seed, keys[index]),
            indices=indices,
            on_answer=lambda row: keep(row.index, {"answers": row.answers, "rights": row.are_right, **({"judged": row.judged} if row.judged else {})}),
        )

    found, _ = asking.answers(keys, asking.store(task.version, **greedy, **drawing, seed=config.seed), ask)
    return [Sampled(index, row["answers"], row["rights"], row.get("judged", [])) for index, row in enumerate(found)]


def evaluate_core(asking: Asking) -> Finding:
    """CORE, or as many of its tasks as the sources hold."""
    subject, config, flags = asking.subject, asking.config, asking.flags
    found = ask_core(
        subject.model,
        subject.tokenizer,
        config,
        flags.data,
        lambda identity, keys, ask: asking.answers(keys, asking.store(VERSION, **identity), ask),
        is_main=asking.runtime.is_main,
    )
    return Finding(found.result, VERSION, 0.0, found.settings, found.unavailable, found.items, found.reused)


def _answer_tokens(engine: Engine, config: EvaluateStage) -> int:
    """How long answers may be; said aloud where that is less than was asked for."""
    tokens = engine.answer_tokens(config.max_new_tokens)
    if tokens < config.max_new_tokens:
        log(f"max_new_tokens={config.max_new_tokens} asked, {tokens} used: half of the context of {engine.context} tokens")
    return tokens
