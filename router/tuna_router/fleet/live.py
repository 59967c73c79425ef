"""The backends as they are now: what each was configured to be, and what has been learned since."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tuna_router.books.ledger import Ledger
from tuna_router.books.meter import Meter, Outcome, StateChange
from tuna_router.dataplane.route import Route
from tuna_router.fleet.breaker import Breaker, Circuit
from tuna_router.keys.live import LiveKey
from tuna_router.policy import PLAIN, BackendView, Plan, Rules, Wish, choose, holds_serverless_back
from tuna_router.settings import BackendSettings, Kind, ServerlessUse, Settings
from tuna_router.spot import (
    Event,
    NoneLeft,
    ProbePassed,
    ReplicasSeen,
    RequestFailed,
    SpotMachine,
    SpotState,
    Started,
    Timing,
    Traffic,
    Transition,
)

_BUSY_COOLDOWN_S = 1.0
_AT_LIMIT: Final = 0.98
"""Of a door's limit: its clock began a little earlier than ours."""
_log = logging.getLogger("tuna_router.fleet.live")
_TRAFFIC: Final = Traffic()
_TRAFFIC_STEP_S: Final = 0.1
"""Machines are told of traffic this often: they count in seconds, and a request costs microseconds."""


class Attempt:
    """One request at one backend, counted until it is closed; only the first `close` counts."""

    __slots__ = ("_key", "_open", "_share", "backend", "began", "epoch", "first_byte_at")

    def __init__(self, backend: LiveBackend, now: float, key: LiveKey | None = None) -> None:
        self.backend = backend
        self._key = key
        self._share = backend.cost.begin(now)
        self.began = now
        self.epoch = backend.machine.epoch if backend.machine is not None else 0
        self.first_byte_at = 0.0
        """When the first byte of the body came; 0 before."""
        self._open = True
        if not backend.in_flight:
            backend.busy_since = now
        if backend.open_until:
            backend.tried(now)
        backend.in_flight += 1
        backend.tally.begin(now)

    @property
    def is_open(self) -> bool:
        """True until it is closed."""
        return self._open

    @property
    def in_doubt(self) -> bool:
        """True when others failed at its backend, which has not answered since, or when nobody is known to be there
        any more: it was lost since this began, or taken off the list."""
        backend = self.backend
        if backend.open_until or backend.removed:
            return True
        machine = backend.machine
        return machine is not None and (machine.epoch != self.epoch or machine.state is SpotState.COLD)

    def close(self, outcome: Outcome, now: float, model: str = "") -> None:
        """It ended; whoever asked for it is charged its share of what the backend costs."""
        if self._open:
            self._open = False
            backend = self.backend
            if now >= backend.load.next_at:
                backend.load.advance(now)
            backend.in_flight -= 1
            backend.tally.end(outcome, self.began, now)
            backend.ledger.close(self._share, now, self._key, model)


