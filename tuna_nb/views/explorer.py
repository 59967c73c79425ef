"""The price explorer: GPU, kind, provider, region, memory, budget and order chosen in the page, redrawn in place.

What stands in the notebook is HTML with a script, not a widget. A widget lives in its kernel: in a saved notebook
it reopens as "Error displaying widget", also where the same output has HTML beside it, and nothing tells a kernel
that it is being saved. The list is a snapshot anyway and the page needs nobody to filter it, so the offers travel
once, with the script (some 15 kB), and go on working in a notebook that is reopened without a kernel or exported to
HTML. Where scripts don't run (a notebook from elsewhere until it is trusted, GitHub), the plain table in it shows.

`PriceExplorer.widget()` is the same page as an anywidget, for who wants what was chosen back in Python.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from tuna_nb.catalog.listing import Priced, PriceList
from tuna_nb.views import points
from tuna_nb.views.charts import plain_table
from tuna_nb.views.html import FONT, PLAIN, QUIET
from tuna_nb.views.points import By
from tuna_nb.views.sheets import Sheet

if TYPE_CHECKING:
    import anywidget

MOST_OFFERS: Final = 2000
"""Offers that travel; more would make a heavy notebook."""
PREVIEW: Final = 20
"""Rows of the plain table."""


def show(price_list: PriceList) -> PriceExplorer:
    """The explorer of that list, to be displayed."""
    return PriceExplorer(price_list)


@dataclass(frozen=True)
class PriceExplorer:
    """Displays as HTML with a script, a plain table, or text."""

    price_list: PriceList

    @property
    def text(self) -> str:
        from tuna_nb.views import text

        return text.render(_sheet(self.price_list))

    @property
    def html(self) -> str:
        sheet = _sheet(self.price_list)
        title = f'<div style="font-weight:600">{escape(sheet.title)}</div>'
        notes = "".join(f'<div style="{QUIET}">{escape(note)}</div>' for note in sheet.notes)
        if not sheet.rows:
            return f'<div {PLAIN} style="{FONT}">{title}{notes}</div>'
        table = plain_table(list(sheet.columns), [list(row) for row in sheet.rows])
        # Its own name, so that a second one in the notebook finds its own place.
        name = f"tuna-{secrets.token_hex(4)}"
        plain = f'{title}<div style="overflow-x:auto">{table}</div>{notes}'
        script = f"<script>{_script(name, self.price_list)}</script>"
        return f'<div {PLAIN} data-tuna-explorer="{name}" style="{FONT}">{plain}</div>{script}'

    def widget(self) -> anywidget.AnyWidget:
        """The same as a live widget. Its `chosen` are the rows that pass the filters, in the order shown, as
        places in `price_list.rows`; `observe` them, or index with them."""
        return _widget(self.price_list)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self.html}

    def __repr__(self) -> str:
        return self.text


def columns(price_list: PriceList) -> dict[str, Any]:
    """The offers as the script reads them: each name once, then for each column a number or null an offer."""
    rows = price_list.rows[:MOST_OFFERS]
    words: dict[str, list[str]] = {}

    def places(column: str, names: Iterable[str]) -> list[int]:
        known: dict[str, int] = {}
        made = [known.setdefault(name, len(known)) for name in names]
        words[column] = list(known)
        return made

    made: dict[str, list[Any]] = {
        "gpu": places("gpu", (p.offer.gpu for p in rows)),
        "provider": places("provider", (p.offer.provider for p in rows)),
        "kind": places("kind", (str(p.offer.kind) for p in rows)),
        "region": places("region", (p.offer.region or "" for p in rows)),
        "source": places("source", (p.offer.source for p in rows)),
        "note": places("note", (p.offer.note for p in rows)),
        "lacks": places("lacks", (" and ".join(p.all_in.lacks) if p.all_in else "" for p in rows)),
        "count": [p.offer.gpu_count for p in rows],
        "price": [_figures(points.amount(p, By.GPU_HOUR, price_list.shape)) for p in rows],
        "all": [_figures(points.amount(p, By.ALL_IN, price_list.shape)) for p in rows],
        "demand": [_figures(p.saves_on_demand) for p in rows],
        "serverless": [_figures(p.saves_serverless) for p in rows],
        "age": [round(p.offer.age_s(price_list.at)) for p in rows],
        "stale": [int(p.stale) for p in rows],
    }
    vram = {p.offer.gpu: p.vram_gb for p in rows}
    return {
        "words": words,
        "columns": made,
        "vram": [vram[gpu] for gpu in words["gpu"]],
        "notes": list(_notes(price_list)),
    }


def _notes(price_list: PriceList) -> tuple[str, ...]:
    there = len(price_list.rows)
    said = [f"Prices as of {points.date(price_list.at)}. All in: {points.axis(By.ALL_IN, price_list.shape)}."]
    if there > MOST_OFFERS:
        said.append(f"The first {MOST_OFFERS:,} of {there:,} offers; name a GPU or a provider to see the others.")
    elif price_list.total > there:
        said.append(f"{there:,} of {price_list.total:,} offers that match; --limit shows more.")
    return tuple(said)


def _sheet(price_list: PriceList) -> Sheet:
    """What can be read where no script runs: the first rows, as they were sorted."""
    if not price_list.rows:
        return Sheet("Prices to explore: no offer matches", tone="busy")
    shown = price_list.rows[:PREVIEW]
    lines = tuple(_line(p, price_list) for p in shown)
    left = len(price_list.rows) - len(shown)
    notes = (
        (f"{left:,} more can be explored where scripts run: run the cell in a notebook.",) if left else ()
    ) + _notes(price_list)
    names = ("GPU", "provider", "kind", "region", "$/GPU-h", "all in $/h", "seen", "source")
    return Sheet(f"{len(price_list.rows):,} GPU prices", (), names, lines, notes)


def _line(p: Priced, price_list: PriceList) -> tuple[str, ...]:
    whole = points.amount(p, By.ALL_IN, price_list.shape)
    least = "≥ " if p.all_in is not None and p.all_in.lacks else ""
    alone = points.amount(p, By.GPU_HOUR, price_list.shape)
    return (
        p.offer.gpu,
        p.offer.provider,
        str(p.offer.kind),
        p.offer.region or "any",
        points.per_hour(alone) if alone is not None else "no quote",
        f"{least}{points.per_hour(whole)}" if whole is not None else "unknown",
        points.seen_words(p, price_list.at),
        p.offer.source,
    )


def _figures(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.5g}")


@cache
def _read(name: str) -> str:
    return files("tuna_nb.views").joinpath(name).read_text("utf-8")


def _script(name: str, price_list: PriceList) -> str:
    """JSON within a script must not be able to end it."""
    data, style = (_safe(part) for part in (columns(price_list), _read("explorer.css")))
    places = f'document.querySelectorAll("[data-tuna-explorer={name}]")'
    return f"(() => {{ {_read('explorer.js')}\nfor (const host of {places}) mount(host, {data}, {style}); }})();"


def _safe(value: Any) -> str:
    words = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return words.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


_RENDER: Final = """
export default { render({ model, el }) {
  const host = el.appendChild(document.createElement("div"));
  mount(host, model.get("data"), model.get("look"), (kept) => {
    model.set("chosen", kept);
    model.save_changes();
  });
} };
"""


def _widget(price_list: PriceList) -> anywidget.AnyWidget:
    import anywidget
    import traitlets

    class Explorer(anywidget.AnyWidget):
        _esm = _read("explorer.js") + _RENDER
        data = traitlets.Dict().tag(sync=True)
        look = traitlets.Unicode().tag(sync=True)
        chosen = traitlets.List(traitlets.Int()).tag(sync=True)

    return Explorer(
        data=columns(price_list), look=_read("explorer.css"), chosen=list(range(len(price_list.rows[:MOST_OFFERS])))
    )
