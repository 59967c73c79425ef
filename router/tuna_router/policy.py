"""Which backend answers: a snapshot of all in, an ordered plan out. Pure, so that a planner can
simulate exactly what a router does: no clock, no I/O, no memory. What a decision needs of the one
before it (which spots were crowded, how many there have been) comes in with the snapshot.

The rules, in order:

1.  A model that only some backends serve goes only to them.
2.  Spot, when it is READY, below its limit and not crowded.
3.  Else serverless: where spot is not READY or at its limit, always; where it is merely crowded (its
    queue is predicted to take too long) only if a container is warm, or would be quicker even with its
    cold start. Overflow into a cold container costs money and gains nothing.
    With `serverless_use` "cover" there is no overflow: while a spot is READY, serverless has nothing, be it
    full, crowded or its circuit open. With "never" serverless has nothing new at all: a request that finds no
    READY spot is refused.
4.  Load never moves a batch request: it stays on spot while a spot is READY.
5.  A backend whose circuit is open comes after all that, a WARMING spot after it, DRAINING and COLD
    spots only where there is nothing else. Nothing is left out for having failed: the only backend
    is always tried.
6.  Among equals: the session's own backend, else by weight where weights differ; else a warm container
    before a cold one, then the least in flight, then the cheapest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from math import log
from typing import Final, NamedTuple

from tuna_router.fleet.learned import Learned
from tuna_router.settings import Kind, ServerlessUse
from tuna_router.spot import SpotState

UNKNOWN_COLD_START_S: Final = 60.0
"""Taken for a cold start that was never seen."""
UNKNOWN_SERVICE_S: Final = 5.0
"""Taken for the length of a request before one has ended."""
SHAKY: Final = 0.2
"""A backend that failed this share of its requests lately comes after its equals."""
_GOLDEN: Final = 0.6180339887498949
_SLACK: Final = 4
_NOBODY: Final[frozenset[str]] = frozenset()


class Priority(StrEnum):
    """Whether somebody waits for the answer."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Wish(NamedTuple):
    """What a request wants. `model` and `session` are None where nothing configured asks for them."""

    priority: Priority = Priority.INTERACTIVE
    model: str | None = None
    session: bytes | None = None


PLAIN: Final = Wish()


@dataclass(slots=True, eq=False)
class BackendView:
    """What the policy sees of one backend. Times are of the clock that `now` is of, in seconds.

    `state` is None for serverless. `limit` None: no limit. `open_until`: 0 while its circuit is closed,
    else the time from which one request may try it. `busy_until`: it said that it has no room.
    `waiting`, `running` and `in_flight_then` are its engine's queue when last looked at and our requests
    at that moment (`waiting` None: not known). `replicas` share that queue. `excess_ttft_s` is by how
    much first tokens came late with `in_flight_then` requests, for engines whose queue can't be seen.
    `last_answer_at` and `busy_since` (when its present run of requests began) tell whether a serverless
    container is warm, which it is for `idle_window_s` after an answer. `models` maps public to own names;
    None serves any.
    """

    name: str
    kind: Kind
    state: SpotState | None = None
    in_flight: int = 0
    limit: int | None = None
    open_until: float = 0.0
    busy_until: float = 0.0
    waiting: float | None = None
    running: float = 0.0
    replicas: int = 1
    excess_ttft_s: float = 0.0
    in_flight_then: int = 0
    last_answer_at: float | None = None
    busy_since: float = 0.0
    idle_window_s: float = 60.0
    weight: float = 1.0
    price_per_hour_usd: float | None = None
    models: Mapping[str, str] | None = None
    learned: Learned = field(default_factory=Learned)

    def serves(self, model: str) -> bool:
        """True where it has this public model name, or takes any."""
        return self.models is None or model in self.models

    def full(self, now: float) -> bool:
        """True when it has as many requests as it takes, or says so."""
        return (self.limit is not None and self.in_flight >= self.limit) or now < self.busy_until

    def warm(self, now: float) -> bool:
        """True when a container is there: one answered lately, or did so and has been busy ever since."""
        last = self.last_answer_at
        if last is None:
            return False
        return now - last < self.idle_window_s or (self.in_flight > 0 and last >= self.busy_since)


