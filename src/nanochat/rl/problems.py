"""The problems of reinforcement learning: those that are asked in training, and those it is measured on, as prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.conversation import render_prompt
from nanochat.errors import UserError
from nanochat.tasks import open_task
from nanochat.tasks.base import Task
from nanochat.tokenizer import Tokenizer
from nanochat.transcript import visible_text

VALIDATION_SEED = 0  # the same held-out problems whatever the seed of a run, so that runs can be compared


@dataclass(frozen=True)
class Problem:
    """One row of a task as a prompt."""

    task: Task
    index: int
    prompt: list[int]

    def reward(self, ids: Sequence[int], tokenizer: Tokenizer) -> int:
        """1 where these tokens are a right answer, else 0."""
        return int(self.task.grade(self.index, visible_text(ids, tokenizer)))


@dataclass(frozen=True)
class Problems:
    """Problems that leave room for an answer; `too_long` of them did not."""

    training: list[Problem]
    validation: list[Problem]
    too_long: int

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(problem.prompt) for problem in [*self.training, *self.validation])


def read_problems(tasks: Sequence[Mapping[str, Any]], data: Sequence[Path], tokenizer: Tokenizer, *, seed: int, validation_rows: int, room: int) -> Problems:
    """Every problem whose prompt has at most `room` tokens. `tasks`: entries of the stage's `tasks`; the held-out problems are shared out among them."""
    training: list[Problem] = []
    validation: list[Problem] = []
    held_out = -(-validation_rows // len(tasks))
    for item in tasks:
        name, source = item["task"], item["source"]
        training += _prompts(open_task(name, "rl", data, source=source, seed=seed, rows=item["rows"]), tokenizer)
        validation += _prompts(open_task(name, "validation", data, source=source, seed=VALIDATION_SEED, rows=held_out), tokenizer)
    fitting, held_back = ([problem for problem in problems if len(problem.prompt) <= room] for problems in (training, validation))
    if not (fitting and held_back):
        names = ", ".join(item["task"] for item in tasks)
        raise UserError(f"chat_rl.tasks: no problem of {names} fits into {room} tokens beside its answer; lower max_new_tokens or raise sequence_len")
    return Problems(fitting, held_back, too_long=len(training) - len(fitting))


def _prompts(task: Task, tokenizer: Tokenizer) -> Iterable[Problem]:
    for index in range(len(task)):
        yield Problem(task, index, render_prompt({"messages": task.conversation(index)["messages"][:-1]}, tokenizer))
