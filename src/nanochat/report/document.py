"""What a report consists of, independent of its format: sections of blocks, written once and rendered as Markdown and HTML.

Every string is plain text, in which `backticks` mark code; the renderers escape the rest.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Cell:
    """A value with an optional small note behind it (an interval, a unit, a reason)."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `tone` "missing" marks something that could not be shown, with the reason and the cure."""

    kind: ClassVar[str] = "paragraph"
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]
    tone: str = "plain"


@dataclass(frozen=True)
class Facts:
    """Named values, one a line."""

    kind: ClassVar[str] = "facts"
    rows: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class Table:
    """A table. The first `text_columns` columns hold words and are set left, the others hold numbers and are set right."""

    kind: ClassVar[str] = "table"
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    text_columns: int = 1


@dataclass(frozen=True)
class Tiles:
    """The few numbers to see first: (name, value)."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class Figure:
    """An inline SVG and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Figures:
    """Figures side by side where the page is wide enough. Markdown shows the captions and refers to the HTML report."""

    kind: ClassVar[str] = "figures"
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Choice:
    """One of several views of the same thing, chosen by the reader: (label, figures); `chosen` is shown first, and on paper. Needs no script."""

    kind: ClassVar[str] = "choice"
    name: str
    question: str
    options: tuple[tuple[str, Figures], ...]
    chosen: int = 0


@dataclass(frozen=True)
class Beside:
    """Blocks side by side where the page is wide enough, below each other elsewhere."""

    kind: ClassVar[str] = "beside"
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Samples:
    """One prompt and what each phase made of it: (phase, text)."""

    kind: ClassVar[str] = "samples"
    prompt: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that the reader opens when needed: long tables, full configurations."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    kind: ClassVar[str] = "code"
    text: str


Block = Paragraph | Bullets | Facts | Table | Tiles | Figures | Choice | Beside | Samples | Heading | Fold | Code


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `anchor` is its fragment in links."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """The whole report. `header`: what made it, above everything else."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    header: Facts | None = None


def cells(*values: "str | Cell") -> tuple[Cell, ...]:
    """A table row from words and cells."""
    return tuple(value if isinstance(value, Cell) else Cell(value) for value in values)
