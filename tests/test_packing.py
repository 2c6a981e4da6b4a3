"""Packing of documents and of conversations."""

import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.packing import DocumentPlan, fill_conversations, fill_rows, pack_conversations, pack_documents

BOS = 0
LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=60)
ROW_TOKENS = st.integers(2, 40)


def packed(lengths: list[int], row_tokens: int) -> tuple[DocumentPlan, np.ndarray]:
    """Plan and rows of documents whose tokens are 1, 2, 3, ... over all documents."""
    plan = pack_documents(np.array(lengths), row_tokens)
    tokens = np.arange(1, sum(lengths) - len(lengths) + 1, dtype=np.uint16)
    return plan, fill_rows(plan, tokens, np.array(lengths), BOS, range(plan.rows))


@given(LENGTHS, ROW_TOKENS)
def test_every_row_is_full_and_begins_with_bos(lengths: list[int], row_tokens: int) -> None:
    plan, rows = packed(lengths, row_tokens)
    assert rows.shape == (plan.rows, row_tokens)
    assert (rows[:, 0] == BOS).all()


@given(LENGTHS, ROW_TOKENS)
def test_each_token_is_in_one_place_or_reported_as_cropped(lengths: list[int], row_tokens: int) -> None:
    plan, rows = packed(lengths, row_tokens)
    kept = np.sort(rows[rows != BOS])
    assert (np.diff(kept.astype(int)) > 0).all(), "a token is there twice"
    first_tokens = set((np.cumsum([0, *lengths[:-1]]) - np.arange(len(lengths)) + 1).tolist())  # the first of each document
    kept_with_bos = len(kept) + len(first_tokens & set(kept.tolist()))
    assert plan.tokens == sum(lengths)
    assert plan.kept_tokens == kept_with_bos
    assert plan.kept_tokens + plan.cropped_tokens == sum(lengths)
    assert plan.rows * row_tokens == plan.kept_tokens + plan.added_bos
    assert 0 <= plan.cropped_tokens < row_tokens


@given(LENGTHS, ROW_TOKENS)
def test_pieces_are_unbroken_stretches_of_one_document(lengths: list[int], row_tokens: int) -> None:
    _, rows = packed(lengths, row_tokens)
    document_of = np.repeat(np.arange(len(lengths)), np.array(lengths) - 1)
    for row in rows.tolist():
        for piece in _pieces(row):
            assert piece == list(range(piece[0], piece[0] + len(piece)))
            assert len({document_of[token - 1] for token in piece}) == 1


def _pieces(row: list[int]) -> list[list[int]]:
    """The stretches between BOS tokens."""
    pieces: list[list[int]] = []
    for token in row:
        if token == BOS:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [piece for piece in pieces if piece]


@given(LENGTHS, ROW_TOKENS)
def test_rows_filled_block_by_block_equal_rows_filled_at_once(lengths: list[int], row_tokens: int) -> None:
    plan, rows = packed(lengths, row_tokens)
    tokens = np.arange(1, sum(lengths) - len(lengths) + 1, dtype=np.uint16)
    blocks = [fill_rows(plan, tokens, np.array(lengths), BOS, range(first, min(first + 3, plan.rows))) for first in range(0, plan.rows, 3)]
    assert not blocks or (np.concatenate(blocks) == rows).all()


def test_row_takes_the_longest_document_that_fits() -> None:
    plan, rows = packed([6, 4, 3, 2, 5], 10)  # 6+4, then 5+3+2
    assert plan.cropped_tokens == plan.added_bos == plan.cut_documents == 0
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 0, 6, 7, 8], [0, 9, 10, 0, 11, 0, 12, 13, 14, 15]]


def test_when_none_fits_the_longest_is_cut_and_its_rest_begins_with_bos() -> None:
    plan, rows = packed([7, 7, 6], 10)  # the second fills the first row; its rest, 9..12, fills the second but for one token
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 7, 8], [0, 9, 10, 11, 0, 13, 14, 15, 16, 17]]
    assert (plan.cropped_tokens, plan.added_bos, plan.cut_documents) == (1, 1, 1)
    plan, rows = packed([7, 7, 5], 9)
    assert rows.tolist()[0] == [0, 1, 2, 3, 4, 5, 6, 0, 7]
    assert rows.tolist()[1] == [0, 8, 9, 10, 11, 12, 0, 13, 14]
    assert plan.cut_documents == 1 and plan.cropped_tokens == 2


def test_documents_longer_than_a_row_fill_gaps_before_whole_ones_are_cut() -> None:
    plan, _ = packed([30, 7, 7], 10)
    assert all(count == 6 for document, count in zip(plan.document, plan.count, strict=True) if document in (1, 2))
    assert plan.rows == 4 and plan.cut_documents == 1
    assert plan.tokens == 44 and plan.added_bos == 3 and plan.cropped_tokens == 7


