"""Charts of prices as plotly's JSON: what JupyterLab, Notebook 7 and VS Code draw with their own plotly.

Written out as data, so that plotly itself is imported by nobody who only looks. Clear background, mid-grey text and
faint lines, which read on a light page and on a dark one, also after the theme is switched. A colour never says
anything alone: kinds have markers of their own, and what is stale is hatched or hollow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from tuna_nb.views.points import By, Row, Table, all_in_words, per_hour, place_words, seen_words
from tuna_nb.views.svg import Style, round_numbers

TEXT: Final = "#787878"
_GRID: Final = "rgba(128,128,128,.3)"
_FAINT: Final = "rgba(128,128,128,.12)"
_LINE: Final = 24
_AROUND: Final = 190
"""Pixels of a row, and of all that is above and below them."""
_BESIDE: Final = 0.022
_BELOW: Final = 0.93
"""Shares of a value by which markers of several kinds are apart, and a name is below its marker."""
AT_ONCE: Final = 30
"""Rows in sight before one chooses a GPU."""

KINDS: Final = {
    "serverless": Style("#3b82c4", "circle"),
    "spot": Style("#2e9467", "triangle-up"),
    "on-demand": Style("#cc7a1f", "square"),
    "interruptible": Style("#a562c0", "diamond"),
    "dedicated": Style("#c2566a", "cross"),
}
_COLOURS: Final = ("#3b82c4", "#cc7a1f", "#2e9467", "#a562c0", "#c2566a", "#8a7f2c", "#3a9aa0", "#808080")
_SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "star")


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A kind has a look of its own; others get one in their order."""
    return {
        name: KINDS.get(name) or Style(_COLOURS[i % len(_COLOURS)], _SHAPES[i % len(_SHAPES)])
        for i, name in enumerate(names)
    }


def distinct(names: Sequence[str], kinds: Sequence[str]) -> dict[str, Style]:
    """No two alike; the first of a kind has the kind's own look."""
    look: dict[str, Style] = {}
    rest = [Style(colour, shape) for shape in _SHAPES for colour in _COLOURS]
    for name, kind in zip(names, kinds, strict=True):
        style = KINDS.get(kind)
        if style is None or style in look.values():
            own = {*look.values(), *KINDS.values()}
            used = {s.colour for s in look.values()}
            free = [s for s in rest if s not in own]
            style = next((s for s in free if s.colour not in used), free[0])
        look[name] = style
    return look


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the points. axes: what the numbers are, by what is compared."""

    title: str
    below: str
    axes: Mapping[By, str]
    now: float


def window(table: Table) -> range:
    """The lines that are seen first: all of them, or where they are many those of the GPU that has most."""
    if len(table.keys) <= AT_ONCE:
        return range(len(table.keys))
    return max(table.gpus().values(), key=len)


def rows(table: Table, look: Mapping[str, Style], frame: Frame, ranged: bool) -> dict[str, Any]:
    """Horizontal bars, or ranges with a marker at the low end; a menu shows one GPU alone."""
    place = {key: number for number, key in enumerate(table.keys)}
    spans, first, compared = table.gpus(), window(table), compared_by(table)[: 1 if ranged else None]
    shown = [gpu for gpu, span in spans.items() if span.start in first]
    traces, of = [_named(name, style, bar=not ranged) for name, style in look.items()], [""] * len(look)
    pairs: list[list[list[Row | None]]] = [[] for _ in traces]
    for gpu, span in spans.items():
        for name, style in look.items():
            keys = [k for k in table.keys[span.start : span.stop] if table.row(k).series == name]
            if not keys:
                continue
            found = [[table.rows[by].get(k) for by in compared] for k in keys]
            trace = _points(name, style, found, frame.now)
            trace |= {"x": _across(found, 0), "y": [place[k] for k in keys], "visible": gpu in shown}
            traces.append(trace | (_range(style, found) if ranged else _bar(style, found)))
            of.append(gpu)
            pairs.append(found)
    made = layout(frame)
    if len(compared) > 1:
        buttons = [
            _choice(
                by,
                "update",
                [
                    {
                        "x": [_across(found, number) if found else [None] for found in pairs],
                        "hovertemplate": _hover(number),
                    },
                    {"xaxis.title.text": frame.axes[by], "xaxis.autorange": True},
                ],
            )
            for number, by in enumerate(compared)
        ]
        made["updatemenus"].append(_menu("buttons", buttons, 0))
    every = range(len(table.keys))
    lines = len(first) if first == every else max(len(span) for span in spans.values())
    if len(spans) > 1:
        choices = [("all GPUs", every)] * (first == every) + list(spans.items())
        menu = [
            _choice(
                label,
                "update",
                [
                    {"visible": [not gpu or spans[gpu].start in span for gpu in of]},
                    {f"yaxis.{k}": v for k, v in _window(table, span, lines).items()} | {"xaxis.autorange": True},
                ],
            )
            for label, span in choices
        ]
        active = [span for _, span in choices].index(first)
        made["updatemenus"].append(_menu("dropdown", menu, active))
    made["height"] = _AROUND + _LINE * max(3, lines)
    made["xaxis"] |= {
        "rangemode": "tozero", "title": {"text": frame.axes[compared[0]]}, "tickprefix": "$",
    }  # fmt: skip
    made["yaxis"] |= _window(table, first, lines) | {"showgrid": False, "zeroline": False}
    return {"data": traces, "layout": made, "config": CONFIG}


def compared_by(table: Table) -> list[By]:
    """By what this table's rows can be compared: both only where it makes a difference."""
    alone, whole = (table.rows[by] for by in By)
    same = alone.keys() == whole.keys() and all(row.least == whole[k].least for k, row in alone.items())
    return [By.GPU_HOUR] if same or not whole else [By.GPU_HOUR, By.ALL_IN] if alone else [By.ALL_IN]


