"""The other half of warm.py: `python warm_server.py ADDRESS MODULE ...` imports the modules, then forks a process for each command that it is asked for.

Each request has a process of its own, which starts the command, a child of its own. Either it ends at once, so that the command becomes a
child of who asked (who has made itself the reaper of orphans below it), or it hands signals on and reports the exit code.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

HEADER = struct.Struct("=Q")  # length of what follows, in JSON
ANSWER = struct.Struct("=q")  # a process, or how it ended
OWN_SETTINGS = ("huggingface_hub", "datasets", "matplotlib")  # read from the environment when they are imported
FRESH = ("nanochat", "snakemake_logger_plugin_nanochat")
PROGRAMS = ("nanochat", "snakemake")
INSTALLED: list[str] = []  # what is left of sys.path without a command's own folders


def is_python(command: Any) -> bool:
    """Whether a command is `python -m nanochat`, `python -m snakemake`, `python FILE.py`, or one of these programs by its path."""
    if not isinstance(command, (list, tuple)) or not command:
        return False
    first, second, third, *_ = (*map(str, command), "", "")
    if first == sys.executable:
        return second.endswith(".py") or (second == "-m" and third in PROGRAMS)
    return Path(first).name in PROGRAMS and Path(first).parent == Path(sys.executable).parent


class Forking(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that starts Python without importing anything, where it can; everything else is as it was."""

    def _execute_child(self, *given: Any) -> None:
        names = ("args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell")
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        rest = ("restore_signals", "gid", "gids", "uid", "umask", "start_new_session", "process_group")
        asked = dict(zip((*names, *ends, *rest), given, strict=True))
        usual = {"executable": None, "shell": False, "close_fds": True, "gid": None, "gids": None, "uid": None, "umask": -1, "process_group": -1}
        if not is_python(asked["args"]) or any(asked[name] != value for name, value in usual.items()) or not self._can(asked):
            super()._execute_child(*given)  # type: ignore[misc]
            return
        own = [asked[end] if asked[end] != -1 else number for number, end in enumerate(("p2cread", "c2pwrite", "errwrite"))]
        environment = {os.fsdecode(name): os.fsdecode(value) for name, value in (os.environ if asked["env"] is None else asked["env"]).items()}
        request = {
            "command": [str(part) for part in asked["args"]],
            "folder": os.fspath(asked["cwd"] or Path.cwd()),
            "environment": environment,
            "session": asked["start_new_session"],
        }
        self.pid = self._fork(request, own, asked)
        self._child_created = True
        self._close_pipe_fds(*(asked[end] for end in ends))  # type: ignore[attr-defined]

    def _can(self, asked: dict[str, Any]) -> bool:
        raise NotImplementedError

    def _fork(self, request: dict[str, Any], files: list[int], asked: dict[str, Any]) -> int:
        raise NotImplementedError


class Forked(Forking):
    """What a command itself starts: the ranks of a supervisor, the dry run of a plan. A copy of the command, with nothing of its left."""

    def _can(self, asked: dict[str, Any]) -> bool:
        return threading.active_count() == 1

    def _fork(self, request: dict[str, Any], files: list[int], asked: dict[str, Any]) -> int:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()  # or it would be said twice
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return child
        code = 1
        try:
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for module in [name for name in sys.modules if name.split(".")[0] in FRESH]:
                del sys.modules[module]
            take_files(files, keep=asked["pass_fds"])
            if request["session"]:
                os.setsid()
            if asked["preexec_fn"] is not None:
                asked["preexec_fn"]()
            code = exit_code_of(request)
        finally:
            os._exit(code)


def exit_code_of(request: dict[str, Any]) -> int:
    """Run a command to the end of its interpreter."""
    code: Any = 0
    try:
        become(request)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code if isinstance(code, int) else int(code is not None)


def take_files(files: list[int], keep: Any = ()) -> None:
    """Make three files the standard ones; close everything else, but for those to keep."""
    copies = [os.dup(file) for file in files]  # one of them may be in the place of another
    for place, copy in enumerate(copies):
        os.dup2(copy, place)
    for place in [int(open_file.name) for open_file in Path("/proc/self/fd").iterdir()]:
        if place > 2 and place not in keep:
            with contextlib.suppress(OSError):  # that of the folder itself
                os.close(place)
    for file in keep:
        os.set_inheritable(file, True)


