"""When requests leave."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from tuna_nb.benchmarks.load.arrivals import schedule
from tuna_nb.benchmarks.load.spec import Arrivals, LoadSpec, Prompts, Target
from tuna_nb.errors import RequestError

TARGET = Target("http://127.0.0.1:9/v1", ("m",))


def spec(arrivals: Arrivals, **fields: Any) -> LoadSpec:
    return LoadSpec(TARGET, arrivals, **({"requests": 20_000} | fields))


def gaps(arrivals: Arrivals) -> list[float]:
    return [b - a for a, b in itertools.pairwise(schedule(spec(arrivals)))]


ALL = [
    Arrivals("constant", rate=3),
    Arrivals("poisson", rate=3),
    Arrivals("gamma", rate=3, cv=2),
    Arrivals("day", rate=5, low_rate=1, period_s=100),
    Arrivals("spike", rate=20, low_rate=1, spike_at_s=10, spike_s=5),
    Arrivals("gaps", rate=5, on_s=10, off_s=20),
]


@pytest.mark.parametrize("arrivals", ALL, ids=lambda a: a.kind)
def test_times_are_in_order_and_the_same_for_the_same_seed(arrivals: Arrivals) -> None:
    times = list(schedule(spec(arrivals, requests=500, seed=7)))
    assert len(times) == 500
    assert times == sorted(times)
    assert times[0] >= 0
    assert times == list(schedule(spec(arrivals, requests=500, seed=7)))
    if arrivals.kind != "constant":
        assert times != list(schedule(spec(arrivals, requests=500, seed=8)))


def test_a_seed_gives_these_very_times_on_every_machine() -> None:
    told = "".join(",".join(f"{at:.6f}" for at in schedule(spec(a, requests=100, seed=1))) for a in ALL)
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "17b22313ff62178a"


def test_other_prompts_move_no_arrival() -> None:
    one = spec(Arrivals("poisson", rate=3), requests=50)
    other = dataclasses.replace(
        one, prompts=Prompts(shared_prefix_tokens=50), target=Target("http://x/v1", ("a", "b"))
    )
    assert list(schedule(one)) == list(schedule(other))


def test_constant_arrivals_begin_at_once_and_are_even() -> None:
    assert list(schedule(spec(Arrivals("constant", rate=4), requests=5))) == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("kind", "cv"), [("poisson", 1.0), ("gamma", 0.5), ("gamma", 1.0), ("gamma", 3.0)])
def test_gaps_have_the_rate_and_the_variation_that_were_asked_for(kind: Any, cv: float) -> None:
    found = gaps(Arrivals(kind, rate=10, cv=cv))
    mean = statistics.fmean(found)
    assert mean == pytest.approx(0.1, rel=0.03 * max(1, cv))
    assert statistics.pstdev(found) / mean == pytest.approx(cv, rel=0.08)


def test_a_day_is_quiet_at_its_ends_and_busy_in_its_middle() -> None:
    times = list(
        schedule(spec(Arrivals("day", rate=20, low_rate=2, period_s=1000), requests=None, duration_s=1000))
    )
    quarters = [sum(q * 250 <= at < q * 250 + 250 for at in times) for q in range(4)]
    mean_rate = 2 + 18 * (0.5 - 1 / math.pi)  # of the first quarter of the sine
    assert quarters[0] == pytest.approx(250 * mean_rate, rel=0.1)
    assert quarters[3] == pytest.approx(quarters[0], rel=0.15)
    assert quarters[1] == pytest.approx(250 * (2 + 18 * (0.5 + 1 / math.pi)), rel=0.1)


def test_a_spike_is_where_and_as_high_as_asked() -> None:
    arrivals = Arrivals("spike", rate=100, low_rate=2, spike_at_s=100, spike_s=20)
    times = list(schedule(spec(arrivals, requests=None, duration_s=300)))
    assert sum(100 <= at < 120 for at in times) == pytest.approx(2000, rel=0.1)
    assert sum(at < 100 or at >= 120 for at in times) == pytest.approx(560, rel=0.15)


def test_between_gaps_nothing_is_sent() -> None:
    times = list(schedule(spec(Arrivals("gaps", rate=10, on_s=5, off_s=7), requests=None, duration_s=240)))
    assert all(at % 12 < 5 for at in times)
    assert len(times) == pytest.approx(20 * 5 * 10, rel=0.15)


def test_a_trace_is_replayed_as_fast_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("timestamp,input_tokens,output_tokens\n100,5,5\n102,5,5\n110,5,5\n")
    arrivals = Arrivals("trace", trace=str(file), speed=2)
    assert list(schedule(spec(arrivals, requests=None))) == [0, 1, 5]
    assert list(schedule(spec(arrivals, requests=2))) == [0, 1]
    assert list(schedule(spec(arrivals, requests=None, duration_s=2))) == [0, 1]


@pytest.mark.parametrize(
    ("arrivals", "fields", "words"),
    [
        (Arrivals(rate=-1), {}, "rate -1"),
        (Arrivals(rate=0), {}, "rate 0"),
        (Arrivals(rate=math.nan), {}, "rate nan"),
        (Arrivals("gamma", cv=0), {}, "variation of 0"),
        (Arrivals("day", low_rate=-1), {}, "low rate -1"),
        (Arrivals("day", period_s=0), {}, "period 0"),
        (Arrivals("spike", spike_s=0), {}, "length of the spike 0"),
        (Arrivals("gaps", on_s=0), {}, "with traffic 0"),
        (Arrivals("trace"), {}, "no trace"),
        (Arrivals("trace", trace="x", speed=0), {}, "speed 0"),
        (Arrivals("closed", concurrency=0), {}, "concurrency of 0"),
        (Arrivals("closed"), {}, "no schedule"),
        (Arrivals("often"), {}, "'often'"),  # type: ignore[arg-type]
        (Arrivals(), {"duration_s": 5.0}, "a duration and a number"),
        (Arrivals(), {"requests": None}, "no end"),
        (Arrivals(), {"requests": 0}, "0 requests"),
        (Arrivals(), {"requests": None, "duration_s": -1.0}, "duration -1"),
        (Arrivals(rate=1e6), {"requests": None, "duration_s": 3600.0}, "about 3,600,000,000 requests"),
    ],
)
def test_a_load_that_can_not_be_is_refused_with_a_hint(arrivals: Arrivals, fields: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        schedule(spec(arrivals, **fields))
    assert words in caught.value.message
    assert caught.value.hint
