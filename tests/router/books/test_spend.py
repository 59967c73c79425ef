"""Dollars add up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.books.ledger import Ledger
from tuna_router.books.spend import BackendCost, Running, Spent
from tuna_router.keys.live import LiveKey
from tuna_router.keys.settings import KeySettings
from tuna_router.settings import BackendSettings, Kind

STEPS = st.lists(
    st.tuples(
        st.floats(0, 1000),
        st.one_of(
            st.tuples(st.just("begin"), st.just(0)),
            st.tuples(st.sampled_from(["end", "end twice"]), st.integers(0, 20)),
            st.tuples(st.just("price"), st.one_of(st.none(), st.floats(0, 100))),
            st.tuples(st.just("billed"), st.booleans()),
        ),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_shares_of_all_requests_and_the_idle_time_add_up_to_the_backends_cost(
    steps: list[tuple[float, tuple[str, object]]],
) -> None:
    cost, price, billed = BackendCost(3600.0, 0.0), 3600.0, False
    running: list[Running] = []
    now = paid = paid_unpriced = dollars = seconds = 0.0
    price_now: float | None = price
    for pause, (what, value) in steps:
        if running or billed:
            if price_now is None:
                seconds += pause
            else:
                dollars += pause * price_now / 3600
        now += pause
        if what == "begin":
            running.append(cost.begin(now))
        elif what in ("end", "end twice") and isinstance(value, int) and value < len(running):
            one = running.pop(value)
            usd, unpriced = one.close(now)
            assert usd >= 0
            assert unpriced >= 0
            paid += usd
            paid_unpriced += unpriced
            if what == "end twice":
                assert one.close(now + 5) == (0.0, 0.0)
        elif what == "price":
            price_now = value  # type: ignore[assignment]
            cost.set_price(price_now, now)
        elif what == "billed":
            billed = bool(value)
            cost.set_billed(billed, now)
        assert cost.in_flight == len(running)
    for one in running:
        usd, unpriced = one.close(now)
        paid += usd
        paid_unpriced += unpriced
    cost.advance(now)
    assert paid == pytest.approx(cost.requests_usd)
    assert paid + cost.idle_usd == pytest.approx(dollars, rel=1e-6, abs=1e-6)
    assert paid_unpriced + cost.idle_unpriced_s == pytest.approx(seconds, rel=1e-6, abs=1e-6)


def test_two_requests_share_the_time_in_which_both_run() -> None:
    cost = BackendCost(3600.0, 0.0)  # a dollar a second
    first = cost.begin(0.0)
    second = cost.begin(10.0)
    assert first.close(20.0) == (15.0, 0.0)
    assert second.close(30.0) == (15.0, 0.0)


def test_an_unknown_price_is_counted_in_seconds_and_never_as_nothing() -> None:
    cost = BackendCost(None, 0.0)
    one = cost.begin(0.0)
    assert cost.per_hour_usd() is None
    assert one.close(7.0) == (0.0, 7.0)
    assert (cost.requests_usd, cost.unpriced_s) == (0.0, 7.0)


def test_a_window_begins_anew_at_midnight_and_not_when_a_limit_is_reached() -> None:
    spent = Spent(86400.0)
    spent.add(3.0, 86400.0 * 10 + 5)
    assert spent.in_window(86400.0 * 11 - 1) == 3.0
    assert spent.window_ends_in(86400.0 * 11 - 60) == 60
    assert spent.in_window(86400.0 * 11) == 0.0
    assert spent.total_usd == 3.0


def test_a_request_is_charged_to_its_key_and_model_and_all_of_it_survives_a_restart() -> None:
    backends = (BackendSettings("a", Kind.SPOT, "http://a", price_per_hour_usd=3600.0),)
    ledger, key = Ledger(lambda: 5.0, lambda: 1000.0), LiveKey(KeySettings("k", "00" * 32), 0.0)
    ledger.configure(backends, 0.0)
    ledger.billed("a", True, 0.0)
    running = ledger.begin("a", 2.0)
    assert ledger.per_hour_usd(backends) == 3600.0
    assert ledger.close(running, 5.0, key, "m") == 3.0
    assert key.spent.in_window(1000.0) == 3.0
    assert ledger.backends["a"].idle_usd == 2.0
    again, key_again = Ledger(lambda: 100.0, lambda: 1000.0), LiveKey(KeySettings("k", "00" * 32), 0.0)
    again.recall(ledger.learned())
    again.configure(backends, 100.0)
    key_again.recall(key.learned())
    assert again.backends["a"].requests_usd == 3.0
    assert dict(again.models) == {("m",): 3.0}
    assert key_again.spent.in_window(1001.0) == 3.0


def test_models_that_clients_make_up_do_not_fill_the_memory() -> None:
    ledger = Ledger(lambda: 0.0, lambda: 1000.0)
    ledger.configure((BackendSettings("a", Kind.SPOT, "http://a", price_per_hour_usd=3600.0),), 0.0)
    for number in range(1000):
        ledger.close(ledger.begin("a", number), number + 1.0, None, f"m{number}")
    values = dict(ledger.models)
    assert len(values) == 201
    assert sum(values.values()) == pytest.approx(1000)
    assert values["other",] == 800
