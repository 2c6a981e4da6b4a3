"""Everything that a report was handed, read into plain values: manifests, provenance, metrics, samples, scores.

What does not exist is remembered with the command that builds it; a report of a half-finished run is a report.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanochat.artifacts import build_command, read_json, sha256_file
from nanochat.config import PHASES, STAGE_OF_PHASE
from nanochat.errors import UserError
from nanochat.history import attempts_of, json_beside, manifest_of
from nanochat.report.text import listed

EVERYTHING = "snakemake --cores all"
MOST_NAMED = 8  # files that a command names
PHASE_OF_STAGE = {stage: phase for phase, stage in STAGE_OF_PHASE.items()}


@dataclass(frozen=True)
class Missing:
    """Something the report should show and cannot: what, why, and the command that makes it."""

    what: str
    why: str
    command: str

    def sentence(self) -> str:
        """One sentence for the reader."""
        return f"{self.what}: {self.why}; build it with `{self.command}`"


@dataclass(frozen=True)
class Artifact:
    """A manifest and the files beside it. `manifest` is None where the stage has not finished."""

    path: Path
    stage: str
    manifest: dict[str, Any] | None
    sha256: str | None
    attempts: tuple[dict[str, Any], ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the stage wrote its manifest."""
        return self.manifest is not None

    @property
    def counts(self) -> dict[str, Any]:
        """The manifest's counts; empty where the stage has not finished."""
        return dict(self.manifest.get("counts", {})) if self.manifest else {}

    @property
    def config(self) -> dict[str, Any]:
        """The manifest's config; empty where the stage has not finished."""
        return dict(self.manifest.get("config", {})) if self.manifest else {}

    @property
    def inputs(self) -> dict[str, str]:
        """Name -> sha256 of the manifest that was read."""
        return dict(self.manifest.get("inputs", {})) if self.manifest else {}


