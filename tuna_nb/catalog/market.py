"""All sources of prices at once: each asked on its own, none waiting for another, nothing lost by one that fails.

What a source said is kept, in memory and on disk, and shown until it says something better. It is asked again when
its answer is no longer fresh, behind the caller's back shortly before that, and after an error not for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tuna_nb.catalog import gpus, kept, snapshot
from tuna_nb.catalog.kept import Kept
from tuna_nb.catalog.listing import Answer, SourceReport
from tuna_nb.catalog.offers import Offer
from tuna_nb.catalog.sources.base import Source
from tuna_nb.errors import BackendError, TunaError

PATIENCE_S: Final = 5.0
"""What has not answered by then is shown as it was, and goes on answering in the background."""
_EARLY: Final = 0.75
"""The share of its freshness after which an answer is renewed in the background."""
_BACK_OFF_S: Final = 30.0
_MOST_BACK_OFF_S: Final = 300.0

SNAPSHOT: Final = "snapshot"


@dataclass(frozen=True, slots=True)
class Answers:
    """offers: of all sources, the newest of what is said twice. reports: one a source, in their order. fresh: what
    was said just now, which history has not seen."""

    offers: tuple[Offer, ...]
    reports: tuple[SourceReport, ...]
    fresh: tuple[Offer, ...] = ()


class Market:
    """folder: where answers are kept; None keeps them in memory alone. One object may be asked by many at once."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._kept: dict[str, Kept] = {}
        self._under_way: dict[str, asyncio.Task[str | None]] = {}

    async def ask(
        self, sources: Sequence[Source], *, live: bool, seller: str | None = None, patience_s: float = PATIENCE_S
    ) -> Answers:
        """live: ask what is not fresh any more; else only what is on this machine. seller: only those that have
        its offers; what the others said is there all the same. Never raises for a source."""
        now = self._clock()
        local = [s for s in sources if s.local]
        meant = [s for s in sources if live and not s.local]
        if seller is not None:
            meant = [s for s in meant if not s.sellers or seller in s.sellers]
        awaited = [s for s in meant if self._may_ask(s, now)]
        for source in meant:
            if source not in awaited and self._nearly_stale(source, now):
                self._start(source)
        before = {s.name: self._known(s).observed_at for s in sources}
        started = [self._start(s) for s in awaited]
        here = [asyncio.ensure_future(self._read(s)) for s in local]
        found = await asyncio.gather(*here)
        if started:
            await asyncio.wait(started, timeout=patience_s)
        offers: list[Offer] = []
        fresh: list[Offer] = []
        reports = []
        for source in sources:
            if source in local:
                said, why = found[local.index(source)]
                at = max((o.observed_at for o in said), default=None)
                reports.append(SourceReport(source.name, Answer.FAILED if why else Answer.KEPT, len(said), at, why))
                offers += said
                continue
            known = self._known(source)
            offers += known.offers
            if source in meant or known.observed_at is not None:
                asked = source in awaited
                reports.append(self._report(source, known, self._clock(), asked=asked, live=source in meant))
            if source in awaited and known.observed_at != before[source.name]:
                fresh += known.offers
        shipped = snapshot.offers()
        reports.append(SourceReport(SNAPSHOT, Answer.KEPT, len(shipped), max(o.observed_at for o in shipped)))
        return Answers(tuple(newest([*offers, *shipped])), tuple(reports), tuple(fresh))

    # Its own parts

    def _known(self, source: Source) -> Kept:
        if source.name not in self._kept:
            file = self._file(source)
            self._kept[source.name] = Kept() if file is None else kept.load(file)
        return self._kept[source.name]

    def _file(self, source: Source) -> Path | None:
        return None if self._folder is None else self._folder / f"{source.name}.json"

    def _may_ask(self, source: Source, now: float) -> bool:
        known = self._known(source)
        is_fresh = known.observed_at is not None and now - known.observed_at < source.fresh_s
        return not is_fresh and source.lacks() is None and not self._rests(known, now)

    @staticmethod
    def _rests(known: Kept, now: float) -> bool:
        """Whether it failed so lately that it is left alone."""
        return known.failed_at is not None and now < known.failed_at + _back_off(known.failures)

    def _nearly_stale(self, source: Source, now: float) -> bool:
        known = self._known(source)
        return (
            known.observed_at is not None
            and _EARLY * source.fresh_s <= now - known.observed_at < source.fresh_s
            and source.lacks() is None
            and not self._rests(known, now)
        )

    def _start(self, source: Source) -> asyncio.Task[str | None]:
        """One question at a time: who asks meanwhile gets the same answer."""
        task = self._under_way.get(source.name)
        if task is None or task.done():
            task = self._under_way[source.name] = asyncio.ensure_future(self._ask_one(source))
        return task

    async def _ask_one(self, source: Source) -> str | None:
        """Keep what it says; what is wrong, where something is. Never raises but when cancelled."""
        fix: str | None = None
        try:
            async with asyncio.timeout(source.timeout_s):
                offers = checked(source.name, await source.fetch())
        except TimeoutError:
            why = f"no answer within {source.timeout_s:g} s"
        except TunaError as e:
            why, fix = e.message, e.hint
        except Exception as e:  # noqa: BLE001 - a third party's source must not take the others with it
            why = f"{type(e).__name__}: {e}"
        else:
            self._keep(source, Kept(tuple(offers), self._clock()))
            return None
        known = self._known(source)
        why = why.removeprefix(f"{source.name}: ")
        # What it said before stays: a failure is no news about prices.
        failures = known.failures + 1
        self._keep(source, replace(known, failed_at=self._clock(), failures=failures, why=why, fix=fix))
        return why

    def _keep(self, source: Source, known: Kept) -> None:
        self._kept[source.name] = known
        file = self._file(source)
        if file is not None:
            with contextlib.suppress(OSError):  # a full disk takes no price away from whoever is looking
                kept.save(file, known)

    @staticmethod
    async def _read(source: Source) -> tuple[list[Offer], str]:
        try:
            return checked(source.name, await source.fetch(), may_be_none=True), ""
        except TunaError as e:
            return [], e.message
        except Exception as e:  # noqa: BLE001 - a broken file must not take the others with it
            return [], f"{type(e).__name__}: {e}"

    def _report(self, source: Source, known: Kept, now: float, *, asked: bool, live: bool) -> SourceReport:
        count, at = len(known.offers), known.observed_at
        failed_since = known.failed_at is not None and (at is None or known.failed_at >= at)
        if asked and failed_since:
            return SourceReport(source.name, Answer.FAILED, count, at, known.why, known.fix)
        if asked and (at is None or now - at >= source.fresh_s):
            return SourceReport(source.name, Answer.SLOW, count, at, "has not answered yet")
        if live and (lacks := source.lacks()) is not None:
            return SourceReport(source.name, Answer.UNASKED, count, at, "needs credentials", lacks)
        if live and failed_since and known.failed_at is not None and self._rests(known, now):
            again = math.ceil(known.failed_at + _back_off(known.failures) - now)
            return SourceReport(
                source.name, Answer.UNASKED, count, at, f"{known.why}; asked again in {again} s at the earliest"
            )
        if at is not None and now - at < source.fresh_s:
            return SourceReport(source.name, Answer.FRESH, count, at)
        if at is not None:
            return SourceReport(source.name, Answer.KEPT, count, at)
        return SourceReport(source.name, Answer.UNASKED, 0, None)


