"""Who holds a results folder: asked of the lock itself, which the operating system frees when its holder dies.

A lock of another host shows here only where the file system passes locks on (NFS with its lock service, Lustre mounted with flock):
"held" can be believed everywhere, "free" only on the host that wrote the owner file.
"""

import errno
import fcntl
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.artifacts import LOCK, OWNER
from nanochat.history import json_beside, unless_damaged

CONTENTION = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)


@dataclass(frozen=True)
class Holder:
    """The lock of one folder. `held` is None where this host cannot tell."""

    held: bool | None = False
    host: str | None = None  # of the owner file
    pid: int | None = None
    since: float | None = None  # Unix time at which the owner file was written
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """The holder in words."""
        return f"process {self.pid} on {self.host}" if self.host else "another process"


def holder_of(folder: Path, damaged: list[str]) -> Holder:
    """Look at a folder's lock without keeping anybody out: a writer that starts in this very moment tries again (artifacts.exclusive)."""
    held = _is_held(folder / LOCK)
    owner: Any = unless_damaged(lambda: json_beside(folder, OWNER, None), None, damaged)
    try:
        since = (folder / OWNER).stat().st_mtime
    except FileNotFoundError:
        return Holder(held)
    owner = owner if isinstance(owner, dict) else {}
    host, pid = owner.get("host"), owner.get("pid")
    if held is False and isinstance(host, str) and host != socket.gethostname():
        held = None
    return Holder(held, host if isinstance(host, str) else None, pid if isinstance(pid, int) else None, since, owner)


def _is_held(path: Path) -> bool | None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not take each other for a holder
    except OSError as error:
        return True if error.errno in CONTENTION else None
    finally:
        os.close(handle)
    return False
