"""The rows of the next step, read and sent by a thread while this one is computed, so that a GPU waits neither for a disk nor for a copy."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from nanochat.train.update import Batches, Rows


class Prefetched:
    """The same rows as `batches` in the same order: whatever is asked for at a step is read ahead for the next one.

    One thread reads everything, so that `batches` need not know of threads. What was read for nothing (the number of rows at a time has
    changed) is dropped. `send`: what is done with rows that were read, such as to start a copy of them.
    """

    def __init__(self, batches: Batches, steps: int, send: Callable[[Rows], Rows] = lambda rows: rows) -> None:
        self.batches, self.steps, self.send = batches, steps, send
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: dict[tuple[int, tuple[int, ...]], Future[tuple[Rows, Rows]]] = {}

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs and targets (n, T) at these positions of a step."""
        self._ahead = {key: future for key, future in self._ahead.items() if key[0] >= step}
        asked = step, tuple(positions)
        future = self._ahead.pop(asked, None) or self._reader.submit(self._read, *asked)
        if step + 1 < self.steps:
            self._ahead[step + 1, asked[1]] = self._reader.submit(self._read, step + 1, asked[1])
        return future.result()

    def _read(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        inputs, targets = self.batches.rows(step, positions)
        return self.send(inputs), self.send(targets)
