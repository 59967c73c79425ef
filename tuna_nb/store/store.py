"""The records: every deployment, every resource, before a provider is asked for it.

SQLAlchemy 2 over SQLite in the user's data folder, or a team's PostgreSQL. Methods are short and synchronous;
each is one transaction. What goes in and out are the frozen records below, never rows or sessions, and never
a secret. This module imports SQLAlchemy, so it is itself imported only where records are needed.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import psutil
import sqlalchemy as sa

from tuna_nb.errors import ConflictError, NotFoundError
from tuna_nb.records import DeploymentRecord, JobRecord, PriceRecord, ResourceRecord
from tuna_nb.settings import Settings
from tuna_nb.store.books import Books
from tuna_nb.store.budgets import Budgets
from tuna_nb.store.database import Database
from tuna_nb.store.tables import DEPLOYMENTS, EVENTS, JOBS, PRICES, RESOURCES

Record = TypeVar("Record", DeploymentRecord, ResourceRecord, JobRecord, PriceRecord)


def _as(kind: type[Record], row: Any) -> Record:
    return kind(**{f.name: getattr(row, f.name) for f in fields(kind)})


class Store:
    """The records of one user or team. Safe to use from several processes and threads at once."""

    def __init__(self, settings: Settings) -> None:
        """Open it, and bring an older schema up to date.

        Raises StoreError where it is damaged, out of reach, or made by a newer Tuna.
        """
        self._database = Database(settings)
        self.books = Books(self._database)
        """What was up, when, at what price, and the traffic it served."""
        self.budgets = Budgets(self._database)
        """What may be spent, what has fired, and when silence is noticed."""

    def __repr__(self) -> str:
        return f"<Store {self._database.shown}>"

    def close(self) -> None:
        self._database.close()

    # -- deployments ------------------------------------------------------------------------------------

    def add_deployment(
        self,
        name: str,
        request: dict[str, Any],
        plan: dict[str, Any],
        resources: Iterable[dict[str, Any]],
        deployment_id: str,
    ) -> DeploymentRecord:
        """Record a deployment and every resource it will need, in one transaction, before any is created.

        resources: dicts with role, provider, name and price_per_hour_usd. Raises ConflictError when a live
        deployment has the name.
        """
        now = time.time()
        with self._database.write() as c:
            row = c.execute(sa.select(DEPLOYMENTS).where(_live(name))).first()
            if row is not None:
                raise ConflictError(
                    f"{name}: a deployment of that name exists ({row.state})",
                    f"choose another --service-name, or `tuna destroy --service-name {name}` first",
                )
            c.execute(
                DEPLOYMENTS.insert().values(
                    id=deployment_id,
                    name=name,
                    state="deploying",
                    request=request,
                    plan=plan,
                    created_at=now,
                    updated_at=now,
                )
            )
            for r in resources:
                c.execute(
                    RESOURCES.insert().values(deployment_id=deployment_id, state="planned", created_at=now, **r)
                )
        return self.deployment(name)

    def deployment(self, name: str) -> DeploymentRecord:
        """The live deployment of that name, else the last destroyed one. Raises NotFoundError."""
        with self._database.read() as c:
            row = c.execute(
                sa.select(DEPLOYMENTS)
                .where(DEPLOYMENTS.c.name == name)
                .order_by(DEPLOYMENTS.c.destroyed_at.is_not(None), DEPLOYMENTS.c.created_at.desc())
            ).first()
            if row is None:
                known = c.execute(sa.select(DEPLOYMENTS.c.name).where(DEPLOYMENTS.c.destroyed_at.is_(None)))
                names = [r.name for r in known]
                raise NotFoundError(
                    f"no deployment named {name!r}",
                    f"`tuna list` shows {', '.join(names)}" if names else "`tuna list` shows none; deploy first",
                )
            return _as(DeploymentRecord, row)

    def live_deployment(self, name: str) -> DeploymentRecord | None:
        """The deployment of that name that is not destroyed, or None."""
        with self._database.read() as c:
            row = c.execute(sa.select(DEPLOYMENTS).where(_live(name))).first()
            return None if row is None else _as(DeploymentRecord, row)

    def deployments(self, states: Sequence[str] | None = None) -> list[DeploymentRecord]:
        """All of them, oldest first, or only those in the given states."""
        query = sa.select(DEPLOYMENTS).order_by(DEPLOYMENTS.c.created_at)
        if states is not None:
            query = query.where(DEPLOYMENTS.c.state.in_(states))
        with self._database.read() as c:
            return [_as(DeploymentRecord, r) for r in c.execute(query)]

    def update_deployment(self, deployment_id: str, **values: Any) -> None:
        """Set columns of a deployment."""
        with self._database.write() as c:
            c.execute(
                DEPLOYMENTS.update()
                .where(DEPLOYMENTS.c.id == deployment_id)
                .values(updated_at=time.time(), **values)
            )

    # -- resources --------------------------------------------------------------------------------------

    def resources(self, deployment_id: str) -> list[ResourceRecord]:
        with self._database.read() as c:
            rows = c.execute(
                sa.select(RESOURCES).where(RESOURCES.c.deployment_id == deployment_id).order_by(RESOURCES.c.id)
            )
            return [_as(ResourceRecord, r) for r in rows]

    def update_resource(self, resource_id: int, **values: Any) -> None:
        """Set columns of a resource."""
        with self._database.write() as c:
            c.execute(RESOURCES.update().where(RESOURCES.c.id == resource_id).values(**values))

    # -- events and usage -------------------------------------------------------------------------------

    def add_event(self, deployment_id: str, text: str) -> None:
        with self._database.write() as c:
            c.execute(EVENTS.insert().values(deployment_id=deployment_id, at=time.time(), text=text))

    def events(self, deployment_id: str) -> list[tuple[float, str]]:
        """(Unix seconds, text), oldest first."""
        with self._database.read() as c:
            rows = c.execute(sa.select(EVENTS).where(EVENTS.c.deployment_id == deployment_id).order_by(EVENTS.c.id))
            return [(r.at, r.text) for r in rows]

    def put_prices(self, seen: Iterable[PriceRecord]) -> int:
        """Add prices that differ from what was seen last, or are the first; returns how many those were.

        A price older than the last one of its kind is passed over.
        """
        key = (PRICES.c.provider, PRICES.c.kind, PRICES.c.gpu, PRICES.c.region)
        newest = sa.select(*key, sa.func.max(PRICES.c.at).label("at")).group_by(*key).subquery()
        same = [column == newest.c[column.name] for column in (*key, PRICES.c.at)]
        with self._database.write() as c:
            last = {
                (r.provider, r.kind, r.gpu, r.region): (r.at, r.price_per_hour_usd)
                for r in c.execute(sa.select(PRICES).join(newest, sa.and_(*same)))
            }
            new = {}
            for one in sorted(seen, key=lambda one: one.at):
                place = (one.provider, one.kind, one.gpu, one.region)
                at, price = last.get(place, (-math.inf, None))
                if one.at > at and one.price_per_hour_usd != price:
                    new[(*place, one.at)] = {f.name: getattr(one, f.name) for f in fields(one)}
                    last[place] = (one.at, one.price_per_hour_usd)
            if new:
                c.execute(PRICES.insert(), list(new.values()))
        return len(new)

    def prices_seen(self, gpu: str | None = None, since: float = 0.0) -> list[PriceRecord]:
        """Oldest first. gpu: canonical name, None for all. since: Unix seconds."""
        query = sa.select(PRICES).where(PRICES.c.at >= since).order_by(PRICES.c.at)
        if gpu is not None:
            query = query.where(PRICES.c.gpu == gpu)
        with self._database.read() as c:
            return [_as(PriceRecord, r) for r in c.execute(query)]

    # -- jobs -------------------------------------------------------------------------------------------

    def claim_job(self, name: str, verb: str, deployment_id: str | None = None) -> JobRecord:
        """Record that this process works on `name`.

        Raises ConflictError while another live job works on it: two must not build or remove one thing.
        """
        me = psutil.Process()
        with self._database.write() as c:
            for row in c.execute(sa.select(JOBS).where(JOBS.c.name == name, JOBS.c.ended_at.is_(None))):
                other = _as(JobRecord, row)
                if other.alive:
                    raise ConflictError(
                        f"{name}: a {other.verb} is under way in process {other.pid} on {other.host}",
                        f"wait for it (`tuna jobs`), or `tuna cancel {name}`",
                    )
                c.execute(
                    JOBS.update()
                    .where(JOBS.c.id == other.id)
                    .values(state="interrupted", ended_at=time.time(), error="its process ended")
                )
            record = JobRecord(
                id=uuid.uuid4().hex,
                name=name,
                verb=verb,
                deployment_id=deployment_id,
                state="running",
                step="starting",
                fraction=0.0,
                host=socket.gethostname(),
                pid=os.getpid(),
                pid_created_at=me.create_time(),
                cancel_requested=False,
                started_at=time.time(),
                seen_at=time.time(),
                ended_at=None,
                error=None,
            )
            c.execute(JOBS.insert().values(**{f.name: getattr(record, f.name) for f in fields(record)}))
        return record

    def update_job(self, job_id: str, **values: Any) -> None:
        """Set columns of a job."""
        with self._database.write() as c:
            c.execute(JOBS.update().where(JOBS.c.id == job_id).values(**values))

    def cancel_requested(self, job_id: str) -> bool:
        with self._database.read() as c:
            return bool(c.execute(sa.select(JOBS.c.cancel_requested).where(JOBS.c.id == job_id)).scalar())

    def jobs(self, running_only: bool = False, name: str | None = None) -> list[JobRecord]:
        """Newest last."""
        query = sa.select(JOBS).order_by(JOBS.c.started_at)
        if running_only:
            query = query.where(JOBS.c.ended_at.is_(None))
        if name is not None:
            query = query.where(JOBS.c.name == name)
        with self._database.read() as c:
            return [_as(JobRecord, r) for r in c.execute(query)]


def _live(name: str) -> sa.ColumnElement[bool]:
    return sa.and_(DEPLOYMENTS.c.name == name, DEPLOYMENTS.c.destroyed_at.is_(None))


def jsonable(value: Any) -> Any:
    """A copy of plain data with tuples as lists, as it comes back from a JSON column."""
    return json.loads(json.dumps(value))
