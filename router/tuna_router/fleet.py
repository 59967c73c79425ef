"""The backends as they are now: what each was configured to be, and what has been learned since."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

from tuna_router.dataplane.route import Route
from tuna_router.meter import Meter, Outcome, StateChange
from tuna_router.policy import BackendView
from tuna_router.settings import BackendSettings, Kind, Settings
from tuna_router.spot import (
    Event,
    RequestFailed,
    RequestServed,
    SpotMachine,
    Started,
    Timing,
    Traffic,
    Transition,
)

_log = logging.getLogger("tuna_router.fleet")


class Attempt:
    """One request at one backend, counted until it is closed; only the first `close` counts."""

    __slots__ = ("_open", "backend", "began", "epoch", "first_byte_at")

    def __init__(self, backend: LiveBackend, now: float) -> None:
        self.backend = backend
        self.began = now
        self.epoch = backend.machine.epoch if backend.machine is not None else 0
        self.first_byte_at = 0.0
        """When the first byte of the body came; 0 before."""
        self._open = True
        backend.in_flight += 1
        backend.tally.begin(now)

    def close(self, outcome: Outcome, now: float) -> None:
        """It ended."""
        if self._open:
            self._open = False
            self.backend.in_flight -= 1
            self.backend.tally.end(outcome, self.began, now)


class LiveBackend:
    """One backend: its settings, the requests it has, its cool-down, and its spot machine if it is spot."""

    def __init__(self, settings: BackendSettings, machine: SpotMachine | None, meter: Meter) -> None:
        self.settings = settings
        self.machine = machine
        self.in_flight = 0
        self.cooling_until = 0.0
        self.last_error: str | None = None
        self.last_probe_at: float | None = None
        """Wall time of the last probe or poll."""
        self.last_probe_error: str | None = None
        self.nudge = asyncio.Event()
        """Set when its watcher has something to do earlier than planned."""
        self.tally = meter.backend(settings.name, settings.kind)
        self._meter = meter
        self._route = Route(settings)

    def __repr__(self) -> str:
        return f"<LiveBackend {self.settings.name} {self.state_name} in_flight={self.in_flight}>"

    @property
    def state_name(self) -> str:
        """The spot state; for serverless READY or COOLING."""
        if self.machine is not None:
            return str(self.machine.state)
        return "COOLING" if self.cooling else "READY"

    @property
    def cooling(self) -> bool:
        """True for a short while after a failure."""
        return self._meter.clock() < self.cooling_until

    def tell(self, event: Event) -> Transition | None:
        """Pass an event to the spot machine; wakes the watcher where that changes its plans."""
        if self.machine is None:
            return None
        before = self.machine.next_probe_at
        transition = self.machine.apply(event)
        if transition is not None or self.machine.next_probe_at != before:
            self.nudge.set()
        return transition

    @property
    def route(self) -> Route:
        """Where it is and how to speak to it."""
        if self._route.settings is not self.settings:
            self._route = Route(self.settings)
        return self._route

    def served(self) -> None:
        """A request was answered well."""
        self.cooling_until = 0.0
        self.last_error = None
        self.tell(RequestServed())

    def failed(self, attempt: Attempt, reason: str, *, gone: bool, cooldown_s: float) -> None:
        """A request failed here: back of the order for a while; a spot that is gone leaves READY."""
        self.busy(reason, cooldown_s=cooldown_s)
        self.tell(RequestFailed(attempt.epoch, reason, gone))

    def busy(self, reason: str, *, cooldown_s: float) -> None:
        """It is well, but has no room: back of the order for a while, and no doubt about its state."""
        self.last_error = reason
        self.cooling_until = self._meter.clock() + cooldown_s

    def view(self) -> BackendView:
        """What the policy sees."""
        return BackendView(
            self.settings.name,
            self.settings.kind,
            self.machine.state if self.machine is not None else None,
            self.in_flight,
            self.settings.max_concurrency,
            self.cooling,
        )


class Fleet:
    """All backends. `configure` replaces the list and keeps what was learned of an unchanged backend."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._backends: dict[str, LiveBackend] = {}
        self._removed_ready_s = 0.0

    def __iter__(self) -> Iterator[LiveBackend]:
        return iter(self._backends.values())

    def __getitem__(self, name: str) -> LiveBackend:
        return self._backends[name]

    @property
    def spots(self) -> list[LiveBackend]:
        """The spot backends."""
        return [backend for backend in self if backend.machine is not None]

    @property
    def ready_seconds(self) -> float:
        """Total time in READY of the spot backend that has most of it, removed ones included."""
        return self._removed_ready_s + _most_ready(self)

    def configure(self, settings: Settings) -> None:
        """Take a new list of backends over."""
        kept = self._backends
        self._backends = {}
        for item in settings.backends:
            timing = Timing(
                settings.probe_interval_s, settings.idle_after_s, settings.drain_limit_s, item.keep_warm
            )
            old = kept.get(item.name)
            if old is not None and old.settings.url == item.url and old.settings.kind is item.kind:
                old.settings = item
                if old.machine is not None:
                    old.machine.timing = timing
                old.nudge.set()
                self._backends[item.name] = old
                continue
            machine = None
            if item.kind is Kind.SPOT:
                machine = SpotMachine(self._meter.clock, timing, self._log(item.name))
            self._backends[item.name] = LiveBackend(item, machine, self._meter)
            self._backends[item.name].tell(Started())
        self._removed_ready_s += _most_ready(b for b in kept.values() if b not in self._backends.values())

    def traffic(self) -> None:
        """A client request arrived: every spot fleet is wanted."""
        for backend in self._backends.values():
            if backend.machine is not None:
                backend.tell(Traffic())

    def views(self) -> list[BackendView]:
        """The snapshot on which one request is planned."""
        return [backend.view() for backend in self._backends.values()]

    def _log(self, name: str) -> Callable[[Transition], None]:
        def note(change: Transition) -> None:
            _log.info("%s: %s -> %s: %s", name, change.source, change.target, change.reason)
            self._meter.changes.append(
                StateChange(self._meter.wall(), name, change.source.value, change.target.value, change.reason)
            )

        return note


def _most_ready(backends: Iterable[LiveBackend]) -> float:
    return max((b.machine.ready_seconds for b in backends if b.machine is not None), default=0.0)
