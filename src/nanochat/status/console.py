"""What `nanochat status` and `nanochat runs` share: flags, of which a wrong one is one sentence and exit code 2, and printing."""

import contextlib
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from nanochat.errors import UserError


class Parser(ArgumentParser):
    """Flags only, never abbreviated."""

    def error(self, message: str) -> NoReturn:
        """Raise the problem as a UserError that says where to read on."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def parser(name: str, docstring: str | None) -> Parser:
    """The parser of `nanochat NAME`, with --results and --json."""
    flags = Parser(prog=f"nanochat {name}", description=docstring, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    flags.add_argument("--results", type=Path, default=Path("results"), help="folder of the results (default: results)")
    flags.add_argument("--json", action="store_true", help="for programs: one JSON object")
    return flags


def positive(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text} is not a number above 0")
    return value


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print in this block: what the terminal cannot show becomes a question mark."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    yield
    sys.stdout.flush()
