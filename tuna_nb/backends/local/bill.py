"""The cloud's bill: who ran from when to when at what price, and what that comes to.

It is kept by the cloud from its own clock and is independent of everything that Tuna computes elsewhere, so that
Tuna's cost figures can be checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from tuna_nb.backends.base import Kind

GRANULARITY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class BilledInterval:
    """One container's or replica's paid life. Times are Unix seconds.

    seen_at: the last moment at which the cloud knows that it ran; ended_at: None while it runs.
    price_per_hour_usd: with all its GPUs. granularity_s: time is rounded up to a multiple of it. ready_at: when it
    began to serve, None where it never did.
    """

    replica: str
    resource: str
    uid: str
    kind: Kind
    gpu: str
    started_at: float
    seen_at: float
    ended_at: float | None
    price_per_hour_usd: float
    granularity_s: float = GRANULARITY_S
    ready_at: float | None = None

    @property
    def billed_s(self) -> float:
        """Seconds paid so far, rounded up."""
        until = self.seen_at if self.ended_at is None else self.ended_at
        # A microsecond off: two clock readings apart by 3 s exactly must not cost 4 for a float's last bit.
        steps = math.ceil(max(0.0, until - self.started_at - 1e-6) / self.granularity_s)
        return steps * self.granularity_s

    @property
    def usd(self) -> float:
        return self.billed_s / 3600 * self.price_per_hour_usd


@dataclass(frozen=True, slots=True)
class Bill:
    """All intervals asked for, oldest first, and their sum."""

    intervals: tuple[BilledInterval, ...]

    @property
    def usd(self) -> float:
        return math.fsum(i.usd for i in self.intervals)

    def usd_of(self, kind: Kind) -> float:
        return math.fsum(i.usd for i in self.intervals if i.kind is kind)


def to_json(intervals: Iterable[BilledInterval]) -> list[dict[str, Any]]:
    return [asdict(i) for i in intervals]


def from_json(shown: Iterable[Mapping[str, Any]]) -> Bill:
    return Bill(tuple(BilledInterval(**{**row, "kind": Kind(row["kind"])}) for row in shown))
