"""Which items of an evaluation stand, in part, in a text: runs of words that both hold. The text is read once, a row group at a time.

An item of `longest` words and more is known by each of its runs of so many words; a shorter one, down to `shortest`, as a whole; one
that is shorter still is common words and cannot be told. Memory is that of the items' runs, whatever the size of the text.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.data.documents import read_row_group
from nanochat.data.ngrams import Known, Words

PORTION_CHARS = 2_000_000  # of text whose words are looked at together


@dataclass(frozen=True)
class Passage:
    """One text of an item. `least`: with fewer words it is not looked for."""

    item: int
    text: str
    least: int


class Items:
    """The runs of words of some items."""

    def __init__(self, passages: Sequence[Passage], *, longest: int) -> None:
        words = Words.of(passage.text for passage in passages)
        sizes = np.diff(words.starts)
        owners = np.array([passage.item for passage in passages], dtype=np.int64)
        usable = sizes >= np.array([passage.least for passage in passages], dtype=np.int64)
        self.known: dict[int, np.ndarray] = {}  # length -> numbers of the runs, ascending, each once
        self._place: dict[int, np.ndarray] = {}  # of each run of an item in `known`
        self._owner: dict[int, np.ndarray] = {}
        self._words, self._starts = words.words, {}
        lengths = {min(int(size), longest) for size, use in zip(sizes, usable, strict=True) if use}
        for length, places, numbers in words.runs(lengths) if lengths else ():
            passage = words.text_of_word[places]
            wanted = usable[passage] & ((sizes[passage] >= longest) if length == longest else (sizes[passage] == length))
            self.known[length], first, self._place[length] = np.unique(numbers[wanted], return_index=True, return_inverse=True)
            self._owner[length], self._starts[length] = owners[passage[wanted]], places[wanted][first]
        self.told = np.unique(np.concatenate([*self._owner.values(), np.zeros(0, dtype=np.int64)]))  # items that have a run at all

    def save(self, path: Path) -> None:
        """Write the numbers for `found_in`."""
        with path.open("wb") as file:
            np.savez(file, **{str(length): numbers for length, numbers in self.known.items()})  # type: ignore[arg-type]

    def held(self, found: dict[int, np.ndarray]) -> np.ndarray:
        """The items of which a run was found; `found`: length -> places in `known`."""
        items = [self._owner[length][np.isin(self._place[length], places)] for length, places in found.items()]
        return np.unique(np.concatenate([*items, np.zeros(0, dtype=np.int64)]))

    def example(self, item: int, found: dict[int, np.ndarray]) -> str:
        """The first run of an item that was found, in words."""
        for length, places in sorted(found.items(), reverse=True):
            mine = self._place[length][(self._owner[length] == item) & np.isin(self._place[length], places)]
            if len(mine):
                start = int(self._starts[length][mine[0]])
                return " ".join(self._words[start : start + length])
        raise KeyError(item)


def found_in(file: Path, index: int, numbers: Path) -> dict[int, np.ndarray]:
    """{length: places of the runs} that stand in one row group of a parquet file. For worker processes, which load the numbers once."""
    return found_in_texts(read_row_group(file, index), _tables(numbers))


Tables = dict[int, Known]  # by length


def tables_of(known: dict[int, np.ndarray]) -> Tables:
    """The numbers of each length, to be looked up."""
    return {length: Known.of(numbers) for length, numbers in known.items()}


@functools.cache
def _tables(path: Path) -> Tables:
    with np.load(path) as saved:
        return tables_of({int(length): saved[length] for length in saved.files})


def found_in_texts(texts: Iterable[str], tables: Tables) -> dict[int, np.ndarray]:
    """{length: places of the runs} that stand in some texts."""
    found: dict[int, list[np.ndarray]] = {length: [] for length in tables}
    for portion in _portions(texts) if tables else ():
        for length, _, numbers in Words.of(portion).runs(tables):
            found[length].append(np.unique(tables[length].held(numbers)[1]))
    return {length: np.unique(np.concatenate(places)) for length, places in found.items() if any(map(len, places))}


def _portions(texts: Iterable[str]) -> Iterable[list[str]]:
    portion: list[str] = []
    chars = 0
    for text in texts:
        portion.append(text)
        chars += len(text)
        if chars >= PORTION_CHARS:
            yield portion
            portion, chars = [], 0
    if portion:
        yield portion
