"""Choosing among offers: filters, order, and what one saves against another that is like it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tuna_nb.catalog.gpus import GPUS
from tuna_nb.catalog.listing import Priced
from tuna_nb.catalog.offers import Offer, OfferKind, Shape

VRAM: Final = {g.name: g.vram_gb for g in GPUS}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to show; None or empty: whatever there is.

    gpu: canonical name. spot_clouds: whose spot and on-demand offers are meant, where those kinds are shown.
    region: a part of the region's or zone's name. gpu_count: GPUs of a machine. max_price: USD per GPU-hour, or
    per hour all in where `by_all_in`; an unknown price is not below it. cheapest: only the cheapest of a provider's
    kind for each GPU.
    """

    gpu: str | None = None
    provider: str | None = None
    kinds: frozenset[OfferKind] = frozenset()
    spot_clouds: frozenset[str] = frozenset()
    region: str | None = None
    min_vram_gb: float | None = None
    max_price: float | None = None
    gpu_count: int | None = None
    shape: Shape | None = None
    by_all_in: bool = False
    sort: str = "gpu"
    cheapest: bool = True
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """rows: of this page. total: how many match."""

    rows: tuple[Priced, ...]
    total: int


def select(offers: Sequence[Offer], wanted: Wanted, now: float) -> Found:
    """now: Unix seconds, by which prices are stale or not."""
    fitting = [o for o in offers if _fits(o, wanted)]
    if wanted.cheapest:
        fitting = cheapest(fitting, wanted)
    if wanted.max_price is not None and wanted.by_all_in:
        most = wanted.max_price
        fitting = [o for o in fitting if (usd := o.sum(wanted.shape)[0]) is not None and usd <= most]
    compared = Savings(offers, wanted.shape)
    fitting.sort(key=_order(wanted, now, compared))
    # What is not on the page needs no more than its place.
    page = fitting[wanted.offset : None if wanted.limit is None else wanted.offset + wanted.limit]
    return Found(
        tuple(Priced(o, VRAM[o.gpu], o.all_in(wanted.shape), o.is_stale(now), *compared.of(o)) for o in page),
        len(fitting),
    )


def cheapest(offers: Iterable[Offer], wanted: Wanted) -> list[Offer]:
    """Of each provider's kind of sale and each GPU the offer that costs least, of machines of whatever size."""

    def price(offer: Offer) -> tuple[float, bool, int]:
        amount = offer.price_per_hour_usd
        if amount is None:
            return math.inf, True, offer.gpu_count
        if wanted.by_all_in:
            usd, lacks = offer.sum(wanted.shape)
            gpus = offer.gpu_count if wanted.shape is None else wanted.shape.gpus
            # A sum that lacks a line is no rival of a whole one.
            return (usd or 0.0) / gpus, bool(lacks), offer.gpu_count
        return amount, False, offer.gpu_count

    best: dict[tuple[str, str, str], Offer] = {}
    for offer in offers:
        key = (offer.provider, offer.kind, offer.gpu)
        if key not in best or price(offer) < price(best[key]):
            best[key] = offer
    return list(best.values())


