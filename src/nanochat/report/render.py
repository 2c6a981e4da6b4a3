"""A document as Markdown and as one self-contained HTML page: no request, no script, readable on paper and on a phone."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from nanochat.report.document import Document

FOLDER = Path(__file__).parent


def html(document: Document) -> str:
    """The document as a page with inline CSS and inline SVG."""
    environment = _environment(autoescape=True)
    environment.filters["inline"] = _inline_html
    style = Markup((FOLDER / "report.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.j2").render(document=document, style=style)


def markdown(document: Document) -> str:
    """The document as CommonMark with tables."""
    environment = _environment(autoescape=False)
    environment.filters |= {"inline": _inline_markdown, "cell": _markdown_cell, "fenced": _fenced}
    text = environment.get_template("report.md.j2").render(document=document)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment(*, autoescape: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER), autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )


def _inline_html(text: str) -> Markup:
    breakable = re.sub(r"(\d-)(?=-?\d\.)", r"\1<wbr>", str(escape(text)))  # intervals, on a phone
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", breakable))


def _inline_markdown(text: str) -> str:
    """Escape what Markdown would read as markup, outside of `code`."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(piece if piece.startswith("`") and len(piece) > 1 else re.sub(r"([\\*<\[\]#])", r"\\\1", piece) for piece in pieces)


def _markdown_cell(text: str) -> str:
    return _inline_markdown(text).replace("|", "\\|")


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
