"""Dollars: what each request's share of its backend's price is. Pure; clocks come in.

At any moment a backend's price is shared evenly by the requests that run on it. For each backend an
integral of price / in-flight is kept, so that a request costs the integral's growth between its begin
and its end: O(1) at both, and the shares of all requests add up to price x time, exactly. A billed
backend on which nobody runs costs idle dollars, counted apart. An unknown price is unknown: such
time is counted in seconds, never as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Running:
    """One request on one backend; `close` it once."""

    __slots__ = ("_cost", "_unpriced_from", "_usd_from")

    def __init__(self, cost: BackendCost) -> None:
        self._cost: BackendCost | None = cost
        self._usd_from = cost.usd_each
        self._unpriced_from = cost.unpriced_s_each

    def close(self, now: float) -> tuple[float, float]:
        """It ended: its dollars, and its seconds of unknown price. The first call counts."""
        cost = self._cost
        if cost is None:
            return 0.0, 0.0
        self._cost = None
        cost.advance(now)
        cost.in_flight -= 1
        usd = cost.usd_each - self._usd_from
        unpriced_s = cost.unpriced_s_each - self._unpriced_from
        cost.requests_usd += usd
        cost.unpriced_s += unpriced_s
        return usd, unpriced_s


class BackendCost:
    """The cost of one backend. All `now` are seconds on one clock that never goes back.

    `usd_each` and `unpriced_s_each` are the integrals: what one request would have cost that ran all
    the time. `requests_usd` is the sum over ended requests, `idle_usd` what it cost while billed
    without a request; the `*_s` are seconds of unknown price in the same two ways. `counted_usd` is all that it
    cost in this life of the router, running requests included; `counted_unpriced_s` the seconds of unknown price.
    """

    __slots__ = (
        "_at",
        "_per_s",
        "billed",
        "counted_unpriced_s",
        "counted_usd",
        "idle_s",
        "idle_unpriced_s",
        "idle_usd",
        "in_flight",
        "requests_usd",
        "unpriced_s",
        "unpriced_s_each",
        "usd_each",
    )

    def __init__(self, price_per_hour_usd: float | None, now: float) -> None:
        self._per_s = None if price_per_hour_usd is None else price_per_hour_usd / 3600
        self._at = now
        self.in_flight = 0
        self.billed = False
        self.usd_each = 0.0
        self.unpriced_s_each = 0.0
        self.requests_usd = 0.0
        self.unpriced_s = 0.0
        self.idle_usd = 0.0
        self.idle_s = 0.0
        self.idle_unpriced_s = 0.0
        self.counted_usd = 0.0
        self.counted_unpriced_s = 0.0

    def begin(self, now: float) -> Running:
        """A request begins here."""
        self.advance(now)
        self.in_flight += 1
        return Running(self)

    def set_price(self, price_per_hour_usd: float | None, now: float) -> None:
        """From now on it costs this much; None: unknown."""
        self.advance(now)
        self._per_s = None if price_per_hour_usd is None else price_per_hour_usd / 3600

    def set_billed(self, billed: bool, now: float) -> None:
        """From now on it costs, or does not cost, while nobody runs on it: a spot GPU while it is up."""
        self.advance(now)
        self.billed = billed

    def advance(self, now: float) -> None:
        """Count the time up to now."""
        passed = now - self._at
        if passed <= 0:
            return
        self._at = now
        running, per_s = self.in_flight, self._per_s
        if not running and not self.billed:
            return
        if per_s is None:
            self.counted_unpriced_s += passed
        else:
            self.counted_usd += passed * per_s
        if running:
            if per_s is None:
                self.unpriced_s_each += passed / running
            else:
                self.usd_each += passed * per_s / running
        else:
            self.idle_s += passed
            if per_s is None:
                self.idle_unpriced_s += passed
            else:
                self.idle_usd += passed * per_s

    def per_hour_usd(self) -> float | None:
        """What it costs now, an hour: nothing while it is neither used nor billed; None when unknown."""
        if not self.in_flight and not self.billed:
            return 0.0
        return None if self._per_s is None else self._per_s * 3600

    def learned(self) -> dict[str, float]:
        """What survives a restart."""
        return {name: getattr(self, name) for name in _SUMS}

    def recall(self, data: Mapping[str, Any]) -> None:
        """The inverse of `learned`: added to what is there."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + amount(data[name]))


_SUMS = ("requests_usd", "unpriced_s", "idle_usd", "idle_s", "idle_unpriced_s")


class Spent:
    """What one key has spent: in all, and in the current window of `window_s` seconds of unix time."""

    __slots__ = ("_in_window_usd", "_window", "total_usd", "unpriced_s", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.total_usd = 0.0
        self.unpriced_s = 0.0
        self._window = 0.0
        self._in_window_usd = 0.0

    def add(self, usd: float, unix_s: float) -> None:
        """Count one request's share; its seconds of unknown price are added to `unpriced_s`."""
        self.total_usd += usd
        self._in_window_usd = self.in_window(unix_s) + usd

    def in_window(self, unix_s: float) -> float:
        """Dollars in the window that `unix_s` is in."""
        begins = self._begin(unix_s)
        if begins != self._window:
            self._window = begins
            self._in_window_usd = 0.0
        return self._in_window_usd

    def window_ends_in(self, unix_s: float) -> float:
        """Seconds to the next window."""
        return self._begin(unix_s) + self.window_s - unix_s

    def learned(self) -> dict[str, float]:
        """What survives a restart."""
        return {
            "total_usd": self.total_usd,
            "unpriced_s": self.unpriced_s,
            "window": self._window,
            "window_usd": self._in_window_usd,
        }

    def recall(self, data: Mapping[str, Any]) -> None:
        """The inverse of `learned`. Raises KeyError, TypeError or ValueError, and then changes nothing."""
        total, unpriced = amount(data["total_usd"]), amount(data["unpriced_s"])
        window, usd = amount(data["window"]), amount(data["window_usd"])
        self.total_usd += total
        self.unpriced_s += unpriced
        self._window, self._in_window_usd = window, usd

    def _begin(self, unix_s: float) -> float:
        return math.floor(unix_s / self.window_s) * self.window_s


def amount(value: object) -> float:
    """A number that is kept. Raises ValueError for what is none, or below 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no amount")
    return float(value)
