"""Which file of a chunk's text holds a piece of a document, as far as reading the text can tell.

Packing orders the documents of a portion of the text by their length, so a row's place in the chunk says about where its documents came from: the search
begins there and ends when everything is found.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

CUT_CHARACTER = "\ufffd"  # at the ends of a piece: what is left of a character that was cut
SEARCHED = 4096  # characters of a piece; more would make no difference


def files_of(pieces: Sequence[str], files: Sequence[Path], at: float) -> list[str | None]:
    """The name of the file that each piece stands in, looking first at the share `at` (0 to 1) of all documents. None: in none, or nothing to look for."""
    from nanochat.data.documents import group_rows, read_row_group  # pyarrow, which other commands do without

    if len(files) == 1:
        return [files[0].name] * len(pieces)
    groups = [(file, index, count) for file in files for index, count in enumerate(group_rows(file))]
    ends = list(accumulate(count for _, _, count in groups))
    found: list[str | None] = [None] * len(pieces)
    wanted = {place: needle for place, piece in enumerate(pieces) if (needle := piece.strip(CUT_CHARACTER)[:SEARCHED].rstrip(CUT_CHARACTER))}
    for number in sorted(range(len(groups)), key=lambda number: abs(ends[number] - groups[number][2] / 2 - at * ends[-1])):
        if not wanted:
            break
        file, index, _ = groups[number]
        text = "\0".join(read_row_group(file, index))
        for place in [place for place, needle in wanted.items() if needle in text]:
            found[place] = file.name
            del wanted[place]
    return found
