"""Packed rows on disk, and the order in which they are visited.

`TokenRows` maps the tokens.bin files of one split into memory as one sequence of rows. `RowOrder` says which row a global
counter means: a seeded permutation per epoch that is computed, never stored, so it costs no memory, can be entered
anywhere, and does not depend on the number of ranks that share the work. `MixtureOrder` does the same with sources in given proportions.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.artifacts import read_manifest, verified_file
from nanochat.errors import UserError

TOKENS_FILE = "tokens.bin"
DTYPES = {"uint16": np.uint16, "uint32": np.uint32}
SHARED = ("row_tokens", "dtype", "vocab_size")  # counts that all chunks of a corpus agree on


def token_dtype(vocab_size: int) -> str:
    """Name of the smallest dtype that holds every id: uint16 up to 65,536 entries, else uint32."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class TokenRows:
    """The rows of one split over all given chunks, in the order of the manifests; those of other splits are passed over."""

    def __init__(self, manifests: Sequence[Path], split: str, *, verify: bool = False) -> None:
        """`verify` compares the sha256 of every file first; otherwise only sizes are compared."""
        found = [(Path(path), read_manifest(Path(path), stage="tokenize")) for path in manifests]
        chosen = [(path, manifest) for path, manifest in found if manifest["config"]["split"] == split]
        rows = sum(manifest["counts"]["rows"] for _, manifest in chosen)
        if rows == 0:
            raise UserError(f"--tokens: no rows of split {split!r} in {len(found)} chunks; give its chunks, add text or shorten sequence_len")
        path, first = chosen[0]
        for other, manifest in chosen[1:]:
            for key, ours, theirs in _shared(first, manifest):
                if ours != theirs:
                    raise UserError(f"{other}: {key} is {theirs}, in {path} it is {ours}; tokenize both with the same tokenizer and sequence_len")
        self.row_tokens: int = first["counts"]["row_tokens"]
        self.vocab_size: int = first["counts"]["vocab_size"]
        self.tokenizer_manifest_sha256: str = first["inputs"]["tokenizer"]
        self.chunks = [(path.absolute().parent.name, int(manifest["counts"]["rows"])) for path, manifest in chosen]  # in the order of the rows
        self._files = []
        for path, manifest in chosen:
            if verify:
                verified_file(path, TOKENS_FILE)
            if manifest["counts"]["rows"]:  # an empty file cannot be mapped
                shape = (manifest["counts"]["rows"], self.row_tokens)
                self._files.append(np.memmap(path.parent / TOKENS_FILE, dtype=DTYPES[manifest["counts"]["dtype"]], mode="r", shape=shape))
        self._ends = np.cumsum([len(file) for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """(len(indices), row_tokens) int64: inputs are row[:-1], targets row[1:]."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"row {indices.min()}..{indices.max()} of {len(self)}")
        gathered = np.empty((len(indices), self.row_tokens), dtype=np.int64)
        which = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(which):
            file, here = self._files[number], which == number
            gathered[here] = file[indices[here] - (self._ends[number] - len(file))]
        return gathered


def _shared(first: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    pairs = [(key, first["counts"][key], other["counts"][key]) for key in SHARED]
    return [*pairs, ("tokenizer", first["inputs"]["tokenizer"], other["inputs"]["tokenizer"])]


# --- order -----------------------------------------------------------------------------------------------------------

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, SplitMix64's increment
ROUNDS = 6  # a balanced Feistel network is a permutation after any number; 4 suffice to look random, two to spare


class RowOrder:
    """Which row each step of a global counter visits: every row once per epoch, differently in each epoch.

    A Feistel network over the smallest power of four that holds `count`, keyed by seed and epoch; results outside are fed
    back until they fall inside (cycle walking), which keeps it a permutation. Integer arithmetic only: the same on every
    machine and in every version of every library.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        if count <= 0:
            raise UserError(f"rows={count}: there is nothing to visit; give at least one row")
        self.count = count
        self.seed = seed
        self._half_bits = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))

    def at(self, counter: np.ndarray | Sequence[int] | int) -> Any:
        """Row of each counter, as an int64 array of its shape; an int gives an int."""
        counters = np.asarray(counter, dtype=np.int64)
        flat = counters.reshape(-1)
        assert (flat >= 0).all(), "counters start at 0"
        values = (flat % self.count).astype(np.uint64)
        seed = _mix(np.array([self.seed % (1 << 64)], dtype=np.uint64) + GOLDEN)
        keys = _mix(seed ^ (flat // self.count).astype(np.uint64))
        outside = np.arange(len(values))
        while len(outside):
            values[outside] = self._permute(values[outside], keys[outside])
            outside = outside[values[outside] >= self.count]
        rows = values.astype(np.int64).reshape(counters.shape)
        return int(rows) if rows.ndim == 0 else rows

    def _permute(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        low = np.uint64((1 << int(self._half_bits)) - 1)
        left, right = values >> self._half_bits, values & low
        for number in range(ROUNDS):
            left, right = right, left ^ (_mix(keys + right * GOLDEN + np.uint64(number)) & low)
        return (left << self._half_bits) | right


class MixtureOrder:
    """Which row each step of a global counter visits, where sources stand in given proportions, whatever their size.

    In every block of 4,096 rows each source has its share, to the nearest row, at places that a seeded permutation of the block draws. A source's
    own rows come in the order of a `RowOrder` of their own: each once, then each once more. Computed, never stored, as that is.
    """

    BLOCK = 4096

    def __init__(self, chunks: Sequence[tuple[str, int]], weights: Mapping[str, float], seed: int = 0) -> None:
        """`chunks`: (name, rows), where a name begins with that of its source and a dot."""
        starts = np.cumsum([0, *(rows for _, rows in chunks)])
        spans: dict[str, list[np.ndarray]] = {}
        for (name, rows), start in zip(chunks, starts, strict=False):
            spans.setdefault(name.partition(".")[0], []).append(np.arange(2, dtype=np.int64) * rows + start)
        if set(spans) != set(weights):
            raise UserError(f"weights: given for {', '.join(sorted(weights))}, the rows are of {', '.join(sorted(spans))}; give one for each")
        self.names = sorted(weights)
        self._spans = [np.array(spans[name]) for name in self.names]  # (first row, end) of each chunk
        self.rows = [int((span[:, 1] - span[:, 0]).sum()) for span in self._spans]
        if empty := [name for name, rows in zip(self.names, self.rows, strict=True) if not rows]:
            raise UserError(f"weights: source {empty[0]} has no rows to draw; give it text or leave it out")
        self._shares = _shares([weights[name] for name in self.names], self.BLOCK)
        if lost := [name for name, share in zip(self.names, self._shares, strict=True) if not share]:
            raise UserError(f"weights.{lost[0]}={weights[lost[0]]}: less than one row in {self.BLOCK:,}; raise it or leave the source out")
        self._block = RowOrder(self.BLOCK, seed)
        self._orders = [RowOrder(rows, _seed_of(seed, name)) for name, rows in zip(self.names, self.rows, strict=True)]
        self._source = np.repeat(np.arange(len(self.names)), self._shares)  # of each slot of a block, before they are drawn
        self._layout = functools.lru_cache(maxsize=4)(self._draw)

    def at(self, counter: np.ndarray | Sequence[int] | int) -> np.ndarray:
        """Row of each counter."""
        counters = np.asarray(counter, dtype=np.int64)
        flat = counters.reshape(-1)
        rows, blocks, places = np.empty(len(flat), dtype=np.int64), flat // self.BLOCK, flat % self.BLOCK
        sources, ranks = np.empty(len(flat), dtype=np.int64), np.empty(len(flat), dtype=np.int64)
        for block in np.unique(blocks):
            here = blocks == block
            source, rank = self._layout(int(block))
            sources[here], ranks[here] = source[places[here]], rank[places[here]]
        for number, (order, span) in enumerate(zip(self._orders, self._spans, strict=True)):
            here = sources == number
            drawn = order.at(blocks[here] * self._shares[number] + ranks[here])
            ends = np.cumsum(span[:, 1] - span[:, 0])
            chunk = np.searchsorted(ends, drawn, side="right")
            rows[here] = drawn - ends[chunk] + span[chunk, 1]
        return rows.reshape(counters.shape)

    def _draw(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many rows of it came before in this block) at each place of a block."""
        source = self._source[self._block.at(np.arange(block * self.BLOCK, (block + 1) * self.BLOCK))]
        rank = np.empty(self.BLOCK, dtype=np.int64)
        rank[np.argsort(source, kind="stable")] = np.concatenate([np.arange(share) for share in self._shares])
        return source, rank

    def drawn(self, count: int) -> dict[str, int]:
        """Rows of each source among the first `count`."""
        whole = count // self.BLOCK
        rest = self._layout(whole)[0][: count % self.BLOCK]
        found = np.bincount(rest, minlength=len(self.names))
        return {name: int(whole * self._shares[number] + found[number]) for number, name in enumerate(self.names)}


def _shares(weights: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers in the proportion of the weights that add up to `total` (largest remainders)."""
    exact = np.array(weights) / sum(weights) * total
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares


def _seed_of(seed: int, name: str) -> int:
    """A seed for each source, which other sources do not change."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest())


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, on uint64 arrays modulo 2^64 (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
