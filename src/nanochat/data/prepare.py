"""The text of a corpus without what its filters leave out: all documents are judged in one pass, then each chunk is written by itself.

What is kept of a document between the two is a reason (1 byte), its size, a digest of 16 bytes and, where near copies are looked
for, a signature in a file. Memory is some 70 bytes a document besides one row group in each process.
"""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nanochat.artifacts import atomic_path, write_json
from nanochat.data.documents import documents, group_rows, read_row_group
from nanochat.data.filters import EXAMPLE_CHARS, EXAMPLES, KEPT, REASONS, Filters, Judged, row_texts, shortest_run
from nanochat.data.near import SignatureFile, exact_copies, near_copies
from nanochat.data.ngrams import words_of
from nanochat.data.text import Shards
from nanochat.errors import UserError

STAMP, SIGNATURES = "stamp", "signatures.bin"
Run = Callable[[Sequence[tuple[Any, ...]]], Iterable[Judged]]


@dataclass(frozen=True)
class Part:
    """One chunk of a corpus: its files of one split."""

    name: str
    split: str
    files: tuple[Path, ...]

    @functools.cached_property
    def groups(self) -> list[tuple[Path, int, int]]:
        """(file, row group, documents)."""
        return [(file, index, rows) for file in self.files for index, rows in enumerate(group_rows(file))]

    @property
    def documents(self) -> int:
        """How many there are."""
        return sum(rows for _, _, rows in self.groups)

    def text(self, number: int) -> str:
        """One document."""
        for file, index, rows in self.groups:
            if number < rows:
                return read_row_group(file, index)[number]
            number -= rows
        raise IndexError(number)


@dataclass(frozen=True)
class Copies:
    """Which copies are left out."""

    deduplicate: Literal["exact", "near"] | None
    similarity: float
    clean_validation: bool  # leave validation text out that is a near copy of training text


class Judgement:
    """What was found about every document of a corpus; saved chunk by chunk, so that a killed attempt goes on behind the last one."""

    def __init__(self, parts: Sequence[Part], filters: Filters, folder: Path, stamp: str) -> None:
        """`folder` holds the state, thrown away where `stamp` differs."""
        assert [part.split for part in parts] == sorted((part.split for part in parts), key=["train", "validation"].index), "training text first"
        self.parts, self.filters, self.folder = parts, filters, folder
        self.starts = np.concatenate([[0], np.cumsum([part.documents for part in parts])]).astype(np.int64)
        self.signatures = SignatureFile(folder / SIGNATURES, int(self.starts[-1]), filters.permutations)
        self.examples: list[dict[str, Any]] = []
        if not (folder / STAMP).is_file() or (folder / STAMP).read_text(encoding="utf-8") != stamp:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with atomic_path(folder / STAMP) as temporary:
                temporary.write_text(stamp, encoding="utf-8")
        if filters.permutations:
            self.signatures.create()

    def judge(self, run: Run, said: Callable[[str], None]) -> None:
        """Judge every chunk that is not judged yet; `run` calls `judge_group` for each task, in order, in other processes or this one."""
        for number, part in enumerate(self.parts):
            if (self.folder / f"{part.name}.npz").is_file():
                said(f"{part.name}: judged before, {part.documents:,} documents")
                continue
            found, place = [], int(self.starts[number])
            none = np.zeros((0, self.filters.permutations), dtype=np.uint32)
            for judged in run([(file, index, self.filters, part.split) for file, index, _ in part.groups]):
                if self.filters.permutations:
                    self.signatures.write(place, judged.signatures)
                place += len(judged.reasons)
                found.append(replace(judged, signatures=none))  # not a slice of them, which would keep them all in memory
            self._save(part, found)
            left_out = sum(int((judged.reasons > 0).sum()) for judged in found)
            said(f"{part.name}: {part.documents:,} documents judged, {left_out:,} left out by themselves")

    def _save(self, part: Part, found: Sequence[Judged]) -> None:
        examples, first = [], 0
        for judged in found:
            examples += [{**example, "chunk": part.name, "document": first + example["document"]} for example in judged.examples]
            first += len(judged.reasons)
        write_json(self.folder / f"{part.name}.json", _some(examples))
        names = ("reasons", "sizes", "digests", "has_words")
        empty = {"reasons": np.zeros(0, np.uint8), "sizes": np.zeros(0, np.int64), "digests": np.zeros((0, 2), np.uint64), "has_words": np.zeros(0, bool)}
        with atomic_path(self.folder / f"{part.name}.npz") as temporary, temporary.open("wb") as file:
            columns: dict[str, Any] = {name: np.concatenate([empty[name], *(getattr(judged, name) for judged in found)]) for name in names}
            np.savez(file, **columns)

    def resolve(self, copies: Copies) -> "Verdict":
        """Decide about copies, over the whole corpus: of equal texts the first one stays, and training text comes first."""
        facts = []
        for part in self.parts:
            with np.load(self.folder / f"{part.name}.npz") as saved:
                facts.append({name: saved[name] for name in saved.files})
            self.examples += json.loads((self.folder / f"{part.name}.json").read_text(encoding="utf-8"))
        reasons, sizes, digests, has_words = (np.concatenate([fact[name] for fact in facts]) for name in ("reasons", "sizes", "digests", "has_words"))
        training = int(self.starts[sum(part.split == "train" for part in self.parts)])
        if copies.deduplicate is not None:
            self._leave_out(reasons, exact_copies(digests, reasons == 0), training, "exact_copy", "exact_copy")
        if copies.deduplicate == "near":
            found = near_copies(self.signatures, (reasons == 0) & has_words, copies.similarity)
            self._leave_out(reasons, found, training, "near_copy", "near_training_text")
        elif copies.clean_validation:
            found = near_copies(self.signatures, (reasons == 0) & has_words, copies.similarity, droppable_from=training, originals=training)
            self._leave_out(reasons, found, training, "near_training_text", "near_training_text")
        return Verdict(self.parts, self.starts, reasons, sizes, _some(self.examples))

    def _leave_out(self, reasons: np.ndarray, copy_of: np.ndarray, training: int, reason: str, across: str) -> None:
        """Note copies; `across`: the reason of validation text that is a copy of training text."""
        copies = np.flatnonzero(copy_of >= 0)
        is_across = (copies >= training) & (copy_of[copies] < training)
        reasons[copies] = np.where(is_across, REASONS.index(across), REASONS.index(reason))
        for name in dict.fromkeys((reason, across)):
            for number in copies[reasons[copies] == REASONS.index(name)][:EXAMPLES]:
                (chunk, place), (other, other_place) = self._place(int(number)), self._place(int(copy_of[number]))
                texts = [part.text(at)[:EXAMPLE_CHARS] for part, at in ((chunk, place), (other, other_place))]
                why = f"copy of document {other_place} of {other.name}"
                self.examples.append({"reason": name, "chunk": chunk.name, "document": place, "text": texts[0], "why": why, "original": texts[1]})

    def _place(self, number: int) -> tuple[Part, int]:
        which = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.parts[which], number - int(self.starts[which])


