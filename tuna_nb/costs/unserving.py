"""Billing but not serving: what costs money and has not answered for so long that somebody should know.

Told from the ledger's intervals, the provider's word and the router's load. What is ready and idle because the
scaling policy keeps it is no such thing; only after a long time without any request it is told as forgotten.
What nobody tells is not judged: a provider that does not say when a replica is ready is asked for its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tuna_nb.costs.amounts import billed
from tuna_nb.costs.load import MINUTE_S, Load
from tuna_nb.records import IntervalRecord

QUIET_S: Final = 15 * 60.0
FORGOTTEN_S: Final = 24 * 3600.0
LOOK_BACK_S: Final = 25 * 3600.0
"""So much of the past is looked at: more than FORGOTTEN_S."""
BETWEEN_S: Final = 120.0
"""Between two attempts of a crash loop nothing may run for so long; longer, and it has ended."""
BREAK_S: Final = 300.0
"""A router that has not counted for longer may have missed a request."""
LOOP: Final = 3
"""So many attempts are a loop; so many requests without an answer are silence."""


@dataclass(frozen=True, slots=True)
class Unserving:
    """kind: `crash loop`, `stuck loading`, `failed`, `never answers` or `forgotten`. since: Unix seconds.
    usd: what it has cost since then, of known prices. alone: nothing else of the resource serves."""

    role: str
    provider: str
    kind: str
    since: float
    usd: float
    until: float
    attempts: int = 1
    alone: bool = True

    @property
    def forgotten(self) -> bool:
        return self.kind == "forgotten"


@dataclass(frozen=True, slots=True)
class Observed:
    """A resource: its intervals of the last LOOK_BACK_S, open ones included. states: of its replicas by id, as the
    provider says now, and state, of the whole; empty where it was not asked. load: None where no router counts."""

    role: str
    provider: str
    intervals: Sequence[IntervalRecord]
    load: Load | None = None
    state: str = ""
    states: tuple[tuple[str, str], ...] = ()


def find(
    seen: Observed, now: float, quiet_s: float = QUIET_S, forgotten_s: float = FORGOTTEN_S
) -> Unserving | None:
    """The one thing that is wrong with it; None where nothing is, or nobody can tell."""
    running = [i for i in seen.intervals if i.ended_at is None]
    serving = [i for i in running if _serves(i, seen)]
    quiet = [i for i in running if _serves(i, seen) is False]
    if serving:
        stuck = [i for i in quiet if now - i.started_at >= quiet_s]
        if stuck:
            first = min(stuck, key=lambda i: i.started_at)
            return _told(seen, "stuck loading", first.started_at, stuck, now, alone=False)
        return _silent(seen, serving, now, quiet_s) or _forgotten(seen, serving, now, forgotten_s)
    spell = _spell(seen, now)
    if not spell or now - spell[0].started_at < quiet_s:
        return None
    failed = "failed" in (seen.state, *(state for _, state in seen.states)) and bool(running)
    kind = "crash loop" if len(spell) >= LOOP else "failed" if failed else "stuck loading"
    return _told(seen, kind, spell[0].started_at, spell, now)


def _serves(interval: IntervalRecord, seen: Observed) -> bool | None:
    """None where nobody tells."""
    state = dict(seen.states).get(interval.replica_id)
    if state in ("failed", "gone"):
        return False
    if interval.ready_at is not None:
        return True
    if state is not None:
        return state in ("ready", "idle", "draining", "stopping")
    return False if interval.boot_told else None


def _spell(seen: Observed, now: float) -> list[IntervalRecord]:
    """Attempts in a row of which none came to serve, the last one of which runs or has just ended; oldest first."""

    def end(one: IntervalRecord) -> float:
        return now if one.ended_at is None else one.ended_at

    spell: list[IntervalRecord] = []
    border = now
    for one in sorted(seen.intervals, key=lambda one: (end(one), _serves(one, seen) is False), reverse=True):
        if end(one) < border - BETWEEN_S or _serves(one, seen) is not False:
            break
        spell.append(one)
        border = min(border, one.started_at)
    spell.sort(key=lambda one: one.started_at)
    return spell


def _silent(seen: Observed, serving: Sequence[IntervalRecord], now: float, quiet_s: float) -> Unserving | None:
    """Requests came and none has ended in all that time; one alone may be a long answer."""
    if seen.load is None or _counted_since(seen.load, now) > now - quiet_s:
        return None
    since = max(now - quiet_s, min(i.ready_at or i.started_at for i in serving))
    minutes = [m for m in seen.load.minutes if m.at + MINUTE_S > now - quiet_s]
    waiting = sum(count for m in minutes for _, count in m.arrivals) + (minutes[0].in_flight if minutes else 0)
    if now - since < quiet_s or waiting < LOOP or any(m.ends for m in minutes):
        return None
    if not any(m.at <= now - quiet_s + MINUTE_S for m in minutes):
        return None  # the first of them has not waited for so long
    return _told(seen, "never answers", since, serving, now)


def _forgotten(
    seen: Observed, serving: Sequence[IntervalRecord], now: float, forgotten_s: float
) -> Unserving | None:
    if seen.load is None:
        return None
    asked = [m.at + MINUTE_S for m in seen.load.minutes if m.arrivals or m.ends or m.in_flight]
    begun = min(i.ready_at or i.started_at for i in serving)
    since = max([_counted_since(seen.load, now), begun, *asked])
    return None if now - since < forgotten_s else _told(seen, "forgotten", since, serving, now)


def _counted_since(load: Load, now: float) -> float:
    """From when on the router has counted without a long break; `now` where it does not count."""
    since = now
    for begun, until in sorted(load.lives, reverse=True):
        if until < since - BREAK_S:
            break
        since = min(since, begun)
    return since


def _told(
    seen: Observed, kind: str, since: float, of: Sequence[IntervalRecord], now: float, *, alone: bool = True
) -> Unserving:
    usd = sum((billed(i, now) - billed(i, since)).usd for i in of)
    return Unserving(seen.role, seen.provider, kind, since, usd, now, len(of), alone)


def said(one: Unserving, name: str) -> str:
    """In words, with what to do."""
    took = (one.until - one.since) / 60
    long = f"{took:.0f} min" if took < 120 else f"{took / 60:.0f} h"
    if one.forgotten:
        what = f"is ready, and nobody has asked it anything for {long}"
        todo = f"`tuna scale --service-name {name} --min-replicas 0 --workers-min 0`, or destroy it"
    else:
        how = {
            "crash loop": f"crash loop, {one.attempts} attempts",
            "stuck loading": "stuck loading",
            "failed": "failed",
            "never answers": "it answers no request",
        }[one.kind]
        what = f"has not served for {long} ({how})"
        todo = f"`tuna logs --service-name {name} --role {one.role}` says why"
    return f"{one.role} on {one.provider} bills but {what}: ${one.usd:,.4f} so far; {todo}"
