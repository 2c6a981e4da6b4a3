"""The tasks of CORE as they were fetched: rows, and how they are asked. Broken rows are refused with their file and line."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.artifacts import read_manifest, verified_file
from nanochat.data.core import CORE_BASELINES, CORE_TASKS, CORE_YAML, TEXTS, Kind, row_fault
from nanochat.data.sources import fetch_command
from nanochat.errors import UserError
from nanochat.eval.chatcore import centred
from nanochat.tasks.base import FETCH_AGAIN, read_rows


@dataclass(frozen=True)
class IclTask:
    """A task with its rows, in the order of the file."""

    label: str
    kind: Kind
    shots: int
    delimiter: str
    baseline: float  # percent right by guessing
    rows: list[dict[str, Any]]
    sha256: str  # of the file of its rows

    def centered(self, accuracy: float) -> float:
        """How far above guessing, as a share of what is possible above it."""
        return centred(accuracy, 0.01 * self.baseline)


def load_tasks(manifests: Sequence[Path], only: Sequence[str] = ()) -> list[IclTask]:
    """The tasks of CORE in these fetched sources, in the order of the metric; `only`: those with these labels."""
    if unknown := [label for label in only if label not in CORE_TASKS]:
        raise UserError(f"tasks={unknown[0]!r}: no task of CORE; choose among {', '.join(CORE_TASKS)}")
    found: dict[str, IclTask] = {}
    for manifest in manifests:
        if not (manifest.parent / CORE_YAML).is_file():
            raise UserError(f"--data={manifest}: holds no {CORE_YAML}, so no tasks of CORE; give the manifest of core_bundle or core_wheels")
        for task in _tasks_of(manifest, only):
            if task.label in found:
                raise UserError(f"--data={manifest}: task {task.label} is in another source too; give one of them")
            found[task.label] = task
    if not manifests:
        raise UserError(f"--data: none given; task core needs a manifest of core_bundle or core_wheels: {fetch_command('core_wheels')}")
    if lacking := [label for label in only if label not in found]:
        raise UserError(f"tasks={lacking[0]!r}: in none of the sources given by --data; leave it out or give one that has it")
    return [found[label] for label in CORE_TASKS if label in found]


def _tasks_of(manifest: Path, only: Sequence[str]) -> Iterator[IclTask]:
    import yaml

    place, shas = manifest.parent / CORE_YAML, read_manifest(manifest, stage="fetch")["outputs"]
    try:
        listed = yaml.safe_load(verified_file(manifest, CORE_YAML).read_text(encoding="utf-8"))["icl_tasks"]
        entries = [(task["label"], task["icl_task_type"], task["num_fewshot"], task.get("continuation_delimiter", " ")) for task in listed]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: lists no tasks with label, icl_task_type and num_fewshot ({error!r:.160}); {FETCH_AGAIN}") from None
    baselines = _baselines(manifest)
    for label, kind, shots, delimiter in entries:
        if label not in CORE_TASKS:
            raise UserError(f"{place}: has a task {label!r}, which is none of CORE's ({', '.join(CORE_TASKS)}); {FETCH_AGAIN}")
        if only and label not in only:
            continue
        count = shots[0] if isinstance(shots, list) and shots else shots
        if kind not in TEXTS or not isinstance(count, int) or count < 0 or not isinstance(delimiter, str):
            raise UserError(
                f"{place}: task {label} has kind {kind!r}, {shots!r} examples and delimiter {delimiter!r}, which nanochat cannot ask; {FETCH_AGAIN}"
            )
        if label not in baselines:
            raise UserError(f"{manifest.parent / CORE_BASELINES}: has no Random baseline for task {label}; {FETCH_AGAIN}")
        name = f"{label}.jsonl"
        yield IclTask(label, kind, count, delimiter, baselines[label], read_task_rows(verified_file(manifest, name), kind), shas[name]["sha256"])


def _baselines(manifest: Path) -> dict[str, float]:
    file, found = verified_file(manifest, CORE_BASELINES), {}
    for number, row in enumerate(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))), 2):
        label, percent = row.get("Eval Task"), row.get("Random baseline")
        if label in CORE_TASKS:
            try:
                found[label] = float(percent or "")
            except ValueError:
                raise UserError(f"{file}: line {number}: Random baseline of {label} is {percent!r}, no number; {FETCH_AGAIN}") from None
    return found


def read_task_rows(file: Path, kind: Kind) -> list[dict[str, Any]]:
    """Rows of one task. Raises UserError with file and line of one that cannot be asked."""
    rows = read_rows([file], lambda row: row_fault(kind, row))
    if not rows:
        raise UserError(f"{file}: holds no row; {FETCH_AGAIN}")
    return rows
