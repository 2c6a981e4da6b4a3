"""What every rank tells its supervisor: how far it has come, in memory that both share, and where its threads stand.

A process is alive as long as it exists; only one that moves on counts. So whatever does the work bumps the record, at each
named phase and each piece (a micro-batch, a validation batch, four hashed megabytes), and never a thread that only reports.
A bump costs five microseconds. In a process without a supervisor (below torchrun) the same bumps push back a timer
that writes the stacks of all threads when it runs out.
"""

import contextlib
import faulthandler
import mmap
import os
import signal
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from nanochat.runtime import handed_over, own_rank, under_torchrun

Item = TypeVar("Item")

START_UP = ("boot", "import", "config", "join", "data", "model", "first step")
STEP = "step"
PAUSES = ("validate", "sample", "save", "write")
PHASES = (*START_UP, STEP, *PAUSES)  # a record holds the index
BEFORE_JOINING = START_UP.index("join")
STACKS_SIGNAL = signal.SIGUSR2  # SIGUSR1 asks to save and stop
RECORD = struct.Struct("=QQQQQd")
SLOT = 64  # bytes, a cache line
REARM_S = 1.0  # the timer of a process on its own is pushed back at most so often: it costs a thread each time
TURN_S = 0.02
SPEAK_S = 10.0


class Place(NamedTuple):
    """Where a rank is. `beats` grows with each sign of progress; `pieces` of work are counted within a phase."""

    beats: int = 0
    phase_index: int = 0
    step: int = 0  # finished updates
    pieces: int = 0
    batch_tokens: int = 0  # of one update, all ranks together; 0 until it is known
    update_s: float = 0.0  # spent in the updates of this process

    @property
    def phase(self) -> str:
        """Name of the phase."""
        return PHASES[self.phase_index]

    @property
    def order(self) -> tuple[int, int, int]:
        """Of two ranks, the one with the smaller order is behind."""
        return min(self.phase_index, PHASES.index(STEP)), self.step, self.pieces

    def __str__(self) -> str:
        return f"phase {self.phase}" + (f" after {self.step} steps" if self.step else "") + (f", piece {self.pieces}" if self.pieces else "")


@dataclass(frozen=True)
class Limits:
    """Seconds without any progress after which a run counts as stuck; 0: never."""

    startup_s: float = 900.0
    step_s: float = 60.0  # and never less than ten times the recent median
    pause_s: float = 1800.0

    def of(self, phase: str, step_median_s: float = 0.0) -> float:
        """The limit in a phase; infinite where there is none."""
        if phase == STEP and self.step_s:
            return max(self.step_s, 10 * step_median_s)
        limit = self.step_s if phase == STEP else self.pause_s if phase in PAUSES else self.startup_s
        return limit or float("inf")


class Board:
    """Shared memory of the ranks of one machine: a header with the word to go, then a record each."""

    def __init__(self, handle: int, ranks: int, *, create: bool = False) -> None:
        size = SLOT * (1 + ranks)
        if create:
            os.ftruncate(handle, size)
        self.memory = mmap.mmap(handle, size)

    def read(self, local_rank: int) -> Place:
        """Where a rank is."""
        return Place(*RECORD.unpack_from(self.memory, SLOT * (1 + local_rank)))

    def write(self, local_rank: int, place: Place) -> None:
        """Say where a rank is."""
        RECORD.pack_into(self.memory, SLOT * (1 + local_rank), *place)

    @property
    def is_open(self) -> bool:
        """Whether rank 0 has accepted the request, so that the others may read it too."""
        return self.memory[0] != 0

    def open(self) -> None:
        """Let the other ranks begin."""
        self.memory[0] = 1


class Reporter:
    """The progress of this process. `board` None: nobody reads it."""

    def __init__(self, board: Board | None = None, local_rank: int = 0) -> None:
        self.board, self.local_rank, self.place = board, local_rank, Place()
        self.limits: Limits | None = None  # of the timer of a process on its own
        self.armed_at, self.armed_s = 0.0, 0.0
        self.updates = 0

    def bump(self, place: Place) -> None:
        """Record progress."""
        self.place = place._replace(beats=self.place.beats + 1)
        if self.board is not None:
            self.board.write(self.local_rank, self.place)
        elif self.limits is not None:
            self._push_back(self.limits)

    def _push_back(self, limits: Limits) -> None:
        place, now = self.place, time.monotonic()
        limit = limits.of(place.phase, place.update_s / max(1, self.updates))
        if limit == self.armed_s and now - self.armed_at < REARM_S:
            return
        self.armed_at, self.armed_s = now, limit
        faulthandler.cancel_dump_traceback_later()
        if limit < float("inf"):
            faulthandler.dump_traceback_later(limit, repeat=True)


_here = Reporter()


def attach() -> None:
    """Begin to report, if this process is a rank: to its supervisor or, below torchrun, to a timer (see `watch_alone`)."""
    global _here
    if not under_torchrun():
        return
    faulthandler.enable()
    given = handed_over()
    if given is None:
        faulthandler.register(STACKS_SIGNAL)
        return
    faulthandler.register(STACKS_SIGNAL, file=given.stacks)
    _here = Reporter(Board(given.board, given.ranks), given.local_rank)


def watch_alone(limits: Limits) -> None:
    """In a rank without a supervisor: write the stacks of all threads to stderr after so long without progress."""
    if under_torchrun() and _here.board is None:
        _here.limits = limits
        beat()


def wait_for_turn() -> None:
    """Ranks other than 0 wait until it has accepted the request: what is wrong is said once, and a finished stage is adopted once."""
    if _here.board is not None and own_rank() != 0:
        while not _here.board.is_open:
            time.sleep(TURN_S)


def let_rank_0_speak() -> None:
    """What rank 0 refuses as well is said by it alone: the supervisor ends the others while they wait here."""
    if _here.board is not None and own_rank() != 0:
        time.sleep(SPEAK_S)


def enter(phase: str, *, batch_tokens: int | None = None) -> None:
    """A phase begins."""
    place = _here.place
    _here.bump(place._replace(phase_index=PHASES.index(phase), pieces=0, batch_tokens=place.batch_tokens if batch_tokens is None else batch_tokens))


@contextlib.contextmanager
def pause(phase: str) -> Iterator[None]:
    """Something else between two updates; then the updates go on."""
    enter(phase)
    yield
    enter(STEP)


def beat() -> None:
    """A piece of the phase's work is done."""
    _here.bump(_here.place._replace(pieces=_here.place.pieces + 1))


def finished_update(step: int, seconds: float) -> None:
    """Update number `step` (from 1) is done; the next one begins."""
    place = _here.place
    _here.updates += 1
    _here.bump(place._replace(phase_index=PHASES.index(STEP), step=step, pieces=0, update_s=place.update_s + seconds))


def each(items: Iterable[Item]) -> Iterator[Item]:
    """The items; whoever comes for the next one has made progress."""
    for item in items:
        yield item
        beat()
