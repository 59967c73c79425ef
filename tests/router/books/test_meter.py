"""Counters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuna_router.books.meter import WINDOW_S, Counts, Durations, Meter, Outcome, Window
from tuna_router.dataplane.account import Account
from tuna_router.settings import Kind


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(Outcome)), max_size=60))
def test_every_request_is_in_exactly_one_counter(moves: list[tuple[int, Outcome]]) -> None:
    clock = Clock()
    meter = Meter(clock, clock)
    accounts: list[Account] = []
    for number, outcome in moves:
        clock.now += 1
        if number >= len(accounts):
            accounts.append(Account(meter, clock.now))
        else:
            accounts[number].close(outcome, clock.now)  # often for a second time
        tally = meter.requests
        assert tally.started == tally.finished + tally.cancelled + tally.failed + tally.running
        assert tally.busy_seconds(clock.now) <= clock.now
        assert tally.running >= 0


def test_a_gpu_that_serves_two_requests_at_once_is_busy_once() -> None:
    clock = Clock()
    meter = Meter(clock, clock)
    one, two = meter.backend("spot", Kind.SPOT), meter.backend("spot-2", Kind.SPOT)
    one.begin(0)
    one.begin(4)
    two.begin(10)
    two.end(Outcome.FINISHED, 10, 11)
    for began in (0, 4):
        one.end(Outcome.FINISHED, began, 10)
    clock.now = 100
    stats = meter.route_stats(0)
    assert stats["gpu_seconds_spot"] == 10 + 1
    assert meter.backends["spot"].request_s == 16


def test_percentiles_are_of_what_was_measured() -> None:
    durations = Durations()
    assert durations.percentiles() == {"p50": None, "p90": None, "p99": None}
    for number in range(1, 101):
        durations.add(number / 100)
    assert durations.percentiles() == {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    assert sum(durations.counts) == durations.count == 100


def test_the_window_forgets() -> None:
    window = Window(0)
    for second in range(0, 3 * WINDOW_S, 5):
        window.sample(second, Counts(second // 5, 0, 0))  # one request before each sample
    now = 3 * WINDOW_S
    grown = window.growth(now, Counts(now // 5, 0, 0))
    assert WINDOW_S // 5 <= grown.requests <= WINDOW_S // 5 + 1
    assert window.growth(now + WINDOW_S + 6, Counts(now // 5, 0, 0)) == (1, 0, 0)


def test_a_window_that_has_just_begun_counts_all() -> None:
    assert Window(100).growth(101, Counts(7, 4, 3)) == (7, 4, 3)
