"""Packed rows on disk, and the order in which they are visited.

`TokenRows` maps the tokens.bin files of one split into memory as one sequence of rows. `RowOrder` says which row a global
counter means: a seeded permutation per epoch that is computed, never stored, so it costs no memory, can be entered
anywhere, and does not depend on the number of ranks that share the work.
"""

from collections.abc import Sequence
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


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, on uint64 arrays modulo 2^64 (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
