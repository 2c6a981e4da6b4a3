"""Identity: the assistant knows that it is nanochat. Rows of train: fetched ones and our own; test: wordings held out."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from nanochat.conversation import conversation_fault
from nanochat.errors import UserError
from nanochat.tasks.base import Conversation, Task, check_split, exchange, read_rows
from nanochat.tasks.draw import keyed_number, sample_indices
from nanochat.tasks.identity_phrases import HELD_OUT_QUESTIONS, NAME_ANSWERS, TRAINED

NAMED = re.compile(r"\bnanochat\b", re.IGNORECASE)
CLAIM = re.compile(r"\b(?:i am|i['\u2019]m|my name is|call me|i am called)\s+(?!not\b)(?:the\s+)?([a-z0-9-]+)", re.IGNORECASE)
OTHERS = (
    "chatgpt",
    "gpt",
    "gpt-2",
    "gpt-3",
    "gpt-4",
    "claude",
    "gemini",
    "bard",
    "llama",
    "vicuna",
    "alpaca",
    "siri",
    "alexa",
    "bixby",
    "davinci",
    "curie",
    "mistral",
)


def normalized(question: str) -> str:
    """A question without case, punctuation and repeated spaces: equal wordings are equal."""
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", question.lower().replace("'", "").replace("\u2019", "")).split())


ANSWERS_PER_FETCHED_QUESTION = 2  # nine of ten fetched rows are "Are you X?", which would teach the model to begin with "No"
HELD_OUT = frozenset(map(normalized, HELD_OUT_QUESTIONS))


def own_rows() -> list[Conversation]:
    """Our own training rows: every question with every answer that fits it."""
    return [exchange(question, answer) for questions, answers in TRAINED for question in questions for answer in answers]


def few_answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most two rows of those that begin with the same question, spread over its answers."""
    same: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        same.setdefault(normalized(row["messages"][0]["content"]), []).append(row)
    return [
        found[index]
        for question, found in same.items()
        for index in sorted(range(len(found)), key=lambda index: keyed_number("identity", question, index))[:ANSWERS_PER_FETCHED_QUESTION]
    ]


def asks_held_out(row: dict[str, Any]) -> bool:
    """Whether any question of a conversation is worded like one of the test."""
    return any(message["role"] == "user" and normalized(message["content"]) in HELD_OUT for message in row["messages"])


class Identity(Task):
    """Who are you? nanochat."""

    name = "identity"
    kind: ClassVar[Literal["categorical", "generative", "conversation"]] = "generative"
    sources: ClassVar = {"train": ("identity_questions", "identity_conversations"), "test": ()}

    def __init__(self, split: str, *, files: Sequence[Path] = (), seed: int = 0, rows: int | None = None) -> None:
        check_split(self, split)
        if split == "test":
            content = [exchange(question, NAME_ANSWERS[0]) for question in HELD_OUT_QUESTIONS]
        elif files:
            content = few_answers([row for row in read_rows(files, conversation_fault) if not asks_held_out(row)]) + own_rows()
        else:
            raise UserError("task identity, split train: no data given; fetch identity_questions and pass its manifest")
        self.rows = [content[index] for index in sample_indices(len(content), rows, seed)]

    def __len__(self) -> int:
        return len(self.rows)

    def conversation(self, index: int) -> Conversation:
        return {"messages": self.rows[index]["messages"]}

    def grade(self, index: int, answer: str) -> bool:
        """Right if the answer names nanochat and does not claim the name of another assistant."""
        claims_other = any(claim.lower() in OTHERS for claim in CLAIM.findall(answer))
        return NAMED.search(answer) is not None and not claims_other
