"""`nanochat status` beside a trainer that really runs: running, stalled, interrupted, stopped, seen from another host; and the live view."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from report_files import attempt, training
from training_lab import Lab, logged_steps, start

from nanochat.artifacts import LOCK, read_json, write_json
from nanochat.cli import EXIT_NOBODY_READS
from nanochat.status import show
from nanochat.status.look import Line, Look, look


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"))


def losses(folder: Path) -> list[float]:
    """Of the whole lines of metrics.jsonl."""
    return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]


def train_for_long(lab: Lab, results: Path) -> "subprocess.Popen[str]":
    """A trainer of results/live/base_train that runs for minutes, some updates after its start."""
    folder = results / "live/base_train"
    before = logged_steps(folder)
    command = lab.base(folder, horizon={"steps": 100_000, "batch_tokens": 512}, save_every_s=0.5, validate_every=0)
    process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while logged_steps(folder) < before + 20 or read_json(folder / "heartbeat.json")["phase"] != "train":
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def trainer(folder: Path) -> int:
    """The process that trains and holds the lock of its folder, below its supervisor."""
    return int(read_json(folder / ".owner.json")["pid"])


def kill(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Kill a supervisor, and wait until its trainer has died with it: until then the trainer's threads hold the lock."""
    process.kill()
    process.wait()
    if (folder / LOCK).exists():
        with FileLock(folder / LOCK, timeout=20):
            pass


def line(results: Path, **options: Any) -> Line:
    """The one stage that is there."""
    seen = look(results, **options)
    assert seen.damaged == ()
    (only,) = seen.lines
    return only


def wait_in_silence(results: Path) -> None:
    """Until a stage that moves no more has been silent for a second and twenty steps, of which ten are granted to it."""
    while (seen := line(results)) and (seen.age_s or 0.0) < max(1.0, 20 * 512 / (seen.tokens_per_s or 1.0)):
        time.sleep(0.2)


@pytest.mark.slow
def test_a_trainer_is_running_then_killed_then_interrupted_and_goes_on(lab: Lab, tmp_path: Path) -> None:
    results, folder = tmp_path / "results", tmp_path / "results/live/base_train"
    process = train_for_long(lab, results)
    try:
        seen = line(results)
        assert (seen.state, seen.judged_by, seen.phase, seen.steps) == ("running", "lock", "train", 100_000)
        assert seen.step is not None and seen.age_s is not None and seen.age_s < 30
        assert seen.tokens_per_s and seen.eta_s and 0.2 < seen.eta_s / ((100_000 - seen.step) * 512 / seen.tokens_per_s) < 5
        assert look(results).go_on is None

        pid = trainer(folder)
        os.kill(pid, signal.SIGSTOP)  # it holds its lock and moves no more
        time.sleep(1.5)
        seen = line(results)
        assert (seen.state, seen.loss) == ("running", losses(folder)[-1])
        wait_in_silence(results)
        seen = line(results, stalled_after_s=0.5)
        assert (seen.state, seen.judged_by) == ("stalled", "heartbeat") and f"process {pid} on " in (seen.why or "")
        os.kill(pid, signal.SIGCONT)
    finally:
        kill(process, folder)
    seen = line(results)
    assert (seen.state, seen.judged_by, seen.eta_s) == ("interrupted", "lock", None)
    assert seen.saved_step and seen.step and read_json(folder / "provenance.json")["attempts"][-1]["state"] == "running"
    assert "run the same snakemake command again" in (look(results).go_on or "")

    process = train_for_long(lab, results)
    try:
        again = line(results)
        assert (again.state, again.attempts) == ("running", 2)
        assert again.step is not None and again.step >= seen.saved_step
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    finally:
        kill(process, folder)
    stopped = line(results)
    assert (stopped.state, stopped.judged_by, stopped.saved_step) == ("stopped", "provenance", stopped.step)


