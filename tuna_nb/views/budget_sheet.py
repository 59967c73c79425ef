"""The table of `budget`."""

from __future__ import annotations

import time

from tuna_nb.costs.budget_list import BudgetList, BudgetRow
from tuna_nb.views.sheets import Sheet, usd


def budget_sheet(b: BudgetList, _now: float) -> Sheet:
    """A row a budget; what could not be done, and what is unsure, below it."""
    notes = [*b.notes]
    for row in b.rows:
        if row.unknown_hours:
            notes.append(
                f"{row.name}: {row.unknown_hours:.1f} h have no known price: it is the least that is spent"
            )
        if row.trouble:
            notes.append(f"{row.name}: {row.action} has not worked yet, and is tried again: {row.trouble}")
    used_up = any(row.left_usd <= 0 for row in b.rows)
    title = b.title or (f"{len(b.rows)} budget{'s' * (len(b.rows) != 1)}" if b.rows else "no budgets")
    if not b.rows and not b.title:
        notes.append("`tuna budget set --limit 20 --per day --action notify` sets one")
    return Sheet(
        title,
        (),
        ("for", "limit", "per", "spent", "left", "used", "resets", "warns at", "at 100 %", "has fired", "webhook")
        if b.rows
        else (),
        tuple(_cells(row) for row in b.rows),
        tuple(notes),
        "bad" if used_up or any(row.trouble for row in b.rows) else "plain",
    )


def _cells(row: BudgetRow) -> tuple[str, ...]:
    fired = [f"{level:g} %" for level in row.fired] + [f"{action} done" for action in row.done]
    return (
        row.name,
        usd(row.limit_usd, 2),
        row.per,
        usd(row.spent_usd) + (" or more" if row.unknown_hours else ""),
        usd(row.left_usd),
        f"{row.per_cent:.0f} %",
        "never" if row.resets_at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row.resets_at)),
        ", ".join(f"{level:g} %" for level in row.warn) or "-",
        row.action,
        ", ".join(fired) or "-",
        row.webhook or "-",
    )
