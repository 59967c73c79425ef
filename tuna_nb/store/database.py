"""The database under the records: opened, brought up to date, one transaction at a time, errors in plain words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tuna_nb.errors import StoreError
from tuna_nb.settings import Settings

SCHEMA_VERSION = "0005"
"""The newest Alembic revision in `migrations/versions`."""

LOCK_WAIT_S = 30
"""How long a writer waits for another one. SQLite's own default of 5 s is too short for a busy disk."""

_URL_HINT = "write postgresql+psycopg://user@host/name; the driver is in `pip install 'tuna-nb[postgres]'`"


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


class Database:
    """SQLite in the user's data folder, or a team's PostgreSQL. Safe from several processes and threads at once."""

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
        return f"<Database {self.shown}>"

    @property
    def shown(self) -> str:
        """Its URL without the password."""
        return self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

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
                config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
                config.attributes["connection"] = c
                alembic.command.upgrade(config, "head")
            c.commit()

    def _version(self, c: sa.Connection) -> str | None:
        if not sa.inspect(c).has_table("alembic_version"):
            return None
        version = c.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return None if version is None else str(version)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._errors(), self._engine.connect() as c:
            yield c

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
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
