"""Keys and values of what was already read, for generation token by token.

Rows may have different lengths: row r holds its positions 0..lengths[r]-1 from the left, and what lies to the right of
them is never seen, since a query sees no position after its own. So prompts are padded on the right, and `truncate`
forgets the padding.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from nanochat.model.config import ModelConfig

GROWTH = 256  # positions; the buffers grow by at least this much


class KVCache:
    """Preallocated keys and values per layer (B, H, capacity, D), token ids (B, capacity) and the length of each row."""

    def __init__(
        self, config: ModelConfig, rows: int, *, capacity: int = GROWTH, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.limit = config.sequence_len
        self.lengths = [0] * rows
        capacity = min(max(capacity, 1), self.limit)
        shape = (rows, config.kv_heads, capacity, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.depth)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.depth)]
        self.tokens = torch.zeros(rows, capacity, device=device, dtype=torch.long)
        self._places: tuple[list[int], Tensor] | None = None

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Positions that fit without growing."""
        return self.tokens.shape[1]

    @property
    def is_uniform(self) -> bool:
        """Whether all rows are equally long."""
        return self.lengths.count(self.lengths[0]) == len(self.lengths)

    def positions(self, count: int) -> Tensor:
        """Positions (B, count) of the next `count` tokens of each row. Kept for all layers: lengths are sent to a GPU, which it stops for, once a token."""
        if self._places is None or self._places[0] != [count, *self.lengths]:
            new = torch.tensor(self.lengths, device=self.tokens.device)[:, None] + torch.arange(count, device=self.tokens.device)
            self._places = [count, *self.lengths], new
        return self._places[1]

    def begin(self, ids: Tensor) -> Tensor:
        """Make room for `ids` (B, T), note them, and return the token before each row's first (B,), -1 where there is none."""
        B, T = ids.shape
        if self.rows != B:
            raise ValueError(f"rows={B}: the cache holds {self.rows}; give one row of ids per cached row")
        needed = max(self.lengths) + T
        if needed > self.limit:
            raise ValueError(f"position {needed}: beyond sequence_len={self.limit}; keep the most recent {self.limit - T} tokens")
        if needed > self.capacity:
            self._grow(min(self.limit, max(needed, self.capacity + GROWTH)))
        if self.is_uniform and (length := self.lengths[0]):
            previous = self.tokens[:, length - 1].clone()
            self.tokens[:, length : length + T] = ids
            return previous
        lengths = self.positions(T)[:, 0]
        previous = self.tokens.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0].masked_fill(lengths == 0, -1)
        self._write(self.tokens, ids)
        return previous

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (B, H, T, D); returns all of them up to the longest row's end."""
        self._write(self.keys[layer], keys)
        self._write(self.values[layer], values)
        end = max(self.lengths) + keys.shape[2]
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store one more position of a layer, keys and values (B, H, D)."""
        if self.is_uniform:
            self.keys[layer].select(2, self.lengths[0]).copy_(keys)
            self.values[layer].select(2, self.lengths[0]).copy_(values)
        else:
            self._write(self.keys[layer], keys[:, :, None])
            self._write(self.values[layer], values[:, :, None])

    def visible(self, layer: int, first: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values (B * H, K, D) from position `first` to the one that was appended to the longest row."""
        count = max(self.lengths) + 1 - first
        return self.keys[layer].narrow(2, first, count).flatten(0, 1), self.values[layer].narrow(2, first, count).flatten(0, 1)

    def advance(self, count: int) -> None:
        """Every row is `count` tokens longer; called once all layers are stored."""
        self.lengths = [length + count for length in self.lengths]

    def truncate(self, lengths: list[int]) -> None:
        """Forget what lies beyond `lengths`, such as padding on the right."""
        assert all(0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True))
        self.lengths = list(lengths)

    def select(self, rows: list[int]) -> "KVCache":
        """A cache of these rows, in this order; a row may be taken several times."""
        chosen = object.__new__(KVCache)
        index = torch.tensor(rows, device=self.tokens.device)
        chosen.limit, chosen.lengths, chosen._places = self.limit, [self.lengths[row] for row in rows], None
        chosen.keys, chosen.values = [t.index_select(0, index) for t in self.keys], [t.index_select(0, index) for t in self.values]
        chosen.tokens = self.tokens.index_select(0, index)
        return chosen

    def _write(self, buffer: Tensor, new: Tensor) -> None:
        """Put `new` (B, T) or (B, H, T, D) at each row's end."""
        count = new.shape[1] if new.ndim == 2 else new.shape[2]
        if self.is_uniform:
            start = self.lengths[0]
            (buffer if buffer.ndim == 2 else buffer.transpose(1, 2))[:, start : start + count] = new if new.ndim == 2 else new.transpose(1, 2)
            return
        rows, positions = torch.arange(self.rows, device=buffer.device)[:, None], self.positions(count)
        with in_any_order():
            if new.ndim == 2:
                buffer[rows, positions] = new
            else:
                buffer.transpose(1, 2)[rows, positions] = new.transpose(1, 2)

    def _grow(self, capacity: int) -> None:
        def wider(old: Tensor, dim: int) -> Tensor:
            shape = list(old.shape)
            shape[dim] = capacity
            new = old.new_zeros(shape)
            new.narrow(dim, 0, old.shape[dim]).copy_(old)
            return new

        self.keys, self.values = [wider(t, 2) for t in self.keys], [wider(t, 2) for t in self.values]
        self.tokens = wider(self.tokens, 1)


@contextlib.contextmanager
def in_any_order() -> Iterator[None]:
    """For writing to places that are all different. To be deterministic torch sorts them on a GPU, and copies a transposed buffer as a whole, twice."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
