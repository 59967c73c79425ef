"""When to start and when to stop: pure decisions, a snapshot in and a decision out, time as an argument.

Times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuna_nb.backends.base import ServerlessScaling, SpotScaling, State


@dataclass(frozen=True, slots=True)
class InstanceView:
    """What a decision may know of an instance. idle_since: when its last request ended, or it became ready."""

    id: str
    state: State
    in_flight: int
    idle_since: float

    @property
    def counts(self) -> bool:
        """Whether it serves or is about to: those that go away are to be replaced."""
        return self.state in (State.STARTING, State.READY)


@dataclass(frozen=True, slots=True)
class Decision:
    """start: how many new instances. stop: ids, each to end once it has drained."""

    start: int = 0
    stop: tuple[str, ...] = ()


def serverless(scaling: ServerlessScaling, instances: Sequence[InstanceView], queued: int, now: float) -> Decision:
    """Containers for the requests at hand, at most `workers_max`; those idle for the window stop.

    A woken container has no request: it starts, and the idle window ends it if none comes.
    """
    alive = [i for i in instances if i.counts]
    demand = sum(i.in_flight for i in alive) + queued
    wanted = max(scaling.workers_min, min(scaling.workers_max, math.ceil(demand / scaling.concurrency)))
    if len(alive) < wanted:
        return Decision(start=wanted - len(alive))
    spare = len(alive) - wanted
    idle = sorted(
        (
            i
            for i in alive
            if i.state is State.READY and i.in_flight == 0 and now - i.idle_since >= scaling.scaledown_window
        ),
        key=lambda i: i.idle_since,
    )
    return Decision(stop=tuple(i.id for i in idle[:spare]))


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """The autoscaler's memory. replicas: how many there should be; over, under: since when the load asks for
    more or fewer, None while it does not."""

    replicas: int
    over: float | None = None
    under: float | None = None


def fleet_target(
    target: FleetTarget, scaling: SpotScaling, qps: float, last_request: float | None, now: float
) -> FleetTarget:
    """The rule of SkyServe's request-rate autoscaler: ceil(qps / target_qps) between min and max, moved only
    after the load has asked for it during the whole delay. From zero up there is no delay; to zero only after
    `downscale_delay` without a single request.
    """
    low, high = scaling.min_replicas, scaling.max_replicas
    held = min(max(target.replicas, low), high)
    quiet = last_request is None or now - last_request >= scaling.downscale_delay
    floor = max(low, 0 if quiet else 1)
    wanted = min(high, max(floor, math.ceil(qps / scaling.target_qps)))
    if quiet and target.replicas <= 1 and wanted < held:
        # The delay has already been waited for, since the last request.
        return FleetTarget(wanted)
    if wanted > held:
        over = now if target.over is None else target.over
        due = held == 0 or now - over >= scaling.upscale_delay
        return FleetTarget(wanted) if due else FleetTarget(held, over=over)
    if wanted < held:
        under = now if target.under is None else target.under
        return FleetTarget(wanted) if now - under >= scaling.downscale_delay else FleetTarget(held, under=under)
    return replace(target, replicas=held, over=None, under=None)


def fleet(target: int, instances: Sequence[InstanceView]) -> Decision:
    """Replicas up to the target. The first to go are those not ready yet, then those with the least to do."""
    alive = [i for i in instances if i.counts]
    if len(alive) <= target:
        return Decision(start=target - len(alive))
    order = sorted(alive, key=lambda i: (i.state is State.READY, i.in_flight))
    return Decision(stop=tuple(i.id for i in order[: len(alive) - target]))


def least_loaded(instances: Sequence[InstanceView], limit: int | None = None) -> str | None:
    """The ready instance with the fewest requests and, where there is a limit, a free place."""
    free = [i for i in instances if i.state is State.READY and (limit is None or i.in_flight < limit)]
    return min(free, key=lambda i: (i.in_flight, i.idle_since)).id if free else None
