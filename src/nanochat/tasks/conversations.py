"""Conversations for training that nobody grades. Rows: {"messages": [{"role", "content"}]}."""

from typing import Any, ClassVar, Literal

from nanochat.conversation import conversation_fault
from nanochat.tasks.base import Conversation, RowTask


class Chat(RowTask):
    """Rows that are conversations already."""

    kind: ClassVar[Literal["categorical", "generative", "conversation"]] = "conversation"

    def fault(self, row: dict[str, Any]) -> str | None:
        return conversation_fault(row)

    def conversation(self, index: int) -> Conversation:
        return {"messages": self.rows[index]["messages"]}


class Chitchat(Chat):
    """Human small talk, informal."""

    name = "chitchat"
    sources: ClassVar = {"train": ("chitchat",)}


class SmolTalk(Chat):
    """Instructions and answers written by larger models."""

    name = "smoltalk"
    sources: ClassVar = {"train": ("smoltalk_hf",), "test": ("smoltalk_hf",)}


class Conversations(Chat):
    """Conversations of the user's own: a source with `columns:`, named by `source:`, since there is no first choice."""

    name = "conversations"
    sources: ClassVar = {"train": ()}