def checked(source: str, offers: list[Offer], *, may_be_none: bool = False) -> list[Offer]:
    """Raises BackendError for what can't be true: no offers at all, an unknown GPU, a price that is no price."""
    if not offers and not may_be_none:
        raise BackendError(f"{source}: it offers nothing, which is taken for a fault")
    for offer in offers:
        price = offer.price_per_hour_usd
        if offer.gpu not in gpus.NAMES:
            raise BackendError(f"{source}: an offer with an unknown GPU {offer.gpu!r}")
        if price is not None and not (math.isfinite(price) and price > 0):
            raise BackendError(f"{source}: an offer of {offer.gpu} at {price!r} USD an hour")
    return offers


def newest(offers: Iterable[Offer]) -> list[Offer]:
    """Of offers of the same thing the one that was seen last. A live answer of a provider's kind of sale puts the
    snapshot's rows for the same GPU away, also where machine names differ."""
    best: dict[tuple[object, ...], Offer] = {}
    told: set[tuple[object, ...]] = set()
    for offer in offers:
        if not offer.snapshot and offer.price_per_hour_usd is not None:
            told.add((offer.provider, offer.kind, offer.gpu, offer.gpu_count))
        key = (offer.provider, offer.kind, offer.gpu, offer.gpu_count, offer.machine, offer.region, offer.zone)
        other = best.get(key)
        if other is None or _rank(offer) > _rank(other):
            best[key] = offer
    return [o for o in best.values() if not o.snapshot or (o.provider, o.kind, o.gpu, o.gpu_count) not in told]


def _rank(offer: Offer) -> tuple[bool, float, float]:
    """The later one; of two seen at once the cheaper, as when a marketplace has many machines of a kind."""
    price = offer.price_per_hour_usd
    return (price is not None, offer.observed_at, -(price or 0.0))


def _back_off(failures: int) -> float:
    return float(min(_MOST_BACK_OFF_S, _BACK_OFF_S * 2 ** max(0, failures - 1)))
