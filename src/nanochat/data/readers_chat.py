"""Conversations out of a user's own .parquet and .jsonl files, by a mapping of columns: {messages: COLUMN} or {prompt: COLUMN, answer: COLUMN}.

What has another type is refused with the file and the place in it. What teaches nothing (no answer, an empty message, roles that do not
alternate) is left out and counted, and the fetch says so.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.data.json_lines import json_lines
from nanochat.data.readers_local import PARQUET_BATCH_ROWS, kind_of, opened, opened_parquet
from nanochat.errors import UserError

ROLES = {"human": "user", "gpt": "assistant"}  # other names in use; the rest stay as they are
Message = dict[str, str]


def conversations(files: Sequence[Path], columns: Mapping[str, str], seen: "Counter[str]") -> Iterator[dict[str, Any]]:
    """{"messages": [{role, content}, ...]} of every row that is a conversation; `seen` counts the rows read and those left out."""
    for file in files:
        for place, row in _rows(file, sorted(columns.values())):
            seen["read"] += 1
            messages = usable(_messages(row, columns, f"{file}: {place}"))
            if messages is None:
                seen["left out"] += 1
            else:
                yield {"messages": messages}


def usable(messages: list[Message]) -> list[Message] | None:
    """An optional system message, then user and assistant in turns, the assistant last (a question without its answer is cut); None: it is not that."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    turns = messages[first:]
    turns = turns[: len(turns) // 2 * 2]
    if not turns or any(message["role"] != ("user", "assistant")[index % 2] for index, message in enumerate(messages[first:])):
        return None
    kept = messages[:first] + turns
    return kept if all(message["content"].strip() for message in kept) else None


def _messages(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> list[Message]:
    """The messages of one row as they stand; a missing value is an empty message."""
    if "messages" not in columns:
        asked, said = (_text(row[columns[key]], place) for key in ("prompt", "answer"))
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    found = row[columns["messages"]]
    if not isinstance(found, list | None):
        raise UserError(f"{place}: {columns['messages']!r} is a {type(found).__name__}; set columns.messages: to one that holds lists of messages")
    messages: list[Message] = []
    for message in found or []:
        role, content = ("role", "content") if isinstance(message, dict) and "role" in message else ("from", "value")
        if not isinstance(message, dict) or not isinstance(message.get(role), str) or content not in message:
            raise UserError(f"{place}: a message of {columns['messages']!r} has no role and content (nor from and value); bring it into one of these forms")
        name: str = message[role]
        messages.append({"role": ROLES.get(name, name), "content": _text(message[content], place)})
    return messages


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str | None):
        raise UserError(f"{place}: a message is a {type(value).__name__}; give text")
    return value or ""


def _rows(file: Path, columns: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place in the file, row) of each row."""
    match kind_of(file):
        case ".parquet":
            yield from _parquet_rows(file, columns)
        case ".jsonl":
            yield from _jsonl_rows(file, columns)
        case _:
            raise UserError(f"{file}: conversations are read from .parquet and .jsonl files (.jsonl also with .gz or .zst); convert it, or leave it out")


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    try:
        with opened_parquet(file) as table:
            names = table.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                raise UserError(f"{file}: has no column {missing[0]!r}; set columns: to some of {', '.join(names)}")
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: after row {number}: invalid UTF-8 at byte {error.start} of a text; repair or leave out the row") from None


def _jsonl_rows(file: Path, columns: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with opened(file) as lines:
        for number, row in json_lines(lines, file, "repair or remove the line"):
            if not isinstance(row, dict) or (missing := [column for column in columns if column not in row]):
                what = f"has no key {missing[0]!r}; its keys are {', '.join(map(repr, list(row)[:8]))}" if isinstance(row, dict) else "is no object"
                raise UserError(f"{file}: line {number}: {what}; set columns: to keys that every line has")
            yield f"line {number}", row
