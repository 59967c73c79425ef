"""The money meter: sums of the records, what is not known said, and never in anybody's way."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tuna_nb.costs.ledger import Seen, Terms, observe, report
from tuna_nb.costs.meter import Reading, Span, read_out, reading
from tuna_nb.records import IntervalRecord
from tuna_nb.settings import Settings
from tuna_nb.store import Store

NOW = 1_800_000_000.0
HOUR = 3600.0


def test_what_runs_is_counted_up_to_now_and_is_the_rate() -> None:
    read = read_out(
        ["a"],
        [Span("a", NOW - HOUR, None, 2.0), Span("a", NOW - HOUR, NOW - HOUR / 2, 8.0)],
        NOW,
    )
    assert (read.usd, read.usd_per_hour, read.least, read.most) == (6.0, 2.0, False, False)
    assert read.line == "1 deployment runs: $2.00 per hour, $6.00 so far"


def test_time_is_rounded_up_as_it_is_billed() -> None:
    assert Span("a", NOW - 61, None, 60.0, granularity_s=60).usd(NOW) == pytest.approx(2.0)


def test_a_clock_that_was_set_back_costs_nothing() -> None:
    assert Span("a", NOW + 60, None, 60.0).usd(NOW) == 0


def test_a_price_that_nobody_told_makes_it_at_least_so_much() -> None:
    read = read_out(["a", "b"], [Span("a", NOW - HOUR, None, None), Span("b", NOW - HOUR, None, 1.0)], NOW)
    assert read.line == "2 deployments run: at least $1.00 per hour, at least $1.00 so far"


def test_a_time_that_no_provider_told_of_makes_it_at_most_so_much() -> None:
    read = read_out(["a"], [Span("a", NOW - HOUR, None, 1.0, recorded=False)], NOW)
    assert read.line == "1 deployment runs: at most $1.00 per hour, at most $1.00 so far"


@pytest.fixture
def settings() -> Settings:
    return Settings.load()


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = Store(settings)
    yield opened
    opened.close()


@pytest.fixture
def running(store: Store) -> Callable[[str], int]:
    """Makes a deployment with one spot resource; returns the resource's number."""

    def make(name: str) -> int:
        planned = {"role": "spot", "provider": "local", "name": f"tuna-{name}-spot", "price_per_hour_usd": 0.5}
        record = store.add_deployment(name, {}, {}, [planned], f"id-of-{name}")
        (resource,) = store.resources(record.id)
        store.update_resource(resource.id, state="created")
        return resource.id

    return make


def test_the_records_are_read(settings: Settings, store: Store, running: Callable[[str], int]) -> None:
    for name in ("a", "b"):
        observe(store.books, running(name), [Seen("r", NOW - HOUR, ready=True)], Terms(0.5), NOW)
    assert reading(settings, NOW) == Reading(("a", "b"), 1.0, 1.0)
    for name in ("a", "b"):
        store.update_deployment(store.deployment(name).id, state="destroyed", destroyed_at=NOW)
    assert reading(settings, NOW) is None


def test_a_ledger_is_read_with_its_price_steps_and_sums(
    settings: Settings, store: Store, running: Callable[[str], int]
) -> None:
    numbers = {name: running(name) for name in ("a", "asleep")}
    books, begun = store.books, NOW - 2 * HOUR
    observe(books, numbers["a"], [Seen("r", begun, ready=True)], Terms(1.0), begun)
    observe(books, numbers["a"], [Seen("r", begun, ready=True)], Terms(3.0), NOW - HOUR)
    old = IntervalRecord(numbers["a"], "old", 0.0, 0.0, 3600.0, 3600.0, ((0.0, 1.0),))
    report(books, numbers["a"], [old])
    for name in ("a", "asleep"):
        books.looked(f"id-of-{name}", f"resource:{numbers[name]}", NOW, 300)
    found = reading(settings, NOW)
    assert found is not None
    assert (found.names, found.least, found.most) == (("a", "asleep"), False, False)
    assert (found.usd, found.usd_per_hour) == (5.0, 3.0), "an hour at 1, one at 3, and 1 before"


def test_nothing_is_told_and_nothing_made_where_there_is_no_store(settings: Settings) -> None:
    assert reading(settings) is None
    assert not settings.data_dir.exists()


def test_a_store_elsewhere_is_left_alone(tmp_path: Path) -> None:
    assert reading(Settings(tmp_path, "postgresql+psycopg://user@10.255.255.1/tuna")) is None


def test_a_damaged_store_tells_nothing(settings: Settings) -> None:
    path = settings.data_folder() / "tuna.db"
    path.write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    assert reading(settings) is None
    path.write_bytes(b"")
    assert reading(settings) is None


def test_a_locked_store_is_not_waited_for(settings: Settings, store: Store, running: Callable[[str], int]) -> None:
    running("a")
    store.close()
    holder = sqlite3.connect(settings.data_dir / "tuna.db", isolation_level=None)
    holder.execute("PRAGMA journal_mode=DELETE")
    holder.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    assert reading(settings) is None
    assert time.monotonic() - began < 4, "sqlite3 itself waits for 5 s"
    holder.close()
    assert reading(settings) is not None


def test_a_writer_is_not_in_the_way(settings: Settings, store: Store, running: Callable[[str], int]) -> None:
    running("a")
    writer = sqlite3.connect(settings.data_dir / "tuna.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    found = reading(settings)
    writer.close()
    assert found is not None
    assert found.names == ("a",)
