"""What every run is doing: stage, state, step, time left, speed, last progress, SLURM job, loss, log.

reads   below --results: manifests, provenance, heartbeats, locks, the end of metrics.jsonl; squeue and sacct where stages ran as SLURM jobs.
        No experiment file
writes  nothing

    running      its process holds the lock of its folder and makes progress
    stalled      the lock is held, and nothing has moved for --stalled-after seconds and ten steps
    waiting      not started, or its job is in SLURM's queue
    stopped      ended on purpose with its state saved (signal or time limit)
    interrupted  recorded as running, and nobody holds its lock: it was killed
    failed       ended with an error
    finished     its manifest is written

A lock of another host may not be visible here; then SLURM or the heartbeat decides, and the line says so.

by hand: nanochat status
         nanochat status --watch
         nanochat status --json
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

from nanochat.errors import UserError
from nanochat.status import show, slurm
from nanochat.status.console import parser, positive, printing
from nanochat.status.look import Look, ask_slurm, look
from nanochat.status.stages import STALLED_AFTER_S, read_stages

EVERY_S = 5.0  # as often as a heartbeat is written
SLURM_EVERY_S = 30.0  # the controller of a cluster serves everybody


def main(arguments: list[str]) -> None:
    """Look once, or again and again."""
    flags = _flags(arguments)
    with printing():
        if flags.watch:
            _watch(flags)
        else:
            _print(look(flags.results, stalled_after_s=flags.stalled_after), flags)


def _flags(arguments: list[str]) -> Namespace:
    flags = parser("status", __doc__)
    flags.add_argument("--watch", action="store_true", help="look again and again until Ctrl-C; with --json one object per line")
    flags.add_argument("--every", type=positive, metavar="SECONDS", help=f"how often --watch looks (default: {EVERY_S:.0f})")
    limit = f"a stage is stalled without progress for so long, and for ten steps (default: {STALLED_AFTER_S:.0f})"
    flags.add_argument("--stalled-after", type=positive, default=STALLED_AFTER_S, metavar="SECONDS", help=limit)
    given = flags.parse_args(arguments)
    if given.every is not None and not given.watch:
        raise UserError(f"--every={given.every:g}: only --watch looks more than once; add --watch")
    return given


def _print(seen: Look, flags: Namespace) -> None:
    if flags.json:
        print(json.dumps(seen.to_json(), indent=None if flags.watch else 1, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        print("\n".join(show.lines(seen)), flush=True)


def _watch(flags: Namespace) -> None:
    """Look until Ctrl-C: a table that is drawn anew on a terminal, blocks of lines elsewhere."""
    every_s = flags.every or EVERY_S
    looks = _looks(flags, every_s)
    try:
        if flags.json or not sys.stdout.isatty():
            for number, seen in enumerate(looks):
                if not flags.json:
                    print(("\n" if number else "") + time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.at)))
                _print(seen, flags)
            return
        from rich.live import Live

        with Live(auto_refresh=False, vertical_overflow="ellipsis") as live:
            for seen in looks:
                live.update(show.table(seen, live.console.width, live.console.height), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(flags: Namespace, every_s: float) -> Iterator[Look]:
    """One look after another; SLURM is asked less often than files are read."""
    queue, asked = slurm.Queue(), float("-inf")
    while True:
        if time.monotonic() - asked >= SLURM_EVERY_S:
            queue, asked = ask_slurm(flags.results, read_stages(flags.results, [])), time.monotonic()
        yield look(flags.results, queue=queue, stalled_after_s=flags.stalled_after)
        time.sleep(every_s)
