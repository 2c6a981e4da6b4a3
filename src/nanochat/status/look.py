"""One look at a results folder: a line for every stage, ready to be shown or written as JSON."""

import math
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanochat.history import is_number
from nanochat.status import slurm
from nanochat.status.stages import STALLED_AFTER_S, STATES, TRAINING, StageFiles, Verdict, judge, read_stages, run_folders

ENDED = ("stopped", "interrupted", "failed")
SPOKEN = re.compile(r"nanochat(?: \w+)?: (.*)")
CHUNKED = ("prepare", "tokenize")  # stages of which a corpus has many, shown as one
LOG_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Line:
    """What one stage of one run is doing. Times are Unix times, None stands for what is not known; `run` names the tokenizer or corpus of a shared stage."""

    run: str
    stage: str
    state: str
    judged_by: str  # lock, heartbeat, provenance, manifest or slurm
    why: str | None = None
    phase: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None  # from now on
    tokens_per_s: float | None = None
    last_progress: float | None = None
    age_s: float | None = None
    saved_step: int | None = None
    attempts: int = 0
    host: str | None = None
    job: str | None = None
    job_state: str | None = None
    loss: float | None = None
    val_bpb: float | None = None
    reward: float | None = None  # of reinforcement learning: mean over the answers of a step
    pass_at_1: float | None = None  # of reinforcement learning: on the problems held out
    bad_steps: int | None = None  # of a training: losses that were not finite, or spikes
    bad_steps_skipped: int | None = None  # of them
    log: str | None = None
    chunks: dict[str, int] | None = None  # of stages prepare and tokenize: how many in which state
    heartbeat: dict[str, Any] | None = None  # as it was written

    @property
    def share(self) -> float | None:
        """Of the updates that are done, 0 to 1; None where they are not known."""
        return self.step / self.steps if self.step is not None and self.steps else None


@dataclass(frozen=True)
class Look:
    """Everything that one look has shown."""

    results: Path
    at: float
    lines: tuple[Line, ...]
    scores: dict[str, int] = field(default_factory=dict)  # run -> how many score files
    damaged: tuple[str, ...] = ()
    slurm_unavailable: str | None = None

    @property
    def go_on(self) -> str | None:
        """What to do about stages that will not go on by themselves; None where there are none."""
        ended = [line for line in self.lines if line.state in ENDED]
        if not ended:
            return None
        stages = ", ".join(dict.fromkeys(f"{line.run}/{line.stage}" for line in ended[:4])) + (f" and {len(ended) - 4} more" if len(ended) > 4 else "")
        first = "see the log of what failed, then run" if any(line.state == "failed" for line in ended) else "run"
        return f"{stages}: unless a snakemake is at it, {first} the same snakemake command again; it goes on from the last saved state"

    def to_json(self) -> dict[str, Any]:
        """The look as plain values."""
        return {
            "time": self.at,
            "results": str(self.results),
            "stages": [finite({**asdict(line), "share": line.share}) for line in self.lines],
            "scores": self.scores,
            "damaged": list(self.damaged),
            "slurm": {"unavailable": self.slurm_unavailable},
            "go_on": self.go_on,
        }


