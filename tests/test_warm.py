"""A forked command is like a started one: whatever a program can see of its start is the same, and so is how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm

FEW = ("pydantic",)  # of a server that is there at once
TELL = """
import json, os, signal, sys, threading, time
import __main__
streams = [(s.encoding, s.errors, s.line_buffering, s.write_through, s.fileno(), s.isatty()) for s in (sys.stdin, sys.stdout, sys.stderr)]
handlers = {int(n): str(signal.getsignal(n)) for n in signal.valid_signals() if not callable(signal.getsignal(n)) or n == signal.SIGINT}
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "folder": os.getcwd(), "environment": dict(os.environ), "streams": streams,
    "files": sorted(map(int, os.listdir("/proc/self/fd")))[:3], "more files": len(os.listdir("/proc/self/fd")) - 4, "parent": os.getppid() == int(sys.argv[1]),
    "group": os.getpgid(0) == os.getpid() or os.getpgid(0), "session": os.getsid(0) == os.getpid() or os.getsid(0), "threads": threading.active_count(),
    "handlers": len(handlers), "interrupt": handlers[int(signal.SIGINT)].split(" at ")[0],
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "main": [__main__.__name__, __main__.__file__, str(__main__.__spec__), __name__], "typed": sys.stdin.read(), "limits": os.umask(0o22),
    "modules": sorted(name for name in sys.modules if "nanochat" in name or name.startswith("warm")), "bytes": sys.dont_write_bytecode,
    "zone": time.tzname,
}))
"""
NESTED = """
import signal, subprocess, sys, os
import nanochat.errors
signal.signal(signal.SIGTERM, lambda *_: None)
leak = open(__file__)
os.set_inheritable(leak.fileno(), True)
print("first", end="")
sys.exit(subprocess.run([sys.executable, sys.argv[1], str(os.getpid()), *sys.argv[2:]], input=b"typed", cwd="/", start_new_session=True).returncode)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """A program of these words."""

    def write(words: str) -> str:
        path = tmp_path / f"program{len(list(tmp_path.iterdir()))}.py"
        path.write_text(words, encoding="utf-8")
        return str(path)

    return write


def both(command: list[str], **keywords: Any) -> list[tuple[int, str, str]]:
    """How a command ends and what it says, started and forked."""
    settings: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **keywords}
    found = []
    for popen in (subprocess.Popen, lambda command, **more: warm.Popen(command, modules=FEW, **more)):
        with popen(command, **settings) as process:
            said = process.communicate("typed", timeout=60)
        found.append((process.returncode, *said))
    return found


@pytest.mark.parametrize("session", [False, True])
def test_a_forked_command_sees_what_a_started_one_sees(script: Callable[[str], str], tmp_path: Path, session: bool) -> None:
    environment = {**os.environ, "OWN": "\udcff", "PYTHONPATH": f"/nowhere:{tmp_path}", "PYTHONUNBUFFERED": "1", "TZ": "Asia/Tokyo"}
    command = [sys.executable, script(TELL), str(os.getpid()), "--flag", "\u00e4"]
    started, forked = both(command, cwd=tmp_path, env=environment, start_new_session=session)
    assert started[0] == forked[0] == 0, forked[2]
    assert json.loads(forked[1]) == json.loads(started[1])
    assert json.loads(forked[1])["parent"] and json.loads(forked[1])["environment"]["OWN"] == "\udcff"


def test_what_a_forked_command_forks_sees_nothing_of_it(script: Callable[[str], str]) -> None:
    """Neither its modules nor its signal handlers nor its files, and what it had not yet written is not said twice."""
    command = [sys.executable, script(NESTED), script(TELL), "--flag"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # and without what readline adds behind Python's back
    started, forked = both(command, env=buffered)
    assert started[0] == forked[0] == 0, forked[2]
    assert (started[1].count("first"), forked[1].count("first")) == (1, 1)
    one, two = (json.loads(re.sub(r"first|(?<=\")\d+(?=\", \"--flag\")", "", said)) for _, said, _ in (started, forked))
    assert two == one and one["more files"] == 0 and one["session"] is True and one["folder"] == "/"


@pytest.mark.parametrize(
    ("words", "code"),
    [("raise SystemExit(75)", 75), ("1 / 0", 1), ("import sys; sys.exit('a sentence')", 1), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)],
)
def test_a_forked_command_ends_like_a_started_one(script: Callable[[str], str], words: str, code: int) -> None:
    inner = script(words)
    for command in (
        [sys.executable, inner],
        [sys.executable, script(f"import subprocess, sys; print(subprocess.run([sys.executable, {inner!r}]).returncode)")],
    ):
        started, forked = both(command)
        assert forked[:2] == started[:2] and forked[2].splitlines()[-1:] == started[2].splitlines()[-1:]
    assert started[1] == f"{code}\n"


def test_a_forked_command_is_signalled_and_killed_by_its_number(script: Callable[[str], str]) -> None:
    process = warm.Popen([sys.executable, script("import time\nprint('up', flush=True)\ntime.sleep(100)")], modules=FEW, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    assert process.poll() is None and str(process.pid) in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM
    process.stdout.close()


def test_what_depends_on_the_start_is_started(script: Callable[[str], str]) -> None:
    """Other settings of Python itself, and what a test wants to do in the child before the program."""
    seeds = [sys.executable, script("import sys; print(sys.flags.hash_randomization, hash('a'))")]
    started, forked = both(seeds, env={**os.environ, "PYTHONHASHSEED": "3"})
    assert started == forked
    assert both(seeds, preexec_fn=lambda: os.nice(0))[1][0] == 0
    first, second = (both(seeds)[1] for _ in range(2))
    assert first == second, "otherwise commands of one server share a seed"


def test_a_job_that_is_stood_in_for_passes_on_its_files_its_exit_code_and_its_signals(tmp_path: Path) -> None:
    environment = warm.with_warm_jobs(dict(os.environ))
    done = subprocess.run(["bash", "-c", "nanochat nonsense; echo $?; nanochat --version"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("2\n0.") and done.stderr.startswith("nanochat: error: 'nonsense': no such verb")
    waiting = ["nanochat", "base_train", "--nodes", "2", "--rendezvous", "127.0.0.1:1", "--node-rank", "1", "--startup-limit", "0"]
    process = subprocess.Popen(waiting, env=environment, stderr=subprocess.PIPE, text=True, executable=Path(environment["PATH"].split(":")[0], "nanochat"))
    assert process.stderr is not None and "starting 1 process" in process.stderr.readline()
    time.sleep(0.2)
    process.terminate()
    assert "stopped before all nodes had met" in process.communicate(timeout=30)[1] and process.returncode == 75
