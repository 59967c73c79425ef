"""What a router tells of itself, second by second, as data: figures of a moment, and marks on the time axis.

`/router/events` is read tolerantly: a figure that a router doesn't tell is None, an event that is not known is no
mark, so that a newer router does not break an older board, nor an older one a newer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

WINDOW_S: Final = 300.0
"""What is kept of the moments, and drawn."""
SPLIT_S: Final = 10.0
"""Over which a router's snapshot counts who answered, and takes its quantiles."""
_MOST_MARKS: Final = 60
_MOST_MOMENTS: Final = 400


@dataclass(frozen=True, slots=True)
class Moment:
    """A snapshot. at: Unix seconds, the router's clock. split: requests that ended in the last 10 s, by backend.

    Latencies are seconds, over the same 10 s; None where nothing was measured. states: by backend. running:
    requests under way, by backend; empty where the router doesn't tell. totals: its counters since it began.
    """

    at: float
    requests_per_s: float | None = None
    split: Mapping[str, int] = field(default_factory=dict)
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    inter_token_p50_s: float | None = None
    inter_token_p95_s: float | None = None
    tokens_per_s: float | None = None
    in_flight: int | None = None
    waiting: int | None = None
    usd_per_hour: float | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something happened. kind: preemption, state, breaker, limit, backend or gap; said: in words, for a person."""

    at: float
    kind: str
    backend: str
    said: str


def read_moment(data: Mapping[str, Any]) -> Moment:
    """A `snapshot` event. Raises ValueError for what has no time."""
    at = _number(data.get("time"))
    if at is None:
        raise ValueError("a snapshot without a time")
    ttft, between = _table(data.get("ttft_s")), _table(data.get("inter_token_s"))
    backends = {name: _table(one) for name, one in _table(data.get("backends")).items()}
    return Moment(
        at,
        requests_per_s=_number(data.get("requests_per_s")),
        split=_counts(_table(data.get("split"))),
        ttft_p50_s=_number(ttft.get("p50")),
        ttft_p95_s=_number(ttft.get("p95")),
        inter_token_p50_s=_number(between.get("p50")),
        inter_token_p95_s=_number(between.get("p95")),
        tokens_per_s=_number(data.get("tokens_per_s")),
        in_flight=_count(data.get("in_flight")),
        waiting=_count(data.get("waiting")),
        usd_per_hour=_number(data.get("usd_per_hour")),
        states={str(name): str(state) for name, state in _table(data.get("states")).items()},
        running=_counts({name: one.get("running") for name, one in backends.items()}),
        totals=_counts(_table(data.get("totals"))),
    )


def read_mark(kind: str, data: Mapping[str, Any]) -> Mark | None:
    """An event that a person wants to see; None for any other."""
    at = _number(data.get("time"))
    backend = str(data.get("backend") or "")
    if kind == "dropped":
        return None if at is None else Mark(at, "gap", "", f"{data.get('count')} events were lost")
    if at is None:
        return None
    reason = f" ({data['reason']})" if data.get("reason") else ""
    if kind == "preemption":
        return Mark(at, kind, backend, f"{backend} was taken away{reason}")
    if kind == "state":
        return Mark(at, kind, backend, f"{backend}: {data.get('from')} → {data.get('to')}{reason}")
    if kind == "breaker":
        circuit = str(data.get("circuit")).lower()
        if circuit == "open":
            return Mark(at, kind, backend, f"{backend} is left alone after failures{reason}")
        return Mark(at, kind, backend, f"{backend} {'works again' if circuit == 'closed' else 'is tried again'}")
    if kind == "backend":
        return Mark(at, kind, backend, f"{backend} was {data.get('change')}")
    if kind == "limit":
        return Mark(at, kind, "", f"a limit refuses requests{reason}")
    return None


class Recent:
    """The last minutes. Moments older than `WINDOW_S` are forgotten as new ones come; marks are kept by number."""

    def __init__(self) -> None:
        self._moments: deque[Moment] = deque(maxlen=_MOST_MOMENTS)
        self._marks: deque[Mark] = deque(maxlen=_MOST_MARKS)

    def add(self, moment: Moment) -> None:
        """The next one. One that is not later than the last begins anew: the router's clock was set back."""
        if self._moments and moment.at <= self._moments[-1].at:
            self._moments.clear()
        self._moments.append(moment)
        while self._moments[0].at < moment.at - WINDOW_S:
            self._moments.popleft()

    def mark(self, mark: Mark) -> None:
        """Once each: a router that is asked again tells what was told already."""
        if mark not in self._marks:
            self._marks.append(mark)

    @property
    def moments(self) -> tuple[Moment, ...]:
        return tuple(self._moments)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """In order of time."""
        return tuple(sorted(self._marks, key=lambda mark: mark.at))


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _counts(table: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(value) for name, value in table.items() if _number(value) is not None}
