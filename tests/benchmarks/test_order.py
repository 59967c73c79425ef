"""A percentile is what it says, and its interval holds the true one in 95 of 100 cases."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from tuna_nb.benchmarks.order import LEAST, LEVELS, clustered, distribution, ranks, resampled, value


@pytest.mark.parametrize("count", [1, 2, 10, 99, 100, 101, 1000])
@pytest.mark.parametrize("level", LEVELS)
def test_a_percentile_is_the_nearest_rank(count: int, level: float) -> None:
    samples = sorted(random.Random(count).random() for _ in range(count))
    assert value(samples, level) == np.percentile(samples, 100 * level, method="inverted_cdf")


def test_known_samples_have_known_percentiles() -> None:
    made = distribution(range(1, 1001))
    assert [q.value for q in made.quantiles] == [500, 900, 950, 990]
    assert (made.count, made.mean, made.least, made.most) == (1000, 500.5, 1, 1000)
    assert made.at(0.5) == statistics.median_low(range(1, 1001))


def test_the_ranks_are_those_of_the_tables() -> None:
    # Of 100 samples the median is between the 40th and the 60th, or the 41st and the 61st: 95.4 %; 94.3 % is less.
    low, high = ranks(100, 0.5) or (0, 0)
    assert high - low == 20
    covered = sum(math.comb(100, k) for k in range(low, high)) / 2**100
    assert 0.95 <= covered < 0.96


@pytest.mark.parametrize("level", LEVELS)
def test_no_percentile_from_fewer_samples_than_an_interval_needs(level: float) -> None:
    least = LEAST[level]
    few, enough = distribution(range(least - 1)), distribution(range(least))
    assert few.at(level) is None
    found = next(q for q in enough.quantiles if q.level == level)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    if level != 0.99:
        assert ranks(least - 1, level) is None, "fewer have none"


def test_a_p99_from_299_samples_is_not_shown_as_one() -> None:
    assert distribution(range(299)).at(0.99) is None
    assert distribution(range(300)).at(0.99) is not None


@pytest.mark.parametrize(
    ("count", "level"), [(n, level) for n in (70, 400) for level in LEVELS if n >= LEAST[level]]
)
def test_the_interval_holds_the_true_percentile_in_95_of_100_runs(count: int, level: float) -> None:
    rng = random.Random(count)
    true = -math.log(1 - level)
    held = 0
    for _ in range(1000):
        found = next(
            q for q in distribution(rng.expovariate(1) for _ in range(count)).quantiles if q.level == level
        )
        assert found.low is not None
        assert found.high is not None
        held += found.low <= true <= found.high
    # Of 1000 runs, three standard errors below 95 %; and not so wide that it says nothing.
    assert 930 <= held <= 995


def test_samples_that_are_alike_in_groups_have_a_wider_interval_that_holds() -> None:
    rng = random.Random(5)
    held = naive_held = 0
    for _ in range(300):
        groups = []
        for _ in range(60):
            own = rng.gauss(0, 1)
            groups.append([own + rng.gauss(0, 0.1) for _ in range(20)])
        found = clustered(groups).quantiles[0]
        every = [sample for group in groups for sample in group]
        naive = distribution(rng.sample(every, k=len(every))).quantiles[0]
        assert found.low is not None
        assert found.high is not None
        assert naive.low is not None
        assert naive.high is not None
        held += found.low <= 0 <= found.high
        naive_held += naive.low <= 0 <= naive.high
    assert held >= 270
    assert naive_held < 150, "counting them as independent would promise too much"


def test_requests_that_wait_in_one_queue_count_for_fewer() -> None:
    rng = random.Random(9)
    held = naive_held = 0
    for _ in range(300):
        last, samples = rng.gauss(0, 1), []
        for _ in range(1000):
            last = 0.9 * last + math.sqrt(1 - 0.81) * rng.gauss(0, 1)
            samples.append(last)
        found = distribution(samples).quantiles[0]
        naive = distribution(rng.sample(samples, k=1000)).quantiles[0]
        assert found.low is not None
        assert found.high is not None
        assert naive.low is not None
        assert naive.high is not None
        assert 29 <= found.worth < 500
        held += found.low <= 0 <= found.high
        naive_held += naive.low <= 0 <= naive.high
    assert held >= 260
    assert naive_held < 200, "in another order nobody sees that they were alike"


def test_a_thousand_of_one_value_are_that_value() -> None:
    for level in LEVELS:
        found = next(q for q in distribution([20.0] * 1000).quantiles if q.level == level)
        assert (found.value, found.low, found.high, found.worth) == (20.0, 20.0, 20.0, 1000)


def test_resampled_ranks_are_those_of_a_real_bootstrap() -> None:
    rng, draws = random.Random(1), 4000
    drawn = resampled(200, 0.95, draws, rng)
    real = [sorted(rng.choices(range(1, 201), k=200))[189] for _ in range(draws)]
    assert statistics.mean(drawn) == pytest.approx(statistics.mean(real), abs=0.3)
    assert statistics.stdev(drawn) == pytest.approx(statistics.stdev(real), rel=0.08)
    assert min(drawn) >= 1
    assert max(drawn) <= 200


def test_nothing_is_known_of_no_samples() -> None:
    for made in (distribution([]), clustered([]), clustered([[]])):
        assert (made.count, made.mean, made.at(0.5)) == (0, None, None)
