"""The inside of the sandbox: run by sandbox.py as `python -I sandbox_child.py FD`, never imported.

Three processes: the launcher enters new namespaces; the keeper (first process of the new process namespace) hides the file
system, watches the clock and never runs foreign code; the worker gives up every privilege, and the system calls of
`REFUSED_CALLS`, and runs the program. When the keeper ends, the kernel kills whatever the program has started. Each
protection is tried by itself, and those that the system grants are reported through FD, since kernels and containers
differ in what they allow.
"""

# pathlib would double the start-up time of every program
# ruff: noqa: PTH111, PTH112, PTH120, PTH123, PTH208
import contextlib
import ctypes
import errno
import json
import math
import os
import resource
import signal
import struct
import sys
import time
import traceback
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_NOSUID_NODEV, MS_NOEXEC, MS_RDONLY, MS_REC_PRIVATE = 2 | 4, 8, 1, 0x4000 | 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 36, 38, 8, 22
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1  # 442 on every architecture
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446  # on every architecture
LANDLOCK_WRITE_FILE, LANDLOCK_WRITES, LANDLOCK_SCOPES = 1 << 1, 0x7FF2, 3  # bits 1 and 4 to 14: write, remove, make, move, truncate; sockets and signals
CAPABILITY_VERSION_3, CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2
FIRST_OWN_UID = 2_000_000  # above the users that systems hand out
POLL_S = 0.01
FILES = 4096  # on the memory disk: an empty one takes a kilobyte of the kernel's memory and nothing of the disk's
# System calls that take memory which no limit of one process counts (more processes; segments, files and queues in memory; rings), or open wide
# doors of the kernel: name -> number on x86_64, on aarch64. clone is refused but for threads. A nested namespace could mount memory disks.
REFUSED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "io_uring_setup": (425, 425),
    "ptrace": (101, 117),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # place in REFUSED_CALLS, AUDIT_ARCH of the kernel, number of clone
