"""Figures are computed from rows alone: what counts, what does not, and from when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.requests import failed, many, row
from tuna_nb.benchmarks.measures import NOBODY, Slo, kept, measure


def test_ttft_counts_from_the_scheduled_time_not_from_the_sending() -> None:
    stalled = row(0, sent_s=5.0, first_token_s=5.1, ended_s=5.2)
    assert measure([stalled]).ttft_ms.most == pytest.approx(5100)
    assert measure([stalled]).latency_ms.most == pytest.approx(5200)


def test_tpot_is_per_token_and_a_gap_is_per_chunk() -> None:
    # Nine tokens in three events, 80 ms between them.
    packed = row(0, tokens=9, gaps_ms=(80.0, 80.0), chunks=3, first_token_s=0.1, ended_s=0.26)
    f = measure([packed])
    assert f.tpot_ms.mean == pytest.approx(20)
    assert f.chunk_gap_ms.mean == pytest.approx(80)
    assert f.tokens_per_chunk == 3


def test_warm_up_is_in_no_figure() -> None:
    slow = [row(n - 9, warmup=True, ttft_s=9.0, backend="cold") for n in range(9)]
    f, without = (measure([*extra, *many(50, lambda _: 0.1)]) for extra in (slow, []))
    assert (f.warmup, without.warmup) == (9, 0)
    assert replace(f, warmup=0) == without


def test_failed_requests_are_counted_beside_the_latencies_never_dropped() -> None:
    rows = [*(row(n) for n in range(8)), failed(8), failed(9, "timeout"), failed(10), row(11, error="stopped")]
    f = measure(rows)
    assert (f.requests, f.whole, f.failed, f.stopped) == (12, 8, 3, 1)
    assert f.latency_ms.count == 8
    assert [(e.kind, e.count, e.example) for e in f.errors][:2] == [
        ("status 503", 2, "status 8"),
        ("timeout", 1, "timeout 9"),
    ]
    assert f.error_share == pytest.approx(3 / 11), "what was stopped is nobody's fault"


def test_rates_are_of_the_schedule_and_of_what_came() -> None:
    rows = [row(n, scheduled_s=n / 10, ttft_s=0.92, tokens=5) for n in range(101)]
    f = measure(rows)
    assert f.offered_per_s == pytest.approx(10)
    assert f.seconds == pytest.approx(11)
    assert f.achieved_per_s == pytest.approx(101 / 11)
    assert f.tokens_per_s == pytest.approx(505 / 11)
    assert measure(rows, schedule_s=20).offered_per_s == pytest.approx(101 / 20)


def test_the_tokens_of_a_user_are_over_the_whole_latency() -> None:
    f = measure([row(0, ttft_s=0.92, tokens=5)])
    assert f.user_tokens_per_s.mean == pytest.approx(5)


def test_what_was_not_streamed_has_no_ttft() -> None:
    f = measure(many(50, lambda _: 0.1), streamed=False)
    assert f.ttft_ms.count == f.tpot_ms.count == f.chunk_gap_ms.count == 0
    assert f.latency_ms.count == 50
    assert f.buckets[0].ttft_p50_ms is None


def test_an_engine_that_tells_no_tokens_has_latencies_and_no_tpot() -> None:
    f = measure([row(n, output_tokens=None) for n in range(10)])
    assert f.untold_tokens == 10
    assert f.tpot_ms.count == 0
    assert f.tokens_per_s is None
    assert f.ttft_ms.count == 10


@pytest.mark.parametrize(
    ("limits", "expected"),
    [(Slo(), True), (Slo(ttft_ms=100.1), True), (Slo(ttft_ms=99), False), (Slo(tpot_ms=20.1), True),
     (Slo(tpot_ms=19), False), (Slo(latency_ms=181), True), (Slo(latency_ms=179), False),
     (Slo(ttft_ms=101, tpot_ms=21, latency_ms=179), False)],
)  # fmt: skip
def test_a_request_keeps_its_limits_or_does_not(limits: Slo, expected: bool) -> None:
    assert kept(row(0, ttft_s=0.1, gap_ms=20, tokens=5), limits) is expected


def test_a_failed_request_kept_nothing_and_one_that_was_stopped_is_not_judged() -> None:
    limits = Slo(ttft_ms=1000, latency_ms=1000)
    assert kept(failed(0), limits) is False
    assert kept(row(0, error="stopped"), limits) is None
    late = row(0, error="stopped", first_token_s=None, ended_s=30.0)
    assert kept(late, limits) is False, "it had broken them by then"
    assert kept(row(0, output_tokens=None), Slo(tpot_ms=50)) is None
    assert kept(row(0, tokens=1), Slo(tpot_ms=50)) is True, "one token has nothing between tokens"


def test_goodput_is_of_all_that_were_sent() -> None:
    rows = [row(0), row(1, ttft_s=0.5), failed(2), row(3, output_tokens=None), row(9, error="stopped")]
    g = measure(rows, slo=Slo(ttft_ms=200, tpot_ms=50)).goodput
    assert g is not None
    assert (g.kept, g.judged, g.unjudged) == (1, 3, 2)
    assert g.share == pytest.approx(1 / 3)
    assert measure(rows).goodput is None


def test_who_answered_is_counted_in_all_and_over_time() -> None:
    rows = [row(n, scheduled_s=n / 20, backend="serverless" if n < 200 else "spot") for n in range(400)]
    rows.append(failed(400, scheduled_s=20.0))
    f = measure(rows)
    assert dict(f.backends) == {"serverless": 200, "spot": 200, NOBODY: 1}
    assert dict(f.buckets[0].backends) == {"serverless": f.buckets[0].sent}
    assert dict(f.buckets[-2].backends) == {"spot": f.buckets[-2].sent}
    assert measure([row(0, backend=None)]).backends == (), "an endpoint that says nothing"


def test_retries_are_requests_that_were_tried_more_than_once() -> None:
    f = measure([row(0, attempts=2), row(1, attempts=3), row(2), row(3, attempts=None)])
    assert (f.retried, f.told_attempts) == (2, 3)


def test_buckets_hold_every_request_once_and_are_few() -> None:
    for count in (1, 30, 1000, 5000):
        f = measure(many(count, lambda rng: rng.uniform(0.05, 0.2)))
        assert sum(b.sent for b in f.buckets) == count
        assert len(f.buckets) <= 61
        assert all(b.ttft_p95_ms is None or b.whole >= 20 for b in f.buckets)


def test_a_span_without_traffic_is_an_empty_bucket_not_a_missing_one() -> None:
    rows = [row(n, scheduled_s=(n / 20 if n < 100 else 50 + n / 20)) for n in range(200)]
    f = measure(rows)
    width = f.buckets[0].width_s
    assert [b.at_s for b in f.buckets] == pytest.approx([i * width for i in range(len(f.buckets))])
    assert any(b.sent == 0 and b.ttft_p50_ms is None for b in f.buckets)


def test_no_rows_are_no_figures() -> None:
    f = measure([])
    assert (f.requests, f.offered_per_s, f.tokens_per_s, f.buckets, f.error_share) == (0, None, None, (), None)
