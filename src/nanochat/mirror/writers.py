"""One class for each library: `write` takes a line of metrics.jsonl. Each is imported only where it was asked for; whatever they raise is the caller's."""

import importlib
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, float]


class Writer(Protocol):
    """A mirror that is being written."""

    def write(self, step: int, values: Values) -> None:
        """One line."""

    def flush(self) -> None:
        """Have everything so far on disk, or raise."""

    def close(self) -> None:
        """The last line was written."""


class TensorBoard:
    """tensorboard/events.out.tfevents...: each metric is a scalar under its own name."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self.events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self.summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        files = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        place = folder / "tensorboard"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self.file = files.EventFileWriter(str(place))
        # a board that is looking on forgets what it has shown from this step on: SummaryWriter's purge_step
        start = self.events.SessionLog(status=self.events.SessionLog.START)
        self.file.add_event(self.events.Event(wall_time=time.time(), step=0, session_log=start))
        self.origin: float | None = None

    def write(self, step: int, values: Values) -> None:
        """The board's relative time is the time of training, pauses between attempts left out."""
        if self.origin is None:
            self.origin = time.time() - values.get("elapsed_s", 0.0)
            self.now = self.origin
        self.now = self.origin + values.get("elapsed_s", self.now - self.origin)
        scalars = [self.summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.file.add_event(self.events.Event(wall_time=self.now, step=step, summary=self.summaries.Summary(value=scalars)))

    def flush(self) -> None:
        """Raises what the thread that writes has met."""
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.flush()
        self.file.close()


class Wandb:
    """wandb/offline-run-TIME-ID/: the ID follows from the run, so that every start of it is one run to whoever sends it."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        settings, name = request["settings"], request["name"]
        identity = sha256(f"{request['identity']} {name}".encode()).hexdigest()[:16]
        for old in (folder / "wandb").glob(f"offline-run-*-{identity}"):
            shutil.rmtree(old)
        quiet = wandb.Settings(console="off", disable_git=True, save_code=False, silent=True, x_disable_stats=True, x_disable_meta=True)
        self.run = wandb.init(
            dir=str(folder),
            mode="offline",
            id=identity,
            name=name,
            project=settings.get("project"),
            entity=settings.get("entity"),
            tags=settings.get("tags") or None,
            config=request["config"],
            settings=quiet,
        )
        self.file = Path(self.run.settings.sync_file)

    def write(self, step: int, values: Values) -> None:
        """Lines of one step, an update's and a validation's, become one row."""
        self.run.log(dict(values), step=step)

    def flush(self) -> None:
        """Its own process writes; that it still does is seen at the end."""

    def close(self) -> None:
        """Wait for that process, and see that there is a file."""
        self.run.finish()
        if not self.file.is_file() or not self.file.stat().st_size:
            raise OSError(f"wandb has left no {self.file.name}")


class Trackio:
    """trackio/PROJECT.db, an SQLite database."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        trackio = importlib.import_module("trackio")
        project = request["settings"].get("project", "nanochat")
        place = folder / "trackio"
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob(f"{project}.db*"):
            old.unlink()
        self.file, self.lines = place / f"{project}.db", 0
        self.run = trackio.init(project=project, name=request["name"], config=request["config"], embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def write(self, step: int, values: Values) -> None:
        """One row."""
        self.run.log(dict(values), step=step)
        self.lines += 1

    def flush(self) -> None:
        """Its own thread writes, twice a second."""

    def close(self) -> None:
        """Wait for that thread, and count: trackio swallows what goes wrong there."""
        self.run.finish()
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True)) as database:
            (rows,) = database.execute("SELECT count(*) FROM metrics").fetchone()
        if rows < self.lines:
            raise OSError(f"trackio has kept {rows} of {self.lines} lines")


WRITERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}
