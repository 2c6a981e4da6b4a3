"""The snakemake that people type: its terminal closes, somebody else works in the folder, the disk is full. On SLURM: test_slurm_drivers.py."""

import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_lab import logged_steps
from workspace import Workspace

from nanochat.artifacts import exclusive, write_json
from nanochat.preflight import shared, slurm
from snakemake_logger_plugin_nanochat.trouble import full_disk, who_works_here

ME = shared.user_name(os.geteuid())


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """A folder with a lock of snakemake's, a second old."""
    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (lock.stat().st_mtime - 1,) * 2)
    return tmp_path


def test_a_snakemake_that_runs_is_named(locked: Path) -> None:
    with exclusive(locked / shared.DRIVER):
        said = who_works_here(locked)
    assert said.startswith(f"another snakemake works in this folder: process {os.getpid()} on {socket.gethostname()} ({ME}, since ")
    assert said.endswith("; wait for it to end, then the same command again")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (socket.gethostname(), "a snakemake that was killed has left its lock on this folder: process 7 on "),
        ("login9", "a snakemake on another machine holds this folder: process 7 on login9 "),
    ],
)
def test_only_what_was_killed_for_certain_is_unlocked_without_a_look(locked: Path, host: str, words: str) -> None:
    write_json(locked / shared.DRIVER / ".owner.json", {"host": host, "pid": 7})
    (locked / shared.DRIVER / ".lock").touch()
    said = who_works_here(locked)
    assert said.startswith(words) and "snakemake --unlock, then the same command again" in said
    assert ("look there whether it runs" in said) == (host == "login9")


def test_the_owner_of_an_older_lock_is_not_accused(locked: Path) -> None:
    """The one that holds the folder has not come as far as to say who it is."""
    write_json(locked / shared.DRIVER / ".owner.json", {"host": socket.gethostname(), "pid": 7})
    os.utime(locked / shared.DRIVER / ".owner.json", (1, 1))
    said = who_works_here(locked)
    assert said.startswith(f"a snakemake of {ME} holds this folder since ") and "process 7" not in said


@pytest.mark.parametrize("closed", ["results/tiny/base_train", "logs/base_train/tiny.history", ".snakemake/metadata"])
def test_what_somebody_else_can_write_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    for folder in ("results/tiny/base_train", "logs/base_train", ".snakemake/metadata", ".snakemake/tmp.1234"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("results/tiny/base_train/model.safetensors", "logs/base_train/tiny.history", "logs/base_train/tiny.log"):
        (tmp_path / file).touch()
    unwritable = {tmp_path / closed, tmp_path / "results/tiny/base_train/model.safetensors", tmp_path / ".snakemake/tmp.1234"}  # replaced; private
    monkeypatch.setattr(shared.os, "access", lambda path, mode: mode != os.W_OK or Path(path) not in unwritable)
    path = tmp_path / closed
    assert shared.not_writable(tmp_path) == f"{path}: cannot be written; make it writable (chmod u+w {path}), or work in another folder"
    monkeypatch.setattr(shared.os, "geteuid", lambda: 4_000_000)
    said = shared.not_writable(tmp_path)
    assert said is not None and said.startswith(f"{path}: belongs to {ME}, and user 4000000 cannot write it; ask {ME} to type: chmod -R g+rwX ")
    unwritable.remove(path)
    assert shared.not_writable(tmp_path) is None


@pytest.fixture
def no_room() -> Iterator[None]:
    """A limit that meets every write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_with_room_is_not_mentioned(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert full_disk(tmp_path) is None


@pytest.mark.usefixtures("no_room")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    said = full_disk(tmp_path)
    assert said is not None and said.startswith(f"{tmp_path / 'logs'}: the disk is full (file too large), no job is started again; free some space, then ")
    assert list((tmp_path / "logs").iterdir()) == []


def test_jobs_of_others_in_this_folder_are_seen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        f"1|RUNNING|0:10|{os.getuid()}|me|rule_base_train_wildcards_d20|{tmp_path}",
        f"2|PENDING|0:00|4000000|anna|rule_chat_sft_wildcards_d20|{tmp_path}",
        f"3|RUNNING|0:10|4000000|anna|rule_chat_sft_wildcards_d20|{tmp_path.parent}",
        f"4|RUNNING|0:10|4000000|anna|(null)|{tmp_path}",
    ]
    monkeypatch.setattr(slurm, "ask", lambda *command, **_: "\n".join(rows))
    mine, other = slurm.jobs_of(tmp_path)
    assert mine.sentence == "job 1 (base_train d20, RUNNING for 0:10; to stop it: scancel 1)"
    assert other.sentence == "job 2 of anna (chat_sft d20, PENDING; to stop it: scancel 2, by anna)"


@pytest.mark.workflow
def test_a_closed_terminal_stops_a_training_on_this_machine_and_leaves_no_lock(workspace: Workspace, tmp_path: Path) -> None:
    def train_for(steps: int, place: Workspace) -> Path:
        place.configure(lambda content: content["runs"]["tiny"]["base_train"]["horizon"].update(steps=steps))
        (place.path("results/tiny/base_train") / "metrics.jsonl").unlink()  # of the model that the fixture made
        return place.path("results/tiny/base_train")

    undisturbed = workspace.copy(tmp_path / "undisturbed")
    reference, folder = train_for(60, undisturbed), train_for(60, workspace)
    one_thread = ("base", "--set-threads", "base_train=1")  # two would wait for each other beside other tests
    undisturbed.build(*one_thread)
    command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "2", *one_thread]
    with workspace.path("driver.txt").open("w") as output:
        driver = subprocess.Popen(command, cwd=workspace.folder, env=workspace.environment(), stdout=output, stderr=output)
    while not (0 < logged_steps(folder) < 60):
        assert driver.poll() is None, workspace.path("driver.txt").read_text()
        time.sleep(0.01)
    driver.send_signal(signal.SIGHUP)
    assert driver.wait(60) != 0
    assert "stopped (SIGHUP) at step" in workspace.path("driver.txt").read_text()
    assert "resumed at step" in workspace.build(*one_thread), "no lock was left, and the state was saved"
    digests = [hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest() for place in (reference, folder)]
    assert digests[0] == digests[1]
