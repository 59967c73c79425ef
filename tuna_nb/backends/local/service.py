"""One resource at work: its instances, who may have the next request, and the loop that scales it.

`serverless.py` and `fleet.py` are the two kinds. Everything here runs on the daemon's one event loop, so a change
of state between two awaits is seen by nobody half done.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tuna_nb.backends.base import Replica, State
from tuna_nb.backends.local import spec as specs
from tuna_nb.backends.local.instance import Instance, Site
from tuna_nb.backends.local.journal import Journal, ResourceRecord
from tuna_nb.backends.local.logbook import LogBook
from tuna_nb.backends.local.scaling import Decision, InstanceView
from tuna_nb.backends.local.spec import Scaling, Spec
from tuna_nb.errors import TunaError

MAX_FAILED_STARTS: Final = 3
"""Failed starts in a row after which no more is tried: an engine that can't start would bill for ever."""
_TICK_S: Final = 0.2
_RETRY_S: Final = 0.2


class Unavailable(Exception):
    """No instance can take the request; `message` is for the client."""

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What the cloud says of a resource."""

    state: State
    replicas: tuple[Replica, ...]
    billing: bool
    detail: str


class Service(abc.ABC):
    """A resource. `record` is what the journal has of it."""

    def __init__(self, record: ResourceRecord, folder: Path, journal: Journal) -> None:
        self.record = record
        self.log = LogBook(folder, record.spec.name)
        self.instances: dict[str, Instance] = {}
        self.deleting = False
        self._journal = journal
        self._site = Site(journal, self.log, journal.cloud_id, self.poke)
        self._poked = asyncio.Event()
        self._failed_starts = 0
        self._failure = ""
        self._retry_at = 0.0
        self._proven: set[str] = set()
        self._loop: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.name} {list(self.instances.values())}>"

    @property
    def spec(self) -> Spec:
        return self.record.spec

    @property
    def failure(self) -> str:
        """Why no more instances are started; empty while they are."""
        return self._failure if self._failed_starts >= MAX_FAILED_STARTS else ""

    # What the kinds decide

    @abc.abstractmethod
    def decide(self, views: list[InstanceView], now: float) -> Decision:
        """How many to start and which to stop. `now` is monotonic."""

    @abc.abstractmethod
    def retire(self, instance: Instance) -> None:
        """End an instance that is not needed any more."""

    @abc.abstractmethod
    def wake(self) -> None:
        """Start serving if scaled to zero; forgives failed starts."""

    @abc.abstractmethod
    def on_start(self, instance: Instance) -> None:
        """A new instance has begun to boot."""

    @abc.abstractmethod
    async def acquire(self, tried: frozenset[str], deadline: float) -> Instance:
        """The instance for a request, its place taken; not one of `tried`. Raises Unavailable."""

    @abc.abstractmethod
    def request_limit_s(self) -> float | None:
        """Seconds that a request may run, None for no limit."""

    @abc.abstractmethod
    def on_change(self) -> None:
        """An instance changed its state, or a place became free."""

    @abc.abstractmethod
    def on_tick(self, now: float) -> None:
        """Several times a second, before the decision."""

    # Requests

    @contextlib.contextmanager
    def lease(self, instance: Instance) -> Iterator[None]:
        """Gives the place that `acquire` took back at the end."""
        try:
            yield
        finally:
            self.give_back(instance)

    def take(self, instance: Instance) -> Instance:
        instance.in_flight += 1
        return instance

    def give_back(self, instance: Instance) -> None:
        instance.in_flight -= 1
        instance.idle_since = time.monotonic()
        self.on_change()
        self.poke()

    # Changes from outside

    def start(self) -> None:
        """Begin to scale; the first decision is taken before this returns."""
        self._step(time.monotonic())
        self._loop = asyncio.create_task(self._run(), name=f"scale {self.spec.name}")

    def raise_if_broken(self) -> None:
        """Raises what ended the scaling loop, which must not go unseen: nothing would be stopped any more."""
        if self._loop is not None and self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    def scale(self, scaling: Scaling) -> None:
        """In place; running instances stay where the new figures allow it."""
        specs.check_scaling(self.spec.kind, scaling)
        self._journal.set_scaling(self.spec.name, scaling)
        self.record = replace(self.record, scaling=scaling)
        self.log.write(f"scaling is now {scaling}")
        self.forgive()
        self.on_change()

    def forgive(self) -> None:
        """Failed starts are forgotten: someone asked for a new try."""
        self._failed_starts = 0
        self._retry_at = 0.0
        self.poke()

    def status(self) -> ServiceStatus:
        shown = tuple(i.view() for i in self.instances.values())
        states = {r.state for r in shown}
        if self.deleting:
            return ServiceStatus(State.STOPPING, shown, bool(shown), "being destroyed")
        if self.failure and State.READY not in states:
            return ServiceStatus(State.FAILED, shown, bool(shown), self.failure)
        order = (State.READY, State.STARTING, State.DRAINING, State.STOPPING)
        state = next((s for s in order if s in states), None)
        if state is not None:
            return ServiceStatus(state, shown, True, self._failure)
        waiting = self._failed_starts > 0 and self._retry_at > time.monotonic()
        return ServiceStatus(State.STARTING if waiting else State.IDLE, shown, bool(shown), self._failure)

    async def close(self) -> None:
        """Stop scaling and end every instance. Raises BackendError where one does not end."""
        self.deleting = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait({self._loop})
        self.on_change()
        for instance in self.instances.values():
            instance.stop("its resource is destroyed")
        results = await asyncio.gather(*(i.ended() for i in self.instances.values()), return_exceptions=True)
        failures = [r for r in results if isinstance(r, BaseException)]
        if failures:
            raise failures[0]
        self.instances.clear()

    # The loop

    def poke(self) -> None:
        """Look again now, not at the next tick."""
        self._poked.set()

    async def _run(self) -> None:
        while True:
            try:
                self._step(time.monotonic())
            except TunaError as exc:
                # No room, no port, an unwritable journal: tell it and try again; the rest must go on.
                self._retry_at = time.monotonic() + _RETRY_S
                self._failure = exc.message
            self._poked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._poked.wait()

    def _step(self, now: float) -> None:
        self._collect(now)
        self.on_tick(now)
        self.on_change()
        views = [InstanceView(i.id, i.state, i.in_flight, i.idle_since) for i in self.instances.values()]
        decision = self.decide(views, now)
        # A failed start is counted when all of it is gone; until then no other is tried.
        settled = all(i.state is not State.FAILED for i in self.instances.values())
        if settled and not self.failure and now >= self._retry_at:
            for _ in range(decision.start):
                instance = Instance(self.spec, self.record.uid, self._site)
                self.instances[instance.id] = instance
                self.on_start(instance)
        for name in decision.stop:
            self.retire(self.instances[name])

    def _collect(self, now: float) -> None:
        """Take the finished ones off the list; count starts that failed."""
        for instance in self.instances.values():
            if instance.was_ready and instance.id not in self._proven:
                self._proven.add(instance.id)
                self._failed_starts, self._failure = 0, ""
        for instance in [i for i in self.instances.values() if i.is_over]:
            del self.instances[instance.id]
            self._proven.discard(instance.id)
            if instance.trouble:
                self._failed_starts += 1
                self._failure = instance.trouble
                self._retry_at = now + _RETRY_S * 2 ** (self._failed_starts - 1)
                self.log.write(f"start {self._failed_starts} of at most {MAX_FAILED_STARTS} failed")
