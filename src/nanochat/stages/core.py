"""Task core of stage evaluate: which tasks are asked, what is kept of their answers, and what the score file says."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.artifacts import read_manifest
from nanochat.config import EvaluateStage, task_sources
from nanochat.data.core import CORE
from nanochat.errors import UserError
from nanochat.eval.core.bundle import IclTask, load_tasks
from nanochat.eval.core.prompts import check_limit, shuffled
from nanochat.eval.core.score import Answers, ask_rows, core_result
from nanochat.eval.results import NotAvailableError
from nanochat.model.gpt import GPT
from nanochat.runtime import log
from nanochat.tokenizer import Tokenizer

Ask = Callable[[list[int], Callable[[int, dict[str, Any]], None]], object]
# what the answers depend on, a key for each row, how rows are asked -> answers to all rows (on the first rank), how many were known
Answering = Callable[[Mapping[str, Any], list[str], Ask], tuple[Sequence[Mapping[str, Any]], int]]


@dataclass
class CoreFound:
    """What was found, or why there is no score."""

    result: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    unavailable: str | None = None
    items: list[dict[str, Any]] = field(default_factory=list)
    reused: int = 0


def ask_core(model: GPT, tokenizer: Tokenizer, config: EvaluateStage, data: list[Path], answering: Answering, *, is_main: bool) -> CoreFound:
    """Ask every task of CORE that the sources hold. Ranks but the first find nothing."""
    sources, context = [str(read_manifest(path, stage="fetch")["config"]["source"]) for path in data], model.config.sequence_len
    if data and config.source and sorted(sources) != sorted(wanted := task_sources(CORE, config.split, config.source)):
        raise UserError(f"source={config.source}: is made of {' and '.join(wanted)}, but --data gives {' and '.join(sources)}; they must be the same")
    tasks = load_tasks(data, config.tasks)
    for task in tasks:  # before hours are spent on those before it
        check_limit(task, config.limit)
    found = CoreFound(settings={"kind": "in_context", "source": config.source, "sources": sources, "context": context, "batch_rows": config.batch_rows})
    done: list[Answers] = []
    for task in tasks:
        begun = time.monotonic()
        try:
            rows, reused = _answered(model, tokenizer, task, config, answering)
        except NotAvailableError as error:
            found.unavailable = str(error)
            return found
        found.reused += reused
        if is_main:
            done.append(_told(Answers(task, rows, time.monotonic() - begun)))
    if is_main:
        found.result = core_result(done)
        found.items = [item for answers in done for item in _items(answers, config)]
        _tell(found.result, sources, context)
    return found


def _answered(model: GPT, tokenizer: Tokenizer, task: IclTask, config: EvaluateStage, answering: Answering) -> tuple[Sequence[Mapping[str, Any]], int]:
    rows = shuffled(task.rows, config.limit)
    # the rows that are asked are those that examples are taken from, so a limit asks for other answers
    identity = {"label": task.label, "kind": task.kind, "shots": task.shots, "delimiter": task.delimiter, "rows": task.sha256, "limit": config.limit}
    keys = [str(index) for index in range(len(rows))]
    asked = {"batch_rows": config.batch_rows}
    return answering(identity, keys, lambda places, keep: ask_rows(model, tokenizer, task, rows, places, keep, **asked))


def _items(answers: Answers, config: EvaluateStage) -> list[dict[str, Any]]:
    """Lines of the items file: rows are the same for two models where their `key` is."""
    task = answers.task
    limit = config.limit if len(answers.rows) < len(task.rows) else "all"  # examples are taken from the rows that are asked
    keys = [f"{task.label}/{task.sha256[:16]}/{limit}/{index}" for index in range(len(answers.rows))]
    return [
        {"index": index, "key": key, "right": row["right"], "answer": row.get("choice")}
        for index, (key, row) in enumerate(zip(keys, answers.rows, strict=True))
    ]


def _told(answers: Answers) -> Answers:
    task, right, n = answers.task, sum(row["right"] for row in answers.rows), len(answers.rows)
    log(f"core: {task.label}: {right:,} of {n:,} right, {task.centered(right / n):+.4f} above guessing, {answers.seconds:.1f} s")
    return answers


def _tell(result: Mapping[str, Any], sources: Sequence[str], context: int) -> None:
    if missing := result["missing"]:
        log(f"core: {len(missing)} tasks were not asked, so the score is {result['name']} and not CORE: {', '.join(missing)} (of {' and '.join(sources)})")
    if cut := result["prompts_cut"]:
        log(f"core: {cut:,} of {result['n']:,} rows were longer than the model's context of {context} tokens and lost examples")
