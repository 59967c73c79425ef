"""The traffic of a deployment as its router counted it: what a bill is divided by, and what other policies are
replayed with.

`GET /router/load` tells it minute by minute, in seconds: when requests began and ended, and what they used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Used:
    """What ended requests used. request_s: their seconds added up, from when they were first tried to their end.

    busy_s: seconds with at least one of them running. Tokens: as the engines told, else counted in pieces.
    """

    requests: int = 0
    request_s: float = 0.0
    busy_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.requests + other.requests,
            self.request_s + other.request_s,
            self.busy_s + other.busy_s,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


NOTHING: Final = Used()


@dataclass(frozen=True, slots=True)
class Minute:
    """at: Unix seconds, a multiple of 60. in_flight: requests that ran as it began.

    arrivals, ends: (second of the minute, requests that began or ended in it), only seconds with any. backends,
    models, keys: what the requests that ended in it used, by name. whole: false for the minute that still runs.
    """

    at: int
    in_flight: int = 0
    arrivals: tuple[tuple[int, int], ...] = ()
    ends: tuple[tuple[int, int], ...] = ()
    backends: Mapping[str, Used] = field(default_factory=dict)
    models: Mapping[str, Used] = field(default_factory=dict)
    keys: Mapping[str, Used] = field(default_factory=dict)
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """lives: (from, until) of each time that the router ran, Unix seconds, the last one up to now: outside of them
    nothing is known. minutes: oldest first; one without a request that began, ran or ended is left out."""

    lives: tuple[tuple[float, float], ...] = ()
    minutes: tuple[Minute, ...] = ()


def from_json(told: Mapping[str, Any]) -> Load:
    """The answer of `GET /router/load`. Raises KeyError, TypeError or ValueError for what is none."""
    return Load(
        tuple((float(begun), float(until)) for begun, until in told["lives"]),
        tuple(minute_from_json(one) for one in told["minutes"]),
    )


def minute_from_json(told: Mapping[str, Any]) -> Minute:
    """Raises KeyError, TypeError or ValueError for what is none."""
    return Minute(
        at=int(told["at"]),
        in_flight=int(told["in_flight"]),
        arrivals=_counts(told["arrivals"]),
        ends=_counts(told["ends"]),
        backends=_used(told["backends"]),
        models=_used(told["models"]),
        keys=_used(told["keys"]),
        whole=bool(told["whole"]),
    )


@dataclass(frozen=True, slots=True)
class Shares:
    """Who used what, by name, in some span of time."""

    backends: dict[str, Used] = field(default_factory=dict)
    models: dict[str, Used] = field(default_factory=dict)
    keys: dict[str, Used] = field(default_factory=dict)

    @property
    def total(self) -> Used:
        """Each request ended on one backend, so these are all."""
        return sum(self.backends.values(), NOTHING)

    def add(self, other: Shares) -> None:
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            for name, used in theirs.items():
                mine[name] = mine.get(name, NOTHING) + used

    def to_json(self) -> dict[str, Any]:
        names = ("backends", "models", "keys")
        return {n: {k: asdict(u) for k, u in part.items()} for n, part in zip(names, self._parts, strict=True)}

    @property
    def _parts(self) -> tuple[dict[str, Used], ...]:
        return self.backends, self.models, self.keys


def shares_from_json(told: Mapping[str, Any]) -> Shares:
    """Of a minute as its router told it, or of a sum. Raises KeyError, TypeError or ValueError."""
    return Shares(_used(told["backends"]), _used(told["models"]), _used(told["keys"]))


def sum_up(minutes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Minutes as told, to the sum of them as it is kept."""
    total = Shares()
    for minute in minutes:
        total.add(shares_from_json(minute))
    return total.to_json()


def _counts(told: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    return tuple((int(second), int(count)) for second, count in told)


def _used(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Used]:
    return {
        str(name): Used(
            int(one["requests"]),
            float(one["request_s"]),
            float(one["busy_s"]),
            int(one["prompt_tokens"]),
            int(one["completion_tokens"]),
        )
        for name, one in told.items()
    }
