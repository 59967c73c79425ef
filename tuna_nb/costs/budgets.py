"""Budgets: what may be spent in a span of the user's own wall clock, what has been, and what that makes happen.

What was spent is the ledger's word: billed time at known prices. Time of unknown price is told beside it and never
counted as nothing: with such time the sum is the least that it can be.

A total for one deployment counts from its beginning; a total over all counts from when it was first set.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tuna_nb.costs import ledger
from tuna_nb.costs.account import Zone, on_the_wall
from tuna_nb.errors import RequestError
from tuna_nb.records import EVERYTHING, BudgetRecord

if TYPE_CHECKING:
    from tuna_nb.store import Store

PER: Final = ("total", "day", "month")
ACTIONS: Final = ("notify", "stop-overflow", "scale-down", "destroy")
"""What happens at 100 %, the mildest first."""
FULL: Final = 100.0
BEYOND: Final = 110.0
"""Where stopping overflow was not enough: from here on serverless takes nothing new at all."""
WARN: Final = (50.0, 80.0)
HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Window:
    """key: names it, so that a level fires once in it. since, until: Unix seconds; until None: it never ends."""

    key: str
    since: float
    until: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """A budget as it stands. name: whose it is. spent_usd: in its window, of known prices; unknown_hours: billed
    in it without a known price. rate_usd_per_hour: of all that it is over, now; None where a price is unknown."""

    budget: BudgetRecord
    name: str
    window: Window
    spent_usd: float
    unknown_hours: float = 0.0
    rate_usd_per_hour: float | None = 0.0

    @property
    def left_usd(self) -> float:
        return max(0.0, self.budget.limit_usd - self.spent_usd)

    @property
    def used_up(self) -> bool:
        return self.spent_usd >= self.budget.limit_usd

    @property
    def per_cent(self) -> float:
        return 100 * self.spent_usd / self.budget.limit_usd


def check(limit_usd: float, per: str, warn: Sequence[float], action: str) -> None:
    """Raises RequestError for a budget that can't be."""
    if not 0 < limit_usd < math.inf:
        raise RequestError(f"a budget of ${limit_usd:g} is none", "it must be more than $0, e.g. --limit 20")
    for level in warn:
        if not 0 < level < FULL:
            raise RequestError(
                f"a warning at {level:g} % can't be", "levels are per cent between 0 and 100, e.g. --warn 50,80"
            )
    if per not in PER or action not in ACTIONS:
        raise RequestError(f"no such budget: {per}, {action}", f"per {', '.join(PER)}; action {', '.join(ACTIONS)}")


def window(budget: BudgetRecord, begun: float, now: float, zone: Zone) -> Window:
    """The one that `now` is in; a day may have 23 or 25 hours. begun: from when a total counts, Unix seconds."""
    if budget.per == "total":
        return Window("total", begun, None)
    here = zone(now)
    day = here.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0, fold=0)
    if budget.per == "day":
        begins, ends = day, day + dt.timedelta(days=1)
    else:
        begins = day.replace(day=1)
        ends = (begins + dt.timedelta(days=32)).replace(day=1)
    key = f"{begins:%Y-%m-%d}" if budget.per == "day" else f"{begins:%Y-%m}"
    return Window(key, on_the_wall(begins, here), on_the_wall(ends, here))


def standing(store: Store, budget: BudgetRecord, now: float, zone: Zone) -> Standing:
    """From the records alone. Raises NotFoundError where the budget's deployment is not in them."""
    everyone = store.deployments()
    if budget.scope == EVERYTHING:
        name, begun = "all deployments", budget.created_at
    else:
        everyone = [d for d in everyone if d.id == budget.scope]
        name, begun = (everyone[0].name, everyone[0].created_at) if everyone else (budget.scope, budget.created_at)
    span = window(budget, begun, now, zone)
    numbers = [
        r.id
        for d in everyone
        if d.destroyed_at is None or d.destroyed_at >= span.since
        for r in store.resources(d.id)
        if r.state != "planned"
    ]
    spent = ledger.between(store.books, numbers, span.since, now)
    rates = list(spent.rates.values())
    return Standing(
        budget,
        name,
        span,
        spent.total.usd,
        spent.total.unknown_s / HOUR_S,
        None if any(rate is None for rate in rates) else sum(rate for rate in rates if rate is not None),
    )


