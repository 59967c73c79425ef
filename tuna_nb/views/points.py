"""What a chart of prices draws, before it is SVG or plotly: which offer stands for which row, and its words.

An offer whose price is not known is never a point: it is named beside the chart.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tuna_nb.catalog.listing import Priced, PriceList
from tuna_nb.catalog.offers import OfferKind, Shape
from tuna_nb.views.sheets import age

PREEMPTIBLE: Final = (OfferKind.SPOT, OfferKind.INTERRUPTIBLE)
MOST_REGIONS: Final = 20
"""Regions of one GPU in a chart; the dearer ones are counted."""

Key = tuple[str, str, str]
"""GPU, then what tells the rows of one GPU apart: provider and kind, or provider and region."""


class By(enum.StrEnum):
    """What is compared. The first is the offer's own price, the second all that is billed."""

    GPU_HOUR = "per GPU-hour"
    ALL_IN = "all in"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a chart. series: what its colour stands for. least, most: USD, the same for a single price.
    offer: the one that costs the least. offers: how many it stands for."""

    gpu: str
    label: str
    series: str
    least: float
    most: float
    offer: Priced
    offers: int


@dataclass(frozen=True, slots=True)
class Table:
    """keys: the chart's lines from the top. rows: by what is compared; a missing key has no such price."""

    keys: tuple[Key, ...]
    rows: dict[By, dict[Key, Row]]
    unknown: tuple[str, ...]
    note: str = ""

    def gpus(self) -> dict[str, range]:
        """The lines of each GPU: they follow each other."""
        spans: dict[str, range] = {}
        for number, (gpu, *_) in enumerate(self.keys):
            spans[gpu] = range(spans[gpu].start if gpu in spans else number, number + 1)
        return spans

    def row(self, key: Key) -> Row:
        """By the GPU's own price where it has one."""
        return next(rows[key] for rows in self.rows.values() if key in rows)


def amount(p: Priced, by: By, shape: Shape | None) -> float | None:
    """USD per hour; None where it is not known. All in is for the list's shape, or without one for one GPU's share
    of each machine, so that a machine of eight can stand beside one of one."""
    usd = p.offer.price_per_hour_usd
    if by is By.ALL_IN:
        usd = None if p.all_in is None else p.all_in.usd_per_hour / (1 if shape else p.offer.gpu_count)
    return usd if usd is not None and math.isfinite(usd) and usd > 0 else None


def axis(by: By, shape: Shape | None) -> str:
    """What the numbers are."""
    if by is By.GPU_HOUR:
        return "USD per GPU-hour, the GPU alone"
    if shape is None:
        return "USD per GPU-hour, with what each machine bills beside it"
    return f"USD per hour for {in_words(shape)}"


def in_words(shape: Shape) -> str:
    disk = f", {shape.disk_gb:g} GB disk" if shape.disk_gb else ""
    return f"{shape.gpus} GPU{'s' * (shape.gpus != 1)}, {shape.vcpus:g} vCPUs, {shape.memory_gib:g} GiB{disk}"


def of_providers(prices: PriceList) -> Table:
    """One line for each GPU, provider and kind: the cheapest of its offers."""
    return _table(
        prices,
        prices.rows,
        key=lambda p: (p.offer.gpu, p.offer.provider, str(p.offer.kind)),
        series=lambda p: str(p.offer.kind),
        ranged=False,
    )


def of_regions(prices: PriceList) -> Table:
    """One line for each GPU, provider and region that sells it as spot: from its cheapest zone to its dearest."""
    spot = [p for p in prices.rows if p.offer.kind in PREEMPTIBLE and p.offer.region is not None]
    whole = _table(
        prices,
        spot,
        key=lambda p: (p.offer.gpu, p.offer.provider, p.offer.region or ""),
        series=lambda p: p.offer.provider,
        ranged=True,
    )
    kept = [key for span in whole.gpus().values() for key in whole.keys[span.start : span.stop][:MOST_REGIONS]]
    left = len(whole.keys) - len(kept)
    note = f"the {MOST_REGIONS} cheapest regions of each GPU; {left} more are not drawn" if left else ""
    return Table(tuple(kept), whole.rows, whole.unknown, note)


def _table(
    prices: PriceList,
    rows: Iterable[Priced],
    key: Callable[[Priced], Key],
    series: Callable[[Priced], str],
    ranged: bool,
) -> Table:
    grouped: dict[Key, list[Priced]] = {}
    for p in rows:
        grouped.setdefault(key(p), []).append(p)
    drawn: dict[By, dict[Key, Row]] = {by: {} for by in By}
    unknown = []
    for k, offers in grouped.items():
        for by in By:
            known = [(usd, p) for p in offers if (usd := amount(p, by, prices.shape)) is not None]
            if known:
                least, cheapest = min(known, key=lambda pair: pair[0])
                most = max(usd for usd, _ in known) if ranged else least
                drawn[by][k] = Row(k[0], f"{k[1]} {k[2]}", series(cheapest), least, most, cheapest, len(known))
        if not any(k in found for found in drawn.values()):
            why = next((p.offer.note for p in offers if p.offer.note), "no price is known")
            unknown.append(f"{' '.join(k)}: {why}")
    vram = {p.offer.gpu: p.vram_gb for offers in grouped.values() for p in offers}

    def place(k: Key) -> tuple[int, str, float, Key]:
        return (vram[k[0]], k[0], min(found[k].least for found in drawn.values() if k in found), k)

    keys = sorted({k for found in drawn.values() for k in found}, key=place)
    return Table(tuple(keys), drawn, tuple(sorted(unknown)))


def per_hour(usd: float | None) -> str:
    """For reading: three figures behind the point below a dollar, where they make a difference."""
    if usd is None:
        return "unknown"
    return f"${usd:,.3f}" if usd < 1 else f"${usd:,.2f}"


def all_in_words(p: Priced) -> str:
    """The all-in sum; names the lines that are billed too and have no price."""
    if p.all_in is None:
        return "unknown"
    lacks = f" and {' and '.join(p.all_in.lacks)}" if p.all_in.lacks else ""
    return per_hour(p.all_in.usd_per_hour) + lacks


def place_words(p: Priced) -> str:
    return p.offer.zone or p.offer.region or "any region"


def seen_words(p: Priced, now: float) -> str:
    return f"{age(p.offer.age_s(now)).split()[0]} ago{', stale' if p.stale else ''}"


def date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
