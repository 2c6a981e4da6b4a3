"""Figures as inline SVG that follow the page's colours; the same numbers give the same bytes.

matplotlib draws with placeholder colours that become CSS variables, so that one figure serves light and dark pages.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from nanochat.report import text
from nanochat.report.axes import thinned

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {color: f"var(--series-{index + 1})" for index, color in enumerate(SERIES)}
DASHES = ("-", "--", ":", "-.")  # colours alone do not survive a black-and-white print
MAX_POINTS = 400  # of a curve; longer ones show means of equal numbers of points


@dataclass(frozen=True)
class Curve:
    """A named line: x and y of equal length."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """A bar, its interval and the level of guessing; None where there is none."""

    group: str
    series: str
    value: float
    interval: tuple[float, float] | None = None
    baseline: float | None = None


def curves(name: str, lines: Sequence[Curve], *, x_label: str, y_label: str) -> str:
    """Lines over a common axis, each thinned to at most 400 points."""
    figure, axes = _start()
    _draw(axes, lines, x_label, y_label)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _finish(figure, name, f"{y_label} against {x_label}: {', '.join(line.name for line in lines)}")


def panels(name: str, drawn: Mapping[str, Sequence[Curve]], *, y_label: str) -> str:
    """The same runs over several axes, label -> lines, two panels in a row; a run that does not know an axis is missing there."""
    figure, first = _start(width=7.4, height=2.6 * -(-len(drawn) // 2) + 0.3)
    first.remove()
    names = list(dict.fromkeys(line.name for lines in drawn.values() for line in lines))
    shown: dict[str, Artist] = {}
    for place, (x_label, lines) in enumerate(drawn.items()):
        axes = figure.add_subplot(-(-len(drawn) // 2), 2, place + 1)
        _style(axes)
        _draw(axes, lines, x_label, y_label if place % 2 == 0 else "", names)
        shown |= {name: artist for artist, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    known = [name for name in names if name in shown]
    figure.legend([shown[name] for name in known], known, loc="outside upper center", ncols=min(4, len(known)), frameon=False, labelcolor=INK, fontsize=8)
    return _finish(figure, name, f"{y_label} against {', '.join(drawn)}: {', '.join(names)}")


def _draw(axes: "Axes", lines: Sequence[Curve], x_label: str, y_label: str, names: Sequence[str] = ()) -> None:
    """Lines over one axis; `names`: the order that gives each its colour, if these are not all."""
    order = names or [line.name for line in lines]
    for line in lines:
        index = order.index(line.name)
        x, y = thinned(line.x, MAX_POINTS), thinned(line.y, MAX_POINTS)
        color, dashes = SERIES[index % len(SERIES)], DASHES[index // len(SERIES) % len(DASHES)]
        axes.plot(x, y, label=line.name, color=color, linestyle=dashes, linewidth=1.4, marker="o" if len(x) <= 12 else None, markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(lambda value, _: text.large(value))
    axes.grid(True, color=LINE, linewidth=0.6)


def bars(name: str, data: Sequence[Bar], *, x_label: str, format_value: str = "{:.3f}", maximum: float | None = None) -> str:
    """Horizontal bars in groups; whiskers are intervals, an upright tick is the level of guessing."""
    groups, series = list(dict.fromkeys(bar.group for bar in data)), list(dict.fromkeys(bar.series for bar in data))
    figure, axes = _start(height=0.9 + 0.22 * len(groups) * (len(series) + 0.6))
    thickness = 0.8 / len(series)
    for bar in data:
        place = groups.index(bar.group) + (series.index(bar.series) - (len(series) - 1) / 2) * thickness
        color = SERIES[series.index(bar.series) % len(SERIES)]
        label = bar.series if bar is next(b for b in data if b.series == bar.series) else None
        axes.barh(place, bar.value, height=thickness * 0.86, color=color, label=label)
        end = bar.value
        if bar.interval:
            end = max(end, bar.interval[1])
            axes.plot(bar.interval, (place, place), color=INK, linewidth=1)
        if bar.baseline is not None:
            axes.plot((bar.baseline, bar.baseline), (place - thickness / 2, place + thickness / 2), color=INK, linewidth=1.8)
        axes.annotate(format_value.format(bar.value), (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7, color=MUTED)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.margins(x=0.12)
    axes.set_xlim(left=0, right=maximum)
    axes.grid(True, axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(series) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(series), frameon=False, labelcolor=INK, fontsize=8)
    return _finish(figure, name, f"{x_label} of {', '.join(groups)}")


def _start(width: float = 5.4, height: float = 3.2) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    _style(axes)
    return figure, axes


def _style(axes: "Axes") -> None:
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.yaxis.label.set(color=MUTED, fontsize=9)


def _finish(figure: "Figure", name: str, description: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "path.simplify": True}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), name, description)


def inline(svg: str, name: str, description: str) -> str:
    """A standalone SVG as an element of a page: own ids, no metadata, no namespaces, no size, the page's colours."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda color: VARIABLES.get(color.group(), color.group()), svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "sans-serif", svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    opening = f'<svg {view.group()} role="img" aria-label="{escape(description)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip()
