"""Asking a provider again: what may pass by itself, how long to wait for it, and what must not be asked twice."""

from __future__ import annotations

import asyncio
import email.utils
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tuna_nb.backends.lifecycle import unbroken
from tuna_nb.errors import TunaError, UnclearError

T = TypeVar("T")

MOST_TRIES: Final = 5
LONGEST_WAIT_S: Final = 60.0
"""All waits of one call together; a provider that asks for more is told to the user instead."""
_FIRST_WAIT_S: Final = 0.5
_PASSING: Final = (408, 425, 429)
_NOT_ACTED: Final = (429, 503)


class Setback(Exception):
    """A call that came to nothing: `error` says so to the user.

    passes: it may do better a moment later. acted: the provider may have done it all the same. wait_s: seconds that
    the provider asks to wait, None where it does not say.
    """

    def __init__(self, error: TunaError, *, passes: bool, acted: bool = True, wait_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.passes = passes
        self.acted = acted
        self.wait_s = wait_s

    @classmethod
    def of_status(cls, error: TunaError, status: int, wait_s: float | None = None) -> Setback:
        """By an answer's HTTP status."""
        passes = status in _PASSING or status >= 500
        return cls(error, passes=passes, acted=status not in _NOT_ACTED, wait_s=wait_s)


async def patiently(attempt: Callable[[], Awaitable[T]], *, creates: bool, pace: float) -> T:
    """Attempt it, and again after each setback that may pass: when the provider says, else after a jittered
    back-off, five times and a minute at the most. pace: of the back-off.

    creates: it is not attempted again where the provider may have acted, and even a cancelled attempt is awaited to
    its end. Raises the setback's error; UnclearError for a create of which nobody knows what came of it.
    """
    waited = 0.0
    for number in range(MOST_TRIES):
        asked = attempt()
        try:
            return await (unbroken(asked) if creates else asked)
        except Setback as setback:
            error, wait_s = setback.error, setback.wait_s
            if not setback.passes:
                raise error from setback
            if creates and setback.acted:
                raise UnclearError(error.message, error.hint) from setback
            last = setback
        if wait_s is None:
            wait_s = _FIRST_WAIT_S * pace * 2**number * random.uniform(0.5, 1.5)
        waited += wait_s
        if number + 1 == MOST_TRIES or waited > LONGEST_WAIT_S:
            raise error from last
        await asyncio.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, given as seconds or as a date; None without one."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None
