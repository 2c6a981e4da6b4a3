"""Runs of words as numbers: what two texts share, however they are spaced, capitalised or punctuated.

A word is a run of letters and digits, in small letters; its number is a hash of it, and the number of a run is a polynomial of
those of its words, modulo 2^64. All runs of all lengths up to n are had in n passes over the numbers, with numpy.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is lost by multiplication
MOST_WORDS = 300_000  # whose numbers are remembered; about 50 MB
SIEVE_BITS = 22  # 4 MB for each length of run
SHIFT = np.uint64(64 - SIEVE_BITS)


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return WORD.findall(text.lower())


class _Numbers(dict[str, int]):
    """word -> its number, computed when it is first met."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_WORDS:
            self.clear()
        number = int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())
        self[word] = number
        return number


_NUMBERS = _Numbers()


@dataclass(frozen=True)
class Words:
    """The words of several texts, end to end."""

    words: list[str]
    numbers: np.ndarray  # uint64, of each word
    starts: np.ndarray  # int64, of each text, and the end

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Words":
        """The words of `texts`."""
        words: list[str] = []
        starts = [0]
        for text in texts:
            words += words_of(text)
            starts.append(len(words))
        return cls(words, np.fromiter(map(_NUMBERS.__getitem__, words), np.uint64, len(words)), np.array(starts, dtype=np.int64))

    @property
    def text_of_word(self) -> np.ndarray:
        """The text that each word belongs to."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def runs(self, lengths: Collection[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(length, places of the first words, numbers) of every run of so many words inside one text; lengths ascend."""
        text, numbers = self.text_of_word, np.zeros(len(self.numbers), dtype=np.uint64)
        for length in range(1, max(lengths) + 1):
            count = len(self.numbers) - length + 1
            if count <= 0:
                return
            numbers = numbers[:count] * FACTOR + self.numbers[length - 1 :]
            if length in lengths:
                places = np.flatnonzero(text[:count] == text[length - 1 :])
                yield length, places, mixed(numbers[places])


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that leaves no structure in them (Stafford's variant 13 of MurmurHash3's finalizer)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = values ^ (values >> np.uint64(31))
    return result


@dataclass(frozen=True)
class Match:
    """A run of words of a text that stands in one of the passages."""

    text: int
    words: str
    owner: int


@dataclass(frozen=True)
class Known:
    """Numbers of runs, ascending, with a sieve that answers most questions with one look."""

    numbers: np.ndarray
    sieve: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Known":
        """`numbers`: ascending, each once, one at least."""
        sieve = np.zeros(1 << SIEVE_BITS, dtype=bool)
        sieve[numbers >> SHIFT] = True
        return cls(numbers, sieve)

    def held(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of those of `asked` that are among the numbers, and where they stand there."""
        likely = np.flatnonzero(self.sieve[asked >> SHIFT])
        spots = np.minimum(np.searchsorted(self.numbers, asked[likely]), len(self.numbers) - 1)
        hits = self.numbers[spots] == asked[likely]
        return likely[hits], spots[hits]


class RunIndex:
    """Runs of words of passages that no text may contain.

    A passage of `longest` words and more is known by each of its runs of so many words; a shorter one, down to `shortest`, as a whole;
    one that is shorter still is common words and not looked for.
    """

    def __init__(self, passages: Sequence[tuple[int, str]], *, longest: int, shortest: int) -> None:
        """`passages`: (owner, text)."""
        owners = np.array([owner for owner, _ in passages], dtype=np.int64)
        words = Words.of(text for _, text in passages)
        sizes = np.diff(words.starts)
        self._tables: dict[int, tuple[Known, np.ndarray]] = {}
        lengths = {min(int(size), longest) for size in sizes if size >= shortest}
        for length, places, numbers in words.runs(lengths) if lengths else ():
            passage = words.text_of_word[places]
            wanted = (sizes[passage] >= longest) if length == longest else (sizes[passage] == length)
            numbers, first = np.unique(numbers[wanted], return_index=True)
            self._tables[length] = (Known.of(numbers), owners[passage[wanted][first]])

    def matches(self, words: Words) -> list[Match]:
        """The first match of each text that has one, in the order of the texts."""
        found: dict[int, tuple[int, int, int]] = {}  # text -> place, length, owner
        if not self._tables:
            return []
        for length, places, numbers in words.runs(self._tables):
            known, owners = self._tables[length]
            held, spots = known.held(numbers)
            for text, place, owner in zip(words.text_of_word[places[held]], places[held], owners[spots], strict=True):
                candidate = (int(place), length, int(owner))
                if int(text) not in found or candidate < found[int(text)]:
                    found[int(text)] = candidate
        return [Match(text, " ".join(words.words[place : place + length]), owner) for text, (place, length, owner) in sorted(found.items())]
