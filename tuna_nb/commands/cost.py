"""`cost`: the bill so far and the rate now."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tuna_nb.catalog.offers import OfferKind
from tuna_nb.commands.context import Context
from tuna_nb.costs import account
from tuna_nb.costs.account import Zone, on_the_wall, own_zone
from tuna_nb.costs.bill import Bill
from tuna_nb.costs.compare import cheapest, compare
from tuna_nb.deployments import prices
from tuna_nb.deployments.board import Board
from tuna_nb.deployments.keeping.silence import unserving
from tuna_nb.deployments.keeping.watch import look
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, UsageError
from tuna_nb.records import DeploymentRecord

ALL: Final = "all deployments"


async def cost(options: Namespace, context: Context) -> Bill | Board:
    """Of one deployment, or of all that there are and were; with --live a board, which goes on telling it."""
    if options.live:
        from tuna_nb.commands.live import board_of

        if options.service_name is None:
            raise UsageError("cost --live shows one deployment", "add --service-name NAME; `tuna list` shows them")
        return board_of(context.workspace.settings, options.service_name, money_first=True)
    store, now = context.workspace.store, time.time()
    since = 0.0 if options.since is None else parse_since(options.since, now)
    if options.service_name is not None:
        records, name = [store.deployment(options.service_name)], options.service_name
    else:
        records = [r for r in store.deployments() if r.destroyed_at is None or r.destroyed_at >= since]
        name = ALL
    return await bill_of_all(context.workspace, records, name, since, options.by)


def parse_since(text: str, now: float, zone: Zone = own_zone) -> float:
    """`24h`, `today`, `month` or a date to Unix seconds; days begin at the user's midnight. Raises UsageError."""
    here = zone(now)
    midnight = here.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "month"):
        return on_the_wall(midnight if text == "today" else midnight.replace(day=1), here)
    if span := re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text):
        return now - float(span[1]) * {"m": 60, "h": 3600, "d": 86400}[span[2]]
    try:
        day = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since {text!r} is no time", "write 90m, 24h, 7d, today, month, or a date like 2026-11-01"
        ) from None
    return day.timestamp() if day.tzinfo is not None else on_the_wall(day, here)


async def bill_of(workspace: Workspace, record: DeploymentRecord) -> Bill:
    """Everything of one deployment, from its begin."""
    return await bill_of_all(workspace, [record], record.name)


async def bill_of_all(
    workspace: Workspace,
    records: Sequence[DeploymentRecord],
    name: str,
    since: float = 0.0,
    by: str = "backend",
    *,
    compared: bool = True,
) -> Bill:
    """Fresh from the providers and the routers of what lives, from the records where one can't be asked.

    compared: with what other policies would have cost, of a single deployment.
    Raises BackendError where something lives of which nothing was ever learned: half a bill is no bill.
    """
    store = workspace.store
    living = [r for r in records if r.destroyed_at is None]
    looks = await asyncio.gather(*(look(workspace, r) for r in living))
    trouble = sorted({one for each in looks for one in each.trouble})
    for record in living if trouble else ():
        for resource in store.resources(record.id):
            asked = next((why for who, why in trouble if who == resource.provider), None)
            if asked is not None and resource.state == "created" and store.books.basis(resource.id) is None:
                raise BackendError(
                    f"{resource.provider} can't be asked what {record.name} has cost: {asked}",
                    "try again; its own console has the figures",
                )
    now = time.time()
    made = account.bill(store, records, name, since, now, by=by)
    if compared and len(records) == 1:
        made = await _compared(workspace, records[0], made, since, now)
    notes = [
        f"{who} could not be asked ({why}): what it runs is counted on as it was last seen" for who, why in trouble
    ]
    wrong = [
        (record.name, one)
        for record, seen in zip(living, looks, strict=True)
        for one in unserving(store, record, seen.statuses, now).values()
    ]
    return replace(made, notes=(*made.notes, *notes), unserving=tuple(wrong))


async def _compared(workspace: Workspace, record: DeploymentRecord, made: Bill, since: float, now: float) -> Bill:
    """With what other policies would have cost. On-demand prices are those that are known here: nobody is asked."""
    request = record.request
    kinds = frozenset({OfferKind.ON_DEMAND})
    known = await prices.market(workspace).ask(prices.sources(workspace, live=False, kinds=kinds), live=False)
    offer = cheapest(known.offers, str(request["gpu"]), int(request["gpu_count"]), request.get("spots_cloud"))
    # Seconds of a processor for a week of traffic, in which others want their turn.
    found = await asyncio.to_thread(compare, workspace.store, record, since, now, offer)
    if found is None:
        return made
    return replace(made, versus=found.versus, versus_since=found.since, versus_usd=found.usd)
