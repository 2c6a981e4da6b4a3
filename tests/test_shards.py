"""Several ranks against one: the optimizer's shares, states saved with one number of ranks and taken up with another.

All ranks of all scenarios are forked from one program (rank_lab.py), which imports torch once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rank_lab import MATRICES, WORLDS

from nanochat.optim.shares import EVERYBODY, cut, layout, matrix_cost, owners


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scenarios left behind."""
    out = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("rank_lab.py")
    done = subprocess.run([sys.executable, str(program), str(out)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def seen(lab: Path, name: str) -> Any:
    return json.loads((lab / f"{name}.json").read_text())


# --- the layout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 7, 64])
@pytest.mark.parametrize("sizes", [[151 * 120, 91, 1], [5], [63, 65, 128], [1] * 10])
def test_pieces_cover_every_element_once_and_none_is_longer_than_a_share(sizes: list[int], ranks: int) -> None:
    pieces = cut(sizes, ranks)
    for size, parts in zip(sizes, pieces, strict=True):
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == size
    held = [sum(part.stop - part.start for parts in pieces for part in parts if part.rank == rank) for rank in range(ranks)]
    assert max(held) == -(-sum(sizes) // ranks) and sum(held) == sum(sizes)


def test_owners_of_matrices_have_about_as_much_to_compute() -> None:
    d20 = [(1280, 1280)] * 80 + [(5120, 1280), (1280, 5120)] * 20
    for ranks in (1, 3, 8, 64, 128):
        load = [0] * ranks
        for shape, owner in zip(d20, owners(d20, ranks), strict=True):
            load[owner] += matrix_cost(shape)
        assert max(load) - min(load) <= max(map(matrix_cost, d20))
    eight = owners(d20, 8)
    assert [eight.count(rank) for rank in range(8)] == [15] * 8


def test_one_rank_keeps_everything_and_small_groups_are_kept_by_everybody() -> None:
    groups = [("muon", [(4, 4)]), ("adamw", [(200, 100)]), ("adamw", [(10,)])]
    assert [[tuple(piece) for piece in parts] for group in layout(groups, 1) for parts in group] == [[(0, 0, 16)], [(0, 0, 20_000)], [(0, 0, 10)]]
    _, split, small = layout(groups, 2)
    assert [piece.rank for piece in split[0]] == [0, 1] and small[0][0] == (EVERYBODY, 0, 10)


# --- the optimizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_several_ranks_take_the_steps_of_one_with_the_same_weights_everywhere(lab: Path, world: int) -> None:
    alone, several = seen(lab, "optimizer.1"), seen(lab, f"optimizer.{world}")
    assert several["all_equal"] and several["difference"] < 1e-6
    assert several["norms"] == [several["norms"][0]] * world and several["norms"][0] == pytest.approx(alone["norms"], rel=1e-6)
    assert several["groups"] == [several["groups"][0]] * world and several["groups"][0] == pytest.approx(alone["groups"], rel=1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_each_rank_keeps_its_share_of_the_state(lab: Path, world: int) -> None:
    most_of_a_matrix = max(rows * columns for rows, columns in MATRICES)
    assert max(seen(lab, f"optimizer.{world}")["state"]) <= seen(lab, "optimizer.1")["state"] / world + most_of_a_matrix + 2 * 8


@pytest.mark.parametrize("world", WORLDS)
def test_a_bad_gradient_on_one_rank_is_the_same_error_on_all_and_changes_nothing(lab: Path, world: int) -> None:
    several = seen(lab, f"optimizer.{world}")
    assert several["untouched"] and several["said"] == [seen(lab, "optimizer.1")["said"]]
    assert "parameter 1 of group 1 (adamw, shape (7, 13))" in several["said"][0]
