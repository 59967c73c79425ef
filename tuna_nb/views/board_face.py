"""What a live board says, in words and figures: the same in a notebook, in a saved one and in a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tuna_nb.costs.bill import Bill, Versus
from tuna_nb.deployments.board import CONNECTING, LIVE, LOST, NONE, OFF, Picture
from tuna_nb.deployments.moments import Moment
from tuna_nb.views.sheets import Sheet, age

LAST_MARKS: Final = 8
OLD_S: Final = 3.0
"""Figures that are older are said to be."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure. money: whether it is one of dollars. note: small print below it, may be empty."""

    label: str
    value: str
    note: str = ""
    money: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """Who answers. kind: serverless or spot. share: of the last seconds' requests, 0..1; None without any."""

    name: str
    kind: str
    state: str
    share: float | None
    row: tuple[str, ...]


ROW: Final = ("backend", "state", "answers", "replicas", "under way", "$/h now", "spent", "requests")


def kind_of(backend: str) -> str:
    """serverless or spot, by the name that a deployment gives its backends."""
    return "spot" if backend.startswith("spot") else "serverless"


def tiles(p: Picture, money_first: bool = False) -> list[Tile]:
    """Every figure; those of money first, or last."""
    ours = sorted([*_traffic(p.now, p), *_money(p)], key=lambda tile: tile.money is not money_first)
    return [tile for tile in ours if tile.value]


def _traffic(now: Moment | None, p: Picture) -> list[Tile]:
    if now is None:
        return []
    waiting = f", {now.waiting} waiting" if now.waiting else ""
    under_way = "" if now.in_flight is None else f"{now.in_flight} under way{waiting}"
    found = [
        Tile("requests/s", _figure(now.requests_per_s), under_way),
        Tile("first token p50", duration(now.ttft_p50_s), f"p95 {duration(now.ttft_p95_s)}"),
        Tile("between tokens p50", duration(now.inter_token_p50_s), f"p95 {duration(now.inter_token_p95_s)}"),
    ]
    if now.tokens_per_s is not None:
        found.append(Tile("tokens/s", _figure(now.tokens_per_s)))
    said = [f"{now.totals[name]:,} {name}" for name in ("failed", "resumed") if now.totals.get(name)]
    if p.bill is not None and p.bill.requests is not None:
        # Of all routers that there were, and as old as the bill; what the router adds is of its own life.
        old = [] if p.bill_at is None else [f"{age(max(0.0, p.at - p.bill_at))} ago"]
        found.append(Tile("answered in all", f"{p.bill.requests:,}", ", ".join([*said, *old])))
    elif "finished" in now.totals:
        found.append(Tile("answered", f"{now.totals['finished']:,}", ", ".join([*said, "since the router began"])))
    return found


def _money(p: Picture) -> list[Tile]:
    if p.bill is None:
        nobody = "nobody was asked" if p.link == OFF else "the providers are being asked"
        why = nobody if p.bill_error is None else f"not known: {p.bill_error}"
        return [Tile("spent", "unknown", why, money=True)]
    bill, old = p.bill, _age_of_bill(p)
    found = [
        Tile("per hour now", money(bill.rate_usd_per_hour), old, money=True),
        Tile("spent", money(bill.usd), _error(bill), money=True),
    ]
    if bill.forecast is not None and bill.forecast.day_usd is not None:
        month = bill.forecast.month_usd
        later = "" if month is None else f"{money(month)} at the end of the month"
        found.append(Tile("today, if it goes on", money(bill.forecast.day_usd), later, money=True))
    best = best_alternative(bill)
    if best is not None:
        saved, cheaper = best.saving(bill.versus_usd), best.cheaper(bill.versus_usd)
        against = f"{best.policy}, {money(best.usd)} for the same traffic"
        if saved is not None:
            found.append(Tile("saved", f"{saved:.0%}", f"against {against}", money=True))
        elif cheaper is not None:
            found.append(Tile("could be saved", f"{cheaper:.0%}", f"by {against}", money=True))
    return found


def best_alternative(bill: Bill) -> Versus | None:
    """The cheapest of the policies that would have served every request: never a saving against a straw man."""
    known = [versus for versus in bill.versus if versus.usd and not versus.unserved]
    return min(known, key=lambda versus: versus.usd or 0.0, default=None)


def _error(bill: Bill) -> str:
    said = []
    if bill.shows_error:
        said.append(f"± {money(bill.error_usd)}")
    if bill.unknown_hours:
        said.append(f"and {bill.unknown_hours:.2g} h at unknown prices")
    return " ".join(said)


def _age_of_bill(p: Picture) -> str:
    if p.bill_error is None or p.bill_at is None:
        return ""
    return f"{age(p.at - p.bill_at)} ago: {p.bill_error}"


