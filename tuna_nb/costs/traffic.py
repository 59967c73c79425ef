"""The traffic in the records: kept as the router tells it, and read back for any span."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tuna_nb.costs.amounts import QUARTER_S
from tuna_nb.costs.load import MINUTE_S, Load, Shares, minute_from_json, shares_from_json, sum_up
from tuna_nb.records import SpanRecord, TrafficRecord

if TYPE_CHECKING:
    from tuna_nb.store.books import Books

ROUTER: Final = "router"
"""Of spans in which a router counted."""


@dataclass(slots=True)
class Traffic:
    """Who used what in a span, and by (deployment id, quarter of an hour)."""

    total: Shares = field(default_factory=Shares)
    by_quarter: dict[tuple[str, int], Shares] = field(default_factory=dict)


def keep(books: Books, deployment_id: str, told: Mapping[str, Any]) -> None:
    """Write what `GET /router/load` answered. Raises KeyError, TypeError or ValueError for what is none."""
    minutes = [TrafficRecord(deployment_id, int(one["at"]), dict(one)) for one in told["minutes"]]
    for one in minutes:
        minute_from_json(one.told)
    books.put_traffic(minutes, sum_up)
    books.put_spans(SpanRecord(deployment_id, ROUTER, float(a), float(b)) for a, b in told["lives"])


def between(books: Books, deployment_ids: Sequence[str], since: float, until: float) -> Traffic | None:
    """To the minute: one that began before `since` is left out. None where no router has counted any."""
    first, last = math.ceil(since / QUARTER_S) * QUARTER_S, math.floor(until / QUARTER_S) * QUARTER_S
    found = Traffic()
    counted = False
    for name in deployment_ids:
        rows = books.quarters(name, first, last)
        for begun, ended in [(since, first), (last, until)] if first <= last else [(since, until)]:
            rows += books.minutes(name, begun, ended)
        counted = counted or bool(rows) or bool(books.spans(name, ROUTER))
        for row in rows:
            shares = shares_from_json(row.told)
            found.total.add(shares)
            found.by_quarter.setdefault((name, row.at // QUARTER_S * QUARTER_S), Shares()).add(shares)
    return found if counted else None


def load(books: Books, deployment_id: str, since: float, until: float) -> Load:
    """The minutes themselves, from the one that `since` is in, with the times in which the router counted."""
    lives = tuple(
        (max(since, span.begun_at), min(until, span.until))
        for span in books.spans(deployment_id, ROUTER)
        if span.until > since and span.begun_at < until
    )
    rows = books.minutes(deployment_id, math.floor(since / MINUTE_S) * MINUTE_S, until)
    return Load(lives, tuple(minute_from_json(row.told) for row in rows))
