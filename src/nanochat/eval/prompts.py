"""What a model is shown of a task's row: a conversation up to its answer, or plain text for a base model.

A base model has never seen the marks of a conversation, so it gets the question as text to go on from. The letter of a
multiple choice follows "=" there as it does behind each choice.
"""

from dataclasses import dataclass
from typing import Literal

from nanochat.tasks.base import Task
from nanochat.tokenizer import Tokenizer, render_prompt

Form = Literal["chat", "text"]


@dataclass(frozen=True)
class Prompt:
    """One row as tokens. `is_cut`: it was too long, and the beginning of the question is missing."""

    index: int
    question: str
    ids: list[int]
    is_cut: bool


def form_of(phase: str) -> Form:
    """How models of a phase are asked."""
    return "text" if phase == "base" else "chat"


def prompt_of(task: Task, index: int, tokenizer: Tokenizer, *, form: Form, max_tokens: int) -> Prompt:
    """Row `index` as a prompt of at most `max_tokens` tokens."""
    messages = task.conversation(index)["messages"][:-1]
    question = messages[-1]["content"]
    if form == "chat":
        ids, head = render_prompt({"messages": messages}, tokenizer), 2
    else:
        goes_on = task.name == "humaneval"  # the open function itself is what is to be continued
        ids, head = [tokenizer.bos, *tokenizer.encode(question if goes_on else question + _lead(task))], 1
    if len(ids) <= max_tokens:
        return Prompt(index, question, ids, False)
    return Prompt(index, question, [*ids[:head], *ids[len(ids) - (max_tokens - head) :]], True)


def _lead(task: Task) -> str:
    return "\nAnswer=" if task.kind == "categorical" else "\nAnswer:"
