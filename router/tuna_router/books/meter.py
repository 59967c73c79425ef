"""What happened: exact counters, in one place, without I/O.

Every client request and every attempt at a backend begins once and ends once, which is their owners'
affair, so `started = finished + cancelled + failed + running` holds at every moment, on both levels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from tuna_router.books.load import Load
from tuna_router.books.series import LATENCY_S, Histogram
from tuna_router.settings import Kind

WINDOW_S: Final = 300
SAMPLE_S: Final = 5.0
_SAMPLES: Final = 1024


class Outcome(StrEnum):
    """How a request or an attempt ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Durations(Histogram):
    """A histogram of latencies that keeps the last samples, for percentiles."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        super().__init__(LATENCY_S)
        self._last: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, seconds: float) -> None:
        """Count one duration."""
        super().add(seconds)
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
    requests: int = 0
    """Of one backend: ended requests whose last attempt was there."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion_tokens_estimated: int = 0
    answered: int = 0
    request_s: float = 0.0
    busy_s: float = 0.0
    busy_since: float = 0.0
    ttft: Durations = field(default_factory=Durations)
    latency: Durations = field(default_factory=Durations)
    statuses: dict[int, int] = field(default_factory=dict)

    def begin(self, now: float) -> None:
        """One more; whoever calls this calls `end` once."""
        if self.running == 0:
            self.busy_since = now
        self.started += 1
        self.running += 1

    def end(self, outcome: Outcome, began: float, now: float) -> None:
        """It ended."""
        self.running -= 1
        self.request_s += now - began
        if self.running == 0:
            self.busy_s += now - self.busy_since
        if outcome is Outcome.FINISHED:
            self.finished += 1
            self.latency.add(now - began)
        elif outcome is Outcome.CANCELLED:
            self.cancelled += 1
        else:
            self.failed += 1

    def answer(self, status: int) -> None:
        """An answer with this status is going to a client."""
        self.answered += 1
        statuses = self.statuses
        statuses[status] = statuses.get(status, 0) + 1

    def use(self, usage: Tokens) -> None:
        """Count the tokens of an answer."""
        self.prompt_tokens += usage.prompt
        self.completion_tokens += usage.completion
        self.completion_tokens_estimated += usage.estimated

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


class Tokens(NamedTuple):
    """What an answer used: from its `usage`; `estimated` counts chunks where a stream reported none."""

    prompt: int = 0
    completion: int = 0
    estimated: int = 0


class Counts(NamedTuple):
    """Requests that came, and answers by kind of backend."""

    requests: int
    spot: int
    serverless: int


class Window:
    """How much counters grew over the last `WINDOW_S` seconds, to within `SAMPLE_S`.

    The counters are looked at now and then, so that counting costs nothing.
    """

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, Counts]] = deque([(now, Counts(0, 0, 0))])

    def sample(self, now: float, counts: Counts) -> None:
        """Look at the counters; call it every `SAMPLE_S` seconds."""
        self._samples.append((now, counts))
        oldest = now - WINDOW_S
        while len(self._samples) > 1 and self._samples[1][0] <= oldest:
            self._samples.popleft()

    def growth(self, now: float, counts: Counts) -> Counts:
        """From the beginning of the window to `counts`, which are those of `now`."""
        oldest = now - WINDOW_S
        before = self._samples[0][1]
        for at, sampled in self._samples:
            if at > oldest:
                break
            before = sampled
        return Counts(*(after - earlier for after, earlier in zip(counts, before, strict=True)))


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
        self.rejected = 0
        self.unauthorized = 0
        self.failovers = 0
        self.broken_streams = 0
        self.window = Window(self.started_at)
        self.load = Load(clock, wall, self.backends)
        self.changes: deque[StateChange] = deque(maxlen=200)

    def backend(self, name: str, kind: Kind) -> Tally:
        """The counters of the attempts at one backend; they outlive its configuration."""
        tally = self.backends.get(name)
        if tally is None or tally.kind is not kind:
            tally = self.backends[name] = Tally(kind)
        return tally

    def gpu_seconds(self, kind: Kind) -> float:
        """Seconds in which a backend of this kind had at least one request running, added up."""
        now = self.clock()
        return sum(tally.busy_seconds(now) for tally in self.backends.values() if tally.kind is kind)

    def answered(self, kind: Kind) -> int:
        """Answers of backends of this kind that went to clients."""
        return sum(tally.answered for tally in self.backends.values() if tally.kind is kind)

    def sample(self) -> None:
        """Look at the counters for the window; call it every `SAMPLE_S` seconds."""
        self.window.sample(self.clock(), self._counts())

    def _counts(self) -> Counts:
        return Counts(self.requests.started, self.answered(Kind.SPOT), self.answered(Kind.SERVERLESS))

    def route_stats(self, spot_ready_seconds: float) -> dict[str, Any]:
        """The founding system's `route_stats`. GPU seconds are those with at least one request running."""
        now, counts = self.clock(), self._counts()
        window = self.window.growth(now, counts)
        answered = counts.spot + counts.serverless
        return {
            "total": counts.requests,
            "spot": counts.spot,
            "serverless": counts.serverless,
            "rejected": self.rejected,
            "pct_spot": round(100 * counts.spot / answered, 2) if answered else 0.0,
            "pct_serverless": round(100 * counts.serverless / answered, 2) if answered else 0.0,
            "window_seconds": WINDOW_S,
            "window_total": window.requests,
            "window_spot": window.spot,
            "window_serverless": window.serverless,
            "gpu_seconds_spot": round(self.gpu_seconds(Kind.SPOT), 6),
            "gpu_seconds_serverless": round(self.gpu_seconds(Kind.SERVERLESS), 6),
            "uptime_seconds": round(now - self.started_at, 3),
            "spot_ready_seconds": round(spot_ready_seconds, 3),
        }
