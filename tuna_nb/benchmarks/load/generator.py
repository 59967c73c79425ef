"""The generator: requests leave when the schedule says so, whatever the server does, and each leaves a row.

Open loop: one timer walks the schedule. Closed loop: so many places, each of which asks again as its request ends;
places open one after the other within a second (or a tenth of a shorter run), because streams that begin together
stay in step, and a place whose requests fail waits a little longer each time, up to a second.

Warm-up requests go first, as many at a time as the loop is wide and at most four in an open one; their rows count
from -N to -1, in time too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, process_time, time
from typing import Any, Final

from tuna_nb.benchmarks.load.alarm import Alarm
from tuna_nb.benchmarks.load.arrivals import schedule
from tuna_nb.benchmarks.load.asking import Asking, Endpoint
from tuna_nb.benchmarks.load.prompts import Ask, asks
from tuna_nb.benchmarks.load.spec import Lag, LoadSpec
from tuna_nb.benchmarks.rows import Row

PROBE_S: Final = 0.01
_AT_ONCE: Final = 16
"""So many requests leave before the loop looks at its sockets again, which is also when they are written."""
_WARMUPS_AT_ONCE: Final = 4
_SPREAD_S: Final = 1.0
_FIRST_REST_S, _LONGEST_REST_S = 0.05, 1.0
_SWEEP_S: Final = 1.0


class Generator:
    """One run. `emit` is called with each row as it ends, warm-up included; see `run`."""

    def __init__(self, spec: LoadSpec, emit: Callable[[Row], None], *, uvloop: bool) -> None:
        """Raises RequestError for a load that can't be, or files that can't be read."""
        self._spec = spec
        self._emit = emit
        self._uvloop = uvloop
        self._closed = spec.arrivals.kind == "closed"
        self._times: Iterator[float] = iter(()) if self._closed else schedule(spec)
        self._asks = asks(spec)
        self._warmups = itertools.islice(asks(spec, "warm-up"), spec.warmup_requests)
        self._ready: Ask | None = next(self._asks)
        """The next one, made once the last one is with the kernel."""
        self._numbers = itertools.count()
        self._endpoint = Endpoint(spec.target, spec.request_timeout_s)
        self._under_way: dict[Asking, None] = {}
        self._began_at = 0.0
        self._late, self._loop_late = array("d"), array("d")
        self._probed_at = self._swept_at = 0.0
        self._next_at: float | None = None
        self._rests: dict[int, asyncio.TimerHandle] = {}
        self._places: dict[Asking, int] = {}
        self._failures: dict[int, int] = {}
        self._left = 0.0
        self._last_scheduled_s = 0.0
        self._exhausted = False
        self._stopping = False
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self.took_s = 0.0

    async def run(self, begun: Callable[[float], None]) -> Lag:
        """Send all of it, and return how late that was. begun: told the Unix time of the measured part's begin."""
        asyncio.get_running_loop().set_exception_handler(self._broke)
        self._probe, self._walk = Alarm(self._probed), Alarm(self._walked)
        try:
            await self._endpoint.upstream.prepare(self._endpoint.route)
            self._probed_at = monotonic() + PROBE_S
            self._probe.set(self._probed_at)
            await self._warm_up()
            del self._loop_late[:]
            self._began_at, used = monotonic(), process_time()
            begun(time())
            if not self._stopping:
                self._begin()
            await self._end()
            if self._error is not None:
                raise self._error
            self.took_s = monotonic() - self._began_at
            return self._lag((process_time() - used) / max(self.took_s, 1e-9))
        finally:
            self._probe.close()
            self._walk.close()
            await self._endpoint.upstream.aclose()

    def stop(self) -> None:
        """End it now: what is under way is stopped, and leaves its row."""
        self._stopping = True
        self._changed.set()

    def _broke(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback failed: a run that goes on without its timer would never end."""
        error = context.get("exception")
        if isinstance(error, OSError) or error is None:
            return  # a connection's, which its listener was told of
        self._error = error
        self.stop()

    # The walk

    def _begin(self) -> None:
        if not self._closed:
            self._next()
            self._walked()
            return
        places = self._spec.arrivals.concurrency
        self._left = float("inf") if self._spec.requests is None else self._spec.requests
        spread = min(_SPREAD_S, (self._spec.duration_s or 10 * _SPREAD_S) / 10)
        for place in range(places):
            self._open(place, spread * place / places)

    def _next(self) -> None:
        self._next_at = next(self._times, None)
        if self._next_at is None:
            self._exhausted = True
            self._changed.set()
        else:
            self._last_scheduled_s = self._next_at

    def _walked(self) -> None:
        """Send what is due, and set the timer for what comes next."""
        sent = 0
        while self._next_at is not None and not self._stopping:
            due = self._began_at + self._next_at
            if due > monotonic():
                self._walk.set(due)
                return
            if sent >= _AT_ONCE:
                asyncio.get_running_loop().call_soon(self._walked)
                return
            sent += 1
            self._send(self._next_at)
            self._next()

    def _send(self, scheduled_s: float) -> Asking:
        ask, self._ready = self._ready or next(self._asks), None
        asking = Asking(
            self._endpoint,
            ask,
            self._over,
            number=next(self._numbers),
            began_at=self._began_at,
            scheduled_s=scheduled_s,
        )
        self._under_way[asking] = None
        asking.begin()
        self._late.append(asking.taken_at - self._began_at - scheduled_s)
        asyncio.get_running_loop().call_soon(self._prepare)
        return asking

    def _prepare(self) -> None:
        self._ready = self._ready or next(self._asks)

    # The closed loop

    def _open(self, place: int, at_s: float) -> None:
        """Have this place ask, as soon as it is that time."""
        wait_s = self._began_at + at_s - monotonic()
        self._rests[place] = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._take, place)

    def _take(self, place: int, free_at_s: float | None = None) -> None:
        """free_at_s: since when it is free; None: now."""
        self._rests.pop(place, None)
        free_at_s = monotonic() - self._began_at if free_at_s is None else free_at_s
        ended = self._spec.duration_s is not None and free_at_s >= self._spec.duration_s
        if self._stopping or ended or self._left <= 0:
            return
        self._left -= 1
        if self._left <= 0:
            self._exhausted = True
            self._changed.set()
        self._last_scheduled_s = free_at_s
        self._places[self._send(free_at_s)] = place

    # Ends

    def _over(self, asking: Asking, row: Row) -> None:
        self._under_way.pop(asking, None)
        place = self._places.pop(asking, None)
        if place is not None and not self._stopping:
            self._go_on(place, row)
        if not self._under_way:
            self._changed.set()
        self._emit(row)

    def _go_on(self, place: int, row: Row) -> None:
        """The next request of that place: at once, unless this one failed."""
        failures = self._failures[place] = self._failures.get(place, 0) + 1 if row.error else 0
        rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2 ** min(failures - 1, 10)) if failures else 0.0
        if rest_s:
            self._open(place, row.ended_s + rest_s)
        else:
            self._take(place, row.ended_s)

    async def _end(self) -> None:
        """Wait for the schedule's end, then for what is under way, then stop it."""
        duration_s = self._spec.duration_s
        if duration_s is not None:
            await self._wait(lambda: False, duration_s)
            self._exhausted = True
        else:
            await self._wait(lambda: self._exhausted, None)
        end_s = duration_s if duration_s is not None else max(self._last_scheduled_s, 0.0)
        await self._wait(lambda: not self._under_way, end_s + self._spec.grace_s)
        self._stopping = True
        for rest in self._rests.values():
            rest.cancel()
        for asking in list(self._under_way):
            asking.stop("stopped", "the run ended before it")

    async def _wait(self, true: Callable[[], bool], until_s: float | None) -> None:
        """Until it is true, that time, or `stop`."""
        while not (self._stopping or true()):
            self._changed.clear()
            left = None if until_s is None else self._began_at + until_s - monotonic()
            if left is not None and left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def _warm_up(self) -> None:
        most = self._spec.arrivals.concurrency if self._closed else _WARMUPS_AT_ONCE
        begun, rows = monotonic(), list[Row]()
        for number, ask in enumerate(self._warmups, -self._spec.warmup_requests):
            await self._until_below(most)
            if self._stopping:
                break
            self._warm(ask, number, begun, rows)
        await self._until_below(1)
        for asking in list(self._under_way):
            asking.stop("stopped", "the run ended before it")
        took_s = monotonic() - begun
        for row in rows:
            self._emit(_earlier(row, took_s))

    def _warm(self, ask: Ask, number: int, begun: float, rows: list[Row]) -> None:
        def over(asking: Asking, row: Row) -> None:
            self._under_way.pop(asking, None)
            rows.append(row)
            self._changed.set()

        asking = Asking(
            self._endpoint,
            ask,
            over,
            number=number,
            began_at=begun,
            scheduled_s=monotonic() - begun,
            warmup=True,
        )
        self._under_way[asking] = None
        asking.begin()

    async def _until_below(self, most: int) -> None:
        while len(self._under_way) >= most and not self._stopping:
            self._changed.clear()
            await self._changed.wait()

    # The probe

    def _probed(self) -> None:
        """How late the loop is, every ten milliseconds; and what is looked after in passing."""
        now = monotonic()
        self._loop_late.append(max(0.0, now - self._probed_at))
        timeout_s = self._endpoint.timeout_s
        for asking in list(itertools.takewhile(lambda a: now - a.taken_at >= timeout_s, self._under_way)):
            asking.stop("timeout", f"not over after {timeout_s:g} s")
        if now - self._swept_at >= _SWEEP_S:
            self._swept_at = now
            self._endpoint.upstream.sweep()
        self._probed_at = max(self._probed_at + PROBE_S, now)
        self._probe.set(self._probed_at)

    def _lag(self, cpu: float) -> Lag:
        late, loop_late = sorted(self._late), sorted(self._loop_late)
        return Lag(
            late_p50=_at(late, 0.5),
            late_p99=_at(late, 0.99),
            loop_p99=_at(loop_late, 0.99),
            loop_max=_at(loop_late, 1.0),
            uvloop=self._uvloop,
            cpu=cpu,
        )


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _earlier(row: Row, by_s: float) -> Row:
    """A warm-up's row, counted from the begin of the measured part."""
    return dataclasses.replace(
        row,
        scheduled_s=row.scheduled_s - by_s,
        sent_s=None if row.sent_s is None else row.sent_s - by_s,
        first_token_s=None if row.first_token_s is None else row.first_token_s - by_s,
        ended_s=row.ended_s - by_s,
    )
