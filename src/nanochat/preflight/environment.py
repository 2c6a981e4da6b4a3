"""The installation and the disk: versions, locale, clock, a folder that can be written, room for what will be made."""

import errno
import locale
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nanochat.preflight.checks import Check, not_checked, ok, problem, warning
from nanochat.preflight.sizes import Space

CLOCK_WARNING_S = 5.0
CLOCK_PROBLEM_S = 60.0
QUOTA_SECONDS = 5.0
ESTIMATE_SURE = 0.8  # the estimate of what is to be written is on the safe side; so much of it is certain
INSTALL = "run: make .venv/installed"
LOCK = Path("envs/lock.txt")


def check_python() -> Check:
    """The running interpreter against what the package asks for."""
    try:
        wanted = metadata.metadata("nanochat")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return problem("python", "nanochat is not installed in this environment", INSTALL)
    version = ".".join(map(str, sys.version_info[:3]))
    if Version(version) not in SpecifierSet(wanted):
        return problem("python", f"{version}, {wanted} is needed", f"install it (or load the site's module) and {INSTALL}")
    return ok("python", f"{version} ({sys.executable})")


def requirements() -> list[Requirement]:
    """What the package needs to run, as its metadata says; nothing if it is not installed."""
    try:
        found = [Requirement(line) for line in metadata.requires("nanochat") or []]
    except metadata.PackageNotFoundError:
        return []
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]


def locked_versions(lock: Path) -> dict[str, str]:
    """name -> version of a lock file, names in lower case with dashes."""
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    return {_normal(name): version for name, _, version in (line.partition("==") for line in lines if not line.startswith("#")) if version}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_packages(wanted: Sequence[Requirement], lock: Path = LOCK) -> list[Check]:
    """Every package that the project needs, by its metadata: none is imported. Another version than the lock's is a warning."""
    locked, faults, moved = locked_versions(lock), [], []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
            continue
        if version not in requirement.specifier:
            faults.append(f"{requirement.name} {version}, {requirement.specifier} is needed")
        elif (pinned := locked.get(_normal(requirement.name))) and Version(version).public != pinned:
            moved.append(f"{requirement.name} {version} (locked: {pinned})")
    if faults:
        return [problem("packages", "; ".join(faults), INSTALL)]
    if moved:
        return [warning("packages", f"other versions than {lock} holds: {', '.join(moved)}", INSTALL)]
    return [ok("packages", f"{len(wanted)} as pyproject.toml asks{', and as the lock says' if locked else ''}; torch {_version('torch')}")]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def check_locale(encoding: str | None = None) -> Check:
    """Text files and file names are UTF-8. `encoding`: of the locale; asked from Python by default."""
    found = encoding or locale.getencoding()
    if found.lower().replace("-", "") != "utf8" or sys.getfilesystemencoding() != "utf-8":
        return problem("locale", f"text is encoded as {found}, UTF-8 is needed", "type: export LC_ALL=C.UTF-8 (and put it into ~/.bashrc for the jobs)")
    return ok("locale", "UTF-8")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def check_writable(folder: Path) -> list[Check]:
    """Whether the folder can be written, and whether the clock of its file system is this machine's: snakemake orders files by their times."""
    place = existing(folder)
    try:
        before = time.time()
        with tempfile.NamedTemporaryFile(dir=place, prefix=".preflight-") as file:
            file.write(b"written")
            file.flush()
            skew, after = Path(file.name).stat().st_mtime, time.time()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = f"{'free space or files there (df -h, df -i, quota)' if full else f'make {place} writable for you (chmod u+w)'}, or run in another folder"
        return [problem(f"folder {folder}", f"{place} cannot be written ({(error.strerror or str(error)).lower()})", cure)]
    return [ok(f"folder {folder}", "can be written"), check_clock(before, skew, after)]