@dataclass(frozen=True)
class Training(Artifact):
    """One training stage of one run: results/{run}/{stage}/."""

    run: str = ""
    phase: str = ""
    metrics: tuple[dict[str, Any], ...] = ()
    samples: tuple[dict[str, str], ...] = ()
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def identities(self) -> set[str | None]:
        """The sha256 that name this model: of its manifest and of its weights."""
        outputs = (self.manifest or {}).get("outputs", {})
        return {self.sha256, *(stated["sha256"] for name, stated in outputs.items() if name.endswith(".safetensors"))}

    @property
    def skipped(self) -> tuple[int, int]:
        """(steps without anything to learn from, steps) of reinforcement learning; (0, 0) elsewhere."""
        return (self.counts.get("skipped_steps") or 0, self.counts.get("steps") or 0) if self.phase == "rl" else (0, 0)

    def series(self, key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(steps, values) of one logged quantity; a step that was logged again after a resume counts once, as last logged."""
        values = {row["step"]: row[key] for row in self.metrics if row.get(key) is not None and "step" in row}
        steps = sorted(values)
        return tuple(float(step) for step in steps), tuple(float(values[step]) for step in steps)


@dataclass(frozen=True)
class Score:
    """results/{run}/scores/{phase}/{task}.json; `value` is None where `unavailable` says why."""

    run: str
    phase: str
    task: str
    path: Path
    value: float | None
    interval: tuple[float, float] | None
    baseline: float | None
    unavailable: str | None
    content: dict[str, Any]
    outdated: str = ""  # why it is not of the model that is shown


@dataclass(frozen=True)
class Inputs:
    """The files of one report."""

    trainings: tuple[Training, ...]
    scores: tuple[Score, ...]
    tokenizers: tuple[Artifact, ...]
    tokens: tuple[Artifact, ...]
    sources: tuple[Artifact, ...]
    text: tuple[Artifact, ...]  # prepared: the judgement of a corpus, and its chunks
    missing: tuple[Missing, ...]
    evaluations: dict[str, dict[str, Any]]  # tokenizer name -> evaluation.json
    contamination: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)  # corpus, or RUN.STAGE of a mixture -> rows, one for each task

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the order given."""
        return tuple(dict.fromkeys([*(training.run for training in self.trainings), *(score.run for score in self.scores)]))

    def training(self, run: str, phase: str) -> Training | None:
        """The stage that made `phase` of `run`, finished or not."""
        return next((training for training in self.trainings if (training.run, training.phase) == (run, phase)), None)

    def of_run(self, run: str) -> list[Training]:
        """Training stages of a run, in the order of the phases."""
        return sorted((training for training in self.trainings if training.run == run), key=lambda training: PHASES.index(training.phase))

    def run_scores(self, run: str, *, outdated: bool = False) -> dict[tuple[str, str], Score]:
        """(phase, task) -> score; those of models that are gone only where asked for."""
        return {(score.phase, score.task): score for score in self.scores if score.run == run and (outdated or not score.outdated)}


def read_inputs(
    *,
    run_manifests: Sequence[Path],
    scores: Sequence[Path],
    tokenizers: Sequence[Path],
    tokens: Sequence[Path],
    sources: Sequence[Path],
    text: Sequence[Path] = (),
    contamination: Sequence[Path] = (),
    runs: Sequence[str],
) -> Inputs:
    """Read every file. `runs` names the runs to show; empty: all. A wrong or damaged file is a UserError."""
    missing: list[Missing] = []
    made = [_artifacts(paths, stage, missing) for paths, stage in ((sources, "fetch"), (text, "prepare"), (tokenizers, "tokenizer"), (tokens, "tokenize"))]
    read_sources, read_text, read_tokenizers, read_tokens = made
    overlaps = {path.stem: rows for path in contamination if (rows := _contamination(path, missing))}
    trainings = [training for path in run_manifests if not runs or _run_of(path) in runs for training in [_training(path, missing)]]
    missing += _other_parents(trainings)
    read_scores = _scores([path for path in scores if not runs or _score_place(path)[0] in runs], trainings, missing)
    known = {training.run for training in trainings}
    for run in runs:
        if run not in known:
            missing.append(Missing(f"run {run}", "no manifest of it was handed to this report", build_command(f"results/{run}/base_train/manifest.json")))
    return Inputs(
        trainings=tuple(trainings),
        scores=tuple(read_scores),
        tokenizers=read_tokenizers,
        tokens=read_tokens,
        sources=read_sources,
        text=read_text,
        missing=tuple(missing),
        evaluations={item.path.parent.name: json_beside(item.path.parent, "evaluation.json", {}) for item in read_tokenizers},
        contamination=overlaps,
    )


def _run_of(path: Path) -> str:
    return path.parent.parent.name


def _braces(names: Sequence[str]) -> str:
    """Several names as a shell reads them: {a,b}."""
    return f"{{{','.join(names)}}}" if len(names) > 1 else names[0]


def _artifacts(paths: Iterable[Path], stage: str, missing: list[Missing]) -> tuple[Artifact, ...]:
    found = [_artifact(path, stage) for path in paths]
    wanted: dict[Path, list[Path]] = {}
    for item in found:
        if not item.finished:
            wanted.setdefault(item.path.parent.parent, []).append(item.path)
    for folder, files in wanted.items():
        names = [file.parent.name for file in files]
        command = build_command(folder / _braces(names) / files[0].name) if len(names) <= MOST_NAMED else EVERYTHING
        missing.append(Missing(f"{stage} {listed(names)}", "not made yet", command))
    return tuple(item for item in found if item.finished)


def _artifact(path: Path, stage: str) -> Artifact:
    manifest = manifest_of(path, stage)
    return Artifact(path, stage, manifest, sha256_file(path) if manifest else None, attempts_of(path.parent))


def _training(path: Path, missing: list[Missing]) -> Training:
    run, stage = _run_of(path), path.parent.name
    if stage not in PHASE_OF_STAGE:
        raise UserError(f"--run-manifests={path}: not below a training stage; give results/RUN/{{{','.join(PHASE_OF_STAGE)}}}/manifest.json")
    item = _artifact(path, stage)
    metrics = _metrics(path.parent / "metrics.jsonl")
    if not item.finished:
        started = f"not finished (last logged step: {metrics[-1].get('step', 'none')})" if metrics else "not built yet"
        missing.append(Missing(f"{PHASE_OF_STAGE[stage].upper()} of run {run}", started, build_command(path)))
    return Training(
        path,
        stage,
        item.manifest,
        item.sha256,
        item.attempts,
        run=run,
        phase=PHASE_OF_STAGE[stage],
        metrics=tuple(metrics),
        samples=tuple(_samples(path)) if item.finished else (),
        model=json_beside(path.parent, "model.json", {}),
    )


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; an unfinished last line (the writer was killed) is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON lines ({error}); delete it and run the stage that makes it again") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: holds a line that is no object; delete it and run the stage that makes it again")
    return rows


