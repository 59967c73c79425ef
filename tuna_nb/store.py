"""The records: every deployment, every resource, before a provider is asked for it.

SQLAlchemy 2 over SQLite in the user's data folder, or a team's PostgreSQL. Methods are short and synchronous;
each is one transaction. What goes in and out are the frozen records below, never rows or sessions, and never
a secret. This module imports SQLAlchemy, so it is itself imported only where records are needed.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import psutil
import sqlalchemy as sa

from tuna_nb.errors import ConflictError, NotFoundError, StoreError
from tuna_nb.records import DeploymentRecord, JobRecord, ResourceRecord, UsageRecord
from tuna_nb.settings import Settings

SCHEMA_VERSION = "0002"
"""The newest Alembic revision in `migrations/versions`."""

LOCK_WAIT_S = 30
"""How long a writer waits for another one. SQLite's own default of 5 s is too short for a busy disk."""

_URL_HINT = "write postgresql+psycopg://user@host/name; the driver is in `pip install 'tuna-nb[postgres]'`"

_meta = sa.MetaData()
_float, _text = sa.Float, sa.Text
_deployments = sa.Table(
    "deployments",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("name", "state")),
    *(sa.Column(n, sa.JSON) for n in ("request", "plan", "traffic")),
    *(sa.Column(n, _text) for n in ("endpoint_url", "error")),
    *(sa.Column(n, _float) for n in ("created_at", "updated_at", "destroyed_at")),
)
_resources = sa.Table(
    "resources",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("deployment_id", "role", "provider", "name", "state")),
    *(sa.Column(n, _text) for n in ("provider_id", "url", "error")),
    *(sa.Column(n, _float) for n in ("price_per_hour_usd", "created_at", "gone_at")),
)
_jobs = sa.Table(
    "jobs",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("name", "verb", "deployment_id", "state", "host")),
    *(sa.Column(n, _text) for n in ("step", "error")),
    *(sa.Column(n, _float) for n in ("fraction", "pid_created_at", "started_at", "seen_at", "ended_at")),
    sa.Column("pid", sa.Integer),
    sa.Column("cancel_requested", sa.Boolean),
)
_events = sa.Table(
    "events",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("deployment_id", sa.String),
    sa.Column("at", _float),
    sa.Column("text", _text),
)
_usage = sa.Table(
    "usage",
    _meta,
    sa.Column("resource_id", sa.Integer, primary_key=True),
    sa.Column("replica_id", sa.String, primary_key=True),
    sa.Column("started_at", _float, primary_key=True),
    *(sa.Column(n, _float) for n in ("ended_at", "price_per_hour_usd", "granularity_s")),
)


Record = TypeVar("Record", DeploymentRecord, ResourceRecord, JobRecord, UsageRecord)


def _as(kind: type[Record], row: Any) -> Record:
    return kind(**{f.name: getattr(row, f.name) for f in fields(kind)})


