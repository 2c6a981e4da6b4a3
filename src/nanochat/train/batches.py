"""Rows for the trainer: which row stands at which position of which step, for packed text and for packed conversations.

The global counter step x rows_per_step + position goes through a seeded permutation per epoch, so the order depends on
the seed alone, not on ranks, micro-batches or interruptions.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from nanochat.data.rows import MixtureOrder, RowOrder, TokenRows
from nanochat.train.conversations import PackedRows
from nanochat.train.update import Rows


def next_token_pairs(rows: Rows) -> tuple[Rows, Rows]:
    """Inputs and targets (n, T) of rows (n, T + 1), every target counted."""
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


class TextBatches:
    """Packed text: every token is a target. With `weights` its sources stand in these proportions, else each row is visited once an epoch."""

    def __init__(self, source: TokenRows, *, rows_per_step: int, seed: int, weights: Mapping[str, float] | None = None) -> None:
        self.source, self.rows_per_step = source, rows_per_step
        self.order: RowOrder | MixtureOrder = MixtureOrder(source.chunks, weights, seed) if weights else RowOrder(len(source), seed)

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each source is seen in so many steps; nothing without weights."""
        if not isinstance(self.order, MixtureOrder):
            return {}
        drawn = self.order.drawn(steps * self.rows_per_step)
        return {name: drawn[name] / rows for name, rows in zip(self.order.names, self.order.rows, strict=True)}

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs and targets at these positions of a step."""
        return next_token_pairs(self.source.rows(self.row_ids(step, positions)))

    def row_ids(self, step: int, positions: Sequence[int]) -> np.ndarray:
        """Which rows of the source stand at these positions of a step."""
        return np.asarray(self.order.at(step * self.rows_per_step + np.asarray(positions, dtype=np.int64)))


class ConversationBatches:
    """Packed conversations: padding, and what the loss must not count, is masked."""

    def __init__(self, source: PackedRows, *, rows_per_step: int, seed: int) -> None:
        self.source, self.rows_per_step, self.order = source, rows_per_step, RowOrder(len(source), seed)

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs and targets at these positions of a step."""
        return self.source.pairs(self.row_ids(step, positions))

    def row_ids(self, step: int, positions: Sequence[int]) -> np.ndarray:
        """Which rows of the source stand at these positions of a step."""
        return np.asarray(self.order.at(step * self.rows_per_step + np.asarray(positions, dtype=np.int64)))