def memory(table: Table, look: Mapping[str, Style], frame: Frame) -> dict[str, Any]:
    """Price against the memory of one GPU, both logarithmic; the cheapest of each size is named. Kinds stand a
    little beside each other, so that none hides another."""
    compared = compared_by(table)
    traces = [_named(name, style) for name, style in look.items()]
    pairs: list[list[list[Row | None]]] = [[] for _ in traces]
    for name, style in look.items():
        keys = [k for k in table.keys if table.row(k).series == name]
        found = [[table.rows[by].get(k) for by in compared] for k in keys]
        trace = _points(name, style, found, frame.now)
        trace |= {
            "mode": "markers",
            "x": [_short(table.row(k).offer.vram_gb * beside(look, name)) for k in keys],
            "y": _across(found, 0),
        }
        traces.append(trace)
        pairs.append(found)
    every = [row for by in compared for row in table.rows[by].values()]
    sizes = sorted({row.offer.vram_gb for row in every})
    ticks = apart(sizes)
    names = [[_cheapest(table, by, size) for by in compared] for size in ticks]
    traces.append(
        {
            "type": "scatter", "mode": "text", "showlegend": False, "hoverinfo": "skip", "x": ticks,
            "y": _across(names, 0, below=_BELOW), "text": _names(names, 0), "textposition": "bottom center",
            "textfont": {"color": TEXT},
        }
    )  # fmt: skip
    made = layout(frame)
    if len(compared) > 1:
        buttons = [
            _choice(
                by,
                "update",
                [
                    {
                        "y": [_across(f, i) if f else [None] for f in pairs] + [_across(names, i, below=_BELOW)],
                        "text": [None for _ in pairs] + [_names(names, i)],
                        "hovertemplate": _hover(i),
                    },
                    {"yaxis.title.text": frame.axes[by]},
                ],
            )
            for i, by in enumerate(compared)
        ]
        made["updatemenus"].append(_menu("buttons", buttons, 0))
    made["height"] = 540
    made["xaxis"] |= {
        "type": "log", "title": {"text": "memory of one GPU, GB"}, "tickvals": ticks,
        "range": [math.log10(sizes[0] * 0.8), math.log10(sizes[-1] * 1.25)],
    }  # fmt: skip
    levels = round_numbers(min(row.least for row in every), max(row.least for row in every))
    made["yaxis"] |= {
        "type": "log", "title": {"text": frame.axes[compared[0]]}, "tickvals": levels,
        "ticktext": [f"${level:g}" for level in levels],
    }  # fmt: skip
    return {"data": traces, "layout": made, "config": CONFIG}


