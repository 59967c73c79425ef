"""What SkyPilot's SDK does to a process, and what is left of it here: nothing.

It prints: what our threads print with it goes nowhere, and what others print is left alone. It sets
`sys.tracebacklimit` to 0 before it raises, and so would take the tracebacks of everybody's later errors away.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

THREADS: Final = "tuna-skyserve"
"""How the names of the threads begin in which SkyPilot is called."""

_lock = threading.Lock()
_calls = 0
_limit: int | None = None
"""`sys.tracebacklimit` as the user has it."""


class _Split:
    """Standard output for everybody but SkyPilot's threads."""

    def __init__(self, real: TextIO) -> None:
        self.real = real
        self._nowhere = io.StringIO()

    def __getattr__(self, name: str) -> Any:
        if not _is_ours():
            return getattr(self.real, name)
        self._nowhere.seek(0)
        self._nowhere.truncate()
        return getattr(self._nowhere, name)


@contextmanager
def quiet() -> Iterator[None]:
    """While a call lasts, in the thread that makes it."""
    global _calls, _limit  # noqa: PLW0603 - both are the process's
    with _lock:
        now = getattr(sys, "tracebacklimit", None)
        if _calls == 0 or now != 0:
            _limit = now  # while another call lasts, 0 is SkyPilot's
        # Others change standard output too, while a call of ours lasts.
        if not isinstance(sys.stdout, _Split):
            sys.stdout = _Split(sys.stdout)
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _limit is not None:
                sys.tracebacklimit = _limit
            elif hasattr(sys, "tracebacklimit"):
                del sys.tracebacklimit
            # Somebody who took standard output over meanwhile keeps it, and ours passes on what it gets.
            if _calls == 0 and isinstance(sys.stdout, _Split):
                sys.stdout = sys.stdout.real


def hush_logs() -> None:
    """SkyPilot's log lines of our calls are dropped; those of a user's own calls stay."""
    for handler in logging.getLogger("sky").handlers:
        if _not_ours not in handler.filters:
            handler.addFilter(_not_ours)


def _not_ours(record: logging.LogRecord) -> bool:
    return not (record.threadName or "").startswith(THREADS)


def _is_ours() -> bool:
    return threading.current_thread().name.startswith(THREADS)
