"""The ledger's tables: billed intervals, sums of the ended ones, the traffic, providers' accounts, who looked when.

What an interval costs is not known here: whoever writes one says what it adds to the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from tuna_nb.records import ChargeRecord, IntervalRecord, SpanRecord, SpentRecord, TrafficRecord
from tuna_nb.store.database import Database
from tuna_nb.store.tables import CHARGES, INTERVALS, MINUTES, QUARTERS, SPANS, SPENT

Plain = TypeVar("Plain", TrafficRecord, SpanRecord, ChargeRecord)

Amend = Callable[[list[IntervalRecord]], tuple[Iterable[IntervalRecord], Iterable[SpentRecord]]]
"""Intervals as they are; returns those to write, and what that adds to the sums."""


SumUp = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""The traffic of minutes, as they are told, to that of all of them together."""

_QUARTER_S: Final = 900


class Books:
    """Safe from several processes at once: each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- intervals --------------------------------------------------------------------------------------

    def amend(self, resource_id: int, starts: Sequence[float], amend: Amend) -> None:
        """Change the intervals of a resource: `amend` is given those that are open or began at one of `starts`.

        They and the sums change together or not at all, whoever else writes.
        """
        mine = INTERVALS.c.resource_id == resource_id
        with self._database.write() as c:
            query = sa.select(INTERVALS).where(mine, INTERVALS.c.ended_at.is_(None))
            found = {i.key: i for i in map(_interval, c.execute(query))}
            if starts:
                since = INTERVALS.c.started_at >= min(starts)
                some = sa.select(INTERVALS).where(mine, since, INTERVALS.c.started_at <= max(starts))
                found |= {i.key: i for i in map(_interval, c.execute(some))}
            rows, sums = amend(list(found.values()))
            for row in rows:
                key = sa.and_(
                    mine, INTERVALS.c.replica_id == row.replica_id, INTERVALS.c.started_at == row.started_at
                )
                if row.key in found:
                    c.execute(INTERVALS.update().where(key).values(**_values(row)))
                else:
                    c.execute(INTERVALS.insert().values(**_values(row)))
            _add(c, sums)

    def add_many(self, intervals: Iterable[IntervalRecord], sums: Iterable[SpentRecord]) -> None:
        """New intervals and what they add to the sums, many at a time."""
        with self._database.write() as c:
            rows = [_values(i) for i in intervals]
            if rows:
                c.execute(INTERVALS.insert(), rows)
            _add(c, sums)

    def open_intervals(self, resource_ids: Sequence[int]) -> list[IntervalRecord]:
        """Those that have not ended."""
        query = sa.select(INTERVALS).where(
            INTERVALS.c.resource_id.in_(resource_ids), INTERVALS.c.ended_at.is_(None)
        )
        with self._database.read() as c:
            return [_interval(r) for r in c.execute(query)]

    def ended_between(self, resource_ids: Sequence[int], since: float, until: float) -> list[IntervalRecord]:
        """Ended ones that ran in [since, until)."""
        query = sa.select(INTERVALS).where(
            INTERVALS.c.resource_id.in_(resource_ids),
            INTERVALS.c.ended_at >= since,
            INTERVALS.c.started_at < until,
        )
        with self._database.read() as c:
            return [_interval(r) for r in c.execute(query)]

    def intervals(self, resource_id: int) -> list[IntervalRecord]:
        """All of a resource, oldest first."""
        query = sa.select(INTERVALS).where(INTERVALS.c.resource_id == resource_id)
        with self._database.read() as c:
            return [_interval(r) for r in c.execute(query.order_by(INTERVALS.c.started_at))]

    def basis(self, resource_id: int) -> tuple[str, bool] | None:
        """Of its latest interval: where its figures come from, and whether its boot is told; None without any."""
        query = sa.select(INTERVALS.c.basis, INTERVALS.c.boot_told).where(INTERVALS.c.resource_id == resource_id)
        with self._database.read() as c:
            row = c.execute(query.order_by(INTERVALS.c.ended_at.desc()).limit(1)).first()
        return None if row is None else (str(row[0]), bool(row[1]))

    def boots(self, resource_id: int, most: int) -> list[float]:
        """Seconds from its start until it served, of the latest replicas that did."""
        took = (INTERVALS.c.ready_at - INTERVALS.c.started_at).label("took")
        told = sa.and_(
            INTERVALS.c.resource_id == resource_id, INTERVALS.c.ready_at.is_not(None), INTERVALS.c.boot_told
        )
        query = sa.select(took).where(told).order_by(INTERVALS.c.ended_at.desc()).limit(most)
        with self._database.read() as c:
            return [max(0.0, float(r.took)) for r in c.execute(query)]

    def spent(self, resource_ids: Sequence[int], since: float, until: float) -> list[SpentRecord]:
        """Sums of ended intervals by quarters of an hour that begin in [since, until)."""
        query = sa.select(SPENT).where(
            SPENT.c.resource_id.in_(resource_ids), SPENT.c.quarter >= since, SPENT.c.quarter < until
        )
        with self._database.read() as c:
            return [SpentRecord(*r) for r in c.execute(query)]

    # -- traffic ----------------------------------------------------------------------------------------

    def put_traffic(self, minutes: Sequence[TrafficRecord], sum_up: SumUp) -> None:
        """Add or replace minutes, and the quarters of an hour that they are in; `sum_up` adds minutes up."""
        if not minutes:
            return
        (deployment_id,) = {minute.deployment_id for minute in minutes}
        with self._database.write() as c:
            _put(c, MINUTES, minutes)
            for quarter in sorted({minute.at // _QUARTER_S * _QUARTER_S for minute in minutes}):
                query = _span(MINUTES, deployment_id, quarter, quarter + _QUARTER_S)
                told = sum_up([row.told for row in c.execute(query)])
                _put(c, QUARTERS, [TrafficRecord(deployment_id, quarter, told)])

    def minutes(self, deployment_id: str, since: float, until: float) -> list[TrafficRecord]:
        """Those that begin in [since, until), oldest first."""
        return self._traffic(MINUTES, deployment_id, since, until)

    def quarters(self, deployment_id: str, since: float, until: float) -> list[TrafficRecord]:
        """Those that begin in [since, until), oldest first."""
        return self._traffic(QUARTERS, deployment_id, since, until)

    def last_minute(self, deployment_id: str) -> int | None:
        """When the newest one begins."""
        query = sa.select(sa.func.max(MINUTES.c.at)).where(MINUTES.c.deployment_id == deployment_id)
        with self._database.read() as c:
            at = c.execute(query).scalar()
        return None if at is None else int(at)

    def _traffic(self, table: sa.Table, deployment_id: str, since: float, until: float) -> list[TrafficRecord]:
        with self._database.read() as c:
            return [_plain(TrafficRecord, r) for r in c.execute(_span(table, deployment_id, since, until))]

    # -- who looked when --------------------------------------------------------------------------------

    def looked(self, deployment_id: str, subject: str, at: float, patience_s: float) -> None:
        """Somebody looked now: the last span goes on if it ended at most `patience_s` ago, else one begins."""
        mine = sa.and_(SPANS.c.deployment_id == deployment_id, SPANS.c.subject == subject)
        with self._database.write() as c:
            last = c.execute(sa.select(SPANS).where(mine).order_by(SPANS.c.until.desc()).limit(1)).first()
            if last is None or at - last.until > patience_s:
                c.execute(
                    SPANS.insert().values(deployment_id=deployment_id, subject=subject, begun_at=at, until=at)
                )
            elif at > last.until:
                c.execute(SPANS.update().where(mine, SPANS.c.begun_at == last.begun_at).values(until=at))

    def put_spans(self, spans: Iterable[SpanRecord]) -> None:
        """Add or replace spans, as somebody else kept them."""
        self._put(SPANS, spans)

    def spans(self, deployment_id: str, subject: str) -> list[SpanRecord]:
        """Oldest first."""
        query = sa.select(SPANS).where(SPANS.c.deployment_id == deployment_id, SPANS.c.subject == subject)
        with self._database.read() as c:
            return [_plain(SpanRecord, r) for r in c.execute(query.order_by(SPANS.c.begun_at))]

    # -- providers' accounts ----------------------------------------------------------------------------

    def put_charges(self, charges: Iterable[ChargeRecord]) -> None:
        """Add or replace what providers' accounts say."""
        self._put(CHARGES, charges)

    def charges(self, resource_ids: Sequence[int]) -> list[ChargeRecord]:
        """Oldest first."""
        query = sa.select(CHARGES).where(CHARGES.c.resource_id.in_(resource_ids))
        with self._database.read() as c:
            return [_plain(ChargeRecord, r) for r in c.execute(query.order_by(CHARGES.c.started_at))]

    def _put(self, table: sa.Table, records: Iterable[Any]) -> None:
        with self._database.write() as c:
            _put(c, table, records)


