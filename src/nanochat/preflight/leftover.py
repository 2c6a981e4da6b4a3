"""Jobs of an earlier snakemake that was killed: they go on alone, and a second trainer in their folder must not be submitted."""

import time
from collections.abc import Callable
from pathlib import Path

from nanochat.preflight import slurm
from nanochat.preflight.checks import Check, not_checked, ok, warning
from nanochat.preflight.slurm import LeftJob, SlurmError

POLL_SECONDS = 20.0
REPEAT_SECONDS = 3600.0  # how often a wait is mentioned again
PATIENCE = 30  # failed looks in a row before giving up: ten minutes


def check_left_jobs(folder: Path) -> Check:
    """Jobs that are in the queue for this folder."""
    try:
        found = slurm.jobs_of(folder)
    except SlurmError as error:
        return not_checked("jobs left behind", str(error))
    if found:
        listed = "; ".join(job.sentence for job in found)
        return warning("jobs left behind", f"{listed}: submitted from this folder earlier", "the next snakemake waits for them, unless one runs here already")
    return ok("jobs left behind", "none")


def wait_for_left_jobs(folder: Path, say: Callable[[str], None], *, poll_seconds: float = POLL_SECONDS) -> list[LeftJob]:
    """Return once no job is in the queue for this folder, and those that were. Says which it waits for.

    Raises SlurmError if the queue cannot be read: at once the first time, after ten minutes of trying later.
    """
    seen: dict[str, LeftJob] = {}
    told, told_at, failures = "", 0.0, 0
    while True:
        try:
            found = slurm.jobs_of(folder)
            failures = 0
        except SlurmError:
            failures += 1
            if not seen or failures > PATIENCE:
                raise
            time.sleep(poll_seconds)
            continue
        if not found:
            return list(seen.values())
        seen |= {job.id: job for job in found}
        numbers = " ".join(f"{job.id} {job.state}" for job in found)
        if numbers != told or time.monotonic() - told_at > REPEAT_SECONDS:
            listed = "; ".join(job.sentence for job in found)
            say(f"an earlier snakemake has left {len(found)} in the queue, waiting for {'it' if len(found) == 1 else 'them'} to end: {listed}")
            told, told_at = numbers, time.monotonic()
        time.sleep(poll_seconds)
