"""What a task is: rows of a dataset (or a generator) seen as conversations, with a way to grade an answer.

Light on purpose (no torch, no numpy): the workflow imports the registry at parse time to know which sources a run needs.

Conversation: {"messages": [{"role": "system"|"user"|"assistant", "content": str | [part, ...]}]}
part: {"type": "text"|"python"|"python_output", "text": str}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

Conversation = dict[str, Any]


class Task:
    """Rows of one split of one dataset.

    `sources` names, per split, the registry sources that can provide it, preferred first; the first is used unless the
    config says otherwise. A generator needs no source (empty tuple). `version` changes whenever a score would change
    for the same model. `baseline` is the expected score of guessing.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    kind: ClassVar[Literal["categorical", "generative", "conversation"]]
    baseline: ClassVar[float] = 0.0
    sources: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, split: str, *, files: Sequence[Path] = (), seed: int = 0, rows: int | None = None) -> None:
        """Load `split` from its fetched jsonl `files`; `rows` limits it to a seeded sample."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def conversation(self, index: int) -> Conversation:
        """Row `index` as a conversation whose last message is the reference answer of the assistant."""
        raise NotImplementedError

    def letters(self, index: int) -> list[str]:
        """Categorical tasks: the answer letters of row `index`, in order of the choices."""
        raise NotImplementedError

    def grade(self, index: int, answer: str) -> bool:
        """Whether `answer`, the text that the assistant produced, is right for row `index`."""
        raise NotImplementedError
