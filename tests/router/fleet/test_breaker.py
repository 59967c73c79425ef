"""The circuit of one backend, over time that the tests hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.fleet.breaker import FAILURES, SHARE_OF_AT_LEAST, TRIAL_S, WINDOW_S, Breaker, Circuit

CLOSED, OPEN, HALF_OPEN = Circuit


def opened(at: float = 100.0, open_s: float = 5) -> Breaker:
    breaker = Breaker()
    breaker.failed(at, at, open_s, at_once=True)
    assert breaker.circuit(at) is OPEN
    return breaker


def test_one_failure_may_be_the_requests_own_fault_and_some_in_a_row_are_not() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(1, 1, 5, at_once=False)
    assert breaker.circuit(1) is CLOSED
    breaker.succeeded(1, 1)
    for _ in range(FAILURES - 1):
        breaker.failed(1, 1, 5, at_once=False)
    assert breaker.circuit(1) is CLOSED
    breaker.failed(1, 1, 5, at_once=False)
    assert breaker.circuit(1) is OPEN


def test_it_opens_at_once_where_nobody_was_there() -> None:
    assert opened().open_until == 105


def test_a_share_of_failures_in_a_window_opens_it_and_old_successes_do_not_count() -> None:
    breaker = Breaker()
    for _ in range(1000):
        breaker.succeeded(1, 1)
    now = 1 + 2 * WINDOW_S
    for number in range(SHARE_OF_AT_LEAST):
        assert breaker.circuit(now) is CLOSED
        if number % 2:
            breaker.failed(now, now, 5, at_once=False)
        else:
            breaker.succeeded(now, now)
    breaker.failed(now, now, 5, at_once=False)
    assert breaker.circuit(now) is OPEN


def test_after_its_time_one_request_tries_and_its_answer_closes_it() -> None:
    breaker = opened()
    assert breaker.circuit(104.9) is OPEN
    assert breaker.circuit(105) is HALF_OPEN
    breaker.begin(105)
    assert breaker.circuit(105) is OPEN, "for everybody else"
    breaker.answered(105, 106)
    assert breaker.circuit(106) is CLOSED


def test_every_opening_in_a_row_is_twice_as_long_up_to_the_cap() -> None:
    breaker, now, lengths = opened(), 100.0, []
    for _ in range(6):
        lengths.append(breaker.open_until - now)
        now = breaker.open_until
        breaker.begin(now)
        breaker.failed(now, now, 5, at_once=False)
    assert lengths == [5, 10, 20, 40, 60, 60]
    now = breaker.open_until
    breaker.begin(now)
    breaker.succeeded(now, now + 1)
    breaker.failed(now + 2, now + 2, 5, at_once=True)
    assert breaker.open_until == now + 7, "a success is a new beginning"


def test_a_trial_without_news_makes_room_for_the_next() -> None:
    breaker = opened()
    breaker.begin(105)
    assert breaker.circuit(105 + TRIAL_S) is HALF_OPEN


def test_the_late_end_of_an_old_request_says_nothing() -> None:
    breaker = opened()
    breaker.succeeded(99, 101)
    assert breaker.circuit(101) is OPEN
    breaker.begin(105)
    breaker.failed(99, 106, 5, at_once=True)
    breaker.answered(105, 107)
    assert breaker.circuit(107) is CLOSED
    breaker.failed(99, 108, 5, at_once=True)
    assert breaker.circuit(108) is CLOSED


def test_a_probe_closes_it_only_when_a_trial_is_due() -> None:
    breaker = opened()
    breaker.proved(104)
    assert breaker.circuit(104) is OPEN
    breaker.proved(105)
    assert breaker.circuit(105) is CLOSED
    assert "open_until=0" in repr(breaker)


steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "answered", "succeeded", "failed", "gone", "proved"]),
        st.floats(0, 40),
        st.floats(0, 50),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_whatever_happens_it_lets_one_through_again_in_bounded_time(
    sequence: list[tuple[str, float, float]],
) -> None:
    breaker, now = Breaker(cap_s=60), 1000.0
    for what, later, ago in sequence:
        now += later
        before = breaker.circuit(now)
        began = now - ago
        match what:
            case "begin":
                breaker.begin(now)
            case "answered":
                breaker.answered(began, now)
            case "succeeded":
                breaker.succeeded(began, now)
            case "proved":
                breaker.proved(now)
            case _:
                breaker.failed(began, now, 5, at_once=what == "gone")
        after = breaker.circuit(now)
        assert breaker.open_until <= now + 60
        assert breaker.circuit(now + 60) is not OPEN
        if before is HALF_OPEN and what == "begin":
            assert after is OPEN, "one, and no second at the same time"
        if before is CLOSED and after is not CLOSED:
            assert what in ("failed", "gone")
        if before is not CLOSED and after is CLOSED:
            assert what in ("answered", "succeeded", "proved")


def test_a_replica_that_came_anew_does_not_pay_for_those_before_it() -> None:
    breaker = Breaker()
    now = 0.0
    for _ in range(4):  # each time the next replica is gone before it served anything
        now += 100.0
        breaker.begin(now)
        breaker.failed(now, now, 5.0, at_once=True)
        breaker.proved(now + 1, anew=True)
        assert breaker.open_until == now + 5.0
