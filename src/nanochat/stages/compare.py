"""Compare two models on the same rows: is one better, or is the difference chance?

reads   results/RUN/scores/PHASE/TASK.json of both and the items beside them; nothing is computed again
writes  a table on the terminal

For each task: the rows that both answered, both scores on them, the difference (second less first) with its 95% interval, and p, the chance of
a difference at least so large between equal models: McNemar's exact test for right and wrong answers, flipped signs for bpb and CORE. CORE is
over the tasks that both were asked alike. Lower is better for bpb. Of twenty tasks one is below p = 0.05 by chance. Below the table stands
what was not the same for both: how they were asked, which rows.

by hand: nanochat compare d4/mid d4/sft --task gsm8k
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from nanochat.artifacts import read_json
from nanochat.config import PHASES
from nanochat.errors import UserError
from nanochat.eval.paired import Paired, Scored, compare_scores, second_is_better
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
    found = {task: compare_scores(*(_scored(folder / f"{task}.json") for folder in folders)) for task in _tasks(folders, flags)}
    print(f"first: {flags.first}, second: {flags.second}\n")
    print(table([HEADER, *(row_of(task, test) for task, test in found.items())]))
    if remarks := [f"{task}: {remark}" for task, test in found.items() if isinstance(test, Paired) for remark in test.remarks]:
        print("\n" + "\n".join(remarks))


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


def _scored(path: Path) -> Scored:
    content = read_json(path)
    if not isinstance(content, dict) or not {"task", "score"} <= content.keys():
        raise UserError(f"{path}: not a score; delete it, or compare another task with --task")
    return path, content


def row_of(task: str, found: Paired | str) -> tuple[str, ...]:
    """One line of the table; where the two cannot be compared it says why."""
    if isinstance(found, str):
        return (task, *[""] * (len(HEADER) - 2), found)
    low, high = found.interval
    numbers = (f"{found.first:.4f}", f"{found.second:.4f}", f"{found.difference:+.4f}", f"{low:+.4f} to {high:+.4f}", p_text(found.p))
    return (found.name or task, f"{found.n:,}", *numbers, verdict(task, found))


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
