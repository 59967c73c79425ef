"""Small static charts as inline SVG: what a saved notebook shows where no script runs.

No style sheet, no script, no address; text takes the page's own colour, so that it reads on white and on black. A
price that is stale is hollow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 720
_LABEL: Final = 190
_RIGHT: Final = 100
_LINE: Final = 20
_TEXT: Final = 'fill="currentColor" font-size="12"'
_GRID: Final = 'stroke="#808080" stroke-opacity=".35"'


@dataclass(frozen=True, slots=True)
class Style:
    """How one series looks everywhere: never by its colour alone. shape: a marker of plotly's."""

    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Mark:
    """label: before it; said: after it, or in its tip. x, y: in the axes' units. most: the far end of a range."""

    label: str
    said: str
    style: Style
    x: float
    y: float = 0.0
    most: float | None = None
    hollow: bool = False


def bars(marks: Sequence[Mark], title: str) -> str:
    """Horizontal bars from 0, one a line; a range is a marker at its low end and a line to its high one."""
    top = max(m.most or m.x for m in marks) or 1.0
    scale = (WIDTH - _LABEL - _RIGHT) / top
    parts = []
    for number, m in enumerate(marks):
        y, end = number * _LINE + 4, _LABEL + m.x * scale
        parts.append(f'<text x="{_LABEL - 6}" y="{y + 11}" text-anchor="end" {_TEXT}>{escape(m.label)}</text>')
        if m.most is None:
            fill = _fill(m)
            parts.append(f'<rect x="{_LABEL}" y="{y}" width="{end - _LABEL:.1f}" height="14" {fill}/>')
        else:
            far = _LABEL + m.most * scale
            parts.append(
                f'<line x1="{end:.1f}" x2="{far:.1f}" y1="{y + 7}" y2="{y + 7}" stroke="{m.style.colour}" '
                f'stroke-width="3"/>{_marker(m, end, y + 7)}'
            )
            end = max(far, end + 6)
        parts.append(f'<text x="{end + 6:.1f}" y="{y + 11}" {_TEXT}>{escape(m.said)}</text>')
    return _frame(len(marks) * _LINE + 6, title, parts)


def scatter(marks: Sequence[Mark], title: str, xs: Sequence[float], x_title: str, y_title: str) -> str:
    """Both axes logarithmic. xs: the ticks below."""
    x_of = _log(min(xs) * 0.85, max(xs) * 1.18, 60, WIDTH - 10)
    ys = round_numbers(min(m.y for m in marks) * 0.85, max(m.y for m in marks))
    y_of = _log(ys[0], ys[-1], 272, 24)
    parts = [
        f'<line x1="60" x2="{WIDTH - 10}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}" {_GRID}/>'
        f'<text x="54" y="{y_of(y) + 4:.1f}" text-anchor="end" {_TEXT}>${y:g}</text>'
        for y in ys
    ]
    told = -math.inf
    for x in sorted(xs):
        if x_of(x) - told < 24:
            continue
        told = x_of(x)
        parts.append(f'<text x="{told:.1f}" y="292" text-anchor="middle" {_TEXT}>{x:g}</text>')
    parts += [f"<g><title>{escape(m.said)}</title>{_marker(m, x_of(m.x), y_of(m.y))}</g>" for m in marks]
    parts += [
        f'<text x="{x_of(m.x):.1f}" y="{y_of(m.y) + 18:.1f}" text-anchor="middle" {_TEXT}>{escape(m.label)}</text>'
        for m in marks
        if m.label
    ]
    parts.append(f'<text x="{WIDTH // 2}" y="308" text-anchor="middle" {_TEXT}>{escape(x_title)}</text>')
    parts.append(f'<text x="6" y="12" {_TEXT}>{escape(y_title)}</text>')
    return _frame(314, title, parts)


