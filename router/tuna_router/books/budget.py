"""A budget that holds beside the router: when so many dollars more were counted, serverless is used less.

What counts is the router's own ledger: serverless while a request runs there, spot while it is up, both at the
configured prices. That is a lower estimate: boots, idle serverless containers, what is not configured and what was
counted in the last seconds before a kill are not in it. So this is the second line of defence, for when nobody
else looks; the first is whoever reads the providers' own figures, and puts a new budget here each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuna_router.books.ledger import Ledger
from tuna_router.books.spend import amount
from tuna_router.settings import ServerlessUse, serverless_use

_LONGEST_NOTE = 500


@dataclass(frozen=True, slots=True)
class Limit:
    """Dollars that may still be counted, and what `serverless_use` is from then on. `set_at`: Unix seconds."""

    left_usd: float
    serverless_use: ServerlessUse
    note: str
    set_at: float


class Budget:
    """At most one limit at a time. `on_change` is called when what is in effect may have changed."""

    def __init__(self, ledger: Ledger, wall: Callable[[], float], on_change: Callable[[], None]) -> None:
        self._ledger = ledger
        self._wall = wall
        self._on_change = on_change
        self._before = (0.0, 0.0)
        self.limit: Limit | None = None
        self.exhausted_at: float | None = None

    def put(self, limit: Limit | None) -> None:
        """From now on this, instead of what was there; None: no limit."""
        self.limit = limit
        self.exhausted_at = None
        self._before = self._ledger.counted()
        self._on_change()

    def counted(self) -> tuple[float, float]:
        """Dollars since the limit was put, and seconds of unknown price."""
        usd, unpriced_s = self._ledger.counted()
        return usd - self._before[0], unpriced_s - self._before[1]

    def check(self) -> bool:
        """Look at the ledger. True when the limit was reached just now."""
        limit = self.limit
        if limit is None or self.exhausted_at is not None or self.counted()[0] < limit.left_usd:
            return False
        self.exhausted_at = self._wall()
        self._on_change()
        return True

    @property
    def in_effect(self) -> ServerlessUse:
        """What it demands now."""
        if self.limit is None or self.exhausted_at is None:
            return ServerlessUse.ALWAYS
        return self.limit.serverless_use

    def to_json(self) -> dict[str, Any] | None:
        """As `/router/budget` shows it."""
        limit = self.limit
        if limit is None:
            return None
        usd, unpriced_s = self.counted()
        return {
            "left_usd": limit.left_usd,
            "serverless_use": limit.serverless_use.value,
            "note": limit.note,
            "set_at": limit.set_at,
            "counted_usd": round(usd, 9),
            "unpriced_seconds": round(unpriced_s, 6),
            "exhausted_at": self.exhausted_at,
        }

    def learned(self) -> dict[str, Any]:
        """What survives a restart."""
        return self.to_json() or {}

    def recall(self, data: Mapping[str, Any]) -> None:
        """The inverse of `learned`. Raises KeyError, TypeError or ValueError for what is none of it."""
        if not data:
            return
        use = ServerlessUse(data["serverless_use"])
        limit = Limit(amount(data["left_usd"]), use, str(data["note"]), amount(data["set_at"]))
        counted, unpriced_s = amount(data["counted_usd"]), amount(data["unpriced_seconds"])
        exhausted_at = data["exhausted_at"]
        self.put(limit)
        self._before = (self._before[0] - counted, self._before[1] - unpriced_s)
        self.exhausted_at = None if exhausted_at is None else amount(exhausted_at)
        self._on_change()


def parse_limit(data: Mapping[str, Any], unix_s: float) -> Limit:
    """`{"left_usd", "serverless_use", "note"?}`. Raises ValueError or SettingsError for what is none."""
    if unknown := sorted(data.keys() - {"left_usd", "serverless_use", "note"}):
        raise ValueError(f"unknown key {unknown[0]!r}")
    left_usd, note = data.get("left_usd"), data.get("note", "")
    if isinstance(left_usd, bool) or not isinstance(left_usd, int | float) or not 0 <= left_usd < 1e9:
        raise ValueError(f"left_usd must be a number of dollars, not {left_usd!r}")
    if not isinstance(note, str) or len(note) > _LONGEST_NOTE:
        raise ValueError(f"note must be a text of at most {_LONGEST_NOTE} characters")
    use = serverless_use("serverless_use", data.get("serverless_use"))
    if use is ServerlessUse.ALWAYS:
        raise ValueError("serverless_use must be cover or never: a budget that changes nothing is none")
    return Limit(float(left_usd), use, note, unix_s)
