"""Token buckets."""

from __future__ import annotations

from copy import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.keys.bucket import Bucket, span


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), max_size=60),
)
def test_no_more_is_granted_than_a_minutes_worth_and_what_was_refilled(
    per_minute: int, visits: list[tuple[float, int]]
) -> None:
    now, bucket, granted = 0.0, Bucket(per_minute, 0.0), 0
    for pause, wishes in visits:
        now += pause
        for _ in range(wishes):
            wait = bucket.ready_in(now)
            if wait == 0:
                bucket.take(now, 1)
                granted += 1
            else:
                assert copy(bucket).ready_in(now + wait + 1e-6) == 0, "it keeps its promise"
        assert granted <= per_minute * (1 + now / 60) + 1e-6
        assert bucket.level(now) <= per_minute


def test_what_is_known_afterwards_may_take_more_than_there_is_and_is_paid_back_first() -> None:
    bucket = Bucket(600, 0.0)
    bucket.take(0.0, 1200)
    assert bucket.level(0.0) == -600
    assert bucket.ready_in(0.0) == pytest.approx(60.1)
    assert bucket.ready_in(60.2) == 0


def test_a_new_limit_does_not_give_back_what_was_used() -> None:
    bucket = Bucket(10, 0.0)
    bucket.take(0.0, 10)
    bucket.resize(20, 0.0)
    assert bucket.level(0.0) == 10
    bucket.resize(5, 0.0)
    assert bucket.level(0.0) == -5


def test_the_headers_are_openais() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(0.0, 2)
    assert bucket.lines("requests", 0.5) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 58\r\n"
        b"x-ratelimit-reset-requests: 1.5s\r\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (59.96, "1m0s"), (360, "6m0s")]
)
def test_spans_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert span(seconds) == text
