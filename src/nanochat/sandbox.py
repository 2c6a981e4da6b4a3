"""Runs programs that a model wrote, each in a fresh Python process that can do little harm.

Always: an empty environment and working folder, no stdin, limits on time, memory, file size and processes, output capped,
and everything the program started is killed at its end. Where the system grants it: no network, its own process table, every
file read-only (Linux with namespaces); writes in its own folder alone (Linux 6.2 with Landlock, which asks for no namespaces);
and one process that cannot make others (Linux with seccomp), so that its limit of memory is the limit of all that it takes; on
top come the small memory disk and the buffers of its open files, some 100 MB, and the kernel's tables of its memory, which a
program that spreads it out can make as large again.
An execution says which of these held; scores carry it.

Not promised: a program can read files that its user can read, and one that is written to find the password in its own
process can claim to have passed. It is a fence around clumsy code, not a prison for an attacker.
"""

import functools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CHILD = Path(__file__).with_name("sandbox_child.py")
MEMORY_MEGABYTES = 512
DISK_MEGABYTES = 16
PROCESSES = 16  # and threads, which count as processes
ONE_PROCESS = True  # False: as on a system without seccomp
WALL_S = 30.0  # by the clock: far more than the seconds of computing, for a program on a busy machine
OUTPUT_KEPT_BYTES = 64 << 10
OUTPUT_MAX_BYTES = 1 << 20  # a program that writes more is ended
REPORT_MAX_BYTES = 4 << 10  # of the child, a few words; a program that finds the way it is sent and writes to it is ended too
GRACE_S = 5.0  # start-up and clean-up, on top of the program's own time
PROTECTIONS = {
    "limits": f"limits on time, memory ({MEMORY_MEGABYTES} MB of each process), size of each file ({DISK_MEGABYTES} MB) and processes ({PROCESSES})",
    "calls": f"one process and its threads, so {MEMORY_MEGABYTES} MB in all: the kernel refuses it others, and memory outside of it (seccomp)",
    "network": "no network (own network namespace)",
    "processes": "sees and signals its own processes only (own process namespace)",
    "files": "file system read-only but for a small memory disk (own mount namespace)",
    "folder": "writes in its own folder only (Landlock)",
    "user": "runs as a user of its own",
}


# cpu: it used up its computing time; timeout: the time by the clock, which can be the fault of a machine that is very busy
Outcome = Literal["passed", "failed", "cpu", "timeout", "memory", "output"]


@dataclass(frozen=True)
class Execution:
    """What became of a program. `passed`: it ran to its last line without an exception and without leaving early."""

    outcome: Outcome
    output: str
    granted: tuple[str, ...]  # keys of PROTECTIONS that held
    seconds: float

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run(program: str, *, cpu_s: float = 5.0, wall_s: float = WALL_S) -> Execution:
    """Run `program`, the text of a Python module, for at most `cpu_s` of computing and `wall_s` by the clock, and say how it ended."""
    started = time.monotonic()
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="nanochat-sandbox-", ignore_cleanup_errors=True) as folder:
        request = {
            "program": program,
            "password": password,
            "folder": folder,
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "one_process": ONE_PROCESS,
            "memory_megabytes": MEMORY_MEGABYTES,
            "disk_megabytes": DISK_MEGABYTES,
            "processes": PROCESSES,
        }
        output, report = _supervise(json.dumps(request).encode(), folder, wall_s + GRACE_S)
    first = report[:REPORT_MAX_BYTES].decode(errors="replace").split("\n")[0]
    granted = tuple(json.loads(first)) if first.startswith("[") else ()
    text = output[:OUTPUT_KEPT_BYTES].decode(errors="replace")
    return Execution(_outcome(report, password, output, text), text, granted, time.monotonic() - started)


def _outcome(report: bytes, password: str, output: bytes, text: str) -> Outcome:
    if len(output) > OUTPUT_MAX_BYTES or len(report) > REPORT_MAX_BYTES:
        return "output"
    lines = report.decode(errors="replace").split("\n")[1:]
    if password in lines:
        return "passed"
    if "cpu" in lines:
        return "cpu"
    if "timeout" in lines or "ended" not in lines:
        return "timeout"
    return "memory" if text.rstrip().rsplit("\n", 1)[-1].startswith("MemoryError") else "failed"


def _supervise(request: bytes, folder: str, limit_s: float) -> tuple[bytes, bytes]:
    """Start the child, collect (output, report) until both end, the output is too long, or `limit_s` is over; then kill its group."""
    receive, send = os.pipe()
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-I", str(CHILD), str(send)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        pass_fds=(send,),
        start_new_session=True,
    )
    os.close(send)
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(request)
        child.stdin.close()
        return _collect(child.stdout.fileno(), receive, time.monotonic() + limit_s)
    except BrokenPipeError:  # the child died before it read its request
        return b"", b""
    finally:
        # with a process namespace the keeper dies with the group's leader, and the rest with the keeper
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        os.close(receive)


def _collect(output_file: int, report_file: int, deadline: float) -> tuple[bytes, bytes]:
    collected = {output_file: bytearray(), report_file: bytearray()}
    with selectors.DefaultSelector() as selector:
        for file in collected:
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                piece = os.read(key.fd, 1 << 16)
                collected[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
            if len(collected[output_file]) > OUTPUT_MAX_BYTES or len(collected[report_file]) > REPORT_MAX_BYTES:
                break
    return bytes(collected[output_file]), bytes(collected[report_file])


@functools.cache
def _probe() -> Execution:
    return run("assert True")


def unavailable() -> str | None:
    """Why programs cannot be run here, or None."""
    if not hasattr(os, "fork"):
        return f"programs cannot be run safely on {sys.platform}: no fork, no resource limits"
    probe = _probe()
    return None if probe.passed else f"the sandbox does not work here: a harmless program ended with {probe.outcome} {probe.output.strip()[-200:]!r}"


def protection(held: Collection[str]) -> dict[str, Any]:
    """Protections in words, for the record of a score; `held` are keys of PROTECTIONS."""
    return {
        "held": [text for key, text in PROTECTIONS.items() if key in held],
        "missing": [text for key, text in PROTECTIONS.items() if key not in held],
        "note": "programs can read what their user can read; a fence around clumsy code, not a prison for an attacker",
    }
