"""Lines over an axis, as plotly's JSON and as inline SVG: one description, two drawings.

No colour says anything alone: each line has dashes or a marker of its own, and what happened is a line with a flag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from tuna_nb.views import figures
from tuna_nb.views.svg import WIDTH, Style
from tuna_nb.views.timeline import nice, pieces

HEIGHT: Final = 220
LEFT: Final = 56
RIGHT: Final = 12
TOP: Final = 28
_RED: Final = "#d9363e"
_DASHES: Final = {"solid": "", "dash": "7 3", "dot": "2 3", "dashdot": "7 3 2 3"}
_TEXT: Final = 'fill="currentColor" font-size="12"'
_GRID: Final = 'stroke="#808080" stroke-opacity=".3"'


@dataclass(frozen=True, slots=True)
class Line:
    """points: (x, y); y None where nothing is known. labels: said beside the points, or empty."""

    name: str
    style: Style
    points: Sequence[tuple[float, float | None]]
    dash: str = "solid"
    markers: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that happened at x."""

    x: float
    said: str


@dataclass(frozen=True, slots=True)
class Plot:
    """stacked: the lines are parts of a whole. gap: two points farther apart than this are not joined.

    log_x: a logarithmic x axis; what is not above 0 is not drawn. share: y is 0..1, shown in per cent.
    """

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    flags: Sequence[Flag] = field(default=())
    stacked: bool = False
    log_x: bool = False
    share: bool = False
    gap: float = math.inf

    @property
    def drawn(self) -> bool:
        return any(y is not None for line in self.lines for _, y in line.points)


def spec(plot: Plot, below: str) -> dict[str, Any]:
    """plotly's JSON. below: what stands under the title."""
    traces = [_trace(plot, line) for line in plot.lines]
    made = figures.layout(figures.Frame(plot.title, below, {}, 0.0))
    made["height"] = 420
    made["xaxis"] |= {"title": {"text": figures.plain(plot.x_title)}} | ({"type": "log"} if plot.log_x else {})
    made["yaxis"] |= {"title": {"text": figures.plain(plot.y_title)}, "rangemode": "tozero"}
    if plot.share:
        made["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    made["shapes"] = [
        {
            "type": "line", "xref": "x", "yref": "paper", "x0": _short(f.x), "x1": _short(f.x), "y0": 0, "y1": 1,
            "line": {"color": _RED, "width": 1, "dash": "dot"},
        }
        for f in plot.flags
    ]  # fmt: skip
    made["annotations"] = [
        {
            "x": _short(f.x), "y": 1, "xref": "x", "yref": "paper", "yanchor": "bottom", "showarrow": False,
            "text": "▼", "hovertext": figures.plain(f.said), "font": {"color": _RED},
        }
        for f in plot.flags
    ]  # fmt: skip
    return {"data": traces, "layout": made, "config": figures.CONFIG}


def drawing(plot: Plot, spoken: str) -> str:
    """The SVG with its legend; spoken: what it shows, for who can't see it."""
    xs = [x for line in plot.lines for x, y in line.points if y is not None and (x > 0 or not plot.log_x)]
    if not xs:
        return ""
    sums = _stacks(plot)
    top = 1.0 if plot.share else nice(max([y for line in sums for _, y in line if y is not None] + [1e-9]))
    x_of, ticks = _axis(plot, min(xs), max(xs))

    def y_of(y: float) -> float:
        return HEIGHT - min(max(y / top, 0.0), 1.0) * (HEIGHT - TOP)

    parts = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = y_of(level * top)
        said = f"{level:.0%}" if plot.share else f"{float(f'{level * top:.3g}'):,g}"
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {_GRID}/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" {_TEXT}>{said}</text>'
        )
    parts += [
        f'<text x="{x_of(x):.1f}" y="{HEIGHT + 17}" text-anchor="middle" {_TEXT}>{x:,g}</text>' for x in ticks
    ]
    # The uppermost of a stack first: those below it are drawn over it.
    for line, points in reversed(list(zip(plot.lines, sums, strict=True))):
        parts.append(_path(plot, line, [(x, y) for x, y in points if x > 0 or not plot.log_x], x_of, y_of))
    for f in plot.flags:
        if min(xs) <= f.x <= max(xs):
            x = x_of(f.x)
            parts.append(
                f'<g><title>{escape(f.said)}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT}" '
                f'stroke="{_RED}" stroke-dasharray="2 3"/>'
                f'<path d="M{x - 5:.1f} {TOP - 8}h10l-5 8z" fill="{_RED}"/></g>'
            )
    parts.append(f'<text x="6" y="12" {_TEXT}>{escape(plot.y_title)}</text>')
    middle = (LEFT + WIDTH) // 2
    parts.append(f'<text x="{middle}" y="{HEIGHT + 34}" text-anchor="middle" {_TEXT}>{escape(plot.x_title)}</text>')
    return _legend(plot) + _frame(HEIGHT + 40, parts, spoken)


