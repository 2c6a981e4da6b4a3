"""Real commands, real processes, and no import of torch or snakemake for each: forked from a server that has imported it already.

A stage that trains spends two seconds of processor time on `import torch`, a dry run two thirds of its time on snakemake, and the tests
start both hundreds of times. The servers know third-party modules alone: the code under test is imported by each command, from the
checkout that it runs in. Nothing of a server's but those modules is left in a command: arguments, environment, folder, files and exit
code are its own, and it is a child of the test that can be waited for, signalled and killed like any other. What it starts in
turn with the same Python (the ranks of a supervisor, the dry run of a plan) is forked likewise.

What the start itself is about is started without: its cost, what is imported, what Python and OpenMP read from the environment. Commands of
one server share a seed of Python's hashes, so that a result with which others are compared is made without too.
Snakemake looks for executor plugins while it is imported: a test that brings one starts the command itself.
"""

import atexit
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from warm_server import Forking, ask

SNAKEMAKE = ("snakemake.cli", "snakemake.report.html_reporter", "snakemake_executor_plugin_slurm", "smart_open", "requests", "pydantic", "psutil", "filelock")
TORCH = ("torch", "numpy", "pydantic", "yaml", "filelock", "psutil", "safetensors.numpy", "safetensors.torch", "tiktoken", "tiktoken_ext.openai_public", "tqdm")
READ_AT_THE_START = ("PYTHON", "LC_", "LANG", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "LD_", "MALLOC_")
READ_BY_EACH = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
REAPER_OF_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER
ONE_AT_A_TIME = Lock()


@cache
def server(modules: tuple[str, ...]) -> Path:
    """The door of the server of this process that has imported these modules."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    environment = {name: value for name, value in os.environ.items() if name not in READ_BY_EACH}
    one_thread = {**environment, "OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000")}
    command = [sys.executable, str(Path(__file__).with_name("warm_server.py")), str(folder / "door"), *modules]
    process = subprocess.Popen(command, env=one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    program = folder / "nanochat"
    program.write_text(f"#!{sys.executable} -IS\n" + Path(__file__).with_name("warm_client.py").read_text(encoding="utf-8"), encoding="utf-8")
    program.chmod(0o755)
    atexit.register(shutil.rmtree, folder)
    atexit.register(process.communicate)  # which ends it
    return folder / "door"


def with_warm_jobs(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which `nanochat` is forked too, by a program that stands in for it until it has ended."""
    with ONE_AT_A_TIME:
        folder = server(TORCH).parent
    return {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}


class Popen(Forking):
    """`subprocess.Popen` of a command in Python: forked from a server, where that makes no difference to it."""

    def __init__(self, command: list[str], *, modules: tuple[str, ...] = TORCH, **keywords: Any) -> None:
        self.modules = modules
        super().__init__(command, **keywords)

    def _can(self, asked: dict[str, Any]) -> bool:
        return sys.platform == "linux" and asked["preexec_fn"] is None and not asked["pass_fds"] and not differs(asked["env"])

    def _fork(self, request: dict[str, Any], files: list[int], asked: dict[str, Any]) -> int:
        with ONE_AT_A_TIME, socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(server(self.modules)))
            reap_orphans(True)
            try:
                child = ask(connection, {**request, "leave": True}, files)
                assert connection.recv(1) == b"", "its first parent has ended"
            finally:
                reap_orphans(False)
            return child


def differs(environment: "dict[str, str] | None") -> bool:
    """Whether this environment has other values than that of the servers where a program looks when it starts."""
    if environment is None:
        return False
    names = {name for name in {*environment, *os.environ} if name.startswith(READ_AT_THE_START) and name not in READ_BY_EACH}
    return any(environment.get(name) != os.environ.get(name) for name in names)


def reap_orphans(on: bool) -> None:
    """Whether orphans below this process become its children."""
    assert ctypes.CDLL(None).prctl(REAPER_OF_ORPHANS, int(on), 0, 0, 0) == 0


def run(command: list[str], *, timeout: float, modules: tuple[str, ...] = TORCH, typed: str | None = None, **keywords: Any) -> Any:
    """`subprocess.run` with its output captured as text."""
    typing = {} if typed is None else {"stdin": subprocess.PIPE}
    with Popen(command, modules=modules, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **typing, **keywords}) as process:
        try:
            said = process.communicate(typed, timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, *said)


def snakemake(arguments: tuple[str, ...], folder: Path, environment: dict[str, str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` does with `snakemake ARGUMENTS`, its output captured."""
    script = str(Path(sys.executable).with_name("snakemake"))
    done: subprocess.CompletedProcess[str] = run([script, *arguments], timeout=timeout, modules=SNAKEMAKE, cwd=folder, env=environment)
    return done
