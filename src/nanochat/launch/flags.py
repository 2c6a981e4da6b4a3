"""Flags of the supervisor: how many ranks and nodes, and how long no progress may last. None of them changes what is learnt."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from nanochat.errors import UserError
from nanochat.progress import Limits


class StageParser(argparse.ArgumentParser):
    """Flags only, never abbreviated; a wrong one is a UserError (exit 2, one sentence, no usage dump)."""

    def error(self, message: str) -> NoReturn:
        """Raise the problem as a UserError that names the verb and where to read on."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def number_above(kind: Callable[[str], float], least: float, *, least_too: bool = False) -> Callable[[str], float]:
    """A type for argparse: a number above `least`, or equal to it."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole number' if kind is int else 'number'}") from None
        if not (value > least or (least_too and value == least)):
            raise argparse.ArgumentTypeError(f"{text} is not {'at least' if least_too else 'above'} {least:g}")
        return value

    return read


count = number_above(int, 0)
seconds = number_above(float, 0, least_too=True)


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """--ranks, --nodes and the limits. The supervisor reads them; the stage only lists them in its --help."""
    limits = Limits()
    parser.add_argument("--ranks", type=count, default=1, help="processes on this machine, one per GPU (default: 1)")
    parser.add_argument("--nodes", type=count, default=1, help="machines that train together; start the same command on each (default: 1)")
    parser.add_argument("--node-rank", type=number_above(int, 0, least_too=True), default=0, metavar="K", help="which of the nodes this one is, from 0")
    parser.add_argument("--rendezvous", metavar="HOST:PORT", help="where node 0 can be reached by the others, with a free port; needed for --nodes above 1")
    help_of = "end with exit code 75 and the stacks of all threads in the log after so many seconds without progress"
    parser.add_argument(
        "--startup-limit", type=seconds, default=limits.startup_s, metavar="S", help=f"{help_of} before the first step (default: 900; 0: never)"
    )
    text = f"{help_of} in a step, or ten times the median of recent steps if that is longer (default: 60; 0: never)"
    parser.add_argument("--step-limit", type=seconds, default=limits.step_s, metavar="S", help=text)
    text = f"{help_of} while validating, sampling or saving (default: 1800; 0: never)"
    parser.add_argument("--pause-limit", type=seconds, default=limits.pause_s, metavar="S", help=text)
    text = "the speed that was planned: the log says within minutes if the run is far slower; it goes on"
    parser.add_argument("--expected-tokens-per-s", type=number_above(float, 0), metavar="N", help=text)


def limits_of(flags: argparse.Namespace) -> Limits:
    """The limits that the flags ask for."""
    return Limits(flags.startup_limit, flags.step_limit, flags.pause_limit)


def read_launch_flags(verb: str, arguments: list[str]) -> argparse.Namespace:
    """The supervisor's own flags out of a stage's; it leaves the others to the stage. Raises UserError."""
    parser = StageParser(prog=f"nanochat {verb}", allow_abbrev=False, add_help=False)
    add_launch_flags(parser)
    flags, _ = parser.parse_known_args(arguments)
    if flags.node_rank >= flags.nodes:
        raise UserError(f"--node-rank={flags.node_rank}: there are {flags.nodes} nodes, counted from 0; give a smaller one or raise --nodes")
    if flags.nodes > 1:
        host, _, port = (flags.rendezvous or "").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"--rendezvous={flags.rendezvous}: with --nodes={flags.nodes} every node needs HOST:PORT of node 0, as in node-01:29500")
        flags.host, flags.port = host, int(port)
    return flags
