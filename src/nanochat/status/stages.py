"""Every stage below results/ as its files tell of it, and what it is doing now: its state, and what says so."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.history import Beat, attempts_of, beat_of, last_logged, manifest_of, saved_step, unless_damaged
from nanochat.names import NOT_A_RUN, STAGE_OF_PHASE
from nanochat.report.text import duration
from nanochat.status.holder import Holder, holder_of
from nanochat.status.slurm import Job, Queue

TRAINING = tuple(STAGE_OF_PHASE.values())
STATES = ("stalled", "failed", "interrupted", "running", "stopped", "waiting", "finished")  # what most needs to be seen stands first
STALLED_AFTER_S = 600.0  # assumption: longer than any phase without a beat (start-up of eight ranks, hashing 22 GB, one validation)
STALLED_STEPS = 10  # a step may take minutes on a small machine: so many of them without a beat
LOGGED = ("loss", "val_bpb")
LOGGED_OF_RL = ("loss", "reward", "pass@1")  # it has no validation in bits per byte
Attempts = tuple[dict[str, Any], ...]
NO_ATTEMPTS: Attempts = ()
NOTHING: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class StageFiles:
    """One stage of one run, or one shared thing that runs are made of (a tokenizer, a chunk of tokens)."""

    run: str
    stage: str
    folder: Path
    manifest: dict[str, Any] | None = None
    attempts: Attempts = ()
    beat: Beat | None = None
    saved_step: int | None = None
    logged: dict[str, dict[str, Any]] = field(default_factory=dict)
    holder: Holder = field(default_factory=Holder)

    @property
    def last(self) -> dict[str, Any]:
        """The last attempt; empty where there was none."""
        return self.attempts[-1] if self.attempts else {}

    @property
    def job(self) -> str | None:
        """SLURM job of the process that holds the folder, else of the last attempt."""
        job = self.holder.content.get("job") if self.holder.held else self.last.get("job")
        return str(job) if job else None

    @property
    def current_beat(self) -> Beat | None:
        """The heartbeat, unless it is one of an attempt before the last."""
        return self.beat if self.beat and self.beat.last_progress >= self.last.get("start", 0.0) else None

    @property
    def last_progress(self) -> float | None:
        """Unix time of the last sign of life; None where there was none."""
        signs = [self.last.get("heartbeat"), self.last.get("end"), self.beat.last_progress if self.beat else None]
        signs += [self.holder.since if self.holder.held else None]
        return max((sign for sign in signs if sign is not None), default=None)

    @property
    def step_s(self) -> float:
        """Seconds per update at the present speed; 0 where it is not known."""
        line, speed = self.logged.get("loss", {}), self.beat.tokens_per_s if self.beat else 0.0
        try:
            return float(line["tokens"] / line["step"] / speed)
        except (KeyError, TypeError, ArithmeticError):
            return 0.0


def read_stages(results: Path, damaged: list[str]) -> list[StageFiles]:
    """Every stage that left something below `results`: shared things first, then runs by name. Damaged files are named, and taken as absent."""
    places = [*_shared(results, damaged), *_of_runs(results, damaged)]
    return [_read(run, stage, folder, damaged) for run, stage, folder in places]


def folders(parent: Path, damaged: list[str]) -> list[Path]:
    """Folders in `parent` by name, hidden ones left out; empty where there is no parent."""
    if not parent.is_dir():
        return []
    return unless_damaged(lambda: sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")), [], damaged)


def run_folders(results: Path, damaged: list[str]) -> list[Path]:
    """Folders of runs. A file in the place of `results` is a UserError."""
    if results.exists() and not results.is_dir():
        raise UserError(f"--results={results}: a file; give the folder that holds the runs")
    return [folder for folder in folders(results, damaged) if folder.name not in NOT_A_RUN]


def _of_runs(results: Path, damaged: list[str]) -> Iterator[tuple[str, str, Path]]:
    for run in run_folders(results, damaged):
        yield from ((run.name, stage, run / stage) for stage in TRAINING if (run / stage).is_dir())


def _shared(results: Path, damaged: list[str]) -> Iterator[tuple[str, str, Path]]:
    for tokenizer in folders(results / "tokenizers", damaged):
        yield tokenizer.name, "tokenizer", tokenizer
    for corpus in folders(results / "text", damaged):
        yield from ((corpus.name, "prepare", folder) for folder in (corpus, *folders(corpus, damaged)) if folder.name != "resume")
    for pair in folders(results / "tokens", damaged):
        yield from ((pair.name, "tokenize", chunk) for chunk in folders(pair, damaged))


def _read(run: str, stage: str, folder: Path, damaged: list[str]) -> StageFiles:
    attempts, holder = _story_and_holder(folder, damaged)
    manifest = unless_damaged(lambda: manifest_of(folder / "manifest.json", stage), None, damaged)
    files = StageFiles(run, stage, folder, manifest, attempts, holder=holder)
    if stage not in TRAINING:
        return files
    files = replace(files, beat=unless_damaged(lambda: beat_of(folder), None, damaged))
    if manifest is not None:
        return files
    saved, keys = unless_damaged(lambda: saved_step(folder), None, damaged), LOGGED_OF_RL if stage == "chat_rl" else LOGGED
    return replace(files, saved_step=saved, logged=unless_damaged(lambda: last_logged(folder / "metrics.jsonl", keys), NOTHING, damaged))


def _story_and_holder(folder: Path, damaged: list[str]) -> tuple[Attempts, Holder]:
    """A story and a lock that belong together: "running" without a holder is believed only if it stands there before and after the look at
    the lock, since a stage closes its story before it lets go of the folder."""
    attempts = unless_damaged(lambda: attempts_of(folder), NO_ATTEMPTS, damaged)
    while True:
        holder, before = holder_of(folder, damaged), attempts
        if holder.held or not attempts or attempts[-1]["state"] != "running":
            return attempts, holder
        attempts = unless_damaged(lambda: attempts_of(folder), NO_ATTEMPTS, damaged)
        if attempts == before:
            return attempts, holder


# --- judgement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A state, what says so (lock, heartbeat, provenance, manifest, slurm), and what a reader should know besides."""

    state: str
    by: str
    why: str | None = None


