"""The rows of the next step, read by a thread while this one is computed, so that a GPU never waits for a disk."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from nanochat.train.update import Batches, Rows


class Prefetched:
    """The same rows as `batches` in the same order: whatever is asked for at a step is read ahead for the next one.

    One thread reads everything, so that `batches` need not know of threads. What was read for nothing (the number of rows at a time has
    changed) is dropped.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        self.batches, self.steps = batches, steps
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: dict[tuple[int, tuple[int, ...]], Future[tuple[Rows, Rows]]] = {}

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs and targets (n, T) at these positions of a step."""
        self._ahead = {key: future for key, future in self._ahead.items() if key[0] >= step}
        asked = step, tuple(positions)
        future = self._ahead.pop(asked, None) or self._reader.submit(self.batches.rows, *asked)
        if step + 1 < self.steps:
            self._ahead[step + 1, asked[1]] = self._reader.submit(self.batches.rows, step + 1, asked[1])
        return future.result()