def test_long_document_loses_nothing_but_its_last_piece() -> None:
    plan, rows = packed([20], 10)
    assert rows.tolist() == [[0, *range(1, 10)], [0, *range(10, 19)]]
    assert (plan.cropped_tokens, plan.kept_tokens, plan.added_bos) == (1, 19, 1)


def test_last_place_of_a_row_is_a_lone_bos_when_nothing_else_fits() -> None:
    plan, rows = packed([4, 4, 4, 4, 4], 5)
    assert rows.tolist()[0] == [0, 1, 2, 3, 0] and plan.count[1] == 0
    assert plan.cut_documents == 0 and plan.added_bos == plan.rows == 4


def test_too_little_text_gives_no_row_and_says_so() -> None:
    plan, rows = packed([3, 4], 10)
    assert rows.shape == (0, 10) and plan.cropped_tokens == 7 and plan.cut_documents == 0
    assert pack_documents(np.array([], dtype=np.int64), 10).rows == 0


def test_documents_without_text_are_a_defect_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        pack_documents(np.array([5, 1]), 10)


def cropping_packer(lengths: list[int], row_tokens: int, buffer: int) -> int:
    """Tokens lost by the usual packing: a buffer of documents, the longest that fits, else the shortest is cropped."""
    waiting, rest, lost = [], list(reversed(lengths)), 0
    while True:
        room = row_tokens
        while room:
            while rest and len(waiting) < buffer:
                bisect.insort(waiting, rest.pop())
            if not waiting:
                return lost
            fitting = bisect.bisect_right(waiting, room)
            length = waiting.pop(fitting - 1 if fitting else 0)
            lost += max(0, length - room)
            room -= min(room, length)


@pytest.mark.parametrize(("row_tokens", "lost_by_cropping"), [(513, 0.5), (2049, 0.1)])
def test_far_less_is_lost_than_by_cropping(row_tokens: int, lost_by_cropping: float) -> None:
    lengths = np.random.default_rng(0).lognormal(6.3, 0.95, 3000).astype(int) + 20  # about like web text in tokens
    plan = pack_documents(lengths, row_tokens)
    assert cropping_packer(lengths.tolist(), row_tokens, buffer=1000) > lost_by_cropping * lengths.sum()
    assert plan.cropped_tokens < row_tokens
    assert plan.added_bos < 0.003 * plan.rows * row_tokens
    pieces = np.bincount(plan.document[plan.count > 0], minlength=len(lengths))
    assert (pieces[lengths <= row_tokens] == 1).mean() > 0.99


@given(LENGTHS, ROW_TOKENS)
def test_packing_is_deterministic(lengths: list[int], row_tokens: int) -> None:
    assert packed(lengths, row_tokens)[1].tolist() == packed(lengths, row_tokens)[1].tolist()


def test_first_rows_are_no_sample_of_long_documents() -> None:
    lengths = np.random.default_rng(1).integers(2, 400, 4000)
    plan = pack_documents(lengths, 513)
    pieces = np.diff(plan.row_starts)
    assert abs(pieces[: plan.rows // 4].mean() / pieces.mean() - 1) < 0.15


# --- conversations ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 40))
def test_conversations_are_whole_in_one_row_or_named_as_too_long(lengths: list[int], row_tokens: int) -> None:
    plan = pack_conversations(np.array(lengths, dtype=np.int64), row_tokens)
    assert sorted([index for row in plan.rows for index in row] + plan.too_long) == list(range(len(lengths)))
    assert all(lengths[index] > row_tokens for index in plan.too_long)
    assert all(0 < sum(lengths[index] for index in row) <= row_tokens for row in plan.rows)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=40), st.integers(40, 60))
def test_no_two_rows_of_conversations_would_fit_into_one(lengths: list[int], row_tokens: int) -> None:
    sizes = sorted(sum(lengths[index] for index in row) for row in pack_conversations(np.array(lengths), row_tokens).rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > row_tokens


def test_padding_is_never_learnt() -> None:
    conversations = [([9, 1, 2], [0, 1, 1]), ([9, 3, 4, 5], [0, 0, 1, 1]), ([9, 6, 7, 8, 8, 8, 8], [0] * 7), ([9, 5], [0, 1])]
    plan = pack_conversations(np.array([3, 4, 7, 2]), 6)
    ids, mask = fill_conversations(plan, conversations, padding=9)
    assert plan.too_long == [2]
    assert ids.tolist() == [[9, 1, 2, 9, 9, 9], [9, 3, 4, 5, 9, 5]]
    assert mask.astype(int).tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1]]
    assert ids.dtype == np.int64 and mask.dtype == bool