def _samples(path: Path) -> list[dict[str, Any]]:
    """What a finished model said; before its end the file is of an earlier model."""
    found = json_beside(path.parent, "samples.json", [])
    if not isinstance(found, list) or not all(isinstance(sample, dict) and {"prompt", "completion"} <= sample.keys() for sample in found):
        raise UserError(f"{path.with_name('samples.json')}: each sample needs prompt and completion; delete it, the report can do without")
    return found


def _contamination(path: Path, missing: list[Missing]) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        missing.append(Missing(f"contamination of {path.stem}", "not counted yet", build_command(path)))
        return ()
    content = read_json(path)
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"task", "items", "items_with_overlap"} <= row.keys() for row in rows):
        raise UserError(f"{path}: not a table of contamination; each row needs task, items and items_with_overlap")
    return tuple(rows)


def _score_place(path: Path) -> tuple[str, str]:
    return path.parent.parent.parent.name, path.parent.name


def _scores(paths: Iterable[Path], trainings: Sequence[Training], missing: list[Missing]) -> list[Score]:
    """Every score that is there; what is missing or outdated is told once for a phase."""
    models = {(training.run, training.phase): training for training in trainings}
    found: list[Score] = []
    wanted: dict[tuple[str, str, str], list[Path]] = {}
    for path in paths:
        place = _score_place(path)
        if place[1] not in PHASES:
            raise UserError(f"--scores={path}: not below a phase; give results/RUN/scores/{{{','.join(PHASES)}}}/TASK.json")
        why = "not evaluated yet"
        if path.is_file():
            score = _score(path)
            why = _outdated(score, models.get(place))
            found.append(replace(score, outdated=why))
        if why:
            wanted.setdefault((*place, why), []).append(path)
    for (run, phase, why), files in sorted(wanted.items(), key=lambda item: PHASES.index(item[0][1])):
        names = [path.stem for path in files]
        what = f"score{'s' * (len(names) > 1)} {', '.join(names)} of {phase.upper()}, run {run}"
        missing.append(Missing(what, why, build_command(files[0].with_name(f"{_braces(names)}.json"))))
    return found


def _outdated(score: Score, training: Training | None) -> str:
    """Why a score is not of the model that the report shows; empty where it is, or where nothing tells."""
    if training is None:
        return ""
    if not training.finished:
        return f"of an earlier {training.phase.upper()}; the present one has not finished"
    named = score.content.get("model_sha256")
    return f"of an earlier {training.phase.upper()} than the one shown" if named and named not in training.identities else ""


def _other_parents(trainings: Sequence[Training]) -> list[Missing]:
    """Models that were made from an earlier state of the phase before them."""
    known = {training.sha256 for training in trainings}
    found = []
    for training in trainings:
        before = [other for other in trainings if other.run == training.run and PHASES.index(other.phase) < PHASES.index(training.phase)]
        if "model" not in training.inputs or training.inputs["model"] in known or not before:
            continue
        parent = max(before, key=lambda other: PHASES.index(other.phase))
        why = f"made from an earlier {parent.phase.upper()}" + (" than the one shown" if parent.finished else "; the present one has not finished")
        found.append(Missing(f"{training.phase.upper()} of run {training.run}", why, build_command(training.path)))
    return found


def _score(path: Path) -> Score:
    run, phase = _score_place(path)
    content = read_json(path)
    if not isinstance(content, dict) or "score" not in content:
        raise UserError(f"{path}: not a score; give a file that stage evaluate wrote")
    interval = content.get("interval")
    numbers = [content["score"], content.get("baseline"), *(interval or ())]
    if len(interval or (0, 1)) != 2 or not all(number is None or (isinstance(number, int | float) and math.isfinite(number)) for number in numbers):
        raise UserError(f"{path}: score={content['score']!r:.40}, interval={interval!r:.60} are no numbers of a score; delete it and evaluate again")
    return Score(
        run=run,
        phase=phase,
        task=str(content.get("task", path.stem)),
        path=path,
        value=content["score"],
        interval=(float(interval[0]), float(interval[1])) if interval else None,
        baseline=content.get("baseline"),
        unavailable=content.get("unavailable") or (None if content["score"] is not None else "no reason was recorded"),
        content=content,
    )
