"""Charts of prices: each one bundle of plotly's JSON, inline SVG with a table, and text.

JupyterLab draws the first, with hover, a legend to click and buttons; what reads no plotly (GitHub, an exported
page, a mail) shows the second; a terminal the third. None of them asks the network or a kernel for anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, Final

from tuna_nb.catalog.listing import PriceList
from tuna_nb.errors import RequestError, did_you_mean
from tuna_nb.views import figures, points, svg
from tuna_nb.views.html import FONT, PLAIN, QUIET
from tuna_nb.views.points import By, Row, Table
from tuna_nb.views.sheets import Sheet

if TYPE_CHECKING:
    import plotly.graph_objects as go

PLOTLY: Final = "application/vnd.plotly.v1+json"
MOST_LINES: Final = 100
"""Rows of the table under a chart."""
MOST_IN_TEXT: Final = 30
"""Rows of the text that a notebook keeps beside it."""
MOST_SEEN: Final = 400
"""Points of one line of the history, after those that change nothing are left out."""
_OPEN: Final = 12
_BAR: Final = 24


@dataclass(frozen=True)
class Chart:
    """One chart in all its forms. sheet: its numbers; a column without a name is drawn with characters, for text
    alone. caption: what the drawing shows. spec: plotly's JSON; None where there is nothing to draw, and
    `sheet` says so."""

    title: str
    sheet: Sheet
    drawing: str = ""
    caption: str = ""
    make: Callable[[], dict[str, Any]] | None = None

    @cached_property
    def spec(self) -> dict[str, Any] | None:
        return None if self.make is None else self.make()

    def figure(self) -> go.Figure:
        """To change and show as you like. Raises RequestError where there is nothing to draw."""
        if self.spec is None:
            raise RequestError(f"{self.title}: there is nothing to draw", self.sheet.title)
        import plotly.graph_objects as go

        return go.Figure({k: v for k, v in self.spec.items() if k != "config"}).update_layout(template="none")

    @property
    def text(self) -> str:
        return self._text(MOST_LINES)

    def _text(self, most: int) -> str:
        from tuna_nb.views import text

        return text.render(_cut(self.sheet, most))

    @property
    def html(self) -> str:
        return _html(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        rich = {} if self.spec is None else {PLOTLY: self.spec}
        return {"text/plain": self._text(MOST_IN_TEXT), "text/html": self.html, **rich}

    def __repr__(self) -> str:
        return self.text


def chart(price_list: PriceList, which: str) -> Chart:
    """The chart of that name: prices, memory, regions or history. Raises RequestError for another."""
    if which not in CHARTS:
        raise RequestError(f"unknown chart {which!r}", did_you_mean(which, list(CHARTS)))
    return CHARTS[which](price_list)


def prices(price_list: PriceList) -> Chart:
    """Bars: what each provider asks for each GPU, by kind; the GPU alone, or all in."""
    table = points.of_providers(price_list)
    title = "What a GPU costs"
    if not table.keys:
        return _empty(title, price_list, "no price to compare", table.unknown)
    look = _kinds(table)
    frame = _frame(title, "hatched: stale", price_list, table.unknown)
    return Chart(
        title,
        _price_sheet(title, table, price_list),
        _drawn_rows(title, table, look, ranged=False),
        _caption(table, price_list, "dashed: stale"),
        lambda: figures.rows(table, look, frame, ranged=False),
    )


def memory(price_list: PriceList) -> Chart:
    """Price against the memory of one GPU: one marker for each GPU, provider and kind."""
    table = points.of_providers(price_list)
    title = "Price against memory"
    if not table.keys:
        return _empty(title, price_list, "no price to compare", table.unknown)
    look = _kinds(table)
    frame = _frame(
        title, "hollow: stale; up to the left is dear, down to the right is cheap", price_list, table.unknown
    )
    by = figures.compared_by(table)[0]
    rows = list(table.rows[by].values())
    named = {id(min((r for r in rows if r.offer.vram_gb == size), key=lambda r: r.least))
             for size in figures.apart(sorted({row.offer.vram_gb for row in rows}))}  # fmt: skip
    marks = [
        svg.Mark(
            row.gpu if id(row) in named else "",
            f"{row.gpu} {row.label}: {points.per_hour(row.least)}",
            look[row.series],
            row.offer.vram_gb * figures.beside(look, row.series),
            row.least,
            hollow=row.offer.stale,
        )
        for row in rows
    ]
    ticks = sorted({row.offer.vram_gb for row in rows})
    drawing = svg.scatter(marks, _spoken(title, rows), ticks, "memory of one GPU, GB", frame.axes[by])
    return Chart(
        title,
        _memory_sheet(title, table, by, price_list),
        svg.legend(look.items()) + drawing,
        "hollow: stale; what is billed beside the GPU is in the other charts"
        if by is By.GPU_HOUR
        else "hollow: stale",
        lambda: figures.memory(table, look, frame),
    )


def regions(price_list: PriceList) -> Chart:
    """Spot by region: from the cheapest zone to the dearest."""
    table = points.of_regions(price_list)
    title = "Spot by region"
    if not table.keys:
        return _empty(title, price_list, "no spot price that has a region", table.unknown)
    look = figures.styles(sorted({table.row(k).series for k in table.keys}))
    below = "from the cheapest zone to the dearest; hollow: stale"
    frame = _frame(title, "; ".join(x for x in (below, table.note) if x), price_list, table.unknown)
    return Chart(
        title,
        _region_sheet(title, table, price_list),
        _drawn_rows(title, table, look, ranged=True),
        _caption(table, price_list, "from the cheapest zone to the dearest; hollow: stale"),
        lambda: figures.rows(table, look, frame, ranged=True),
    )


def history(price_list: PriceList) -> Chart:
    """What was seen before: the cheapest of each GPU, provider and kind over time."""
    title = "Prices over time"
    seen: dict[tuple[str, str, str], dict[float, float]] = {}
    for s in price_list.history or ():
        if s.price_per_hour_usd > 0:
            at = seen.setdefault((s.gpu, s.provider, s.kind), {})
            at[s.at] = min(s.price_per_hour_usd, at.get(s.at, s.price_per_hour_usd))
    lines = {key: _turns(sorted(at.items())) for key, at in sorted(seen.items())}
    if not lines:
        return _empty(title, price_list, "no price has been kept yet; `--live` looks, and keeps what it sees", ())
    look: dict[tuple[str, str, str], svg.Style] = {}
    for gpu in {key[0] for key in lines}:
        own = [key for key in lines if key[0] == gpu]
        names = figures.distinct([" ".join(key) for key in own], [key[2] for key in own])
        look |= {key: names[" ".join(key)] for key in own}
    first = max(
        sorted({key[0] for key in lines}), key=lambda gpu: sum(len(p) for k, p in lines.items() if k[0] == gpu)
    )
    frame = _frame(title, "the cheapest that was seen; a price holds until the next", price_list, ())
    shown = [(key, line) for key, line in lines.items() if key[0] == first]
    drawn = [
        (svg.Mark("", f"{k[1]} {k[2]}", look[k], 0, hollow=k[2] in points.PREEMPTIBLE), line) for k, line in shown
    ]
    ends = [at for _, line in shown for at, _ in line]
    dates = (points.date(min(ends)), points.date(max(ends)))
    named = [(" ".join(key), look[key]) for key, _ in shown]
    spoken = f"{title} of {first}: " + ", ".join(
        f"{k[1]} {k[2]} {points.per_hour(line[-1][1])}" for k, line in shown
    )
    return Chart(
        title,
        _history_sheet(title, lines),
        svg.legend(named) + svg.steps(drawn, spoken, dates),
        f"{first}; the cheapest that was seen, which holds until the next; dashed: it can be taken away",
        lambda: figures.history({k: _dated(line) for k, line in lines.items()}, look, first, frame),
    )


CHARTS: Final[dict[str, Callable[[PriceList], Chart]]] = {
    "prices": prices,
    "memory": memory,
    "regions": regions,
    "history": history,
}


def _empty(title: str, price_list: PriceList, what: str, unknown: tuple[str, ...]) -> Chart:
    """A sentence, not an empty frame."""
    why = "no offer matches" if not price_list.rows else what
    return Chart(title, Sheet(f"{title}: {why}", notes=_unknown(unknown, most=20), tone="busy"))


def _frame(title: str, below: str, price_list: PriceList, unknown: tuple[str, ...]) -> figures.Frame:
    told = "".join(f"; {line}" for line in _unknown(unknown, most=0))
    axes = {by: points.axis(by, price_list.shape) for by in By}
    return figures.Frame(title, f"{points.date(price_list.at)}; {below}{told}", axes, price_list.at)


def _unknown(unknown: tuple[str, ...], most: int) -> tuple[str, ...]:
    """The offers that are not drawn."""
    if not unknown:
        return ()
    left = len(unknown) - most
    more = f" and {left} more" if most and left > 0 else ""
    names = f": {'; '.join(unknown[:most])}{more}" if most else ", named in the table"
    return (f"{len(unknown)} without a price{names if most else ''}",)


def _kinds(table: Table) -> dict[str, svg.Style]:
    there = {row.series for rows in table.rows.values() for row in rows.values()}
    return {kind: style for kind, style in figures.KINDS.items() if kind in there}


def _drawn_rows(title: str, table: Table, look: dict[str, svg.Style], ranged: bool) -> str:
    by = figures.compared_by(table)[0]
    span = figures.window(table)
    rows = [row for key in table.keys[span.start : span.stop] if (row := table.rows[by].get(key))]
    marks = [
        svg.Mark(
            f"{row.gpu} {row.label}",
            points.per_hour(row.least) + ("" if row.most == row.least else f"–{row.most:,.2f}"),
            look[row.series],
            row.least,
            most=row.most if ranged else None,
            hollow=row.offer.stale,
        )
        for row in rows
    ]
    return svg.legend(look.items()) + svg.bars(marks, _spoken(title, rows))


def _caption(table: Table, price_list: PriceList, marks: str) -> str:
    spans, drawn = table.gpus(), figures.window(table)
    left = sum(span.start not in drawn for span in spans.values())
    more = f"; {left} more GPUs in the table" if left else ""
    return f"{points.axis(figures.compared_by(table)[0], price_list.shape)}; {marks}{more}"


def _spoken(title: str, rows: list[Row]) -> str:
    """For who can't see it: the cheapest three; the table has the rest."""
    three = sorted(rows, key=lambda row: row.least)[:3]
    said = ", ".join(f"{row.gpu} {row.label} {points.per_hour(row.least)}" for row in three)
    return f"{title}: {len(rows)} prices, the lowest {said}"


