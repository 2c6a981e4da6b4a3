"""The registry of tasks: name -> class; and how a task finds its fetched files."""

from collections.abc import Sequence
from pathlib import Path

from nanochat.tasks.arithmetic import Arithmetic, LongArithmetic
from nanochat.tasks.base import Task
from nanochat.tasks.conversations import Chitchat, Conversations, SmolTalk
from nanochat.tasks.gsm8k import Gsm8k
from nanochat.tasks.humaneval import HumanEval
from nanochat.tasks.identity import Identity
from nanochat.tasks.multiple_choice import ArcChallenge, ArcEasy, CommonsenseQa, Mmlu, OpenBookQa
from nanochat.tasks.spelling import SimpleSpelling, SpellingBee

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        *(ArcEasy, ArcChallenge, Mmlu, OpenBookQa, CommonsenseQa),
        *(Gsm8k, HumanEval),
        *(SpellingBee, SimpleSpelling, Arithmetic, LongArithmetic),
        *(Identity, Chitchat, SmolTalk, Conversations),
    )
}


def open_task(name: str, split: str, manifests: Sequence[Path] = (), *, source: str | None = None, seed: int = 0, rows: int | None = None) -> Task:
    """Task `name` with the rows of `split`, from the fetched source among `manifests` (others are ignored).

    `source` is the source to read; absent, the first choice of the task. Raises UserError if it is not among them.
    """
    from nanochat.artifacts import read_manifest, verified_file
    from nanochat.data.sources import SOURCES, fetch_command
    from nanochat.errors import UserError

    if name not in TASKS:
        raise UserError(f"task={name!r}: no such task; choose one of {', '.join(sorted(TASKS))}")
    kind = TASKS[name]
    choices = kind.sources.get(split)
    if source and choices and source not in choices:
        raise UserError(f"source={source!r}: not a source of task {name}, split {split}; choose one of {', '.join(choices)}")
    wanted = source or (choices[0] if choices else None)
    if wanted is None:  # a generator, or a split that the class will refuse
        return kind(split, seed=seed, rows=rows)
    for path in manifests:
        if read_manifest(path, stage="fetch")["config"]["source"] == wanted:
            return kind(split, files=[verified_file(path, f"{kind.source_splits.get(split, split)}.jsonl")], seed=seed, rows=rows)
    fetch = f"fetch it, {fetch_command(wanted)}, and pass" if wanted in SOURCES else "pass"
    raise UserError(f"task {name}, split {split}: needs source {wanted}, which is not among the manifests given; {fetch} its manifest.json")
