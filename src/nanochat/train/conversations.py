"""From a mixture of tasks to packed rows of conversations on disk.

Every conversation is rendered once, some are held out for validation, the rest are repeated as their item asks, and
packed whole into rows of T + 1 tokens (data/packing.py). Rows are uint32: the token, and in the top bit whether the loss
counts it. One rank writes them into the resume folder, all ranks map them into memory, and a resumed run starts at once.
"""

import hashlib
import math
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nanochat.artifacts import atomic_path
from nanochat.conversation import render_conversation
from nanochat.data.packing import ConversationPlan, fill_conversations, pack_conversations
from nanochat.data.rows import RowOrder
from nanochat.errors import UserError
from nanochat.tasks import open_task
from nanochat.tokenizer import Tokenizer
from nanochat.train.update import Rows

COUNTED = np.uint32(1 << 31)
TOKEN = np.uint32((1 << 31) - 1)
RENDER_BATCH = 4096  # conversations handed to the threads at a time
FILL_ROWS = 4096  # rows built in memory at a time
HELD_OUT_SHARE = 0.02
HELD_OUT_AT_LEAST = 8

LossOn = Literal["all", "assistant"]


@dataclass
class Rendered:
    """Conversations end to end: tokens with the assistant's marked in the top bit, and where each ends."""

    tokens: "array[int]" = field(default_factory=lambda: array("I"))
    ends: "array[int]" = field(default_factory=lambda: array("Q"))
    items: "array[int]" = field(default_factory=lambda: array("I"))  # which item of the mixture each came from

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, ids: Sequence[int], mask: Sequence[int], item: int) -> None:
        """Append one conversation."""
        marked = np.asarray(ids, dtype=np.uint32) | (np.asarray(mask, dtype=np.uint32) << np.uint32(31))
        self.tokens.frombytes(marked.tobytes())
        self.ends.append(len(self.tokens))
        self.items.append(item)

    def marked(self, index: int) -> np.ndarray:
        """Tokens of one conversation, with their marks."""
        start = self.ends[index - 1] if index else 0
        return np.frombuffer(self.tokens, dtype=np.uint32)[start : self.ends[index]]

    def lengths(self) -> np.ndarray:
        """Tokens of every conversation."""
        return np.diff(np.asarray(self.ends, dtype=np.int64), prepend=0)


@dataclass(frozen=True)
class Packed:
    """What became of a mixture; `counts` go to the manifest."""

    rows: int
    validation_rows: int
    counts: dict[str, Any]


# --- rendering -------------------------------------------------------------------------------------------------------


def render_mixture(
    mixture: Sequence[Mapping[str, Any]], manifests: Sequence[Path], tokenizer: Tokenizer, *, seed: int, on_batch: Callable[[int], None] = lambda done: None
) -> Rendered:
    """Every row of every item of a mixture as tokens; `on_batch` is told from time to time how many there are."""
    rendered = Rendered()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:  # the encoder works outside of Python's lock
        for number, item in enumerate(mixture):
            task = open_task(item["task"], item["split"], manifests, source=item.get("source"), seed=seed, rows=item.get("rows"))
            for indices in in_pieces(len(task), RENDER_BATCH):
                for ids, mask in threads.map(lambda index, task=task: render_conversation(task.conversation(index), tokenizer), indices):
                    rendered.add(ids, mask, number)
                on_batch(len(rendered))
    return rendered