CLONE3 = 435
CLONE_THREAD = 0x10000

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> bool:
    """Whether a function of libc exists and returns 0."""
    function = getattr(libc, name, None)
    return function is not None and bool(function(*arguments) == 0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> bool:
    """mount(2)"""
    return call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def enter_namespaces() -> bool:
    """Leave network, process table, mounts and IPC of the system; without root by way of a user namespace."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0 and call("unshare", NAMESPACES):
        return True
    if not call("unshare", NAMESPACES | CLONE_NEWUSER):
        return False
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{file}", "w") as handle:
            handle.write(text)
    return True


def is_under(path: str, folder: str) -> bool:
    """Whether `path` lies in `folder`, links followed."""
    return os.path.realpath(path).startswith(os.path.realpath(folder).rstrip("/") + "/")


def hide_files(folder: str, uid: int, megabytes: int) -> bool:
    """Make every mount read-only, and the working folder a small memory disk that ends with the program."""
    mount("none", "/", "", MS_REC_PRIVATE)
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    if not call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(attributes), 32):
        return False
    needed = [sys.prefix, sys.base_prefix, os.__file__, __file__]
    scratch = folder if any(is_under(path, "/tmp") for path in needed) else "/tmp"
    for place in ("/run", os.path.expanduser("~")):  # sockets and secrets of the user
        if os.path.isdir(place) and not any(is_under(path, place) for path in [*needed, scratch]):
            mount("none", place, "tmpfs", MS_NOSUID_NODEV | MS_NOEXEC | MS_RDONLY, "size=4k")
    mount("proc", "/proc", "proc", MS_NOSUID_NODEV | MS_NOEXEC | MS_RDONLY)  # root without capabilities still owns the kernel's settings
    done = mount("none", scratch, "tmpfs", MS_NOSUID_NODEV, f"size={megabytes}m,nr_inodes={FILES},mode=0700,uid={uid}")
    os.chdir(scratch)
    return done


def keep_capabilities(allowed: int) -> None:
    """Keep the capabilities of the bit mask `allowed` (below 2^32) at most, and none after execve (no_new_privs is set)."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)(allowed, allowed, 0, 0, 0, 0)))


def become(uid: int, capabilities: int) -> bool:
    """Be user `uid`, in no group, with `capabilities`, for good. False if Python's library cannot be read then."""
    try:
        call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        keep_capabilities(capabilities)
        os.listdir(os.path.dirname(os.__file__))
    except OSError:
        return False
    return True


def own_user() -> tuple[int, int] | None:
    """(user number that no one else has, capabilities it needs), if we are root; each is tried in a fork.

    The limit on processes does not count for root. A Python in a closed folder, such as /root, needs the right to read
    every file, which is less than root has.
    """
    if os.geteuid() != 0:
        return None
    uid = FIRST_OWN_UID + os.getpid() % 1_000_000
    for capabilities in (0, CAP_DAC_READ_SEARCH):
        child = os.fork()
        if child == 0:
            os._exit(0 if become(uid, capabilities) else 1)
        if os.waitpid(child, 0)[1] == 0:
            return uid, capabilities
    return None


def own_folder_only() -> bool:
    """Let this process write in its working folder alone, for good, by a Landlock, which asks for no namespace; from Linux 6.12 on it signals nobody else."""
    version = libc.syscall(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else -1
    if version < 3:  # it does not see yet that a file is truncated
        return False
    wanted = (ctypes.c_uint64 * 3)(LANDLOCK_WRITES, 0, LANDLOCK_SCOPES if version >= 6 else 0)
    rules = libc.syscall(SYS_LANDLOCK_CREATE, ctypes.byref(wanted), ctypes.c_size_t(ctypes.sizeof(wanted)), 0)
    if rules < 0:
        return False
    done = True
    for path, allowed in ((".", LANDLOCK_WRITES), (os.devnull, LANDLOCK_WRITE_FILE)):
        place = os.open(path, os.O_PATH)
        done = call("syscall", SYS_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, place), 0) and done
        os.close(place)
    done = done and call("syscall", SYS_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
    return done


def refuse_calls() -> bool:
    """Refuse REFUSED_CALLS to this process, for good, by a seccomp filter: a program of the kernel that sees each system call first."""
    if os.uname().machine not in MACHINES or sys.maxsize < 1 << 32:  # a 32-bit Python has other numbers
        return False
    place, architecture, clone = MACHINES[os.uname().machine]
    load, is_equal, is_at_least, has_bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    steps = [  # what, how many steps to skip if so, if not, operand
        (load, 0, 0, 4),  # the architecture: 32-bit programs have other numbers
        *((is_equal, 1, 0, architecture), (answer, 0, 0, kill)),
        (load, 0, 0, 0),  # the number
        *((is_at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse)),  # x32: other numbers again
        *((is_equal, 0, 1, CLONE3), (answer, 0, 0, unknown)),  # its flags cannot be seen from here; libc takes clone instead
    ]
    for number in filter(None, (numbers[place] for numbers in REFUSED_CALLS.values())):
        steps += [(is_equal, 0, 1, number), (answer, 0, 0, refuse)]
    steps += [(is_equal, 0, 3, clone), (load, 0, 0, 16), (has_bits, 1, 0, CLONE_THREAD), (answer, 0, 0, refuse), (answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    return call("prctl", PR_SET_SECCOMP, 2, struct.pack("HP", len(steps), ctypes.addressof(code)), 0, 0)


def work(request: dict[str, Any], user: tuple[int, int] | None, granted: list[str], report: int) -> None:
    """The worker: limits, no privileges, the program, and only if it ran to its end the password."""
    if user is None:
        keep_capabilities(0)
    else:
        become(*user)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # without namespaces, as the user that it is, a program can kill its keeper
    if own_folder_only():
        granted = [*granted, "folder"]
    megabyte = 1 << 20
    for name, value in (
        ("RLIMIT_CPU", math.ceil(request["cpu_s"])),
        ("RLIMIT_AS", request["memory_megabytes"] * megabyte),
        ("RLIMIT_FSIZE", request["disk_megabytes"] * megabyte),
        ("RLIMIT_NPROC", request["processes"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        with contextlib.suppress(OSError, ValueError):
            hard = value + (name == "RLIMIT_CPU")  # SIGXCPU, a second later SIGKILL for a program that ignores it
            resource.setrlimit(getattr(resource, name), (value, hard))
    if request["one_process"] and refuse_calls():
        granted = [*granted, "calls"]
    os.write(report, (json.dumps(granted) + "\n").encode())
    try:
        exec(compile(request["program"], "program.py", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        os.write(report, request["password"].encode())
    except BaseException:  # SystemExit too: a program that leaves before its tests has not passed them
        with contextlib.suppress(BaseException):
            traceback.print_exc(limit=-3)
            sys.stderr.flush()
    os._exit(0)


def descendants() -> list[int]:
    """Children of this process, orphans of theirs included where it is their reaper."""
    found = []
    with contextlib.suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat") as file:
                if int(file.read().rsplit(")", 1)[1].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def end_all() -> None:
    """Kill and reap every process that is left below the keeper; grandchildren come to it as their parents die."""
    for _ in range(100):
        left = descendants()
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return


def keep(worker: int, cpu_s: float, wall_s: float) -> str:
    """The keeper: wait for the worker, at most `wall_s`, then end everything that is left. How it ended: by itself, by its CPU time, by the clock."""
    deadline, ended = time.monotonic() + wall_s, ""
    while not ended:
        pid, status, used = os.wait4(-1, os.WNOHANG)  # orphans are reaped on the way
        if pid == worker:
            ended = "cpu" if os.WTERMSIG(status) == signal.SIGXCPU or used.ru_utime + used.ru_stime >= cpu_s else "ended"
        elif time.monotonic() > deadline:
            os.kill(worker, signal.SIGKILL)
            ended = "timeout"
        elif pid == 0:
            time.sleep(POLL_S)
    if os.getpid() != 1:  # in a process namespace the kernel does this when the keeper ends
        end_all()
    return ended


def main() -> None:
    """The launcher."""
    report = int(sys.argv[1])
    request = json.load(sys.stdin)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    granted = ["limits"]
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    user = own_user()
    has_namespaces = enter_namespaces()
    keeper = os.fork()
    if keeper:
        os.waitpid(keeper, 0)
        os._exit(0)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    if has_namespaces:
        granted += ["network", "processes"]
        if hide_files(request["folder"], user[0] if user else os.getuid(), request["disk_megabytes"]):
            granted.append("files")
    elif call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        granted.append("descendants")
    if user is not None:
        granted.append("user")
        if "files" not in granted:
            os.chown(request["folder"], user[0], user[0])
    worker = os.fork()
    if worker == 0:
        work(request, user, granted, report)
    outcome = keep(worker, request["cpu_s"], request["wall_s"])
    os.write(report, f"\n{outcome}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
