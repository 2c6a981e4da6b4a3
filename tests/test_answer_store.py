"""Answers on disk: nothing that was added is lost to a kill, nothing damaged is believed, nothing of another identity is taken."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.eval import store
from nanochat.eval.store import AnswerStore

IDENTITY = {"weights": "ab" * 32, "task": "arithmetic", "settings": {"limit": 3}}


def filled(folder: Path, count: int, rank: int = 0) -> AnswerStore:
    answers = AnswerStore(folder, IDENTITY, rank)
    for index in range(count):
        answers.add(str(index), {"answer": f"antwort {index} ✓ \ud800", "right": index % 2 == 0, "score": 0.1 + index})
    return answers


def test_what_was_added_is_known_to_the_next_store(tmp_path: Path) -> None:
    first = filled(tmp_path, 5)
    first.close()
    second = AnswerStore(tmp_path, IDENTITY)
    assert len(second.known) == 5 and second.known == first.known and second.damaged == 0


def test_another_identity_knows_nothing(tmp_path: Path) -> None:
    filled(tmp_path, 5).close()
    assert AnswerStore(tmp_path, {**IDENTITY, "settings": {"limit": 4}}).known == {}
    assert AnswerStore(tmp_path, dict(reversed(IDENTITY.items()))).known  # the order of keys is no difference


def test_answers_of_all_ranks_are_known(tmp_path: Path) -> None:
    filled(tmp_path, 3, rank=1).close()
    other = AnswerStore(tmp_path, IDENTITY, rank=0)
    other.add("7", {"right": True})
    other.close()
    assert sorted(AnswerStore(tmp_path, IDENTITY, rank=2).known) == ["0", "1", "2", "7"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_left_out_and_the_next_answer_is_whole(cut: int, tmp_path: Path) -> None:
    answers = filled(tmp_path, 4)
    answers.close()
    answers.path.write_bytes(answers.path.read_bytes()[:-cut])
    again = AnswerStore(tmp_path, IDENTITY)
    assert sorted(again.known) == ["0", "1", "2"] and again.damaged == 1
    again.add("3", {"right": True})
    again.close()
    last = AnswerStore(tmp_path, IDENTITY)
    assert sorted(last.known) == ["0", "1", "2", "3"] and last.damaged == 0


def test_a_file_that_ends_in_its_first_line_starts_again(tmp_path: Path) -> None:
    answers = filled(tmp_path, 1)
    answers.close()
    answers.path.write_bytes(answers.path.read_bytes()[:20])
    again = AnswerStore(tmp_path, IDENTITY)
    again.add("1", {"right": True})
    again.close()
    assert list(AnswerStore(tmp_path, IDENTITY).known) == ["1"]


def test_every_flipped_byte_costs_one_answer_and_is_never_believed(tmp_path: Path) -> None:
    answers = filled(tmp_path, 2)
    answers.close()
    whole = answers.path.read_bytes()
    expected = AnswerStore(tmp_path, IDENTITY).known
    for place in range(len(whole)):
        answers.path.unlink()  # a file that is cut and written anew is synced by the file system each time
        answers.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        known = AnswerStore(tmp_path, IDENTITY).known
        assert len(known) < 2 and all(expected.get(key) == value for key, value in known.items()), place


def test_a_removed_store_is_empty(tmp_path: Path) -> None:
    answers = filled(tmp_path, 2)
    answers.remove()
    assert not list(tmp_path.iterdir()) and AnswerStore(tmp_path, IDENTITY).known == {}
    answers.add("5", {"right": False})
    assert list(AnswerStore(tmp_path, IDENTITY).known) == ["5"]


def test_answers_are_synced_every_fifty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(store.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    filled(tmp_path, 120).close()
    assert len(synced) == 3


def test_a_killed_process_leaves_all_that_it_added(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from nanochat.eval.store import AnswerStore
answers = AnswerStore(Path({str(tmp_path)!r}), {IDENTITY!r})
for index in range(77):
    answers.add(str(index), {{"right": True}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert len(AnswerStore(tmp_path, IDENTITY).known) == 77
