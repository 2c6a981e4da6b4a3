"""How a download is shown and stopped: one Transfer for the files of a part, several threads add to it.

On a terminal a bar with bytes, rate and ETA; in a log a line every ten seconds. Little is fetched silently.
"""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

from nanochat.runtime import log

THREADS = 4  # downloads at a time: polite to the Hub, and enough for a fast line
LINE_EVERY_S = 10.0
RATE_LINES = 6  # the rate is that of the last minute
SMALL_BYTES = 10_000_000  # no bar below this

Result = TypeVar("Result")


class CancelledError(Exception):
    """The transfer was stopped, since another file failed or the user interrupted it."""


class Transfer:
    """Bytes of one part: how many there are, how many have come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.total = self.done = 0
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.bar: Any = None
        self.samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=RATE_LINES + 1)  # (when, done) of the last lines

    def expect(self, size: int, there: int) -> None:
        """A file of `size` bytes will come, of which `there` are here already."""
        with self.lock:
            self.total += size
            self.done += there

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress while this lasts."""
        if sys.stderr.isatty() and self.total - self.done >= SMALL_BYTES:
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, initial=self.done, desc=self.name, unit="B", unit_scale=True, dynamic_ncols=True)
        self.samples.clear()
        self.samples.append((time.monotonic(), self.done))
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()
                self.bar = None

    def add(self, size: int) -> None:
        """So many bytes have come; fewer than 0 if some had to be thrown away. Raises CancelledError if the transfer was stopped."""
        if self.stopped.is_set():
            raise CancelledError
        with self.lock:
            self.done += size
            if self.bar is not None:
                self.bar.update(size)
            elif (now := time.monotonic()) - self.samples[-1][0] >= LINE_EVERY_S:
                self.samples.append((now, self.done))
                log(self.line())

    def line(self) -> str:
        """name: 300.0 of 1,200.0 MB (25%), 10.0 MB/s, ETA 0:01:30"""
        (first, before), (now, done) = self.samples[0], self.samples[-1]
        rate = max(done - before, 0) / max(now - first, 1e-3)
        eta = f"ETA {timedelta(seconds=round((self.total - done) / rate))}" if rate else "no ETA"
        return f"{self.name}: {done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB ({100 * done / max(self.total, 1):.0f}%), {rate / 1e6:.1f} MB/s, {eta}"

    def say(self, message: str) -> None:
        """A log line that does not break the bar."""
        with self.lock:
            if self.bar is None:
                log(message)
                return
            with self.bar.external_write_mode(file=sys.stderr):
                log(message)

    def sleep(self, seconds: float) -> None:
        """Wait, unless the transfer is stopped: then CancelledError."""
        if self.stopped.wait(seconds):
            raise CancelledError


def in_threads(actions: Sequence[Callable[[], Result]], stopped: threading.Event) -> list[Result]:
    """Results of `actions`, a few at a time. The first failure, or Ctrl-C, is raised; `stopped` tells the others to end."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(action) for action in actions]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future.exception() for future in futures if future.done() and future.exception() is not None]
            if first := next((error for error in failed if not isinstance(error, CancelledError)), None):
                raise first
            return [future.result() for future in futures]
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