def reached(at: Standing) -> tuple[float, ...]:
    """Its levels that have been reached, the lowest first; BEYOND only where it stops overflow."""
    levels = {*at.budget.warn, FULL} | ({BEYOND} if at.budget.action == "stop-overflow" else set())
    # Not divided: 100 % is reached where the limit is, to the last bit.
    return tuple(level for level in sorted(levels) if at.spent_usd * 100 >= at.budget.limit_usd * level)


def action_at(budget: BudgetRecord, level: float) -> str:
    """What is to be done at that level; empty for nothing but telling it."""
    return budget.action if level >= FULL and budget.action != "notify" else ""


def would_break(
    standings: Sequence[Standing], worst_case_usd_per_hour: float | None, what: str
) -> RequestError | None:
    """Why something must not be begun under these budgets; None where nothing speaks against it.

    worst_case_usd_per_hour: of what is to be begun, None where it is unknown. what: `deploy x`, say.
    """
    for one in standings:
        which = f"{shown(one.budget)} for {one.name}"
        raise_it = f"raise it with `tuna budget set{_flags(one)} --limit ...`, or `tuna budget remove{_flags(one)}`"
        if one.used_up:
            return RequestError(f"{what}: the budget of {which} is used up (${one.spent_usd:,.2f} spent)", raise_it)
        if worst_case_usd_per_hour is None:
            if one.budget.action != "notify":
                return RequestError(
                    f"{what}: its worst case is unknown, and the budget of {which} could not hold it",
                    "choose a provider whose price is known (`tuna show-gpus`), or a budget with --action notify",
                )
        elif one.left_usd < worst_case_usd_per_hour:
            return RequestError(
                f"{what}: its worst case is ${worst_case_usd_per_hour:,.2f} an hour, and of {which}"
                f" ${one.left_usd:,.2f} is left",
                raise_it,
            )
    return None


def outlook(one: Standing, worst_case_usd_per_hour: float | None) -> str:
    """For a plan's reader: when the worst case reaches it, and what happens then."""
    which = f"budget of {shown(one.budget)} for {one.name}"
    left = f"${one.left_usd:,.2f} left"
    if worst_case_usd_per_hour is None:
        return f"{which}: {left}; the worst case is unknown; at 100 %: {MEANS[one.budget.action]}"
    if worst_case_usd_per_hour == 0:
        return f"{which}: {left}; the worst case costs nothing"
    hours = one.left_usd / worst_case_usd_per_hour
    return f"{which}: {left}; the worst case reaches it in {hours:,.1f} h; then: {MEANS[one.budget.action]}"


MEANS: Final = {
    "notify": "it is told, and nothing else happens",
    "stop-overflow": "serverless only covers for spot that is missing, and from 110 % takes nothing",
    "scale-down": "it scales to zero when idle, one replica at most",
    "destroy": "it is destroyed",
}
"""Actions in words."""


def shown(budget: BudgetRecord) -> str:
    """`$20.00 a day`."""
    return f"${budget.limit_usd:,.2f} {'in total' if budget.per == 'total' else f'a {budget.per}'}"


def message(one: Standing, level: float) -> str:
    """What is told when it fires."""
    said = f"{one.name}: ${one.spent_usd:,.2f} of the budget of {shown(one.budget)} is spent"
    if one.unknown_hours:
        said += f", and {one.unknown_hours:.1f} h of unknown price"
    if level < FULL:
        return f"{said}: more than {level:g} %"
    if level == BEYOND:
        return f"{said}: more than {level:g} %. Serverless takes nothing new"
    return f"{said}: it is used up. At 100 %: {MEANS[one.budget.action]}"


def fields_of(one: Standing, level: float) -> dict[str, Any]:
    """What a webhook gets beside the text."""
    return {
        "event": "budget",
        "name": one.name,
        "level": level,
        "spent_usd": round(one.spent_usd, 6),
        "limit_usd": one.budget.limit_usd,
        "per": one.budget.per,
        "window": one.window.key,
        "action": one.budget.action,
    }


def resets(one: Standing, zone: Zone) -> dt.datetime | None:
    """When its window ends, by the user's wall; None for never."""
    return None if one.window.until is None else zone(one.window.until)


def _flags(one: Standing) -> str:
    name = "" if one.budget.scope == EVERYTHING else f" --service-name {one.name}"
    return f"{name} --per {one.budget.per}"