def finite(value: Any) -> Any:
    """The value with null for each number that JSON has no word for, such as a NaN in a field that this program does not know."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def look(results: Path, *, queue: slurm.Queue | None = None, stalled_after_s: float = STALLED_AFTER_S) -> Look:
    """Read every file and judge every stage. `queue`: what SLURM has said before; by default it is asked."""
    damaged: list[str] = []
    files = read_stages(results, damaged)
    queue = ask_slurm(results, files) if queue is None else queue
    now = time.time()
    lines = [_line(each, judge(each, queue, now, stalled_after_s), queue, now, _log(results, each)) for each in files]
    known = {(line.stage, line.run) for line in lines}
    lines += [_queued(stage, run, job) for (stage, run), job in sorted(queue.queued.items()) if (stage, run) not in known]
    scores = {run.name: number for run in run_folders(results, damaged) if (number := sum(1 for _ in run.glob("scores/*/*.json")))}
    return Look(results, now, tuple(_by_corpus(lines)), scores, tuple(dict.fromkeys(damaged)), queue.unavailable)


def ask_slurm(results: Path, files: Iterable[StageFiles]) -> slurm.Queue:
    """What SLURM says of the jobs of stages that are not finished."""
    return slurm.ask([each.job for each in files if each.job and (each.manifest is None or each.holder.held)], results.resolve().parent)


def _queued(stage: str, run: str, job: slurm.Job) -> Line:
    """A stage that has left nothing yet and whose job is in the queue."""
    return Line(run, stage, "running" if job.is_active else "waiting", "slurm", f"job {job.words()}", job=job.number, job_state=job.state)


def _line(files: StageFiles, verdict: Verdict, queue: slurm.Queue, now: float, log: Path | None) -> Line:
    counts = (files.manifest or {}).get("counts", {}) if verdict.state == "finished" else {}
    bad = counts if verdict.state == "finished" else files.beat.content if files.beat else {}
    last, progress, job = files.last, files.last_progress, queue.jobs.get(files.job or "")
    return Line(
        *(files.run, files.stage, verdict.state, verdict.by),
        verdict.why or (_last_words(log, last) if verdict.state in ENDED else None),
        **_position(files, verdict, now),
        tokens_per_s=last.get("tokens_per_s") or (files.beat.tokens_per_s or None if files.beat else None),
        last_progress=progress,
        age_s=None if progress is None else max(0.0, now - progress),
        saved_step=files.saved_step,
        attempts=len(files.attempts),
        host=files.holder.host if files.holder.held and files.holder.host else _text(last.get("host")),
        job=files.job,
        job_state=job.state if job else None,
        loss=_number(counts.get("final_loss", files.logged.get("loss", {}).get("loss"))),
        val_bpb=_number(counts.get("final_val_bpb", files.logged.get("val_bpb", {}).get("val_bpb"))),
        reward=_number(files.logged.get("reward", {}).get("reward")),
        pass_at_1=_number(counts.get("final_pass@1", files.logged.get("pass@1", {}).get("pass@1"))),
        bad_steps=_number(bad.get("bad_steps")),
        bad_steps_skipped=_number(bad.get("bad_steps_skipped")),
        log=str(log) if log else None,
        heartbeat=files.beat.content if files.beat else None,
    )


def _position(files: StageFiles, verdict: Verdict, now: float) -> dict[str, Any]:
    """How far a training stage is: phase, step, steps, eta_s. Between its start and its first beat it is starting up."""
    if verdict.state == "finished":
        done = _number((files.manifest or {}).get("counts", {}).get("steps"))
        return {"step": done, "steps": done}
    alive, beat = verdict.state in ("running", "stalled"), files.current_beat
    if beat is None:
        return {"phase": "start-up"} if alive and files.stage in TRAINING else {}
    known = {"step": beat.step, "steps": beat.steps} if beat.steps else {}
    left = None if beat.eta_s is None or not known else max(0.0, beat.eta_s - max(0.0, now - beat.last_progress))
    return {"phase": beat.phase, **known, "eta_s": left if alive else None}


def _number(value: Any) -> Any:
    return value if is_number(value) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _log(results: Path, files: StageFiles) -> Path | None:
    """The log that the workflow keeps of a stage; None where it was run by hand."""
    is_chunk = files.stage in CHUNKED and files.folder.name != files.run
    name = f"{files.run}/{files.folder.name}.log" if is_chunk else f"{files.run}.log"
    log = results.parent / "logs" / files.stage / name
    return log if log.is_file() else None


def _last_words(log: Path | None, attempt: dict[str, Any]) -> str | None:
    """What the stage itself said last of its end, if this log is of this attempt."""
    try:
        if log is None or log.stat().st_mtime < attempt.get("start", 0.0):
            return None
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_TAIL_BYTES))
            lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return None  # the log is a help, no result
    spoken = next((said[1] for line in reversed(lines) if (said := SPOKEN.match(line))), None)
    return spoken and "".join(letter for letter in spoken if letter.isprintable())


def _by_corpus(lines: list[Line]) -> list[Line]:
    """The chunks of a corpus as one line, in the state of the chunk that most needs to be seen; other lines as they are."""
    merged: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        merged.setdefault((line.run, line.stage), []).append(line)
    return [_one(group) if group[0].stage in CHUNKED else group[0] for group in merged.values()]


def _one(group: list[Line]) -> Line:
    first = min(group, key=lambda line: STATES.index(line.state))
    progress = max((line.last_progress for line in group if line.last_progress is not None), default=None)
    ages = [line.age_s for line in group if line.age_s is not None]
    chunks = Counter(line.state for line in group)
    return Line(
        *(first.run, first.stage, first.state, first.judged_by, first.why),
        last_progress=progress,
        age_s=min(ages, default=None),
        attempts=sum(line.attempts for line in group),
        host=first.host,
        job=first.job,
        job_state=first.job_state,
        log=first.log,
        chunks={state: chunks[state] for state in STATES if chunks[state]},
    )
