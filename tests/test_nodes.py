"""Several machines as one: supervisors on loopback that start their ranks, agree on the end, and train what one process trains."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import warm
from test_watchdog import wait_for_steps
from training_lab import SEQUENCE_LEN, Lab, metrics, run
from workspace import Workspace

from nanochat.errors import Stopped, UserError
from nanochat.launch.flags import read_launch_flags
from nanochat.launch.nodes import SILENT_S, Follower, Leader, NodeLostError, Report, Verdict, fingerprint
from nanochat.progress import Place

FAULTY = Path(__file__).with_name("faulty.py")
STEPS = 6
SIX_STEPS = {"horizon": {"steps": STEPS, "batch_tokens": 12 * SEQUENCE_LEN}, "micro_batch_rows": 1, "validate_every": 3}
MANY_STEPS = {"horizon": {"steps": 100_000, "batch_tokens": 8 * SEQUENCE_LEN}, "save_every_s": 1000.0}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def connected(port: int) -> socket.socket:
    """A connection to a port, as soon as somebody listens there."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.05)


def start_nodes(command: list[str], ranks: tuple[int, ...], fault: str = "none", step: int = 0, *more: str) -> "list[subprocess.Popen[str]]":
    """One supervisor for each node; `ranks` of each."""
    nodes = [] if len(ranks) == 1 else ["--nodes", str(len(ranks)), "--rendezvous", f"127.0.0.1:{free_port()}"]
    return [
        warm.Popen(
            [sys.executable, str(FAULTY), fault, str(step), *command, *nodes, "--node-rank", str(node), "--ranks", str(count), *more],
            stderr=subprocess.PIPE,
            text=True,
        )
        for node, count in enumerate(ranks)
    ]


def ends(processes: "list[subprocess.Popen[str]]") -> tuple[list[int], list[str]]:
    """(exit codes, what each has said)."""
    said = [process.communicate(timeout=200)[1] for process in processes]
    return [process.returncode for process in processes], said


def rows_seen(folder: Path) -> dict[int, list[int]]:
    """Rows of every step, over all ranks, in order."""
    lines = [line.split() for notes in folder.glob("rows.*") for line in notes.read_text().splitlines()]
    return {step: sorted(int(row) for number, row in lines if int(number) == step) for step in range(STEPS)}


