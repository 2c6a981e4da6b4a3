"""One frame of `nanochat watch`: a panel for each quantity, and a line of numbers for each run."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.report import text
from nanochat.report.axes import AXES, is_quantity, series, thinned
from nanochat.status.look import Line
from nanochat.status.show import age, aligned, bad_steps
from nanochat.watch.logs import Log

COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue", "white")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARGIN = 14  # columns that plotille takes for the numbers of the y axis
LEAST_WIDTH, LEAST_HEIGHT = 15, 6
FRAME_LINES = 5  # of a panel besides the curve: the y axis' name and largest value, the x axis, its numbers, an empty line
DOTS = 2  # in the width of a character
BLANK, FIRST_DOTS, LAST_DOTS = "\u2800", "\u2801", "\u28ff"
HEADINGS = ("", "run", "state", "step", "loss", "bpb", "tokens/s", "utilisation", "ETA", "progress")
RIGHT = (3, 4, 5, 6, 7, 8, 9)
LEFT_OUT = (9, 7, 3, 6, 8)  # where a terminal is narrow, one after another until the others fit


@dataclass(frozen=True)
class Look:
    """How to draw: columns and lines of the whole frame, whether colours are seen, and whether the terminal has more than ASCII."""

    width: int
    height: int
    colours: bool
    unicode: bool


def frame(logs: Sequence[Log], lines: Sequence[Line | None], metrics: Sequence[str], axis: str, look: Look) -> str:
    """Everything, as lines."""
    numbers = _numbers(logs, lines, look)
    height = max(LEAST_HEIGHT, (look.height - len(numbers) - 1) // len(metrics) - FRAME_LINES)
    panels = [_panel(logs, metric, axis, look, height) for metric in metrics]
    return "\n".join([*panels, *numbers])


def _panel(logs: Sequence[Log], metric: str, axis: str, look: Look, height: int) -> str:
    """The curves of one quantity."""
    curves = {place: found for place, log in enumerate(logs) if (found := series(log.rows, metric, axis))[0]}
    if not curves:
        return f"{metric}: nothing is logged yet\n"
    from plotille import Figure

    width = max(LEAST_WIDTH, look.width - MARGIN - len(AXES[axis].label) - 6)
    letters = not look.unicode or (len(logs) > 1 and not look.colours)
    figure = Figure()
    figure.width, figure.height, figure.color_mode, figure.with_colors, figure.origin = width, height, "names", look.colours, False
    figure.x_label, figure.y_label = AXES[axis].label, metric
    figure.x_ticks_fkt, figure.y_ticks_fkt = (lambda low, _: AXES[axis].words(float(low))), (lambda low, _: f"{float(low):10.4g}")
    for place, (x, y) in curves.items():
        most = width if letters else DOTS * width
        marker = LETTERS[place % len(LETTERS)] if letters else None
        figure.plot(thinned(x, most), thinned(y, most), lc=COLOURS[place % len(COLOURS)], interp=None if letters else "linear", marker=marker)
    figure.set_x_limits(*_limits([x for x, _ in curves.values()]))
    figure.set_y_limits(*_limits([tuple(thinned(y, DOTS * width)) for _, y in curves.values()]))
    drawn = figure.show().replace(BLANK, " ")
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


def _limits(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Smallest and largest, a little apart where they are equal."""
    low, high = min(map(min, values)), max(map(max, values))
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0))


def _numbers(logs: Sequence[Log], lines: Sequence[Line | None], look: Look) -> list[str]:
    """A table: where each run is. The first column tells its curve."""
    rows = [HEADINGS, *(_row(place, log, line, look) for place, (log, line) in enumerate(zip(logs, lines, strict=True)))]
    used = [n for n, column in enumerate(zip(*rows, strict=True)) if n == 0 or any(column[1:])]
    table = _table(rows, used)
    for n in LEFT_OUT:
        if max(map(len, table)) > look.width and n in used:
            used.remove(n)
            table = _table(rows, used)
    table = [line[: look.width] for line in table]
    if look.colours:
        from plotille import color

        table[1:] = [color(line[:2], fg=COLOURS[place % len(COLOURS)]) + line[2:] for place, line in enumerate(table[1:])]
    known = [(log.run, line) for log, line in zip(logs, lines, strict=True) if line is not None]
    return table + [f"{run}: {', '.join(said)}" for run, line in known if (said := [*bad_steps(line), *([line.why] if line.why else [])])]


def _table(rows: Sequence[Sequence[str]], columns: Sequence[int]) -> list[str]:
    return aligned([[row[n] for n in columns] for row in rows], [place for place, n in enumerate(columns) if n in RIGHT])


def _row(place: int, log: Log, line: Line | None, look: Look) -> tuple[str, ...]:
    def number(value: object, form: str) -> str:
        return format(value, form) if is_quantity(value) else ""

    sign = LETTERS[place % len(LETTERS)] if not look.colours or not look.unicode else "\u2501\u2501"
    loss, bpb, speed, share = (log.last(key) for key in ("loss", "val_bpb", "tokens_per_s", "utilisation"))
    if line is None:
        return (sign, log.run, "not started", "", number(loss, ".4f"), number(bpb, ".4f"), "", "", "", "")
    alive = line.state in ("running", "stalled")
    state = f"{line.state}, {line.phase}" if alive and line.phase and line.phase != "train" else line.state
    step = "" if line.share is None else f"{line.step:,} of {line.steps:,} ({text.percent(line.share)})"
    speed = (line.tokens_per_s if alive else None) or speed
    eta = "" if line.eta_s is None else age(line.eta_s)
    seen = "" if line.age_s is None else f"{age(line.age_s)} ago"
    used = text.percent(share) if is_quantity(share) else ""
    return (sign, log.run, state, step, number(loss, ".4f"), number(bpb, ".4f"), number(speed, ",.0f"), used, eta, seen)
