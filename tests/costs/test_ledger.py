"""The ledger over a real store: what was seen and told becomes what any span has cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuna_nb.costs.amounts import Amount, billed
from tuna_nb.costs.ledger import Seen, Terms, between, observe, report
from tuna_nb.records import IntervalRecord
from tuna_nb.settings import Settings
from tuna_nb.store import Store

PER_SECOND = 3600.0
"""A dollar a second."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(Settings.load({"TUNA_DATA_DIR": str(tmp_path)}))
    row = {"role": "spot", "provider": "p", "name": "n", "price_per_hour_usd": 1.0}
    made.add_deployment("a", {}, {}, [row], "id1")
    yield made
    made.close()


def told(name: str, start: float, end: float | None, price: float = PER_SECOND) -> IntervalRecord:
    seen = start if end is None else end
    return IntervalRecord(1, name, start, start, end, seen, ((start, price),), basis="provider-reported")


def spent(store: Store, since: float, until: float) -> float:
    return between(store.books, [1], since, until).total.usd


def test_what_a_provider_tells_replaces_what_was_known(store: Store) -> None:
    report(store.books, 1, [told("r1", 10, None)])
    assert spent(store, 0, 20) == pytest.approx(10)
    report(store.books, 1, [told("r1", 10, 2000), told("r2", 15, None)])
    assert spent(store, 0, 2100) == pytest.approx(1990 + 2085)
    report(store.books, 1, [told("r1", 10, 1000), told("r2", 15, None)])
    assert spent(store, 0, 2100) == pytest.approx(990 + 2085), "a correction takes back what was summed"
    again = store.books.spent([1], 0, 1e9)
    report(store.books, 1, [told("r1", 10, 1000), told("r2", 15, None)])
    assert store.books.spent([1], 0, 1e9) == again, "the same told twice changes nothing"


def test_replicas_come_serve_and_go(store: Store) -> None:
    terms = Terms(PER_SECOND)
    observe(store.books, 1, [Seen("a", 100.0, ready=False)], terms, now=110)
    observe(store.books, 1, [Seen("a", 100.0, ready=True), Seen("b", 115.0, ready=False)], terms, now=120)
    observe(store.books, 1, [Seen("b", 115.0, ready=False)], terms, now=130)
    ended, running = store.books.intervals(1)
    assert (ended.replica_id, ended.ready_at, ended.ended_at, ended.error_s) == ("a", 115.0, 125.0, 5.0)
    assert (running.replica_id, running.started_at, running.ended_at, running.seen_at) == ("b", 115.0, None, 130)
    now = between(store.books, [1], 0, 130)
    assert now.total.usd == pytest.approx(25 + 15)
    assert now.total.boot_usd == pytest.approx(15 + 15)
    assert (now.rates, now.running) == ({1: PER_SECOND}, {1: 1})


def test_a_provider_that_only_counts_is_followed_over_looks_by_other_processes(store: Store) -> None:
    """Its replicas have no start of their own: each process would tell another one."""
    for now in (100, 110, 120):
        observe(store.books, 1, [Seen("slot-1", None, ready=True)], Terms(PER_SECOND), now=now)
    (only,) = store.books.intervals(1)
    assert (only.started_at, only.seen_at) == (100, 120)


def test_a_name_that_begins_anew_is_another_replica(store: Store) -> None:
    observe(store.books, 1, [Seen("1", 100.0, ready=True)], Terms(PER_SECOND), now=150)
    observe(store.books, 1, [Seen("1", 180.0, ready=True)], Terms(PER_SECOND), now=200)
    first, second = store.books.intervals(1)
    assert (first.ended_at, second.started_at, second.ended_at) == (165.0, 180.0, None)


def test_a_price_that_changes_in_the_middle_is_paid_from_then_on(store: Store) -> None:
    for now, price in ((100, PER_SECOND), (150, 2 * PER_SECOND), (200, None), (210, None)):
        observe(store.books, 1, [Seen("1", 100.0, ready=True)], Terms(price), now=now)
    found = between(store.books, [1], 0, 220)
    assert found.total.usd == pytest.approx(50 + 2 * 50)
    assert found.total.unknown_s == pytest.approx(20)
    assert found.rates == {1: None}


def test_a_clock_that_jumps_back_loses_nothing_that_was_counted(store: Store) -> None:
    observe(store.books, 1, [Seen("1", None, ready=True)], Terms(PER_SECOND), now=1000)
    observe(store.books, 1, [Seen("1", None, ready=True)], Terms(PER_SECOND), now=1100)
    observe(store.books, 1, [Seen("1", None, ready=True)], Terms(PER_SECOND), now=500)
    observe(store.books, 1, [], Terms(PER_SECOND), now=520)
    (only,) = store.books.intervals(1)
    assert (only.started_at, only.ended_at) == (1000, 1100)
    assert spent(store, 0, 5000) == pytest.approx(100)


ends = st.none() | st.floats(0, 8000)
lives = st.lists(st.tuples(st.floats(0, 8000), ends, st.floats(0, 7200)), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(lives, st.lists(st.floats(0, 9000), min_size=2, max_size=5))
def test_the_sums_and_the_intervals_one_by_one_come_to_the_same(
    store: Store, made: list[tuple[float, float | None, float]], cuts: list[float]
) -> None:
    for number in {i.resource_id for i in store.books.open_intervals([1])}:
        observe(store.books, number, [], Terms(0.0), 0)
    before = {i.key for i in store.books.intervals(1)}
    fresh = [
        told(f"x{len(before)}-{n}", start, None if end is None else start + end, price)
        for n, (start, end, price) in enumerate(made)
    ]
    report(store.books, 1, fresh)
    every = store.books.intervals(1)
    cuts = sorted(cuts)
    parts = [between(store.books, [1], a, b, split=True) for a, b in itertools.pairwise(cuts)]
    for (a, b), part in zip(itertools.pairwise(cuts), parts, strict=True):
        one_by_one = sum((billed(i, b) - billed(i, a) for i in every), Amount())
        assert part.total.usd == pytest.approx(one_by_one.usd, abs=1e-6)
        assert part.total.usd >= -1e-9
        assert sum(x.usd for x in part.by_quarter.values()) == pytest.approx(part.total.usd, abs=1e-6)
    whole = between(store.books, [1], cuts[0], cuts[-1])
    assert sum(p.total.usd for p in parts) == pytest.approx(whole.total.usd, abs=1e-6)


def test_two_who_look_at_once_count_a_replica_once(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        for now in range(100, 130):
            seen = [Seen(str(now // 10), float(now // 10 * 10), ready=True)]
            list(pool.map(lambda _: observe(store.books, 1, seen, Terms(PER_SECOND), now), range(4)))  # noqa: B023
    assert [i.replica_id for i in store.books.intervals(1)] == ["10", "11", "12"]
    last = replace(store.books.open_intervals([1])[0], seen_at=129)
    assert last.started_at == 120