def history(
    lines: Mapping[tuple[str, str, str], Sequence[tuple[str, float]]],
    look: Mapping[tuple[str, str, str], Style],
    first: str,
    frame: Frame,
) -> dict[str, Any]:
    """Prices that hold until the next; lines: by GPU, provider and kind, each (date, USD); first: the GPU shown."""
    several = len({gpu for gpu, _, _ in lines}) > 1
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "name": plain(f"{provider} {kind}"),
            "x": [at for at, _ in points], "y": [_short(usd) for _, usd in points], "visible": gpu == first,
            "line": {"shape": "hv", "color": look[gpu, provider, kind].colour, "dash": _dash(kind), "width": 2},
            "marker": {"symbol": look[gpu, provider, kind].shape, "size": 6},
            "hovertemplate": f"<b>{plain(provider)} {plain(kind)}</b> {plain(gpu)}<br>%{{x}}<br>"
            "$%{y:.4g} per GPU-hour<extra></extra>",
        }
        for (gpu, provider, kind), points in lines.items()
    ]  # fmt: skip
    made = layout(frame)
    made["height"] = 460
    made["xaxis"]["type"] = "date"
    made["yaxis"] |= {
        "title": {"text": frame.axes[By.GPU_HOUR]}, "tickprefix": "$", "rangemode": "tozero",
    }  # fmt: skip
    if several:
        gpus = sorted({gpu for gpu, _, _ in lines})
        shown = [_choice(g, "restyle", [{"visible": [gpu == g for gpu, _, _ in lines]}]) for g in gpus]
        made["updatemenus"].append(_menu("dropdown", shown, gpus.index(first)))
    return {"data": traces, "layout": made, "config": CONFIG}


CONFIG: Final = {
    "displaylogo": False, "showSendToCloud": False, "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["lasso2d", "select2d"],
}  # fmt: skip
"""Without the button that would upload the chart. Not `responsive`: with that plotly forgets the height as soon as
it is redrawn. JupyterLab tells it of a new width."""


def _named(name: str, style: Style, bar: bool = False) -> dict[str, Any]:
    """A line of the legend that stands for all traces of its name."""
    return {
        "type": "bar" if bar else "scatter", "name": plain(name), "legendgroup": plain(name),
        "x": [None], "y": [None],
        "marker": {"color": style.colour} | ({} if bar else {"symbol": style.shape, "size": 10}),
    } | ({} if bar else {"mode": "markers"})  # fmt: skip


def _bar(style: Style, found: Sequence[Sequence[Row | None]]) -> dict[str, Any]:
    shapes = ["/" if _one(pair).offer.stale else "" for pair in found]
    pattern = {"shape": shapes, "fillmode": "replace", "solidity": 0.35}
    return {
        "type": "bar", "orientation": "h", "width": 0.75, "marker": {"color": style.colour, "pattern": pattern},
        "texttemplate": "%{x:$,.3r}", "textposition": "outside", "cliponaxis": False, "textfont": {"color": TEXT},
    }  # fmt: skip


def _range(style: Style, found: Sequence[Sequence[Row | None]]) -> dict[str, Any]:
    spread = [_short(_one(pair).most - _one(pair).least) for pair in found]
    return {
        "mode": "markers",
        "error_x": {
            "type": "data", "symmetric": False, "array": spread, "arrayminus": [0] * len(found),
            "color": style.colour, "thickness": 3, "width": 0,
        },
    }  # fmt: skip


def _points(name: str, style: Style, found: Sequence[Sequence[Row | None]], now: float) -> dict[str, Any]:
    symbols = [style.shape + ("-open" if _one(pair).offer.stale else "") for pair in found]
    return {
        "type": "scatter", "name": plain(name), "legendgroup": plain(name), "showlegend": False,
        "marker": {
            "color": style.colour, "size": 10, "line": {"width": 1.5, "color": style.colour}, "symbol": symbols,
        },
        "customdata": [_told(pair, now) for pair in found],
        "hovertemplate": _hover(0),
    }  # fmt: skip


def _one(pair: Sequence[Row | None]) -> Row:
    return next(row for row in pair if row is not None)


def _across(found: Sequence[Sequence[Row | None]], number: int, below: float = 1.0) -> list[float | None]:
    """The prices as compared by the `number`-th; what has none is not drawn."""
    return [None if (row := pair[number]) is None else _short(row.least * below) for pair in found]


