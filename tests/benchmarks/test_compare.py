"""Two runs are told apart only where they differ, and the interval is as sure as it says."""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace

import pytest

from tests.benchmarks.requests import failed, many, row
from tuna_nb.benchmarks.compare import Comparison, Difference, compare
from tuna_nb.benchmarks.load.spec import Arrivals, LoadSpec, Target
from tuna_nb.benchmarks.measures import measure
from tuna_nb.benchmarks.report import LoadReport, Step, differences


def normal(mean_s: float):  # type: ignore[no-untyped-def]
    return lambda rng: max(0.001, rng.gauss(mean_s, mean_s / 10))


def figure(c: Comparison, name: str) -> Difference:
    return next(d for d in c.differences if d.figure == name)


A = measure(many(1000, normal(0.1), 1))
SLOWER = measure(many(1000, normal(0.12), 2))


def test_a_slower_run_is_told_with_its_interval() -> None:
    found = figure(compare(A, SLOWER), "p95 TTFT")
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.2 < found.high
    assert found.worse is True
    assert re.fullmatch(r"B is (19|20|21) % slower at p95 TTFT, 95 % CI \d+–\d+ %", found.said), found.said
    back = figure(compare(SLOWER, A), "p95 TTFT")
    assert back.worse is False
    assert " faster at p95 TTFT" in back.said


def test_equal_runs_show_no_difference() -> None:
    c = compare(A, measure(many(1000, normal(0.1), 3)))
    assert not any(d.seen for d in c.differences if d.unit == "ms" and "TTFT" in d.figure)
    assert figure(c, "p50 TTFT").said.startswith("no difference seen at p50 TTFT, 95 % CI -")


def test_the_interval_holds_the_true_ratio_in_95_of_100_pairs() -> None:
    held = 0
    for seed in range(80):
        a, b = (measure(many(400, normal(mean), 1000 * seed + i, tokens=1)) for i, mean in ((0, 0.1), (1, 0.11)))
        found = figure(compare(a, b, seed=seed), "p50 TTFT")
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert 70 <= held <= 80


def test_the_same_runs_give_the_same_intervals() -> None:
    assert compare(A, SLOWER, seed=7) == compare(A, SLOWER, seed=7)
    assert compare(A, SLOWER, seed=7) != compare(A, SLOWER, seed=8)


def test_a_p99_from_too_few_is_not_compared_and_says_so() -> None:
    few = measure(many(100, normal(0.1), 4))
    found = figure(compare(A, few), "p99 TTFT")
    assert (found.change, found.low, found.worse) == (None, None, None)
    assert found.said == "p99 TTFT: too few samples in B (100)"


def test_errors_are_compared_in_points_by_newcombes_interval() -> None:
    # Newcombe (1998), table II, case (a): 56/70 against 48/80 is 0.2000, 0.0524 to 0.3339.
    a = measure([failed(n) if n < 48 else row(n) for n in range(80)])
    b = measure([failed(n) if n < 56 else row(n) for n in range(70)])
    found = figure(compare(a, b), "error rate")
    assert (found.change, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert found.said == "B has 20.0 points more errors, 95 % CI 5.2–33.4 points"


def test_more_tokens_per_second_are_better() -> None:
    slow, fast = (measure(many(1000, normal(0.1), 5, tokens=n)) for n in (10, 20))
    found = figure(compare(slow, fast), "output tokens per second")
    assert found.worse is False
    assert "higher" in found.said
    assert found.change == pytest.approx(1.0, abs=0.02)
    assert found.low is not None
    assert found.high is not None
    assert 0.9 < found.low < found.change < found.high < 1.1


def test_two_runs_of_twenty_thousand_are_compared_without_walking_them_again() -> None:
    rng = random.Random(0)
    a, b = (measure([row(n, scheduled_s=n / 50, ttft_s=rng.uniform(0.1, 0.2), tokens=2) for n in range(20_000)])
            for _ in range(2))  # fmt: skip
    begun = time.process_time()
    compare(a, b)
    # Ten times what it takes: a resampling of all rows would be minutes.
    assert time.process_time() - begun < 10


def report(**change: object) -> LoadReport:
    spec = replace(LoadSpec(Target("http://x/v1", ("m",)), requests=5), **change)  # type: ignore[arg-type]
    return LoadReport("r", spec, None, None, (Step(measure([row(0)])),))


def test_what_makes_runs_incomparable_is_told() -> None:
    assert differences(report(), report()) == ()
    told = differences(
        report(), report(arrivals=Arrivals("constant", 9), target=Target("http://x/v1", ("n",)), seed=3)
    )
    assert told == (
        "other models: m and n",
        "other arrivals: kind poisson and kind constant, rate 9",
        "another seed (0 and 3): requests came at other times, with other prompts",
    )
    broken = replace(report(), interrupted=True, steps=(Step(measure([failed(0), row(1)])),))
    assert differences(report(), broken) == ("B was interrupted", "50% of B failed: its latencies are of the rest")
    elsewhere = report(target=Target("http://y/v1", ("m",)))
    assert differences(report(), elsewhere) == (), "another endpoint is what is compared"
