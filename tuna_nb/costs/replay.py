"""What another policy would have cost for the same traffic: the router's load through its rules, second by second.

Each request of the load arrives when it did. A serverless container takes as many at once as it may, is billed from
its start, its boot included where that is billed, to the end of its idle window. A fleet of machines follows the
autoscaler's own rule (`backends/local/scaling.py`, which is SkyServe's) on requests per second. What the load does
not tell is stated: within a second requests are spread evenly, and they end in the order in which they came.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.backends.local.scaling import FleetTarget, fleet_target
from tuna_nb.catalog.offers import Billing
from tuna_nb.costs.load import Load

_ARRIVE, _READY, _END, _IDLE = range(4)


@dataclass(frozen=True, slots=True)
class Request:
    """arrived_at: Unix seconds. took_s: until its answer had ended."""

    arrived_at: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica. boot_s: until it serves. price_per_hour_usd: with all its GPUs."""

    price_per_hour_usd: float
    boot_s: float
    billing: Billing = field(default_factory=Billing)


@dataclass(frozen=True, slots=True)
class Outcome:
    """hours: billed. starts: of containers or machines. unserved: requests that found no machine that was ready."""

    usd: float
    hours: float
    starts: int
    unserved: int = 0


def requests_of(load: Load) -> list[Request]:
    """The requests of a load, oldest first. One that ran as a life of the router ended, ended with it."""
    made: list[Request] = []
    waiting: deque[float] = deque()
    lives = deque(load.lives)
    skipped = 0

    def close(at: float) -> None:
        made.extend(Request(begun, max(0.0, at - begun)) for begun in waiting)
        waiting.clear()

    for number, minute in enumerate(load.minutes):
        while lives and lives[0][1] < minute.at and len(lives) > 1:
            close(lives.popleft()[1])
            skipped = minute.in_flight
        if number == 0:
            # Those that ran already have no arrival here.
            skipped = minute.in_flight
        steps = sorted([(t, False) for t in _times(minute.at, minute.arrivals)]
                       + [(t, True) for t in _times(minute.at, minute.ends)])  # fmt: skip
        for at, ended in steps:
            if not ended:
                waiting.append(at)
            elif skipped:
                skipped -= 1
            elif waiting:
                begun = waiting.popleft()
                made.append(Request(begun, at - begun))
    if load.minutes:
        close(max(load.lives[-1][1] if load.lives else 0.0, load.minutes[-1].at))
    return sorted(made, key=lambda one: one.arrived_at)


def _times(minute: int, counts: Sequence[tuple[int, int]]) -> Iterator[float]:
    for second, count in counts:
        for number in range(count):
            yield minute + second + (number + 0.5) / count


@dataclass(slots=True)
class _Container:
    started_at: float
    in_flight: int = 0
    ready: bool = False
    idle_since: float = 0.0


