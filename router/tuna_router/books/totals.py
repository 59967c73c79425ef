"""The counters of all the lives of a router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tuna_router.books.meter import Meter


class Totals:
    """The counters of all the lives of a router: those of earlier ones and of the meter of this one."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._before = dict.fromkeys(_COUNTED, 0)

    def learned(self) -> dict[str, int]:
        """Ended requests and their tokens."""
        return {name: self._before[name] + getattr(self._meter.requests, name) for name in _COUNTED}

    def recall(self, data: Mapping[str, Any]) -> None:
        """See Learner."""
        self._before = {name: int(data[name]) for name in _COUNTED}


_COUNTED: Final = (
    "finished",
    "cancelled",
    "failed",
    "prompt_tokens",
    "completion_tokens",
    "completion_tokens_estimated",
)
