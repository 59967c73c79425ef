"""The answer of `tuna budget`, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """name: of the deployment, or `all deployments`. Times: Unix seconds; resets_at None: never. fired: per cent.
    unknown_hours: billed without a known price. webhook: its host, empty for none. trouble: why what was to be done
    has not been."""

    name: str
    per: str
    limit_usd: float
    spent_usd: float
    left_usd: float
    per_cent: float
    since: float
    resets_at: float | None
    warn: tuple[float, ...]
    action: str
    fired: tuple[float, ...] = ()
    done: tuple[str, ...] = ()
    unknown_hours: float = 0.0
    webhook: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class BudgetList:
    """title: what was done, where something was."""

    rows: tuple[BudgetRow, ...]
    title: str = ""
    notes: tuple[str, ...] = ()
