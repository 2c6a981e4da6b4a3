"""A look as text: one line per stage for logs and pipes, a table for the live view of a terminal."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from nanochat.report import text
from nanochat.status.look import ENDED, Line, Look

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

COLOURS = {"running": "green", "stalled": "bold red", "waiting": "yellow", "stopped": "yellow", "interrupted": "red", "failed": "bold red", "finished": "dim"}
DAY_S = 86_400
BAR_WIDTH = 16
WITH_STEPS, WITH_BAR = 104, 122  # columns of a terminal that shows these too
FRAME_LINES = 3  # heading, column names, cursor
LEFT = ("run", "stage", "state", "")


def age(seconds: float) -> str:
    """4 s, 12m05s, 3h20m, 9 days."""
    return f"{seconds / DAY_S:.0f} days" if seconds >= 2 * DAY_S else text.duration(round(seconds)) if seconds >= 10 else f"{seconds:.0f} s"


def lines(look: Look) -> list[str]:
    """Every stage in one line each, then what else there is to say."""
    rows = [(line.run, line.stage, line.state, ", ".join([*_doing(line), *_besides(line)])) for line in look.lines]
    return aligned(rows) + remarks(look)


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows of equal length as lines with columns; `right`: which columns are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[cell.rjust(width) if n in right else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def remarks(look: Look) -> list[str]:
    """What belongs to no stage alone."""
    said = []
    if not look.lines:
        said.append(f"{look.results}: nothing has run yet" + ("" if look.results.is_dir() else ", there is no such folder (--results gives another)"))
    if look.scores:
        said.append("scores: " + ", ".join(f"{run} {number}" for run, number in look.scores.items()))
    if look.slurm_unavailable:
        said.append(f"state of SLURM jobs: {text.MISSING} ({look.slurm_unavailable})")
    said += [f"damaged: {sentence}" for sentence in look.damaged]
    return [*said, f"to go on: {look.go_on}"] if look.go_on else said


def _doing(line: Line) -> list[str]:
    """Where a stage is and how fast it goes."""
    said = [line.phase] if line.phase and line.state in ("running", "stalled") else []
    if line.chunks:
        said.append(_chunks(line))
    if line.share is not None:
        share = "" if line.state == "finished" else f" of {line.steps:,} ({text.percent(line.share)})"
        said.append(f"step {line.step:,}{share}")
    if line.eta_s is not None:
        said.append(f"ETA {age(line.eta_s)}")
    if line.tokens_per_s:
        said.append(f"{line.tokens_per_s:,.0f} tokens/s")
    if line.age_s is not None:
        said.append(f"{'ended' if line.state in (*ENDED, 'finished') else 'progress'} {age(line.age_s)} ago")
    if line.state in ENDED and line.saved_step is not None:
        said.append(f"state saved at step {line.saved_step:,}")
    return said


def _besides(line: Line) -> list[str]:
    """What it has learnt, where it runs, why it stands, and where to read on."""
    said = [f"loss {line.loss:.4f}"] if line.loss is not None else []
    if line.val_bpb is not None:
        said.append(f"validation {line.val_bpb:.4f} bpb")
    if line.reward is not None:
        said.append(f"reward {line.reward:.3f}")
    if line.pass_at_1 is not None:
        said.append(f"validation pass@1 {line.pass_at_1:.3f}")
    said += bad_steps(line)
    if line.host and line.state != "finished":
        said.append(f"on {line.host}")
    if _job(line) and line.state != "finished":
        said.append(_job(line))
    if line.attempts > 1 and line.chunks is None:
        said.append(f"attempt {line.attempts}")
    return said + ([line.why] if line.why else []) + ([line.log] if line.log else [])


def bad_steps(line: Line) -> list[str]:
    """3 bad steps, 2 of them skipped; nothing where there were none."""
    if not line.bad_steps:
        return []
    skipped = f", {line.bad_steps_skipped} of them skipped" if line.bad_steps_skipped else ""
    return [f"{line.bad_steps} bad step{'s' * (line.bad_steps > 1)}{skipped}"]


def table(look: Look, width: int, height: int) -> "Group":
    """For a terminal of `width` x `height`: what is not finished first, and below the table where it runs and why it stands.

    What is finished makes room where the terminal is too small for all.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    open_lines = [line for line in look.lines if line.state != "finished"]
    lines = open_lines + [line for line in look.lines if line.state == "finished"]
    notes = [Text(f"{line.run} {line.stage}: {', '.join(place)}", COLOURS.get(line.state, "")) for line in open_lines if (place := _place(line))]
    below = [*notes, *(Text(sentence, "red" if sentence.startswith("damaged") else "") for sentence in remarks(look))]
    if len(lines) + len(below) + FRAME_LINES > height and len(open_lines) < len(lines):
        below.append(Text(f"{len(lines) - len(open_lines)} finished stages: no room for them here, nanochat status lists them", "dim"))
        lines = open_lines
    columns = _columns(width)
    view = Table(box=None, pad_edge=False)
    for name in columns:
        view.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    for line in lines:
        view.add_row(*(fill(line) for fill in columns.values()))
    return Group(Text(f"{look.results} at {time.strftime('%H:%M:%S', time.localtime(look.at))}", "bold"), view, *below)


def _columns(width: int) -> "dict[str, Callable[[Line], RenderableType]]":
    """Heading -> what a line shows there: all that fits into `width` columns."""
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    def bar(line: Line) -> "RenderableType":
        return "" if line.share is None else ProgressBar(total=1.0, completed=line.share, width=BAR_WIDTH)

    columns: dict[str, tuple[int, Callable[[Line], RenderableType]]] = {
        "run": (0, lambda line: Text(line.run)),
        "stage": (0, lambda line: Text(line.stage)),
        "state": (0, lambda line: Text(line.phase if line.state == "running" and line.phase else line.state, COLOURS.get(line.state, ""))),
        "": (WITH_BAR, bar),
        "step": (WITH_STEPS, lambda line: f"{line.step:,}/{line.steps:,}" if line.share is not None else ""),
        "done": (0, lambda line: "" if line.share is None else text.percent(line.share)),
        "ETA": (0, lambda line: "" if line.eta_s is None else age(line.eta_s)),
        "tokens/s": (0, lambda line: f"{line.tokens_per_s:,.0f}" if line.tokens_per_s else ""),
        "last": (0, lambda line: "" if line.age_s is None else age(line.age_s)),
        "loss": (0, lambda line: "" if line.loss is None else f"{line.loss:.4f}"),
        "bpb": (WITH_STEPS, lambda line: "" if line.val_bpb is None else f"{line.val_bpb:.4f}"),
    }
    return {name: fill for name, (least, fill) in columns.items() if width >= least}


def _place(line: Line) -> list[str]:
    """Chunks, bad steps, host, job and reason of what is not finished."""
    if line.state == "finished":
        return []
    return [part for part in (_chunks(line), *bad_steps(line), line.host or "", _job(line), line.why or "", line.log or "") if part]


def _job(line: Line) -> str:
    """The job and its state, unless the reason of the line's state says both."""
    return f"job {line.job} {line.job_state or ''}".rstrip() if line.job and not (line.why or "").startswith(f"job {line.job} ") else ""


def _chunks(line: Line) -> str:
    return ", ".join(f"{number} {'chunk' if number == 1 else 'chunks'} {state}" for state, number in (line.chunks or {}).items())
