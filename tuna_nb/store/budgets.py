"""The tables of what may be spent, of what has fired, and of when something that bills without serving is noticed.

What fires is not known here: the first process that writes a firing is the one that acts on it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final

import sqlalchemy as sa

from tuna_nb.errors import StoreError
from tuna_nb.records import EVERYTHING, BudgetRecord, FiringRecord, QuietRecord
from tuna_nb.store.database import Database
from tuna_nb.store.tables import BUDGETS, FIRINGS, QUIET

MOST_TRIES: Final = 6
"""A message that was given up so often stays untold; each time it waits longer, together two hours."""


class Budgets:
    """Safe from several processes at once: each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- budgets ----------------------------------------------------------------------------------------

    def put(
        self,
        scope: str,
        limit_usd: float,
        per: str,
        warn: Sequence[float],
        action: str,
        *,
        webhook: bool,
        now: float,
    ) -> tuple[BudgetRecord, BudgetRecord | None]:
        """Add a budget, or put it in the place of the one of the same scope and span; returns it and that one.

        The same budget again changes nothing, what has fired stays fired; another one begins with nothing fired.
        """
        made = BudgetRecord(
            uuid.uuid4().hex[:10], scope, float(limit_usd), per, tuple(map(float, warn)), action, webhook, now
        )
        same = sa.and_(BUDGETS.c.scope == scope, BUDGETS.c.per == per)
        with self._database.write() as c:
            row = c.execute(sa.select(BUDGETS).where(same)).first()
            before = None if row is None else _budget(row)
            if before is not None:
                made = replace(made, created_at=before.created_at)
                if replace(made, id=before.id) == before:
                    return before, before
                _forget(c, before)
            values = {f.name: getattr(made, f.name) for f in fields(made)}
            c.execute(BUDGETS.insert().values(**values | {"warn": list(made.warn)}))
        return made, before

    def remove(self, budget: BudgetRecord) -> None:
        """With what it has fired."""
        with self._database.write() as c:
            _forget(c, budget)

    def applying(self, deployment_id: str | None = None) -> list[BudgetRecord]:
        """Those over a deployment: its own and those over all; without an id every one that there is."""
        query = sa.select(BUDGETS).order_by(BUDGETS.c.created_at, BUDGETS.c.id)
        if deployment_id is not None:
            query = query.where(BUDGETS.c.scope.in_([deployment_id, EVERYTHING]))
        with self._database.read() as c:
            return [_budget(r) for r in c.execute(query)]

    # -- firings ----------------------------------------------------------------------------------------

    def fire(self, firing: FiringRecord) -> FiringRecord | None:
        """Record it, unless somebody has: then None. Its `id` is given here."""
        same = sa.and_(
            FIRINGS.c.subject == firing.subject,
            FIRINGS.c.deployment_id == firing.deployment_id,
            FIRINGS.c.window == firing.window,
            FIRINGS.c.level == firing.level,
        )
        values = {f.name: getattr(firing, f.name) for f in fields(firing) if f.name != "id"}
        try:
            with self._database.write() as c:
                if c.execute(sa.select(FIRINGS.c.id).where(same)).first() is not None:
                    return None
                number = c.execute(FIRINGS.insert().values(**values)).inserted_primary_key
        except StoreError as e:
            if isinstance(e.__cause__, sa.exc.IntegrityError):
                return None  # somebody else was quicker, between our look and our word
            raise
        assert number is not None
        return replace(firing, id=int(number[0]))

    def fired(self, subject: str, window: str | None = None) -> list[FiringRecord]:
        """Of a budget, or of something that does not serve; oldest first."""
        query = sa.select(FIRINGS).where(FIRINGS.c.subject == subject).order_by(FIRINGS.c.id)
        if window is not None:
            query = query.where(FIRINGS.c.window == window)
        with self._database.read() as c:
            return [_firing(r) for r in c.execute(query)]

    def pending(self, deployment_id: str) -> list[FiringRecord]:
        """Whose action has not been carried out yet, oldest first."""
        query = sa.select(FIRINGS).where(
            FIRINGS.c.deployment_id == deployment_id, FIRINGS.c.action != "", FIRINGS.c.done_at.is_(None)
        )
        with self._database.read() as c:
            return [_firing(r) for r in c.execute(query.order_by(FIRINGS.c.id))]

    def update_firing(self, firing_id: int, **values: Any) -> None:
        with self._database.write() as c:
            c.execute(FIRINGS.update().where(FIRINGS.c.id == firing_id).values(**values))

    def untold(self, scopes: Sequence[str], now: float, hold_s: float) -> list[FiringRecord]:
        """Those that these webhooks have yet to be told of and nobody is about; from now on the caller is."""
        due = sa.and_(
            FIRINGS.c.webhook_scope.in_(scopes),
            FIRINGS.c.told_at.is_(None),
            FIRINGS.c.tries < MOST_TRIES,
            FIRINGS.c.held_until <= now,
        )
        with self._database.write() as c:
            rows = [_firing(r) for r in c.execute(sa.select(FIRINGS).where(due).order_by(FIRINGS.c.id))]
            # On PostgreSQL two may have read the same row: who changes it first has it.
            return [
                row
                for row in rows
                if c.execute(
                    FIRINGS.update()
                    .where(FIRINGS.c.id == row.id, FIRINGS.c.held_until == row.held_until)
                    .values(held_until=now + hold_s)
                ).rowcount
            ]

    # -- silence ----------------------------------------------------------------------------------------

    def put_quiet(self, rule: QuietRecord) -> None:
        """Of a deployment, in the place of the one that there is."""
        values = {f.name: getattr(rule, f.name) for f in fields(rule)}
        same = QUIET.c.deployment_id == rule.deployment_id
        with self._database.write() as c:
            if c.execute(QUIET.update().where(same).values(**values)).rowcount == 0:
                c.execute(QUIET.insert().values(**values))

    def quiet(self, deployment_id: str) -> QuietRecord | None:
        with self._database.read() as c:
            row = c.execute(sa.select(QUIET).where(QUIET.c.deployment_id == deployment_id)).first()
        return None if row is None else QuietRecord(**{f.name: getattr(row, f.name) for f in fields(QuietRecord)})


def _forget(c: sa.Connection, budget: BudgetRecord) -> None:
    c.execute(FIRINGS.delete().where(FIRINGS.c.subject == budget.id))
    c.execute(BUDGETS.delete().where(BUDGETS.c.id == budget.id))


def _budget(row: Any) -> BudgetRecord:
    values = {f.name: getattr(row, f.name) for f in fields(BudgetRecord)}
    return BudgetRecord(**values | {"warn": tuple(map(float, row.warn))})


def _firing(row: Any) -> FiringRecord:
    return FiringRecord(**{f.name: getattr(row, f.name) for f in fields(FiringRecord)})
