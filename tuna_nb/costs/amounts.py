"""What a replica's time up has cost by any moment: the arithmetic under every figure of the bill.

C(t) is what has been billed by the time t. A span from a to b costs C(b) - C(a), so that spans add up however they
are cut, nothing is ever negative, and what the past has cost does not depend on when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tuna_nb.catalog.offers import Billing
from tuna_nb.records import IntervalRecord, SpentRecord

QUARTER_S: Final = 900
"""Ended intervals are summed by quarters of an hour, of which every time zone's days are made."""


@dataclass(frozen=True, slots=True)
class Amount:
    """usd: of known prices. seconds: billed. boot_usd: of `usd`, before the replica could serve. unknown_s: billed
    seconds without a known price. error_usd: so much `usd` may be off, either way. starts: replicas that began."""

    usd: float = 0.0
    seconds: float = 0.0
    boot_usd: float = 0.0
    unknown_s: float = 0.0
    error_usd: float = 0.0
    starts: int = 0

    @classmethod
    def of(cls, sums: SpentRecord) -> Amount:
        return cls(sums.usd, sums.seconds, sums.boot_usd, sums.unknown_s, sums.error_usd, sums.starts)

    # Field by field: a month has thousands of them, and each generic way is ten times slower.
    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.usd + other.usd,
            self.seconds + other.seconds,
            self.boot_usd + other.boot_usd,
            self.unknown_s + other.unknown_s,
            self.error_usd + other.error_usd,
            self.starts + other.starts,
        )

    def __neg__(self) -> Amount:
        return Amount(-self.usd, -self.seconds, -self.boot_usd, -self.unknown_s, -self.error_usd, -self.starts)

    def __sub__(self, other: Amount) -> Amount:
        return self + -other

    def sums(self, resource_id: int, quarter: int) -> SpentRecord:
        return SpentRecord(
            resource_id,
            quarter,
            self.usd,
            self.seconds,
            self.boot_usd,
            self.unknown_s,
            self.error_usd,
            self.starts,
        )


NOTHING: Final = Amount()


def billed(interval: IntervalRecord, until: float) -> Amount:
    """C(until): what the interval has cost by then, and what the provider's rounding adds to it."""
    begun = interval.started_at
    if until <= begun:
        return NOTHING
    ended = interval.ended_at
    over = ended is not None and until >= ended
    stop = max(begun, ended) if over and ended is not None else until
    seconds = Billing(interval.granularity_s, interval.minimum_s).billed_s(stop - begun)
    usd, unknown_s = _priced(interval, begun + seconds)
    boot_usd = 0.0
    if interval.boot_told:
        ready = math.inf if interval.ready_at is None else max(begun, interval.ready_at)
        boot_usd = _priced(interval, min(begun + seconds, ready))[0]
    off_s = interval.error_s if over or ended is None else 0.0
    if ended is None:
        # What nobody has looked at lately may have ended since.
        off_s = min(seconds, off_s + max(0.0, until - max(begun, interval.seen_at)))
    return Amount(usd, seconds, boot_usd, unknown_s, off_s * _rate(interval, stop), 1)


def rate(interval: IntervalRecord, now: float) -> float | None:
    """USD per hour that it costs now, 0 where it has ended; None where its price is unknown."""
    return 0.0 if interval.ended_at is not None else _price(interval, now)


def quarters(interval: IntervalRecord) -> Iterator[SpentRecord]:
    """An ended interval's cost by quarters of an hour: what it cost in each, together all that it cost."""
    assert interval.ended_at is not None
    first = math.floor(interval.started_at / QUARTER_S) * QUARTER_S
    before = NOTHING
    at = first
    while True:
        by_then = billed(interval, at + QUARTER_S)
        yield (by_then - before).sums(interval.resource_id, at)
        before, at = by_then, at + QUARTER_S
        if at > interval.ended_at:
            return


def _priced(interval: IntervalRecord, stop: float) -> tuple[float, float]:
    """(USD, seconds of unknown price) of the time from its start to `stop`."""
    begun, usd, unknown_s = interval.started_at, 0.0, 0.0
    if stop <= begun:
        return usd, unknown_s
    if len(interval.prices) == 1:
        price = interval.prices[0][1]
        return (0.0, stop - begun) if price is None else ((stop - begun) / 3600 * price, 0.0)
    ends = [at for at, _ in interval.prices[1:]] + [math.inf]
    for number, (at, price) in enumerate(interval.prices):
        # The first price holds from the start on, whenever it was learned.
        since = begun if number == 0 else max(begun, at)
        passed = min(stop, ends[number]) - since
        if passed <= 0:
            continue
        if price is None:
            unknown_s += passed
        else:
            usd += passed / 3600 * price
    return usd, unknown_s


def _price(interval: IntervalRecord, at: float) -> float | None:
    held = [price for since, price in interval.prices if since <= at]
    return held[-1] if held else interval.prices[0][1]


def _rate(interval: IntervalRecord, at: float) -> float:
    """USD per second at that time; 0 where it is unknown."""
    return (_price(interval, at) or 0.0) / 3600