def _put(c: sa.Connection, table: sa.Table, records: Iterable[Any]) -> None:
    for record in records:
        values = {f.name: getattr(record, f.name) for f in fields(record)}
        key = sa.and_(*(column == values[column.name] for column in table.primary_key))
        if c.execute(table.update().where(key).values(**values)).rowcount == 0:
            c.execute(table.insert().values(**values))


def _span(table: sa.Table, deployment_id: str, since: float, until: float) -> sa.Select[Any]:
    mine = sa.and_(table.c.deployment_id == deployment_id, table.c.at >= since, table.c.at < until)
    return sa.select(table).where(mine).order_by(table.c.at)


def _add(c: sa.Connection, sums: Iterable[SpentRecord]) -> None:
    together: dict[tuple[int, int], list[float]] = {}
    for one in sums:
        amounts = [one.usd, one.seconds, one.boot_usd, one.unknown_s, one.error_usd, one.starts]
        kept = together.get((one.resource_id, one.quarter))
        together[one.resource_id, one.quarter] = (
            amounts if kept is None else [a + b for a, b in zip(kept, amounts, strict=True)]
        )
    names = ("usd", "seconds", "boot_usd", "unknown_s", "error_usd", "starts")
    for (resource_id, quarter), amounts in together.items():
        key = sa.and_(SPENT.c.resource_id == resource_id, SPENT.c.quarter == quarter)
        more = {n: SPENT.c[n] + amount for n, amount in zip(names, amounts, strict=True)}
        if c.execute(SPENT.update().where(key).values(**more)).rowcount == 0:
            fresh = dict(zip(names, amounts, strict=True))
            c.execute(SPENT.insert().values(resource_id=resource_id, quarter=quarter, **fresh))


def _values(interval: IntervalRecord) -> dict[str, Any]:
    values = {f.name: getattr(interval, f.name) for f in fields(interval)}
    return values | {"prices": [list(step) for step in interval.prices]}


def _interval(row: Any) -> IntervalRecord:
    values = {f.name: getattr(row, f.name) for f in fields(IntervalRecord)}
    return IntervalRecord(**values | {"prices": tuple((float(at), price) for at, price in row.prices)})


def _plain(kind: type[Plain], row: Any) -> Plain:
    return kind(**{f.name: getattr(row, f.name) for f in fields(kind)})
