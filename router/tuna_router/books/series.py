"""What `/metrics` is made of: histograms and counters that cost little where they are fed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

LATENCY_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds for whole answers, first bytes and waits."""
TOKEN_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds for the time between two tokens."""
OTHER: Final = "other"


class Histogram:
    """Counts of values up to each of `bounds`, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_between(self, begin: float, times: list[float]) -> None:
        """Count the time from each to the next, from `begin` on."""
        counts, bounds, last = self.counts, self.bounds, begin
        for at in times:
            counts[bisect_left(bounds, at - last)] += 1
            last = at
        self.total += last - begin

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus has it: `(upper bound, how many were at most that)`, the last one `+Inf`."""
        result, so_far = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            so_far += count
            result.append((bound, float(so_far)))
        return result

    def quantile(self, q: float, before: list[int] | None = None) -> float | None:
        """The bound below which a share `q` of the values lies, of those since `counts` was `before`.

        Linear within a bucket, as Prometheus' histogram_quantile; the last bound for what is above it;
        None without any.
        """
        counts = self.counts if before is None else [a - b for a, b in zip(self.counts, before, strict=True)]
        rank, so_far, low = q * sum(counts), 0, 0.0
        if not rank:
            return None
        for bound, count in zip(self.bounds, counts, strict=False):
            if so_far + count >= rank:
                return low + (bound - low) * (rank - so_far) / count
            so_far += count
            low = bound
        return low


class Labelled:
    """A counter by labels. Of labels that clients choose there are no end: above `most`, they are "other"."""

    __slots__ = ("_most", "values")

    def __init__(self, most: int = 500) -> None:
        self._most = most
        self.values: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], amount: float = 1) -> None:
        """Count `amount` more of these labels."""
        values = self.values
        if labels in values:
            values[labels] += amount
        elif len(values) < self._most:
            values[labels] = amount
        else:
            other = (OTHER,) * len(labels)
            values[other] = values.get(other, 0) + amount

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], float]]:
        return iter(self.values.items())
