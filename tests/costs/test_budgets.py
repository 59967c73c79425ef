"""Budgets: what their spans are by the user's wall, what has been spent in them, and what that makes happen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_nb.costs import budgets
from tuna_nb.costs.budgets import Standing, Window
from tuna_nb.costs.ledger import report
from tuna_nb.errors import RequestError
from tuna_nb.grammar import flags
from tuna_nb.records import EVERYTHING, BudgetRecord, IntervalRecord
from tuna_nb.settings import Settings
from tuna_nb.store import Store

BERLIN = ZoneInfo("Europe/Berlin")
PER_SECOND = 3600.0
"""A dollar a second."""


def zone(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, BERLIN)


def unix(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def budget(
    limit: float = 10,
    per: str = "day",
    action: str = "notify",
    scope: str = "id1",
    warn: tuple[float, ...] = (50, 80),
) -> BudgetRecord:
    return BudgetRecord("b1", scope, limit, per, warn, action, False, 500.0)


def standing(spent: float, one: BudgetRecord | None = None) -> Standing:
    return Standing(one or budget(), "x", Window("w", 0, None), spent)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(Settings.load({"TUNA_DATA_DIR": str(tmp_path)}))
    for number in (1, 2):
        row = {"role": "spot", "provider": "p", "name": "n", "price_per_hour_usd": 1.0}
        made.add_deployment(f"x{number}", {}, {}, [row], f"id{number}")
        made.update_resource(number, state="created")
    yield made
    made.close()


def ran(store: Store, resource: int, start: float, end: float | None, price: float | None = PER_SECOND) -> None:
    seen = start if end is None else end
    report(store.books, resource, [IntervalRecord(resource, "r", start, start, end, seen, ((start, price),))])


@pytest.mark.parametrize(
    ("at", "hours"), [("2026-03-29T12:00", 23), ("2026-10-25T12:00", 25), ("2026-10-26T00:00", 24)]
)
def test_a_day_has_as_many_hours_as_the_users_wall_says(at: str, hours: int) -> None:
    span = budgets.window(budget(), 0, unix(at), zone)
    assert span.key == at[:10]
    assert span.until is not None
    assert (span.until - span.since) / 3600 == hours
    assert span.since <= unix(at) < span.until


@pytest.mark.parametrize(
    ("at", "key", "days"),
    [("2026-02-28T23:59", "2026-02", 28), ("2028-02-29T12:00", "2028-02", 29), ("2026-12-31T23:59", "2026-12", 31)],
)
def test_a_month_ends_where_the_calendar_says(at: str, key: str, days: int) -> None:
    span = budgets.window(budget(per="month"), 0, unix(at), zone)
    assert span.key == key
    assert span.until is not None
    assert (span.until - span.since) / 86400 == days
    assert zone(span.until).day == 1


@given(st.floats(1.7e9, 2.0e9), st.sampled_from(["day", "month"]))
def test_windows_follow_each_other_without_a_gap(at: float, per: str) -> None:
    span = budgets.window(budget(per=per), 0, at, zone)
    assert span.until is not None
    assert span.since <= at < span.until
    after = budgets.window(budget(per=per), 0, span.until, zone)
    assert after.since == span.until
    assert after.key > span.key
    assert budgets.window(budget(per=per), 0, span.until - 1, zone) == span


def test_a_day_counts_what_was_billed_since_midnight_and_all_deployments_together(store: Store) -> None:
    day = unix("2026-10-25T00:00")
    ran(store, 1, day - 100, day + 30)
    ran(store, 2, day + 10, None)
    one = budgets.standing(store, budget(), day + 60, zone)
    assert (one.name, one.spent_usd, one.rate_usd_per_hour) == ("x1", pytest.approx(30), 0)
    both = budgets.standing(store, budget(scope=EVERYTHING), day + 60, zone)
    assert both.spent_usd == pytest.approx(30 + 50)
    assert both.rate_usd_per_hour == PER_SECOND
    store.update_deployment("id1", destroyed_at=day + 40)
    gone = budgets.standing(store, budget(scope=EVERYTHING), day + 60, zone)
    assert gone.spent_usd == pytest.approx(80), "what is gone was paid for"


def test_a_total_over_all_begins_when_it_was_set_and_one_deployments_with_the_deployment(store: Store) -> None:
    ran(store, 1, 400, 600)
    assert budgets.standing(store, budget(per="total", scope=EVERYTHING), 700, zone).spent_usd == pytest.approx(100)
    (first, _) = store.deployments()
    whole = budgets.standing(store, budget(per="total"), first.created_at + 10, zone)
    assert whole.window == Window("total", first.created_at, None)


def test_time_of_unknown_price_is_told_and_not_counted_as_nothing(store: Store) -> None:
    ran(store, 1, 1000, None, price=None)
    one = budgets.standing(store, budget(scope=EVERYTHING, per="total"), 8200, zone)
    assert (one.spent_usd, one.unknown_hours, one.rate_usd_per_hour) == (0, pytest.approx(2), None)
    assert "2.0 h of unknown price" in budgets.message(one, 50)


def test_levels_are_reached_at_their_per_cent_and_not_before() -> None:
    assert budgets.reached(standing(4.99)) == ()
    assert budgets.reached(standing(5)) == (50,)
    assert budgets.reached(standing(9.99)) == (50, 80)
    assert budgets.reached(standing(10)) == (50, 80, 100)
    overflow = budget(action="stop-overflow")
    assert budgets.reached(standing(10.5, overflow)) == (50, 80, 100)
    assert budgets.reached(standing(11, overflow)) == (50, 80, 100, 110)
    assert [budgets.action_at(overflow, level) for level in (50, 100, 110)] == [
        "",
        "stop-overflow",
        "stop-overflow",
    ]
    assert budgets.action_at(budget(), 100) == "", "notify only tells"


@given(st.lists(st.floats(0, 40), max_size=30), st.floats(0.5, 20))
def test_no_level_is_ever_lost_as_spending_grows(steps: list[float], limit: float) -> None:
    spent, known = 0.0, set[float]()
    for step in steps:
        spent += step
        now = budgets.reached(standing(spent, budget(limit)))
        assert known <= set(now)
        assert list(now) == sorted(now)
        known = set(now)
    assert (100.0 in known) == (spent >= limit)


@pytest.mark.parametrize(
    ("limit", "warn", "message"),
    [(0, (), "is none"), (-3, (), "is none"), (float("nan"), (), "is none"), (float("inf"), (), "is none"),
     (5, (0,), "warning at 0 %"), (5, (50, 100), "warning at 100 %"), (5, (-1,), "warning at -1 %")],
)  # fmt: skip
def test_what_is_no_budget_is_refused(limit: float, warn: tuple[float, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message) as e:
        budgets.check(limit, "day", warn, "notify")
    assert e.value.hint


def test_the_grammar_offers_what_there_is() -> None:
    assert (flags.BUDGET_SPANS, flags.BUDGET_ACTIONS) == (budgets.PER, budgets.ACTIONS)
    assert set(budgets.MEANS) == set(budgets.ACTIONS)


def refused(one: Standing, worst: float | None) -> str:
    error = budgets.would_break([one], worst, "deploy x")
    return "" if error is None else error.message


def test_what_would_break_a_budget_is_refused_before_it_is_begun() -> None:
    assert "used up ($10.00 spent)" in refused(standing(10), 0.1)
    assert "worst case is $3.00 an hour, and of $10.00 a day for x $2.00 is left" in refused(standing(8), 3)
    assert refused(standing(7), 3) == ""
    assert refused(standing(0), None) == "", "an unknown worst case is no harm to one that only tells"
    assert "worst case is unknown" in refused(standing(0, budget(action="destroy")), None)


def test_a_plan_says_when_its_worst_case_reaches_the_budget_and_what_happens_then() -> None:
    said = budgets.outlook(standing(4, budget(action="destroy")), 2)
    assert (
        said
        == "budget of $10.00 a day for x: $6.00 left; the worst case reaches it in 3.0 h; then: it is destroyed"
    )
    assert "costs nothing" in budgets.outlook(standing(4), 0)
    assert "unknown" in budgets.outlook(standing(4), None)