def held_out(rendered: Rendered, *, seed: int, at_most: int) -> set[int]:
    """A seeded share of the conversations, for validation. Equal conversations are held out together, so none of them is trained on."""
    key = seed.to_bytes(8, "little", signed=True)
    names = [hashlib.blake2b(rendered.marked(index).tobytes(), digest_size=16, key=key).digest() for index in range(len(rendered))]
    different = sorted(set(names))
    wanted = min(max(HELD_OUT_AT_LEAST, round(HELD_OUT_SHARE * len(different))), at_most, len(different) // 5)
    chosen = set(different[:wanted])
    return {index for index, name in enumerate(names) if name in chosen}


def repeated(indices: Sequence[int], epochs: Sequence[float], *, seed: int) -> list[int]:
    """Each index as often as its `epochs` say; of a fraction, a seeded choice sees one more. Shuffled."""
    draws = np.random.Generator(np.random.PCG64(seed)).random(len(indices))
    found = [index for index, often, draw in zip(indices, epochs, draws, strict=True) for _ in range(math.floor(often) + (draw < often % 1))]
    order = RowOrder(len(found), seed).at(np.arange(len(found))) if found else []
    return [found[place] for place in order]


# --- packing ---------------------------------------------------------------------------------------------------------


def pack_mixture(
    training: Rendered,
    validation: Rendered | None,
    *,
    epochs: Sequence[float],
    row_tokens: int,
    loss_on: LossOn,
    padding: int,
    validation_rows: int,
    seed: int,
    files: tuple[Path, Path],
) -> Packed:
    """Write training and validation rows to `files`. `validation` None: a share of `training` is held out.

    Raises UserError if nothing is left to learn from.
    """
    lengths = training.lengths()
    fits = lengths <= row_tokens
    mean = max(1.0, float(lengths[fits].mean())) if fits.any() else 1.0
    kept_back = held_out(training, seed=seed, at_most=math.ceil(validation_rows * row_tokens / mean)) if validation is None else set()
    learnt = [index for index in range(len(training)) if index not in kept_back and fits[index]]
    sequence = repeated(learnt, [epochs[training.items[index]] for index in learnt], seed=seed)
    plan = pack_conversations(lengths[sequence], row_tokens) if sequence else ConversationPlan([], [], row_tokens)
    supervised = write_rows(files[0], plan, training, sequence, loss_on, padding)
    if not supervised:
        raise UserError(
            f"mixture: no token to learn from ({len(training)} conversations, {int((~fits).sum())} of them longer than a row of {row_tokens} tokens); "
            "add tasks or rows, or raise sequence_len"
        )
    source, checked = (training, sorted(kept_back)) if validation is None else (validation, list(range(len(validation))))
    check_plan = pack_conversations(source.lengths()[checked], row_tokens) if checked else ConversationPlan([], [], row_tokens)
    check_plan = ConversationPlan(check_plan.rows[:validation_rows], [], row_tokens)
    write_rows(files[1], check_plan, source, checked, loss_on, padding)
    counts = {
        "conversations": len(training),
        "conversations_too_long": int((~fits).sum()),
        "conversations_held_out": len(kept_back),
        "conversations_packed": len(sequence),
        "rows": len(plan.rows),
        "validation_rows": len(check_plan.rows),
        "supervised_tokens": supervised,
        "padding_fraction": round(1 - float(lengths[sequence].sum()) / (len(plan.rows) * row_tokens), 6),
    }
    return Packed(len(plan.rows), len(check_plan.rows), counts)


def write_rows(path: Path, plan: ConversationPlan, source: Rendered, sequence: Sequence[int], loss_on: LossOn, padding: int) -> int:
    """Write the rows of `plan` over `source[sequence]`; returns how many targets the loss counts."""
    supervised = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for start in range(0, len(plan.rows), FILL_ROWS):
            members = plan.rows[start : start + FILL_ROWS]
            needed = {place: source.marked(sequence[place]) for row in members for place in row}
            places = {place: number for number, place in enumerate(needed)}
            part = ConversationPlan([[places[place] for place in row] for row in members], [], plan.row_tokens)
            conversations = [(marked & TOKEN, np.ones(len(marked), dtype=bool) if loss_on == "all" else marked >= COUNTED) for marked in needed.values()]
            ids, mask = fill_conversations(part, conversations, padding)  # type: ignore[arg-type]
            supervised += int(mask[:, 1:].sum())
            file.write((ids.astype(np.uint32) | (mask.astype(np.uint32) << np.uint32(31))).tobytes())
    return supervised


# --- reading ---------------------------------------------------------------------------------------------------------


class PackedRows:
    """Rows of a file of `write_rows`, as inputs and targets."""

    def __init__(self, path: Path, row_tokens: int) -> None:
        count = path.stat().st_size // (4 * row_tokens)
        self.file = np.memmap(path, dtype=np.uint32, mode="r", shape=(count, row_tokens)) if count else np.empty((0, row_tokens), dtype=np.uint32)

    def __len__(self) -> int:
        return len(self.file)

    def pairs(self, indices: np.ndarray | Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs and targets (n, T) of these rows; a target that is not counted is -1."""
        marked = np.asarray(self.file[np.asarray(indices, dtype=np.int64)])
        ids = (marked & TOKEN).astype(np.int64)
        targets = np.where(marked >= COUNTED, ids, -1)
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(targets[:, 1:])


def in_pieces(count: int, size: int) -> Iterator[range]:
    """0..count-1 in ranges of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