def judge(files: StageFiles, queue: Queue, now: float, stalled_after_s: float = STALLED_AFTER_S) -> Verdict:
    """What a stage is doing at Unix time `now`."""
    silent_s = max(0.0, now - (files.last_progress if files.last_progress is not None else now))
    is_silent = files.stage in TRAINING and silent_s > max(stalled_after_s, STALLED_STEPS * files.step_s)
    silence = f"no progress for {duration(silent_s)}"
    if files.holder.held:
        cure = f"its log may say where it hangs; {f'scancel {files.job}' if files.job else 'killing it'} lets it go on from the last saved state"
        held = f"{silence}, and {files.holder.named} still holds the lock: {cure}"
        return Verdict("stalled", "heartbeat", held) if is_silent else Verdict("running", "lock")
    if files.manifest is not None:
        return Verdict("finished", "manifest")
    job = queue.queued.get((files.stage, files.run)) or queue.jobs.get(files.job or "")
    if files.last.get("state") == "running" and files.holder.held is None:
        return _far_away(files, job, silence if is_silent else None)
    if job and job.is_waiting:
        return Verdict("waiting", "slurm", f"job {job.words()}")
    if job and job.is_active and job.number != files.job:
        return Verdict("running", "slurm", f"job {job.words()} is starting")
    return _ended(files)


def _far_away(files: StageFiles, job: Job | None, silence: str | None) -> Verdict:
    """An attempt that is recorded as running and whose lock cannot be seen: SLURM knows, else its heartbeat has to do."""
    if job and job.is_waiting:
        return Verdict("waiting", "slurm", f"job {job.words()}")
    if job and job.has_ended:
        return Verdict("interrupted", "slurm", f"job {job.words()}")
    if job:
        return Verdict("stalled", "heartbeat", f"{silence}, and job {job.words()}") if silence else Verdict("running", "slurm")
    unseen = f"the lock of {files.holder.host or 'its host'} cannot be seen from here"
    if files.stage not in TRAINING:
        return Verdict("running", "provenance", f"{unseen}, and this stage has no heartbeat: as it was recorded")
    return Verdict("interrupted", "heartbeat", f"{silence}; {unseen}") if silence else Verdict("running", "heartbeat", unseen)


def _ended(files: StageFiles) -> Verdict:
    """A stage that nobody works on and that is not finished."""
    state = files.last.get("state")
    if state is None and files.beat is not None:
        return Verdict("interrupted", "lock", "its provenance.json is lost; nobody holds its lock")
    if state is None:
        return Verdict("waiting", "provenance", "not started yet")
    if state == "running":
        return Verdict("interrupted", "lock", "killed, or its machine went down: nobody holds its lock")
    if state == "finished":
        is_there = (files.folder / "manifest.json").exists()  # and could not be read: snakemake looks at its time alone
        what = "cannot be read; delete it, and it will be made again" if is_there else "is gone, so it will be made again"
        return Verdict("waiting", "provenance", f"it finished once; its manifest.json {what}")
    return Verdict(state if state in STATES else "failed", "provenance")