def become(request: dict[str, Any]) -> None:
    """Take on everything that a command has of its own, and run it."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for name, place in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        file: Any = open(place, "rb" if place == 0 else "wb", -1 if place == 0 or not unbuffered else 0, closefd=False)  # noqa: SIM115
        before = getattr(sys, f"__{name}__")
        lines = not unbuffered and (place == 2 or os.isatty(place))
        stream = io.TextIOWrapper(file, before.encoding, before.errors, line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    if torch := sys.modules.get("torch"):  # which has read this before it was asked to
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if threads.isdecimal() and int(threads) != torch.get_num_threads():
            torch.set_num_threads(int(threads))
    if random := sys.modules.get("numpy.random"):
        random.seed()
    run(request["command"])


def run(command: list[str]) -> None:
    """What the interpreter does with its command line."""
    sys.orig_argv[:] = command
    python = [*(str(Path(name).absolute()) for name in os.environ.get("PYTHONPATH", "").split(os.pathsep) if name), *INSTALLED]
    if command[1:2] == ["-m"]:
        sys.path[:] = [str(Path.cwd()), *python]
        sys.argv[:] = ["-m", *command[3:]]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        return
    script, *arguments = command[1:] if command[0] == sys.executable else command
    sys.path[:] = [str(Path(script).absolute().parent), *python]
    sys.argv[:] = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


# --- requests --------------------------------------------------------------------------------------------------------


def ask(connection: socket.socket, request: dict[str, Any], files: list[int]) -> int:
    """Send a request and its standard files; returns the process that was started."""
    content = json.dumps(request).encode()
    socket.send_fds(connection, [HEADER.pack(len(content))], files)
    connection.sendall(content)
    return read_answer(connection)


def read_answer(connection: socket.socket) -> int:
    """One number."""
    answer = receive(connection, ANSWER.size)
    if len(answer) < ANSWER.size:
        raise ConnectionError("the warm server has ended")
    return int(ANSWER.unpack(answer)[0])


def receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes, fewer if there are no more."""
    content = b""
    while len(content) < size and (more := connection.recv(size - len(content))):
        content += more
    return content


def serve(door: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answer requests as long as somebody holds the other end of stdin: returns in the process of each command, and there alone."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(door, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select(1.0):
                if key.fileobj is sys.stdin:
                    sys.exit()
                connection, _ = door.accept()
                if not os.fork():
                    return attend(connection)
                connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def attend(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """In the process of one request: start its command, and leave it to who asked or stay with it. Returns in the command."""
    header, files, _, _ = socket.recv_fds(connection, HEADER.size, 3)
    request: dict[str, Any] = json.loads(receive(connection, HEADER.unpack(header)[0]))
    attendant = os.getpid()
    if not (child := os.fork()):
        while request["leave"] and os.getppid() == attendant:
            time.sleep(0.001)
        return request, files
    for file in files:
        os.close(file)
    connection.sendall(ANSWER.pack(child))
    if not request["leave"]:
        connection.sendall(ANSWER.pack(stay_with(child, connection)))
    os._exit(0)


def stay_with(child: int, connection: socket.socket) -> int:
    """Exit code of a command; each byte that comes is a signal for it, and it does not outlive who asked for it."""
    ended = os.pidfd_open(child)
    with selectors.DefaultSelector() as waiting:
        waiting.register(ended, selectors.EVENT_READ)
        waiting.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fd == ended:
                    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                for number in connection.recv(64) or bytes([signal.SIGKILL]):
                    os.kill(child, number)


def main(address: str, modules: list[str]) -> None:
    """Import, open the door, and be a command whenever one is asked for."""
    sys.path.remove(str(Path(__file__).absolute().parent))
    INSTALLED[:] = sys.path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            importlib.import_module(module)
    if "pydantic" in sys.modules:
        sys.modules["pydantic"].create_model("First", number=(int, 0))  # the one for which it imports most of itself
    early = {name.split(".")[0] for name in sys.modules} & {*FRESH, *OWN_SETTINGS}
    assert not early, f"{early}: a command imports them itself, with its own settings"
    threads = len(list(Path("/proc/self/task").iterdir())) - ("pyarrow" in sys.modules)  # its jemalloc has one, and starts it again in a forked process
    assert threads == 1, "a process of several threads cannot be forked"
    gc.freeze()  # a command that looks for garbage would copy all the memory that it shares
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(64)
        print("ready", flush=True)
        request, files = serve(door)
    take_files(files)
    if request["session"]:
        os.setsid()
    subprocess.Popen = Forked  # type: ignore[misc]
    become(request)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
