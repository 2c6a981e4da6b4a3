"""Figures as inline SVG that follow the page's colours; the same numbers give the same bytes.

matplotlib draws with placeholder colours that become CSS variables, so that one figure serves light and dark pages.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING, Literal

from nanochat.report import text
from nanochat.report.axes import thinned
from nanochat.report.published import BY_OTHERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {color: f"var(--series-{index + 1})" for index, color in enumerate(SERIES)}
DASHES = ("-", "--", ":", "-.")  # colours alone do not survive a black-and-white print
MAX_POINTS = 400  # of a figure's curves together; longer ones show means of equal numbers of points
LEAST_POINTS = 100  # of a curve, however many there are
WIDTH = 4.8  # inches
WIDEST_GROUP = 34  # characters of a line beside bars: a task of CORE fits; longer names leave no room for the bars
SPOKEN = 40  # bars that are read out


@dataclass(frozen=True)
class Curve:
    """A named line: x and y of equal length."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """A bar, its interval and the level of guessing; None where there is none. `published`: not ours, drawn pale, named beside it."""

    group: str
    series: str
    value: float
    interval: tuple[float, float] | None = None
    baseline: float | None = None
    published: bool = False


def curves(name: str, lines: Sequence[Curve], *, x_label: str, y_label: str) -> str:
    """Lines over a common axis, each thinned to at most 400 points, fewer where there are many lines."""
    columns, rows = _legend([line.name for line in lines])
    height = 3.0 + 0.2 * rows
    figure, axes = _start(height)
    figure.subplots_adjust(left=0.7 / WIDTH, right=1 - 0.15 / WIDTH, bottom=0.45 / height, top=1 - (0.12 + 0.2 * rows) / height)  # inches
    for index, line in enumerate(lines):
        most = max(LEAST_POINTS, MAX_POINTS // len(lines))
        x, y = thinned(line.x, most), thinned(line.y, most)
        color, dashes = SERIES[index % len(SERIES)], DASHES[index // len(SERIES) % len(DASHES)]
        axes.plot(x, y, label=line.name, color=color, linestyle=dashes, linewidth=1.4, marker="o" if len(x) <= 12 else None, markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(lambda value, _: text.axis(value))
    axes.grid(True, color=LINE, linewidth=0.6)
    if len(lines) > 1:
        figure.legend(loc="upper center", borderaxespad=0.1, ncols=columns, frameon=False, labelcolor=INK, fontsize=8)
    return _finish(figure, name, f"{y_label} against {x_label}: {', '.join(map(_in_words, lines))}")


def _in_words(line: Curve) -> str:
    """ "d4 from 8.318 to 4.051": what a reader hears who does not see the curve."""
    return f"{line.name} from {line.y[0]:.4g} to {line.y[-1]:.4g}" if line.y else line.name


def bars(name: str, data: Sequence[Bar], *, x_label: str, format_value: str = "{:.3f}", series: Sequence[str] = ()) -> str:
    """Horizontal bars in groups, without room for what a group does not have; whiskers are intervals, an upright tick is the level of guessing.

    `series`: names in their order; one that has no bar keeps its colour, which the same name has in another figure.
    """
    groups, drawn = list(dict.fromkeys(bar.group for bar in data)), {bar.series for bar in data}
    series = list(dict.fromkeys([*series, *(bar.series for bar in data)]))
    thickness = 0.22 if len(drawn) <= 4 else 0.15  # inches
    foreign = {bar.series for bar in data if bar.published}
    ours = [name for name in series if name not in foreign]
    legend = [name for name in ours if name in drawn]
    colors = {name: LINE if name in foreign else SERIES[ours.index(name) % len(SERIES)] for name in series}
    columns, rows = _legend([*legend, *([BY_OTHERS] if foreign else [])])
    figure, axes = _start(0.75 + 0.2 * rows + thickness * (len(data) + 0.7 * len(groups)), layout="constrained")
    place, middles = 0.0, []
    named: set[str] = set()
    for group in groups:
        members = sorted((bar for bar in data if bar.group == group), key=lambda bar: series.index(bar.series))
        middles.append(place + (len(members) - 1) / 2)
        for bar in members:
            label = BY_OTHERS if bar.published else bar.series
            _bar(axes, bar, place, colors[bar.series], format_value, label=None if label in named else label)
            named.add(label)
            place += 1
        place += 0.7
    axes.set_yticks(middles, [fill(group, WIDEST_GROUP) for group in groups])
    axes.set_ylim(place - 1, -0.8)
    axes.set_xlabel(x_label)
    axes.margins(x=0.12)
    axes.set_xlim(left=min(0.0, *(min(bar.value, *(bar.interval or (0.0,))) for bar in data)) * 1.05)
    axes.grid(True, axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    if rows:
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: [*legend, BY_OTHERS].index(labels[index]))
        shown = [handles[index] for index in order], [labels[index] for index in order]
        figure.legend(*shown, loc="outside upper center", ncols=columns, frameon=False, labelcolor=INK, fontsize=8)
    spoken = "; ".join(f"{bar.group}, {bar.series} {format_value.format(bar.value)}" for bar in data[:SPOKEN])
    return _finish(figure, name, f"{x_label}: {spoken}" + ("; more in the table" if len(data) > SPOKEN else ""))


def _legend(names: Sequence[str]) -> tuple[int, int]:
    """(columns, rows) of a legend above a figure; a single name needs none."""
    if len(names) < 2:
        return 1, 0
    widest = 0.45 + 0.075 * max(map(len, names))  # inches at 8 points
    columns = max(1, min(len(names), int((WIDTH - 0.3) / widest)))
    return columns, -(-len(names) // columns)


def _bar(axes: "Axes", bar: Bar, place: float, color: str, format_value: str, *, label: str | None) -> None:
    axes.barh(place, bar.value, height=0.86, color=color, edgecolor=MUTED if bar.published else color, linewidth=0.8, label=label)
    end = max(0.0, bar.value)
    if bar.interval:
        end = max(end, bar.interval[1])
        axes.plot(bar.interval, (place, place), color=INK, linewidth=1)
    if bar.baseline is not None:
        axes.plot((bar.baseline, bar.baseline), (place - 0.5, place + 0.5), color=INK, linewidth=1.8)
    said = format_value.format(bar.value) + (f"  {bar.series}" if bar.published else "")
    axes.annotate(said, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7, color=MUTED)


def _start(height: float, layout: Literal["constrained"] | None = None) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout=layout)
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
