"""Real commands, real processes, and no import of snakemake for each: forked from a server that has imported it already.

`snakemake --dry-run` takes two thirds of its time to import what never changes, and the tests start it hundreds of times. The
server knows third-party modules alone: the code under test is imported by each command, from the checkout that it runs in.
Nothing of the server's but those modules is left in a command: arguments, environment, folder, files and exit code are its own.
Snakemake looks for executor plugins while it is imported: a test that brings one starts the command itself.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

IMPORTED = ("snakemake.cli", "snakemake.report.html_reporter", "snakemake_executor_plugin_slurm", "smart_open", "requests", "pydantic", "psutil", "filelock")
ONE_AT_A_TIME = Lock()


@cache
def server() -> "subprocess.Popen[str]":
    """The server of this process."""
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a process of several threads cannot be forked
    process = subprocess.Popen([sys.executable, __file__], env=one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # which ends it
    return process


def snakemake(arguments: tuple[str, ...], folder: Path, environment: dict[str, str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` does with `snakemake ARGUMENTS`, its output captured."""
    process = server()
    assert process.stdin is not None and process.stdout is not None
    with ONE_AT_A_TIME, tempfile.TemporaryDirectory() as scratch, selectors.DefaultSelector() as answers:
        said = [Path(scratch, name) for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "folder": str(folder), "environment": environment, "said": [str(file) for file in said]}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answers.register(process.stdout, selectors.EVENT_READ)
        if not answers.select(timeout):
            process.kill()
            server.cache_clear()
            raise subprocess.TimeoutExpired(arguments, timeout, *(file.read_bytes() for file in said))
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *(file.read_text(encoding="utf-8") for file in said))


# --- the server: `python warm.py` ------------------------------------------------------------------------------------


def next_command() -> dict[str, Any]:
    """Import, then wait for requests: returns once for each, in a process of its own."""
    sys.path.remove(str(Path(__file__).parent))
    for module in IMPORTED:
        importlib.import_module(module)
    assert not any("nanochat" in module for module in sys.modules), "the code under test is the workspace's"
    gc.freeze()  # a command that looks for garbage would copy all the memory that it shares
    for line in sys.stdin:
        if not (child := os.fork()):
            request: dict[str, Any] = json.loads(line)
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def become(request: dict[str, Any]) -> None:
    """Take on everything that a command has of its own, and run it."""
    for number, file in enumerate([os.devnull, *request["said"]]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    script = Path(sys.executable).with_name("snakemake")
    sys.path[:0] = [str(script.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.orig_argv[1:] = sys.argv[:] = [str(script), *request["arguments"]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    become(next_command())