def _bar(value: float, top: float) -> str:
    return "█" * max(1, round(value / top * _BAR))


def _price_sheet(title: str, table: Table, price_list: PriceList) -> Sheet:
    lines = []
    top: dict[str, float] = {}
    for key in table.keys:
        top[key[0]] = max(top.get(key[0], 0.0), table.row(key).least)
    for key in table.keys:
        row, whole = table.row(key), table.rows[By.ALL_IN].get(key)
        lines.append(
            (
                key[0],
                key[1],
                key[2],
                points.per_hour(row.offer.offer.price_per_hour_usd),
                _bar(row.least, top[key[0]]),
                "unknown" if whole is None else _all_in(whole),
                points.place_words(row.offer),
                points.seen_words(row.offer, price_list.at),
                row.offer.offer.source,
            )
        )
    columns = ("GPU", "provider", "kind", "$/GPU-h", "", "all in $/h", "where", "seen", "source")
    notes = (f"all in: {points.axis(By.ALL_IN, price_list.shape)}", *_unknown(table.unknown, most=20))
    return Sheet(f"{title}, {points.date(price_list.at)}", (), columns, tuple(lines), notes)


def _all_in(row: Row) -> str:
    """A sum that lacks a line is the least that it can be."""
    whole = row.offer.all_in
    return f"{'≥ ' if whole is not None and whole.lacks else ''}{points.per_hour(row.least)}"


