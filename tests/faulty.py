"""A stage in which something goes wrong on purpose: python tests/faulty.py FAULT STEP STAGE --flag ...

The real command line with one function replaced, in the ranks that the supervisor starts. Each fault happens in the
update after STEP, in the last rank. What the supervisor waits for at the end is shortened.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat import cli
from nanochat.launch import ranks, supervisor, watch

AFTER_STEP = int(sys.argv[2]) if __name__ == "__main__" else 0
SLOW_STEPS, SLOW_S = 3, 4.0  # about a hundred times slower than the steps of the lab


def block_on_data() -> None:
    threading.Event().wait()


def sleep() -> None:
    time.sleep(100_000)


def spin() -> None:
    while True:
        pass


def hold_the_lock_in_c() -> None:
    """Meanwhile no Python code of this process runs, in no thread."""
    ctypes.PyDLL(None).sleep(100_000)


def is_last_rank() -> bool:
    return int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1


def when_reading(fault: Callable[[], None]) -> None:
    """Before the rows of the update after STEP are read."""
    from nanochat.train.batches import TextBatches

    rows = TextBatches.rows

    def faulty(self: Any, step: int, positions: Any) -> Any:
        if step == AFTER_STEP and is_last_rank():
            fault()
        return rows(self, step, positions)

    TextBatches.rows = faulty  # type: ignore[method-assign]


def miss_a_collective() -> None:
    """One rank does not ask the others what to do, takes it that all have written the state, and waits for them to seal it."""
    from nanochat.runtime import Runtime

    highest = Runtime.highest
    calls = iter(range(10**9))

    def faulty(self: Runtime, *values: int) -> list[int]:
        is_question = len(values) == 3  # to stop, to save, still writing: asked once between two updates
        return [0] * 3 if is_question and next(calls) == AFTER_STEP and is_last_rank() else highest(self, *values)

    Runtime.highest = faulty  # type: ignore[method-assign]


def be_slow() -> None:
    """Some updates take a hundred times longer than the others."""
    from nanochat.train.batches import TextBatches

    rows = TextBatches.rows

    def faulty(self: Any, step: int, positions: Any) -> Any:
        if AFTER_STEP <= step < AFTER_STEP + SLOW_STEPS and is_last_rank():
            time.sleep(SLOW_S / 2)  # in each of two micro-batches
        return rows(self, step, positions)

    TextBatches.rows = faulty  # type: ignore[method-assign]


def note_rows() -> None:
    """Every rank notes beside the manifest which rows of the data it read in which step."""
    import numpy as np

    from nanochat.train.batches import TextBatches

    rows, notes = TextBatches.rows, Path(sys.argv[sys.argv.index("--manifest") + 1]).with_name(f"rows.{os.environ['RANK']}")

    def noting(self: Any, step: int, positions: Any) -> Any:
        found = self.order.at(step * self.rows_per_step + np.asarray(positions, dtype=np.int64))
        with notes.open("a") as file:
            file.writelines(f"{step} {row}\n" for row in found)
        return rows(self, step, positions)

    TextBatches.rows = noting  # type: ignore[method-assign]


def block_at_the_start() -> None:
    from nanochat import artifacts

    verified_file = artifacts.verified_file

    def faulty(manifest: Path, name: str, *rest: Any) -> Path:
        if name == "tokens.bin":
            threading.Event().wait()
        return verified_file(manifest, name, *rest)

    artifacts.verified_file = faulty


FAULTS: dict[str, Callable[[], None]] = {
    "block_on_data": lambda: when_reading(block_on_data),
    "sleep": lambda: when_reading(sleep),
    "spin": lambda: when_reading(spin),
    "hold_the_lock_in_c": lambda: when_reading(hold_the_lock_in_c),
    "miss_a_collective": miss_a_collective,
    "be_slow": be_slow,
    "block_at_the_start": block_at_the_start,
    "note_rows": note_rows,
    "none": lambda: None,
}

if __name__ == "__main__":
    name, _, *arguments = sys.argv[1:]
    if "RANK" in os.environ:
        FAULTS[name]()
    else:
        ranks.command = lambda rest: [sys.executable, *sys.argv[:3], *rest]
        supervisor.STUCK_GRACE_S, watch.RECENT_S = 1.0, 4.0
        if name == "block_at_the_start":
            supervisor.STOPPED_GRACE_S = 3.0
    cli.main(arguments)
