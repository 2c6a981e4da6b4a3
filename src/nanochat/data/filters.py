"""Which documents of a corpus are left out, and why: what can be said of one document alone, a row group at a time.

What needs the whole corpus (copies) is decided later, from the compact facts that are kept here: a digest, a signature, a size.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.data.documents import read_row_group
from nanochat.data.near import signatures
from nanochat.data.ngrams import RunIndex, Words, words_of
from nanochat.data.text import text_digest

KEPT = "kept"
REASONS = (KEPT, "too_short", "too_long", "language", "contaminated", "exact_copy", "near_copy", "near_training_text")
LANGUAGE_CHARS = 1_000  # of a document that its language is judged by
PORTION_CHARS, PORTION_DOCUMENTS = 2_000_000, 4_096  # whose words are looked at together
SHORTEST_RUN = 8  # words; shorter questions are common words (as in the appendix C of arXiv:2005.14165)
EXAMPLES = 5  # of each reason
EXAMPLE_CHARS = 200


@dataclass(frozen=True)
class Filters:
    """What is asked of a document. Plain values, since worker processes receive them."""

    languages: tuple[str, ...] = ()
    language_certainty: float = 0.0
    min_chars: int = 0
    max_chars: int | None = None
    permutations: int = 0  # of the signatures; 0: none
    run_words: int = 13
    evaluations: tuple[tuple[str, Path], ...] = ()  # (source/split, its rows as jsonl)


@dataclass
class Judged:
    """Some documents, in order: why each is left out (an index of REASONS), and what later decisions need."""

    reasons: np.ndarray  # (n,) uint8
    sizes: np.ndarray  # (n,) int64, bytes of text
    digests: np.ndarray  # (n, 2) uint64
    signatures: np.ndarray  # (n, permutations) uint32
    has_words: np.ndarray  # (n,) bool
    examples: list[dict[str, Any]] = field(default_factory=list)


def judge_group(file: Path, index: int, filters: Filters, split: str) -> Judged:
    """Judge one row group."""
    return judge(read_row_group(file, index), filters, split)


def judge(texts: Sequence[str], filters: Filters, split: str) -> Judged:
    """Judge documents by themselves; validation text is not held against the evaluations, nothing is learnt from it."""
    reasons = np.zeros(len(texts), dtype=np.uint8)
    digests = np.frombuffer(b"".join(text_digest(text.encode())[:16] for text in texts), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    judged = Judged(
        reasons,
        np.array([len(text.encode()) for text in texts], dtype=np.int64),
        digests,
        np.zeros((len(texts), filters.permutations), dtype=np.uint32),
        np.zeros(len(texts), dtype=bool),
    )

    def leave_out(number: int, reason: str, why: str, **more: str) -> None:
        reasons[number] = REASONS.index(reason)
        if sum(example["reason"] == reason for example in judged.examples) < EXAMPLES:
            judged.examples.append({"reason": reason, "document": number, "text": texts[number][:EXAMPLE_CHARS], "why": why, **more})

    for number, text in enumerate(texts):
        if reason := _length(text, filters):
            leave_out(number, reason, f"{len(text):,} characters")
        elif filters.languages and (why := _foreign(text, filters)):
            leave_out(number, "language", why)
    owners = [label for label, _ in filters.evaluations]
    for portion in _portions(texts, np.flatnonzero(reasons == 0)):
        if not filters.permutations and not (owners and split == "train"):
            break
        words = Words.of(texts[number] for number in portion)
        if owners and split == "train":
            for match in run_index(filters).matches(words):
                leave_out(int(portion[match.text]), "contaminated", f"holds words of {owners[match.owner]}", words=match.words, evaluation=owners[match.owner])
        if filters.permutations:
            judged.signatures[portion], judged.has_words[portion] = signatures(words, filters.permutations)
    return judged


def _length(text: str, filters: Filters) -> str | None:
    if len(text) < filters.min_chars:
        return "too_short"
    return "too_long" if filters.max_chars is not None and len(text) > filters.max_chars else None


def _foreign(text: str, filters: Filters) -> str | None:
    """The language of a text and how certain it is, unless it is one of those that are wanted."""
    language, certainty = language_identifier().classify(text[:LANGUAGE_CHARS])
    if language in filters.languages and certainty >= filters.language_certainty:
        return None
    return f"{language}, certainty {certainty:.2f}"


@functools.cache
def language_identifier() -> Any:
    """The model of py3langid, out of its wheel; certainties are from 0 to 1."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known_languages() -> list[str]:
    """Codes that the model can tell apart."""
    return sorted(language_identifier().labels)


def _portions(texts: Sequence[str], numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Documents in portions of a bounded size, one at least."""
    start = chars = 0
    for place, number in enumerate(numbers):
        chars += len(texts[number])
        if chars >= PORTION_CHARS or place + 1 - start >= PORTION_DOCUMENTS:
            yield numbers[start : place + 1]
            start, chars = place + 1, 0
    if start < len(numbers):
        yield numbers[start:]


# --- what no training document may hold ------------------------------------------------------------------------------


@functools.cache
def run_index(filters: Filters) -> RunIndex:
    """The runs of words of every evaluation row; made once in each process."""
    passages = [
        (owner, text)
        for owner, (_, file) in enumerate(filters.evaluations)
        for text, is_choice in row_texts(file)
        if len(words_of(text)) >= shortest_run(filters.run_words, is_choice)
    ]
    return RunIndex(passages, longest=filters.run_words, shortest=min(SHORTEST_RUN, filters.run_words))


def shortest_run(run_words: int, is_choice: bool) -> int:
    """Words of the shortest text that is looked for. Short choices are common: "the due process clause of the fourteenth amendment"."""
    return run_words if is_choice else min(SHORTEST_RUN, run_words)


def row_texts(file: Path) -> Iterator[tuple[str, bool]]:
    """Every text of every row of a task by itself, and whether it is one of several choices."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield from strings_of(json.loads(line))


def strings_of(value: Any, is_choice: bool = False) -> Iterator[tuple[str, bool]]:
    """Every text in a row, and whether it is one of several choices."""
    if isinstance(value, str):
        yield value, is_choice
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item, is_choice=True)
