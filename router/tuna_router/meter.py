"""What happened: exact counters, in one place, without I/O.

Every client request and every attempt at a backend is a `Mark` that is opened once and closed once,
so `started = finished + cancelled + failed + running` holds at every moment, on both levels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from tuna_router.settings import Kind

LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
WINDOW_S: Final = 300
_BUCKET_S: Final = 5
_SAMPLES: Final = 1024


class Outcome(StrEnum):
    """How a request or an attempt ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Durations:
    """A histogram for Prometheus, and the last samples for percentiles."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.sum_s = 0.0
        self.count = 0
        self._last: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds
        self.count += 1
        self._last.append(seconds)

    def percentiles(self) -> dict[str, float | None]:
        """p50, p90 and p99 of the last 1,024 samples, in seconds (nearest rank); None without any."""
        ordered = sorted(self._last)
        return {f"p{q}": ordered[-(-len(ordered) * q // 100) - 1] if ordered else None for q in (50, 90, 99)}


@dataclass(slots=True)
class Tally:
    """The counters of one level: all client requests, or one backend's attempts (then with its `kind`)."""

    kind: Kind | None = None
    started: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    running: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion_tokens_estimated: int = 0
    request_s: float = 0.0
    busy_s: float = 0.0
    busy_since: float = 0.0
    ttft: Durations = field(default_factory=Durations)
    latency: Durations = field(default_factory=Durations)

    def busy_seconds(self, now: float) -> float:
        """Seconds with at least one request running, up to `now`."""
        return self.busy_s + (now - self.busy_since if self.running else 0.0)

    def to_json(self, now: float) -> dict[str, Any]:
        """The counters as `/router/stats` shows them."""
        return {
            "started": self.started,
            "finished": self.finished,
            "cancelled": self.cancelled,
            "failed": self.failed,
            "running": self.running,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "completion_tokens_estimated": self.completion_tokens_estimated,
            "request_seconds": round(self.request_s, 6),
            "busy_seconds": round(self.busy_seconds(now), 6),
            "ttft_s": self.ttft.percentiles(),
            "latency_s": self.latency.percentiles(),
        }


class Mark:
    """One running request or attempt; closing it a second time does nothing."""

    __slots__ = ("_clock", "_open", "_tally", "started_at")

    def __init__(self, tally: Tally, clock: Callable[[], float]) -> None:
        self._tally = tally
        self._clock = clock
        self._open = True
        self.started_at = clock()
        if tally.running == 0:
            tally.busy_since = self.started_at
        tally.started += 1
        tally.running += 1

    def first_byte(self) -> None:
        """The first byte of the body is there."""
        self._tally.ttft.add(self._clock() - self.started_at)

    def tokens(self, usage: Tokens) -> None:
        """Count the tokens of an answer."""
        self._tally.prompt_tokens += usage.prompt
        self._tally.completion_tokens += usage.completion
        self._tally.completion_tokens_estimated += usage.estimated

    def close(self, outcome: Outcome) -> None:
        """It ended; the first call counts."""
        if not self._open:
            return
        self._open = False
        tally, now = self._tally, self._clock()
        tally.running -= 1
        tally.request_s += now - self.started_at
        if tally.running == 0:
            tally.busy_s += now - tally.busy_since
        match outcome:
            case Outcome.FINISHED:
                tally.finished += 1
                tally.latency.add(now - self.started_at)
            case Outcome.CANCELLED:
                tally.cancelled += 1
            case Outcome.FAILED:
                tally.failed += 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an answer used: from its `usage`; `estimated` counts chunks where a stream reported none."""

    prompt: int = 0
    completion: int = 0
    estimated: int = 0


class Window:
    """Requests by kind over the last `WINDOW_S` seconds, in buckets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: deque[tuple[int, dict[str, int]]] = deque()

    def add(self, *keys: str) -> None:
        """Count one of each of `keys` now."""
        number = int(self._clock() // _BUCKET_S)
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append((number, {}))
            self._forget()
        counts = self._buckets[-1][1]
        for key in keys:
            counts[key] = counts.get(key, 0) + 1

    def total(self, key: str) -> int:
        """How many of `key` there were in the window."""
        self._forget()
        return sum(counts.get(key, 0) for _, counts in self._buckets)

    def _forget(self) -> None:
        oldest = int(self._clock() // _BUCKET_S) - WINDOW_S // _BUCKET_S
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()


@dataclass(frozen=True, slots=True)
class StateChange:
    """One line of the state log; `unix_s` is wall time."""

    unix_s: float
    backend: str
    source: str
    target: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As `/router/stats` shows it."""
        return {
            "time": self.unix_s,
            "backend": self.backend,
            "from": self.source,
            "to": self.target,
            "reason": self.reason,
        }


class Meter:
    """All counters of one router. `clock` is monotonic, `wall` is unix time."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.clock = clock
        self.wall = wall
        self.started_at = clock()
        self.requests = Tally()
        self.backends: dict[str, Tally] = {}
        self.answered = dict.fromkeys(Kind, 0)
        self.rejected = 0
        self.unauthorized = 0
        self.failovers = 0
        self.broken_streams = 0
        self.window = Window(clock)
        self.changes: deque[StateChange] = deque(maxlen=200)
        self.statuses: dict[tuple[str, int], int] = {}

    def request(self) -> Mark:
        """A client request was admitted."""
        self.window.add("total")
        return Mark(self.requests, self.clock)

    def attempt(self, name: str, kind: Kind) -> Mark:
        """A request is tried at a backend."""
        tally = self.backends.get(name)
        if tally is None:
            tally = self.backends[name] = Tally(kind)
        return Mark(tally, self.clock)

    def gpu_seconds(self, kind: Kind) -> float:
        """Seconds in which a backend of this kind had at least one request running, added up."""
        now = self.clock()
        return sum(tally.busy_seconds(now) for tally in self.backends.values() if tally.kind is kind)

    def answer(self, name: str, kind: Kind, status: int) -> None:
        """A backend's answer is going to the client."""
        self.answered[kind] += 1
        self.window.add(kind.value)
        self.statuses[name, status] = self.statuses.get((name, status), 0) + 1

    def route_stats(self, spot_ready_seconds: float) -> dict[str, Any]:
        """The founding system's `route_stats`. GPU seconds are those with at least one request running."""
        now = self.clock()
        spot, serverless = self.answered[Kind.SPOT], self.answered[Kind.SERVERLESS]
        answered = spot + serverless
        return {
            "total": self.requests.started,
            "spot": spot,
            "serverless": serverless,
            "rejected": self.rejected,
            "pct_spot": round(100 * spot / answered, 2) if answered else 0.0,
            "pct_serverless": round(100 * serverless / answered, 2) if answered else 0.0,
            "window_seconds": WINDOW_S,
            "window_total": self.window.total("total"),
            "window_spot": self.window.total(Kind.SPOT.value),
            "window_serverless": self.window.total(Kind.SERVERLESS.value),
            "gpu_seconds_spot": round(self.gpu_seconds(Kind.SPOT), 6),
            "gpu_seconds_serverless": round(self.gpu_seconds(Kind.SERVERLESS), 6),
            "uptime_seconds": round(now - self.started_at, 3),
            "spot_ready_seconds": round(spot_ready_seconds, 3),
        }
