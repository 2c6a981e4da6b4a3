"""Several ranks against one: the optimizer's shares, states saved with one number of ranks and taken up with another.

All ranks of all scenarios are forked from one program (rank_lab.py), which imports torch once.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_lab import MATRICES, WORLDS
from training_lab import dying_after

from nanochat.artifacts import total_memory_bytes
from nanochat.config import read_yaml
from nanochat.errors import UserError
from nanochat.optim.shares import EVERYBODY, cut, layout, matrix_cost, owners
from nanochat.runtime import Runtime
from nanochat.stages import ranks
from nanochat.train import saving
from nanochat.train.host_memory import available_bytes
from nanochat.train.resume import ResumeFolder
from nanochat.train.saving import Saver
from nanochat.train.tensorfile import TensorFiles


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


@pytest.mark.parametrize("count", [2, 3, 7, 64])
@pytest.mark.parametrize("sizes", [[151 * 120, 91, 1], [5], [63, 65, 128], [1] * 10])
def test_pieces_cover_every_element_once_and_none_is_longer_than_a_share(sizes: list[int], count: int) -> None:
    pieces = cut(sizes, count)
    for size, parts in zip(sizes, pieces, strict=True):
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == size
    held = [sum(part.stop - part.start for parts in pieces for part in parts if part.rank == rank) for rank in range(count)]
    assert max(held) == -(-sum(sizes) // count) and sum(held) == sum(sizes)


def test_owners_of_matrices_have_about_as_much_to_compute() -> None:
    d20 = [(1280, 1280)] * 80 + [(5120, 1280), (1280, 5120)] * 20
    for count in (1, 3, 8, 64, 128):
        load = [0] * count
        for shape, owner in zip(d20, owners(d20, count), strict=True):
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


# --- states ----------------------------------------------------------------------------------------------------------


def test_a_run_that_changes_its_number_of_ranks_five_times_is_the_run_of_one_rank(lab: Path) -> None:
    """1 to 3 to 2 to 1 to 5 to 7 ranks. In fp64, so that a moment which was lost or misplaced is no rounding."""
    whole, legs = seen(lab, "whole"), seen(lab, "legs")
    assert legs["firsts"] == [0, 2, 4, 6, 8, 10] and all(legs["rows"])
    assert legs["losses"] == pytest.approx(whole["losses"], rel=1e-9) and legs["difference"] < 1e-6
    shares = [sum(name.endswith("-of-3.safetensors") for name in names) for names in legs["files"]]
    assert shares == [0, 6, 0, 0, 0, 0], "each rank writes its share into both slots, and nothing of other numbers of ranks stays in a slot"


def test_the_optimizer_kept_for_a_warm_start_is_put_together_from_all_ranks(lab: Path) -> None:
    one, seven = (TensorFiles([lab / run / "optimizer.safetensors"]) for run in ("whole", "legs"))
    assert sorted(one.names) == sorted(seven.names) and len(one.names) > 40
    for name in one.names:
        assert one.shape(name) == seven.shape(name)
        assert torch.allclose(one.whole(name), seven.whole(name), atol=1e-6), name


def test_ranks_killed_while_they_save_in_the_background_go_on_from_the_slot_before(lab: Path) -> None:
    whole, killed = seen(lab, "whole"), seen(lab, "killed")
    assert killed["first"] == 4 and "b.json" in killed["after"] and "a.json" not in killed["after"]
    assert killed["losses"] == pytest.approx(whole["losses"], rel=1e-9) and killed["difference"] < 1e-6


def test_a_flipped_byte_in_one_share_discards_the_slot_aloud(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "damaged" / "resume", tmp_path / "resume")
    said: list[str] = []
    whole = ResumeFolder(tmp_path, "f", said.append).newest()
    assert whole is not None and whole.counters["step"] == 4 and not said
    share = tmp_path / "resume" / "b.2-of-3.safetensors"
    content = bytearray(share.read_bytes())
    content[-1] ^= 1
    share.write_bytes(content)
    assert ResumeFolder(tmp_path, "f", said.append).newest() is None
    assert said == [f"{share}: damaged (sha256 differs), discarded; starting from the beginning"]


def save_shares(resume: ResumeFolder, step: int, count: int) -> None:
    """A state of `count` ranks."""
    slot = resume.next_slot
    resume.free(slot)
    digests = [resume.write(slot, {f"weight@{rank}": torch.full((1,), float(step))}, rank=rank, ranks=count) for rank in range(count)]
    resume.seal(slot, {"step": step}, digests)
    resume.last_saved = slot


@pytest.mark.parametrize("cut_at", range(0, 16, 3))
def test_a_kill_while_a_shared_state_is_put_aside_or_taken_up_loses_none(tmp_path: Path, cut_at: int) -> None:
    """Every rename and deletion in turn is the last thing that a process does, as it is for the state of one rank (test_resume.py)."""

    def start_of(work: str) -> ResumeFolder:
        resume = ResumeFolder(tmp_path, work, lambda sentence: None)
        found = resume.newest()
        steps.append(None if found is None else found.step)
        return resume

    steps: list[int | None] = []
    before = start_of("before")
    save_shares(before, 1, 2)
    save_shares(before, 2, 3)
    for work, expected in (("after", None), ("before", 2), ("after", 5)):
        with dying_after(cut_at):
            start_of(work)
        resume = start_of(work)
        assert steps[-1] == expected
        if expected is None:
            save_shares(resume, 5, 2)


def saver(folder: Path, said: list[str] | None = None, on_saved: Any = lambda: None) -> Saver:
    say = said.append if said is not None else (lambda sentence: None)
    return Saver(ResumeFolder(folder, "f"), Runtime(torch.device("cpu"), torch.float32), say=say, on_saved=on_saved)


def test_a_state_saved_in_the_background_is_that_of_its_step(tmp_path: Path) -> None:
    """The next update changes the weights while the thread is still writing."""
    hold, weight = threading.Event(), torch.zeros(1000)
    states = saver(tmp_path)
    states.thread.submit(hold.wait)
    states.start({"step": 1}, {"weight": weight}, in_background=True)
    weight += 1
    assert states.is_writing and not list(tmp_path.glob("resume/*.json"))
    hold.set()
    states.finish()
    found = states.resume.newest()
    assert found is not None and not states.is_pending and not TensorFiles(found.tensors).whole("weight").any()
    states.start({"step": 2}, {"weight": weight}, in_background=False)
    found = states.resume.newest()
    assert found is not None and found.counters == {"step": 2} and TensorFiles(found.tensors).whole("weight").all()
    states.finish()
    states.close()


def test_what_a_background_save_meets_is_raised_where_training_looks_for_it(tmp_path: Path) -> None:
    states = saver(tmp_path)
    states.start({"step": 1}, {"weight": torch.zeros(3)}, in_background=True)
    states.finish()
    (tmp_path / "resume" / ".b.safetensors.partial").mkdir()
    states.resume.free = lambda slot: None  # type: ignore[method-assign] - which would refuse it first
    states.start({"step": 2}, {"weight": torch.zeros(3)}, in_background=True)
    with pytest.raises(OSError, match="directory"):
        states.finish()
    states.close()
    found = ResumeFolder(tmp_path, "f").newest()
    assert found is not None and found.counters == {"step": 1}


def test_without_memory_for_a_copy_training_waits_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 20 < available_bytes() <= total_memory_bytes()
    monkeypatch.setattr(saving, "available_bytes", lambda: 1000)
    said: list[str] = []
    states = saver(tmp_path, said)
    for step in (1, 2):
        states.start({"step": step}, {"weight": torch.zeros(1000)}, in_background=True)
        assert not states.is_writing
    states.finish()
    states.close()
    assert len(said) == 1 and "saved without a copy, training waits for the disk" in said[0]


# --- a run at many ranks, checked on this machine ---------------------------------------------------------------------


def experiment(folder: Path, **base_train: Any) -> str:
    """The speedrun with other settings of its base training."""
    content = read_yaml(Path(__file__).parents[1] / "configs" / "speedrun.yaml")
    content["runs"]["d20"]["base_train"] |= base_train
    (folder / "experiment.yaml").write_text(json.dumps(content))
    return str(folder / "experiment.yaml")


def test_the_speedrun_takes_a_step_at_128_ranks_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks.main(["128", "--configfile", experiment(tmp_path, micro_batch_rows=2), "--stage", "base_train"])
    said = capsys.readouterr().out
    assert "524,288 tokens a step = 128 ranks x 1 x 2 rows x 2,048 tokens" in said and "one step was taken" in said
    least = 4 * 2 * 2 * 65_536 * 1280 // 128  # two moments of embedding and head, cut; 8 ranks are left without one of the 120 matrices
    assert f"optimizer {least / 1e6:.2f} MB to {(least + 4 * 5120 * 1280) / 1e6:.2f} MB (one rank alone: 2.92 GB)" in said


def test_what_does_not_divide_is_one_sentence_for_each_stage(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    with pytest.raises(UserError) as refused:
        ranks.main(["128", "--configfile", file])
    sentences = str(refused.value).splitlines()
    assert [sentence.split(":")[0] for sentence in sentences] == ["d20 base_train", "d20 mid_train", "d20 chat_sft"]
    assert "batch_tokens=524288: not a multiple of 4194304" in sentences[0] and "try base_train.micro_batch_rows=2, or " in sentences[0]
    for arguments, words in (
        (["8", "--run", "d21"], "--run=d21: not in "),
        (["8", "--gpu", "abacus"], "--gpu=abacus: not a card that is known; choose one of A100,"),
        (["0"], "0 is not above 0"),
    ):
        with pytest.raises(UserError, match=words):
            ranks.main([*arguments, "--configfile", file])
