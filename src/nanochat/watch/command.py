"""The curves of one or several runs in the terminal, while they train and afterwards.

reads   below --results: metrics.jsonl as it grows, and what `nanochat status` reads
writes  nothing

Below the curves stand the state of each run (see nanochat status --help), last loss, validation bits per byte, tokens per second,
utilisation (where the peak speed of the device is known), time left and time since the last sign of life. On a terminal the picture is drawn anew every few
seconds until nothing trains any more or Ctrl-C; into a pipe it is printed once (--follow prints it again and again).

by hand: nanochat watch d4
         nanochat watch d2 d4 --axis hours --metric loss --metric val_bpb
         nanochat watch d4 --stage chat_sft --once
"""

import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from pathlib import Path

from nanochat.errors import UserError
from nanochat.report.axes import AXES, quantities
from nanochat.report.text import listed
from nanochat.status import slurm
from nanochat.status.console import Parser, positive, printing
from nanochat.status.look import ask_slurm, look
from nanochat.status.stages import TRAINING, read_stages
from nanochat.watch.draw import Look, frame
from nanochat.watch.logs import Log, chosen_stage

EVERY_S = 5.0
SLURM_EVERY_S = 30.0
PLAIN_WIDTH, PLAIN_HEIGHT = 100, 30  # where there is no terminal
GOING_ON = ("running", "stalled", "waiting")


def main(arguments: list[str]) -> None:
    """Draw once, or again and again."""
    flags = _flags(arguments)
    runs, stage = chosen_stage(flags.results, flags.runs, flags.stage)
    logs = [Log(run, flags.results / run / stage) for run in runs]
    with printing():
        is_terminal = sys.stdout.isatty()
        follow = flags.follow or (is_terminal and not flags.once)
        frames = _frames(flags, logs, stage, _terminal() if is_terminal else _no_terminal)
        try:
            if follow and is_terminal:
                _live(frames)
                return
            for drawn in frames if follow else [next(frames)]:
                print(drawn, flush=True)
        except KeyboardInterrupt:
            return


def _no_terminal() -> Look:
    return Look(PLAIN_WIDTH, PLAIN_HEIGHT, colours=False, unicode=_has_unicode())


def _terminal() -> Callable[[], Look]:
    """How to draw on the terminal, which may change its size."""
    from rich.console import Console

    console, unicode = Console(), _has_unicode()  # rich puts something else in the place of stdout, which has no encoding
    return lambda: Look(console.width, console.height, colours=not console.no_color, unicode=unicode)


def _flags(arguments: list[str]) -> Namespace:
    flags = Parser(prog="nanochat watch", description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    flags.add_argument("runs", nargs="*", metavar="RUN", help="names of runs (default: all that have trained)")
    flags.add_argument("--stage", choices=TRAINING, help="default: the stage that logged last")
    flags.add_argument("--axis", choices=tuple(AXES), default="step", help="what stands below the curves (default: step)")
    flags.add_argument(
        "--metric", action="append", metavar="NAME", help="what to draw, several times for several panels: loss (default), val_bpb, grad_norm, ..."
    )
    flags.add_argument("--results", type=Path, default=Path("results"), help="folder of the results (default: results)")
    flags.add_argument("--every", type=positive, default=EVERY_S, metavar="SECONDS", help=f"how often to draw (default: {EVERY_S:.0f})")
    how = flags.add_mutually_exclusive_group()
    how.add_argument("--follow", action="store_true", help="draw again and again while something trains (default on a terminal)")
    how.add_argument("--once", action="store_true", help="draw once (default elsewhere)")
    return flags.parse_args(arguments)


def _frames(flags: Namespace, logs: list[Log], stage: str, looks: Callable[[], Look]) -> Iterator[str]:
    """One picture after another, the last one when nothing trains any more."""
    queue, asked = slurm.Queue(), float("-inf")
    metrics = flags.metric or ["loss"]
    while True:
        if time.monotonic() - asked >= SLURM_EVERY_S:
            queue, asked = ask_slurm(flags.results, read_stages(flags.results, [])), time.monotonic()
        found = {line.run: line for line in look(flags.results, queue=queue).lines if line.stage == stage}
        for log in logs:
            log.read()
        _check(metrics, logs)
        lines = [found.get(log.run) for log in logs]
        yield f"{stage}\n" + frame(logs, lines, metrics, flags.axis, looks())
        if not any(line is not None and line.state in GOING_ON for line in lines):
            return
        time.sleep(flags.every)


def _check(metrics: list[str], logs: list[Log]) -> None:
    known = quantities(row for log in logs for row in log.rows)
    if known and (unknown := [metric for metric in metrics if metric not in (*known, "loss", "val_bpb")]):
        raise UserError(f"--metric={unknown[0]}: not logged by {listed([log.run for log in logs])}; there is {listed(known, most=40)}")


def _has_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")


def _live(frames: Iterator[str]) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, vertical_overflow="crop") as live:
        for drawn in frames:
            live.update(Text.from_ansi(drawn, no_wrap=True, overflow="crop"), refresh=True)
