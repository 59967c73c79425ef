"""The cloud's memory on disk: resources, replicas with their processes, and the bill, in one SQLite file.

Written before or with each step, so that whatever kills the daemon, the next one finds every engine process and
every billed second. Write-ahead logging without a sync per commit: it survives a killed process, which is what
happens here; a power cut ends the engines too. The file holds invoke keys and is readable by its owner only.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuna_nb.backends.base import Kind
from tuna_nb.backends.local import spec as specs
from tuna_nb.backends.local.bill import BilledInterval
from tuna_nb.backends.local.spec import Scaling, Spec
from tuna_nb.errors import BackendError

FILE_NAME: Final = "journal.db"
SCHEMA_VERSION: Final = 2
"""As the last line of the schema below sets it."""

_SCHEMA: Final = """
BEGIN;
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE resources (
    name TEXT PRIMARY KEY, uid TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, scaling TEXT NOT NULL,
    port INTEGER NOT NULL, invoke_key TEXT NOT NULL, created_at REAL NOT NULL, deleting INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE replicas (
    id TEXT PRIMARY KEY, resource TEXT NOT NULL, pid INTEGER, create_time REAL
);
CREATE TABLE bill (
    replica TEXT PRIMARY KEY, resource TEXT NOT NULL, uid TEXT NOT NULL, kind TEXT NOT NULL, gpu TEXT NOT NULL,
    started_at REAL NOT NULL, seen_at REAL NOT NULL, ended_at REAL, price_per_hour_usd REAL NOT NULL,
    granularity_s REAL NOT NULL, ready_at REAL
);
CREATE INDEX bill_by_resource ON bill (resource);
INSERT INTO about VALUES ('cloud_id', lower(hex(randomblob(16))));
PRAGMA user_version=2;
COMMIT;
"""
_STEPS: Final = {1: "ALTER TABLE bill ADD COLUMN ready_at REAL"}
"""What makes a journal of that version one of the next."""


@dataclass(frozen=True, slots=True)
class ResourceRecord:
    """A resource as the journal has it. scaling: now, which may differ from the specification's."""

    uid: str
    spec: Spec
    scaling: Scaling
    port: int
    invoke_key: str
    created_at: float
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """An engine that was to be started. pid is None where nothing tells whether it was."""

    id: str
    resource: str
    pid: int | None
    create_time: float | None


class Journal:
    """The open journal. Every method raises BackendError where the file can't be read or written."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.path = folder / FILE_NAME
        self._db = connection

    @classmethod
    def open(cls, folder: Path, create: bool) -> Journal | None:
        """The journal in `folder`. Without `create`, None where there is none; a broken one raises either way."""
        path = folder / FILE_NAME
        try:
            if not path.exists():
                if not create:
                    return None
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            # rw, not ro: after a kill the write-ahead log has to be taken in, which writes.
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=10)
            journal = cls(folder, db)
            with journal._guard():
                journal._prepare(create)
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        return journal

    def _prepare(self, create: bool) -> None:
        self._db.execute("PRAGMA synchronous=NORMAL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version in _STEPS:
            self._renew()
            return
        if version == SCHEMA_VERSION:
            return
        empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if version != 0 or not (create and empty):
            if version == 0 and empty and self.path.stat().st_size == 0:
                # Its daemon died between creating the file and filling it: nothing was ever in it.
                return
            raise _unreadable(self.path, f"schema version {version}, this Tuna writes {SCHEMA_VERSION}")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)

    def _renew(self) -> None:
        """An older Tuna wrote it. What it did not note stays unknown."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have been quicker.
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            for step in range(version, SCHEMA_VERSION):
                self._db.execute(_STEPS[step])
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise _unreadable(self.path, exc) from exc

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._guard():
            return self._db.execute(statement, values).fetchall()

    @property
    def is_blank(self) -> bool:
        """The file is there and nothing was ever written into it."""
        return not self._run("SELECT 1 FROM sqlite_master LIMIT 1")

    @property
    def cloud_id(self) -> str:
        """Random and for life: marks this cloud's engine processes."""
        return str(self._run("SELECT value FROM about WHERE key='cloud_id'")[0][0])

    # Resources

    def add_resource(self, record: ResourceRecord) -> None:
        self._run(
            "INSERT INTO resources (name, uid, spec, scaling, port, invoke_key, created_at) VALUES (?,?,?,?,?,?,?)",
            record.spec.name,
            record.uid,
            json.dumps(specs.to_json(record.spec)),
            json.dumps(specs.scaling_to_json(record.scaling)),
            record.port,
            record.invoke_key,
            record.created_at,
        )

    def set_scaling(self, name: str, scaling: Scaling) -> None:
        self._run("UPDATE resources SET scaling=? WHERE name=?", json.dumps(specs.scaling_to_json(scaling)), name)

    def set_port(self, name: str, port: int) -> None:
        self._run("UPDATE resources SET port=? WHERE name=?", port, name)

    def set_deleting(self, name: str) -> None:
        self._run("UPDATE resources SET deleting=1 WHERE name=?", name)

    def remove_resource(self, name: str) -> None:
        self._run("DELETE FROM resources WHERE name=?", name)

    def resources(self) -> list[ResourceRecord]:
        """All of them. Raises BackendError where one can't be read: a resource is never skipped."""
        rows = self._run(
            "SELECT uid, spec, scaling, port, invoke_key, created_at, deleting FROM resources ORDER BY created_at"
        )
        try:
            return [self._resource(row) for row in rows]
        except (KeyError, TypeError, ValueError) as exc:
            raise _unreadable(self.path, f"a resource's record: {exc}") from exc

    @staticmethod
    def _resource(row: tuple[Any, ...]) -> ResourceRecord:
        uid, spec_text, scaling_text, port, key, created_at, deleting = row
        spec = specs.from_json(json.loads(spec_text))
        scaling = specs.scaling_from_json(spec.kind, json.loads(scaling_text))
        return ResourceRecord(uid, spec, scaling, port, key, created_at, bool(deleting))

    # Replicas

    def add_replica(self, replica: str, resource: str) -> None:
        """Before its process is spawned: from here on a crash leaves a trace to look for."""
        self._run("INSERT INTO replicas (id, resource) VALUES (?,?)", replica, resource)

    def set_process(self, replica: str, pid: int, create_time: float) -> None:
        self._run("UPDATE replicas SET pid=?, create_time=? WHERE id=?", pid, create_time, replica)

    def remove_replica(self, replica: str) -> None:
        """After its whole process group is gone, never before."""
        self._run("DELETE FROM replicas WHERE id=?", replica)

    def replicas(self) -> list[ReplicaRecord]:
        return [ReplicaRecord(*row) for row in self._run("SELECT id, resource, pid, create_time FROM replicas")]

    # Bill

    def open_interval(self, interval: BilledInterval) -> None:
        self._run(
            "INSERT INTO bill VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            interval.replica,
            interval.resource,
            interval.uid,
            str(interval.kind),
            interval.gpu,
            interval.started_at,
            interval.seen_at,
            interval.ended_at,
            interval.price_per_hour_usd,
            interval.granularity_s,
            interval.ready_at,
        )

    def set_ready(self, replica: str, at: float) -> None:
        """From then on it serves."""
        self._run("UPDATE bill SET ready_at=? WHERE replica=?", at, replica)

    def tick(self, now: float) -> None:
        """Every open interval was still running at `now`."""
        self._run("UPDATE bill SET seen_at=? WHERE ended_at IS NULL", now)

    def close_interval(self, replica: str, ended_at: float | None = None) -> None:
        """Ends at `ended_at`, or where it was last seen when nobody can tell."""
        self._run(
            "UPDATE bill SET ended_at=COALESCE(?, seen_at), seen_at=COALESCE(?, seen_at)"
            " WHERE replica=? AND ended_at IS NULL",
            ended_at,
            ended_at,
            replica,
        )

    def intervals(self, resource: str | None = None) -> list[BilledInterval]:
        """Of one resource's name or all, oldest first; those of destroyed resources too."""
        rows = self._run(
            "SELECT replica, resource, uid, kind, gpu, started_at, seen_at, ended_at, price_per_hour_usd,"
            " granularity_s, ready_at FROM bill WHERE ? IS NULL OR resource=? ORDER BY started_at, replica",
            resource,
            resource,
        )
        return [BilledInterval(row[0], row[1], row[2], Kind(row[3]), *row[4:]) for row in rows]


def _unreadable(path: Path, why: object) -> BackendError:
    return BackendError(
        f"the local cloud's journal {path} can't be used: {why}",
        "its engines may still run; restore the file, or end them and move it away",
    )