def _memory_sheet(title: str, table: Table, by: By, price_list: PriceList) -> Sheet:
    """The cheapest of each GPU and kind, with what a GB costs."""
    best: dict[tuple[str, str], Row] = {}
    for row in table.rows[by].values():
        known = best.get((row.gpu, row.series))
        if known is None or row.least < known.least:
            best[row.gpu, row.series] = row
    rows = sorted(best.values(), key=lambda r: (r.offer.vram_gb, r.gpu, r.least))
    dearest = max(r.least / r.offer.vram_gb for r in rows)
    lines = tuple(
        (r.gpu, f"{r.offer.vram_gb} GB", r.offer.offer.provider, r.series, points.per_hour(r.least),
         f"${1000 * r.least / r.offer.vram_gb:,.2f}", _bar(r.least / r.offer.vram_gb, dearest),
         points.seen_words(r.offer, price_list.at))
        for r in rows
    )  # fmt: skip
    columns = ("GPU", "memory", "cheapest", "kind", "$/GPU-h", "$/h per 1000 GB", "", "seen")
    notes = _unknown(table.unknown, most=20)
    return Sheet(f"{title}, {points.date(price_list.at)}", (), columns, lines, notes)


def _region_sheet(title: str, table: Table, price_list: PriceList) -> Sheet:
    rows = [table.row(key) for key in table.keys]
    top: dict[str, float] = {}
    for row in rows:
        top[row.gpu] = max(top.get(row.gpu, 0.0), row.least)
    lines = tuple(
        (*key, points.per_hour(row.least), points.per_hour(row.most), _bar(row.least, top[row.gpu]),
         str(row.offers), points.place_words(row.offer), points.seen_words(row.offer, price_list.at),
         row.offer.offer.source)
        for key, row in zip(table.keys, rows, strict=True)
    )  # fmt: skip
    columns = ("GPU", "provider", "region", "from $/GPU-h", "to", "", "offers", "cheapest in", "seen", "source")
    notes = ((table.note,) if table.note else ()) + _unknown(table.unknown, most=20)
    return Sheet(f"{title}, {points.date(price_list.at)}", (), columns, lines, notes)


