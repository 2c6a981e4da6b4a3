"""The logs of runs: metrics.jsonl read as it grows, and which stage of the runs is meant."""

import json
import os
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.report.text import listed
from nanochat.status.stages import TRAINING, run_folders


class Log:
    """metrics.jsonl of one stage. `rows` grows with each `read`; a resumed training replaces the file, and it is read anew."""

    def __init__(self, run: str, folder: Path) -> None:
        self.run, self.path = run, folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.read_bytes, self.file_number = 0, -1

    def read(self) -> None:
        """Take in what was written since; an unfinished last line has time."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self.file_number or state.st_size < self.read_bytes:
                    self.rows, self.read_bytes, self.file_number = [], 0, state.st_ino
                file.seek(self.read_bytes)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            self.rows, self.read_bytes, self.file_number = [], 0, -1
            return
        if whole:
            self.read_bytes += len(whole) + 1
            self.rows += [row for line in whole.split(b"\n") if (row := _row(line)) is not None]

    def last(self, key: str) -> Any:
        """The quantity as it was logged last; None where it never was."""
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None  # cut short by a kill
    return row if isinstance(row, dict) else None


def chosen_stage(results: Path, runs: list[str], stage: str | None) -> tuple[list[str], str]:
    """(runs, stage): those asked for, else all runs, and the stage of them that logged last."""
    known = [folder.name for folder in run_folders(results, []) if any((folder / name).is_dir() for name in TRAINING)]
    if not known:
        raise UserError(f"--results={results}: no run has trained there; give the folder that holds the runs, or train one")
    if unknown := [run for run in runs if run not in known]:
        raise UserError(f"{unknown[0]!r}: no run of this name in {results}; there is {listed(known)}")
    runs = list(dict.fromkeys(runs)) or known
    found = [(_written(results / run / name), TRAINING.index(name), name) for run in runs for name in TRAINING if stage in (None, name)]
    logged = [entry for entry in found if entry[0]]
    if not logged:
        return runs, stage or TRAINING[0]
    newest = max(logged)[2]
    return ([run for run in runs if _written(results / run / newest)] if len(runs) == len(known) else runs), newest


def _written(folder: Path) -> float:
    """When a stage logged last; 0 where it never did."""
    try:
        return (folder / "metrics.jsonl").stat().st_mtime
    except OSError:
        return 0.0
