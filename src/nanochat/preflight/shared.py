"""A folder in which several people work: whose files others cannot write, and which snakemake works in it.

Snakemake's own lock is a list of files. It names nobody, and does not tell a snakemake that runs from one that was killed.
"""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

DRIVER = Path(".snakemake/driver")  # a lock of the operating system and its owner, as of a results folder
DEPTH = {  # of what is looked at; .snakemake has private folders beside these
    ".": 0,
    ".snakemake": 0,
    **{f".snakemake/{name}": 0 for name in ("driver", "incomplete", "locks", "log", "metadata")},
    **dict.fromkeys(("results", "logs", "benchmarks"), 3),  # results/RUN/STAGE, results/tokens/CORPUS/CHUNK
}
OPENED_AGAIN = (".lock", "metrics.jsonl")  # all other files are replaced, for which their folder has to be writable
OPENED_AGAIN_ENDING = ".history"


def user_name(number: int) -> str:
    """Name of a user; the number where the machine does not know it."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def not_writable(root: Path, *, dry_run: bool = False) -> str | None:
    """What of this folder cannot be written by this user, in one sentence; None: nothing."""
    for path in _notes(root) if dry_run else [*_written(root), *_notes(root)]:
        if os.access(path, os.W_OK):
            continue
        owner, me = path.stat().st_uid, os.geteuid()
        if owner == me:
            return f"{path}: cannot be written; make it writable (chmod u+w {path}), or work in another folder"
        name = user_name(owner)
        cure = f"ask {name} to type: chmod -R g+rwX {root.absolute()} (and `umask 002` before the next snakemake), or work in a clone of your own"
        return f"{path}: belongs to {name}, and {user_name(me)} cannot write it; {cure}"
    return None


def _notes(root: Path) -> list[Path]:
    """Where snakemake keeps notes even of a dry run."""
    notes = root / ".snakemake" / "iocache"
    return [next(path for path in (notes, notes.parent, root) if path.is_dir()), *notes.glob("latest.pkl")]


def _written(root: Path) -> Iterator[Path]:
    for name, depth in DEPTH.items():
        if (place := root / name).is_dir():
            yield place
            yield from _below(place, depth)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if depth == 0 or not os.access(folder, os.R_OK | os.X_OK):
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield path
            yield from _below(path, depth - 1)
        elif path.name in OPENED_AGAIN or path.name.endswith(OPENED_AGAIN_ENDING):
            yield path