def check_clock(before: float, stamped: float, after: float) -> Check:
    """The time that a file system gave a fresh file against the clock before and after, in seconds since 1970."""
    skew = stamped - after if stamped > after else min(0.0, stamped - before)
    detail = f"the file system's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    cure = "tell the administrators: one of them is not synchronised (timedatectl shows this machine's)"
    if abs(skew) > CLOCK_PROBLEM_S:
        return problem("clock", detail, cure)
    return warning("clock", detail, cure) if abs(skew) > CLOCK_WARNING_S else ok("clock", f"{time.strftime('%Y-%m-%d %H:%M %Z')}, the file system agrees")


# --- space -----------------------------------------------------------------------------------------------------------


def missing_bytes(needed: Iterable[Space], folder: Path) -> dict[str, int]:
    """{what: bytes} that are still to be written below `folder`: what is there as the experiment asks for it is left out."""
    left: dict[str, int] = {}
    for item in needed:
        if size := item.left(folder):
            left[item.what] = left.get(item.what, 0) + size
    return left


def check_space(left: dict[str, int], folder: Path) -> Check:
    """What is still to be written against the free space of the file system."""
    need, free = sum(left.values()), shutil.disk_usage(existing(folder)).free
    detail = f"{gigabytes(need)} to be written, {gigabytes(free)} free{_shares(left)}"
    cure = f"free {gigabytes(need - free)}, or run in a folder on a larger file system"
    if need > free:
        return problem("disk", detail, cure) if need * ESTIMATE_SURE > free else warning("disk", f"may not suffice: {detail}", cure)
    return ok("disk", detail)


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _shares(left: dict[str, int]) -> str:
    return f" ({', '.join(f'{what} {gigabytes(size)}' for what, size in left.items() if size)})" if left else ""


def check_quota(left: dict[str, int], folder: Path, user: str) -> Check:
    """What is still to be written against the user's quota, where `lfs quota` (Lustre) or `quota` knows one."""
    place, need = existing(folder).resolve(), sum(left.values())  # a link may lead to another file system
    asked = [["lfs", "quota", "-q", "-u", user, str(place)], ["quota", "-w", "-p", "-u", user]]
    told = []
    for command in asked:
        if shutil.which(command[0]) is None:
            continue
        told.append(command[0])
        rows = quota_rows(_output(command))
        mount = mount_of(place)
        row = next((row for row in rows if row[0] in (mount, str(place)) or str(place).startswith(row[0].rstrip("/") + "/")), None)
        if row is None:
            continue
        _, used, limit = row
        detail = f"{gigabytes(need)} to be written, {gigabytes(used)} used of {gigabytes(limit)} ({command[0]})"
        if used + need > limit:
            cure = f"free {gigabytes(used + need - limit)}, or ask for more"
            return problem("quota", detail, cure) if used + need * ESTIMATE_SURE > limit else warning("quota", f"may not suffice: {detail}", cure)
        return ok("quota", detail)
    if told:
        return not_checked("quota", f"{' and '.join(told)} names no limit of yours for this file system")
    return not_checked("quota", "there is no command `quota` or `lfs` here; your site may limit you all the same")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUOTA_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def quota_rows(text: str) -> list[tuple[str, int, int]]:
    """(file system, bytes used, bytes allowed) of each line of `quota -w` or `lfs quota -q` that has a limit; both count KiB.

    A line is: name, used (a * behind it: over the limit), soft limit, hard limit, ...; limits of 0 are none. The lower limit that is set counts.
    """
    rows = []
    for line in text.splitlines():
        found = re.match(r"\s*(\S+)\s+(\d+)\*?\s+(\d+)\s+(\d+)\b", line)
        limits = [int(number) for number in found.groups()[2:] if int(number)] if found else []
        if found and limits:
            rows.append((found[1], int(found[2]) * 1024, min(limits) * 1024))
    return rows


def mount_of(folder: Path, table: str | None = None) -> str:
    """The device or server that `folder` is mounted from, as `quota` names it; "" where it cannot be told. `table`: /proc/mounts."""
    mounts = Path("/proc/mounts")
    text = table if table is not None else mounts.read_text(encoding="utf-8") if mounts.is_file() else ""
    found = [line.split()[:2] for line in text.splitlines() if len(line.split()) > 1]
    above = [(len(point), device) for device, point in found if str(folder) == point or str(folder).startswith(point.rstrip("/") + "/")]
    return max(above)[1] if above else ""
