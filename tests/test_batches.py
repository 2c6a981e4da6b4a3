"""What a trainer is handed, row by row, across the boundaries of epochs: resumed anywhere, in mixtures, and shared among ranks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.artifacts import write_json, write_manifest
from nanochat.data.rows import MixtureOrder, RowOrder, TokenRows
from nanochat.train.batches import ConversationBatches, TextBatches
from nanochat.train.conversations import PackedRows
from nanochat.train.scaling import TrainingPlan
from nanochat.train.update import positions_of

T, SEED = 4, 11
MASK, GOLDEN = (1 << 64) - 1, 0x9E3779B97F4A7C15


def content(rows: int) -> np.ndarray:
    """Rows that say which they are: row r holds 10 r, 10 r + 1, ..."""
    return 10 * np.arange(rows)[:, None] + np.arange(T + 1)


def tokens(folder: Path, chunks: dict[str, int]) -> TokenRows:
    """Chunks of so many rows each as stage tokenize leaves them, all together `content`."""
    rows, start, manifests = content(sum(chunks.values())), 0, []
    for name, count in chunks.items():
        (folder / name).mkdir()
        rows[start : start + count].astype(np.uint16).tofile(folder / name / "tokens.bin")
        write_json(folder / "tokenizer.json", {})
        counts = {"rows": count, "row_tokens": T + 1, "dtype": "uint16", "vocab_size": 60_000}
        inputs = dict.fromkeys(("text", "tokenizer"), folder / "tokenizer.json")
        write_manifest(folder / name / "manifest.json", stage="tokenize", config={"split": "train"}, inputs=inputs, outputs=["tokens.bin"], counts=counts)
        manifests.append(folder / name / "manifest.json")
        start += count
    return TokenRows(manifests, "train")


def plan(rows_per_step: int, ranks: int) -> TrainingPlan:
    names = [field.name for field in dataclasses.fields(TrainingPlan)]
    values: dict[str, Any] = {**dict.fromkeys(names, 0), "batch_tokens": rows_per_step * T, "sequence_len": T, "ranks": ranks, "micro_batch_rows": 2}
    return TrainingPlan(**values)


def seen(batches: TextBatches | ConversationBatches, rows_per_step: int, ranks: int, steps: range) -> list[int]:
    """The rows of these steps in the order of positions, put together from what every rank is handed; their content is compared."""
    found = []
    for step in steps:
        for rank in range(ranks):
            for positions in positions_of(plan(rows_per_step, ranks), rank):
                inputs, targets = batches.rows(step, positions)
                rows = inputs[:, 0] // 10
                assert (inputs == content(10_000)[rows, :-1]).all() and (targets == content(10_000)[rows, 1:]).all()
                assert rows.tolist() == list(batches.row_ids(step, positions))
                found += rows.tolist()
    return found


# --- the slow way ----------------------------------------------------------------------------------------------------


def mixed(value: int) -> int:
    """SplitMix64's finalizer, in whole numbers of Python."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def permuted(value: int, key: int, bits: int) -> int:
    """Six rounds of a Feistel network over two halves of so many bits."""
    left, right = value >> bits, value & ((1 << bits) - 1)
    for number in range(6):
        left, right = right, left ^ (mixed((key + right * GOLDEN + number) & MASK) & ((1 << bits) - 1))
    return (left << bits) | right


def epochs_of(count: int, seed: int) -> Iterator[int]:
    """Every row once in the order of epoch 0, then of epoch 1, ...: one value at a time, what falls outside fed back."""
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    for epoch in range(10_000):
        key = mixed(mixed((seed + GOLDEN) & MASK) ^ epoch)
        for place in range(count):
            value = permuted(place, key, bits)
            while value >= count:
                value = permuted(value, key, bits)
            yield value


def taken(source: Iterator[int], count: int) -> list[int]:
    return [next(source) for _ in range(count)]


def mixture_of(batches: TextBatches, chunks: dict[str, int]) -> Iterator[int]:
    """The same order as a walk: each source hands out its rows one after the other, and begins again when all are seen."""
    order = batches.order
    assert isinstance(order, MixtureOrder)
    starts = dict(zip(chunks, np.cumsum([0, *chunks.values()]), strict=False))
    own = {name: [int(starts[chunk]) + row for chunk, rows in chunks.items() if chunk.startswith(f"{name}.") for row in range(rows)] for name in order.names}
    walks = {name: map(own[name].__getitem__, epochs_of(rows.count, rows.seed)) for name, rows in zip(order.names, order._orders, strict=True)}
    slots = [name for name, share in zip(order.names, order._shares, strict=True) for _ in range(share)]
    for place in epochs_of(MixtureOrder.BLOCK, SEED):  # each block is drawn anew
        yield next(walks[slots[place]])


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 64, 65])
def test_the_order_is_the_one_that_a_walk_finds(count: int) -> None:
    assert RowOrder(count, SEED).at(np.arange(3 * count)).tolist() == taken(epochs_of(count, SEED), 3 * count)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("count", [7, 18, 36])  # an epoch ends within a step of 12 rows, after half of one, and with one
def test_text_is_seen_once_an_epoch_whatever_the_ranks_and_wherever_it_is_resumed(tmp_path: Path, count: int, ranks: int) -> None:
    rows, steps = tokens(tmp_path, {"a.train": count - 3, "b.train": 3}), 9
    whole = seen(TextBatches(rows, rows_per_step=12, seed=SEED), 12, ranks, range(steps))
    assert whole == taken(epochs_of(count, SEED), 12 * steps)
    for epoch in range(12 * steps // count):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))
    for step in range(steps):  # in the middle of an epoch and at its end
        assert seen(TextBatches(rows, rows_per_step=12, seed=SEED), 12, ranks, range(step, steps)) == whole[12 * step :]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_conversations_are_seen_once_an_epoch_too(tmp_path: Path, ranks: int) -> None:
    (content(18).astype(np.uint32) | np.uint32(1 << 31)).tofile(tmp_path / "rows.bin")
    whole = seen(ConversationBatches(PackedRows(tmp_path / "rows.bin", T + 1), rows_per_step=12, seed=SEED), 12, ranks, range(5))
    assert whole == taken(epochs_of(18, SEED), 60)
    assert seen(ConversationBatches(PackedRows(tmp_path / "rows.bin", T + 1), rows_per_step=12, seed=SEED), 12, ranks, range(3, 5)) == whole[36:]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_mixture_begins_each_source_again_when_it_is_through_across_blocks_too(tmp_path: Path, ranks: int) -> None:
    """Sources of 300, 50 and 7 rows end their epochs at different steps; a block of 4,096 rows ends within step 341."""
    chunks = {"big.train-000": 200, "small.train": 50, "big.train-001": 100, "tiny.train": 7}
    rows, weights = tokens(tmp_path, chunks), {"big": 6, "small": 3, "tiny": 1}

    def batches() -> TextBatches:
        return TextBatches(rows, rows_per_step=12, seed=SEED, weights=weights)

    whole = taken(mixture_of(batches(), chunks), 12 * 400)
    for steps in (range(12), range(335, 350), range(341, 343), range(399, 400)):  # each entered anew, as a resumed training does
        assert seen(batches(), 12, ranks, steps) == whole[12 * steps.start : 12 * steps.stop]
    tiny = [row for row in whole if row >= 350]
    assert len(tiny) // 7 > 60 and all(sorted(tiny[n : n + 7]) == list(range(350, 357)) for n in range(0, len(tiny) - 7, 7))