class Plan(NamedTuple):
    """The backends to try, first to last, and why the first one is first.

    `crowded` are the spots with a long queue, for the next decision. `load_stays`: a refusal for want of
    room is no reason to move on to another kind of backend. `unknown_model`: `names` is empty because no
    backend has the model. `stopped`: it is empty because serverless takes nothing new and no spot is READY.
    """

    names: tuple[str, ...]
    reason: str
    crowded: frozenset[str] = _NOBODY
    load_stays: bool = False
    unknown_model: bool = False
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """A spot is crowded when its predicted wait exceeds `overflow_wait_s`, until it is below half of that.

    `serverless_use` says when serverless takes new requests.
    """

    overflow_wait_s: float = 0.5
    serverless_use: ServerlessUse = ServerlessUse.ALWAYS


_RULES: Final = Rules()
_READY, _SERVERLESS, _CROWDED, _FULL_SERVERLESS, _FULL_SPOT, _SHUT, _HELD_BACK, _WARMING, _DRAINING, _COLD = range(
    10
)
_NOT_READY: Final = {
    SpotState.READY: _READY,
    SpotState.WARMING: _WARMING,
    SpotState.DRAINING: _DRAINING,
    SpotState.COLD: _COLD,
}


def choose(
    backends: Sequence[BackendView],
    wish: Wish = PLAIN,
    now: float = 0.0,
    *,
    rules: Rules = _RULES,
    crowded: frozenset[str] = _NOBODY,
    turn: int = 0,
) -> Plan:
    """The plan for one request.

    `crowded` is that of the plan before, `turn` a counter of plans. Empty only where no backend is
    configured, or none of them serves the model.
    """
    if wish is PLAIN and not crowded and len(backends) == 2 and rules.serverless_use is ServerlessUse.ALWAYS:
        plan = _ordinary(backends[0], backends[1], now)
        if plan is not None:
            return plan
    return _choose(backends, wish, now, rules=rules, crowded=crowded, turn=turn)


def _choose(
    backends: Sequence[BackendView],
    wish: Wish,
    now: float,
    *,
    rules: Rules = _RULES,
    crowded: frozenset[str] = _NOBODY,
    turn: int = 0,
) -> Plan:
    able = backends if wish.model is None else [view for view in backends if view.serves(wish.model)]
    if not able:
        if backends:
            return Plan((), f"no backend serves the model {wish.model!r}", crowded, unknown_model=True)
        return Plan((), "no backend is configured")
    held_back = holds_serverless_back(able, wish, rules)
    if rules.serverless_use is ServerlessUse.NEVER:
        if not any(view.state is SpotState.READY for view in able):
            return Plan((), _stopped_reason(able), crowded, stopped=True)
        able = [view for view in able if view.state is not None]
    crowded = _crowded(able, crowded, rules.overflow_wait_s)
    # Where there is no overflow, load moves no request.
    batch = wish.priority is Priority.BATCH or held_back
    relieved = _NOBODY if batch or not crowded else _relieved(able, crowded, now)
    ranked = sorted(
        # The position is unique: a tie never gets as far as comparing views.
        [
            (_rank(view, batch, held_back, relieved, now), *_order(view, crowded, now), position, view)
            for position, view in enumerate(able)
        ]
    )
    rank, strained = ranked[0][:2]
    if rank < _DRAINING:
        ranked = [entry for entry in ranked if entry[0] < _DRAINING]
    order = [entry[-1] for entry in ranked]
    equals = [entry[-2:] for entry in ranked if entry[:2] == (rank, strained)]
    if len(equals) > 1:
        first = _pick([view for _, view in sorted(equals)], wish.session, turn, now)
        if first is not None:
            order.remove(first)
            order.insert(0, first)
    reason = _reason(order[0], rank, able, held_back=held_back, batch=batch, crowded=crowded, now=now)
    return Plan(tuple([view.name for view in order]), reason, crowded, batch and rank == _READY)


