"""The money meter: what runs now and what it has cost, from the records alone; no provider is asked.

Light, since it runs at each `%load_ext`: SQLite is read with the standard library, read-only and without waiting.
A store that is locked, damaged or on another machine must not hold up a notebook: nothing is told then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuna_nb.settings import Settings

HOUR_S: Final = 3600.0
_SQLITE: Final = "sqlite:///"
Execute = Callable[[str], Iterable[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Span:
    """A time that a resource was billed. ended_at None: it still is. price_per_hour_usd None: nobody told it.

    granularity_s: 0 for one that is not rounded. recorded: false for one that no provider has told of yet: a
    resource is then taken to run, with one replica, since its record was made.
    """

    deployment: str
    started_at: float
    ended_at: float | None
    price_per_hour_usd: float | None
    granularity_s: float = 1.0
    recorded: bool = True

    def usd(self, now: float) -> float | None:
        """Up to `now`, Unix seconds, rounded up to the granularity."""
        if self.price_per_hour_usd is None:
            return None
        up = max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)
        if self.granularity_s:
            up = math.ceil(round(up / self.granularity_s, 6)) * self.granularity_s
        return up / HOUR_S * self.price_per_hour_usd


@dataclass(frozen=True, slots=True)
class Reading:
    """names: the deployments that run. usd: so far; usd_per_hour: now. Both are sums of what is known.

    least: a price is missing, so that it is more. most: a part is not told by a provider yet, and may be less.
    """

    names: tuple[str, ...]
    usd_per_hour: float
    usd: float
    least: bool = False
    most: bool = False

    @property
    def line(self) -> str:
        """E.g. `2 deployments run: $1.23 per hour, $4.56 so far`."""
        count = len(self.names)
        runs = f"{count} deployment{'s run' if count != 1 else ' runs'}"
        return f"{runs}: {self._about}{_money(self.usd_per_hour)} per hour, {self.so_far} so far"

    @property
    def so_far(self) -> str:
        """E.g. `at most $4.56`."""
        return f"{self._about}{_money(self.usd)}"

    @property
    def _about(self) -> str:
        words = {(True, False): "at least ", (False, True): "at most ", (True, True): "about "}
        return words.get((self.least, self.most), "")


def read_out(names: Iterable[str], spans: Iterable[Span], now: float) -> Reading:
    """Add it up. now: Unix seconds."""
    rate = usd = 0.0
    least = most = False
    for span in spans:
        spent = span.usd(now)
        if spent is None:
            least = True
            continue
        most = most or (not span.recorded and bool(span.price_per_hour_usd))
        usd += spent
        rate += span.price_per_hour_usd or 0.0 if span.ended_at is None else 0.0
    return Reading(tuple(names), rate, usd, least, most)


def reading(settings: Settings, now: float | None = None) -> Reading | None:
    """Of the records of this machine; None where nothing runs, and where they can't be read at once."""
    url = settings.database_url
    if not url.startswith(_SQLITE) or "?" in url:
        return None
    path = Path(url.removeprefix(_SQLITE))
    if not path.is_file():
        return None
    import sqlite3

    try:
        # Not `with`: that would be a transaction, and leave the file open.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0)
        try:
            names, spans = _query(connection.execute)
        finally:
            connection.close()
    except sqlite3.Error:
        return None
    return read_out(names, spans, time.time() if now is None else now) if names else None


def _query(execute: Execute) -> tuple[list[str], list[Span]]:
    """The deployments that live, by name, and what was billed for them.

    A store that an older Tuna wrote has other tables, and is told of once the first verb has brought it up to date.
    """
    names = [name for (name,) in execute("SELECT name FROM deployments WHERE destroyed_at IS NULL ORDER BY name")]
    billed = _intervals(execute)
    spans = [span for told in billed.values() for span in told]
    for resource, name, role, created, gone, price in execute(
        "SELECT r.id, d.name, r.role, r.created_at, r.gone_at, r.price_per_hour_usd"
        " FROM deployments d JOIN resources r ON r.deployment_id = d.id"
        " WHERE d.destroyed_at IS NULL AND r.state <> 'planned'"
    ):
        if resource in billed:
            continue
        # A router is rented since its record, and one beside the user costs nothing.
        router = role == "router"
        spans.append(Span(name, created, gone, (price or 0.0) if router else price, recorded=router))
    return names, spans


def _intervals(execute: Execute) -> dict[int, list[Span]]:
    """By resource, from the ledger: open intervals with their prices, and sums of those that have ended.

    A resource that was looked at and has neither has cost nothing.
    """
    import json

    found: dict[int, list[Span]] = {}
    for (resource,) in execute("SELECT r.id FROM resources r JOIN looked l ON l.subject = 'resource:' || r.id"):
        found[resource] = []
    for resource, name, prices, granularity in execute(
        "SELECT r.id, d.name, i.prices, i.granularity_s"
        " FROM deployments d JOIN resources r ON r.deployment_id = d.id JOIN intervals i ON i.resource_id = r.id"
        " WHERE d.destroyed_at IS NULL AND i.ended_at IS NULL"
    ):
        steps = json.loads(prices)
        ends = [*(began for began, _ in steps[1:]), None]
        found.setdefault(resource, []).extend(
            Span(name, began, end, price, granularity if end is None else 0.0)
            for (began, price), end in zip(steps, ends, strict=True)
        )
    for resource, name, usd, unknown_s in execute(
        "SELECT r.id, d.name, SUM(s.usd), SUM(s.unknown_s)"
        " FROM deployments d JOIN resources r ON r.deployment_id = d.id JOIN spent s ON s.resource_id = r.id"
        " WHERE d.destroyed_at IS NULL GROUP BY r.id, d.name"
    ):
        spans = found.setdefault(resource, [])
        spans.append(Span(name, 0.0, HOUR_S, usd, 0.0))
        if unknown_s:
            spans.append(Span(name, 0.0, unknown_s, None))
    return found


def _money(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 or not amount else f"${amount:,.4f}"
