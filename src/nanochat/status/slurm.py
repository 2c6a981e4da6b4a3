"""What SLURM says of the jobs that stages ran in: one squeue and at most one sacct, a few seconds each and no more."""

import os
import re
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 4.0
JOB_ID = re.compile(r"\d+([_+]\d+)?")
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED", "STOPPED"})
ACTIVE = frozenset({"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"})


@dataclass(frozen=True)
class Job:
    """One job. `state` is SLURM's word (RUNNING, PENDING, TIMEOUT, CANCELLED by 1000)."""

    number: str
    state: str
    reason: str = ""  # why it waits

    @property
    def is_waiting(self) -> bool:
        """Whether it will run later."""
        return self.state in WAITING

    @property
    def is_active(self) -> bool:
        """Whether it has nodes now."""
        return self.state in ACTIVE

    @property
    def has_ended(self) -> bool:
        """Whether it will run no more."""
        return not (self.is_waiting or self.is_active)

    def words(self) -> str:
        """`4242 PENDING (Priority)`"""
        return f"{self.number} {self.state}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Queue:
    """What could be learnt. `unavailable` says why something could not."""

    jobs: dict[str, Job] = field(default_factory=dict)  # of the ids that were asked for
    queued: dict[tuple[str, str], Job] = field(default_factory=dict)  # (stage, run) -> a job of this folder's workflow that waits or runs
    unavailable: str | None = None


def ask(numbers: Iterable[str], workflow: Path) -> Queue:
    """States of these jobs, and the jobs that snakemake has queued from the folder `workflow`. Nothing is asked without a job id."""
    wanted = [number for number in dict.fromkeys(numbers) if JOB_ID.fullmatch(number)]
    if not wanted:
        return Queue()
    text, problem = _run("squeue", "--noheader", "--me", "--format=%i|%T|%k|%Z|%r")
    if text is None:
        return Queue(unavailable=problem)
    found: dict[str, Job] = {}
    queued: dict[tuple[str, str], Job] = {}
    for number, state, comment, folder, reason in _rows(text, 5):
        job = Job(number, state, reason if state in WAITING and reason != "None" else "")
        found[number] = job
        place = re.fullmatch(r"rule_(\w+?)_wildcards_([\w-]+)", comment)  # as snakemake's SLURM plugin names its jobs
        if place and Path(folder).resolve() == workflow and not job.has_ended:
            queued[place[1], place[2]] = job
    gone = [number for number in wanted if number not in found]
    if gone:
        text, problem = _run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(gone)}", "--format=JobID,State")
        found |= {number: Job(number, state) for number, state in _rows(text or "", 2)}
        problem = None if text is not None else f"not in the queue, and {problem}"
    return Queue({number: found[number] for number in wanted if number in found}, queued, problem)


def _rows(text: str, columns: int) -> list[list[str]]:
    rows = [line.strip().split("|", columns - 1) for line in text.splitlines()]
    return [row for row in rows if len(row) == columns]


def _run(*command: str) -> tuple[str | None, str | None]:
    """(what a command said, None), or (None, why nothing is known)."""
    try:
        # a session of its own: sites wrap these commands in scripts, and what a script has started must end with it
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
    except FileNotFoundError:
        return None, f"{command[0]} not found on this machine"
    except OSError as error:
        return None, f"{command[0]} cannot be run ({(error.strerror or str(error)).lower()})"
    try:
        said, complaint = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"{command[0]} gave no answer within {TIMEOUT_S:.0f} s"
    if process.returncode:
        why = (complaint.strip() or said.strip() or f"exit code {process.returncode}").splitlines()[0]
        return None, f"{command[0]} failed ({why})"
    return said, None
