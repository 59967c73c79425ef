"""Budgets and firings in the records: one of a scope and span, and each firing one process's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.postgres import database
from tuna_nb.records import EVERYTHING, FiringRecord, QuietRecord
from tuna_nb.settings import Settings
from tuna_nb.store import Store

FIRING = FiringRecord(
    0, "b1", "", "2026-11-22", 50.0, 100.0, "said", {"level": 50}, "", None, "", "all", None, 0.0, 0
)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    if request.param == "sqlite":
        yield Settings.load({"TUNA_DATA_DIR": str(tmp_path)})
        return
    with database() as url:
        yield Settings.load({"TUNA_DATA_DIR": str(tmp_path), "TUNA_DATABASE_URL": url})


@pytest.fixture
def store(where: Settings) -> Iterator[Store]:
    made = Store(where)
    yield made
    made.close()


def test_one_of_the_same_scope_and_span_takes_the_place_of_the_other(store: Store) -> None:
    first, before = store.budgets.put("id1", 10, "day", (50, 80), "notify", webhook=False, now=1.0)
    assert before is None
    store.budgets.fire(replace(FIRING, subject=first.id))
    same, before = store.budgets.put("id1", 10, "day", (50, 80), "notify", webhook=False, now=2.0)
    assert same == before == first
    assert len(store.budgets.fired(first.id)) == 1, "the same again has nothing fire anew"
    second, before = store.budgets.put("id1", 20, "day", (50, 80), "destroy", webhook=False, now=3.0)
    assert before == first
    assert (second.created_at, store.budgets.fired(first.id)) == (1.0, []), "counted from where the first was"
    month, _ = store.budgets.put("id1", 20, "month", (), "notify", webhook=False, now=4.0)
    total, _ = store.budgets.put(EVERYTHING, 99, "total", (), "notify", webhook=True, now=5.0)
    assert store.budgets.applying("id1") == [second, month, total]
    assert store.budgets.applying("id2") == [total]
    store.budgets.remove(second)
    assert store.budgets.applying() == [month, total]


def test_of_many_that_see_it_fire_one_acts(store: Store, where: Settings) -> None:
    stores = [store, *(Store(where) for _ in range(3))]
    start, won = threading.Barrier(8), list[FiringRecord]()

    def see(one: Store) -> None:
        start.wait()
        made = one.budgets.fire(FIRING)
        if made is not None:
            won.append(made)

    threads = [threading.Thread(target=see, args=(stores[n % 4],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.budgets.fired("b1") == [replace(FIRING, id=won[0].id)]
    assert store.budgets.fire(replace(FIRING, level=80.0)) is not None
    assert store.budgets.fire(replace(FIRING, window="2026-11-23")) is not None
    for other in stores[1:]:
        other.close()


def test_an_action_is_pending_until_it_is_done(store: Store) -> None:
    made = store.budgets.fire(replace(FIRING, deployment_id="id1", action="destroy", level=100.0))
    assert made is not None
    assert store.budgets.pending("id1") == [made]
    assert store.budgets.pending("id2") == []
    store.budgets.update_firing(made.id, done_at=5.0)
    assert store.budgets.pending("id1") == []


def test_a_message_is_one_process_to_send_until_that_one_is_taken_for_dead(store: Store) -> None:
    made = store.budgets.fire(FIRING)
    assert made is not None
    assert [f.id for f in store.budgets.untold(["all"], 100, 60)] == [made.id]
    assert store.budgets.untold(["all"], 120, 60) == []
    assert store.budgets.untold(["id1"], 500, 60) == [], "another webhook's"
    assert [f.id for f in store.budgets.untold(["all"], 160, 60)] == [made.id]
    store.budgets.update_firing(made.id, told_at=170.0)
    assert store.budgets.untold(["all"], 1000, 60) == []


def test_the_rule_for_silence_is_a_deployments_own(store: Store) -> None:
    assert store.budgets.quiet("id1") is None
    for rule in (QuietRecord("id1", 900, 86400, stop=False), QuietRecord("id1", 60, 86400, stop=True)):
        store.budgets.put_quiet(rule)
        assert store.budgets.quiet("id1") == rule
