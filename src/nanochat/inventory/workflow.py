"""The workflow's own fetch, as a process: one way to get data, one lock, one memory of what was fetched with which settings."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.inventory.parts import DEFAULT, RESOURCES
from nanochat.preflight.shared import DRIVER
from nanochat.status.holder import holder_of

CORES = 4  # so many parts at a time
NOTHING_TO_FORGET = "Failed to clean up metadata"  # said, with code 1, of files without a record; those with one are done all the same
INCOMPLETE, METADATA = Path(".snakemake/incomplete"), Path(".snakemake/metadata")
HANDED_ON = (signal.SIGTERM, signal.SIGHUP)


def require_checkout(root: Path = Path()) -> None:
    """Refuse a folder that is not the project's."""
    if not (root / "Snakefile").is_file():
        raise UserError("no Snakefile here; change to the project's folder")


def require_nobody_works(what: str, root: Path = Path()) -> None:
    """Refuse to take files away from under a snakemake that works here."""
    holder = holder_of(root / DRIVER, [])
    if holder.held:
        raise UserError(f"{what}: a snakemake works in this folder ({holder.named}); wait for it to end or stop it, then run again")


def fetch_arguments(targets: Sequence[str], file: Path) -> list[str]:
    """What snakemake is told, for the targets of one experiment."""
    experiment = [] if file == DEFAULT else ["--configfile", str(file)]
    return ["--cores", str(CORES), *experiment, "--", *targets]


def forget(manifests: Sequence[str], root: Path = Path()) -> str | None:
    """Let snakemake forget what it remembers of these fetches, such as that one was interrupted: it would take a whole part for half a one,
    delete it and fetch again. Returns what to do where that fails.
    """
    cleaning = ["snakemake", "--cleanup-metadata", *manifests]
    done = subprocess.run([sys.executable, "-m", *cleaning], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode == 0 or NOTHING_TO_FORGET in done.stderr:
        return None
    return f"what snakemake remembers of earlier fetches could not be cleared; if snakemake -n plans a fetch, type: {shlex.join(cleaning)}"


def fetch(targets: Sequence[str], file: Path, root: Path = Path()) -> None:
    """Let the workflow make these targets, and say with which command. Raises UserError where it fails; what came is kept."""
    _require_writable(targets, root)
    _fetch(["snakemake", *fetch_arguments(targets, file)], root)


def _require_writable(targets: Sequence[str], root: Path) -> None:
    """Refuse folders that take no files, where snakemake would end with a traceback."""
    for target in targets:
        place = root / (target if target.startswith(f"{RESOURCES}/") else f"{RESOURCES}/manifest.json")
        folder = next(folder for folder in place.parents if folder.is_dir())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: cannot be written; make it writable, or fetch on another machine and bring the data with nanochat data pack")


def by_hand(config: str, manifest: str) -> list[str]:
    """The command that fetches a part which no experiment asks for."""
    return ["nanochat", "fetch", "--config", config, "--manifest", manifest]


def fetch_by_hand(manifest: str, config: str, root: Path = Path()) -> None:
    """Let the stage itself fetch a part, as `fetch` does what the workflow knows."""
    _fetch(by_hand(config, manifest), root)


def _fetch(command: Sequence[str], root: Path) -> None:
    print(f"nanochat: {shlex.join(command)}", file=sys.stderr, flush=True)
    if code := _run([sys.executable, "-m", *command], root):
        raise UserError(f"the fetch ended with code {code}, for the reason above; what has come is kept, run again to go on")


def _run(command: Sequence[str], root: Path) -> int:
    """Exit code of a command. Stays until it has ended in order: it has Ctrl-C from the terminal, and other requests to stop from here."""
    asked, process = list[int](), None

    def hand_on(number: int, _frame: Any) -> None:
        if number != signal.SIGINT:
            asked.append(number)
            if process is not None:
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, *HANDED_ON) if signal.getsignal(number) != signal.SIG_IGN}
    try:
        process = subprocess.Popen(command, cwd=root)
        for number in asked:  # while it was started
            process.send_signal(number)
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
