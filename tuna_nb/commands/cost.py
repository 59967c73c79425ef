"""`cost`: the bill so far and the rate now."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from tuna_nb.commands.context import Context
from tuna_nb.costs.bill import Bill, BilledTime, Traffic, make
from tuna_nb.deployments.destroy import save_usage
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RouterError
from tuna_nb.records import DeploymentRecord, ResourceRecord


async def cost(options: Namespace, context: Context) -> Bill:
    workspace = context.workspace
    return await bill_of(workspace, workspace.store.deployment(options.service_name))


async def bill_of(workspace: Workspace, record: DeploymentRecord) -> Bill:
    """Fresh from the providers while it lives, from the records once it is destroyed.

    Raises BackendError when a provider can't be asked: half a bill is no bill.
    """
    store = workspace.store
    billed: list[BilledTime] = []
    for resource in store.resources(record.id):
        if resource.state == "planned":
            continue
        if resource.role == ROUTER:
            billed += _machine_of(resource)
            continue
        usage = store.usage(resource.id) if resource.state == "gone" else await save_usage(workspace, resource)
        billed += [
            BilledTime(
                resource.role,
                resource.provider,
                u.replica_id,
                u.started_at,
                u.ended_at,
                u.price_per_hour_usd,
                u.granularity_s,
            )
            for u in usage
        ]
    return make(record.name, billed, await _traffic(workspace, record), time.time())


def _machine_of(router: ResourceRecord) -> list[BilledTime]:
    """The machine that was rented for it, from its record on; nothing where it has none of its own."""
    price = router.price_per_hour_usd
    if not price:
        return []
    return [BilledTime(ROUTER, router.provider, router.name, router.created_at, router.gone_at, price)]


async def _traffic(workspace: Workspace, record: DeploymentRecord) -> Traffic | None:
    stats = record.traffic
    router = next((r for r in workspace.store.resources(record.id) if r.role == ROUTER), None)
    if record.destroyed_at is None and router is not None and router.url is not None:
        try:
            stats = await RouterClient(router.url, workspace.secrets.get(record.id, "admin_key")).stats()
        except RouterError:
            stats = record.traffic
    return None if stats is None else read_traffic(stats)


def read_traffic(stats: dict[str, Any]) -> Traffic:
    """The router's `/router/stats` as the bill needs it."""
    backends = stats["backends"]
    return Traffic(
        requests=sum(int(b["finished"]) for b in backends),
        by_role=tuple((str(b["kind"]), int(b["finished"])) for b in backends),
        tokens=sum(int(b["prompt_tokens"]) + int(b["completion_tokens"]) for b in backends),
    )
