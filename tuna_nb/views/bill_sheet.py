"""The table of `cost`: what was spent on what, how sure that is, and what else it would have cost."""

from __future__ import annotations

import time
from typing import Final

from tuna_nb.costs.bill import Bill, Side, Versus
from tuna_nb.costs.unserving import said
from tuna_nb.views.sheets import Sheet, age, usd

_MOST_GAPS: Final = 5
_DISAGREE: Final = 0.05
"""A provider's account that differs by more is pointed out."""


def bill_sheet(b: Bill, _now: float) -> Sheet:
    """A row a backend, or whatever it is told by; other policies and everything that is unsure below it."""
    off = f" ± {usd(b.error_usd)}" if b.shows_error else ""
    facts = [("so far", usd(b.usd) + off), ("now", f"{usd(b.rate_usd_per_hour, 3)} per hour")]
    if b.forecast is not None and b.rate_usd_per_hour != 0:
        facts.append(("by midnight", usd(b.forecast.day_usd, 2)))
        facts.append(("by the month's end", usd(b.forecast.month_usd, 2)))
    if b.requests is not None:
        facts.append(("requests", f"{b.requests:,}"))
    if b.usd_per_1000_requests is not None:
        facts.append(("per 1,000 requests", usd(b.usd_per_1000_requests)))
    if b.tokens:
        facts.append(("tokens in, out", f"{b.prompt_tokens:,}, {b.completion_tokens:,}"))
        facts.append(("per million tokens", usd(b.usd_per_million_tokens, 2)))
    columns, rows = _sides(b) if b.by == "backend" else _groups(b)
    unknown = f" and {b.unknown_hours:.1f} h of unknown price" if b.unknown_hours else ""
    return Sheet(
        f"{b.name} {'have' if b.name.startswith('all ') else 'has'} cost {usd(b.usd)}{unknown}",
        tuple(facts),
        columns if rows else (),
        rows,
        _notes(b),
        "bad" if b.unknown_hours or b.unserving or any(_disagrees(side) for side in b.sides) else "plain",
    )


def _sides(b: Bill) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    account = any(side.charged_usd is not None for side in b.sides)
    columns = ["part", "provider", "replicas", "billed", "cost", "share", "boot", "idle", "$/h now", "requests"]
    columns += ["its account says"] * account + ["figures"]
    rows = []
    for side in b.sides:
        cells = [
            side.role,
            side.provider,
            f"{side.replicas} ({side.running} now)",
            _hours(side.hours),
            usd(side.usd) + (f" + {_hours(side.unknown_hours)} unknown" if side.unknown_hours else ""),
            f"{side.usd / b.usd:.0%}" if b.usd else "-",
            "-" if side.boot_usd is None else usd(side.boot_usd),
            "-" if side.idle_usd is None else usd(side.idle_usd),
            usd(side.rate_usd_per_hour, 3),
            "-" if side.requests is None else f"{side.requests:,}",
        ]
        if account:
            cells.append("-" if side.charged_usd is None else usd(side.charged_usd))
        cells.append(side.basis)
        rows.append(tuple(cells))
    return tuple(columns), tuple(rows)


def _groups(b: Bill) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    counted = any(group.requests is not None for group in b.groups)
    rows = tuple(
        (group.name, usd(group.usd), f"{group.usd / b.usd:.0%}" if b.usd else "-")
        + ((f"{group.requests or 0:,}", f"{group.tokens or 0:,}") if counted else ())
        for group in b.groups
    )
    return (b.by, "cost", "share", *(("requests", "tokens") if counted else ())), rows


def _hours(hours: float) -> str:
    return f"{hours * 3600:,.0f} s" if hours < 1 else f"{hours:,.1f} h"


def _notes(b: Bill) -> tuple[str, ...]:
    compared = [_versus(b, one) for one in b.versus] if b.by == "backend" else []
    notes = [f"{name}: {said(one, name)}" for name, one in b.unserving] + compared
    if compared and b.versus_since > b.since + 60:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(b.versus_since))
        notes.append(f"compared for the traffic since {when}, in which {usd(b.versus_usd)} was paid")
    for side in b.sides:
        if _disagrees(side):
            notes.append(
                f"{side.provider}'s own account says {usd(side.charged_usd)}, here it is {usd(side.usd)}:"
                " look at its console"
            )
    if b.forecast is not None and b.rate_usd_per_hour != 0:
        notes.append(f"forecast: {b.forecast.method}")
    for begun, ended in b.gaps[:_MOST_GAPS]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(begun))
        notes.append(f"nobody looked for {age(ended - begun)} from {when}: what came and went then is not counted")
    if len(b.gaps) > _MOST_GAPS:
        notes.append(f"and {len(b.gaps) - _MOST_GAPS} more such gaps")
    if any(side.unknown_hours for side in b.sides):
        notes.append("the total leaves out what has no known price: it is the least that it can be")
    notes.append("from billed time, boot and idle included")
    return (*notes, *b.notes)


def _versus(b: Bill, one: Versus) -> str:
    """Never a saving against what could not have served: that is told with it."""
    if one.usd is None:
        return f"{one.policy}: {one.note}"
    saving, cheaper = one.saving(b.versus_usd), one.cheaper(b.versus_usd)
    compared = f" ({saving:.0%} saved)" if saving is not None else ""
    if cheaper is not None:
        compared = f" ({cheaper:.0%} less than was paid)"
    return f"{one.policy} for the same traffic: {usd(one.usd)}{compared}" + (f"; {one.note}" if one.note else "")


def _disagrees(side: Side) -> bool:
    told = side.charged_usd
    return told is not None and abs(told - side.usd) > max(_DISAGREE * side.usd, 0.01)
