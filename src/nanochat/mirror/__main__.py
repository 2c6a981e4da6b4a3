"""The mirror's side: follow metrics.jsonl until the training ends, and write each line into one library's files.

Each start writes the whole file anew: what a resumed training has taken back stands nowhere twice, and what an earlier mirror
missed is made up for. stdin: the request as a line of JSON, then nothing; its end is the end of the training. stdout: what went wrong, one sentence.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.mirror.writers import WRITERS, Writer

POLL_S = 1.0
NICENESS = 10  # training comes first
LAST_S = 120  # after the end of a training that was killed, nobody else would end a library that hangs
WAIT_FOR_OTHER_S = 60.0


def main() -> None:
    """Write one mirror. Every failure is one sentence."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    request = json.loads(sys.stdin.buffer.readline())
    speak = os.dup(sys.stdout.fileno())
    silence = os.open(os.devnull, os.O_WRONLY)
    for chatty in (sys.stdout, sys.stderr):  # what libraries say is not ours to say
        os.dup2(silence, chatty.fileno())
    try:
        mirror(request)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(speak, sentence(request["kind"], error).encode(errors="replace"))
    os._exit(0)  # no thread and no exit handler of a library is waited for: `close` has written what there was


def sentence(kind: str, error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == kind:
        return f"not installed, so nothing is copied there; pip install 'nanochat[{kind}]'"
    words = " ".join(str(error).split())[:200]
    return f"given up ({type(error).__name__}{f': {words}' if words else ''})"


def mirror(request: dict[str, Any]) -> None:
    """Copy lines until the training has ended and all are copied."""
    folder = Path(request["folder"])
    with (folder / f".{request['kind']}.lock").open("w") as lock:
        _alone(lock.fileno())
        writer = WRITERS[request["kind"]](folder, request)
        with (folder / "metrics.jsonl").open("rb") as file:
            for lines in _growing(file):
                _write(writer, lines)
        writer.close()


def _write(writer: Writer, lines: list[dict[str, Any]]) -> None:
    for line in lines:
        values = {key: float(value) for key, value in line.items() if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)}
        if values:  # a bad step is told in words
            writer.write(int(line["step"]), values)
    if lines:
        writer.flush()


def _growing(file: Any) -> Iterator[list[dict[str, Any]]]:
    """Whole lines as they come, the last of them after the training has ended."""
    rest = b""
    while True:
        ended = _training_has_ended(0.0)
        *whole, rest = (rest + file.read()).split(b"\n")
        yield [json.loads(line) for line in whole if line.strip()]
        if ended:
            return
        if _training_has_ended(POLL_S):
            signal.alarm(LAST_S)


def _training_has_ended(wait_s: float) -> bool:
    """Whether the other end of stdin is closed."""
    readable, _, _ = select.select([sys.stdin.buffer], [], [], wait_s)
    return bool(readable)


def _alone(handle: int) -> None:
    """Wait for the mirror of a training that was killed a moment ago."""
    deadline = time.monotonic() + WAIT_FOR_OTHER_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S / 4)


if __name__ == "__main__":
    main()