def _trace(plot: Plot, line: Line) -> dict[str, Any]:
    colour = line.style.colour
    made: dict[str, Any] = {
        "type": "scatter", "name": figures.plain(line.name),
        "mode": ("lines+markers" if line.markers else "lines") + ("+text" if line.labels else ""),
        "x": [_short(x) for x, _ in line.points], "y": [None if y is None else _short(y) for _, y in line.points],
        "line": {"color": colour, "dash": line.dash, "width": 2},
        "marker": {"color": colour, "symbol": line.style.shape, "size": 8},
        "hovertemplate": f"<b>{figures.plain(line.name)}</b><br>%{{x}} · %{{y{':.1%' if plot.share else ''}}}"
        "<extra></extra>",
    }  # fmt: skip
    if line.labels:
        made |= {
            "text": [figures.plain(label) for label in line.labels], "textposition": "top center",
            "textfont": {"color": figures.TEXT},
        }  # fmt: skip
    if plot.stacked:
        made |= {"stackgroup": "all", "fillcolor": _faint(colour)}
    return made


def _stacks(plot: Plot) -> list[list[tuple[float, float | None]]]:
    """The lines as they are drawn: of a stack each on those below it."""
    if not plot.stacked:
        return [list(line.points) for line in plot.lines]
    below: dict[float, float] = {}
    made = []
    for line in plot.lines:
        points: list[tuple[float, float | None]] = []
        for x, y in line.points:
            if y is not None:
                below[x] = below.get(x, 0.0) + y
            points.append((x, None if y is None else below[x]))
        made.append(points)
    return made


def _path(
    plot: Plot,
    line: Line,
    points: Sequence[tuple[float, float | None]],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
) -> str:
    colour, parts = line.style.colour, []
    for piece in pieces(points, plot.gap):
        places = [(x_of(x), y_of(y)) for x, y in piece]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if plot.stacked:
            closed = f"{path}L{places[-1][0]:.1f} {HEIGHT}L{places[0][0]:.1f} {HEIGHT}Z"
            # Twice, so that what is drawn below shines through no colour above it.
            parts.append(f'<path d="{closed}" fill="{colour}" stroke="{colour}"/>')
            continue
        dash = f' stroke-dasharray="{_DASHES[line.dash]}"' if _DASHES[line.dash] else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if line.markers or len(places) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
    if line.labels:
        parts += [
            f'<text x="{x_of(x):.1f}" y="{y_of(y) - 8:.1f}" text-anchor="middle" {_TEXT}>{escape(label)}</text>'
            for (x, y), label in zip(points, line.labels, strict=False)
            if y is not None
        ]
    return f"<g><title>{escape(line.name)}</title>{''.join(parts)}</g>"


def _axis(plot: Plot, low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    """The scale and its ticks."""
    width = WIDTH - LEFT - RIGHT
    if plot.log_x:
        low, high = (low / 1.1, high * 1.1) if low == high else (low, high)
        span = math.log(high / low)
        ticks = [
            m * 10.0**e
            for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for m in (1, 2, 5)
            if low <= m * 10.0**e <= high
        ]
        return lambda x: LEFT + math.log(x / low) / span * width, [float(f"{t:.3g}") for t in ticks]
    low = min(low, 0.0)
    high = high if high > low else low + 1
    step = nice((high - low) / 8)
    ticks = [float(f"{low + i * step:.6g}") for i in range(int((high - low) / step + 1e-9) + 1)]
    return lambda x: LEFT + (x - low) / (high - low) * width, ticks


def _legend(plot: Plot) -> str:
    parts, x = [], 6.0
    for line in plot.lines:
        colour = line.style.colour
        if plot.stacked:
            parts.append(f'<rect x="{x:.0f}" y="4" width="22" height="10" fill="{colour}"/>')
        else:
            dash = f' stroke-dasharray="{_DASHES[line.dash]}"' if _DASHES[line.dash] else ""
            parts.append(f'<path d="M{x:.0f} 9h22" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{x + 28:.0f}" y="13" {_TEXT}>{escape(line.name)}</text>')
        x += 46 + 7 * len(line.name)
    if plot.flags:
        parts.append(f'<path d="M{x:.0f} 5h10l-5 8z" fill="{_RED}"/>')
        parts.append(f'<text x="{x + 16:.0f}" y="13" {_TEXT}>preemption</text>')
    return _frame(20, parts, "")


def _frame(height: int, parts: list[str], spoken: str) -> str:
    named = f'role="img" aria-label="{escape(spoken)}"' if spoken else 'aria-hidden="true"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {named} '
        f'style="display:block;width:100%;max-width:{WIDTH}px;height:auto">{"".join(parts)}</svg>'
    )


def _short(value: float) -> float:
    """Five figures are enough to draw."""
    return float(f"{value:.5g}")


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},.55)"