class LiveBackend(BackendView):
    """One backend: its settings, its spot machine if it is spot, its circuit, and what it taught us.

    It *is* what the policy sees of it, kept current by what happens: nothing is copied for a decision.
    """

    def __init__(
        self, settings: BackendSettings, machine: SpotMachine | None, meter: Meter, ledger: Ledger
    ) -> None:
        super().__init__(settings.name, settings.kind, machine.state if machine is not None else None)
        self.machine = machine
        self.breaker = Breaker()
        self.ledger = ledger
        self.cost = ledger.backends[settings.name]
        self.last_error: str | None = None
        self.last_probe_at: float | None = None
        """Wall time of the last probe or poll."""
        self.last_probe_error: str | None = None
        self.nudge = asyncio.Event()
        """Set when its watcher has something to do earlier than planned."""
        self.token_ids = settings.token_ids
        """False once it has refused to tell token ids."""
        self.context_length: int | None = None
        """In tokens, where a refusal has named it."""
        self.removed = False
        """True once it was taken off the list; what runs there may run on."""
        self.noticed = asyncio.Event()
        """Set when it was announced that its machine will be taken away."""
        self._warm_since = 0.0
        self.tally = meter.backend(settings.name, settings.kind)
        self.load = meter.load
        self._meter = meter
        self._clock = meter.clock
        self.configure(settings)

    def __repr__(self) -> str:
        return f"<LiveBackend {self.name} {self.state_name} in_flight={self.in_flight}>"

    def configure(self, settings: BackendSettings) -> None:
        """Take other settings over, of the same name, kind and URL."""
        self.settings = settings
        self._route: Route | None = None
        self.limit = settings.max_concurrency
        self.weight = settings.weight
        self.models = settings.models
        self.idle_window_s = settings.idle_window_s
        self.price_per_hour_usd = settings.price_per_hour_usd

    @property
    def route(self) -> Route:
        """Where it is and how to speak to it."""
        if self._route is None:
            self._route = Route(self.settings)
        return self._route

    @property
    def state_name(self) -> str:
        """The spot state; for serverless READY or COOLING."""
        if self.machine is not None:
            return str(self.machine.state)
        return "COOLING" if self.cooling else "READY"

    @property
    def cooling(self) -> bool:
        """True for a while after failures, and a short while after it said that it has no room."""
        return self._clock() < max(self.open_until, self.busy_until)

    @property
    def is_well(self) -> bool:
        """True when nothing speaks against it: a closed circuit, and READY where it is spot."""
        return not self.open_until and self.state in (None, SpotState.READY)

    @property
    def circuit(self) -> Circuit:
        """The state of its circuit breaker."""
        return self.breaker.circuit(self._clock())

    def own_model(self, model: str) -> str:
        """What it calls the model of this public name."""
        return model if self.models is None else self.models.get(model, model)

    def tell(self, event: Event) -> Transition | None:
        """Pass an event to the spot machine; wakes the watcher where that changes its plans."""
        machine = self.machine
        if machine is None:
            return None
        before = machine.next_at
        transition = machine.apply(event)
        if transition is not None:
            self.state = machine.state
            self.queue_unknown()
        if transition is not None or machine.next_at != before:
            self.nudge.set()
        if machine.move_at is not None:
            self.noticed.set()
        if isinstance(event, ReplicasSeen):
            self.replicas = max(event.ready, 1)
        elif isinstance(event, ProbePassed) and self.open_until and self.state is SpotState.READY:
            self.breaker.proved(self._clock(), anew=transition is not None)
            self.open_until = self.breaker.open_until
        return transition

    def tried(self, now: float) -> None:
        """A request goes to it though its circuit is not closed: it may be the trial."""
        self.breaker.begin(now)
        self.open_until = self.breaker.open_until

    def first_byte(self, ttft_s: float) -> None:
        """The first byte of a generated answer's body came, `ttft_s` after its attempt began."""
        now = self._clock()
        began = now - ttft_s
        learned = self.learned
        if self.machine is not None:
            learned.first_byte(ttft_s, self.in_flight)
            if self.waiting is None:
                self.excess_ttft_s = learned.excess_ttft_s
                self.in_flight_then = self.in_flight
        else:
            self._container_answered(now)
            if began >= self._warm_since:
                learned.first_byte(ttft_s, self.in_flight)
            else:
                learned.cold_start(ttft_s)
        if self.open_until:
            self.breaker.answered(began, now)
            self.open_until = self.breaker.open_until

    def served(self, attempt: Attempt, now: float) -> None:
        """A request was answered well."""
        began = attempt.began
        self.learned.served(now - began)
        self.breaker.succeeded(began, now)
        if self.open_until:
            self.open_until = self.breaker.open_until
        self.busy_until = 0.0
        self.last_error = None
        if self.machine is None:
            self._container_answered(now)
        else:
            self.machine.served(now)  # as `apply` of RequestServed, which changes no state and no plan

    def _container_answered(self, now: float) -> None:
        if not self.warm(now):
            self._warm_since = now
        self.last_answer_at = now

    def failed(self, attempt: Attempt, reason: str, *, gone: bool, cooldown_s: float) -> None:
        """A request failed here, which may open the circuit, for `cooldown_s` at first.

        `gone`: nobody was there; that opens it at once, and a spot leaves READY. But not where one of several
        replicas behind an endpoint was gone: the others may answer, and serverless may be cold.
        """
        now = self._clock()
        self.last_error = reason
        if self.at_limit(attempt, now):
            return
        self.learned.failed(now)
        self.breaker.failed(attempt.began, now, cooldown_s, at_once=gone and self.replicas < 2)
        self.open_until = self.breaker.open_until
        self.tell(RequestFailed(attempt.epoch, reason, gone))

    def at_limit(self, attempt: Attempt, now: float) -> bool:
        """True where the provider's door cuts any answer that has taken so long: no fault of who is behind it."""
        limit_s = self.settings.answer_limit_s
        return limit_s is not None and now - attempt.began >= _AT_LIMIT * limit_s

    def disappointed(self, attempt: Attempt, reason: str, *, gone: bool, busy: bool, settings: Settings) -> None:
        """`busy` or `failed`, with the configured times."""
        if busy:
            self.busy(reason, cooldown_s=min(_BUSY_COOLDOWN_S, settings.cooldown_s))
        else:
            self.failed(attempt, reason, gone=gone, cooldown_s=settings.cooldown_s)

    def busy(self, reason: str, *, cooldown_s: float) -> None:
        """It is well, but has no room: others first for a while, and no doubt about its state."""
        now = self._clock()
        self.last_error = reason
        self.busy_until = now + cooldown_s
        if self.open_until:
            self.breaker.answered(now, now)
            self.open_until = self.breaker.open_until

    def queue_seen(self, running: float, waiting: float) -> None:
        """Its engine's queue now, or that of one of its replicas: then a sample, and the mean is what counts."""
        if self.replicas > 1 and self.waiting is not None:
            running, waiting = (self.running + running) / 2, (self.waiting + waiting) / 2
        self.running, self.waiting = running, waiting
        self.in_flight_then = self.in_flight
        self.excess_ttft_s = 0.0

    def queue_unknown(self) -> None:
        """Its engine's queue can't be seen, or has not been looked at for too long."""
        self.waiting = None
        self.running = self.excess_ttft_s = 0.0