def _some(examples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first few of each reason."""
    seen: Counter[str] = Counter()
    chosen = []
    for example in examples:
        seen[example["reason"]] += 1
        if seen[example["reason"]] <= EXAMPLES:
            chosen.append(example)
    return chosen


@dataclass(frozen=True)
class Verdict:
    """Why each document of a corpus is left out, if it is."""

    parts: Sequence[Part]
    starts: np.ndarray
    reasons: np.ndarray
    sizes: np.ndarray
    examples: list[dict[str, Any]]

    def kept(self, part: Part) -> np.ndarray:
        """Whether each document of a chunk stays."""
        which = self.parts.index(part)
        stays: np.ndarray = self.reasons[self.starts[which] : self.starts[which + 1]] == 0
        return stays

    def counts(self, split: str | None = None) -> dict[str, Any]:
        """{reason: {"documents", "bytes"}} of a split or of both."""
        chosen = np.concatenate(
            [np.arange(*self.starts[[which, which + 1]]) for which, part in enumerate(self.parts) if split in (None, part.split)] or [np.zeros(0, int)]
        ).astype(np.int64)
        documents = np.bincount(self.reasons[chosen], minlength=len(REASONS))
        sizes = [int(self.sizes[chosen][self.reasons[chosen] == index].sum()) for index in range(len(REASONS))]
        return {reason: {"documents": int(documents[index]), "bytes": sizes[index]} for index, reason in enumerate(REASONS) if documents[index]}

    def report(self, evaluations: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        """What was left out, and why, as removed.json says it."""
        splits = list(dict.fromkeys(part.split for part in self.parts))
        return {
            "documents_read": len(self.reasons),
            "bytes_read": int(self.sizes.sum()),
            "splits": {split: self.counts(split) for split in splits},
            "examples": {reason: [_told(example) for example in self.examples if example["reason"] == reason] for reason in self.counts() if reason != KEPT},
            "evaluations": evaluations,
        }


def _told(example: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in example.items() if key != "reason"}


def evaluation_facts(filters: Filters) -> dict[str, dict[str, int]]:
    """{source/split: how many texts its rows hold, and how many of them are too short to be looked for}."""
    facts = {}
    for label, file in filters.evaluations:
        short = [len(words_of(text)) < shortest_run(filters.run_words, is_choice) for text, is_choice in row_texts(file)]
        facts[label] = {"texts": len(short), "too_short": sum(short)}
    return facts


# --- one chunk -------------------------------------------------------------------------------------------------------


def write_kept(part: Part, kept: np.ndarray, folder: Path) -> tuple[list[str], dict[str, int]]:
    """Write the documents that stay as parquet shards, a file without rows if none does; names, and documents and bytes kept."""
    if len(kept) != part.documents:
        raise UserError(f"{part.name}: {part.documents:,} documents, {len(kept):,} were judged; the text has changed since, judge it again")
    names = {"train": "train-{:05d}.parquet", "validation": "validation.parquet"}[part.split]
    size = 0
    with Shards(folder, names, shard_bytes=None, at_least_one=True) if part.split == "validation" else Shards(folder, names, at_least_one=True) as shards:
        for text in _staying(part, kept):
            data = text.encode()
            shards.add(data)
            size += len(data)
    return shards.names, {"documents": int(kept.sum()), "bytes": size}


def _staying(part: Part, kept: np.ndarray) -> Iterator[str]:
    for stays, text in zip(kept, documents(part.files), strict=True):
        if stays:
            yield text
