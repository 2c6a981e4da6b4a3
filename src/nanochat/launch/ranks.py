"""The ranks of one machine as processes: started, told to stop, asked for their stacks, and ended for certain."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from nanochat.progress import STACKS_SIGNAL, Board, Place
from nanochat.runtime import Group, Handed, log, rank_environment

STACKS_WAIT_S = 2.0  # for the stacks of one rank; they come within milliseconds from a process that runs at all
KILLED_WAIT_S = 10.0  # a process that waits for a dead disk does not even die
TICK_S = 0.05


class Ranks:
    """`count` processes that run `nanochat ARGUMENTS`."""

    def __init__(self, arguments: Sequence[str], count: int, group: Group) -> None:
        self.first = group.first_rank
        # files without a name that live as long as the ranks: shared memory, and a page each for stacks
        memory, *self.stacks = (tempfile.TemporaryFile() for _ in range(1 + count))  # noqa: SIM115
        self.board = Board(memory.fileno(), count, create=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        parent = os.getpid()
        for local_rank, stacks in enumerate(self.stacks):
            handed = Handed(memory.fileno(), stacks.fileno(), count, local_rank)
            self.processes.append(
                subprocess.Popen(
                    command(arguments),
                    env=rank_environment(handed, group),
                    pass_fds=(handed.board, handed.stacks),
                    start_new_session=True,  # Ctrl-C reaches it once, through the supervisor, and not a second time from the terminal
                    preexec_fn=lambda: die_with(parent),
                )
            )
        memory.close()

    # --- where they are ----------------------------------------------------------------------------------------------

    def codes(self) -> dict[int, int]:
        """Exit codes of those that have ended, negative after a signal."""
        return {self.first + place: process.returncode for place, process in enumerate(self.processes) if process.poll() is not None}

    def places(self) -> dict[int, Place]:
        """Progress of every rank, those that have ended too."""
        return {self.first + place: self.board.read(place) for place in range(len(self.processes))}

    def running(self) -> "dict[int, subprocess.Popen[bytes]]":
        """Those that have not ended."""
        return {self.first + place: process for place, process in enumerate(self.processes) if process.poll() is None}

    # --- what is done to them ----------------------------------------------------------------------------------------

    def send(self, number: int) -> None:
        """Hand a signal on to all that run."""
        for process in self.running().values():
            process.send_signal(number)

    def pause(self, number: int) -> None:
        """Stop or continue whole process groups (SIGSTOP, SIGCONT)."""
        for process in self.running().values():
            _signal_group(process.pid, number)

    def say_stacks(self, places: Mapping[int, Place]) -> None:
        """Write the stacks of all threads of all ranks to the log, even while C code runs; of a stopped process, that it is stopped."""
        for rank, process in self.running().items():
            log(f"--- rank {rank} (process {process.pid}, {_state(process.pid)}), {places[rank]}:")
            if places[rank].beats:
                text = self._stacks_of(rank, process) or "no stacks: the process does not run (it was stopped by a signal, or waits for a disk)"
            else:
                text = "no stacks: Python has not come as far as our code"
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)

    def _stacks_of(self, rank: int, process: "subprocess.Popen[bytes]") -> str:
        file = self.stacks[rank - self.first]
        before, size, deadline = os.fstat(file.fileno()).st_size, -1, time.monotonic() + STACKS_WAIT_S
        process.send_signal(STACKS_SIGNAL)
        while time.monotonic() < deadline and (size <= before or os.fstat(file.fileno()).st_size != size):
            size = os.fstat(file.fileno()).st_size
            time.sleep(2 * TICK_S)
        return os.pread(file.fileno(), max(size - before, 0), before).decode(errors="replace").strip()

    def wait(self, grace_s: float) -> bool:
        """Whether all end by themselves within `grace_s`."""
        deadline = time.monotonic() + grace_s
        while self.running() and time.monotonic() < deadline:
            time.sleep(TICK_S)
        return not self.running()

    def kill(self) -> None:
        """End whatever is left of them, with the processes that they have started."""
        for process in self.processes:
            _signal_group(process.pid, signal.SIGKILL)
        for process in self.processes:
            try:
                process.wait(KILLED_WAIT_S)
            except subprocess.TimeoutExpired:
                log(f"process {process.pid} does not die ({_state(process.pid)}); it is left to the operating system")


def command(arguments: Sequence[str]) -> list[str]:
    """The command of a rank."""
    return [sys.executable, "-m", "nanochat", *arguments]


def die_with(parent: int) -> None:
    """In a child, before exec: ask Linux to kill it when its parent dies, so that no rank trains on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _state(pid: int) -> str:
    """What the operating system says of a process: running, sleeping, stopped, disk-sleep."""
    try:
        status: Any = psutil.Process(pid).status()
    except psutil.Error:
        return "gone"
    return str(status)
