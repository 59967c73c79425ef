"""From the ledger to the bill: sides, days by the user's own wall, who used what, forecasts, gaps."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.costs import account, traffic
from tuna_nb.costs.account import IDLE
from tuna_nb.costs.bill import Bill
from tuna_nb.costs.compare import cheapest, compare
from tuna_nb.costs.ledger import report
from tuna_nb.records import ChargeRecord, IntervalRecord
from tuna_nb.settings import Settings
from tuna_nb.store import Store

BEGUN = 1_800_000_000 // 900 * 900
HOUR = 3600.0
SCALING = {
    "serverless": {"concurrency": 4, "scaledown_window": 60, "workers_max": 2},
    "spot": {"min_replicas": 1, "max_replicas": 2},
}


def zone(name: str) -> account.Zone:
    return lambda at: dt.datetime.fromtimestamp(at, ZoneInfo(name))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr("time.time", lambda: float(BEGUN))
    made = Store(Settings.load({"TUNA_DATA_DIR": str(tmp_path)}))
    rows = [
        {"role": role, "provider": "local", "name": role, "price_per_hour_usd": price}
        for role, price in (("serverless", 2.0), ("spot", 0.5))
    ]
    made.add_deployment(
        "a", {"model": "m/x", "gpu": "L4", "gpu_count": 1, "spots_cloud": "aws", **SCALING}, {}, rows, "id1"
    )
    for number in (1, 2):
        made.update_resource(number, state="created")
    yield made
    made.close()


def up(store: Store, resource: int, start: float, end: float | None, price: float | None, **change: Any) -> None:
    seen = change.pop("seen_at", start if end is None else end)
    one = IntervalRecord(resource, f"r{start:.0f}", start, start, end, seen, ((start, price),), **change)
    report(store.books, resource, [one])


def used(requests: int, request_s: float, busy_s: float = 0.0) -> dict[str, Any]:
    return {
        "requests": requests, "request_s": request_s, "busy_s": busy_s,
        "prompt_tokens": 100 * requests, "completion_tokens": 50 * requests,
    }  # fmt: skip


def minute(
    at: float, backends: dict[str, Any], keys: dict[str, Any] | None = None, **change: Any
) -> dict[str, Any]:
    told = {"at": int(at), "in_flight": 0, "arrivals": [], "ends": [], "whole": True, "models": {}}
    return told | {"backends": backends, "keys": keys or {}} | change


def count(store: Store, *minutes: dict[str, Any], until: float = BEGUN + 10 * HOUR) -> None:
    traffic.keep(store.books, "id1", {"minutes": list(minutes), "lives": [[BEGUN, until]]})


def bill(store: Store, now: float = BEGUN + 2 * HOUR, since: float = 0.0, **how: Any) -> Bill:
    return account.bill(store, [store.deployment("a")], "a", since, now, **how)


def test_each_side_has_its_time_its_price_and_its_requests(store: Store) -> None:
    up(store, 1, BEGUN, BEGUN + HOUR / 2, 2.0)
    up(store, 2, BEGUN, None, 0.5, basis="provider-reported", seen_at=BEGUN + 2 * HOUR)
    count(store, minute(BEGUN + 60, {"serverless": used(3, 9.0, 9.0), "spot.7": used(5, 10.0, 8.0)}))
    made = bill(store)
    serverless, spot = made.sides
    assert (serverless.usd, serverless.requests, serverless.running, serverless.basis) == (1.0, 3, 0, "measured")
    assert (spot.usd, spot.requests, spot.running, spot.rate_usd_per_hour) == (1.0, 5, 1, 0.5)
    assert spot.basis == "provider-reported"
    assert (made.usd, made.requests, made.tokens) == (2.0, 8, 1200)
    assert made.usd_per_1000_requests == 250
    assert made.usd_per_million_tokens == pytest.approx(2 / 1200 * 1e6)


def test_idle_is_what_was_paid_while_no_request_ran_there(store: Store) -> None:
    up(store, 2, BEGUN, BEGUN + 900, 3600.0)
    count(
        store, minute(BEGUN + 60, {"spot": used(5, 10.0, 45.0)}), minute(BEGUN + 120, {"spot": used(5, 10.0, 45.0)})
    )
    assert bill(store).sides[1].idle_usd == pytest.approx(900 - 90)


def test_without_a_router_requests_are_unknown_and_not_none(store: Store) -> None:
    up(store, 2, BEGUN, None, 0.5)
    made = bill(store)
    assert (made.requests, made.tokens, made.usd_per_1000_requests, made.sides[1].requests) == (None,) * 4


def test_a_missing_price_makes_total_and_rate_unknown_never_nothing(store: Store) -> None:
    up(store, 1, BEGUN, None, None)
    up(store, 2, BEGUN, None, 0.5)
    made = bill(store)
    assert (made.usd, made.unknown_hours, made.rate_usd_per_hour) == (1.0, 2.0, None)
    assert made.forecast is not None
    assert made.forecast.day_usd is None or made.forecast.method.startswith("as the last")


def test_days_are_the_users_own_and_have_23_or_25_hours_when_the_clock_changes(store: Store) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    for day, hours in (
        (dt.datetime(2027, 3, 28, tzinfo=berlin), 23),
        (dt.datetime(2027, 10, 31, tzinfo=berlin), 25),
    ):
        begins = day.timestamp()
        up(store, 2, begins - HOUR, begins + 30 * HOUR, 1.0)
        groups = {
            g.name: g.usd
            for g in bill(store, begins + 40 * HOUR, begins - HOUR, by="day", zone=zone("Europe/Berlin")).groups
        }
        assert groups[day.date().isoformat()] == pytest.approx(hours)
        assert sum(groups.values()) == pytest.approx(31)


def test_a_zone_of_half_hours_has_whole_days_too(store: Store) -> None:
    kolkata = dt.datetime(2027, 1, 2, tzinfo=ZoneInfo("Asia/Kolkata")).timestamp()
    up(store, 2, kolkata - HOUR / 2, kolkata + HOUR, 1.0)
    made = bill(store, kolkata + 2 * HOUR, by="day", zone=zone("Asia/Kolkata"))
    assert {g.name: g.usd for g in made.groups} == {
        "2027-01-01": pytest.approx(0.5),
        "2027-01-02": pytest.approx(1.0),
    }


def test_each_pays_for_the_time_of_its_requests_and_nobody_for_idle_time(store: Store) -> None:
    up(store, 2, BEGUN, BEGUN + 1800, 3600.0)
    count(store, minute(BEGUN + 60, {"spot": used(4, 40.0)}, {"ann": used(1, 30.0), "bob": used(3, 10.0)}))
    by_key = {g.name: (g.usd, g.requests) for g in bill(store, by="key").groups}
    assert by_key == {"ann": (675.0, 1), "bob": (225.0, 3), IDLE: (900.0, 0)}
    by_model = {g.name: (g.usd, g.requests) for g in bill(store, by="model").groups}
    assert by_model == {"m/x": (900.0, 4), IDLE: (900.0, 0)}
    assert [g.name for g in bill(store, by="gpu").groups] == ["1x L4"]


def test_the_forecast_goes_on_as_the_last_hours_went(store: Store) -> None:
    midnight = dt.datetime(2027, 1, 20, tzinfo=dt.UTC).timestamp()
    up(store, 2, midnight - 24 * HOUR, None, 1.0)
    found = bill(store, midnight + 6 * HOUR, zone=zone("UTC")).forecast
    assert found is not None
    assert (found.day_usd, found.month_usd) == (pytest.approx(24), pytest.approx(24 * 13))
    assert found.method == "as the last 24 hours went"


def test_what_is_gone_has_no_forecast(store: Store) -> None:
    up(store, 2, BEGUN, BEGUN + HOUR, 1.0)
    store.update_deployment("id1", state="destroyed", destroyed_at=BEGUN + HOUR)
    assert bill(store).forecast is None


def test_how_real_sellers_bill_is_said_and_what_may_be_far_off_is_called_estimated(store: Store) -> None:
    store.update_resource(1, provider="modal")
    store.update_resource(2, provider="skyserve")
    up(store, 1, BEGUN, BEGUN + HOUR, 2.0, error_s=10.0)
    up(store, 2, BEGUN, BEGUN + HOUR, 0.5, error_s=900.0)
    made = bill(store)
    assert [note.split(":")[0] for note in made.notes] == ["modal", "skyserve", "aws"]
    assert "controller" in made.notes[1]
    assert "egress" in made.notes[2]
    assert [(s.provider, s.basis) for s in made.sides] == [("modal", "measured"), ("skyserve", "estimated")]


def test_gaps_in_looking_are_shown_as_gaps(store: Store) -> None:
    up(store, 2, BEGUN, None, 0.5)
    for at in (0, 100, 200, 2000, 2100):
        store.books.looked("id1", "resource:2", BEGUN + at, account.PATIENCE_S)
    assert bill(store, BEGUN + 2200).gaps == ((BEGUN + 200, BEGUN + 2000),)
    assert bill(store, BEGUN + 4000).gaps[-1] == (BEGUN + 2100, BEGUN + 4000)


def test_the_providers_own_account_stands_beside_ours(store: Store) -> None:
    up(store, 1, BEGUN, BEGUN + HOUR, 2.0)
    store.books.put_charges(
        [ChargeRecord(1, BEGUN, BEGUN + HOUR, "gpu", 1.9), ChargeRecord(1, BEGUN, BEGUN + HOUR, "cpu", 0.2)]
    )
    side = bill(store).sides[0]
    assert (side.usd, side.charged_usd, side.charged_until) == (2.0, pytest.approx(2.1), BEGUN + HOUR)


def test_what_it_cost_does_not_depend_on_when_it_is_asked(store: Store) -> None:
    up(store, 1, BEGUN + 10, BEGUN + 5000, 2.0)
    up(store, 2, BEGUN + 77, None, 0.5)
    spans = [(0, 1000), (1000, 1234), (1234, 4000), (4000, 7200)]
    parts = [account.bill(store, [store.deployment("a")], "a", BEGUN + a, BEGUN + b).usd for a, b in spans]
    assert sum(parts) == pytest.approx(bill(store).usd)


def test_other_policies_are_compared_for_the_traffic_that_was_counted(store: Store) -> None:
    up(store, 1, BEGUN, BEGUN + 300, 2.0)
    up(store, 2, BEGUN, None, 0.5)
    count(
        store,
        minute(BEGUN + 60, {"serverless": used(1, 9.0)}, arrivals=[[0, 1]], ends=[[30, 1]]),
        until=BEGUN + 2 * HOUR,
    )
    offer = Offer("aws", OfferKind.ON_DEMAND, "L4", 0.8, None, BEGUN, "test")
    found = compare(store, store.deployment("a"), 0.0, BEGUN + 2 * HOUR, offer)
    assert found is not None
    assert found.usd == pytest.approx(2 / 12 + 1.0)
    costs = {v.policy: v.usd for v in found.versus}
    assert costs["serverless only"] == pytest.approx(2.0 * 90 / 3600, rel=0.05)
    assert costs["on-demand only"] == pytest.approx(1.6, rel=0.01)
    assert costs["spot only"] == pytest.approx(1.0, rel=0.01)
    without = compare(store, store.deployment("a"), 0.0, BEGUN + 2 * HOUR, None)
    assert without is not None
    assert [(v.usd, v.note) for v in without.versus if v.policy == "on-demand only"] == [
        (None, "no on-demand price of this GPU is known here")
    ]


def test_no_comparison_without_counted_traffic(store: Store) -> None:
    up(store, 2, BEGUN, None, 0.5)
    assert compare(store, store.deployment("a"), 0.0, BEGUN + HOUR, None) is None


def test_the_machine_to_compare_with_is_the_cheapest_of_the_same_cloud() -> None:
    def offer(provider: str, price: float | None, count: int = 1) -> Offer:
        return Offer(
            provider, OfferKind.ON_DEMAND, "L4", price, None, BEGUN, "test", gpu_count=count, vcpus=8, memory_gib=32
        )

    offers = [
        offer("gcp", 0.7),
        offer("aws", 0.9),
        offer("aws", 0.8),
        offer("aws", None),
        offer("aws", 0.1, count=0),
    ]
    assert cheapest(offers, "L4", 1, "aws") == offers[2]
    assert cheapest(offers, "L4", 1, "azure") == offers[0]
    assert cheapest(offers, "H100", 1, None) is None
