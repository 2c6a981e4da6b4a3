"""Packing: which pieces of which documents or conversations share a row of tokens.

Documents (`pack_documents`): rows are full, every row and every piece begins with BOS. A row takes the longest document that fits
into its room, again and again; when none fits, the longest that is left is cut to fill the row, and its rest goes back,
led by a BOS of its own. So documents longer than a row fill the gaps, whole documents are cut only when no such one is
left, and nothing is lost but an incomplete last row.

Conversations (`pack_conversations`): the same choice, never cut; a row's gap is padding.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class _Pool:
    """Items by length (1..longest), with the largest length that fits found by one integer operation."""

    def __init__(self, longest: int) -> None:
        self.items: list[list[tuple[int, int]]] = [[] for _ in range(longest + 1)]
        self.present = 0  # bit n: there are items of length n

    def add(self, length: int, item: tuple[int, int]) -> None:
        self.items[length].append(item)
        self.present |= 1 << length

    def largest(self, room: int) -> int:
        """The largest length of at most `room`; 0: none."""
        return max(0, (self.present & ((2 << room) - 1)).bit_length() - 1)

    def pop(self, length: int) -> tuple[int, int]:
        items = self.items[length]
        item = items.pop()
        if not items:
            self.present ^= 1 << length
        return item


@dataclass(frozen=True)
class DocumentPlan:
    """Full rows of pieces. Piece p holds tokens start[p] .. start[p] + count[p] of document[p], after a BOS.

    A document's tokens are counted without its BOS. The pieces of row r are row_starts[r] .. row_starts[r + 1].
    """

    document: np.ndarray  # (pieces,) int64
    start: np.ndarray  # (pieces,) int64
    count: np.ndarray  # (pieces,) int64; 0: a lone BOS in the last place of a row
    row_starts: np.ndarray  # (rows + 1,) int64
    row_tokens: int
    tokens: int  # of all documents, each with its BOS
    cropped_tokens: int  # those of them that are in no row

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.row_starts) - 1

    @property
    def kept_tokens(self) -> int:
        """Tokens of documents (each with its BOS) that are in a row."""
        return self.tokens - self.cropped_tokens

    @property
    def added_bos(self) -> int:
        """BOS tokens in front of continuations; rows x row_tokens = kept_tokens + added_bos."""
        return self.rows * self.row_tokens - self.kept_tokens

    @property
    def cut_documents(self) -> int:
        """How many documents are in more than one piece."""
        return int((np.bincount(self.document[self.count > 0]) > 1).sum())


def pack_documents(lengths: np.ndarray, row_tokens: int) -> DocumentPlan:
    """Rows of `row_tokens` from documents of `lengths` tokens, each with its BOS (so at least 2)."""
    lengths = np.asarray(lengths, dtype=np.int64)
    assert row_tokens >= 2 and (lengths >= 2).all(), "a row and a document hold a BOS and at least one token"
    sizes = lengths.tolist()
    pool = _Pool(row_tokens)
    for document in range(len(sizes) - 1, -1, -1):  # from the end: equal lengths leave the pool in the order of the text
        if sizes[document] <= row_tokens:
            pool.add(sizes[document], (document, 0))
    long = [(-size, document, 0) for document, size in enumerate(sizes) if size > row_tokens]  # longest first
    heapq.heapify(long)

    rows: list[list[tuple[int, int, int]]] = []  # pieces (document, start, count); the first is the longest
    pieces: list[tuple[int, int, int]] = []
    room = row_tokens
    while True:
        if length := pool.largest(room):
            document, start = pool.pop(length)
            pieces.append((document, start, length - 1))
            room -= length
        elif long or pool.present:
            if long:
                size, document, start = heapq.heappop(long)
                length = -size
            else:
                length = pool.largest(row_tokens)
                document, start = pool.pop(length)
            pieces.append((document, start, room - 1))
            rest, start = length - room + 1, start + room - 1  # the rest gets a BOS of its own
            if rest > row_tokens:
                heapq.heappush(long, (-rest, document, start))
            else:
                pool.add(rest, (document, start))
            room = 0
        else:
            break
        if room == 0:
            rows.append(pieces)
            pieces, room = [], row_tokens
    cropped = sum(count + (start == 0) for _, start, count in pieces)
    return _document_plan(rows, row_tokens, tokens=int(lengths.sum()), cropped=cropped)


def _document_plan(rows: list[list[tuple[int, int, int]]], row_tokens: int, *, tokens: int, cropped: int) -> DocumentPlan:
    # Rows stand in the order of their longest piece in the text, so that the first rows are no sample of long documents;
    # within a row pieces stand in the order of the text, so that a document's place says nothing about its length.
    rows.sort(key=lambda pieces: pieces[0])
    flat = np.array([piece for pieces in rows for piece in sorted(pieces)], dtype=np.int64).reshape(-1, 3)
    row_starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(pieces) for pieces in rows], out=row_starts[1:])
    return DocumentPlan(flat[:, 0].copy(), flat[:, 1].copy(), flat[:, 2].copy(), row_starts, row_tokens, tokens, cropped)


def fill_rows(plan: DocumentPlan, tokens: np.ndarray, lengths: np.ndarray, bos: int, rows: range) -> np.ndarray:
    """(len(rows), row_tokens): the tokens of consecutive `rows` of a plan.

    `tokens` holds all documents end to end without BOS; `lengths` are what the plan was made from, BOS included.
    """
    offsets = np.cumsum(lengths - 1) - (lengths - 1)  # where each document begins in tokens
    first, last = plan.row_starts[rows.start], plan.row_starts[rows.stop]
    sources = (offsets[plan.document[first:last]] + plan.start[first:last]).tolist()
    filled = np.full(len(rows) * plan.row_tokens, bos, dtype=tokens.dtype)
    at = 0
    for source, count in zip(sources, plan.count[first:last].tolist(), strict=True):
        filled[at + 1 : at + 1 + count] = tokens[source : source + count]
        at += 1 + count
    assert at == len(filled)
    return filled.reshape(len(rows), plan.row_tokens)


# --- conversations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConversationPlan:
    """Rows of whole conversations: rows[r] lists the conversations of row r; `too_long` are in no row."""

    rows: list[list[int]]
    too_long: list[int]
    row_tokens: int


def pack_conversations(lengths: np.ndarray, row_tokens: int) -> ConversationPlan:
    """Best-fit rows of at most `row_tokens` from conversations of `lengths` tokens; none is cut, longer ones are named."""
    sizes = np.asarray(lengths, dtype=np.int64).tolist()
    assert all(size > 0 for size in sizes), "a conversation holds at least its BOS"
    pool = _Pool(row_tokens)
    for index in range(len(sizes) - 1, -1, -1):
        if sizes[index] <= row_tokens:
            pool.add(sizes[index], (index, 0))
    rows: list[list[int]] = []
    while pool.present:
        row: list[int] = []
        room = row_tokens
        while length := pool.largest(room):
            row.append(pool.pop(length)[0])
            room -= length
        rows.append(row)
    rows.sort(key=lambda row: row[0])  # by their longest, as documents are
    return ConversationPlan([sorted(row) for row in rows], [i for i, size in enumerate(sizes) if size > row_tokens], row_tokens)


def fill_conversations(plan: ConversationPlan, conversations: Sequence[tuple[Sequence[int], Sequence[int]]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64, mask bool), both (rows, row_tokens), from (ids, mask) pairs; gaps hold `padding` with mask False."""
    ids = np.full((len(plan.rows), plan.row_tokens), padding, dtype=np.int64)
    mask = np.zeros((len(plan.rows), plan.row_tokens), dtype=bool)
    for row, members in enumerate(plan.rows):
        at = 0
        for index in members:
            tokens, learnt = conversations[index]
            ids[row, at : at + len(tokens)] = tokens
            mask[row, at : at + len(tokens)] = learnt
            at += len(tokens)
    return ids, mask
