"""A token bucket: so many a minute, a minute's worth at once. Pure; the clock comes in."""

from __future__ import annotations

import math


class Bucket:
    """`per_minute` is refilled evenly and is the most that it holds. `now` is seconds on any one clock.

    What is only known afterwards (the tokens of an answer) is taken afterwards: the level may fall below
    zero, and then nothing is granted until it is refilled.
    """

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """How much is in it; below zero when more was taken than there was."""
        passed = now - self._at
        if passed > 0:
            self._level = min(self._level + passed * self.per_minute / 60, float(self.per_minute))
            self._at = now
        return self._level

    def ready_in(self, now: float) -> float:
        """Seconds until one can be taken; 0.0 when it can now."""
        missing = 1 - self.level(now)
        return missing * 60 / self.per_minute if missing > 1e-9 else 0.0

    def full_in(self, now: float) -> float:
        """Seconds until it is full."""
        return (self.per_minute - self.level(now)) * 60 / self.per_minute

    def take(self, now: float, count: float) -> None:
        """Take `count`, whether it is there or not."""
        self._level = self.level(now) - count

    def resize(self, per_minute: int, now: float) -> None:
        """Take a new limit over; what was used stays used."""
        used = self.per_minute - self.level(now)
        self.per_minute = per_minute
        self._level = per_minute - used

    def lines(self, what: str, now: float) -> bytes:
        """OpenAI's three `x-ratelimit-*` headers, as they are on the wire; `what`: requests or tokens."""
        left = max(math.floor(self.level(now) + 1e-9), 0)
        return (
            f"x-ratelimit-limit-{what}: {self.per_minute}\r\nx-ratelimit-remaining-{what}: {left}\r\n"
            f"x-ratelimit-reset-{what}: {span(self.full_in(now))}\r\n"
        ).encode()


def span(seconds: float) -> str:
    """A duration in OpenAI's form: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000 - 1e-6)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
