"""More programs that mean harm, in the sandbox: each ends in time, gets nothing, and leaves no process and no file.

A program that tries what must be refused asserts that it is, so that "passed" means that the fence held. tests/test_sandbox.py has the others.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat import sandbox

pytestmark = pytest.mark.skipif(sandbox.unavailable() is not None, reason=str(sandbox.unavailable()))

TIMEOUT_S = 0.6
REFUSED = """
import ctypes, os, resource, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    except ValueError:
        return True
    return False
"""

# what has to hold for it, the program; every one of these asserts that it was refused
ATTACKS = {
    "ptrace of its parent": ("limits", "assert libc.ptrace(16, os.getppid(), 0, 0) == -1"),
    "ptrace of its grandparent": ("processes", "assert libc.ptrace(16, 1, 0, 0) == -1"),
    "memory of its parent": ("limits", "assert refused(lambda: open(f'/proc/{os.getppid()}/mem', 'rb').read(1))"),
    "files of its parent": ("limits", "assert all(refused(lambda: open(f'/proc/{os.getppid()}/fd/{fd}', 'rb')) for fd in range(10))"),
    "the magic key": ("files", "assert refused(lambda: open('/proc/sysrq-trigger', 'w').write('h'))"),
    "the kernel's settings": ("files", "assert refused(lambda: open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/sh'))"),
    "being killed last": ("user", "assert refused(lambda: open('/proc/self/oom_score_adj', 'w').write('-1000'))"),
    "the machine's memory": ("user", "assert refused(lambda: open('/dev/mem', 'rb')) and refused(lambda: open('/dev/kmem', 'rb'))"),
    "a device of its own": ("user", "assert refused(lambda: os.mknod('disk', 0o60666, os.makedev(8, 0)))"),
    "another root": ("user", "os.mkdir('root')\nassert refused(lambda: os.chroot('root'))"),
    "a mount": ("files", "os.mkdir('m')\nassert libc.mount(b'none', b'm', b'tmpfs', 0, None) == -1"),
    "the host's name": ("user", "assert libc.sethostname(b'owned', 5) == -1"),
    "the clock": ("user", "import time\nassert refused(lambda: time.clock_settime(time.CLOCK_REALTIME, 0))"),
    "being root": ("user", "assert refused(lambda: os.setuid(0)) and refused(lambda: os.setgid(0))"),
    "higher limits": ("limits", "assert refused(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))"),
    "a better place in the queue": ("user", "assert refused(lambda: os.nice(-20))"),
    "a link out": ("files", "os.symlink('/var/tmp/nanochat-hostile', 'link')\nassert refused(lambda: open('link', 'w'))"),
    "a hard link out": ("files", "assert refused(lambda: os.link('/etc/passwd', 'passwd'))"),
    "a link through /proc": ("files", "assert refused(lambda: open('/proc/self/root/var/tmp/nanochat-hostile', 'w'))"),
    "its own fence": ("files", f"assert refused(lambda: open({str(sandbox.CHILD)!r}, 'a')) and refused(lambda: open(sys.executable, 'ab'))"),
    "files without end": ("limits", "assert refused(lambda: [open(os.devnull) for _ in range(1000)])"),
    "a file without end": ("limits", "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nassert refused(lambda: open('big', 'wb').truncate(1 << 40))"),
    "a clone that is no thread": ("calls", "assert libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 0x100 | 17, 0, 0, 0, 0) == -1"),
    "a clone with hidden flags": ("calls", "assert libc.syscall(435, bytes(88), 88) == -1"),
    "segments and queues": ("calls", "assert [libc.shmget(0, 4096, 0o1600), libc.msgget(0, 0o1600), libc.semget(0, 9, 0o1600)] == [-1] * 3"),
    "empty files without end": ("files", "assert refused(lambda: [os.mknod(str(n)) for n in range(20_000)])"),
    "names without end": ("files", "def fill():\n    for n in range(100_000): open(f'{n}', 'xb', buffering=0).write(bytes(4096))\nassert refused(fill)"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str) -> None:
    needs, program = ATTACKS[name]
    execution = sandbox.run(REFUSED + program, wall_s=5)
    if needs not in execution.granted:
        pytest.skip(f"not held here: {sandbox.PROTECTIONS.get(needs, needs)}")
    assert execution.passed, execution.output
    assert not Path("/var/tmp/nanochat-hostile").exists()


# ways past the limit of memory of one process; each says "taken" when it holds 600 MB
HOARDS = {
    "in children": """
import os, time
for _ in range(3):
    if os.fork() == 0:
        hoard = bytearray(b"1") * 200_000_000
        print("taken", flush=True)
        time.sleep(2)
        os._exit(0)
os.wait()
""",
    "in segments": """
