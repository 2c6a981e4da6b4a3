"""From answers to one number: accuracy of each task above guessing, and their mean, with intervals.

The mean is called CORE if all 22 tasks are in it, and CORE-14 or the like if not: the two cannot be compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.data.core import CORE_TASKS, core_name
from nanochat.eval.chatcore import centred
from nanochat.eval.core.bundle import IclTask
from nanochat.eval.core.prompts import item_of, sharing
from nanochat.eval.core.scoring import CPU_BATCH_TOKENS, NotFiniteError, batches, score_items
from nanochat.eval.intervals import interval_of_mean, wilson
from nanochat.eval.results import NotAvailableError
from nanochat.model.gpt import GPT
from nanochat.tokenizer import Tokenizer

BLOCK_BATCHES = 16  # of items that are made into tokens at a time, to put those of similar length together


@dataclass(frozen=True)
class Answers:
    """An answer to each row of a task that was asked, in their order, and the seconds that asking took."""

    task: IclTask
    rows: Sequence[Mapping[str, Any]]
    seconds: float


def ask_rows(
    model: GPT,
    tokenizer: Tokenizer,
    task: IclTask,
    rows: Sequence[dict[str, Any]],
    places: Sequence[int],
    keep: Callable[[int, dict[str, Any]], None],
    *,
    batch_rows: int,
) -> None:
    """Ask these of the rows of a task and hand each answer to `keep`. Raises NotAvailableError if the model gives a number that is none."""
    block, context = batch_rows * BLOCK_BATCHES, model.config.sequence_len
    tokens = CPU_BATCH_TOKENS if model.head.weight.device.type == "cpu" else None
    if is_one_text := task.kind == "language_modeling":  # questions about the same story into the same block
        places = sorted(places, key=lambda index: str(rows[index]["context"]))
    for start in range(0, len(places), block):
        items = [item_of(task, rows, index, tokenizer, max_tokens=context) for index in places[start : start + block]]
        items = sharing(items) if is_one_text else items
        for batch in batches(items, rows=batch_rows, context=context, tokens=tokens):
            try:
                scored = score_items(model, batch)
            except NotFiniteError as error:
                raise NotAvailableError(f"{task.label}: {error}") from None
            for one in scored:
                keep(one.index, one.to_dict())


def core_result(answers: Sequence[Answers]) -> dict[str, Any]:
    """The score file's part of all tasks together."""
    tasks = [_task_result(answer) for answer in answers]
    labels = [task["label"] for task in tasks]
    missing = [label for label in CORE_TASKS if label not in labels]
    values = [task["centered"] for task in tasks]
    limits = [(centred(task["interval"][0], task["baseline"]), centred(task["interval"][1], task["baseline"])) for task in tasks]
    return {
        "score": sum(values) / len(values),
        "name": core_name(labels),
        "n": sum(task["n"] for task in tasks),
        "interval": list(interval_of_mean(values, limits)),
        "interval_method": "wilson, squared and added",
        "prompts_cut": sum(row["cut"] for answer in answers for row in answer.rows),
        "tasks": tasks,
        "missing": missing,
    }


def _task_result(answer: Answers) -> dict[str, Any]:
    task, n, right = answer.task, len(answer.rows), sum(row["right"] for row in answer.rows)
    return {
        "label": task.label,
        "type": task.kind,
        "shots": task.shots,
        "n": n,
        "accuracy": right / n,
        "interval": list(wilson(right, n)),
        "baseline": 0.01 * task.baseline,
        "centered": task.centered(right / n),
        "seconds": round(answer.seconds, 3),
    }
