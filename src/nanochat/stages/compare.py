"""Compare two models on the same rows: is one better, or is the difference chance?

reads   results/RUN/scores/PHASE/TASK.json of both and the items beside them; nothing is computed again
writes  a table on the terminal

For each task: the rows that both answered, both scores on them, the difference (second less first) with its 95% interval, and p, the chance of
a difference at least so large between equal models: McNemar's exact test for right and wrong answers, a seeded bootstrap of the paired
differences for other scores. Lower is better for bpb. Of twenty tasks one is below p = 0.05 by chance.

by hand: nanochat compare d4/mid d4/sft --task gsm8k
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.artifacts import read_json
from nanochat.config import PHASES
from nanochat.errors import UserError
from nanochat.eval.paired import Paired, compare_items, second_is_better, why_not_paired
from nanochat.stages.common import stage_parser

HEADER = ("task", "rows", "first", "second", "difference", "95% interval", "p", "")


def main(arguments: list[str]) -> None:
    """Read, compare, print."""
    parser = stage_parser(__doc__, "compare")
    parser.add_argument("first", metavar="RUN/PHASE", help="a model, as d4/mid")
    parser.add_argument("second", metavar="RUN/PHASE", help="the model it is compared with")
    parser.add_argument("--task", action="append", metavar="T", help="this task only; may be given several times (default: all that both have)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="FOLDER", help="default: results")
    flags = parser.parse_args(arguments)
    folders = [scores_of(flags.results, model) for model in (flags.first, flags.second)]
    rows = [row_of(task, folders) for task in _tasks(folders, flags)]
    print(f"first: {flags.first}, second: {flags.second}\n")
    print(table([HEADER, *rows]))


def scores_of(results: Path, model: str) -> Path:
    """The folder of a model's scores. Raises UserError naming the runs or phases that there are."""
    run, _, phase = model.partition("/")
    runs = sorted({folder.parents[1].name for folder in results.glob("*/scores/*") if folder.is_dir()})
    if run not in runs:
        raise UserError(f"{model}: no scores of run {run!r} in {results}/; choose one of {', '.join(runs) or 'none, since nothing was evaluated'}")
    phases = [name for name in PHASES if (results / run / "scores" / name).is_dir()]
    if phase not in phases:
        raise UserError(f"{model}: no scores of phase {phase!r} of run {run}; choose one of {', '.join(f'{run}/{name}' for name in phases)}")
    return results / run / "scores" / phase


def _tasks(folders: Sequence[Path], flags: Namespace) -> list[str]:
    found = [{file.stem for file in folder.glob("*.json")} for folder in folders]
    both = sorted(found[0] & found[1])
    for task in flags.task or ():
        if task not in both:
            raise UserError(f"--task={task}: not scored for both models; choose one of {', '.join(both) or 'none, since they share no task'}")
    if not both:
        raise UserError(f"{flags.first} and {flags.second}: no task was scored for both; evaluate them on the same tasks")
    return list(dict.fromkeys(flags.task)) if flags.task else both


def row_of(task: str, folders: Sequence[Path]) -> tuple[str, ...]:
    """One line of the table; where the two cannot be compared it says why."""
    scores = [read_json(folder / f"{task}.json") for folder in folders]
    why = why_not_paired(*scores)
    found = None if why else compare_items(*(_items(folder, score) for folder, score in zip(folders, scores, strict=True)))
    if found is None:
        return (task, *[""] * (len(HEADER) - 2), why or "they have no row in common")
    low, high = found.interval
    numbers = (f"{found.first:.4f}", f"{found.second:.4f}", f"{found.difference:+.4f}", f"{low:+.4f} to {high:+.4f}", p_text(found.p))
    return (task, f"{found.n:,}", *numbers, verdict(task, found))


def _items(folder: Path, score: dict[str, Any]) -> list[dict[str, Any]]:
    file = folder / Path(score["items"]).name
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{file}: missing, though the score names it; delete {folder / score['task']}.json and evaluate it again") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON lines ({error}); delete {folder / score['task']}.json and evaluate it again") from None


def p_text(p: float) -> str:
    """Three digits, and no zero where there is none."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(task: str, found: Paired) -> str:
    """Which one is better, if the rows show it."""
    if not found.is_significant:
        return "no difference shown"
    return "second is better" if second_is_better(task, found.difference) else "first is better"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of one width; numbers end, words begin together."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True)), row[-1]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
