"""The ledger: billed intervals as they are learned, and what any span of time has cost, from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tuna_nb.costs.amounts import NOTHING, QUARTER_S, Amount, billed, quarters, rate
from tuna_nb.records import IntervalRecord, SpentRecord

if TYPE_CHECKING:
    from tuna_nb.store.books import Books


@dataclass(frozen=True, slots=True)
class Seen:
    """A replica that bills now. started_at: None where the provider does not tell. ready: it can serve."""

    replica_id: str
    started_at: float | None
    ready: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """At what a resource is billed now. price_per_hour_usd: of one replica, None where it is unknown."""

    price_per_hour_usd: float | None
    granularity_s: float = 1.0
    minimum_s: float = 0.0


def report(books: Books, resource_id: int, told: Sequence[IntervalRecord]) -> None:
    """Write intervals as their provider tells them; it knows their whole history, so its word replaces ours."""

    def amend(kept: list[IntervalRecord]) -> tuple[list[IntervalRecord], list[SpentRecord]]:
        known = {one.key: one for one in kept}
        # Nothing is written where only the time of the look differs.
        changed = [one for one in told if one.ended_at is None or not _same(known.get(one.key), one)]
        return changed, _difference(known, changed)

    books.amend(resource_id, [one.started_at for one in told], amend)


def observe(books: Books, resource_id: int, seen: Sequence[Seen], terms: Terms, now: float) -> None:
    """Write what was seen of a resource: replicas come, serve, change their price and go.

    What happens between two looks is taken to have happened in the middle, and may be off by half the time between.
    """

    def amend(kept: list[IntervalRecord]) -> tuple[list[IntervalRecord], list[SpentRecord]]:
        known = {one.key: one for one in kept}
        running = {one.replica_id: one for one in kept if one.ended_at is None}
        changed = []
        for one in seen:
            old = running.pop(one.replica_id, None)
            if old is not None and not _is_another(old, one):
                changed.append(_goes_on(old, one, terms, now))
                continue
            if old is not None:
                changed.append(_ended(old, now if one.started_at is None else min(one.started_at, now)))
            changed.append(_begun(resource_id, one, terms, now))
        changed += [_ended(old, now) for old in running.values()]
        return changed, _difference(known, changed)

    books.amend(resource_id, [], amend)


def _is_another(old: IntervalRecord, seen: Seen) -> bool:
    """Whether a replica of that name is a later one: it began after the one that is known was last seen."""
    return seen.started_at is not None and seen.started_at > max(old.seen_at, old.started_at + 1)


def _begun(resource_id: int, seen: Seen, terms: Terms, now: float) -> IntervalRecord:
    at = now if seen.started_at is None else min(seen.started_at, now)
    return IntervalRecord(
        resource_id,
        seen.replica_id,
        at,
        # Ready at the first look: that it was sooner is likely, how much nobody knows.
        now if seen.ready else None,
        None,
        now,
        ((at, terms.price_per_hour_usd),),
        terms.granularity_s,
        terms.minimum_s,
    )


def _goes_on(old: IntervalRecord, seen: Seen, terms: Terms, now: float) -> IntervalRecord:
    ready_at = old.ready_at
    if ready_at is None and seen.ready:
        ready_at = (old.seen_at + now) / 2
    prices = old.prices
    if prices[-1][1] != terms.price_per_hour_usd:
        prices = (*prices, (now, terms.price_per_hour_usd))
    return replace(old, ready_at=ready_at, seen_at=max(old.seen_at, now), prices=prices)


def _ended(old: IntervalRecord, by: float) -> IntervalRecord:
    """Seen before and not any more: it ended in between."""
    by = max(by, old.seen_at)
    middle = (old.seen_at + by) / 2
    return replace(old, ended_at=middle, error_s=old.error_s + (by - old.seen_at) / 2)


def _same(old: IntervalRecord | None, new: IntervalRecord) -> bool:
    return old is not None and replace(old, seen_at=new.seen_at) == new


def _difference(
    known: Mapping[tuple[str, float], IntervalRecord], changed: Iterable[IntervalRecord]
) -> list[SpentRecord]:
    """What the sums of ended intervals gain by the change."""
    sums: list[SpentRecord] = []
    for new in changed:
        old = known.get(new.key)
        if old is not None and old.ended_at is not None:
            sums += [(-Amount.of(s)).sums(s.resource_id, s.quarter) for s in quarters(old)]
        if new.ended_at is not None:
            sums += quarters(new)
    return sums


@dataclass(slots=True)
class Spent:
    """What a span cost: by resource, and by quarter of an hour where that was asked for. rates: USD per hour now by
    resource, None where a price is unknown. running: replicas now."""

    by_resource: dict[int, Amount] = field(default_factory=dict)
    by_quarter: dict[tuple[int, int], Amount] = field(default_factory=dict)
    rates: dict[int, float | None] = field(default_factory=dict)
    running: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> Amount:
        return sum(self.by_resource.values(), NOTHING)


def between(books: Books, resource_ids: Sequence[int], since: float, until: float, *, split: bool = False) -> Spent:
    """What resources cost in [since, until), Unix seconds; `split` tells it by quarters of an hour as well.

    The sums answer for all whole quarters, however many intervals they hold; the two quarters at the edges and what
    still runs are counted one by one.
    """
    spent = Spent(dict.fromkeys(resource_ids, NOTHING))
    if not resource_ids or until <= since:
        return spent
    first, last = math.ceil(since / QUARTER_S) * QUARTER_S, math.floor(until / QUARTER_S) * QUARTER_S
    if first <= last:
        for row in books.spent(resource_ids, first, last):
            _count(spent, row.resource_id, row.quarter, Amount.of(row), split)
        edges = [(since, float(first)), (float(last), until)]
    else:
        edges = [(since, until)]
    for begun, ended in edges:
        if begun < ended:
            quarter = math.floor(begun / QUARTER_S) * QUARTER_S
            for interval in books.ended_between(resource_ids, begun, ended):
                _count(
                    spent, interval.resource_id, quarter, billed(interval, ended) - billed(interval, begun), split
                )
    for interval in books.open_intervals(resource_ids):
        _count_open(spent, interval, since, until, split)
    return spent


def _count_open(spent: Spent, interval: IntervalRecord, since: float, until: float, split: bool) -> None:
    resource = interval.resource_id
    if not split:
        _count(spent, resource, 0, billed(interval, until) - billed(interval, since), split)
    else:
        at, before = max(since, interval.started_at), billed(interval, since)
        while at < until:
            quarter = math.floor(at / QUARTER_S) * QUARTER_S
            at = min(until, quarter + QUARTER_S)
            by_then = billed(interval, at)
            _count(spent, resource, quarter, by_then - before, split)
            before = by_then
    now = rate(interval, until)
    so_far = spent.rates.get(resource, 0.0)
    spent.rates[resource] = None if now is None or so_far is None else so_far + now
    spent.running[resource] = spent.running.get(resource, 0) + 1


def _count(spent: Spent, resource: int, quarter: int, amount: Amount, split: bool) -> None:
    spent.by_resource[resource] += amount
    if split:
        key = (resource, quarter)
        spent.by_quarter[key] = spent.by_quarter.get(key, NOTHING) + amount


def grouped(spent: Spent, name: Callable[[int, int], str]) -> dict[str, Amount]:
    """The quarters' amounts added up by a name for each (resource, quarter)."""
    groups: dict[str, Amount] = {}
    for (resource, quarter), amount in spent.by_quarter.items():
        key = name(resource, quarter)
        groups[key] = groups.get(key, NOTHING) + amount
    return groups
