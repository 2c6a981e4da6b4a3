"""Nothing hangs in silence: faults put into real training runs are found, said with stacks, ended with 75, and what follows is as if nothing had been."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import warm
from training_lab import Lab, final_bytes, logged_steps, metrics, run, start

FAULTY = Path(__file__).with_name("faulty.py")
LIMIT_S = 5
LIMITS = ["--step-limit", str(LIMIT_S), "--pause-limit", str(LIMIT_S), "--startup-limit", "120"]  # a rank may be stopped while all save


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended."""

    code: int
    said: str


# name of the fault -> where the stacks must point to
STUCK = {
    "block_on_data": "block_on_data",
    "sleep": "sleep",
    "spin": "spin",
    "hold_the_lock_in_c": "hold_the_lock_in_c",
    "miss_a_collective": "all_gather_single",
}
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
# Each chain is one run that meets one fault after the other, three steps apart, and then ends undisturbed.
CHAINS: dict[str, tuple[int, list[str]]] = {
    "one rank": (1, ["block_on_data", "sleep", "killed", "spin", "hold_the_lock_in_c", "stopped"]),
    "two ranks": (2, ["block_on_data", "sleep", "stopped", "spin"]),
    "two ranks again": (2, ["miss_a_collective", "killed", "hold_the_lock_in_c"]),
}
CASES = [(chain, fault) for chain, (_, faults) in CHAINS.items() for fault in faults]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Finished runs, by number of ranks."""
    found = {ranks: tmp_path_factory.mktemp("undisturbed") for ranks in (1, 2)}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda ranks: run([*lab.base(found[ranks]), "--ranks", str(ranks)]), found))
    return found


def attempt(command: list[str], fault: str, step: int, folder: Path) -> Outcome:
    """Run until the fault has ended the stage; a signal is sent to the last rank once `step` is logged."""
    process = warm.Popen([sys.executable, str(FAULTY), "none" if fault in SIGNALS else fault, str(step), *command], stderr=subprocess.PIPE, text=True)
    if fault in SIGNALS:
        while process.poll() is None and logged_steps(folder) < step:
            time.sleep(0.002)
        os.kill(psutil.Process(process.pid).children()[-1].pid, SIGNALS[fault])
    _, said = process.communicate(timeout=200)
    return Outcome(process.returncode, said)


def chain_of_faults(lab: Lab, name: str, folder: Path) -> dict[str, Outcome]:
    """The outcome of every fault of a chain, and of the attempt that nothing disturbs."""
    ranks, faults = CHAINS[name]
    command = [*lab.base(folder), "--ranks", str(ranks), *LIMITS]
    found = {fault: attempt(command, fault, 3 + 3 * place, folder) for place, fault in enumerate(faults)}
    assert not (folder / "manifest.json").exists()
    return {**found, "none": attempt(command, "none", 0, folder)}


@pytest.fixture(scope="module")
def chains(
    request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[dict[str, tuple[Path, Future[dict[str, Outcome]]]]]":
    """All chains side by side: most of their time is waiting."""
    folders = {name: tmp_path_factory.mktemp("chain") for name in CHAINS}
    with ThreadPoolExecutor(len(CHAINS)) as pool:
        yield {name: (folder, pool.submit(chain_of_faults, lab, name, folder)) for name, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("chain", "fault"), CASES, ids=lambda value: value.replace(" ", "_"))
def test_fault_is_found_said_with_its_place_and_ends_with_75(chain, fault, chains):
    ranks, outcome = CHAINS[chain][0], chains[chain][1].result()[fault]
    assert outcome.code == 75, outcome.said
    if fault == "killed":
        assert re.search(rf"rank {ranks - 1} was ended by SIGKILL .* in phase \w+ after \d+ steps", outcome.said), outcome.said
        return
    assert re.search(rf"no progress for {LIMIT_S} s \(limit {LIMIT_S} s\), .*phase \w+ after \d+ steps", outcome.said), outcome.said
    stacks = re.split(r"--- rank \d ", outcome.said)[1:]  # one part for each rank
    assert len(stacks) == ranks and all("(process" in part for part in stacks)
    if fault == "stopped":
        assert ", stopped)" in stacks[-1] and "no stacks: the process does not run" in stacks[-1]
    else:
        assert f"in {STUCK[fault]}" in stacks[-1] and "train/loop.py" in stacks[-1]
    if ranks == 2:
        waiting = {"stopped": r"in (all_reduce|barrier|all_gather\w*|_wait)\b", "miss_a_collective": ""}.get(fault, "in all_reduce")
        assert re.search(waiting, stacks[0]), stacks[0]  # it waits for the other; a signal comes at any moment, as states are exchanged too
        assert "rank 1 of 2 is behind" in outcome.said or fault in ("miss_a_collective", "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_after_all_faults_a_run_ends_with_the_bytes_of_an_undisturbed_one(chain, chains, undisturbed):
    (folder, outcomes), whole = chains[chain], undisturbed[CHAINS[chain][0]]
    last = outcomes.result()["none"]
    assert last.code == 0 and "resumed at step" in last.said, last.said
    assert final_bytes(folder) == final_bytes(whole)
    assert [line["loss"] for line in metrics(folder) if "loss" in line] == [line["loss"] for line in metrics(whole) if "loss" in line]


@pytest.mark.slow
def test_a_run_that_becomes_a_hundred_times_slower_is_told_and_goes_on(lab, undisturbed, tmp_path):
    last = attempt([*lab.base(tmp_path), *LIMITS], "be_slow", 12, tmp_path)
    assert last.code == 0, last.said
    slow = re.findall(r"slow: a step takes (\S+) s, (\S+) times slower than in its first minutes \((\S+) s a step\); it goes on", last.said)
    assert len(slow) == 1 and "no progress" not in last.said, last.said
    assert 3.5 < float(slow[0][0]) < 8 and float(slow[0][1]) > 8
    assert final_bytes(tmp_path) == final_bytes(undisturbed[1])


@pytest.mark.slow
def test_a_start_that_blocks_is_found_too(lab, tmp_path):
    found = attempt([*lab.base(tmp_path), "--startup-limit", "8", "--step-limit", "1000"], "block_at_the_start", 0, tmp_path)
    assert found.code == 75 and "no progress for 8 s (limit 8 s), phase data" in found.said and "in verify_files" in found.said, found.said


@pytest.mark.slow
def test_a_start_that_blocks_can_be_stopped(lab, tmp_path):
    """What waits for a network that is not there answers no signal."""
    command = [sys.executable, str(FAULTY), "block_at_the_start", "0", *lab.base(tmp_path), "--startup-limit", "1000"]
    process = warm.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "provenance.json").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "asked to stop and not heard for 3 s, phase data" in said and "in verify_files" in said, said


def wait_for_steps(process: "subprocess.Popen[str]", folder: Path, steps: int) -> None:
    """Until so many updates are logged."""
    while process.poll() is None and logged_steps(folder) < steps:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()


@pytest.mark.slow
def test_a_suspended_job_is_not_a_stuck_one(lab, undisturbed, tmp_path):
    """Supervisor and ranks stand still for longer than the limit, as in a suspended laptop or job, and go on."""
    process = start([*lab.base(tmp_path), "--ranks", "2", "--step-limit", "2"])
    wait_for_steps(process, tmp_path, 4)
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    assert len(everyone) == 3
    for each in everyone:
        each.suspend()
    time.sleep(4)
    for each in everyone:
        each.resume()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0 and "no progress" not in said, said
    assert final_bytes(tmp_path) == final_bytes(undisturbed[2])


@pytest.mark.slow
def test_control_z_stops_the_ranks_too_sigusr2_shows_their_stacks_and_they_die_with_their_supervisor(lab, tmp_path):
    process = start([*lab.base(tmp_path, horizon={"steps": 100_000, "batch_tokens": 512}), "--ranks", "2"])
    wait_for_steps(process, tmp_path, 4)
    supervisor = psutil.Process(process.pid)
    ranks = supervisor.children()
    os.kill(process.pid, signal.SIGTSTP)
    time.sleep(1)
    assert [each.status() for each in (supervisor, *ranks)] == [psutil.STATUS_STOPPED] * 3
    before = logged_steps(tmp_path)
    os.kill(process.pid, signal.SIGCONT)
    wait_for_steps(process, tmp_path, before + 1)
    os.kill(process.pid, signal.SIGUSR2)
    time.sleep(3)
    wait_for_steps(process, tmp_path, logged_steps(tmp_path) + 1)
    process.kill()
    _, said = process.communicate(timeout=20)
    assert "--- rank 0 (process" in said and "--- rank 1 (process" in said and said.count("train/loop.py") >= 2, said
    assert psutil.wait_procs(ranks, timeout=20)[1] == []


def test_the_log_has_lines_before_torch_is_imported(lab, tmp_path):
    """Killed after two seconds, the stage has said that it started; its supervisor never loads torch."""
    with (tmp_path / "log").open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "nanochat", *lab.base(tmp_path / "out")], stderr=log)
        while not (tmp_path / "log").read_text() and time.monotonic() - started < 2:
            time.sleep(0.01)
        first = time.monotonic() - started
        time.sleep(max(0.0, started + 2 - time.monotonic()))
        maps = Path(f"/proc/{process.pid}/maps")
        loaded = maps.read_text() if maps.exists() else ""
        process.kill()
        process.wait()
    assert "base_train: starting 1 process" in (tmp_path / "log").read_text()
    assert first < 1.5 and "libtorch" not in loaded


def test_a_wrong_request_is_said_once_by_all_ranks(lab, tmp_path):
    said = run([*lab.base(tmp_path, horizon={"steps": 3, "batch_tokens": 7}), "--ranks", "2"], 2)
    assert said.count("nanochat: error") == 1 and "Traceback" not in said, said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--step-limit", "-1"], "--step-limit: -1 is not at least 0"),
        (["--ranks", "0"], "--ranks: 0 is not above 0"),
        (["--ranks", "two"], "--ranks: 'two' is not a whole number; see nanochat base_train --help"),
        (["--nodes", "2"], "--rendezvous=None: with --nodes=2 every node needs HOST:PORT of node 0"),
        (["--nodes", "2", "--rendezvous", "here"], "--rendezvous=here"),
        (["--nodes", "2", "--node-rank", "2", "--rendezvous", "here:1"], "--node-rank=2: there are 2 nodes"),
    ],
)
def test_wrong_flags_of_the_supervisor_are_one_sentence(lab, tmp_path, flags, words):
    said = run([*lab.base(tmp_path), *flags], 2)
    assert words in said and len(said.splitlines()) == 1


def test_limits_are_no_part_of_a_stage(lab, undisturbed):
    """Housekeeping: other limits, the same finished work."""
    said = run([*lab.base(undisturbed[1]), "--step-limit", "7", "--startup-limit", "0", "--pause-limit", "3", "--expected-tokens-per-s", "1e9"])
    assert "nothing to do" in said
    assert "limit" not in json.dumps(json.loads((undisturbed[1] / "config.json").read_text()))
