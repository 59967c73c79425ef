"""Deadlines of thousands of connections on one loop timer.

A deadline that moves with every piece of a stream costs an assignment, not a new timer: a `Timer` lies
in the bucket of its earliest deadline, and is put off to a later bucket when that one comes up. Coarse:
a timer fires at its deadline or up to `tick_s` after it, never before.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.05


class Timer:
    """One deadline that can be moved and cleared at will; `call` runs once each time that it passes."""

    __slots__ = ("_bucket", "_call", "_wheel", "at", "now")

    def __init__(self, wheel: Wheel, call: Callable[[], None]) -> None:
        self._wheel = wheel
        self._call = call
        self._bucket: float = math.inf
        self.now = wheel.clock
        """The time on the wheel's clock."""
        self.at = math.inf
        """The deadline on the wheel's clock; infinite when there is none."""

    def set(self, seconds: float) -> None:
        """Fire in `seconds` from now, instead of whatever was set."""
        self.set_at(self._wheel.clock() + seconds)

    def set_at(self, at: float) -> None:
        """The same with a time on the wheel's clock."""
        self.at = at
        if at < self._bucket * self._wheel.tick_s:
            self._bucket = self._wheel.put(self)

    def clear(self) -> None:
        """Fire no more, until it is set again."""
        self.at = math.inf

    def come_up(self, bucket: float, now: float) -> None:
        """Called by the wheel when a bucket in which it lies comes up."""
        if bucket != self._bucket:
            return  # it was put into an earlier one since
        self._bucket = math.inf
        if self.at <= now:
            self.at = math.inf
            self._call()
        elif self.at != math.inf:
            self._bucket = self._wheel.put(self)


class Wheel:
    """All timers of one router."""

    def __init__(self, *, tick_s: float = TICK_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.tick_s = tick_s
        self.clock = clock
        self._buckets: dict[int, list[Timer]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._next: float = math.inf

    def __repr__(self) -> str:
        return f"<Wheel {sum(map(len, self._buckets.values()))} timers in {len(self._buckets)} buckets>"

    def timer(self, call: Callable[[], None]) -> Timer:
        """A timer that is not set yet."""
        return Timer(self, call)

    def put(self, timer: Timer) -> int:
        """Note a timer for its deadline; returns the number of its bucket. Called by timers only."""
        number = math.ceil(timer.at / self.tick_s)
        bucket = self._buckets.get(number)
        if bucket is None:
            self._buckets[number] = [timer]
            if number < self._next:
                self._plan(number)
        else:
            bucket.append(timer)
        return number

    def turn(self) -> None:
        """Fire everything that is due. Called by the loop; a test may call it with a clock of its own."""
        now = self.clock()
        self._handle = None
        self._next = math.inf
        due = math.floor(now / self.tick_s)
        for number in sorted(n for n in self._buckets if n <= due):
            for timer in self._buckets.pop(number):
                timer.come_up(number, now)
        if self._buckets:
            earliest = min(self._buckets)
            if earliest < self._next:
                self._plan(earliest)

    def stop(self) -> None:
        """Forget every timer."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._next = math.inf
        self._buckets.clear()

    def _plan(self, number: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next = number
        delay = max(number * self.tick_s - self.clock(), 0.0)
        self._handle = asyncio.get_running_loop().call_later(delay, self.turn)