def shares(p: Picture) -> list[Share]:
    """A line for each backend of the router and each part that a provider tells of."""
    now, status, bill = p.now, p.status, p.bill
    split: Mapping[str, int] = {} if now is None else now.split
    states: Mapping[str, str] = {} if now is None else now.states
    parts = {} if status is None else {c.role: c for c in status.components if c.role != "router"}
    sides = {} if bill is None else {side.role: side for side in bill.sides}
    total = sum(split.values())
    found = []
    for name in dict.fromkeys([*states, *split, *parts]):
        part, side = parts.get(name), sides.get(name)
        state = states.get(name) or (str(part.state) if part else "-")
        share = split.get(name, 0) / total if total else None
        up = "-"
        if part is not None:
            by_state: dict[str, int] = {}
            for replica in part.replicas:
                by_state[str(replica.state)] = by_state.get(str(replica.state), 0) + 1
            up = ", ".join(f"{count} {state}" for state, count in by_state.items()) or "none"
        row = (
            name,
            state.lower(),
            "-" if share is None else f"{share:.0%}",
            up,
            str(now.running[name]) if now is not None and name in now.running else "-",
            "-" if side is None else money(side.rate_usd_per_hour),
            "-" if side is None else money(side.usd),
            "-" if side is None or side.requests is None else f"{side.requests:,}",
        )
        found.append(Share(name, kind_of(name), state, share, row))
    return found


def columns(found: list[Share]) -> tuple[str, ...]:
    """Of `ROW` those that say anything."""
    return tuple(c for i, c in enumerate(ROW) if any(one.row[i] != "-" for one in found))


def rows(found: list[Share]) -> list[tuple[str, ...]]:
    """The lines, in `columns`."""
    kept = [ROW.index(c) for c in columns(found)]
    return [tuple(one.row[i] for i in kept) for one in found]


def link(p: Picture) -> tuple[str, str]:
    """(tone, words): whether what is shown is of now. tone: good, busy, bad or plain."""
    old = "" if p.silent_s is None else f"; the figures are {age(p.silent_s)} old"
    if p.link == LIVE:
        return ("good", "live") if p.silent_s is None or p.silent_s < OLD_S else ("busy", f"live{old}")
    if p.link == CONNECTING:
        return "busy", f"{p.link_error or 'asking the router'}{old}"
    if p.link == LOST:
        return "bad", f"the router can't be reached{old}: {p.link_error}"
    if p.link == NONE:
        return "plain", "no router: serverless alone"
    return "plain", "stopped" if not p.over else "destroyed"


def mark_lines(p: Picture, last: int = LAST_MARKS) -> list[tuple[str, str, str]]:
    """(clock, kind, words) of the last marks, the newest first."""
    told = p.marks[-last:][::-1]
    return [(time.strftime("%H:%M:%S", time.localtime(m.at)), m.kind, m.said) for m in told]


def whole(p: Picture) -> bool:
    """Whether everybody who is asked has answered, or said that he can't."""
    asked = p.bill is not None or p.bill_error is not None
    return asked and (p.now is not None or p.link in (LOST, NONE))


def summary(p: Picture) -> str:
    """All of it in a sentence or two, for a screen reader and for a line in a log."""
    tone, words = link(p)
    said = [p.name]
    if p.status is not None:
        said.append(f"is {p.status.state}")
    if tone != "good":
        said.append(f"({words})")
    text = " ".join(said) + "."
    if p.now is not None:
        now = p.now
        text += f" {_figure(now.requests_per_s)} requests per second"
        who = [f"{one.name} {one.share:.0%}" for one in shares(p) if one.share]
        text += f", answered by {' and '.join(who)}" if who else ""
        if now.ttft_p50_s is not None:
            text += f"; first token in {duration(now.ttft_p50_s)}, p95 {duration(now.ttft_p95_s)}"
        text += "."
    if p.bill is not None:
        text += f" {money(p.bill.rate_usd_per_hour)} per hour, {money(p.bill.usd)} so far."
    return text


def sheet(p: Picture, money_first: bool = False) -> Sheet:
    """For text: a terminal, a log, `text/plain`."""
    tone, words = link(p)
    state = "" if p.status is None else f" is {p.status.state}"
    title = f"{p.name}{state}: {words}"
    if p.link == OFF:
        # It may be read years later.
        state = "" if p.status is None else f" was {p.status.state}"
        title = f"{p.name}{state}, as of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(p.at))}"
    found = shares(p)
    facts = tuple(
        (tile.label, f"{tile.value}{f' ({tile.note})' if tile.note else ''}") for tile in tiles(p, money_first)
    )
    notes = tuple(f"{clock}  {'▼ ' if kind == 'preemption' else ''}{said}" for clock, kind, said in mark_lines(p))
    notes += tuple(error for error in (p.status_error, p.bill_error) if error)
    return Sheet(title, facts, columns(found), tuple(rows(found)), notes, tone)


def duration(seconds: float | None) -> str:
    """E.g. `85 ms`, `1.3 s`; unknown is a dash."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def money(amount: float | None) -> str:
    """Dollars with as many digits as its size asks for; unknown stays unknown."""
    if amount is None:
        return "unknown"
    digits = 2 if abs(amount) >= 1 or amount == 0 else 3 if abs(amount) >= 0.1 else 4
    return f"${amount:,.{digits}f}"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
