"""The same function for many pieces of work, in other processes, with the results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from nanochat.errors import UserError

Result = TypeVar("Result")
WORKER_FILE_BYTES = 4_000_000  # a worker takes a second to start: not worth it for less compressed text


def worth_starting(wanted: int, file_bytes: int) -> int:
    """How many of the workers that are wanted are worth their start, for so many bytes of compressed text."""
    return min(wanted, 1 + file_bytes // WORKER_FILE_BYTES)


def in_order(function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """`function(*task)` of every task, in order. At most two per worker wait to be taken, so memory is bounded. One worker: this process."""
    if workers <= 1:
        yield from (function(*task) for task in tasks)
        return
    # spawn: a fork would copy the locks of pyarrow's threads in whatever state they are
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow_parent) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                pending.append(pool.submit(function, *task))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"--workers={workers}: a worker was killed, most likely for want of memory; use fewer workers or more memory") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a worker: leave ctrl-C to the stage, and end when the stage is killed instead of waiting for tasks for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
