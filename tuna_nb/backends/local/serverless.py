"""The serverless side: containers from zero to `workers_max`, requests held while one starts cold."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tuna_nb.backends.base import ServerlessScaling, State
from tuna_nb.backends.local import scaling as rules
from tuna_nb.backends.local.instance import Instance
from tuna_nb.backends.local.journal import Journal, ResourceRecord
from tuna_nb.backends.local.scaling import Decision, InstanceView
from tuna_nb.backends.local.service import Service, Unavailable


@dataclass(eq=False)
class _Waiting:
    """A request without a container. `tried`: those that died under it."""

    place: asyncio.Future[Instance]
    tried: frozenset[str]


class ServerlessService(Service):
    """Requests queue in order of arrival; a container takes at most `concurrency` of them at once."""

    def __init__(self, record: ResourceRecord, folder: Path, journal: Journal) -> None:
        super().__init__(record, folder, journal)
        self.queue: deque[_Waiting] = deque()
        self._woken = False

    @property
    def scaling(self) -> ServerlessScaling:
        assert isinstance(self.record.scaling, ServerlessScaling)
        return self.record.scaling

    @property
    def is_hopeless(self) -> bool:
        """Nothing serves, and nothing more is started."""
        return bool(self.failure) and not any(
            i.state in (State.STARTING, State.READY) for i in self.instances.values()
        )

    def decide(self, views: list[InstanceView], now: float) -> Decision:
        if any(v.state is State.READY for v in views):
            self._woken = False
        elif self._woken and not any(v.counts for v in views):
            return Decision(start=1)
        return rules.serverless(self.scaling, views, len(self.queue), now)

    def retire(self, instance: Instance) -> None:
        instance.stop("idle")

    def wake(self) -> None:
        self._woken = True
        self.forgive()

    def on_start(self, instance: Instance) -> None:
        """Nothing to plan: a container lives as long as it has work."""

    def on_tick(self, now: float) -> None:
        """Nothing is due by time alone; `decide` knows the idle window."""

    def request_limit_s(self) -> float | None:
        return self.scaling.timeout

    async def acquire(self, tried: frozenset[str], deadline: float) -> Instance:
        if self.is_hopeless:
            raise Unavailable(f"the engine can't be started: {self.failure}")
        waiting = _Waiting(asyncio.get_running_loop().create_future(), tried)
        self.queue.append(waiting)
        self.on_change()
        self.poke()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await waiting.place
        except TimeoutError:
            self._leave(waiting)
            raise Unavailable("no container became free in time", retry_after_s=1) from None
        except asyncio.CancelledError:
            self._leave(waiting)
            raise

    def _leave(self, waiting: _Waiting) -> None:
        """The request is given up; a place that it got at this very moment goes to the next."""
        if waiting in self.queue:
            self.queue.remove(waiting)
        elif waiting.place.done() and not waiting.place.cancelled() and waiting.place.exception() is None:
            self.give_back(waiting.place.result())

    def on_change(self) -> None:
        """Hand free places to the queue, first come first served."""
        if self.deleting or self.is_hopeless:
            reason = f"the engine can't be started: {self.failure}"
            if self.deleting:
                reason = "this endpoint is being destroyed"
            while self.queue:
                waiting = self.queue.popleft()
                if not waiting.place.done():
                    waiting.place.set_exception(Unavailable(reason))
            return
        for waiting in list(self.queue):
            if waiting.place.done():
                self.queue.remove(waiting)
                continue
            views = [
                InstanceView(i.id, i.state, i.in_flight, i.idle_since)
                for i in self.instances.values()
                if i.id not in waiting.tried
            ]
            name = rules.least_loaded(views, self.scaling.concurrency)
            if name is not None:
                self.queue.remove(waiting)
                waiting.place.set_result(self.take(self.instances[name]))
