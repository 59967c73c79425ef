"""The load, minute by minute: when requests began and ended, and what those that ended used.

A request is one that was tried at a backend. It begins when it is tried first, which is when its body is there,
and ends when its account closes, however that was. Minutes go by the wall clock and never back: where that jumps
back, counting goes on in the latest minute until it has caught up; where it jumps forward, the next minute is the
one that it shows. Durations are of the monotonic clock.

What a minute says of a backend is by how much the meter's counters of it grew: nothing is counted for it on a
request's way. Its `requests` are those whose last attempt was there (each is counted at one backend), its
`request_s` the seconds of all attempts that ended there, and its tokens those of the requests.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tuna_router.books.series import OTHER

if TYPE_CHECKING:
    from tuna_router.books.meter import Tally

MINUTE_S: Final = 60
MOST_NAMES: Final = 64
"""Models that one minute tells apart, and keys; the rest are "other"."""
MOST_MINUTES: Final = 2 * 24 * 60
"""That are kept in memory."""
_MOST_SPANS: Final = 100
_JUMP_S: Final = 2.0
"""What the wall clock gains on the monotonic one by more than being set right in small steps: it was set, or the
machine slept."""


class Used(NamedTuple):
    """What ended requests used. request_s: their seconds added up; busy_s: seconds with one running, at least.

    completion_tokens include those that were counted in pieces, where an engine told none.
    """

    requests: int = 0
    request_s: float = 0.0
    busy_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def grown(cls, requests: int, request_s: float, busy_s: float, prompt: int, completion: int) -> Used:
        """In microseconds, as it is told and kept."""
        return cls(requests, round(request_s, 6), round(busy_s, 6), prompt, completion)


class Minute(NamedTuple):
    """at: Unix seconds, a multiple of 60. in_flight: requests that ran as it began. arrivals, ends: (second of the
    minute, count), only seconds with any. backends, models, keys: what the requests that ended in it used, by name;
    a request whose model nothing configured asks for is in no model."""

    at: int
    in_flight: int = 0
    arrivals: tuple[tuple[int, int], ...] = ()
    ends: tuple[tuple[int, int], ...] = ()
    backends: Mapping[str, Used] = {}
    models: Mapping[str, Used] = {}
    keys: Mapping[str, Used] = {}

    def to_json(self, *, whole: bool) -> dict[str, Any]:
        """As `/router/load` tells it."""
        return {
            "at": self.at,
            "in_flight": self.in_flight,
            "arrivals": self.arrivals,
            "ends": self.ends,
            "backends": {name: used._asdict() for name, used in self.backends.items()},
            "models": {name: used._asdict() for name, used in self.models.items()},
            "keys": {name: used._asdict() for name, used in self.keys.items()},
            "whole": whole,
        }


class Mine(NamedTuple):
    """What one life has to tell of itself. `spans`: when it ran, the last one up to now. `minutes` are over,
    `running` is the one under way, None where nothing has happened in it."""

    life: str
    spans: tuple[tuple[float, float], ...]
    minutes: tuple[Minute, ...]
    running: Minute | None


class Use:
    """What runs and has ended of one model or key in the minute under way."""

    __slots__ = ("busy_s", "busy_since", "completion", "prompt", "request_s", "requests", "running")

    def __init__(self) -> None:
        self.running = 0
        self.busy_since = 0.0
        self.clear()

    def clear(self) -> None:
        """A new minute; what runs goes on."""
        self.requests = self.prompt = self.completion = 0
        self.request_s = self.busy_s = 0.0

    def end(self, request_s: float, now: float, prompt: int, completion: int) -> None:
        """One that ran has ended."""
        self.requests += 1
        self.request_s += request_s
        self.prompt += prompt
        self.completion += completion
        self.running -= 1
        if not self.running:
            self.busy_s += now - self.busy_since

    def used(self, now: float) -> Used:
        """So far."""
        busy_s = self.busy_s + (max(now - self.busy_since, 0.0) if self.running else 0.0)
        return Used.grown(self.requests, self.request_s, busy_s, self.prompt, self.completion)


Uses = tuple["Use | None", "Use | None"]
"""Of the model and of the key of one request, from its begin to its end."""


class Load:
    """Counts. On a request's way it only adds: the wall clock is read once a second.

    `clock` is the one of every `now` here, `wall` is unix time, `tallies` the meter's, by backend.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float], tallies: Mapping[str, Tally]) -> None:
        self._clock = clock
        self._wall = wall
        self._tallies = tallies
        self._models: dict[str, Use] = {}
        self._keys: dict[str, Use] = {}
        self._before: dict[str, tuple[Tally, tuple[int, float, float, int, int]]] = {}
        self._running = 0
        self._done: deque[Minute] = deque()
        self.dropped_until = 0.0
        """Unix seconds up to which minutes were let go of, because there were too many."""
        unix_s, now = wall(), clock()
        self.life = f"{int(unix_s * 1000)}-{secrets.token_hex(4)}"
        """A name for this life of the router that no other has."""
        self._spans: deque[tuple[float, float]] = deque(maxlen=_MOST_SPANS)
        self._from = unix_s
        self._wall_then, self._now_then = unix_s, now
        self._arrived = self._ended = 0
        """In the second under way."""
        self._second = 0
        self._begin_minute(unix_s, now)
        self.next_at = now
        """When the second under way is over, on the monotonic clock."""

    # On a request's way

    def begin(self, now: float, model: str, key: str | None) -> Uses:
        """A request is tried for the first time; `end` it once with what this returns."""
        if now >= self.next_at:
            self.advance(now)
        self._arrived += 1
        self._running += 1
        of_model = _begun(self._models, model, now) if model else None
        if key is None:
            return of_model, None
        use = self._keys.get(key)
        if use is None:
            use = _begun(self._keys, key, now)
        else:
            if not use.running:
                use.busy_since = now
            use.running += 1
        return of_model, use

    def end(self, uses: Uses, request_s: float, now: float, prompt: int, completion: int) -> None:
        """It ended after so many seconds."""
        if now >= self.next_at:
            self.advance(now)
        self._ended += 1
        self._running -= 1
        of_model, of_key = uses
        if of_key is not None:
            of_key.end(request_s, now, prompt, completion)
        if of_model is not None:
            of_model.end(request_s, now, prompt, completion)

    def advance(self, now: float) -> None:
        """Look at the wall clock. To be called before a counter of a backend changes when `now` has reached
        `next_at`, which is once a second where there is traffic; and now and then where there is none."""
        unix_s = self._wall()
        self._flush()
        if unix_s >= self._until:
            self._turn(unix_s, now)
        self._second = min(max(int(unix_s) - self._at, self._second), MINUTE_S - 1)
        self.next_at = now + 1.0 - unix_s % 1.0

    # Off it

    def told(self) -> Mine:
        """All that is in memory, up to now."""
        now, unix_s = self._clock(), self._wall()
        self.advance(now)
        running = self._minute(now)
        spans = (*self._spans, (self._from, max(unix_s, self._from)))
        return Mine(self.life, spans, tuple(self._done), running)

    def written(self, minutes: Sequence[Minute]) -> None:
        """These, the oldest of `told`, are kept elsewhere now."""
        for minute in minutes:
            if self._done and self._done[0] is minute:
                self._done.popleft()

    def _flush(self) -> None:
        if self._arrived:
            self._arrivals[self._second] += self._arrived
            self._arrived = 0
        if self._ended:
            self._ends[self._second] += self._ended
            self._ended = 0

    def _turn(self, unix_s: float, now: float) -> None:
        """The wall clock shows a later minute."""
        then_s = self._wall_then + now - self._now_then
        if unix_s - then_s > _JUMP_S:
            self._close_minute(now)
            self._spans.append((self._from, max(then_s, self._from)))
            self._from = unix_s
            self._begin_minute(unix_s, now)
        while unix_s >= self._until:
            border = min(max(now - (unix_s - self._until), self._begun), now)
            self._close_minute(border)
            # Minutes in which nothing ran are not gone through one by one.
            self._begin_minute(self._until if self._running else unix_s, border)
        self._wall_then, self._now_then = unix_s, now

    def _begin_minute(self, unix_s: float, begun: float) -> None:
        self._at = int(unix_s) // MINUTE_S * MINUTE_S
        self._until = self._at + MINUTE_S
        self._begun = begun
        self._second = 0
        self._in_flight = self._running
        self._arrivals = [0] * MINUTE_S
        self._ends = [0] * MINUTE_S

    def _close_minute(self, border: float) -> None:
        minute = self._minute(border)
        if minute is not None:
            self._done.append(minute)
            if len(self._done) > MOST_MINUTES:
                self.dropped_until = float(self._done.popleft().at + MINUTE_S)
            self._before = {name: (tally, _counted(tally, border)) for name, tally in self._tallies.items()}
        for uses in (self._models, self._keys):
            for name, use in list(uses.items()):
                if use.running:
                    use.clear()
                    use.busy_since = max(border, use.busy_since)
                else:
                    del uses[name]

    def _minute(self, now: float) -> Minute | None:
        """The one under way, as of `now`."""
        arrivals, ends = _seconds(self._arrivals), _seconds(self._ends)
        if not (arrivals or ends or self._in_flight):
            return None
        return Minute(
            self._at,
            self._in_flight,
            arrivals,
            ends,
            dict(self._grown(now)),
            {name: use.used(now) for name, use in self._models.items()},
            {name: use.used(now) for name, use in self._keys.items()},
        )

    def _grown(self, now: float) -> Iterable[tuple[str, Used]]:
        for name, tally in self._tallies.items():
            then, before = self._before.get(name, (None, _NOTHING))
            if then is not tally:
                before = _NOTHING  # another kind of backend of the same name
            counted = _counted(tally, now)
            if counted != before:
                requests, request_s, busy_s, prompt, completion = counted
                yield (
                    name,
                    Used.grown(
                        requests - before[0],
                        request_s - before[1],
                        max(busy_s - before[2], 0.0),
                        prompt - before[3],
                        completion - before[4],
                    ),
                )


