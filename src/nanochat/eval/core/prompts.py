"""How a row of CORE is asked: worked examples before it, the texts that are compared, and which of their tokens count.

multiple_choice   {query}{delimiter}{choice} for each choice; what differs counts: from the end of the longest common beginning
schema            {context}{delimiter}{continuation} for each context; the longest common end counts
language_modeling {context}{delimiter}{continuation}, context without blanks around it; all of the continuation counts
Before it, each worked example in the same form with its right answer, and an empty line.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanochat.data.core import LISTS
from nanochat.errors import UserError
from nanochat.eval.core.bundle import IclTask
from nanochat.tokenizer import SAFE_CUT, Tokenizer

SHUFFLE_SEED, EXAMPLES_SEED = 1337, 1234
CUT_WINDOW = 400  # characters before the end of a common beginning in which a safe place to cut is looked for


@dataclass(frozen=True)
class Item:
    """One row as tokens: of each of its texts, those from `starts` on count. `gold`: which text is the right one; None: the only one."""

    index: int
    sequences: list[list[int]]
    starts: list[int]
    shared: int  # tokens from the beginning that are the same in every text (and in items that begin alike) and stand before those that count
    gold: int | None
    is_cut: bool  # it was too long, and the beginning of its worked examples is missing

    @property
    def head(self) -> tuple[int, ...]:
        """The shared tokens."""
        return tuple(self.sequences[0][: self.shared])


def shuffled(rows: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """The rows in the order in which they are asked, at most `limit` of them."""
    mixed = list(rows)
    random.Random(SHUFFLE_SEED).shuffle(mixed)
    return mixed[:limit]


def check_limit(task: IclTask, limit: int | None) -> None:
    """Refuse a limit that leaves too few rows for worked examples, which are taken from the rows that are asked."""
    rows = min(len(task.rows), limit or len(task.rows))
    if rows <= task.shots:
        what = f"limit={limit}" if rows == limit else f"{rows} rows"
        raise UserError(f"{what}: task {task.label} shows {task.shots} other rows as examples before each; give {task.shots + 1} rows or more")


def examples_of(rows: Sequence[dict[str, Any]], index: int, shots: int) -> list[dict[str, Any]]:
    """The worked examples before row `index`: other rows, drawn from a seed of its own."""
    others = [other for other in range(len(rows)) if other != index]
    return [rows[other] for other in random.Random(EXAMPLES_SEED + index).sample(others, shots)]


def worked(task: IclTask, row: Mapping[str, Any]) -> str:
    """A row with its right answer."""
    match task.kind:
        case "multiple_choice":
            return f"{row['query']}{task.delimiter}{row['choices'][row['gold']]}"
        case "schema":
            return f"{row['context_options'][row['gold']]}{task.delimiter}{row['continuation']}"
        case _:
            return f"{row['context'].strip()}{task.delimiter}{row['continuation']}"


def texts_of(task: IclTask, row: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the model reads: a text for each choice; of kind language_modeling the text without the answer, and with it."""
    before = "".join(f"{worked(task, example)}\n\n" for example in examples)
    match task.kind:
        case "multiple_choice":
            return [f"{before}{row['query']}{task.delimiter}{choice}" for choice in row["choices"]]
        case "schema":
            return [f"{before}{context}{task.delimiter}{row['continuation']}" for context in row["context_options"]]
        case _:
            without = f"{before}{row['context'].strip()}{task.delimiter}"
            return [without.strip(), f"{without}{row['continuation']}"]


def item_of(task: IclTask, rows: Sequence[dict[str, Any]], index: int, tokenizer: Tokenizer, *, max_tokens: int) -> Item:
    """Row `index` as tokens. What is longer than the model's context loses the first of its worked examples, the same in each text."""
    row = rows[index]
    sequences = encode_all(texts_of(task, row, examples_of(rows, index, task.shots)), tokenizer)
    if task.kind == "schema":
        tail = min(_common(*(list(reversed(ids)) for ids in sequences)), min(map(len, sequences)) - 1)
        counted = [tail] * len(sequences)
    elif task.kind == "multiple_choice":
        start = min(_common(*sequences), min(map(len, sequences)) - 1)  # one token at least of each: a choice may begin another
        counted = [len(ids) - start for ids in sequences]
    else:
        without, whole = sequences
        sequences, counted = [whole], [len(whole) - min(_common(without, whole), len(whole) - 1)]
    kept = _fitted(sequences, max_tokens)
    starts = [max(1, len(ids) - count) for ids, count in zip(kept, counted, strict=True)]
    shared = min(_common(*kept), *starts)
    return Item(index, kept, starts, shared, row["gold"] if task.kind in LISTS else None, kept != sequences)


def sharing(items: Sequence[Item]) -> list[Item]:
    """Items of one text each: those that have half of their tokens or more in common, from the beginning, share that."""
    groups: list[list[Item]] = []
    for item in sorted(items, key=lambda item: item.sequences[0]):
        if groups and 2 * _common(groups[-1][0].sequences[0], item.sequences[0]) >= len(item.sequences[0]):
            groups[-1].append(item)
        else:
            groups.append([item])
    # in order, the first and the last of a group have the least in common
    shares = [min(_common(group[0].sequences[0], group[-1].sequences[0]), *(item.shared for item in group)) for group in groups]
    return [replace(item, shared=shared) for group, shared in zip(groups, shares, strict=True) for item in group]


def encode_all(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """<|bos|> and the ids of each text, as if each were encoded alone; what they have in common is encoded once."""
    common, cut = texts[0][: _common(*texts)], 0
    for found in SAFE_CUT.finditer(common, max(0, len(common) - CUT_WINDOW)):
        cut = found.start()
    head = [tokenizer.bos, *tokenizer.encode(common[:cut])]
    return [[*head, *tokenizer.encode(text[cut:])] for text in texts]


def _common(first: Sequence[Any], *others: Sequence[Any]) -> int:
    """Length of the longest common beginning, by halving: comparing slices is quick, comparing one by one takes longer than encoding."""
    low, high = 0, min(map(len, (first, *others)))
    while low < high:
        middle = (low + high + 1) // 2
        if all(other[low:middle] == first[low:middle] for other in others):
            low = middle
        else:
            high = middle - 1
    return low


def _fitted(sequences: list[list[int]], limit: int) -> list[list[int]]:
    """The texts without what is too much: first of their common beginning, <|bos|> excepted, then of each alone."""
    too_many = max(map(len, sequences)) - limit
    if too_many <= 0:
        return sequences
    drop = max(0, min(too_many, _common(*sequences) - 2))
    shorter = [[ids[0], *ids[1 + drop :]] for ids in sequences]
    return [ids if len(ids) <= limit else [ids[0], *ids[len(ids) - limit + 1 :]] for ids in shorter]