@pytest.mark.slow
def test_a_trainer_of_another_host_is_judged_by_its_heartbeat(lab: Lab, tmp_path: Path) -> None:
    results, folder = tmp_path / "results", tmp_path / "results/live/base_train"
    process = train_for_long(lab, results)
    try:
        owner = read_json(folder / ".owner.json")
        write_json(folder / ".owner.json", {**owner, "host": "node9"})
        assert (line(results).state, line(results).judged_by, line(results).host) == ("running", "lock", "node9")  # a lock that shows is believed
    finally:
        kill(process, folder)
    seen = line(results)
    assert (seen.state, seen.judged_by, seen.why) == ("running", "heartbeat", "the lock of node9 cannot be seen from here")
    wait_in_silence(results)
    seen = line(results, stalled_after_s=0.5)
    assert (seen.state, seen.judged_by) == ("interrupted", "heartbeat") and "node9 cannot be seen" in (seen.why or "")
    write_json(folder / ".owner.json", owner)
    assert (line(results).state, line(results).judged_by) == ("interrupted", "lock")


# --- the view that is drawn again and again --------------------------------------------------------------------------


def watch(folder: Path, *flags: str) -> list[str]:
    """Command of a quick `nanochat status --watch`."""
    return [sys.executable, "-m", "nanochat", "status", "--results", str(folder / "results"), "--watch", "--every", "0.2", *flags]


def test_watch_on_a_terminal_draws_a_table_anew_and_ends_with_control_c(tmp_path: Path) -> None:
    training(tmp_path, "d20", "base", {})
    training(tmp_path, "d20", "mid", {}, attempts=[attempt("stopped")], finished=False)
    parent, child = pty.openpty()
    process = subprocess.Popen(watch(tmp_path), stdin=child, stdout=child, stderr=child, env={**os.environ, "COLUMNS": "160", "LINES": "40", "TERM": "xterm"})
    os.close(child)
    said = ""
    deadline = time.monotonic() + 60
    while said.count("mid_train") < 4 and time.monotonic() < deadline and process.poll() is None:
        if select.select([parent], [], [], 0.5)[0]:
            said += os.read(parent, 65536).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0, said
    os.close(parent)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert said.count("mid_train") >= 4 and "\x1b[" in said
    assert re.search(r"d20 +base_train +finished +━+ +40/40", plain), plain
    assert "run the same snakemake command again" in plain and "Traceback" not in plain


@pytest.mark.parametrize("form", ["text", "json"])
def test_watch_into_a_pipe_is_plain_and_ends_with_its_reader(tmp_path: Path, form: str) -> None:
    training(tmp_path, "d20", "base", {})
    process = subprocess.Popen(watch(tmp_path, *(["--json"] if form == "json" else [])), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    first = [process.stdout.readline() for _ in range(3)]
    assert "\x1b" not in "".join(first)
    if form == "json":
        assert [json.loads(row)["stages"][0]["state"] for row in first] == ["finished"] * 3
    else:
        assert re.match(r"\d{4}-\d\d-\d\d ", first[0]) and first[1].startswith("d20  base_train  finished  step 40") and first[2] == "\n"
    process.stdout.close()
    assert process.wait(timeout=30) == EXIT_NOBODY_READS
    assert process.stderr.read() == ""
    process.stderr.close()


def test_watch_sees_what_changes(tmp_path: Path) -> None:
    training(tmp_path, "d20", "base", {}, finished=False)
    process = subprocess.Popen(watch(tmp_path, "--json"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["stages"][0]["state"] != "finished"
        training(tmp_path, "d20", "base", {})
        assert any(json.loads(process.stdout.readline())["stages"][0]["state"] == "finished" for _ in range(20))
    finally:
        process.kill()
        process.communicate()


def test_a_small_terminal_shows_what_is_not_finished() -> None:
    from rich.console import Console

    lines = [Line(f"r{n}", "base_train", "running" if n == 7 else "finished", "lock", step=n, steps=10, loss=1.0) for n in range(12)]
    seen = Look(Path("results"), 0.0, tuple(lines))

    def drawn(width: int, height: int) -> list[str]:
        console = Console(width=width, height=height, record=True, file=StringIO())
        console.print(show.table(seen, width, height))
        return console.export_text().splitlines()

    large, small = drawn(160, 40), drawn(80, 10)
    assert len(large) == 14 and large[2].split()[:3] == ["r7", "base_train", "running"] and "7/10" in large[2] and "━" in large[2]
    assert small[2].split() == ["r7", "base_train", "running", "70.0%", "1.0000"]
    assert small[3] == "11 finished stages: no room for them here, nanochat status lists them"
