"""The last minutes of a board as inline SVG, for a saved notebook: what `dashboard.js` draws while it lives.

One picture, its panels below each other on one time axis; text takes the page's own colour, a line is known by its
dashes and a backend by how full its colour is, not by colour alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from tuna_nb.deployments.board import Picture
from tuna_nb.deployments.moments import SPLIT_S, Moment
from tuna_nb.views import html
from tuna_nb.views.board_face import duration, kind_of, money

WIDTH: Final = 720
LEFT: Final = 8
RIGHT: Final = 70
PANEL: Final = 84
LANE: Final = 16
GAP_S: Final = 3.5
"""Between two moments: a longer one is a gap, over which no line is drawn."""
LEAST_S: Final = 30.0
COLOURS: Final = {"serverless": "#3b82c4", "spot": "#2e9467"}
FILLS: Final = {"serverless": 0.4, "spot": 0.9}
STATES: Final = {"READY": 1.0, "WARMING": 0.5, "DRAINING": 0.5, "COOLING": 0.5}
_TEXT: Final = 'fill="currentColor" font-size="11"'
_GRID: Final = 'stroke="#808080" stroke-opacity=".3"'

Line = list[tuple[float, float]]


def pieces(line: Sequence[tuple[float, float | None]], gap_s: float = GAP_S) -> list[Line]:
    """A line cut where nothing is known, or nobody looked for longer than `gap_s`."""
    found: list[Line] = []
    last: float | None = None
    for at, value in line:
        if value is None:
            last = None
            continue
        if last is None or at - last > gap_s:
            found.append([])
        found[-1].append((at, value))
        last = at
    return found


def answered(moments: Sequence[Moment]) -> dict[str, list[tuple[float, float | None]]]:
    """Requests answered per second by kind of backend, spot first."""
    made: dict[str, list[tuple[float, float | None]]] = {}
    kinds = {kind_of(name) for m in moments for name in m.split}
    for kind in sorted(kinds, reverse=True):
        made[kind] = [(m.at, sum(n for b, n in m.split.items() if kind_of(b) == kind) / SPLIT_S) for m in moments]
    return made


def drawing(p: Picture) -> str:
    """The SVG; empty where there is nothing to draw."""
    moments = p.moments
    if len(moments) < 2:
        return ""
    end = moments[-1].at
    start = min(moments[0].at, end - LEAST_S)
    width = WIDTH - LEFT - RIGHT

    def x(at: float) -> float:
        return LEFT + (at - start) / (end - start) * width

    parts, top = [_traffic(moments, x, 0)], PANEL
    for title, pick in (
        ("time to first token", lambda m: (m.ttft_p50_s, m.ttft_p95_s)),
        ("between tokens", lambda m: (m.inter_token_p50_s, m.inter_token_p95_s)),
    ):
        pairs: Sequence[tuple[float | None, float | None]] = [pick(m) for m in moments]  # type: ignore[no-untyped-call]
        parts.append(_quantiles(title, moments, pairs, x, top))
        top += PANEL
    names = list(dict.fromkeys(name for m in moments for name in m.states))
    for name in names:
        parts.append(_lane(name, moments, x, top))
        top += LANE
    parts += [
        f'<g><title>{escape(mark.said)}</title><line x1="{x(mark.at):.1f}" x2="{x(mark.at):.1f}" y1="14" '
        f'y2="{top}" stroke="#d9363e" stroke-dasharray="2 3"/>'
        f'<path d="M{x(mark.at) - 5:.1f} 6h10l-5 8z" fill="#d9363e"/></g>'
        for mark in p.marks
        if mark.kind == "preemption" and start <= mark.at <= end
    ]
    for at, anchor in ((start, "start"), ((start + end) / 2, "middle"), (end, "end")):
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        parts.append(f'<text x="{x(at):.1f}" y="{top + 14}" text-anchor="{anchor}" {_TEXT}>{clock}</text>')
    height = top + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(told(p))}" style="display:block;width:100%;max-width:{WIDTH}px;height:auto;'
        f'{html.FONT}">{"".join(parts)}</svg>'
    )


def told(p: Picture) -> str:
    """What the picture shows, for who can't see it."""
    rates = [m.requests_per_s for m in p.moments if m.requests_per_s is not None]
    first = [m.ttft_p95_s for m in p.moments if m.ttft_p95_s is not None]
    taken = sum(mark.kind == "preemption" for mark in p.marks)
    said = [f"The last {p.moments[-1].at - p.moments[0].at:.0f} seconds" if p.moments else "Nothing yet"]
    if rates:
        said.append(f"{min(rates):.1f} to {max(rates):.1f} requests per second")
    if first:
        said.append(f"time to first token, p95, {duration(min(first))} to {duration(max(first))}")
    said.append(f"{taken} preemption{'s' * (taken != 1)}")
    if p.bill is not None:
        said.append(f"{money(p.bill.usd)} spent")
    return "; ".join(said) + "."


