"""The sandbox against programs that misbehave. Each is run for real; what the system does not grant is skipped by name."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nanochat import sandbox

pytestmark = pytest.mark.skipif(sandbox.unavailable() is not None, reason=str(sandbox.unavailable()))


def held(key: str) -> bool:
    return key in sandbox.run("pass").granted


@pytest.fixture
def several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without seccomp."""
    monkeypatch.setattr(sandbox, "ONE_PROCESS", False)


def mark() -> str:
    """A text that finds our own processes again in the process table."""
    return f"nanochat-test-{os.getpid()}-{time.monotonic_ns()}"


def running_with(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text in (folder / "cmdline").read_text() + (folder / "comm").read_text():
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_a_harmless_program_passes_and_its_output_is_kept() -> None:
    execution = sandbox.run("import math\nprint(math.factorial(5))\nassert math.factorial(5) == 120")
    assert execution.passed and execution.output == "120\n" and execution.seconds < 5


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "import sys; sys.exit(0)\nassert 1 == 2",
        "raise SystemExit\nassert 1 == 2",
        "import os; os._exit(0)\nassert 1 == 2",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\nassert 1 == 2",
        "def broken(:",
        "raise KeyboardInterrupt",
        "import ctypes; ctypes.string_at(0)\nassert 1 == 2",
        "def f(): return f()\nf()",
        "import atexit, os; atexit.register(os._exit, 0)\nassert 1 == 2",
        "import sys; sys.stdin.read(); input()",
    ],
)
def test_a_program_that_does_not_reach_its_end_fails(program: str) -> None:
    assert sandbox.run(program).outcome == "failed"


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os\nos.setsid() if os.getpid() != os.getsid(0) else None\nwhile True: pass",
    ],
)
def test_an_endless_program_is_ended_in_time(program: str) -> None:
    started = time.monotonic()
    assert sandbox.run(program, wall_s=0.5).outcome == "timeout"
    assert time.monotonic() - started < 4


def test_computing_time_is_told_from_time_by_the_clock() -> None:
    """A busy machine makes a program wait; it does not make it compute longer."""
    assert sandbox.run("while True: pass", cpu_s=0.5).outcome == "cpu"
    assert sandbox.run("import time\ntime.sleep(1.2)", cpu_s=1).passed


def test_endless_output_is_cut() -> None:
    execution = sandbox.run("while True: print('x' * 1000)")
    assert execution.outcome == "output" and len(execution.output) <= sandbox.OUTPUT_KEPT_BYTES


def test_a_program_cannot_take_the_memory_of_the_machine() -> None:
    assert sandbox.run("x = bytearray(2_000_000_000)").outcome == "memory"
    assert sandbox.run("x = []\nwhile True: x.append(bytearray(10_000_000))").outcome == "memory"


def test_a_program_cannot_fill_the_disk() -> None:
    assert sandbox.run("with open('big', 'wb') as f:\n    for _ in range(64): f.write(bytes(1_000_000))").outcome == "failed"


@pytest.mark.usefixtures("several_processes")
def test_a_fork_bomb_ends_and_leaves_nothing() -> None:
    name = mark()[-15:]
    program = f"import os, ctypes\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    started = time.monotonic()
    assert sandbox.run(program, wall_s=0.5).outcome == "timeout"
    assert time.monotonic() - started < 8
    assert running_with(name) == []


@pytest.mark.usefixtures("several_processes")
def test_the_number_of_processes_is_limited() -> None:
    if not held("user") and os.geteuid() == 0:
        pytest.skip("root without a user of its own: the limit does not count")
    program = "import os, time\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(30)"
    execution = sandbox.run(program)
    assert execution.outcome == "failed" and "BlockingIOError" in execution.output


@pytest.mark.usefixtures("several_processes")
def test_a_daemon_does_not_survive_the_program_that_started_it() -> None:
    name = mark()[-15:]
    program = f"""
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
        time.sleep(60)
    os._exit(0)
time.sleep(0.3)
"""
    started = time.monotonic()
    assert sandbox.run(program).passed
    assert time.monotonic() - started < 4, "the daemon held the pipes open"
    assert running_with(name) == []


def test_the_working_folder_is_empty_and_its_surroundings_cannot_be_removed(tmp_path: Path) -> None:
    if not (held("files") or held("user")):
        pytest.skip("neither read-only files nor a user of its own here")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    tmp_path.chmod(0o700)
    program = f"""
import os, shutil, subprocess
assert os.listdir('.') == []
for target in ({str(precious)!r}, {str(tmp_path)!r}, '..', '/'):
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(['rm', '-rf', target], stderr=subprocess.DEVNULL)
try:
    open({str(precious / "thesis.txt")!r}, 'w').write('gone')
except OSError:
    pass
"""
    sandbox.run(program, wall_s=1.5)
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert Path(sys.executable).exists() and Path(sandbox.__file__).exists()


@pytest.mark.parametrize("place", ["/etc/nanochat-test", "/var/tmp/nanochat-test", "/dev/shm/nanochat-test", str(Path.home() / "nanochat-test")])
def test_a_program_cannot_write_outside_its_folder(place: str) -> None:
    if not held("files"):
        pytest.skip("file system not read-only here")
    assert sandbox.run(f"open({place!r}, 'w').write('x')").outcome == "failed"
    assert not Path(place).exists()


def test_a_program_cannot_use_the_network() -> None:
    if not held("network"):
        pytest.skip("no network namespace here")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        execution = sandbox.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)")
        assert execution.outcome == "failed" and "OSError" in execution.output
    assert sandbox.run("import socket\nsocket.create_connection(('93.184.215.14', 80), timeout=2)").outcome == "failed"


def test_a_program_cannot_signal_other_processes() -> None:
    if not held("processes"):
        pytest.skip("no process namespace here")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        sandbox.run(
            f"import os\nfor pid in ({victim.pid}, {os.getpid()}, 1, os.getppid(), -1):\n    try: os.kill(pid, 9)\n    except OSError: pass",
            wall_s=2,
        )
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_a_program_cannot_undo_its_fence() -> None:
    if not held("files"):
        pytest.skip("no mount namespace here")
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b'none', b'/', None, ctypes.c_ulong(32), None) != 0, 'remounted'
assert libc.umount2(b'/tmp', 2) != 0, 'unmounted'
assert libc.setns(0, 0) != 0
libc.unshare(0x10000000 | 0x20000)
assert libc.mount(b'none', b'/', None, ctypes.c_ulong(32 | 4096), None) != 0, 'remounted in a nested namespace'
open('/var/tmp/nanochat-escape', 'w')
"""
    execution = sandbox.run(program)
    assert execution.outcome == "failed" and "Assertion" not in execution.output, execution.output
    assert not Path("/var/tmp/nanochat-escape").exists()


def test_the_environment_of_the_caller_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert sandbox.run("import os\nassert 'SECRET_TOKEN' not in os.environ\nassert not any('PYTHON' in name for name in os.environ)").passed


def test_the_caller_keeps_no_files_and_no_children() -> None:
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    children = set(psutil.Process().children())  # other tests of this process may have left some
    for program in ("pass", "assert False", "while True: print('x' * 1000)"):
        sandbox.run(program)
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after == before
    assert set(psutil.Process().children()) <= children


def test_protection_names_what_holds_and_what_does_not() -> None:
    protection = sandbox.protection(sandbox.run("pass").granted)
    assert len(protection["held"]) + len(protection["missing"]) == len(sandbox.PROTECTIONS)
    assert any("limits" in text for text in protection["held"]) and "not a prison" in protection["note"]
