"""Taking a deployment down: verified gone, as often as you like, from any half-built state."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tuna_nb.deployments.keeping import companion
from tuna_nb.deployments.keeping.watch import last_look, look, machine_of, resource_ref
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_hosts.base import hosts_of
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import TunaError
from tuna_nb.jobs import Report
from tuna_nb.records import DeploymentRecord, ResourceRecord


@dataclass(frozen=True, slots=True)
class Removed:
    """names: of the deployments and orphans that are gone now. note: why there were none."""

    names: tuple[str, ...]
    note: str = ""


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
    await asyncio.to_thread(companion.end_of, workspace.settings, record.id)
    # What ran and served until now, before it is gone.
    for who, why in (await look(workspace, record)).trouble:
        report.note(f"the bill's last figures of {who} could not be read: {why}")
    failures: list[TunaError] = []
    routers = [r for r in resources if r.role == ROUTER]
    others = [r for r in resources if r.role != ROUTER]
    for number, group in enumerate((routers, others)):
        if group:
            names = " and ".join(r.role for r in group)
            report.step(f"removing {names}", 0.1 + 0.45 * number)
        outcomes = await asyncio.gather(
            *(remove_resource(workspace, record, r, report) for r in group), return_exceptions=True
        )
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


async def remove_resource(
    workspace: Workspace,
    record: DeploymentRecord,
    resource: ResourceRecord,
    report: Report,
    *,
    error: str | None = None,
) -> None:
    """One part of a deployment: gone at its provider, and recorded so. error: why, where that was not asked for."""
    store = workspace.store
    store.update_resource(resource.id, state="destroying")
    if resource.role == ROUTER:
        for host in hosts_of(resource):
            await workspace.router_host(host).stop(resource.deployment_id)
        now = time.time()
        machine_of(workspace, resource, now, gone_at=now)
    else:
        backend = workspace.backend(resource.provider)
        await backend.destroy(resource_ref(resource))
        try:
            await last_look(workspace, record, resource, time.time())
        except TunaError as e:
            # The resource is gone, and that is what matters; only its last bill is missing.
            report.note(f"{resource.role}: the last bill could not be read: {e.message}")
    store.update_resource(resource.id, state="gone", gone_at=time.time(), error=error)
    report.note(f"{resource.role} {resource.name} is gone")
