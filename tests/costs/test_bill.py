"""The bill: billed time at its price, boot and idle included, nothing invented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_nb.costs.bill import BilledTime, Traffic, make


def billed(
    role: str = "spot", start: float = 0, end: float | None = 3600, price: float = 1.0, step: float = 1
) -> BilledTime:
    return BilledTime(role, "local", f"{role}-{start}", start, end, price, step)


def test_an_hour_at_a_dollar_is_a_dollar() -> None:
    assert make("a", [billed()], None, now=10_000).usd == pytest.approx(1.0)


def test_what_runs_is_billed_up_to_now_and_is_the_rate() -> None:
    bill = make("a", [billed(end=None), billed("serverless", end=100, price=4)], None, now=1800)
    assert bill.usd == pytest.approx(0.5 + 100 / 3600 * 4)
    assert bill.rate_usd_per_hour == 1.0


def test_time_is_rounded_up_to_the_granularity() -> None:
    assert billed(end=0.2).seconds(0) == 1
    assert billed(end=61, step=60).seconds(0) == 120
    assert billed(end=60, step=60).seconds(0) == 60
    assert billed(end=0).seconds(0) == 0


def test_requests_and_tokens_give_the_price_of_each() -> None:
    traffic = Traffic(requests=500, by_role=(("spot", 400), ("serverless", 100)), tokens=2_000_000)
    bill = make("a", [billed(), billed("serverless", price=3)], traffic, now=3600)
    assert bill.usd_per_1000_requests == pytest.approx(8.0)
    assert bill.usd_per_million_tokens == pytest.approx(2.0)
    assert {s.role: s.requests for s in bill.sides} == {"spot": 400, "serverless": 100}


def test_without_a_router_requests_are_unknown_and_not_none() -> None:
    bill = make("a", [billed()], None, now=3600)
    assert bill.requests is None
    assert bill.usd_per_1000_requests is None


def test_no_requests_have_no_price_each() -> None:
    bill = make("a", [billed()], Traffic(0, (), 0), now=3600)
    assert (bill.requests, bill.usd_per_1000_requests, bill.usd_per_million_tokens) == (0, None, None)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 100), st.sampled_from(["spot", "serverless"]))
    )
)
def test_the_sum_is_the_sum_of_its_sides_and_never_negative(rows: list[tuple[float, float, float, str]]) -> None:
    intervals = [billed(role, start, start + length, price) for start, length, price, role in rows]
    bill = make("a", intervals, None, now=2e6)
    assert bill.usd == pytest.approx(sum(i.usd(2e6) for i in intervals))
    assert bill.usd == pytest.approx(sum(s.usd for s in bill.sides))
    assert all(s.usd >= 0 for s in bill.sides)
