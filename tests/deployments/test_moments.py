"""What a router tells, read: figures as they are, what is not told is unknown, what is not known is no mark."""

from __future__ import annotations

import pytest

from tuna_nb.deployments.moments import WINDOW_S, Mark, Moment, Recent, read_mark, read_moment

NOW = 1_800_000_000.0


def test_a_snapshot_of_today_is_read_whole() -> None:
    read = read_moment(
        {
            "time": NOW,
            "requests_per_s": 2.5,
            "split": {"serverless": 5, "spot": 20},
            "in_flight": 3,
            "waiting": 1,
            "ttft_s": {"p50": 0.2, "p95": None},
            "inter_token_s": {"p50": 0.01, "p95": 0.02},
            "usd_per_hour": None,
            "states": {"serverless": "READY", "spot": "WARMING"},
        }
    )
    assert (read.requests_per_s, read.ttft_p50_s, read.ttft_p95_s, read.inter_token_p95_s) == (2.5, 0.2, None, 0.02)
    assert (read.split, read.states["spot"]) == ({"serverless": 5, "spot": 20}, "WARMING")
    assert (read.in_flight, read.waiting, read.usd_per_hour, read.tokens_per_s) == (3, 1, None, None)
    assert read.running == read.totals == {}


def test_a_newer_router_tells_more() -> None:
    read = read_moment(
        {
            "time": NOW,
            "tokens_per_s": 120,
            "totals": {"finished": 10, "resumed": 2},
            "backends": {"spot": {"running": 4, "ttft_s": {"p50": 0.1}}, "serverless": {"running": None}},
        }
    )
    assert read.tokens_per_s == 120
    assert read.totals == {"finished": 10, "resumed": 2}
    assert read.running == {"spot": 4}


def test_what_is_told_oddly_is_unknown_and_no_crash() -> None:
    assert read_moment({"time": NOW, "ttft_s": 3, "split": [1], "requests_per_s": "many"}) == Moment(NOW)
    with pytest.raises(ValueError, match="without a time"):
        read_moment({"split": {}})


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("preemption", {"backend": "spot", "reason": "noticed"}, "spot was taken away (noticed)"),
        ("state", {"backend": "spot", "from": "COLD", "to": "WARMING", "reason": ""}, "spot: COLD → WARMING"),
        ("breaker", {"backend": "serverless", "circuit": "OPEN", "reason": "503"},
         "serverless is left alone after failures (503)"),
        ("breaker", {"backend": "serverless", "circuit": "HALF_OPEN", "reason": "503"}, "serverless is tried again"),
        ("breaker", {"backend": "serverless", "circuit": "CLOSED", "reason": "503"}, "serverless works again"),
        ("backend", {"backend": "spot.1", "change": "added"}, "spot.1 was added"),
        ("dropped", {"count": 3}, "3 events were lost"),
    ],
)  # fmt: skip
def test_an_event_is_told_in_words(kind: str, data: dict[str, object], said: str) -> None:
    mark = read_mark(kind, {"time": NOW, **data})
    assert mark is not None
    assert (mark.at, mark.said) == (NOW, said)


def test_an_unknown_event_is_no_mark() -> None:
    assert read_mark("weather", {"time": NOW}) is None
    assert read_mark("preemption", {"backend": "spot"}) is None


def test_the_last_minutes_are_kept_and_no_more() -> None:
    recent = Recent()
    for second in range(1000):
        recent.add(Moment(NOW + second))
    assert recent.moments[0].at == NOW + 999 - WINDOW_S
    assert recent.moments[-1].at == NOW + 999


def test_a_clock_that_is_set_back_begins_anew() -> None:
    recent = Recent()
    recent.add(Moment(NOW))
    recent.add(Moment(NOW - 3600))
    assert [m.at for m in recent.moments] == [NOW - 3600]


def test_what_is_told_twice_is_marked_once_and_in_order() -> None:
    recent = Recent()
    marks = [Mark(NOW + at, "preemption", "spot", "gone") for at in (2, 1, 2)]
    for mark in marks:
        recent.mark(mark)
    assert [m.at for m in recent.marks] == [NOW + 1, NOW + 2]