def _write_ahead(connection: Any) -> None:
    """Set SQLite's journal mode. Of several that open a new file at once all but one are told that it is locked,
    at once: for this change SQLite does not wait as for others."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


class Store:
    """The records of one user or team. Safe to use from several processes and threads at once."""

    def __init__(self, settings: Settings) -> None:
        """Open it, and bring an older schema up to date.

        Raises StoreError where it is damaged, out of reach, or made by a newer Tuna.
        """
        try:
            self._url = sa.make_url(settings.database_url)
        except sa.exc.ArgumentError as e:
            # Not repeated: what can't be read as a URL may hold a password all the same.
            raise StoreError("TUNA_DATABASE_URL is not a database URL", _URL_HINT) from e
        self._sqlite = self._url.get_backend_name() == "sqlite"
        if self._sqlite and self._url.database:
            settings.data_folder()
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        self._engine = self._connect()
        with self._errors():
            self._migrate()

    def __repr__(self) -> str:
        return f"<Store {self._url.render_as_string(hide_password=True)}>"

    def close(self) -> None:
        self._engine.dispose()

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
        with self._write() as c:
            row = c.execute(sa.select(_deployments).where(_live(name))).first()
            if row is not None:
                raise ConflictError(
                    f"{name}: a deployment of that name exists ({row.state})",
                    f"choose another --service-name, or `tuna destroy --service-name {name}` first",
                )
            c.execute(
                _deployments.insert().values(
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
                    _resources.insert().values(deployment_id=deployment_id, state="planned", created_at=now, **r)
                )
        return self.deployment(name)

    def deployment(self, name: str) -> DeploymentRecord:
        """The live deployment of that name, else the last destroyed one. Raises NotFoundError."""
        with self._read() as c:
            row = c.execute(
                sa.select(_deployments)
                .where(_deployments.c.name == name)
                .order_by(_deployments.c.destroyed_at.is_not(None), _deployments.c.created_at.desc())
            ).first()
            if row is None:
                known = c.execute(sa.select(_deployments.c.name).where(_deployments.c.destroyed_at.is_(None)))
                names = [r.name for r in known]
                raise NotFoundError(
                    f"no deployment named {name!r}",
                    f"`tuna list` shows {', '.join(names)}" if names else "`tuna list` shows none; deploy first",
                )
            return _as(DeploymentRecord, row)

    def live_deployment(self, name: str) -> DeploymentRecord | None:
        """The deployment of that name that is not destroyed, or None."""
        with self._read() as c:
            row = c.execute(sa.select(_deployments).where(_live(name))).first()
            return None if row is None else _as(DeploymentRecord, row)

    def deployments(self, states: Sequence[str] | None = None) -> list[DeploymentRecord]:
        """All of them, oldest first, or only those in the given states."""
        query = sa.select(_deployments).order_by(_deployments.c.created_at)
        if states is not None:
            query = query.where(_deployments.c.state.in_(states))
        with self._read() as c:
            return [_as(DeploymentRecord, r) for r in c.execute(query)]

    def update_deployment(self, deployment_id: str, **values: Any) -> None:
        """Set columns of a deployment."""
        with self._write() as c:
            c.execute(
                _deployments.update()
                .where(_deployments.c.id == deployment_id)
                .values(updated_at=time.time(), **values)
            )

    # -- resources --------------------------------------------------------------------------------------

    def resources(self, deployment_id: str) -> list[ResourceRecord]:
        with self._read() as c:
            rows = c.execute(
                sa.select(_resources).where(_resources.c.deployment_id == deployment_id).order_by(_resources.c.id)
            )
            return [_as(ResourceRecord, r) for r in rows]

    def update_resource(self, resource_id: int, **values: Any) -> None:
        """Set columns of a resource."""
        with self._write() as c:
            c.execute(_resources.update().where(_resources.c.id == resource_id).values(**values))

    # -- events and usage -------------------------------------------------------------------------------

    def add_event(self, deployment_id: str, text: str) -> None:
        with self._write() as c:
            c.execute(_events.insert().values(deployment_id=deployment_id, at=time.time(), text=text))

    def events(self, deployment_id: str) -> list[tuple[float, str]]:
        """(Unix seconds, text), oldest first."""
        with self._read() as c:
            rows = c.execute(
                sa.select(_events).where(_events.c.deployment_id == deployment_id).order_by(_events.c.id)
            )
            return [(r.at, r.text) for r in rows]

    def put_usage(self, intervals: Iterable[UsageRecord]) -> None:
        """Add or replace billed intervals, keyed by resource, replica and start."""
        with self._write() as c:
            for i in intervals:
                key = sa.and_(
                    _usage.c.resource_id == i.resource_id,
                    _usage.c.replica_id == i.replica_id,
                    _usage.c.started_at == i.started_at,
                )
                c.execute(_usage.delete().where(key))
                c.execute(_usage.insert().values(**{f.name: getattr(i, f.name) for f in fields(i)}))

    def usage(self, resource_id: int) -> list[UsageRecord]:
        with self._read() as c:
            rows = c.execute(
                sa.select(_usage).where(_usage.c.resource_id == resource_id).order_by(_usage.c.started_at)
            )
            return [_as(UsageRecord, r) for r in rows]

    # -- jobs -------------------------------------------------------------------------------------------

    def claim_job(self, name: str, verb: str, deployment_id: str | None = None) -> JobRecord:
        """Record that this process works on `name`.

        Raises ConflictError while another live job works on it: two must not build or remove one thing.
        """
        me = psutil.Process()
        with self._write() as c:
            for row in c.execute(sa.select(_jobs).where(_jobs.c.name == name, _jobs.c.ended_at.is_(None))):
                other = _as(JobRecord, row)
                if other.alive:
                    raise ConflictError(
                        f"{name}: a {other.verb} is under way in process {other.pid} on {other.host}",
                        f"wait for it (`tuna jobs`), or `tuna cancel {name}`",
                    )
                c.execute(
                    _jobs.update()
                    .where(_jobs.c.id == other.id)
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
            c.execute(_jobs.insert().values(**{f.name: getattr(record, f.name) for f in fields(record)}))
        return record

    def update_job(self, job_id: str, **values: Any) -> None:
        """Set columns of a job."""
        with self._write() as c:
            c.execute(_jobs.update().where(_jobs.c.id == job_id).values(**values))

    def cancel_requested(self, job_id: str) -> bool:
        with self._read() as c:
            return bool(c.execute(sa.select(_jobs.c.cancel_requested).where(_jobs.c.id == job_id)).scalar())

    def jobs(self, running_only: bool = False, name: str | None = None) -> list[JobRecord]:
        """Newest last."""
        query = sa.select(_jobs).order_by(_jobs.c.started_at)
        if running_only:
            query = query.where(_jobs.c.ended_at.is_(None))
        if name is not None:
            query = query.where(_jobs.c.name == name)
        with self._read() as c:
            return [_as(JobRecord, r) for r in c.execute(query)]

    # -- inside -----------------------------------------------------------------------------------------

    def _connect(self) -> sa.Engine:
        try:
            if not self._sqlite:
                return sa.create_engine(self._url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
            engine = sa.create_engine(self._url, connect_args={"timeout": LOCK_WAIT_S})
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as e:
            raise StoreError(
                f"TUNA_DATABASE_URL can't be used: {type(e).__name__}",
                _URL_HINT,
            ) from e

        @sa.event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            # pysqlite's own transaction handling commits before DDL and begins late; we say BEGIN ourselves.
            connection.isolation_level = None
            connection.execute(f"PRAGMA busy_timeout={LOCK_WAIT_S * 1000}")
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous=FULL")  # a record must survive what comes right after it
            connection.execute("PRAGMA foreign_keys=ON")

        return engine

    def _migrate(self) -> None:
        with self._engine.connect() as c:
            version = self._version(c)
        if version == SCHEMA_VERSION:
            return
        with self._engine.connect() as c:
            # One process migrates; the others wait here and then find the work done.
            if self._sqlite:
                c.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                c.begin()
                c.exec_driver_sql("SELECT pg_advisory_xact_lock(7021975)")
            version = self._version(c)
            if version != SCHEMA_VERSION:
                if version is not None and version > SCHEMA_VERSION:
                    raise StoreError(
                        f"{self._where()} has schema {version}, this Tuna knows {SCHEMA_VERSION}",
                        "a newer Tuna made it: `pip install -U tuna-nb`",
                    )
                import alembic.command
                import alembic.config

                config = alembic.config.Config()
                config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
                config.attributes["connection"] = c
                alembic.command.upgrade(config, "head")
            c.commit()

    def _version(self, c: sa.Connection) -> str | None:
        if not sa.inspect(c).has_table("alembic_version"):
            return None
        version = c.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return None if version is None else str(version)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._errors(), self._engine.connect() as c:
            yield c

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._errors(), self._engine.connect() as c:
            if self._sqlite:
                # Take the write lock at once: upgrading a read lock later fails without waiting.
                c.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield c
            except BaseException:  # an interrupt, too: the lock must not outlive its owner
                c.rollback()
                raise
            c.commit()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DatabaseError, sa.exc.InterfaceError) as e:
            raise self._translate(e) from e

    def _translate(self, e: sa.exc.DBAPIError) -> StoreError:
        # Only the driver's own words: SQLAlchemy's text repeats the statement with its values.
        why = str(e.orig).strip().splitlines()[0] if e.orig else type(e).__name__
        if self._sqlite and ("not a database" in why or "malformed" in why):
            path = self._url.database
            return StoreError(
                f"the store {path} is damaged: {why}",
                f"move it away (mv {path} {path}.damaged); `tuna destroy --orphans` then ends what it had recorded",
            )
        return StoreError(f"{self._where()} can't be used: {why}", "check TUNA_DATABASE_URL and that it answers")

    def _where(self) -> str:
        return f"the store {self._url.render_as_string(hide_password=True)}"


def _live(name: str) -> sa.ColumnElement[bool]:
    return sa.and_(_deployments.c.name == name, _deployments.c.destroyed_at.is_(None))


def jsonable(value: Any) -> Any:
    """A copy of plain data with tuples as lists, as it comes back from a JSON column."""
    return json.loads(json.dumps(value))
