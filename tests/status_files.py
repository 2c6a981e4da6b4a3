"""`nanochat status` as a user calls it, and the files of a stage whose attempt is under way, for the tests of both verbs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import warm
from report_files import attempt, training

from nanochat.artifacts import write_json

SOURCE = Path(__file__).parents[1] / "src"


def status(folder: Path, *flags: str, path: str | None = None, verb: str = "status") -> "subprocess.CompletedProcess[str]":
    """`nanochat status FLAGS` in `folder`, `path`: where squeue is looked for (default: nowhere)."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PATH": path if path is not None else "", "TZ": "UTC"}
    done: subprocess.CompletedProcess[str] = warm.run([sys.executable, "-m", "nanochat", verb, *flags], cwd=folder, env=environment, timeout=60)
    return done


def lines_of(folder: Path, *flags: str, path: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """(run, stage) -> line, as --json gives it."""
    done = status(folder, "--json", *flags, path=path)
    assert (done.returncode, done.stderr) == (0, "")
    return {(line["run"], line["stage"]): line for line in json.loads(done.stdout)["stages"]}


def beat(folder: Path, age_s: float = 1.0, **changes: Any) -> None:
    """A heartbeat written `age_s` ago."""
    content = {"phase": "train", "step": 20, "steps": 40, "last_progress": time.time() - age_s, "tokens_per_s": 1000.0, "eta_s": 100.0}
    write_json(folder / "heartbeat.json", {**content, **changes})


def started(root: Path, state: str = "running", *, age_s: float = 1.0, owner: str | None = None, **facts: Any) -> Path:
    """results/tiny/base_train/ of an attempt that began an hour ago and was last seen `age_s` ago; `owner`: a host named in an owner file."""
    now = time.time()
    last = attempt(state, start=now - 3600, heartbeat=now - 600, **facts)
    training(root, "tiny", "base", {}, attempts=[attempt("failed", start=now - 9000, heartbeat=now - 8000), last], finished=False)
    folder = root / "results/tiny/base_train"
    beat(folder, age_s)
    if owner:
        write_json(folder / ".owner.json", {"host": owner, "pid": 1234, "job": facts.get("job")})
    return folder