libc.shmat.restype = ctypes.c_void_p
for _ in range(3):
    segment = libc.shmget(0, 200 << 20, 0o1600)
    place = libc.shmat(segment, None, 0)
    assert segment >= 0 and place
    ctypes.memset(place, 1, 200 << 20)
    libc.shmdt(ctypes.c_void_p(place))
print("taken")
""",
    "in files of memory": """
files = [os.memfd_create("hoard") for _ in range(40)]
for file in files:
    os.write(file, bytes(15 << 20))
print("taken")
""",
    "on a memory disk of its own": """
shell = "mount -t tmpfs -o size=1g none /tmp && for n in $(seq 40); do head -c 15000000 /dev/zero > /tmp/$n || exit; done; echo taken"
os.execv("/usr/bin/unshare", ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell])
""",
}


@pytest.mark.parametrize("name", HOARDS)
def test_memory_cannot_be_taken(name: str) -> None:
    segments = Path("/proc/sysvipc/shm").read_text()
    execution = sandbox.run(REFUSED + HOARDS[name])
    if "calls" not in execution.granted:
        pytest.skip(f"not held here: {sandbox.PROTECTIONS['calls']}")
    assert execution.outcome == "failed" and "taken" not in execution.output, execution.output
    assert "not permitted" in execution.output or "AssertionError" in execution.output
    assert Path("/proc/sysvipc/shm").read_text() == segments


def test_threads_are_allowed() -> None:
    assert sandbox.run("import threading\nt = threading.Thread(target=print, args=('done',))\nt.start()\nt.join()").output == "done\n"


# how it may end, the program; MARK is the name by which its processes are found again
NUISANCES = {
    "stops itself": ("timeout", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    "kills everything": ("passed failed timeout", "import os\nos.kill(-1, 9)"),
    "kills its group": ("passed failed timeout", "import os\ntry: os.kill(0, 9)\nexcept OSError: pass\nraise SystemExit"),
    "recursion without end": ("failed memory timeout", "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)"),
    "a bomb of zeros": ("memory", "import zlib\nbomb = zlib.compress(bytes(3 * 10**7), 1)\nx = [zlib.decompress(bomb) for _ in range(40)]"),
    "endless complaints": ("output", "import sys\nwhile True: sys.stderr.write('x' * 10000)"),
    "closes everything": ("failed timeout", "import os\nos.closerange(0, 64)"),
    "claims success everywhere": (
        "failed",
        "import os\nfor fd in range(64):\n    for word in (b'passed', b'ended', b'0' * 32):\n        try: os.write(fd, b'\\n' + word + b'\\n')\n"
        "        except OSError: pass\nraise SystemExit",
    ),
    "claims an end and goes on": (
        "timeout failed",
        "import os, time\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\nended\\n')\n    except OSError: pass\ntime.sleep(60)",
    ),
    "never dies in peace": ("timeout", "class A:\n    def __del__(self):\n        while True: pass\nA()"),
    "replaces what ends it": ("failed timeout", "import os, sys\nos._exit = sys.exit = lambda *_: None\nassert 1 == 2"),
    "replaces what is built in": ("failed", "import builtins\nbuiltins.BaseException = builtins.AssertionError = int\nassert 1 == 2"),
    "replaces what reports": ("failed", "import traceback, sys\ntraceback.print_exc = lambda **_: sys.stdout.write('passed')\nassert 1 == 2"),
    "threads without end": (
        "passed failed memory timeout",
        "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(60,)).start()",
    ),
    "children deaf to every signal": (
        "timeout",
        "import os, signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "for _ in range(3):\n    if os.fork() == 0: break\nwhile True: time.sleep(1)",
    ),
    "other programs": ("passed failed", "import subprocess\nfor _ in range(5): subprocess.Popen(['sleep', 'MARK'])"),
    "a program in memory": (
        "failed",
        "import os\nfd = os.memfd_create('MARK')\nos.write(fd, b'#!/bin/sh\\nsleep 60\\n')\nos.execve(f'/proc/self/fd/{fd}', ['MARK'], {})",
    ),
    "becomes another program": ("timeout", "import os\nos.execv('/bin/sleep', ['MARK', '60'])"),
    "forks out of sight": (
        "passed",
        "import os, time\nfor _ in range(2):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: os.execv('/bin/sleep', ['MARK', '60'])\n"
        "        os._exit(0)\ntime.sleep(0.1)",
    ),
}


OF_SEVERAL_PROCESSES = ("other programs", "children deaf to every signal", "forks out of sight")  # run as on a system without seccomp


@pytest.mark.parametrize("name", NUISANCES)
def test_a_nuisance_ends_in_time_and_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "ONE_PROCESS", name not in OF_SEVERAL_PROCESSES)
    outcomes, program = NUISANCES[name]
    mark = f"{os.getpid()}{time.monotonic_ns() % 10**6}"[-12:]
    started = time.monotonic()
    execution = sandbox.run(program.replace("MARK", mark), wall_s=5.0 if name == "a bomb of zeros" else TIMEOUT_S)
    assert execution.outcome in outcomes.split(), execution
    assert time.monotonic() - started < 20, "the limits are seconds; the rest is what a busy machine needs"
    assert left_with(mark) == []


def left_with(mark: str) -> list[str]:
    """Processes that carry a mark in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cmdline").read_text():
                found.append(folder.name)
        except (OSError, UnicodeDecodeError):
            continue
    return found


