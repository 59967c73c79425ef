"""The spot side: replicas behind one load balancer, scaled by requests per second, taken away at any moment.

It behaves like a SkyServe service: with no ready replica a request is refused, not queued, and still counts as
traffic that wakes the fleet; a replacement boots as soon as a preemption is known.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuna_nb.backends.base import SpotScaling, State
from tuna_nb.backends.local import scaling as rules
from tuna_nb.backends.local.instance import Instance
from tuna_nb.backends.local.journal import Journal, ResourceRecord
from tuna_nb.backends.local.scaling import Decision, FleetTarget, InstanceView
from tuna_nb.backends.local.service import Service, Unavailable
from tuna_nb.errors import ConflictError, NotFoundError

NO_REPLICA: Final = 'No ready replicas. Use "tuna status" to see what the fleet is doing.'


@dataclass(frozen=True, slots=True)
class ReplicaCounts:
    """What `GET /-/replicas` tells."""

    ready: int
    starting: int
    draining: int
    total: int


class Fleet(Service):
    """A spot service."""

    def __init__(self, record: ResourceRecord, folder: Path, journal: Journal) -> None:
        super().__init__(record, folder, journal)
        self.target = FleetTarget(self.scaling.min_replicas)
        self._requests: deque[float] = deque()
        self._last_request: float | None = None
        self._dice = random.Random(record.spec.figures.seed)
        self._taken_at: dict[str, float] = {}

    @property
    def scaling(self) -> SpotScaling:
        assert isinstance(self.record.scaling, SpotScaling)
        return self.record.scaling

    def counts(self) -> ReplicaCounts:
        states = [i.state for i in self.instances.values()]
        return ReplicaCounts(
            states.count(State.READY), states.count(State.STARTING), states.count(State.DRAINING), len(states)
        )

    def decide(self, views: list[InstanceView], now: float) -> Decision:
        window = self.spec.figures.qps_window_s
        while self._requests and now - self._requests[0] > window:
            self._requests.popleft()
        qps = len(self._requests) / window
        before = self.target.replicas
        self.target = rules.fleet_target(self.target, self.scaling, qps, self._last_request, now)
        if self.target.replicas != before:
            self.log.write(f"target is now {self.target.replicas} replicas ({qps:.2f} requests/s)")
        return rules.fleet(self.target.replicas, views)

    def retire(self, instance: Instance) -> None:
        if instance.state is State.READY and instance.in_flight:
            instance.drain("scaled down", self.spec.figures.drain_s, preempted=False)
        else:
            instance.stop("scaled down")

    def wake(self) -> None:
        self._last_request = time.monotonic()
        self.forgive()

    def on_change(self) -> None:
        """Nothing waits here: a request without a replica was refused."""

    def request_limit_s(self) -> float | None:
        return None

    async def acquire(self, tried: frozenset[str], deadline: float) -> Instance:
        now = time.monotonic()
        if not tried:
            self._last_request = now
            self._requests.append(now)
            if self.target.replicas == 0:
                self.poke()
        views = [
            InstanceView(i.id, i.state, i.in_flight, i.idle_since)
            for i in self.instances.values()
            if i.id not in tried
        ]
        name = rules.least_loaded(views)
        if name is None:
            raise Unavailable(f"the engine can't be started: {self.failure}" if self.failure else NO_REPLICA)
        return self.take(self.instances[name])

    # Preemption

    def on_start(self, instance: Instance) -> None:
        mean = self.spec.figures.preemption_mean_s
        if mean > 0:
            self._taken_at[instance.id] = time.monotonic() + self._dice.expovariate(1 / mean)

    def on_tick(self, now: float) -> None:
        for name in [n for n in self._taken_at if n not in self.instances]:
            del self._taken_at[name]
        for instance in list(self.instances.values()):
            if now >= self._taken_at.get(instance.id, now + 1) and not instance.preempted:
                del self._taken_at[instance.id]
                self._preempt(instance, self.spec.figures.notice_s)
            if instance.state is not State.DRAINING or instance.kill_at is None:
                continue
            if now >= instance.kill_at:
                instance.stop(instance.detail, hard=instance.preempted)
            elif instance.in_flight == 0 and not instance.preempted:
                instance.stop(instance.detail)

    def preempt(self, notice_s: float | None = None, replica: str | None = None) -> str:
        """Take a replica away; the one with the most requests where none is named. Returns its id.

        With notice it takes nothing new and is killed at the end; without, it is killed at once.
        Raises NotFoundError for an unknown replica, ConflictError where none is left to take.
        """
        if replica is not None:
            chosen = self.instances.get(replica)
            if chosen is None:
                known = ", ".join(self.instances) or "none"
                raise NotFoundError(f"{self.spec.name} has no replica {replica!r}", f"there are: {known}")
        else:
            alive = [i for i in self.instances.values() if i.state in (State.READY, State.STARTING)]
            chosen = max(alive, key=lambda i: (i.state is State.READY, i.in_flight), default=None)
            if chosen is None:
                raise ConflictError(
                    f"{self.spec.name} has no replica to preempt", "it has scaled to zero or drains already"
                )
        self._preempt(chosen, self.spec.figures.notice_s if notice_s is None else notice_s)
        return chosen.id

    def _preempt(self, instance: Instance, notice_s: float) -> None:
        if notice_s > 0 and instance.state is not State.STOPPING:
            instance.drain(f"preempted with {notice_s:g} s of notice", notice_s, preempted=True)
        else:
            instance.preempted = True
            instance.stop("preempted without notice", hard=True)
        self.poke()