def _history_sheet(title: str, lines: dict[tuple[str, str, str], list[tuple[float, float]]]) -> Sheet:
    rows = tuple(
        (*key, points.date(line[0][0]), points.per_hour(line[0][1]), points.per_hour(line[-1][1]),
         points.per_hour(min(usd for _, usd in line)), points.per_hour(max(usd for _, usd in line)),
         points.date(line[-1][0]))
        for key, line in lines.items()
    )  # fmt: skip
    columns = ("GPU", "provider", "kind", "first seen", "then", "last", "lowest", "highest", "last seen")
    return Sheet(f"{title}, USD per GPU-hour", (), columns, rows)


def _cut(sheet: Sheet, most: int) -> Sheet:
    left = len(sheet.rows) - most
    if left <= 0:
        return sheet
    return replace(sheet, rows=sheet.rows[:most], notes=(f"{left} more rows are left out", *sheet.notes))


def _turns(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the points that change nothing; what is still too much keeps its ends and every n-th."""
    kept = [
        p for i, p in enumerate(line) if i in (0, len(line) - 1) or not line[i - 1][1] == p[1] == line[i + 1][1]
    ]
    step = -(-len(kept) // MOST_SEEN)
    return kept if step == 1 else [*kept[:-1:step], kept[-1]]


def _dated(line: list[tuple[float, float]]) -> list[tuple[str, float]]:
    return [(time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)), usd) for at, usd in line]


def _html(c: Chart) -> str:
    """The drawing, then its numbers, folded away where they are many."""
    title = f'<div style="font-weight:600">{escape(c.sheet.title)}</div>'
    notes = "".join(f'<div style="{QUIET}">{escape(note)}</div>' for note in c.sheet.notes)
    caption = f'<div style="{QUIET}">{escape(c.caption)}</div>'
    if not c.sheet.rows:
        return f'<div {PLAIN} style="{FONT}">{title}{notes}</div>'
    drawn = [i for i, name in enumerate(c.sheet.columns) if name]
    rows = [[row[i] for i in drawn] for row in c.sheet.rows[:MOST_LINES]]
    table = plain_table([c.sheet.columns[i] for i in drawn], rows)
    left = f", the first {len(rows)}" if len(rows) < len(c.sheet.rows) else ""
    folded = f"<summary>the numbers: {len(c.sheet.rows)} rows{left}</summary>"
    opened = " open" if len(rows) <= _OPEN else ""
    return (
        f'<div {PLAIN} style="{FONT}">{title}{caption}{c.drawing}<details{opened}>{folded}'
        f'<div style="overflow-x:auto">{table}</div></details>{notes}</div>'
    )


def plain_table(columns: list[str], rows: list[list[str]]) -> str:
    """Small in a saved file: the page's own look, numbers to the right."""
    left = ' style="text-align:left"'

    def cell(word: str) -> str:
        number = word[:1] in "$≥0123456789" or word == "unknown"
        return f"<td{'' if number else left}>{escape(word)}</td>"

    head = "".join(f'<th scope="col"{left}>{escape(c)}</th>' for c in columns)
    body = "".join("<tr>" + "".join(cell(word) for word in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
