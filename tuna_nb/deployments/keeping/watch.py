"""A look at what is up and what it costs, into the ledger: by the process beside each router, and before each bill.

What can't be asked changes nothing in the records: an error is never read as "gone".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tuna_nb.backends.base import Kind, Ref, Replica, State, Status, UsageInterval
from tuna_nb.catalog import rules
from tuna_nb.costs import ledger, traffic
from tuna_nb.costs.account import PATIENCE_S
from tuna_nb.costs.ledger import Seen, Terms
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RouterError, TunaError
from tuna_nb.records import ChargeRecord, DeploymentRecord, IntervalRecord, ResourceRecord

CHARGES_EVERY_S: Final = 3600.0
"""Providers' accounts are told by the hour or the day."""
_FREE: Final = (State.WAITING, State.GONE)
"""States in which nothing is billed."""


@dataclass(frozen=True, slots=True)
class Look:
    """statuses: of each side that was asked for one, by resource id. trouble: (who, why) could not be asked.

    took_s: of the slowest provider.
    """

    at: float
    statuses: dict[int, Status]
    trouble: tuple[tuple[str, str], ...] = ()
    took_s: float = 0.0


def resource_ref(resource: ResourceRecord) -> Ref:
    """How the provider knows it; the name alone will do where the id was never recorded."""
    return Ref(resource.provider, Kind(resource.role), resource.name, resource.provider_id, resource.deployment_id)


async def look(workspace: Workspace, record: DeploymentRecord, wall: Callable[[], float] = time.time) -> Look:
    """Ask everyone at once, and write what they say; one that can't be asked is told in the answer.

    wall: Unix time.
    """
    at, took = wall(), [0.0]
    resources = [r for r in workspace.store.resources(record.id) if r.state not in ("planned", "gone")]
    statuses: dict[int, Status] = {}
    trouble: list[tuple[str, str]] = []

    async def ask(resource: ResourceRecord) -> None:
        try:
            if resource.role == ROUTER:
                machine_of(workspace, resource, at)
                await _traffic(workspace, record, resource)
                return
            status = await look_at(workspace, record, resource, at)
            took.append(wall() - at)
            if status is not None:
                statuses[resource.id] = status
        except TunaError as e:
            trouble.append((resource.provider if resource.role != ROUTER else ROUTER, e.message))

    await asyncio.gather(*(ask(r) for r in resources))
    return Look(at, statuses, tuple(sorted(set(trouble))), max(took))


async def look_at(
    workspace: Workspace, record: DeploymentRecord, resource: ResourceRecord, at: float
) -> Status | None:
    """Write what a side's provider says of it: its history, where it keeps one, else what is up now.

    Returns its status where that was asked for. Raises TunaError, and then has written nothing.
    """
    backend, ref, books = workspace.backend(resource.provider), resource_ref(resource), workspace.store.books
    status: Status | None = None
    if backend.tells_usage:
        told = await backend.usage(ref)
        ledger.report(books, resource.id, [_interval(resource.id, one, at) for one in told])
    else:
        status = await backend.status(ref)
        seen = [_seen(r) for r in status.replicas if r.state not in _FREE] if status.billing else []
        ledger.observe(books, resource.id, seen, terms_of(resource, record), at)
    books.looked(resource.deployment_id, f"resource:{resource.id}", at, PATIENCE_S)
    return status


async def last_look(workspace: Workspace, record: DeploymentRecord, resource: ResourceRecord, at: float) -> None:
    """After a side was seen gone: its history, or all that was known to run as ended now. Raises TunaError."""
    if workspace.backend(resource.provider).tells_usage:
        await look_at(workspace, record, resource, at)
    else:
        ledger.observe(workspace.store.books, resource.id, [], terms_of(resource, record), at)


def machine_of(workspace: Workspace, router: ResourceRecord, at: float, gone_at: float | None = None) -> None:
    """Write the machine that is rented for a router, from its record on; nothing where it has none of its own."""
    price = router.price_per_hour_usd
    if price == 0:
        return
    books = workspace.store.books
    known = next(iter(books.open_intervals([router.id])), None)
    begun = router.created_at if known is None else known.started_at
    prices = ((begun, price),) if known is None else known.prices
    if prices[-1][1] != price:
        prices = (*prices, (at, price))
    one = IntervalRecord(router.id, router.name, begun, begun, gone_at, at, prices)
    ledger.report(books, router.id, [one])


def terms_of(resource: ResourceRecord, record: DeploymentRecord) -> Terms:
    """At what a side is billed now: its recorded price, by the rule of who sells it, for a broker the cloud."""
    rule = rules.of(resource.provider, resource.role, record.request.get("spots_cloud"))
    return Terms(resource.price_per_hour_usd, rule.billing.granularity_s, rule.billing.minimum_s)


async def charges(workspace: Workspace, resource: ResourceRecord, until: float) -> None:
    """Write what the provider's own account says of a resource. Raises BackendError where it has none."""
    told = await workspace.backend(resource.provider).charges(resource_ref(resource), resource.created_at, until)
    workspace.store.books.put_charges(
        ChargeRecord(resource.id, one.started_at, one.ended_at, one.what, one.usd) for one in told
    )


async def _traffic(workspace: Workspace, record: DeploymentRecord, router: ResourceRecord) -> None:
    url = await workspace.router_host(router.provider).url(record.id)
    if url is None:
        return  # it does not run, and counts nothing
    client = RouterClient(url, workspace.secrets.get(record.id, "admin_key"))
    books = workspace.store.books
    try:
        while True:
            told = await client.load(books.last_minute(record.id) or 0)
            traffic.keep(books, record.id, told)
            if not told.get("more"):
                return
    except (KeyError, TypeError, ValueError) as e:
        raise RouterError(
            f"the router at {url} told no load that can be read ({type(e).__name__})",
            f"`tuna router upgrade --service-name {record.name}`",
        ) from e


def _seen(replica: Replica) -> Seen:
    ready = replica.state in (State.READY, State.IDLE, State.DRAINING, State.STOPPING)
    return Seen(replica.id, replica.started_at if replica.start_told else None, ready)


def _interval(resource_id: int, told: UsageInterval, at: float) -> IntervalRecord:
    return IntervalRecord(
        resource_id,
        told.replica_id,
        told.started_at,
        told.ready_at,
        told.ended_at,
        at if told.ended_at is None else told.ended_at,
        ((told.started_at, told.price_per_hour_usd),),
        told.granularity_s,
        basis="provider-reported",
    )
