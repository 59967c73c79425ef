"""When requests leave: seconds from the begin of a run, in order, the same for the same seed.

Arrivals, prompts and models each draw from a stream of their own, so that another prompt length does not move one
arrival. A trace's times come from `traces`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Final

from tuna_nb.benchmarks.load import traces
from tuna_nb.benchmarks.load.spec import Arrivals, LoadSpec
from tuna_nb.errors import RequestError

MOST_REQUESTS: Final = 10_000_000
_LEAST_CV, _MOST_CV = 0.01, 10.0
_MOST_CONCURRENCY: Final = 20_000


def stream_of(seed: int, name: str) -> random.Random:
    """The random numbers of one purpose."""
    return random.Random(f"{seed}/{name}")


def schedule(spec: LoadSpec) -> Iterator[float]:
    """When each request leaves. A closed loop has no schedule: a place's next request leaves as its last one ends.

    Raises RequestError, before the first one is asked for.
    """
    check(spec)
    if spec.arrivals.kind == "closed":
        raise RequestError("a closed loop has no schedule", "its requests leave as others end")
    times = _times(spec.arrivals, stream_of(spec.seed, "arrivals"))
    if spec.duration_s is not None:
        times = itertools.takewhile(lambda at: at < spec.duration_s, times)  # type: ignore[operator]
    return itertools.islice(times, MOST_REQUESTS if spec.requests is None else spec.requests)


def check(spec: LoadSpec) -> None:
    """Raises RequestError for a load that can't be."""
    kind = spec.arrivals.kind
    if spec.duration_s is not None and spec.requests is not None:
        raise RequestError("a duration and a number of requests were given", "give one of them")
    if spec.duration_s is None and spec.requests is None and kind != "trace":
        raise RequestError("the load has no end", "give a duration or a number of requests")
    if spec.duration_s is not None:
        _positive("duration", spec.duration_s)
    if spec.requests is not None and not 0 < spec.requests <= MOST_REQUESTS:
        raise RequestError(f"{spec.requests} requests", f"a load test has 1 to {MOST_REQUESTS:,} of them")
    _CHECKS.get(kind, _unknown)(spec.arrivals)
    expected = _most_rate(spec.arrivals) * (spec.duration_s or 0.0)
    if expected > MOST_REQUESTS:
        raise RequestError(
            f"this would be about {expected:,.0f} requests",
            f"a load test has at most {MOST_REQUESTS:,}: lower the rate or the duration",
        )


def _times(arrivals: Arrivals, rng: random.Random) -> Iterator[float]:
    """Without an end, a trace's excepted."""
    kind = arrivals.kind
    if kind == "constant":
        return (number / arrivals.rate for number in itertools.count())
    if kind == "poisson":
        return itertools.accumulate(iter(lambda: rng.expovariate(arrivals.rate), None))
    if kind == "gamma":
        shape = arrivals.cv**-2
        scale = 1.0 / (arrivals.rate * shape)
        return itertools.accumulate(iter(lambda: rng.gammavariate(shape, scale), None))
    if kind == "day":
        return _thinned(rng, _day_rate(arrivals), max(arrivals.rate, arrivals.low_rate))
    if kind == "trace":
        assert arrivals.trace is not None
        return (row.at_s / arrivals.speed for row in traces.load(arrivals.trace))
    return _pieces(rng, _spike(arrivals) if kind == "spike" else _gaps(arrivals))


def _day_rate(arrivals: Arrivals) -> Callable[[float], float]:
    """Lowest at the begin, highest in the middle of the period."""
    low, span, turn = arrivals.low_rate, arrivals.rate - arrivals.low_rate, 2 * math.pi / arrivals.period_s
    return lambda at: low + span * (1 - math.cos(turn * at)) / 2


def _thinned(rng: random.Random, rate_at: Callable[[float], float], most: float) -> Iterator[float]:
    """A Poisson process whose rate changes, by thinning one at its highest rate (Lewis and Shedler, 1979)."""
    at = 0.0
    while True:
        at += rng.expovariate(most)
        if rng.random() * most < rate_at(at):
            yield at


def _pieces(rng: random.Random, pieces: Iterator[tuple[float, float, float]]) -> Iterator[float]:
    """A Poisson process over (begin, end, rate): it has no memory, so each piece begins anew."""
    for begin, end, rate in pieces:
        if rate <= 0:
            continue
        at = begin + rng.expovariate(rate)
        while at < end:
            yield at
            at += rng.expovariate(rate)


def _spike(arrivals: Arrivals) -> Iterator[tuple[float, float, float]]:
    begin, end = arrivals.spike_at_s, arrivals.spike_at_s + arrivals.spike_s
    yield (0.0, begin, arrivals.low_rate)
    yield (begin, end, arrivals.rate)
    yield (end, math.inf, arrivals.low_rate)


def _gaps(arrivals: Arrivals) -> Iterator[tuple[float, float, float]]:
    for number in itertools.count():
        begin = number * (arrivals.on_s + arrivals.off_s)
        yield (begin, begin + arrivals.on_s, arrivals.rate)


def _most_rate(arrivals: Arrivals) -> float:
    """Requests a second over a long time, at most."""
    if arrivals.kind in ("trace", "closed"):
        return 0.0
    return max(arrivals.rate, arrivals.low_rate) if arrivals.kind in ("day", "spike") else arrivals.rate


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{name} {value:g}", f"the {name} is a number above 0")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise RequestError(f"{name} {value:g}", f"the {name} is 0 or more")


def _check_steady(arrivals: Arrivals) -> None:
    _positive("rate", arrivals.rate)


def _check_gamma(arrivals: Arrivals) -> None:
    _positive("rate", arrivals.rate)
    if not _LEAST_CV <= arrivals.cv <= _MOST_CV:
        raise RequestError(
            f"a coefficient of variation of {arrivals.cv:g}",
            f"it is between {_LEAST_CV} and {_MOST_CV:g}; 1 is Poisson, and for even gaps there is `constant`",
        )


def _check_day(arrivals: Arrivals) -> None:
    _positive("rate", arrivals.rate)
    _not_negative("low rate", arrivals.low_rate)
    _positive("period", arrivals.period_s)


def _check_spike(arrivals: Arrivals) -> None:
    _positive("rate", arrivals.rate)
    _not_negative("low rate", arrivals.low_rate)
    _not_negative("time of the spike", arrivals.spike_at_s)
    _positive("length of the spike", arrivals.spike_s)


def _check_gaps(arrivals: Arrivals) -> None:
    _positive("rate", arrivals.rate)
    _positive("time with traffic", arrivals.on_s)
    _not_negative("time without traffic", arrivals.off_s)


def _check_trace(arrivals: Arrivals) -> None:
    _positive("speed", arrivals.speed)
    if not arrivals.trace:
        raise RequestError("no trace was named", "give the path of a CSV or JSONL file")


def _check_closed(arrivals: Arrivals) -> None:
    if not 0 < arrivals.concurrency <= _MOST_CONCURRENCY:
        raise RequestError(f"a concurrency of {arrivals.concurrency}", f"it is between 1 and {_MOST_CONCURRENCY:,}")


def _unknown(arrivals: Arrivals) -> None:
    raise RequestError(f"no arrivals are called {arrivals.kind!r}", "known: " + ", ".join(_CHECKS))


_CHECKS: Final[dict[str, Callable[[Arrivals], None]]] = {
    "constant": _check_steady,
    "poisson": _check_steady,
    "gamma": _check_gamma,
    "day": _check_day,
    "spike": _check_spike,
    "gaps": _check_gaps,
    "trace": _check_trace,
    "closed": _check_closed,
}