def _traffic(moments: Sequence[Moment], x: Callable[[float], float], top: int) -> str:
    lines = answered(moments)
    sums = [sum(line[i][1] or 0.0 for line in lines.values()) for i in range(len(moments))]
    most = nice(max([*sums, *(m.requests_per_s or 0.0 for m in moments), 0.1]))
    y = _scale(most, top)
    parts = [_axis("answered per second: spot full, serverless light; sent: line", most, f"{most:g}", top)]
    below = [0.0] * len(moments)
    index = {m.at: i for i, m in enumerate(moments)}
    for kind, line in lines.items():
        look = f'fill="{COLOURS[kind]}" fill-opacity="{FILLS[kind]}" stroke="{COLOURS[kind]}"'
        for piece in pieces(line):
            upper = [(x(at), y(below[index[at]] + value)) for at, value in piece]
            lower = [(x(at), y(below[index[at]])) for at, _ in reversed(piece)]
            parts.append(f'<path d="{_path([*upper, *lower])}Z" {look}/>')
        below = [b + (line[i][1] or 0.0) for i, b in enumerate(below)]
    sent = [(m.at, m.requests_per_s) for m in moments]
    parts += [
        f'<path d="{_path([(x(at), y(v)) for at, v in piece])}" fill="none" stroke="currentColor"/>'
        for piece in pieces(sent)
    ]
    return "".join(parts)


def _quantiles(
    title: str,
    moments: Sequence[Moment],
    pairs: Sequence[tuple[float | None, float | None]],
    x: Callable[[float], float],
    top: int,
) -> str:
    most = nice(max([v for pair in pairs for v in pair if v is not None] or [0.01]))
    y = _scale(most, top)
    parts = [_axis(f"{title}: p50 solid, p95 dashed", most, duration(most), top)]
    for place, look in ((0, 'stroke-width="1.8"'), (1, 'stroke-width="1.4" stroke-dasharray="4 3"')):
        line = [(m.at, pair[place]) for m, pair in zip(moments, pairs, strict=True)]
        parts += [
            f'<path d="{_path([(x(at), y(v)) for at, v in piece])}" fill="none" stroke="#a562c0" {look}/>'
            for piece in pieces(line)
        ]
    return "".join(parts)


def _lane(name: str, moments: Sequence[Moment], x: Callable[[float], float], top: int) -> str:
    """The states of a backend, one after another: ready full, on its way half, away empty."""
    runs: list[tuple[str, float, float]] = []
    for m in moments:
        state = m.states.get(name)
        if state is None:
            continue
        if runs and runs[-1][0] == state and m.at - runs[-1][2] <= GAP_S:
            runs[-1] = (state, runs[-1][1], m.at)
        else:
            begun = runs[-1][2] if runs and m.at - runs[-1][2] <= GAP_S else m.at
            runs.append((state, begun, m.at))
    colour = COLOURS[kind_of(name)]
    parts = []
    for state, begun, ended in runs:
        wide = max(x(ended) - x(begun), 1.5)
        parts.append(
            f'<g><title>{escape(f"{name}: {state.lower()}")}</title><rect x="{x(begun):.1f}" y="{top + 4}" '
            f'width="{wide:.1f}" height="9" fill="{colour}" fill-opacity="{STATES.get(state, 0.0):g}" '
            f'stroke="{colour}"/></g>'
        )
    return "".join(parts) + f'<text x="{WIDTH - RIGHT + 6}" y="{top + 12}" {_TEXT}>{escape(name)}</text>'


def _axis(title: str, most: float, said: str, top: int) -> str:
    low, high = top + PANEL - 8, top + 22
    return (
        f'<text x="{LEFT}" y="{top + 16}" {_TEXT}>{escape(title)}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{high}" y2="{high}" {_GRID}/>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{low}" y2="{low}" {_GRID}/>'
        f'<text x="{WIDTH - RIGHT + 6}" y="{high + 4}" {_TEXT}>{escape(said)}</text>'
        f'<text x="{WIDTH - RIGHT + 6}" y="{low + 4}" {_TEXT}>0</text>'
    )


def _scale(most: float, top: int) -> Callable[[float], float]:
    low, high = top + PANEL - 8, top + 22
    return lambda value: low - min(value / most, 1.0) * (low - high)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)


def nice(most: float) -> float:
    """The least round number that is not below `most`."""
    size = 10.0 ** math.floor(math.log10(most))
    return next(float(f"{step * size:.3g}") for step in (1, 1.5, 2, 3, 5, 8, 10) if step * size >= most * 0.9999)