class Savings:
    """Like with like: the same GPUs, vCPUs and memory for an hour, everything that is billed in it.

    On demand: the same machine of the same provider in the same region, else that provider's cheapest with as many
    of that GPU. Serverless: the cheapest of anybody for the same GPUs, vCPUs and memory. A sum that lacks a line is
    compared with nothing.
    """

    def __init__(self, offers: Iterable[Offer], shape: Shape | None) -> None:
        self._shape = shape
        self._least: dict[tuple[object, ...], float | None] = {}
        self._staying: dict[tuple[object, ...], list[Offer]] = defaultdict(list)
        self._serverless: dict[str, list[Offer]] = defaultdict(list)
        for offer in offers:
            if offer.price_per_hour_usd is None:
                continue
            if offer.kind is OfferKind.SERVERLESS:
                self._serverless[offer.gpu].append(offer)
            elif offer.kind in _STAYING:
                self._staying[_like(offer)].append(offer)
                self._staying[(*_like(offer), offer.machine, offer.region)].append(offer)

    def of(self, offer: Offer) -> tuple[float | None, float | None]:
        """The share saved against on demand, and against serverless; None for nothing to compare with."""
        paid, lacks = offer.sum(self._shape)
        if paid is None or lacks:
            return None, None
        staying = on_tap = None
        if offer.kind in _TAKEN_AWAY:
            there = (*_like(offer), offer.machine, offer.region)
            alike = there if there in self._staying else _like(offer)
            staying = self._cheapest(alike, self._staying.get(alike, ()), self._shape)
        if offer.kind is not OfferKind.SERVERLESS:
            key = offer.gpu, offer.gpu_count, offer.vcpus, offer.memory_gib
            if key not in self._least:
                among = [o for o in self._serverless.get(offer.gpu, ()) if o.holds(offer.gpu_count)]
                self._cheapest(key, among, offer.own_shape if self._shape is None else self._shape)
            on_tap = self._least[key]
        return _saved(paid, staying), _saved(paid, on_tap)

    def _cheapest(self, key: tuple[object, ...], among: Iterable[Offer], shape: Shape | None) -> float | None:
        if key not in self._least:
            sums = (offer.sum(shape) for offer in among)
            self._least[key] = min((usd for usd, lacks in sums if usd is not None and not lacks), default=None)
        return self._least[key]


_STAYING: Final = (OfferKind.ON_DEMAND, OfferKind.DEDICATED)
_TAKEN_AWAY: Final = (OfferKind.SPOT, OfferKind.INTERRUPTIBLE)


def _like(offer: Offer) -> tuple[object, ...]:
    return offer.provider, offer.gpu, offer.gpu_count


def _saved(paid: float, otherwise: float | None) -> float | None:
    return None if otherwise is None else round(1 - paid / otherwise, 4)


def _fits(o: Offer, w: Wanted) -> bool:
    return (
        (w.gpu is None or o.gpu == w.gpu)
        and (w.provider is None or o.provider == w.provider)
        and (not w.kinds or o.kind in w.kinds)
        and (
            not w.spot_clouds or o.kind not in (OfferKind.SPOT, OfferKind.ON_DEMAND) or o.provider in w.spot_clouds
        )
        and (w.region is None or w.region.lower() in f"{o.region or ''} {o.zone or ''}".lower())
        and (w.min_vram_gb is None or VRAM[o.gpu] >= w.min_vram_gb)
        and (w.gpu_count is None or o.gpu_count == w.gpu_count)
        and (
            w.max_price is None
            or w.by_all_in
            or (o.price_per_hour_usd is not None and o.price_per_hour_usd <= w.max_price)
        )
    )


def _price(offer: Offer, wanted: Wanted) -> float:
    """What the list is about; an unknown price comes last."""
    whole = wanted.by_all_in or wanted.sort == "all-in"
    usd = offer.sum(wanted.shape)[0] if whole else offer.price_per_hour_usd
    return math.inf if usd is None else usd


def _order(wanted: Wanted, now: float, compared: Savings) -> Callable[[Offer], tuple[object, ...]]:
    first: dict[str, Callable[[Offer], object]] = {
        "gpu": lambda o: (VRAM[o.gpu], o.gpu),
        "vram": lambda o: VRAM[o.gpu],
        "provider": lambda o: o.provider,
        "kind": lambda o: o.kind,
        "region": lambda o: o.region or "",
        "age": lambda o: o.age_s(now),
        # The most comes first, and nothing to compare with last.
        "saving": lambda o: -max((s for s in compared.of(o) if s is not None), default=-math.inf),
    }
    by = first.get(wanted.sort)
    if by is None:
        return lambda o: (_price(o, wanted), o.provider, o.kind, o.region or "", o.zone or "")
    return lambda o: (by(o), _price(o, wanted), o.provider, o.kind, o.region or "", o.zone or "")
