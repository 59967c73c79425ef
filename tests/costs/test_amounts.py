"""What an interval has cost by any moment: additive, never negative, and the same whenever it is asked for."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_nb.costs.amounts import Amount, billed, quarters, rate
from tuna_nb.records import IntervalRecord


def interval(
    start: float = 0.0, end: float | None = 3600.0, price: float | None = 1.0, **change: object
) -> IntervalRecord:
    made = IntervalRecord(1, "r", start, start, end, start if end is None else end, ((start, price),))
    return replace(made, **change)  # type: ignore[arg-type]


@st.composite
def intervals(draw: st.DrawFn) -> IntervalRecord:
    start = draw(st.floats(1.7e9, 1.7e9 + 1e5))
    length = draw(st.floats(0, 2e4))
    end = draw(st.sampled_from([None, start + length]))
    steps = draw(st.lists(st.tuples(st.floats(0, 2e4), st.none() | st.floats(0, 50)), max_size=4))
    prices = (
        (start, draw(st.none() | st.floats(0, 50))),
        *((start + a, p) for a, p in sorted(steps, key=lambda s: s[0])),
    )
    ready = draw(st.none() | st.floats(start, start + 2e4))
    return IntervalRecord(
        1, "r", start, ready, end, start if end is None else end, prices,
        granularity_s=draw(st.sampled_from([0.1, 1.0, 60.0, 3600.0])),
        minimum_s=draw(st.sampled_from([0.0, 60.0])),
        error_s=draw(st.floats(0, 100)),
        boot_told=draw(st.booleans()),
    )  # fmt: skip


moments = st.floats(1.7e9 - 1e4, 1.7e9 + 2e5)


@given(intervals(), st.lists(moments, min_size=2, max_size=6))
def test_spans_add_up_however_they_are_cut_and_nothing_is_negative(one: IntervalRecord, cuts: list[float]) -> None:
    cuts = sorted(cuts)
    pieces = [billed(one, b) - billed(one, a) for a, b in itertools.pairwise(cuts)]
    whole = billed(one, cuts[-1]) - billed(one, cuts[0])
    for each in pieces:
        assert min(each.usd, each.seconds, each.boot_usd, each.unknown_s) >= -1e-9
    assert astuple(sum(pieces, Amount())) == pytest.approx(astuple(whole), abs=1e-6)


@given(intervals(), moments, st.floats(0, 1e5))
def test_what_the_past_has_cost_does_not_depend_on_when_it_is_asked_for(
    one: IntervalRecord, at: float, later: float
) -> None:
    """An interval that is seen to end later has cost, by then, what it had cost while it ran."""
    running = replace(one, ended_at=None, seen_at=at + later, error_s=0.0)
    ended = replace(one, ended_at=max(at, one.started_at) + later + 1, error_s=0.0)
    assert astuple(billed(ended, at)) == pytest.approx(astuple(billed(running, at)), abs=1e-9)


@given(intervals())
def test_quarters_of_an_hour_hold_all_that_it_cost(one: IntervalRecord) -> None:
    ended = replace(one, ended_at=one.ended_at or one.started_at + 5000)
    parts = list(quarters(ended))
    assert all(p.quarter % 900 == 0 for p in parts)
    assert [p.quarter for p in parts] == sorted({p.quarter for p in parts})
    total = sum((Amount(*astuple(p)[2:]) for p in parts), Amount())
    assert astuple(total) == pytest.approx(astuple(billed(ended, math.inf)), abs=1e-6)


def test_an_hour_at_a_dollar_is_a_dollar() -> None:
    assert billed(interval(), 1e6).usd == pytest.approx(1.0)
    assert billed(interval(), 1800).usd == pytest.approx(0.5)


def test_time_is_rounded_up_to_the_granularity_and_the_minimum() -> None:
    def seconds(end: float, **change: object) -> float:
        return billed(interval(end=end, **change), 1e6).seconds

    assert seconds(0.2) == 1
    assert seconds(61, granularity_s=60.0) == 120
    assert seconds(60, granularity_s=60.0) == 60
    assert seconds(5, minimum_s=60.0) == 60
    assert seconds(0) == 0


def test_a_price_that_changes_holds_from_then_on() -> None:
    changed = interval(end=3600.0, prices=((0.0, 1.0), (900.0, 3.0)))
    assert billed(changed, 1e6).usd == pytest.approx(0.25 + 0.75 * 3)
    assert billed(changed, 900).usd == pytest.approx(0.25)
    assert rate(replace(changed, ended_at=None), 1000) == 3.0


def test_a_missing_price_is_unknown_time_and_never_nothing() -> None:
    unknown = billed(interval(price=None), 1e6)
    assert (unknown.usd, unknown.unknown_s) == (0.0, 3600.0)
    assert rate(interval(end=None, price=None), 10) is None
    later = billed(interval(prices=((0.0, None), (3000.0, 6.0))), 1e6)
    assert (later.usd, later.unknown_s) == (pytest.approx(1.0), 3000.0)


def test_what_went_by_before_it_served_is_the_boot() -> None:
    assert billed(interval(ready_at=900.0), 1e6).boot_usd == pytest.approx(0.25)
    assert billed(interval(ready_at=None), 1e6).boot_usd == pytest.approx(1.0), "it never served"
    assert billed(interval(ready_at=None, boot_told=False), 1e6).boot_usd == 0


def test_a_clock_that_jumped_back_makes_no_negative_time() -> None:
    assert billed(interval(start=1000.0, end=400.0), 1e6).usd == 0


def test_what_nobody_has_looked_at_lately_may_have_ended_since() -> None:
    running = interval(end=None, price=3600.0, seen_at=100.0)
    assert billed(running, 100).error_usd == 0
    assert billed(running, 160).error_usd == pytest.approx(60)
    assert billed(interval(price=3600.0, error_s=5.0), 1e6).error_usd == pytest.approx(5)
