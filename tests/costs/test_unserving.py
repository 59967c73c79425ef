"""Billing but not serving: what is told as such, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_nb.costs.load import Load, Minute
from tuna_nb.costs.unserving import FORGOTTEN_S, QUIET_S, Observed, find, said
from tuna_nb.records import IntervalRecord

NOW = 1_800_000_000.0
MIN = 60.0
PRICE = 6.0


def ran(
    name: str, begun_min: float, ended_min: float | None = None, ready_min: float | None = None, told: bool = True
) -> IntervalRecord:
    """Minutes before NOW."""
    start = NOW - begun_min * MIN
    end = None if ended_min is None else NOW - ended_min * MIN
    ready = None if ready_min is None else NOW - ready_min * MIN
    return IntervalRecord(1, name, start, ready, end, end or NOW, ((start, PRICE),), boot_told=told)


def seen(*intervals: IntervalRecord, load: Load | None = None, state: str = "", **states: str) -> Observed:
    return Observed("spot", "aws", intervals, load, state, tuple(states.items()))


def counted(hours: float, *minutes: Minute) -> Load:
    return Load(((NOW - hours * 3600, NOW - 5),), minutes)


def test_a_replica_that_never_comes_to_serve_is_stuck_after_a_quarter_of_an_hour() -> None:
    assert find(seen(ran("a", 14.9)), NOW) is None
    one = find(seen(ran("a", 15)), NOW)
    assert one is not None
    assert (one.kind, one.since, one.alone) == ("stuck loading", NOW - QUIET_S, True)
    assert one.usd == pytest.approx(1.5)
    assert find(seen(ran("a", 6)), NOW, quiet_s=300) is not None, "or after as long as was chosen"


def test_what_serves_lately_served_or_is_idle_by_policy_is_none() -> None:
    assert find(seen(ran("a", 600, ready_min=598)), NOW) is None
    assert find(seen(), NOW) is None, "nothing bills"
    assert find(seen(ran("a", 600, 300)), NOW) is None, "what failed hours ago bills no more"
    ready_by_policy = seen(ran("a", 600, ready_min=598), load=counted(10))
    assert find(ready_by_policy, NOW) is None


def test_one_that_crashes_again_and_again_is_a_loop_from_its_first_attempt() -> None:
    attempts = [ran(f"r{n}", 20 - 4 * n, 20 - 4 * n - 3.5) for n in range(5)]
    one = find(seen(*attempts), NOW)
    assert one is not None
    assert (one.kind, one.attempts, one.since) == ("crash loop", 5, NOW - 20 * MIN)
    assert one.usd == pytest.approx(5 * 0.35)
    served_before = find(seen(ran("good", 300, 21, ready_min=299), *attempts), NOW)
    assert served_before is not None
    assert served_before.since == NOW - 20 * MIN, "the time that it served is not in it"
    apart = [ran(f"r{n}", 60 - 20 * n, 60 - 20 * n - 1) for n in range(3)]
    assert find(seen(*apart, ran("now", 1)), NOW) is None, "a failure now and then is no loop"


def test_a_failed_one_that_still_bills_is_told_as_failed() -> None:
    one = find(seen(ran("a", 30, ready_min=29), state="failed", a="failed"), NOW)
    assert one is not None
    assert one.kind == "failed"


def test_one_stuck_beside_others_that_serve_is_told_and_not_alone() -> None:
    one = find(seen(ran("a", 60, ready_min=58), ran("b", 20)), NOW)
    assert one is not None
    assert (one.kind, one.alone, one.usd) == ("stuck loading", False, pytest.approx(2.0))


def test_where_nobody_tells_when_it_is_ready_its_state_decides() -> None:
    assert find(seen(ran("a", 60, told=False)), NOW) is None, "unknown is not unready"
    assert find(seen(ran("a", 60, told=False), a="ready"), NOW) is None
    assert find(seen(ran("a", 60, told=False), a="starting"), NOW) is not None


def test_forgotten_is_what_nobody_asks_for_a_day() -> None:
    ready = ran("a", 30 * 60, ready_min=30 * 60 - 1)
    one = find(seen(ready, load=counted(25)), NOW)
    assert one is not None
    assert one.kind == "forgotten"
    assert find(seen(ready), NOW) is None, "where nobody counts, nobody knows"
    assert find(seen(ready, load=counted(23)), NOW) is None, "the router was away, and may have missed one"
    asked = Minute(int(NOW - 20 * 3600) // 60 * 60, arrivals=((3, 1),))
    assert find(seen(ready, load=counted(30, asked)), NOW) is None
    assert find(seen(ready, load=counted(30, asked)), NOW, forgotten_s=3600) is not None


def test_a_ready_one_that_lets_all_requests_wait_is_told() -> None:
    ready = ran("a", 60, ready_min=58)
    minutes = [Minute(int(NOW - m * MIN), in_flight=1 + 20 - m, arrivals=((1, 1),)) for m in range(20, 0, -1)]
    one = find(seen(ready, load=counted(1, *minutes)), NOW)
    assert one is not None
    assert one.kind == "never answers"
    answered = Minute(int(NOW - 90), in_flight=5, ends=((3, 1),))
    assert find(seen(ready, load=counted(1, *minutes, answered)), NOW) is None
    assert find(seen(ready, load=counted(1, *minutes[-10:])), NOW) is None, "for ten minutes only"


@given(
    st.lists(st.tuples(st.floats(0.1, 2000), st.floats(0, 1), st.booleans(), st.booleans()), max_size=8),
    st.floats(60, 7200),
)
def test_what_is_told_has_lasted_and_has_cost_something(
    lives: list[tuple[float, float, bool, bool]], quiet_s: float
) -> None:
    intervals = [
        ran(f"r{n}", begun, None if runs else begun * share, begun * 0.9 if ready else None)
        for n, (begun, share, runs, ready) in enumerate(lives)
    ]
    one = find(seen(*intervals), NOW, quiet_s)
    if one is not None:
        assert NOW - one.since >= quiet_s
        assert one.usd >= 0
        assert not one.forgotten
        assert said(one, "x").startswith("spot on aws bills but")
    if any(i.ended_at is None and i.ready_at is None and NOW - i.started_at >= quiet_s for i in intervals):
        assert one is not None, "what runs for so long without being ready is always told"
    assert FORGOTTEN_S > QUIET_S