def holds_serverless_back(backends: Sequence[BackendView], wish: Wish, rules: Rules) -> bool:
    """Whether serverless may not have this request now, first or after a spot failed it."""
    if rules.serverless_use is ServerlessUse.ALWAYS:
        return False
    return rules.serverless_use is ServerlessUse.NEVER or any(
        view.state is SpotState.READY and (wish.model is None or view.serves(wish.model)) for view in backends
    )


def predicted_wait_s(view: BackendView) -> float:
    """How long one more request would wait in this backend's queue: what is queued, by how fast it goes.

    Where the engine's queue can't be seen, by how much first tokens came late, in proportion to what is
    in flight since.
    """
    if view.waiting is not None:
        if not view.waiting:
            return 0.0  # whatever came since may well have been scheduled: the next look will tell
        queue = view.waiting + (view.in_flight - view.in_flight_then) / view.replicas
        service_s = view.learned.service_s
        if service_s is None:
            service_s = UNKNOWN_SERVICE_S
        return max(queue, 0.0) * service_s / max(view.running, 1.0)
    return view.excess_ttft_s * view.in_flight / max(view.in_flight_then, 1)


def predicted_ttft_s(view: BackendView, now: float) -> float:
    """How long one more request would wait for a serverless backend's first token, a cold start included."""
    if view.warm(now):
        return view.learned.ttft_s or 0.0
    cold_s = view.learned.cold_ttft_s
    return UNKNOWN_COLD_START_S if cold_s is None else cold_s


def _ordinary(one: BackendView, other: BackendView, now: float) -> Plan | None:
    """The ordinary case, decided in a microsecond: one serverless, and one spot with nothing against it.

    The order does not depend on the serverless backend then: it is second to such a spot, and before
    one that is not READY, whatever may be wrong with it.
    """
    spot, serverless = (one, other) if one.state is not None else (other, one)
    state = spot.state
    if state is None or serverless.state is not None:
        return None
    if state is SpotState.READY and (
        spot.open_until
        or spot.waiting
        or spot.excess_ttft_s
        or now < spot.busy_until
        or (spot.limit is not None and spot.in_flight >= spot.limit)
    ):
        return None
    return _of_two(spot.name, serverless.name, state)


@lru_cache(maxsize=32)
def _of_two(spot: str, serverless: str, state: SpotState) -> Plan:
    views = [BackendView(spot, Kind.SPOT, state), BackendView(serverless, Kind.SERVERLESS)]
    return _choose(views, PLAIN, 0.0)


def _crowded(able: Sequence[BackendView], before: frozenset[str], enter_s: float) -> frozenset[str]:
    """The spots with a long queue now; those of before that can't be judged here stay what they were."""
    found = [
        view.name
        for view in able
        if view.state is SpotState.READY
        and (wait_s := predicted_wait_s(view))
        and wait_s > (enter_s / 2 if view.name in before else enter_s)
    ]
    if not before:
        return frozenset(found) if found else _NOBODY
    return (before - {view.name for view in able}) | frozenset(found)


def _relieved(able: Sequence[BackendView], crowded: Collection[str], now: float) -> frozenset[str]:
    """The crowded spots for whose clients a serverless backend would be better: warm, or quicker even when cold."""
    open_ = [view for view in able if view.state is None and not view.open_until and not view.full(now)]
    if not open_:
        return _NOBODY
    if any(view.warm(now) for view in open_):
        return frozenset(crowded)
    least_s = min(predicted_ttft_s(view, now) for view in open_)
    return frozenset(
        view.name
        for view in able
        if view.name in crowded and predicted_wait_s(view) + (view.learned.usual_ttft_s or 0.0) > least_s
    )


def _shut(view: BackendView, now: float) -> bool:
    return now < view.open_until


