"""What `show-gpus` answers: offers that were asked for, each with its all-in price and what it saves, and how every
source answered."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tuna_nb.catalog.offers import AllIn, Offer, Shape


class Answer(enum.StrEnum):
    """How a source stands."""

    FRESH = "fresh"
    """Asked just now, or lately enough."""
    KEPT = "kept"
    """As it was when it was last asked; not asked now."""
    FAILED = "failed"
    """Asked now in vain; what it said before is shown, where there is such."""
    SLOW = "slow"
    """Did not answer in time; what it said before is shown."""
    UNASKED = "not asked"
    """Something must be set first, or it failed lately, or nobody asked for live prices."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """offers: how many of its offers are known. observed_at: Unix seconds of its last good answer, None for never.
    why: what is wrong or missing. fix: the step that mends it."""

    name: str
    answer: Answer
    offers: int
    observed_at: float | None
    why: str = ""
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Priced:
    """One offer of a list.

    all_in: for the list's shape. stale: older than its shelf life. saves_on_demand, saves_serverless: the share of
    the cheapest like machine's all-in price that this one saves (0.6: it costs 40 % of it), negative where it is
    dearer; None where there is nothing to compare with.
    """

    offer: Offer
    vram_gb: int
    all_in: AllIn | None
    stale: bool
    saves_on_demand: float | None = None
    saves_serverless: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A price in the past: the cheapest of its kind that was seen then. at: Unix seconds."""

    at: float
    provider: str
    kind: str
    gpu: str
    region: str | None
    price_per_hour_usd: float


@dataclass(frozen=True, slots=True)
class PriceList:
    """rows: sorted as asked. total: how many matched, which may be more than are shown. shape: of the all-in
    prices, None for each machine's own size. at: Unix seconds. history: oldest first, None where it was not
    asked for."""

    rows: tuple[Priced, ...]
    total: int
    shape: Shape | None
    sources: tuple[SourceReport, ...]
    at: float
    history: tuple[Seen, ...] | None = None
