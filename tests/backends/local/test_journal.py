"""The cloud's memory on disk: what an older Tuna wrote stays readable, what a newer one wrote is left alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tuna_nb.backends.base import Kind
from tuna_nb.backends.local import journal as journals
from tuna_nb.backends.local.bill import BilledInterval
from tuna_nb.backends.local.journal import Journal
from tuna_nb.errors import BackendError

PAID = BilledInterval("r1", "tuna-a", "u1", Kind.SPOT, "L4", 100.0, 130.0, None, 0.27, ready_at=112.5)

VERSION_1 = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE resources (
    name TEXT PRIMARY KEY, uid TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, scaling TEXT NOT NULL,
    port INTEGER NOT NULL, invoke_key TEXT NOT NULL, created_at REAL NOT NULL, deleting INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE replicas (id TEXT PRIMARY KEY, resource TEXT NOT NULL, pid INTEGER, create_time REAL);
CREATE TABLE bill (
    replica TEXT PRIMARY KEY, resource TEXT NOT NULL, uid TEXT NOT NULL, kind TEXT NOT NULL, gpu TEXT NOT NULL,
    started_at REAL NOT NULL, seen_at REAL NOT NULL, ended_at REAL, price_per_hour_usd REAL NOT NULL,
    granularity_s REAL NOT NULL
);
INSERT INTO about VALUES ('cloud_id', 'c0ffee');
INSERT INTO bill VALUES ('r0', 'tuna-a', 'u1', 'spot', 'L4', 10, 40, 40, 0.27, 1);
PRAGMA user_version=1;
"""


def opened(folder: Path, create: bool = False) -> Journal:
    journal = Journal.open(folder, create)
    assert journal is not None
    return journal


def old(folder: Path) -> None:
    with sqlite3.connect(folder / journals.FILE_NAME) as db:
        db.executescript(VERSION_1)


def test_what_was_billed_is_read_back_with_when_it_was_ready(tmp_path: Path) -> None:
    journal = opened(tmp_path, create=True)
    journal.open_interval(BilledInterval("r1", "tuna-a", "u1", Kind.SPOT, "L4", 100.0, 100.0, None, 0.27))
    assert journal.intervals()[0].ready_at is None
    journal.set_ready("r1", 112.5)
    journal.tick(130.0)
    assert journal.intervals() == [PAID]
    journal.close()


def test_a_journal_of_an_older_tuna_opens_and_says_nothing_that_it_did_not_note(tmp_path: Path) -> None:
    old(tmp_path)
    for _ in range(2):
        journal = opened(tmp_path)
        assert journal.cloud_id == "c0ffee"
        [paid] = journal.intervals()
        assert (paid.replica, paid.billed_s, paid.ready_at) == ("r0", 30.0, None)
        journal.close()
    journal = opened(tmp_path)
    journal.open_interval(PAID)
    assert journal.intervals()[1] == PAID
    journal.close()


def test_two_that_open_an_older_journal_at_once_both_can(tmp_path: Path) -> None:
    """A daemon and a client that finds it not yet answering."""
    old(tmp_path)
    first = sqlite3.connect(tmp_path / journals.FILE_NAME, isolation_level=None)
    second = Journal(tmp_path, sqlite3.connect(tmp_path / journals.FILE_NAME, isolation_level=None))
    Journal(tmp_path, first)._renew()
    second._renew()
    assert len(second.intervals()) == 1
    first.close()
    second.close()


def test_a_journal_of_a_newer_tuna_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path, create=True).close()
    with sqlite3.connect(tmp_path / journals.FILE_NAME) as db:
        db.execute(f"PRAGMA user_version={journals.SCHEMA_VERSION + 1}")
    with pytest.raises(BackendError, match="schema version"):
        Journal.open(tmp_path, create=True)
