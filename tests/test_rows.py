"""Packed rows on disk and the order in which they are visited."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.artifacts import write_json, write_manifest
from nanochat.data.rows import MixtureOrder, RowOrder, TokenRows, token_dtype
from nanochat.errors import UserError

COUNTS = st.integers(1, 5000)
SEEDS = st.integers(-(2**63), 2**64)
PINNED_10 = [4, 3, 0, 1, 5, 2, 8, 7, 6, 9, 9, 1, 6, 8, 3, 0, 5, 4, 2, 7]  # two epochs
PINNED_LARGE = [752775204, 376889291, 408616322, 119039781]

# --- order -----------------------------------------------------------------------------------------------------------


@given(COUNTS, SEEDS, st.integers(0, 10**6))
def test_each_epoch_visits_every_row_once(count: int, seed: int, epoch: int) -> None:
    visited = RowOrder(count, seed).at(np.arange(epoch * count, (epoch + 1) * count))
    assert (np.sort(visited) == np.arange(count)).all()


@given(st.integers(30, 5000), SEEDS)
def test_epochs_and_seeds_differ(count: int, seed: int) -> None:
    counters = np.arange(count)
    order = RowOrder(count, seed)
    first, second, other_seed = order.at(counters), order.at(counters + count), RowOrder(count, seed + 1).at(counters)
    for changed in (second, other_seed, counters):
        assert (first == changed).mean() < 0.5


@given(COUNTS, SEEDS, st.lists(st.integers(0, 20_000), min_size=1, max_size=50))
def test_a_row_depends_on_its_counter_alone(count: int, seed: int, counters: list[int]) -> None:
    order = RowOrder(count, seed)
    together = order.at(np.array(counters))
    assert together.tolist() == [order.at(counter) for counter in counters]
    assert together[::-1].tolist() == order.at(counters[::-1]).tolist()


@given(COUNTS, SEEDS, st.integers(1, 8), st.integers(1, 40))
def test_ranks_share_the_order_of_one_rank(count: int, seed: int, ranks: int, steps: int) -> None:
    order = RowOrder(count, seed)
    alone = order.at(np.arange(steps * ranks))
    shared = np.stack([order.at(np.arange(rank, steps * ranks, ranks)) for rank in range(ranks)])
    assert shared.T.reshape(-1).tolist() == alone.tolist()


def test_order_is_pinned() -> None:
    """A change of these numbers changes what every resumed or repeated run sees."""
    assert RowOrder(10, 0).at(range(20)).tolist() == PINNED_10
    assert RowOrder(1_000_000_007, 42).at([0, 1, 2, 10**15]).tolist() == PINNED_LARGE


def test_first_place_is_uniform_over_seeds() -> None:
    hits = np.bincount([RowOrder(10, seed).at(0) for seed in range(2000)], minlength=10)
    assert ((hits - 200) ** 2 / 200).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001


def test_neighbours_are_no_longer_neighbours() -> None:
    visited = RowOrder(4096, 1).at(np.arange(4096)).astype(int)
    assert np.abs(np.corrcoef(visited[:-1], visited[1:])[0, 1]) < 0.05
    assert (np.abs(np.diff(visited)) == 1).mean() < 0.003


def test_order_keeps_the_shape_it_is_asked_in() -> None:
    order = RowOrder(7, 3)
    assert order.at(np.arange(12).reshape(3, 4)).shape == (3, 4)
    assert isinstance(order.at(5), int) and order.at(np.array([], dtype=np.int64)).shape == (0,)


def test_nothing_to_visit_is_refused() -> None:
    with pytest.raises(UserError, match="rows=0"):
        RowOrder(0)


# --- rows ------------------------------------------------------------------------------------------------------------


def chunk(folder: Path, rows: np.ndarray, *, split: str = "train", vocab_size: int = 1000) -> Path:
    """A chunk as stage tokenize leaves it."""
    folder.mkdir()
    dtype = token_dtype(vocab_size)
    rows.astype(dtype).tofile(folder / "tokens.bin")
    counts = {"rows": len(rows), "row_tokens": rows.shape[1], "dtype": dtype, "vocab_size": vocab_size}
    tokenizer = folder.parent / "tokenizer.json"
    write_json(tokenizer, {})
    inputs = {"text": tokenizer, "tokenizer": tokenizer}
    config = {"sequence_len": rows.shape[1] - 1, "split": split}
    write_manifest(folder / "manifest.json", stage="tokenize", config=config, inputs=inputs, outputs=["tokens.bin"], counts=counts)
    return folder / "manifest.json"


def test_rows_of_several_chunks_are_one_sequence(tmp_path: Path) -> None:
    content = np.arange(7 * 5).reshape(7, 5)
    parts = [("a", content[:3]), ("empty", content[:0]), ("b", content[3:4]), ("c", content[4:])]
    manifests = [chunk(tmp_path / name, rows) for name, rows in parts] + [chunk(tmp_path / "v", content[:2], split="validation")]
    rows = TokenRows(manifests, "train", verify=True)
    assert (len(rows), rows.row_tokens, rows.vocab_size) == (7, 5, 1000)
    wanted = np.array([6, 0, 3, 3, 4, 2])
    assert rows.rows(wanted).dtype == np.int64
    assert (rows.rows(wanted) == content[wanted]).all()
    assert rows.rows([]).shape == (0, 5)
    assert len(TokenRows(manifests, "validation")) == 2


def test_wide_vocabularies_need_four_bytes(tmp_path: Path) -> None:
    assert [token_dtype(size) for size in (265, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]
    content = np.array([[70_000, 1, 2], [3, 4, 99_999]])
    assert (TokenRows([chunk(tmp_path / "a", content, vocab_size=100_000)], "train").rows([0, 1]) == content).all()


@pytest.mark.parametrize("index", [-1, 3])
def test_rows_outside_are_an_error(tmp_path: Path, index: int) -> None:
    rows = TokenRows([chunk(tmp_path / "a", np.zeros((3, 4)))], "train")
    with pytest.raises(IndexError):
        rows.rows([0, index])


def test_chunks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    first = chunk(tmp_path / "a", np.zeros((3, 4)))
    with pytest.raises(UserError, match=r"row_tokens is 5, in .* it is 4"):
        TokenRows([first, chunk(tmp_path / "b", np.zeros((3, 5)))], "train")
    with pytest.raises(UserError, match="vocab_size is 999"):
        TokenRows([first, chunk(tmp_path / "c", np.zeros((3, 4)), vocab_size=999)], "train")


def test_split_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows of split 'validation' in 1 chunks"):
        TokenRows([chunk(tmp_path / "a", np.zeros((3, 4)))], "validation")


def test_flipped_byte_is_found_when_verified(tmp_path: Path) -> None:
    manifest = chunk(tmp_path / "a", np.zeros((3, 4)))
    TokenRows([manifest], "train", verify=True)
    data = bytearray((tmp_path / "a" / "tokens.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "a" / "tokens.bin").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        TokenRows([manifest], "train", verify=True)


# --- mixtures --------------------------------------------------------------------------------------------------------

MIXED = [("big.train-000", 700), ("small.train", 90), ("big.train-001", 300), ("none.train", 0), ("tiny.train", 7)]
SPANS = {"big": [*range(700), *range(790, 1090)], "small": [*range(700, 790)], "tiny": [*range(1090, 1097)]}
WEIGHTS = {"big": 0.7, "small": 0.2, "tiny": 0.1}


def mixture(seed: int = 3) -> MixtureOrder:
    """Three sources, of which one is much too small for its share."""
    return MixtureOrder([chunk for chunk in MIXED if chunk[1]], WEIGHTS, seed)


def test_each_source_has_its_share_in_every_block() -> None:
    block, order = MixtureOrder.BLOCK, mixture()
    visited = order.at(np.arange(3 * block)).reshape(3, block)
    for name, weight in WEIGHTS.items():
        counts = np.isin(visited, SPANS[name]).sum(axis=1)
        assert (np.abs(counts - weight * block) < 1).all() and len(set(counts)) == 1
    assert order.drawn(3 * block) == {name: int(np.isin(visited, SPANS[name]).sum()) for name in WEIGHTS}
    assert order.drawn(block + 100) == {name: int(np.isin(visited.reshape(-1)[: block + 100], SPANS[name]).sum()) for name in WEIGHTS}


def test_a_source_is_visited_once_before_any_of_its_rows_comes_again() -> None:
    visited = mixture().at(np.arange(20_000))
    for rows in SPANS.values():
        own = visited[np.isin(visited, rows)]
        for epoch in range(len(own) // len(rows)):
            assert sorted(own[epoch * len(rows) : (epoch + 1) * len(rows)]) == sorted(rows)
    assert len(visited[np.isin(visited, SPANS["tiny"])]) > 200 * 7


def test_a_mixture_can_be_entered_anywhere_and_shared_among_ranks() -> None:
    order, counters = mixture(), np.arange(5_000, 5_000 + 4 * 64)
    alone = order.at(counters)
    assert [int(order.at(counter)) for counter in counters] == alone.tolist()
    assert np.stack([order.at(counters[rank::4]) for rank in range(4)]).T.reshape(-1).tolist() == alone.tolist()
    assert order.at(counters.reshape(4, 64)).shape == (4, 64)


def test_places_of_the_sources_are_spread_and_follow_the_seed() -> None:
    first, other = (mixture(seed).at(np.arange(4096)) for seed in (3, 4))
    small = np.flatnonzero(np.isin(first, SPANS["small"]))
    assert np.diff(small).max() < 60, "a share of 0.2 that is spread at random leaves no gap of 60 in 4,096 (probability 0.001)"
    assert (first != other).mean() > 0.5


def test_only_proportions_of_weights_count_and_their_order_does_not() -> None:
    chunks = [chunk for chunk in MIXED if chunk[1]]
    scaled = MixtureOrder(chunks, {"tiny": 1, "small": 2, "big": 7}, 3)
    assert scaled.at(np.arange(9_000)).tolist() == mixture().at(np.arange(9_000)).tolist()


@pytest.mark.parametrize(
    ("chunks", "weights", "words"),
    [
        (MIXED, {"big": 1, "small": 1, "tiny": 1, "none": 1}, "source none has no rows"),
        (MIXED[:2], {"big": 1}, "given for big, the rows are of big, small"),
        (MIXED[:2], {"big": 1_000_000, "small": 1}, r"weights\.small=1: less than one row in 4,096"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_sentence(chunks: list[tuple[str, int]], weights: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MixtureOrder(chunks, weights)
