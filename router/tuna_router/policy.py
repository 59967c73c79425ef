"""Which backend answers: a snapshot of all in, an ordered plan out. Pure, so that a planner can
simulate exactly what a router does.

The rules, in order: spot when it is READY and below its limit; else serverless; backends at their
limit and backends that just failed at the back; a spot that is WARMING as the last resort (it may
be a moment before READY); COLD and DRAINING spot only where there is nothing else at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tuna_router.settings import Kind
from tuna_router.spot import SpotState


class BackendView(NamedTuple):
    """What the policy sees of one backend.

    `state` is None for serverless; `limit` None means no limit; `cooling` is true for a short while
    after a failure.
    """

    name: str
    kind: Kind
    state: SpotState | None = None
    in_flight: int = 0
    limit: int | None = None
    cooling: bool = False

    @property
    def full(self) -> bool:
        """True when it has as many requests as it takes."""
        return self.limit is not None and self.in_flight >= self.limit


class Plan(NamedTuple):
    """The backends to try, first to last, and why the first one is first."""

    names: tuple[str, ...]
    reason: str


_SPOT, _SERVERLESS, _FULL_SERVERLESS, _FULL_SPOT, _COOLING, _WARMING, _LAST = range(7)


def choose(backends: Sequence[BackendView]) -> Plan:
    """The plan for one request. Empty only where `backends` is."""
    # The position is unique: a tie never gets as far as comparing views.
    ranked = sorted([(_rank(view), view.in_flight, position, view) for position, view in enumerate(backends)])
    order = [view for rank, _, _, view in ranked if rank < _LAST] or [entry[3] for entry in ranked]
    return Plan(tuple([view.name for view in order]), _reason(order, backends))


def _rank(view: BackendView) -> int:
    if view.kind is Kind.SPOT and view.state is not SpotState.READY:
        return _WARMING if view.state is SpotState.WARMING else _LAST
    if view.cooling:
        return _COOLING
    if view.kind is Kind.SPOT:
        return _FULL_SPOT if view.full else _SPOT
    return _FULL_SERVERLESS if view.full else _SERVERLESS


def _reason(order: Sequence[BackendView], backends: Sequence[BackendView]) -> str:
    if not order:
        return "no backend is configured"
    first = order[0]
    if first.kind is Kind.SPOT:
        if first.state is SpotState.READY and not first.cooling and not first.full:
            return "spot is ready"
        return f"spot is {str(first.state).lower()} and there is nothing better"
    spots = [view for view in backends if view.kind is Kind.SPOT]
    if not spots:
        return "there is no spot backend"
    ready = [view for view in spots if view.state is SpotState.READY]
    if not ready:
        best = min(spots, key=lambda view: _NEAREST.index(view.state or SpotState.COLD))
        return f"spot is {str(best.state).lower()}"
    if all(view.cooling for view in ready):
        return "spot just failed"
    return "spot is at its limit"


_NEAREST = (SpotState.READY, SpotState.WARMING, SpotState.DRAINING, SpotState.COLD)
