"""Counters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuna_router.meter import WINDOW_S, Durations, Mark, Meter, Outcome, Tally
from tuna_router.settings import Kind


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(Outcome)), max_size=60))
def test_every_request_is_in_exactly_one_counter(moves: list[tuple[int, Outcome]]) -> None:
    clock, tally = Clock(), Tally()
    marks: list[Mark] = []
    for number, outcome in moves:
        clock.now += 1
        if number >= len(marks):
            marks.append(Mark(tally, clock))
        else:
            marks[number].close(outcome)  # often for a second time
        assert tally.started == tally.finished + tally.cancelled + tally.failed + tally.running
        assert tally.busy_seconds(clock.now) <= clock.now
        assert tally.running >= 0


def test_a_gpu_that_serves_two_requests_at_once_is_busy_once() -> None:
    clock = Clock()
    meter = Meter(clock, clock)
    first = meter.attempt("spot", Kind.SPOT)
    clock.now = 4
    second = meter.attempt("spot", Kind.SPOT)
    clock.now = 10
    third = meter.attempt("spot-2", Kind.SPOT)
    clock.now = 11
    third.close(Outcome.FINISHED)
    clock.now = 10
    for mark in (first, second):
        mark.close(Outcome.FINISHED)
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
    assert sum(durations.buckets) == durations.count == 100


def test_the_window_forgets() -> None:
    clock = Clock()
    meter = Meter(clock, clock)
    meter.request()
    clock.now = WINDOW_S - 10
    meter.request()
    assert meter.window.total("total") == 2
    clock.now = WINDOW_S + 6
    assert meter.window.total("total") == 1
    clock.now = 3 * WINDOW_S
    assert meter.window.total("total") == 0
