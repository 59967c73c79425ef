"""A timer that rings when it should: an event loop's own is a millisecond late or early."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1
_NO_WAIT: Final = os.O_NONBLOCK | os.O_CLOEXEC if sys.platform == "linux" else 0


class Alarm:
    """Calls `ring` at a time by `time.monotonic`, once for each `set`.

    By the kernel's own timer on Linux, timerfd_create(2), which Python has only from 3.13 on; elsewhere by the
    loop's, and then never early.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._libc: Any = None
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NO_WAIT)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._rang)

    def set(self, at: float) -> None:
        """Ring then; at once when that is over."""
        if self._fd < 0:
            self._at = at
            self._handle = self._loop.call_later(max(0.0, at - monotonic()), self._check)
            return
        seconds, nanoseconds = divmod(max(1, int(at * 1e9)), 1_000_000_000)
        # struct itimerspec: the interval, which is none, and the time.
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, struct.pack("@4l", 0, 0, seconds, nanoseconds), None)

    def close(self) -> None:
        """Ring no more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _rang(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set anew in between
        self._ring()

    def _check(self) -> None:
        if monotonic() < self._at:
            self._handle = self._loop.call_later(0.001, self._check)
        else:
            self._ring()
