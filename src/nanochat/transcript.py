"""Tokens that an assistant produced as parts of a message: text, tool calls, their outputs. The inverse of conversation.py."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanochat.conversation import PARTS

if TYPE_CHECKING:
    from nanochat.tokenizer import Tokenizer

ENDS = ("<|assistant_end|>", "<|bos|>")


def answer_parts(ids: Sequence[int], tokenizer: "Tokenizer") -> list[dict[str, str]]:
    """Parts of one answer, up to its end mark if it has one. A part that was cut off is kept as far as it goes.

    Special tokens that have no place in an answer are dropped.
    """
    opens = {tokenizer.special(before): kind for kind, (before, _, _) in PARTS.items() if before}
    closes = {tokenizer.special(after) for _, after, _ in PARTS.values() if after}
    ends = {tokenizer.special(name) for name in ENDS}
    specials = set(tokenizer.special_tokens.values())
    parts: list[tuple[str, list[int]]] = []
    kind = "text"
    for token in ids:
        if token in ends:
            break
        if token in opens:
            kind = opens[token]
            parts.append((kind, []))
        elif token in closes:
            kind = "text"
        elif token not in specials:
            if not parts or parts[-1][0] != kind:
                parts.append((kind, []))
            parts[-1][1].append(token)
    return [{"type": kind, "text": tokenizer.decode(tokens)} for kind, tokens in parts]


def visible_text(ids: Sequence[int], tokenizer: "Tokenizer") -> str:
    """What an answer says, without its tool calls and their outputs."""
    return "".join(part["text"] for part in answer_parts(ids, tokenizer) if part["type"] == "text")
