"""What a task is: rows of a dataset (or a generator) seen as conversations, with a way to grade an answer.

Light on purpose (no torch, no numpy): the workflow imports the registry at parse time to know which sources a run needs.

Conversation: {"messages": [{"role": "system"|"user"|"assistant", "content": str | [part, ...]}]}
part: {"type": "text"|"python"|"python_output", "text": str}
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from nanochat.data.json_lines import json_lines
from nanochat.errors import UserError
from nanochat.tasks.draw import sample_indices

Conversation = dict[str, Any]
FETCH_AGAIN = "delete the folder of its source and fetch it again"


class Task(ABC):
    """Rows of one split of one dataset.

    `sources` names, per split, the registry sources that can provide it, preferred first; the first is used unless the
    config says otherwise. A generator needs no source (empty tuple). `source_splits` says which file of the source a split
    is read from, where its name differs. `version` changes whenever a score would change for the same model.
    `baseline` is the expected score of guessing.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    kind: ClassVar[Literal["categorical", "generative", "conversation"]]
    baseline: ClassVar[float] = 0.0
    sources: ClassVar[Mapping[str, tuple[str, ...]]]
    source_splits: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def __init__(self, split: str, *, files: Sequence[Path] = (), seed: int = 0, rows: int | None = None) -> None:
        """Load `split` from its fetched jsonl `files`; `rows` limits a dataset to a seeded sample of at most that many,
        and tells a generator how many to make."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def conversation(self, index: int) -> Conversation:
        """Row `index` as a conversation whose last message is the reference answer of the assistant."""

    def letters(self, index: int) -> list[str]:
        """Categorical tasks: the answer letters of row `index`, in order of the choices."""
        raise TypeError(f"task {self.name} is {self.kind}: its rows have no letters")

    def grade(self, index: int, answer: str) -> bool:
        """Whether `answer`, the text that the assistant produced, is right for row `index`."""
        raise TypeError(f"task {self.name} is {self.kind}: its answers are not graded")

    def judge(self, index: int, answer: str) -> tuple[bool, dict[str, Any]]:
        """Whether `answer` is right, and what else its record says: how its program ended, where the task runs programs."""
        return self.grade(index, answer), {}

    def other_grades(self, index: int, answer: str) -> dict[str, bool]:
        """The same answer graded in other ways, by name; they are reported beside the score."""
        return {}

    def subject(self, index: int) -> str | None:
        """The part of the task that row `index` belongs to, where scores are reported by part."""
        return None

    def unavailable(self) -> str | None:
        """Why answers cannot be graded on this machine, or None."""
        return None


class RowTask(Task):
    """A task whose rows stand in jsonl files, one JSON object a line."""

    def __init__(self, split: str, *, files: Sequence[Path] = (), seed: int = 0, rows: int | None = None) -> None:
        check_split(self, split)
        if not files:
            raise UserError(f"task {self.name}, split {split}: no data given; fetch one of {', '.join(self.sources[split])} and pass its manifest")
        self.split = split
        content = self.usable(read_rows(files, self.fault))
        if not content:
            raise UserError(f"{files[0]}: holds no row for task {self.name}, split {split}; fetch its source again")
        self.rows = [content[index] for index in sample_indices(len(content), rows, seed)]

    @abstractmethod
    def fault(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row of this task, or None."""

    def usable(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that this task can show; all of them unless a task says otherwise."""
        return rows

    def __len__(self) -> int:
        return len(self.rows)


def check_split(task: Task, split: str) -> None:
    """Raise UserError if `task` has no such split."""
    if split not in task.sources:
        raise UserError(f"task {task.name}: has no split {split!r}; choose one of {', '.join(task.sources)}")


def read_rows(files: Sequence[Path], fault_of: Callable[[dict[str, Any]], str | None]) -> list[dict[str, Any]]:
    """Every row of some jsonl files, in order. Raises UserError naming file and line of one that is no object or has a fault."""
    rows = []
    for file in files:
        try:
            with Path(file).open("rb") as lines:
                for number, row in json_lines(lines, file, FETCH_AGAIN):
                    if fault := fault_of(row) if isinstance(row, dict) else "is no object":
                        raise UserError(f"{file}: line {number}: {fault}; {FETCH_AGAIN}")
                    rows.append(row)
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; fetch its source") from None
    return rows


def text_fault(row: Mapping[str, Any], *keys: str) -> str | None:
    """What is wrong with a row that has to hold text under these keys, or None."""
    for key in keys:
        if not isinstance(row.get(key), str):
            return f"has {row[key]!r:.60} under {key}, which is no text" if key in row else f"has no {key}"
    return None


def exchange(question: str, answer: str | list[dict[str, str]]) -> Conversation:
    """A conversation of one question and one answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def part(kind: Literal["text", "python", "python_output"], text: str) -> dict[str, str]:
    """One part of an assistant's answer."""
    return {"type": kind, "text": text}


def answer_text(conversation: Conversation) -> str:
    """What the last message says, without its tool calls."""
    content = conversation["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(piece["text"] for piece in content if piece["type"] == "text")