@pytest.fixture(scope="module")
def alone(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank on one node."""
    folder = tmp_path_factory.mktemp("alone")
    codes, said = ends(start_nodes(lab.base(folder, **SIX_STEPS), (1,), "note_rows"))
    assert codes == [0], said
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2,), (1, 1), (4,), (2, 2), (2, 1)], ids=lambda ranks: "+".join(map(str, ranks)))
def test_ranks_over_nodes_see_the_same_rows_and_learn_the_same(ranks, lab, alone, tmp_path):
    codes, said = ends(start_nodes(lab.base(tmp_path, **SIX_STEPS), ranks, "note_rows"))
    assert codes == [0] * len(ranks), said
    assert f"x {sum(ranks)} ranks" in said[0]
    [attempt] = json.loads((tmp_path / "provenance.json").read_text())["attempts"]
    assert (attempt["world_size"], attempt.get("nodes", 1)) == (sum(ranks), len(ranks))
    assert len(list(tmp_path.glob("rows.*"))) == sum(ranks)
    assert rows_seen(tmp_path) == rows_seen(alone) and all(len(set(rows)) == 12 for rows in rows_seen(alone).values())
    for figure in ("loss", "val_loss", "val_bpb"):
        one, many = ([line[figure] for line in metrics(folder) if figure in line] for folder in (alone, tmp_path))
        assert len(one) >= 2 and many == pytest.approx(one, abs=1e-6, rel=1e-6), figure


@pytest.mark.slow
def test_a_node_that_is_asked_to_stop_stops_all_with_the_state_saved(lab, tmp_path):
    """The state goes on with another number of ranks."""
    processes = start_nodes(lab.base(tmp_path, **MANY_STEPS), (1, 1))
    wait_for_steps(processes[0], tmp_path, 3)
    os.kill(processes[1].pid, signal.SIGTERM)
    codes, said = ends(processes)
    assert codes == [75, 75] and "state saved" in said[0] and "Traceback" not in "".join(said), said
    last = max(line["step"] for line in metrics(tmp_path))
    code = "stopped (time limit) at step"
    goes_on = run([*lab.base(tmp_path, **MANY_STEPS), "--max-seconds", "3", "--ranks", "1"], 75)
    assert f"resumed at step {last}" in goes_on and code in goes_on


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["supervisor of node 0", "supervisor of node 1", "rank of node 1"])
def test_whatever_is_killed_on_one_node_ends_all_with_75_and_leaves_no_process(victim, lab, tmp_path):
    processes = start_nodes(lab.base(tmp_path, **MANY_STEPS), (1, 1))
    wait_for_steps(processes[0], tmp_path, 2)
    ranks = [psutil.Process(process.pid).children()[0] for process in processes]
    node = int(victim[-1])
    os.kill(ranks[1].pid if victim.startswith("rank") else processes[node].pid, signal.SIGKILL)
    codes, said = ends(processes)
    assert codes == ([75, 75] if victim.startswith("rank") else [-9 if place == node else 75 for place in (0, 1)]), said
    assert {"s": f"node {node} is gone", "r": "rank 1 was ended by SIGKILL"}[victim[0]] in said[0 if victim[0] == "r" else 1 - node]
    assert psutil.wait_procs(ranks, timeout=20)[1] == []


@pytest.mark.slow
def test_a_rank_that_stands_still_on_one_node_ends_all_with_stacks(lab, tmp_path):
    codes, said = ends(start_nodes(lab.base(tmp_path), (1, 1), "sleep", 6, "--step-limit", "5"))
    assert codes == [75, 75], said
    assert "no progress for 5 s (limit 5 s), rank 1 of 2 is behind" in said[0]
    assert "--- rank 0 (process" in said[0] and "in all_reduce" in said[0]
    assert "--- rank 1 (process" in said[1] and "in sleep" in said[1]


@pytest.mark.slow
def test_a_refused_request_is_said_once_and_ends_all_nodes_with_2(lab, tmp_path):
    codes, said = ends(start_nodes(lab.base(tmp_path, horizon={"steps": 2, "batch_tokens": 7}), (1, 1)))
    assert codes == [2, 2] and "".join(said).count("nanochat: error") == 1 and "batch_tokens=7: not a multiple" in said[0], said


# --- meeting ---------------------------------------------------------------------------------------------------------


def flags_of(node: int, port: int, *more: str) -> tuple[Namespace, list[str]]:
    arguments = ["--nodes", "2", "--rendezvous", f"127.0.0.1:{port}", "--node-rank", str(node), *more]
    return read_launch_flags("base_train", arguments), arguments


def test_a_node_that_never_comes_is_named():
    flags, arguments = flags_of(0, free_port(), "--startup-limit", "0.6")
    with pytest.raises(Stopped, match=r"nodes 1 of 2 have not come to 127.0.0.1:\d+ for 1 s; check that every node was started"):
        Leader.meet(flags, arguments, lambda: False)
    flags, arguments = flags_of(1, free_port(), "--startup-limit", "0.6")
    with pytest.raises(Stopped, match=r"node 0 has not answered at 127.0.0.1:\d+ for 1 s"):
        Follower.meet(flags, arguments, lambda: False)


def test_waiting_for_nodes_can_be_stopped():
    flags, arguments = flags_of(0, free_port(), "--startup-limit", "0")
    with pytest.raises(Stopped, match="stopped before all nodes had met"):
        Leader.meet(flags, arguments, lambda: True)


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        flags, arguments = flags_of(0, port)
        with pytest.raises(UserError, match=f"--rendezvous: port {port} of this machine cannot be used"):
            Leader.meet(flags, arguments, lambda: False)


def test_a_stranger_and_a_node_with_another_command_are_sent_away(lab, tmp_path):
    """The right node is still let in after them."""
    _, arguments = flags_of(0, port := free_port())
    leader = warm.Popen([sys.executable, "-m", "nanochat", *lab.base(tmp_path, **SIX_STEPS), *arguments], stderr=subprocess.PIPE, text=True)
    stranger = connected(port)
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    stranger.close()
    _, own = flags_of(1, port)
    said = run([*lab.base(tmp_path, **{**SIX_STEPS, "validation_rows": 4}), *own], 2)
    assert "the command differs from that of node 0; give every node the same command but for --node-rank" in said
    assert run([*lab.base(tmp_path, **SIX_STEPS), *own]) and leader.communicate(timeout=100)[1] and leader.returncode == 0


@pytest.fixture
def pair() -> "Iterator[tuple[Leader, Follower]]":
    """Node 0 and node 1, met."""
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        flags, arguments = flags_of(1, port)
        follower = pool.submit(Follower.meet, flags, arguments, lambda: False)
        flags, arguments = flags_of(0, port)
        leader = Leader.meet(flags, arguments, lambda: False)
        yield leader, follower.result()
    for line in (leader.lines[0], follower.result().line):
        line.connection.close()


def talk(leader: Leader, follower: Follower, seconds: float) -> None:
    """Both sides exchange what they have to say, for so long."""
    for _ in range(round(seconds)):
        follower.exchange(Report({1: Place(beats=1)}), 1.0)
        time.sleep(0.005)
        assert leader.exchange(Report({0: Place()}), 1.0).places[1].beats == 1
        time.sleep(0.005)


def test_nodes_that_have_nothing_to_say_are_not_taken_for_lost(pair):
    talk(*pair, seconds=3 * SILENT_S)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_node_that_says_nothing_for_a_minute_is_lost(pair, silent):
    """Its connection is open, and its machine or its process stands still."""
    leader, follower = pair
    talk(leader, follower, 1.0)
    other, words = (follower, "node 0 has said nothing for 60 s") if silent == 0 else (leader, "node 1 has said nothing for 60 s")
    other.exchange(Report(), 0.0)
    other.exchange(Report(), SILENT_S - 1)
    with pytest.raises(NodeLostError, match=words):
        other.exchange(Report(), 2.0)


def test_the_end_is_heard_even_if_node_0_leaves_right_after_it(pair):
    leader, follower = pair
    follower.exchange(Report({1: Place()}), 0.1)
    leader.tell(end=asdict(Verdict(75, "as asked")))
    leader.lines[0].connection.close()
    time.sleep(0.05)
    assert Verdict(**follower.exchange(Report(), 0.1)[-1]["end"]) == Verdict(75, "as asked")


def test_a_node_that_left_while_others_were_awaited_may_come_again():
    flags, arguments = flags_of(0, port := free_port())
    flags.nodes = 3

    def knock(node: int, ranks: int) -> socket.socket:
        connection = connected(port)
        connection.sendall(json.dumps({"node": node, "ranks": ranks, "nodes": 3, "request": fingerprint(arguments)}).encode() + b"\n")
        return connection

    with ThreadPoolExecutor(1) as pool:
        met = pool.submit(Leader.meet, flags, arguments, lambda: False)
        with knock(1, 7):
            time.sleep(0.2)
        with knock(1, 2), knock(2, 4):
            leader = met.result(timeout=20)
    assert leader.group.world_size == 1 + 2 + 4
    for line in leader.lines:
        line.connection.close()


def test_what_may_differ_between_nodes_is_no_part_of_the_request():
    one = ["base_train", "--config", "{}", "--node-rank", "0", "--ranks", "4", "--max-seconds", "5"]
    other = ["base_train", "--config", "{}", "--node-rank=1", "--ranks", "8", "--threads", "3", "--max-seconds", "5"]
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint([*one[:-1], "6"])


# --- the workflow -----------------------------------------------------------------------------------------------------


@pytest.mark.workflow
def test_a_rule_of_several_nodes_counts_the_gpus_of_each_and_refuses_those_of_all(empty_workspace: Workspace):
    """What follows on a real SLURM is in test_slurm_nodes.py."""
    plan = ("--dry-run", "--printshellcmds", "base", "--set-resources", "base_train:nodes=2")
    told = empty_workspace.snakemake(*plan, "base_train:gres=gpu:a100:4")
    assert "on_nodes 2 4 nanochat base_train" in told.stdout and '--ranks "$(ranks 4)"' in told.stdout, told.stderr
    refused = empty_workspace.snakemake(*plan, "base_train:gpu=8")
    assert refused.returncode == 2
    cure = "with several nodes give gres (as in gpu:a100:8, of each node) in place of gpu and gpu_model"
    assert f"nanochat: error: profile: base_train.nodes=2, gpu=8: {cure}\n" in refused.stderr


# --- torchrun ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_torchrun_trains_the_same_without_a_supervisor(lab, alone, tmp_path):
    """It has limits too: a rank without progress writes its stacks, again and again, and torchrun is left to end it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run([*torchrun, "-m", "nanochat", *lab.base(tmp_path, **SIX_STEPS)], stderr=subprocess.PIPE, text=True, timeout=200, check=False)
    assert done.returncode == 0 and "x 2 ranks" in done.stderr and "supervised" not in done.stderr, done.stderr
    one, two = ([line["loss"] for line in metrics(folder) if "loss" in line] for folder in (alone, tmp_path))
    assert two == pytest.approx(one, rel=1e-6)
    assert "Timeout" not in done.stderr


@pytest.mark.slow
def test_below_torchrun_a_rank_without_progress_writes_its_stacks(lab, tmp_path):
    command = [str(FAULTY), "sleep", "3", *lab.base(tmp_path), "--step-limit", "3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    process = subprocess.Popen([*torchrun, *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "in sleep" in line and "Timeout" in said:
            break
    for rank in psutil.Process(process.pid).children():
        rank.kill()
    process.communicate(timeout=60)
    assert "Timeout (0:00:03)!" in said