class _Serverless:
    """Containers for the requests at hand, as the local cloud and the providers' documents have it."""

    def __init__(self, scaling: ServerlessScaling, machine: Machine, usual_s: float) -> None:
        self._scaling = scaling
        self._machine = machine
        self._usual_s = usual_s
        self._events: list[tuple[float, int, int, Request | _Container]] = []
        self._count = 0
        self.queue: deque[Request] = deque()
        self.alive: list[_Container] = []
        self.hours = 0.0
        self.starts = 0

    def run(self, requests: Sequence[Request], begins: float, until: float) -> Outcome:
        for _ in range(self._scaling.workers_min):
            self._start(begins)
        arrivals = iter(requests)
        coming = next(arrivals, None)
        while coming is not None or self._events:
            if coming is not None and (not self._events or coming.arrived_at <= self._events[0][0]):
                now = coming.arrived_at
                self.queue.append(coming)
                coming = next(arrivals, None)
                self._serve(now)
                self._scale(now)
                continue
            now, _, kind, what = heapq.heappop(self._events)
            if now > until:
                break
            assert isinstance(what, _Container)
            self._happen(now, kind, what)
        for container in self.alive:
            self._bill(container, until)
        return Outcome(self.hours * self._machine.price_per_hour_usd, self.hours, self.starts)

    def _happen(self, now: float, kind: int, container: _Container) -> None:
        if kind == _READY:
            container.ready, container.idle_since = True, now
            self._serve(now)
        elif kind == _END:
            container.in_flight -= 1
            container.idle_since = now
            self._serve(now)
        elif container not in self.alive or container.in_flight:
            return
        window = self._scaling.scaledown_window
        if container.ready and container.in_flight == 0:
            due = container.idle_since + window
            if now < due - 1e-9:
                self._push(due, _IDLE, container)
            elif len(self.alive) > self._wanted():
                self.alive.remove(container)
                self._bill(container, now)

    def _wanted(self) -> int:
        demand = sum(c.in_flight for c in self.alive) + len(self.queue)
        scaling = self._scaling
        return max(scaling.workers_min, min(scaling.workers_max, math.ceil(demand / scaling.concurrency)))

    def _scale(self, now: float) -> None:
        for _ in range(self._wanted() - len(self.alive)):
            self._start(now)

    def _start(self, now: float) -> None:
        container = _Container(now)
        self.alive.append(container)
        self.starts += 1
        self._push(now + self._machine.boot_s, _READY, container)

    def _serve(self, now: float) -> None:
        while self.queue:
            free = [c for c in self.alive if c.ready and c.in_flight < self._scaling.concurrency]
            if not free:
                return
            chosen = min(free, key=lambda c: (c.in_flight, c.idle_since))
            request = self.queue.popleft()
            chosen.in_flight += 1
            ends = request.arrived_at + request.took_s
            if now > request.arrived_at + 1e-9:
                # It waited here. If it had waited as long where it was recorded, it ends as it did; else it has its
                # usual time yet to run.
                ends = max(ends, now + min(request.took_s, self._usual_s))
            self._push(max(now, ends), _END, chosen)

    def _bill(self, container: _Container, until: float) -> None:
        rule = self._machine.billing
        up = until - container.started_at
        if rule.boot is False:
            up = max(0.0, up - self._machine.boot_s)
        if rule.idle is False and container.ready and container.in_flight == 0:
            up = max(0.0, up - (until - container.idle_since))
        self.hours += rule.billed_s(up) / 3600

    def _push(self, at: float, kind: int, container: _Container) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, kind, container))


def serverless(
    requests: Sequence[Request], scaling: ServerlessScaling, machine: Machine, begins: float, until: float
) -> Outcome:
    """Every request on serverless containers, from `begins` to `until` (Unix seconds)."""
    usual_s = median(r.took_s for r in requests) if requests else 0.0
    return _Serverless(scaling, machine, usual_s).run(requests, begins, until)


def fleet(
    requests: Sequence[Request],
    scaling: SpotScaling,
    machine: Machine,
    begins: float,
    until: float,
    *,
    qps_window_s: float = 60.0,
    step_s: float = 1.0,
) -> Outcome:
    """Every request on machines that are scaled by requests per second. None is taken away."""
    target = FleetTarget(scaling.min_replicas)
    window: deque[float] = deque()
    replicas: list[float] = []
    """When each that runs began."""
    hours, starts, unserved = 0.0, 0, 0
    last: float | None = None
    arrivals = deque(r.arrived_at for r in requests)
    now = begins

    def stop(number: int, at: float) -> None:
        nonlocal hours
        hours += machine.billing.billed_s(at - replicas.pop(number)) / 3600

    while now < until:
        while arrivals and arrivals[0] <= now:
            at = arrivals.popleft()
            window.append(at)
            last = at
            unserved += not any(at >= begun + machine.boot_s for begun in replicas)
        while window and now - window[0] > qps_window_s:
            window.popleft()
        target = fleet_target(target, scaling, len(window) / qps_window_s, last, now)
        for _ in range(target.replicas - len(replicas)):
            replicas.append(now)
            starts += 1
        while len(replicas) > target.replicas:
            stop(-1, now)  # the newest, which may not serve yet
        settled = target.over is None and target.under is None and not window
        quiet = last is None or now - last >= scaling.downscale_delay
        if settled and quiet and target.replicas == scaling.min_replicas:
            # Nothing changes before the next request.
            now = max(now + step_s, arrivals[0]) if arrivals else until
        else:
            now += step_s
    while replicas:
        stop(-1, until)
    return Outcome(hours * machine.price_per_hour_usd, hours, starts, unserved)


MOST_REQUESTS: Final = 200_000
"""So many are replayed; of a longer traffic the last ones."""