_NOTHING: Final = (0, 0.0, 0.0, 0, 0)


def _counted(tally: Tally, now: float) -> tuple[int, float, float, int, int]:
    tokens = tally.completion_tokens + tally.completion_tokens_estimated
    # A clock that was set may put the end of a minute before what has just begun.
    busy_s = max(tally.busy_seconds(now), tally.busy_s)
    return tally.requests, tally.request_s, busy_s, tally.prompt_tokens, tokens


def _begun(uses: dict[str, Use], name: str, now: float) -> Use:
    use = uses.get(name)
    if use is None:
        if len(uses) >= MOST_NAMES:
            name = OTHER
        use = uses.get(name)
        if use is None:
            use = uses[name] = Use()
    if not use.running:
        use.busy_since = now
    use.running += 1
    return use


def _seconds(counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((second, count) for second, count in enumerate(counts) if count)


def merged(one: Minute, other: Minute) -> Minute:
    """The same minute of two lives: one after the other, or side by side while one follows the other.

    busy_s is their sum, but no more than the minute has: where both ran it is not known for how long at once.
    """
    return Minute(
        one.at,
        one.in_flight + other.in_flight,
        _added(one.arrivals, other.arrivals),
        _added(one.ends, other.ends),
        _joined(one.backends, other.backends),
        _joined(one.models, other.models),
        _joined(one.keys, other.keys),
    )


def _added(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    counts = [0] * MINUTE_S
    for second, count in (*one, *other):
        counts[second] += count
    return _seconds(counts)


def _joined(one: Mapping[str, Used], other: Mapping[str, Used]) -> dict[str, Used]:
    joined = dict(one)
    for name, b in other.items():
        a = joined.get(name, Used())
        busy_s = min(a.busy_s + b.busy_s, max(float(MINUTE_S), a.busy_s, b.busy_s))
        joined[name] = Used.grown(
            a.requests + b.requests,
            a.request_s + b.request_s,
            busy_s,
            a.prompt_tokens + b.prompt_tokens,
            a.completion_tokens + b.completion_tokens,
        )
    return joined


def joined_spans(spans: Iterable[tuple[float, float]], since: float) -> list[tuple[float, float]]:
    """The times in which one of them was, in order; those after `since`."""
    joined: list[tuple[float, float]] = []
    for begun, until in sorted(spans):
        if joined and begun <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(until, joined[-1][1]))
        else:
            joined.append((begun, until))
    return [(max(begun, since), until) for begun, until in joined if until > since]