def _rank(view: BackendView, batch: bool, held_back: bool, relieved: Collection[str], now: float) -> int:
    if view.state is not None and view.state is not SpotState.READY:
        return _NOT_READY[view.state]
    if held_back and view.state is None:
        return _HELD_BACK
    if _shut(view, now):
        return _SHUT
    if view.state is None:
        return _FULL_SERVERLESS if view.full(now) else _SERVERLESS
    if batch:
        return _READY
    if view.full(now):
        return _FULL_SPOT
    return _CROWDED if view.name in relieved else _READY


def _order(view: BackendView, crowded: Collection[str], now: float) -> tuple[bool, bool, bool, float, float]:
    """Among backends of one rank, the lower one is first."""
    return (
        view.state is not None and (view.name in crowded or view.full(now)),
        view.learned.errors(now) > SHAKY,
        view.state is None and not view.warm(now),
        _load(view),
        view.price_per_hour_usd or 0.0,
    )


def _load(view: BackendView) -> float:
    return view.in_flight / view.weight if view.weight else float("inf")


def _pick(equals: Sequence[BackendView], session: bytes | None, turn: int, now: float) -> BackendView | None:
    """The one of `equals` (in configured order) that this request should have; None: no preference."""
    weighted = [view for view in equals if view.weight and not view.full(now)]
    if not weighted:
        return None
    if session is not None:
        return max(weighted, key=lambda view: _affinity(view, session))
    if all(view.weight == equals[0].weight for view in equals):
        return None
    # A golden-ratio sequence hits every interval of [0, 1) in proportion to its length, evenly from the start.
    total = sum([view.weight for view in weighted])
    left = (turn * _GOLDEN) % 1.0 * total
    picked = weighted[-1]
    for view in weighted:
        left -= view.weight
        if left < 0:
            picked = view
            break
    share = sum([view.in_flight for view in weighted]) * picked.weight / total
    if picked.in_flight > 2 * share + _SLACK:
        return min(weighted, key=_load)  # it is slower than its weight says
    return picked


def _affinity(view: BackendView, session: bytes) -> float:
    """Rendezvous hashing: each pair has a score, the highest wins, so a backend that goes moves only its own.

    -weight / ln(u) makes the shares follow the weights (Schindelhauer and Schomaker 2005).
    """
    digest = blake2b(view.name.encode() + b"\0" + session, digest_size=8).digest()
    u = ((int.from_bytes(digest) >> 12) + 0.5) / 2**52  # above 0 and below 1, both exactly
    return -view.weight / log(u)


def _stopped_reason(able: Sequence[BackendView]) -> str:
    spots = [view for view in able if view.state is not None]
    if not spots:
        return "there is no spot backend"
    best = min(spots, key=lambda view: _NOT_READY[view.state or SpotState.COLD])
    return f"spot is {str(best.state).lower()}"


def _reason(
    first: BackendView,
    rank: int,
    able: Sequence[BackendView],
    *,
    held_back: bool,
    batch: bool,
    crowded: Collection[str],
    now: float,
) -> str:
    if first.state is not None:
        if rank == _READY:
            if first.full(now) or first.name in crowded:
                if held_back:
                    return "spot has a queue, and serverless does not relieve it"
                return (
                    "spot is ready, and load does not move a batch request"
                    if batch
                    else "spot has a queue, and a cold container would be slower"
                )
            return "spot is being tried again" if first.open_until else "spot is ready"
        state = "full" if rank == _FULL_SPOT else str(first.state).lower()
        return f"spot is {state} and there is nothing better"
    spots = [view for view in able if view.state is not None]
    if not spots:
        return "there is no spot backend"
    ready = [view for view in spots if view.state is SpotState.READY]
    if not ready:
        return _stopped_reason(spots)
    if all(_shut(view, now) for view in ready):
        return "spot just failed"
    if any(view.name in crowded and not view.full(now) for view in ready):
        return "spot has a queue, and serverless is quicker"
    return "spot is at its limit"
