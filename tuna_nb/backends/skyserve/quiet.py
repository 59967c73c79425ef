"""SkyPilot's SDK prints: what its threads here print goes nowhere, and what others print is left alone."""

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
    global _calls  # noqa: PLW0603 - standard output is the process's
    with _lock:
        # Others change standard output too, while a call of ours lasts.
        if not isinstance(sys.stdout, _Split):
            sys.stdout = _Split(sys.stdout)
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
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