def test_sockets_of_the_machine_cannot_be_reached(tmp_path: Path) -> None:
    """Abstract ones belong to the network's namespace, those with a path to the files."""
    if "network" not in sandbox.run("pass").granted:
        pytest.skip("no network namespace here")
    name = f"nanochat-hostile-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        abstract.bind("\0" + name)
        abstract.listen()
        named.bind(str(tmp_path / "door"))
        named.listen()
        tmp_path.chmod(0o700)
        program = f"""
import socket
for address in ({chr(0) + name!r}, {str(tmp_path / "door")!r}, '/var/run/docker.sock', '/run/systemd/notify'):
    try:
        socket.socket(socket.AF_UNIX).connect(address)
    except OSError:
        continue
    raise SystemExit(address)
"""
        assert sandbox.run(program).passed


def test_a_folder_of_its_own_is_gone_with_the_program() -> None:
    before = set(Path("/tmp").glob("nanochat-sandbox-*"))
    for program in ("open('x', 'w').write('x')", "import os\nos.makedirs('a/b')\nos.chmod('a', 0)", "import os, time\nos.mkfifo('p')\ntime.sleep(9)"):
        sandbox.run(program, wall_s=0.3)
    assert set(Path("/tmp").glob("nanochat-sandbox-*")) <= before


def test_what_floods_the_way_back_is_ended_before_it_takes_memory() -> None:
    program = """
import contextlib, os
for _ in range(1000):
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(fd, b"\\n" * (1 << 16))
"""
    found = sandbox.run(program, wall_s=TIMEOUT_S)
    assert found.outcome == "output" and found.seconds < TIMEOUT_S + sandbox.GRACE_S


def run_as_root_of_a_user_namespace(program: str, before: str = "") -> str:
    """What `program` prints in a sandbox of a process that is root there alone, and was started with the shell's words `before`."""
    caller = f"from nanochat import sandbox; print(sandbox.run({program!r}, wall_s=3).output)"
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{before} "$0" -c "$1"', sys.executable, caller]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no such process can be made here: {done.stderr[-200:]}")
    return done.stdout


def test_root_without_a_user_of_its_own_cannot_change_the_kernels_settings() -> None:
    """Its files are read-only, though it owns them."""
    said = run_as_root_of_a_user_namespace("place = '/proc/sys/vm/swappiness'\nvalue = open(place).read()\nopen(place, 'w').write(value)")
    assert "Error: [Errno" in said, said


WITHOUT_NAMESPACES = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --bounding-set=-all"


def test_a_program_that_kills_its_keeper_ends_with_it() -> None:
    """It can where no namespace and no user of its own is granted, and no Landlock knows of signals."""
    kill = "try: os.kill(os.getppid(), 9)\nexcept PermissionError: os._exit(0)\ntime.sleep(20)"
    program = f"import os, time\nos.setsid()\nprint(os.getpid(), flush=True)\n{kill}"
    worker = Path("/proc") / run_as_root_of_a_user_namespace(program, WITHOUT_NAMESPACES).strip()
    assert worker.name.isdigit() and (not worker.exists() or "zombie" in (worker / "status").read_text())


def test_without_namespaces_a_program_writes_in_its_own_folder_alone(tmp_path: Path) -> None:
    if "folder" not in sandbox.run("pass").granted:
        pytest.skip(f"not held here: {sandbox.PROTECTIONS['folder']}")
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    program = f"""
import os, shutil, tempfile
os.mkdir('a'); open('a/mine', 'w').write('x'); os.rename('a/mine', 'mine'); open(os.devnull, 'w'); tempfile.TemporaryFile()
shutil.rmtree({str(tmp_path)!r}, ignore_errors=True)
for attempt in (lambda: open({str(precious)!r}, 'a'), lambda: os.truncate({str(precious)!r}, 0), lambda: os.rename({str(precious)!r}, 'b')):
    try: attempt()
    except OSError: print('refused')
"""
    assert run_as_root_of_a_user_namespace(program, WITHOUT_NAMESPACES).split() == ["refused"] * 3
    assert precious.read_text() == "years of work"


def test_there_are_forty_hostile_programs_and_more() -> None:
    assert len(ATTACKS) + len(NUISANCES) >= 40
