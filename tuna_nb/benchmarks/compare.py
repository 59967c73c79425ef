"""Two runs side by side: what differs, by how much, and how sure that is.

Percentiles: the ratio of the two, with a percentile-bootstrap interval; a bootstrap sample's order statistic is
drawn by its exact law (`order.resampled`), so 20,000 requests cost no more than 200. Throughput: the ratio of
tokens per second, its interval from a bootstrap over slices of the run. Errors: the difference of the shares with
Newcombe's interval (Newcombe 1998, method 10). All at 95 %. Requests that are alike, as those are that
wait in one queue, count for fewer (`order`); slices count as independent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tuna_nb.benchmarks.measures import Figures
from tuna_nb.benchmarks.order import Distribution, resampled

TIMES: Final = 2000
METHOD: Final = (
    f"95 % intervals: percentiles by a bootstrap of order statistics ({TIMES:,} draws, seeded), throughput by a"
    " bootstrap over slices of time, errors by Newcombe's method; requests that are alike count for fewer"
)
_LEVELS: Final = (0.5, 0.95, 0.99)
_LEAST_SLICES: Final = 8
_Z: Final = 1.959964
_TITLES: Final = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "latency": "latency_ms"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure in both runs. unit: `ms`, `tokens/s` or `share`.

    change: B against A, as a share of A, or for `share` the plain difference; low, high: its 95 % interval. None
    where it can't be told, and why says so. more_is_better: of the figure.
    """

    figure: str
    unit: str
    a: float | None
    b: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    more_is_better: bool = False

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def worse(self) -> bool | None:
        """Whether B is worse; None where no difference is seen."""
        return None if not self.seen or self.change is None else (self.change < 0) == self.more_is_better

    @property
    def said(self) -> str:
        """In a sentence: `B is 12 % slower at p95 TTFT, 95 % CI 8–16 %`."""
        if self.change is None or self.low is None or self.high is None:
            return f"{self.figure}: {self.why}"
        if not self.seen:
            unit = " points" if self.unit == "share" else " %"
            span = f"{100 * self.low:+.1f} to {100 * self.high:+.1f}{unit}"
            return f"no difference seen at {self.figure}, 95 % CI {span}"
        more, (near, far) = self.change > 0, sorted((abs(self.low), abs(self.high)))
        if self.unit == "share":
            word = "more" if more else "fewer"
            how = f"{100 * abs(self.change):.1f} points {word} errors"
            return f"B has {how}, 95 % CI {100 * near:.1f}–{100 * far:.1f} points"
        word = ("higher" if more else "lower") if self.more_is_better else ("slower" if more else "faster")
        change, near_said, far_said = (f"{100 * abs(x):.{int(far < 0.1)}f}" for x in (self.change, near, far))
        return f"B is {change} % {word} at {self.figure}, 95 % CI {near_said}–{far_said} %"


@dataclass(frozen=True, slots=True)
class Comparison:
    """a, b: the runs' names. warnings: why they may not be comparable."""

    a: str
    b: str
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...] = ()
    method: str = METHOD


def compare(
    a: Figures, b: Figures, names: tuple[str, str] = ("A", "B"), warnings: Sequence[str] = (), seed: int = 0
) -> Comparison:
    """Deterministic: the same two runs and seed give the same intervals."""
    rng = random.Random(seed)
    found = [
        _quantiles(f"p{100 * level:g} {title}", getattr(a, field), getattr(b, field), level, rng)
        for title, field in _TITLES.items()
        for level in _LEVELS
    ]
    found += [_throughput(a, b, rng), _errors(a, b)]
    return Comparison(*names, tuple(found), tuple(warnings))


def _quantiles(figure: str, a: Distribution, b: Distribution, level: float, rng: random.Random) -> Difference:
    one, two = a.at(level), b.at(level)
    if one is None or two is None:
        few = " and ".join(f"{name} ({d.count})" for name, d in (("A", a), ("B", b)) if d.at(level) is None)
        return Difference(figure, "ms", one, two, why=f"too few samples in {few}")
    if one <= 0:
        return Difference(figure, "ms", one, two, why="nothing to compare with: it is 0 in A")
    draws = (resampled(d.count, level, TIMES, rng, d.worth(level)) for d in (a, b))
    ratios = sorted(
        b.ordered[j - 1] / a.ordered[i - 1] - 1 for i, j in zip(*draws, strict=True) if a.ordered[i - 1] > 0
    )
    return Difference(figure, "ms", one, two, two / one - 1, *_middle(ratios))


def _throughput(a: Figures, b: Figures, rng: random.Random) -> Difference:
    figure, unit = "output tokens per second", "tokens/s"
    one, two = a.tokens_per_s, b.tokens_per_s
    if not one or not two:
        return Difference(figure, unit, one, two, why="an engine told no tokens", more_is_better=True)
    slices = _slices(a), _slices(b)
    if min(map(len, slices)) < _LEAST_SLICES:
        return Difference(figure, unit, one, two, why="a run is too short", more_is_better=True)
    means = ([_mean_of_draw(own, rng) for _ in range(TIMES)] for own in slices)
    ratios = sorted(y / x - 1 for x, y in zip(*means, strict=True) if x > 0)
    # About what was measured, where a slice's own mean is off by the run's ends.
    centre = (math.fsum(slices[1]) / len(slices[1])) / (math.fsum(slices[0]) / len(slices[0])) - 1
    change = two / one - 1
    low, high = (end + change - centre for end in _middle(ratios))
    return Difference(figure, unit, one, two, change, low, high, more_is_better=True)


def _slices(f: Figures) -> list[float]:
    """Tokens per second of equal spans of the run, without its first and its last, which are not full."""
    return [bucket.tokens_per_s for bucket in f.buckets[1:-1]]


def _mean_of_draw(samples: Sequence[float], rng: random.Random) -> float:
    return math.fsum(rng.choices(samples, k=len(samples))) / len(samples)


def _errors(a: Figures, b: Figures) -> Difference:
    figure, (one, two) = "error rate", (a.error_share, b.error_share)
    if one is None or two is None:
        return Difference(figure, "share", one, two, why="a run has no request that ended")
    ends = [(share, *_wilson(share, f.whole + f.failed)) for share, f in ((one, a), (two, b))]
    (p, p_low, p_high), (q, q_low, q_high) = ends
    low = (q - p) - math.hypot(q - q_low, p_high - p)
    high = (q - p) + math.hypot(q_high - q, p - p_low)
    return Difference(figure, "share", one, two, q - p, low, high)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    z2 = _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _middle(ordered: Sequence[float]) -> tuple[float, float]:
    """The ends of the middle 95 %."""
    cut = round(0.025 * len(ordered))
    return ordered[cut], ordered[len(ordered) - 1 - cut]