def _names(found: Sequence[Sequence[Row | None]], number: int) -> list[str]:
    return ["" if (row := pair[number]) is None else plain(row.gpu) for pair in found]


def _cheapest(table: Table, by: By, size: int) -> Row | None:
    own = [row for row in table.rows[by].values() if row.offer.vram_gb == size]
    return min(own, key=lambda row: row.least, default=None)


def _told(pair: Sequence[Row | None], now: float) -> list[str]:
    """For the hover: who and what, then five words for each way to compare."""
    o = _one(pair).offer.offer
    words = [f"{o.provider} {o.kind}", f"{o.gpu} {_one(pair).offer.vram_gb} GB"]
    for row in pair:
        p = (row or _one(pair)).offer
        count = "" if p.offer.gpu_count == 1 else f", {p.offer.gpu_count} in a machine"
        words += [
            place_words(p) + count, per_hour(p.offer.price_per_hour_usd), all_in_words(p), seen_words(p, now),
            p.offer.source,
        ]  # fmt: skip
    return [plain(word) for word in words]


def _hover(number: int) -> str:
    place, alone, whole, seen, source = (f"%{{customdata[{2 + 5 * number + i}]}}" for i in range(5))
    return (
        f"<b>%{{customdata[0]}}</b> %{{customdata[1]}}<br>{place}<br>{alone} per GPU-hour<br>all in: {whole}"
        f"<br>seen {seen}<br>{source}<extra></extra>"
    )


def layout(frame: Frame) -> dict[str, Any]:
    line = {"gridcolor": _GRID, "linecolor": _GRID, "zerolinecolor": _GRID, "tickcolor": _GRID}
    return {
        "title": {
            "text": f"<b>{plain(frame.title)}</b>", "subtitle": {"text": plain(frame.below)},
            "x": 0, "xanchor": "left", "xref": "container", "y": 1, "yanchor": "top", "yref": "container",
            "pad": {"t": 12}, "font": {"size": 15},
        },
        "font": {"color": TEXT, "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "color": "#999999", "activecolor": TEXT},
        "legend": {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"},
        "showlegend": True,
        "margin": {"l": 60, "r": 60, "t": 108, "b": 80},
        "barmode": "overlay",
        "hovermode": "closest",
        "xaxis": line | {"automargin": True},
        "yaxis": line | {"automargin": True},
        "updatemenus": [],
    }  # fmt: skip


def _menu(kind: str, buttons: list[dict[str, Any]], active: int) -> dict[str, Any]:
    """Buttons at the left; a menu at the right and higher, so that they don't meet on a narrow page."""
    left = kind == "buttons"
    return {
        "type": kind, "direction": "right" if left else "down", "buttons": buttons, "active": active,
        "x": 0 if left else 1, "xanchor": "left" if left else "right", "y": 1, "yanchor": "bottom",
        "pad": {"b": 8 if left else 70, "t": 0}, "showactive": True, "bgcolor": _FAINT, "bordercolor": _GRID,
        "font": {"color": TEXT},
    }  # fmt: skip


def _choice(label: str, method: str, args: list[Any]) -> dict[str, Any]:
    return {"label": plain(label), "method": method, "args": args}


def _window(table: Table, span: range, lines: int) -> dict[str, Any]:
    """The y axis of some of the lines. The chart keeps its height, which plotly and a notebook change together only
    by chance; so few bars are a little thicker, and leave room below."""
    end = span.start + max(len(span), lines // 2)
    return {
        "range": [end - 0.4, span.start - 0.6],
        "tickvals": list(span),
        "ticktext": [plain(" ".join(k)) for k in table.keys[span.start : span.stop]],
    }


def _dash(kind: str) -> str:
    return {"spot": "dot", "interruptible": "dash"}.get(kind, "solid")


def beside(look: Mapping[str, Style], name: str) -> float:
    """The factor by which markers of that kind stand beside their memory."""
    return 1 + _BESIDE * (list(look).index(name) - (len(look) - 1) / 2)


def apart(sizes: Sequence[int]) -> list[int]:
    """Ticks that don't run into each other on a logarithmic axis."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size / kept[-1] > 1.12:
            kept.append(size)
    return kept


def _short(usd: float) -> float:
    """Five figures are enough to draw."""
    return float(f"{usd:.5g}")


def plain(words: str) -> str:
    """plotly reads tags in texts."""
    return escape(words, quote=False)
