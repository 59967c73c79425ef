"""Taking a deployment down: verified gone, as often as you like, from any half-built state."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from tuna_nb.backends.base import Kind, Ref
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.router_hosts.base import hosts_of
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import TunaError
from tuna_nb.jobs import Report
from tuna_nb.records import DeploymentRecord, ResourceRecord, UsageRecord


@dataclass(frozen=True, slots=True)
class Removed:
    """names: of the deployments and orphans that are gone now. note: why there were none."""

    names: tuple[str, ...]
    note: str = ""


def resource_ref(resource: ResourceRecord) -> Ref:
    """How the provider knows it; the name alone will do where the id was never recorded."""
    return Ref(resource.provider, Kind(resource.role), resource.name, resource.provider_id, resource.deployment_id)


async def destroy(
    workspace: Workspace,
    record: DeploymentRecord,
    report: Report,
    *,
    final_state: str = "destroyed",
    error: str | None = None,
) -> None:
    """Remove everything of a deployment and record that it is gone.

    The router goes first, letting running requests finish; then both sides at once. One that fails does not
    stop the others: the deployment stays in the records with what is left, and the first error is raised.
    """
    store = workspace.store
    if record.destroyed_at is not None:
        return
    store.update_deployment(record.id, state="destroying")
    resources = [r for r in store.resources(record.id) if r.state != "gone"]
    await _keep_traffic(workspace, record, resources, report)
    failures: list[TunaError] = []
    routers = [r for r in resources if r.role == ROUTER]
    others = [r for r in resources if r.role != ROUTER]
    for number, group in enumerate((routers, others)):
        if group:
            names = " and ".join(r.role for r in group)
            report.step(f"removing {names}", 0.1 + 0.45 * number)
        outcomes = await asyncio.gather(*(_remove(workspace, r, report) for r in group), return_exceptions=True)
        for resource, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, TunaError):
                failures.append(outcome)
                store.update_resource(resource.id, error=outcome.message)
            elif isinstance(outcome, BaseException):
                raise outcome
    if failures:
        store.update_deployment(record.id, error=failures[0].message)
        raise failures[0]
    workspace.secrets.forget(record.id)
    report.step("recording", 0.95)
    store.update_deployment(record.id, state=final_state, destroyed_at=time.time(), error=error, endpoint_url=None)
    store.add_event(record.id, final_state if error is None else f"{final_state}: {error}")


async def save_usage(workspace: Workspace, resource: ResourceRecord) -> list[UsageRecord]:
    """Fetch the billed intervals of a resource from its provider into the store, and return them."""
    intervals = await workspace.backend(resource.provider).usage(resource_ref(resource))
    usage = [
        UsageRecord(resource.id, i.replica_id, i.started_at, i.ended_at, i.price_per_hour_usd, i.granularity_s)
        for i in intervals
    ]
    workspace.store.put_usage(usage)
    return usage


async def _remove(workspace: Workspace, resource: ResourceRecord, report: Report) -> None:
    store = workspace.store
    store.update_resource(resource.id, state="destroying")
    if resource.role == ROUTER:
        for host in hosts_of(resource):
            await workspace.router_host(host).stop(resource.deployment_id)
    else:
        backend = workspace.backend(resource.provider)
        await backend.destroy(resource_ref(resource))
        try:
            await save_usage(workspace, resource)
        except TunaError as e:
            # The resource is gone, and that is what matters; only its last bill is missing.
            report.note(f"{resource.role}: the last bill could not be read: {e.message}")
    store.update_resource(resource.id, state="gone", gone_at=time.time(), error=None)
    report.note(f"{resource.role} {resource.name} is gone")


async def _keep_traffic(
    workspace: Workspace, record: DeploymentRecord, resources: list[ResourceRecord], report: Report
) -> None:
    router = next((r for r in resources if r.role == ROUTER), None)
    if router is None:
        return
    try:
        url = await workspace.router_host(router.provider).url(record.id)
        if url is None:
            return
        stats: dict[str, Any] = await RouterClient(url, workspace.secrets.get(record.id, "admin_key")).stats()
    except TunaError as e:
        report.note(f"the router's last counters could not be read: {e.message}")
        return
    workspace.store.update_deployment(record.id, traffic=stats)
