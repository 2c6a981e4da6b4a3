"""What to do about trouble of which Snakemake's own messages say nothing: who has locked the folder, that the disk is full."""

import os
import tempfile
import time
from pathlib import Path

from nanochat.cli import DISK_FULL
from nanochat.preflight.shared import DRIVER, user_name
from nanochat.status.holder import holder_of

AGAIN = "then the same command again"
PLACES = ("results", "logs", ".snakemake")  # may lie on different disks
PROBE_BYTES = 1 << 16


def who_works_here(root: Path) -> str:
    """Who holds the folder, and what to do, in one sentence."""
    locks = [path.stat() for path in (root / ".snakemake" / "locks").glob("*.lock")]
    if not locks:
        return f"another snakemake worked in this folder and has just ended; type the command again ({root.absolute()})"
    newest = max(locks, key=lambda lock: lock.st_mtime)
    name = user_name(newest.st_uid)
    holder = holder_of(root / DRIVER, [])
    since = f"since {time.strftime('%Y-%m-%d %H:%M', time.localtime(newest.st_mtime))}"
    if not (holder.host and holder.since and holder.since >= newest.st_mtime):  # it has not come as far as to say who it is
        return f"a snakemake of {name} holds this folder {since}; wait for it to end, or, if {name} has none running: snakemake --unlock, {AGAIN}"
    who = f"{holder.named} ({name}, {since})"
    if holder.held:
        mine = newest.st_uid == os.geteuid()
        return f"another snakemake works in this folder: {who}; {'wait for it to end' if mine else f'wait, or ask {name} to stop it'}, {AGAIN}"
    if holder.held is None:
        return f"a snakemake on another machine holds this folder: {who}; look there whether it runs; if not: snakemake --unlock, {AGAIN}"
    return f"a snakemake that was killed has left its lock on this folder: {who}; type: snakemake --unlock, {AGAIN} (jobs that it left are waited for)"


def full_disk(root: Path) -> str | None:
    """Which disk has no room (or whose quota is used up), and what to do, in one sentence; None: there is room."""
    for place in (root / name for name in PLACES):
        try:
            with tempfile.NamedTemporaryFile(dir=place, prefix=".room-") as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in DISK_FULL:
                why = f"{place.resolve()}: the disk is full ({(error.strerror or '').lower()}), no job is started again"
                return f"{why}; free some space, {AGAIN}: everything goes on from its last saved state"
    return None
