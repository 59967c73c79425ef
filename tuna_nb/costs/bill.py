"""What a deployment has cost and costs now, from billed time: pure arithmetic over what providers report.

Money is counted from the seconds that a replica was up, boot and idle included, because that is what is
billed. Counting request seconds instead is off by up to seven times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BilledTime:
    """A replica's billed interval. role: serverless or spot; router for the VM that one has to itself.

    Times are Unix seconds; ended_at None: it runs.
    """

    role: str
    provider: str
    replica_id: str
    started_at: float
    ended_at: float | None
    price_per_hour_usd: float
    granularity_s: float = 1.0

    def seconds(self, now: float) -> float:
        """Billed seconds: the interval rounded up to the granularity."""
        up = max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)
        return math.ceil(round(up / self.granularity_s, 6)) * self.granularity_s

    def usd(self, now: float) -> float:
        return self.seconds(now) / 3600 * self.price_per_hour_usd


@dataclass(frozen=True, slots=True)
class Side:
    """One backend's part of the bill. requests: answered by it; None where no router counts them."""

    role: str
    provider: str
    replicas: int
    running: int
    hours: float
    usd: float
    rate_usd_per_hour: float
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    """basis: where the figures come from, for the reader. Amounts in US dollars."""

    name: str
    sides: tuple[Side, ...]
    usd: float
    rate_usd_per_hour: float
    requests: int | None
    tokens: int | None
    """Prompt and completion tokens that the engines reported; None where no router counts them."""
    basis: str

    @property
    def usd_per_1000_requests(self) -> float | None:
        return None if not self.requests else self.usd / self.requests * 1000

    @property
    def usd_per_million_tokens(self) -> float | None:
        return None if not self.tokens else self.usd / self.tokens * 1e6


@dataclass(frozen=True, slots=True)
class Traffic:
    """The router's counters: requests answered, in all and by role, and tokens in and out."""

    requests: int
    by_role: tuple[tuple[str, int], ...]
    tokens: int


def make(name: str, billed: Iterable[BilledTime], traffic: Traffic | None, now: float) -> Bill:
    """Add it up. now: Unix seconds, the end of what still runs."""
    by_role: dict[tuple[str, str], list[BilledTime]] = {}
    for interval in billed:
        by_role.setdefault((interval.role, interval.provider), []).append(interval)
    served = dict(traffic.by_role) if traffic else {}
    sides = tuple(
        Side(
            role,
            provider,
            replicas=len({i.replica_id for i in intervals}),
            running=sum(i.ended_at is None for i in intervals),
            hours=sum(i.seconds(now) for i in intervals) / 3600,
            usd=sum(i.usd(now) for i in intervals),
            rate_usd_per_hour=sum(i.price_per_hour_usd for i in intervals if i.ended_at is None),
            requests=served.get(role, 0) if traffic else None,
        )
        for (role, provider), intervals in sorted(by_role.items())
    )
    return Bill(
        name,
        sides,
        usd=sum(s.usd for s in sides),
        rate_usd_per_hour=sum(s.rate_usd_per_hour for s in sides),
        requests=traffic.requests if traffic else None,
        tokens=traffic.tokens if traffic else None,
        basis="billed time as the providers report it, boot and idle included",
    )