class Fleet:
    """All backends. `configure` replaces the list and keeps what was learned of an unchanged backend."""

    def __init__(self, meter: Meter, ledger: Ledger) -> None:
        self.on_move: Callable[[LiveBackend], None] | None = None
        """Told when a backend's machine is about to go: what still runs there must move now."""
        self.on_circuit: Callable[[LiveBackend, Circuit], None] | None = None
        """Told when the circuit of a backend opens or closes."""
        self._meter = meter
        self._ledger = ledger
        self._clock = meter.clock
        self._backends: dict[str, LiveBackend] = {}
        self._order: list[LiveBackend] = []
        self._views: list[LiveBackend] = []
        """What a plan chooses from: all but the balancers of which a replica is known that was READY. Those know no
        other, and learn later that one is gone."""
        self._rules = Rules()
        self._crowded: frozenset[str] = frozenset()
        self._turn = 0
        self._tell_at = 0.0
        self._removed_ready_s = 0.0

    def __iter__(self) -> Iterator[LiveBackend]:
        return iter(self._order)

    def __getitem__(self, name: str) -> LiveBackend:
        return self._backends[name]

    @property
    def spots(self) -> list[LiveBackend]:
        """The spot backends."""
        return [backend for backend in self if backend.machine is not None]

    def replicas_of(self, name: str) -> list[LiveBackend]:
        """The backends that are replicas of this balancer."""
        return [backend for backend in self if backend.settings.balancer == name]

    @property
    def ready_seconds(self) -> float:
        """Total time in READY of the spot backend that has most of it, removed ones included."""
        return self._removed_ready_s + _most_ready(self)

    def plan(self, wish: Wish = PLAIN) -> Plan:
        """The backends for one request, which counts as traffic: every spot fleet is wanted."""
        now = self._clock()
        if now >= self._tell_at:
            self.traffic()
            self._tell_at = now + _TRAFFIC_STEP_S
        self._turn = turn = self._turn + 1
        plan = choose(self._views, wish, now, rules=self._rules, crowded=self._crowded, turn=turn)
        self._crowded = plan.crowded
        return plan

    def use_serverless(self, use: ServerlessUse) -> None:
        """From now on, until the next `configure`."""
        self._rules = Rules(self._rules.overflow_wait_s, use)

    def holds_back(self, backend: LiveBackend, wish: Wish) -> bool:
        """Whether this backend may not have this request now, though it is in its plan."""
        return backend.machine is None and holds_serverless_back(self._views, wish, self._rules)

    def is_any_well(self, backends: Iterable[LiveBackend], wish: Wish) -> bool:
        """Whether one of these may have this request now, and nothing speaks against it."""
        return any(each.is_well and not self.holds_back(each, wish) for each in backends)

    def configure(self, settings: Settings) -> None:
        """Take a new list of backends over."""
        kept = self._backends
        self._backends = {}
        self._crowded = frozenset()
        self._rules = Rules(settings.overflow_wait_s, settings.serverless_use)
        for item in settings.backends:
            timing = Timing(
                settings.probe_interval_s,
                settings.idle_after_s,
                settings.drain_limit_s,
                item.keep_warm,
                settings.move_margin_s,
            )
            backend = kept.get(item.name)
            if backend is not None and backend.settings.url == item.url and backend.kind is item.kind:
                backend.configure(item)
                if backend.machine is not None:
                    backend.machine.timing = timing
                backend.nudge.set()
            else:
                machine = None
                if item.kind is Kind.SPOT:
                    machine = SpotMachine(self._clock, timing, self._log(item.name))
                backend = LiveBackend(item, machine, self._meter, self._ledger)
                backend.breaker.on_change = functools.partial(self._circuit_changed, backend)
                backend.tell(Started())
            backend.breaker.cap_s = settings.cooldown_max_s
            self._backends[item.name] = backend
        self._order = list(self._backends.values())
        self._look()
        for name in _balancers(kept.values()) - _balancers(self._order):
            if (balancer := self._backends.get(name)) is not None:
                balancer.tell(NoneLeft())
        self._tell_at = 0.0
        for backend in kept.values():
            backend.removed = backend not in self._order
        self._removed_ready_s += _most_ready(b for b in kept.values() if b.removed)

    def traffic(self) -> None:
        """A client request arrived: every spot fleet is wanted."""
        for backend in self._views:
            if backend.machine is not None:
                backend.tell(_TRAFFIC)

    def _look(self) -> None:
        machines = [(b.settings.balancer, b.machine) for b in self._order]
        relieved = {name for name, machine in machines if name and machine and machine.was_ready}
        self._views = [backend for backend in self._order if backend.name not in relieved]

    def _circuit_changed(self, backend: LiveBackend, circuit: Circuit) -> None:
        if self.on_circuit is not None:
            self.on_circuit(backend, circuit)

    def _log(self, name: str) -> Callable[[Transition], None]:
        def note(change: Transition) -> None:
            self._tell_at = 0.0
            self._look()
            _log.info("%s: %s -> %s: %s", name, change.source, change.target, change.reason)
            self._meter.changes.append(
                StateChange(self._meter.wall(), name, change.source.value, change.target.value, change.reason)
            )

        return note


def _balancers(backends: Iterable[LiveBackend]) -> set[str]:
    """The names of those that have replicas."""
    return {backend.settings.balancer for backend in backends if backend.settings.balancer is not None}


def _most_ready(backends: Iterable[LiveBackend]) -> float:
    return max((b.machine.ready_seconds for b in backends if b.machine is not None), default=0.0)
