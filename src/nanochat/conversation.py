"""A conversation as tokens, and which of them the assistant must learn to produce (mask 1).

Conversation: {"messages": [{"role": "system"|"user"|"assistant", "content": str | [part, ...]}]}, parts for the assistant only;
part: {"type": "text"|"python"|"python_output", "text": str}. A system message is merged into the first user message.

    bos  user_start TEXT user_end  assistant_start TEXT python_start EXPR python_end output_start TEXT output_end assistant_end
    0    0          0    0         0               1    1            1    1          0            0    0          1

What the tool prints is not learnt (mask 0): at test time it comes from the tool.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nanochat.errors import UserError

if TYPE_CHECKING:
    from nanochat.tokenizer import Tokenizer

# part type -> (special token before, special token after, mask)
PARTS: dict[str, tuple[str, str, int]] = {
    "text": ("", "", 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


def render_conversation(conversation: Mapping[str, Any], tokenizer: "Tokenizer", max_tokens: int | None = None) -> tuple[list[int], list[int]]:
    """(ids, mask) of a whole conversation. Nothing is cut unless `max_tokens` asks for the first so many tokens."""
    ids, mask = [tokenizer.bos], [0]

    def add(tokens: list[int], value: int) -> None:
        ids.extend(tokens)
        mask.extend([value] * len(tokens))

    for role, content in _turns(conversation):
        start, end = tokenizer.special(f"<|{role}_start|>"), tokenizer.special(f"<|{role}_end|>")
        add([start], 0)
        if role == "user":
            add([*tokenizer.encode(content), end], 0)
            continue
        for kind, text in _parts(content):
            before, after, value = PARTS[kind]
            add([*_marks(tokenizer, before), *tokenizer.encode(text), *_marks(tokenizer, after)], value)
        add([end], 1)
    return ids[:max_tokens], mask[:max_tokens]


def render_prompt(conversation: Mapping[str, Any], tokenizer: "Tokenizer") -> list[int]:
    """Ids of a conversation that ends with a user's message, up to where the assistant begins to answer."""
    if _turns(conversation)[-1][0] != "user":
        raise UserError("conversation: ends with the assistant's message, a prompt must end with the user's; leave the last answer out")
    ids, _ = render_conversation(conversation, tokenizer)
    return [*ids, tokenizer.special("<|assistant_start|>")]


def _marks(tokenizer: "Tokenizer", name: str) -> list[int]:
    return [tokenizer.special(name)] if name else []


def conversation_fault(conversation: Mapping[str, Any]) -> str | None:
    """Why a conversation cannot be rendered, or None."""
    try:
        for role, content in _turns(conversation):
            if role == "assistant":
                _parts(content)
    except UserError as error:
        return str(error)
    return None


def _turns(conversation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(role, content) of each turn: user, assistant, user, ...; the system message is part of the first."""
    messages = conversation.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise UserError('conversation: has no list "messages" of objects; see docs/reference for the format')
    turns = [(message.get("role"), message.get("content")) for message in messages]
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
        if not isinstance(system, str) or not turns or turns[0][0] != "user" or not isinstance(turns[0][1], str):
            raise UserError("conversation: a system message must be text and be followed by a user's text; reorder the messages")
        turns[0] = ("user", f"{system}\n\n{turns[0][1]}")
    if not turns:
        raise UserError("conversation: has no message; it needs one by the user at least")
    for index, (role, content) in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            raise UserError(f"conversation: turn {index} has role {role!r}, {expected!r} was due; let user and assistant alternate")
        if not isinstance(content, str) and not (role == "assistant" and isinstance(content, list)):
            raise UserError(f"conversation: turn {index} ({role}) has content of type {type(content).__name__}; give text")
    return turns


def _parts(content: str | list[Any]) -> list[tuple[str, str]]:
    """(type, text) of each part of an assistant's message."""
    if isinstance(content, str):
        return [("text", content)]
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in PARTS or not isinstance(part.get("text"), str):
            raise UserError(f"conversation: part {part!r} is not {{type, text}} with type {', '.join(PARTS)}; correct it")
    return [(part["type"], part["text"]) for part in content]