def steps(series: Sequence[tuple[Mark, Sequence[tuple[float, float]]]], title: str, dates: tuple[str, str]) -> str:
    """Prices that hold until the next one; dates: of the first and the last."""
    points = [p for _, line in series for p in line]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    ys = _nice(max(y for _, y in points))
    span, height = (last - first) or 1.0, 240

    def at(x: float, y: float) -> tuple[float, float]:
        return 60 + (x - first) / span * (WIDTH - 80), height - y / ys[-1] * (height - 20)

    parts = [
        f'<line x1="60" x2="{WIDTH - 14}" y1="{at(0, y)[1]:.1f}" y2="{at(0, y)[1]:.1f}" {_GRID}/>'
        f'<text x="54" y="{at(0, y)[1] + 4:.1f}" text-anchor="end" {_TEXT}>${y:g}</text>'
        for y in ys
    ]
    for mark, line in series:
        path, before = "", 0.0
        for number, (x, y) in enumerate(line):
            px, py = at(x, y)
            path += f"M{px:.1f} {py:.1f}" if number == 0 else f"L{px:.1f} {before:.1f}L{px:.1f} {py:.1f}"
            before = py
        end = at(*line[-1])
        dash = ' stroke-dasharray="6 3"' if mark.hollow else ""
        parts.append(
            f'<g><title>{escape(mark.said)}</title><path d="{path}" fill="none" stroke="{mark.style.colour}" '
            f'stroke-width="2"{dash}/>{_marker(mark, *end)}</g>'
        )
    parts.append(f'<text x="60" y="{height + 18}" {_TEXT}>{escape(dates[0])}</text>')
    parts.append(f'<text x="{WIDTH - 14}" y="{height + 18}" text-anchor="end" {_TEXT}>{escape(dates[1])}</text>')
    return _frame(height + 26, title, parts)


def legend(styles: Iterable[tuple[str, Style]]) -> str:
    """One line of markers and their names."""
    parts, x = [], 10.0
    for name, style in styles:
        mark = Mark("", "", style, 0)
        parts.append(f'{_marker(mark, x, 9)}<text x="{x + 10:.0f}" y="13" {_TEXT}>{escape(name)}</text>')
        x += 34 + 7 * len(name)
    return _frame(20, "", parts)


def _frame(height: int, title: str, parts: list[str]) -> str:
    named = f'role="img" aria-label="{escape(title)}"' if title else 'aria-hidden="true"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {named} '
        f'style="display:block;width:100%;max-width:{WIDTH}px;height:auto">{"".join(parts)}</svg>'
    )


def _fill(m: Mark) -> str:
    colour = m.style.colour
    if m.hollow:
        return f'fill="{colour}" fill-opacity=".15" stroke="{colour}" stroke-dasharray="4 2"'
    return f'fill="{colour}"'


def _marker(m: Mark, x: float, y: float) -> str:
    """One of plotly's shapes; one that is not drawn here is a circle."""
    corners: dict[str, tuple[tuple[float, float], ...]] = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle-up": ((0, -6), (5.5, 4), (-5.5, 4)),
        "triangle-down": ((0, 6), (5.5, -4), (-5.5, -4)),
        "cross": ((-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2),
                  (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2)),
        "star": ((0, -7), (2, -2), (7, -2), (3, 1), (4, 6), (0, 3), (-4, 6), (-3, 1), (-7, -2), (-2, -2)),
    }  # fmt: skip
    look = f'stroke="{m.style.colour}" stroke-width="1.5" fill="{"none" if m.hollow else m.style.colour}"'
    if m.style.shape in corners:
        at = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[m.style.shape])
        return f'<polygon points="{at}" {look}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {look}/>'


def _log(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A logarithmic scale from [low, high] to [start, end]."""
    if low == high:
        return lambda _value: (start + end) / 2
    step = (end - start) / math.log(high / low)
    return lambda value: start + math.log(value / low) * step


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5 of each power of ten that reach from below `low` to above `high`."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    known = [m * 10.0**e for e in powers for m in (1, 2, 5)]
    below = max(s for s in known if s <= low)
    above = min(s for s in known if s >= high and s > below)
    return [s for s in known if below <= s <= above]


def _nice(top: float) -> list[float]:
    """0 and up to five even steps that reach above `top`."""
    size = 10.0 ** math.floor(math.log10(top))
    step = next(s for s in (size / 5, size / 2, size, size * 2, size * 5) if s * 5 >= top)
    return [round(i * step, 10) for i in range(math.ceil(round(top / step, 9)) + 1)]
