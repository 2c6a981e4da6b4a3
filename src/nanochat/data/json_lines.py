"""JSON lines, with the number of the line in every refusal."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

from nanochat.errors import UserError


def json_lines(lines: Iterable[bytes], place: object, cure: str) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of every line that is not empty. What is no JSON is refused with `place` (the file), the line and the `cure`."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: line {number}: invalid UTF-8 at byte {error.start} of the line; {cure}") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: line {number}: not valid JSON ({error.msg} at column {error.colno}); {cure}") from None
        except RecursionError:
            raise UserError(f"{place}: line {number}: JSON nested too deeply; {cure}") from None
