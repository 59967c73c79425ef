"""What a Modal workspace's billing report says of an app: an amount for each hour that has ended, before credits.

Modal reports by object and hour, for the whole workspace; an app's rows carry its id and name. Hours come a few
hours late. Source: `Workspace.billing.report` of modal 1.6.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuna_nb.backends.account import HOUR_S, down_to, lines, understood, up_to, usd, within
from tuna_nb.backends.base import Charge, Ref
from tuna_nb.backends.modal.told import told

if TYPE_CHECKING:
    import modal


async def charges(
    workspace: modal.Workspace, ref: Ref, since: float, until: float, within_s: float
) -> list[Charge]:
    """Raises CredentialsError, BackendError. An app of which no id is known is told by its name."""
    async with told(f"the bill of {ref.name}", within_s):
        rows = await workspace.billing.report.aio(
            start=down_to(since, HOUR_S), end=up_to(until, HOUR_S), resolution="h"
        )
    found = []
    with understood("modal", "its billing report"):
        for row in rows:
            if (row.description if ref.id is None else row.object_id) != (ref.id or ref.name):
                continue
            at = row.interval_start.timestamp()
            what = lines({name: str(part) for name, part in row.cost_by_resource.items()})
            found.append(Charge(at, at + HOUR_S, usd(str(row.cost)), what or "no part of it told"))
    return within(found, since, until)
