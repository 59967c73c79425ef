"""Percentiles that say how sure they are: order statistics and the binomial, nothing about the shape of the data.

Of n independent samples, the number below the true q-quantile is binomial(n, q). So the k-th and the l-th smallest
enclose it with the probability that k <= binomial < l (David & Nagaraja, Order Statistics, 7.1). With too few
samples no two of them do so in 95 of 100 cases: then the percentile is not given at all.

Requests that follow each other wait in the same queue and are alike, so n of them may be worth fewer independent
ones. How many is estimated for each percentile from twenty spans of the run (the variance of their shares below it,
against what chance alone would give: Kish's design effect), and the interval is that of so many.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

LEVELS: Final = (0.5, 0.9, 0.95, 0.99)
CONFIDENCE: Final = 0.95
LEAST: Final = {0.5: 6, 0.9: 29, 0.95: 59, 0.99: 300}
"""The fewest samples that a percentile is shown from: where a 95 % interval exists."""
_SPANS: Final = 20
_IN_A_SPAN: Final = 5
_BY_CHANCE: Final = 1.65
"""Two standard errors of the estimate above 1, for twenty spans: what is below says nothing."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """One percentile with its 95 % interval. level: 0.5 for the median. value None: too few samples.

    worth: how many independent samples it is as sure as.
    """

    level: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    worth: int = 0

    @property
    def name(self) -> str:
        return f"p{100 * self.level:g}"


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is known of one figure. count: of samples. mean, least, most: None without samples.

    ordered: the samples from the smallest to the largest.
    """

    count: int
    mean: float | None
    least: float | None
    most: float | None
    quantiles: tuple[Quantile, ...]
    ordered: tuple[float, ...] = field(default=(), repr=False)

    def at(self, level: float) -> float | None:
        """The percentile; None where it is not shown."""
        return next((q.value for q in self.quantiles if q.level == level), None)

    def worth(self, level: float) -> int:
        """How many independent samples the percentile is as sure as."""
        return next((q.worth for q in self.quantiles if q.level == level), 0) or self.count


def distribution(samples: Iterable[float]) -> Distribution:
    """Of samples in the order in which they were taken: those near each other may be alike."""
    taken = tuple(samples)
    ordered = tuple(sorted(taken))
    return _distribution(ordered, tuple(_in_turn(ordered, taken, level) for level in LEVELS))


def clustered(groups: Iterable[Sequence[float]]) -> Distribution:
    """Of samples that come in groups, as the gaps of one request do: alike within, independent between.

    Intervals are Woodruff's: the share of samples below the percentile varies from group to group, and by so much
    the percentile's own rank is unsure (Woodruff 1952; the share's variance is the ratio estimator's).
    """
    kept = [sorted(group) for group in groups if group]
    ordered = tuple(sorted(itertools.chain.from_iterable(kept)))
    return _distribution(ordered, tuple(_woodruff(ordered, kept, level) for level in LEVELS))


def value(ordered: Sequence[float], level: float) -> float:
    """The percentile of sorted samples: the smallest that at least this share does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(level * len(ordered) - 1e-9) - 1)]


@lru_cache(maxsize=4096)
def ranks(count: int, level: float) -> tuple[int, int] | None:
    """The two ranks, from 1, that enclose the percentile in 95 of 100 cases and are closest to each other; None
    where no two do."""
    if count < 2:
        return None
    low = high = min(max(round(count * level), 1), count - 1)
    covered = _binomial(count, level, low)
    below, above = _binomial(count, level, low - 1), _binomial(count, level, high + 1)
    while covered < CONFIDENCE:
        down = below if low > 1 else -1.0
        up = above if high < count - 1 else -1.0
        if down < 0 and up < 0:
            return None
        if down >= up:
            low, covered = low - 1, covered + down
            below = _binomial(count, level, low - 1)
        else:
            high, covered = high + 1, covered + up
            above = _binomial(count, level, high + 1)
    return low, high + 1


def resampled(count: int, level: float, times: int, rng: random.Random, worth: int | None = None) -> list[int]:
    """The ranks, from 1, that the percentile would have in `times` bootstrap samples of `count`.

    A bootstrap sample's k-th smallest has rank ceil(count * B) with B ~ Beta(k, count - k + 1): the uniform's own
    order statistic, so no sample need be drawn. worth: of so many independent samples instead.
    """
    n = count if worth is None else worth
    k = max(1, math.ceil(level * n - 1e-9))
    return [max(1, math.ceil(count * rng.betavariate(k, n - k + 1))) for _ in range(times)]


def _distribution(ordered: tuple[float, ...], quantiles: tuple[Quantile, ...]) -> Distribution:
    if not ordered:
        return Distribution(0, None, None, None, quantiles)
    mean = math.fsum(ordered) / len(ordered)
    return Distribution(len(ordered), mean, ordered[0], ordered[-1], quantiles, ordered)


def _in_turn(ordered: Sequence[float], taken: Sequence[float], level: float) -> Quantile:
    count = len(ordered)
    if count < LEAST[level]:
        return Quantile(level)
    found = value(ordered, level)
    worth = max(LEAST[level], round(count / _alike(taken, found)))
    between = ranks(worth, level)
    if between is None:
        return Quantile(level)
    if worth == count:
        low, high = ordered[between[0] - 1], ordered[between[1] - 1]
    else:
        low, high = (value(ordered, rank / worth) for rank in (between[0], between[1]))
    return Quantile(level, found, min(low, found), max(high, found), worth)


def _alike(taken: Sequence[float], found: float) -> float:
    """How many samples are worth one: 1 where the spans of the run differ no more than chance lets them."""
    if len(taken) < _SPANS * _IN_A_SPAN:
        return 1.0
    below = [sample <= found for sample in taken]
    share = sum(below) / len(below)
    if share >= 1:
        return 1.0
    ends = [round(i * len(below) / _SPANS) for i in range(_SPANS + 1)]
    squares = math.fsum(
        (sum(below[start:end]) - share * (end - start)) ** 2 for start, end in itertools.pairwise(ends)
    )
    effect = squares * _SPANS / (_SPANS - 1) / (len(below) * share * (1 - share))
    return effect if effect > _BY_CHANCE else 1.0


def _woodruff(ordered: Sequence[float], groups: Sequence[Sequence[float]], level: float) -> Quantile:
    if len(ordered) < LEAST[level] or len(groups) < LEAST[0.5]:
        return Quantile(level)
    found = value(ordered, level)
    # As many as are really not above it: with ties that is more than the share that was asked for.
    share = bisect_right(ordered, found) / len(ordered)
    squares = math.fsum((bisect_right(group, found) - share * len(group)) ** 2 for group in groups)
    many = len(groups)
    error = math.sqrt(squares * many / (many - 1)) / len(ordered)
    low, high = level - 1.96 * error, level + 1.96 * error
    if low <= 0 or high >= 1:
        return Quantile(level)
    return Quantile(level, found, value(ordered, low), value(ordered, high), many)


def _binomial(count: int, share: float, k: int) -> float:
    if not 0 <= k <= count:
        return 0.0
    ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share))
