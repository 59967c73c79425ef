"""Reading what a provider's account says a resource has cost: amounts that are ours alone, and none guessed.

What can't be read is an error and not 0, for a bill that lacks a line looks like a cheap one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from tuna_nb.backends.base import Charge
from tuna_nb.errors import BackendError

HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0


def usd(told: Any) -> float:
    """An amount as a number or as decimal text. Raises ValueError for what is none, true and NaN included."""
    if isinstance(told, bool) or not isinstance(told, int | float | str):
        raise ValueError(f"{told!r} is no amount")
    amount = float(told)
    if not math.isfinite(amount):
        raise ValueError(f"{told!r} is no amount")
    return amount


def nameless(provider: str, name: str) -> BackendError:
    """Its account knows a resource by an id, which went with it."""
    return BackendError(
        f"{provider}: {name} is not there any more, and its account tells it by an id that is not known",
        "its own console has the figures",
    )


@contextmanager
def understood(provider: str, what: str) -> Iterator[None]:
    """Around the reading of an answer. Raises BackendError for one of another form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BackendError(
            f"{provider}: {what} has another form than expected ({type(exc).__name__}: {exc})",
            "its own console has the figures; a newer Tuna may read it",
        ) from exc


def within(charges: Iterable[Charge], since: float, until: float) -> list[Charge]:
    """Those that share some time with the span, in order of time."""
    there = (c for c in charges if c.started_at < until and c.ended_at > since)
    return sorted(there, key=lambda c: (c.started_at, c.what))


def down_to(at: float, step_s: float) -> datetime:
    """The beginning of the hour or day, UTC, that a time is in."""
    return datetime.fromtimestamp(at // step_s * step_s, UTC)


def up_to(at: float, step_s: float) -> datetime:
    """The end of the hour or day, UTC, that has begun."""
    return datetime.fromtimestamp(math.ceil(at / step_s) * step_s, UTC)


def lines(parts: Mapping[str, Any]) -> str:
    """The parts of an amount that cost something, in the account's words."""
    return ", ".join(f"{name} {usd(told):.4g}" for name, told in parts.items() if usd(told))
