"""Host memory that a process may still take: of the machine, or of the job that it belongs to."""

import contextlib
from pathlib import Path

import psutil


def available_bytes(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Free memory, by the machine and by the limits of the control groups (version 2) above this process."""
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError):
        group = groups / own.read_text(encoding="utf-8").rsplit("::", 1)[-1].strip().lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number; nor has every group a limit
                limit, taken = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))  # given back when it is needed
                available = min(available, limit - taken + cached)
    return max(0, available)
