"""A circuit breaker for one backend, as a pure state machine: the time comes in with every call.

    CLOSED     requests go through. Opens after failures in a row, a share of failures in a window,
               or at once where nobody was there.
    OPEN       requests go elsewhere, for a time that doubles with every opening, up to a cap.
    HALF_OPEN  that time is over: one request is let through. Its answer closes the circuit, its
               failure opens it again; without news of it the next one is let through after a while.

It only ever gives advice: `policy` puts an open backend at the back of the order, never out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

FAILURES: Final = 3
"""In a row. One may be the request's own fault."""
SHARE: Final = 0.5
SHARE_OF_AT_LEAST: Final = 10
WINDOW_S: Final = 10.0
TRIAL_S: Final = 30.0
"""A trial without news, its client gone, say, makes room for the next after this."""


class Circuit(StrEnum):
    """See the module."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class Breaker:
    """The circuit of one backend. `now` is monotonic; `began` is when the attempt in question began:
    how an attempt ends that began before the circuit last changed says nothing about it any more.

    `open_until` is 0 while closed, else the time from which one request may pass.
    """

    __slots__ = (
        "_bad",
        "_changed_at",
        "_first_s",
        "_good",
        "_in_a_row",
        "_level",
        "_trial_at",
        "_window_at",
        "cap_s",
        "on_change",
        "open_until",
    )

    def __init__(self, cap_s: float = 60.0) -> None:
        self.cap_s = cap_s
        self.on_change: Callable[[Circuit], None] | None = None
        """Told of each opening and closing."""
        self.open_until = 0.0
        self._level = 0
        self._first_s = 0.0
        self._changed_at = 0.0
        self._trial_at: float | None = None
        self._in_a_row = 0
        self._window_at = 0.0
        self._good = 0
        self._bad = 0

    def __repr__(self) -> str:
        return f"<Breaker open_until={self.open_until:g} level={self._level}>"

    def circuit(self, now: float) -> Circuit:
        """Its state."""
        if not self.open_until:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self.open_until else Circuit.HALF_OPEN

    def begin(self, now: float) -> None:
        """A request goes to the backend: where the circuit is half-open, it is the trial."""
        if self.open_until and now >= self.open_until:
            self._trial_at = now
            self.open_until = now + TRIAL_S

    def answered(self, began: float, now: float) -> None:
        """An answer has begun: closed, but the next opening is as long as if it had not been."""
        if self.open_until and began >= self._changed_at:
            self._close(now)

    def proved(self, now: float, *, anew: bool = False) -> None:
        """A probe passed: as good as a trial, where one is due.

        `anew`: after it was gone. That may be another replica, to which the failures of the last one in a row
        mean nothing; or one of several behind an endpoint that still has the dead one: so not closed at once.
        """
        if self.circuit(now) is Circuit.HALF_OPEN:
            self._close(now)
        elif anew and self.open_until:
            self._level = 0
            self.open_until = min(self.open_until, self._changed_at + self._first_s)

    def succeeded(self, began: float, now: float) -> None:
        """A request was answered well."""
        if self.open_until:
            self.answered(began, now)
            if self.open_until:
                return
        self._level = 0
        self._in_a_row = 0
        self._good += 1

    def failed(self, began: float, now: float, open_s: float, *, at_once: bool) -> None:
        """A request failed; the first opening takes `open_s`. `at_once`: nobody was there."""
        if began < self._changed_at:
            return
        if self.open_until:
            if self._trial_at is not None and began >= self._trial_at:
                self._open(now, open_s)
            return
        if now - self._window_at > WINDOW_S:
            self._window_at, self._good, self._bad = now, 0, 0
        self._in_a_row += 1
        self._bad += 1
        results = self._good + self._bad
        often = results >= SHARE_OF_AT_LEAST and self._bad >= SHARE * results
        if at_once or often or self._in_a_row >= FAILURES:
            self._open(now, open_s)

    def _open(self, now: float, open_s: float) -> None:
        self._first_s = open_s
        self.open_until = now + min(open_s * 2.0 ** min(self._level, 30), max(self.cap_s, open_s))
        self._level += 1
        self._changed(now)

    def _close(self, now: float) -> None:
        self.open_until = 0.0
        self._changed(now)

    def _changed(self, now: float) -> None:
        self._changed_at = now
        self._trial_at = None
        self._in_a_row = self._good = self._bad = 0
        if self.on_change is not None:
            self.on_change(Circuit.OPEN if self.open_until else Circuit.CLOSED)
