"""Finding what the records don't know: resources at the providers, and routers here, without a deployment."""

from __future__ import annotations

from dataclasses import dataclass

from tuna_nb.backends import registry
from tuna_nb.backends.base import Ref
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_hosts.base import PROCESS, hosts_of
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, TunaError
from tuna_nb.jobs import Report


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something that carries our mark and belongs to no live deployment of this store.

    ref: at a provider; None for a router, found by its deployment id. ours: whether this store once recorded
    the deployment; otherwise it may belong to another store, and is removed only when that is asked for.
    """

    provider: str
    role: str
    name: str
    deployment_id: str | None
    ours: bool
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Orphans:
    """unasked: providers that could not be listed, with the reason; nothing is known of theirs."""

    found: tuple[Orphan, ...]
    unasked: tuple[tuple[str, str], ...]


async def orphans(workspace: Workspace) -> Orphans:
    """List every provider that is installed, and every place that has had a router, and hold the answers against
    the records."""
    records = workspace.store.deployments()
    live = {r.id for r in records if r.destroyed_at is None}
    known = {r.id for r in records}
    found: list[Orphan] = []
    unasked: list[tuple[str, str]] = []
    used = {resource.provider for id_ in live for resource in workspace.store.resources(id_)}
    for name in registry.names():
        try:
            backend = workspace.backend(name)
            if not backend.configured():
                if name in used:
                    unasked.append((name, "not set up here, and something of ours was last seen there"))
                continue
            refs = await backend.list_owned()
        except BackendError as e:
            unasked.append((name, e.message))
            continue
        found += [
            Orphan(name, ref.kind.value, ref.name, ref.deployment_id, ref.deployment_id in known, ref)
            for ref in refs
            if ref.deployment_id not in live
        ]
    for name in sorted({PROCESS} | {host for id_ in known for host in _router_hosts(workspace, id_)}):
        try:
            owned = await workspace.router_host(name).list_owned()
        except TunaError as e:
            unasked.append((f"router host {name}", e.message))
            continue
        for deployment_id in owned:
            if deployment_id not in live:
                found.append(Orphan(name, ROUTER, deployment_id, deployment_id, deployment_id in known))
    return Orphans(tuple(found), tuple(unasked))


def _router_hosts(workspace: Workspace, deployment_id: str) -> set[str]:
    resources = workspace.store.resources(deployment_id)
    return {host for r in resources if r.role == ROUTER for host in hosts_of(r)}


async def remove(workspace: Workspace, orphan: Orphan, report: Report) -> None:
    """Destroy it, verified. Raises BackendError or RouterError."""
    report.note(f"removing {orphan.role} {orphan.name}, which no deployment owns")
    if orphan.ref is not None:
        await workspace.backend(orphan.provider).destroy(orphan.ref)
    elif orphan.deployment_id is not None:
        await workspace.router_host(orphan.provider).stop(orphan.deployment_id)
        workspace.secrets.forget(orphan.deployment_id)
