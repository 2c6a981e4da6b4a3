"""Near copies of texts: MinHash signatures (Broder 1997; the library rensa) in bands, so that only what is likely alike is compared.

A signature estimates the share of five-word runs that two texts have in common. Two texts are compared where one band of
their signatures is equal; they are near copies where the estimate reaches the limit. Signatures lie in a file: memory is 40 bytes a
text, and besides the signatures of those that are compared.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.data.ngrams import Words, mixed

SHINGLE_WORDS = 5
SEED = 1
FOUND = 0.95  # least probability that two texts which are as alike as the limit says are compared at all
ROUNDS = 8  # of comparing the texts that share a band with the first one of them that is still unlike
BLOCK_TEXTS = 1 << 16


def signatures(words: Words, permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """((texts, permutations) uint32, whether a text has any word). A text of fewer than five words is one run."""
    from rensa import RMinHash

    sizes = np.diff(words.starts)
    texts, numbers = [], []
    for length, places, found in words.runs(range(1, SHINGLE_WORDS + 1)):
        text = words.text_of_word[places]
        wanted = np.ones(len(places), dtype=bool) if length == SHINGLE_WORDS else sizes[text] == length
        texts.append(text[wanted])
        numbers.append(found[wanted])
    owners = np.concatenate(texts) if texts else np.zeros(0, dtype=np.int64)
    order = np.argsort(owners, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(sizes)))]).astype(np.uint64)
    flat = (np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.uint64))[order]
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, permutations, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(sizes), permutations), sizes > 0


def bands_of(permutations: int, similarity: float) -> tuple[int, int]:
    """(bands, rows of each): the longest rows with which texts as alike as `similarity` are still found."""
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - similarity**rows) ** bands >= FOUND:
            return bands, rows
    return permutations, 1


@dataclass(frozen=True)
class SignatureFile:
    """(texts, permutations) uint32 in a file."""

    path: Path
    texts: int
    permutations: int

    def create(self) -> None:
        """Make room, or keep what is there if it has this size."""
        size = self.texts * self.permutations * 4
        if not self.path.is_file() or self.path.stat().st_size != size:
            with self.path.open("wb") as file:
                file.truncate(size)

    def write(self, first: int, rows: np.ndarray) -> None:
        """Write the signatures of some texts, `first` and those behind it."""
        with self.path.open("r+b") as file:
            file.seek(first * self.permutations * 4)
            file.write(np.ascontiguousarray(rows).data)

    def band(self, first: int, rows: int) -> np.ndarray:
        """A number for each text: equal where the signatures are equal in `rows` places from `first`."""
        numbers = np.empty(self.texts, dtype=np.uint64)
        with self.path.open("rb") as file:
            for start in range(0, self.texts, BLOCK_TEXTS):
                end = min(start + BLOCK_TEXTS, self.texts)
                block = np.fromfile(file, dtype=np.uint32, count=(end - start) * self.permutations).reshape(-1, self.permutations)
                number = np.zeros(end - start, dtype=np.uint64)
                for column in block[:, first : first + rows].T:
                    number = mixed(number ^ column.astype(np.uint64))
                numbers[start:end] = number
        return numbers

    def alike(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Estimated similarity of pairs of texts."""
        if not len(left):
            return np.zeros(0)
        shape = (self.texts, self.permutations)
        content = np.memmap(self.path, dtype=np.uint32, mode="r", shape=shape)
        blocks = (slice(start, start + BLOCK_TEXTS) for start in range(0, len(left), BLOCK_TEXTS))
        return np.concatenate([(content[left[block]] == content[right[block]]).mean(axis=1) for block in blocks])


def near_copies(file: SignatureFile, alive: np.ndarray, similarity: float, *, droppable_from: int = 0, originals: int | None = None) -> np.ndarray:
    """For each text the earlier one that it is a near copy of, or -1.

    Only texts that are `alive` are looked at, only those from `droppable_from` are copies, and only of the first `originals`.
    """
    copy_of = np.full(file.texts, -1, dtype=np.int64)
    bands, rows = bands_of(file.permutations, similarity)
    for band in range(bands):
        keys = file.band(band * rows, rows)
        members = np.flatnonzero(alive & (copy_of < 0))
        members = members[np.argsort(keys[members], kind="stable")]  # of equal keys the earlier text first
        for _ in range(ROUNDS):
            is_first = np.append(True, keys[members][1:] != keys[members][:-1])[: len(members)]
            leaders = members[np.maximum.accumulate(np.where(is_first, np.arange(len(members)), 0))]
            members, leaders = members[~is_first], leaders[~is_first]
            if not len(members):
                break
            near = file.alike(members, leaders) >= similarity
            copies = near & (members >= droppable_from) & (leaders < (file.texts if originals is None else originals))
            copy_of[members[copies]] = leaders[copies]
            members = members[~near]
    return copy_of


def exact_copies(digests: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """For each text the first one with the same digest (texts, 2), if that is an earlier one, or -1."""
    copy_of = np.full(len(digests), -1, dtype=np.int64)
    members = np.flatnonzero(alive)
    order = members[np.lexsort((digests[members, 1], digests[members, 0]))]  # stable: the earlier text first
    if len(order):
        is_first = np.append(True, (digests[order][1:] != digests[order][:-1]).any(axis=1))
        leaders = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
        copy_of[order[~is_first]] = leaders[~is_first]
    return copy_of
