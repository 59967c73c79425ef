"""Changing how a running deployment scales, in place, and waking what has scaled to zero."""

from __future__ import annotations

from dataclasses import replace

from tuna_nb.backends.base import ServerlessScaling, SpotScaling
from tuna_nb.deployments.keeping.watch import resource_ref
from tuna_nb.deployments.plan import ROUTER, SERVERLESS, SPOT
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import ConflictError, RequestError
from tuna_nb.records import DeploymentRecord, ResourceRecord


async def scale(
    workspace: Workspace, record: DeploymentRecord, serverless: ServerlessScaling, spot: SpotScaling
) -> None:
    """Give both sides their new scaling, where it differs; the record follows each provider's word.

    Raises RequestError for figures that can't be, BackendError where a provider refuses; what was changed before
    that stays changed, and is recorded so.
    """
    request = DeployRequest.from_json(record.request)
    if request.serverless_only and spot != request.spot:
        raise RequestError(f"{record.name} has no spot side", "it was deployed with --serverless-only")
    wanted = replace(request, serverless=serverless, spot=spot)
    sides = _sides(workspace, record)
    for role, now, then in ((SERVERLESS, serverless, request.serverless), (SPOT, spot, request.spot)):
        if now == then or role not in sides:
            continue
        resource = sides[role]
        workspace.store.add_event(record.id, f"scaling {role}: {now}")
        await workspace.backend(resource.provider).scale(resource_ref(resource), now)
        request = replace(request, **{role: getattr(wanted, role)})
        workspace.store.update_deployment(record.id, request=request.to_json())


async def wake(workspace: Workspace, record: DeploymentRecord, role: str | None) -> list[str]:
    """Ask one side, or both, to start; returns the roles that were asked."""
    sides = _sides(workspace, record)
    if role is not None and role not in sides:
        raise RequestError(f"{record.name} has no {role} side", f"it has {' and '.join(sides) or 'none'}")
    asked = [role] if role is not None else list(sides)
    for one in asked:
        resource = sides[one]
        await workspace.backend(resource.provider).wake(resource_ref(resource))
    return asked


def _sides(workspace: Workspace, record: DeploymentRecord) -> dict[str, ResourceRecord]:
    if record.destroyed_at is not None:
        raise ConflictError(f"{record.name} was {record.state}", "deploy it again first")
    resources = workspace.store.resources(record.id)
    return {r.role: r for r in resources if r.role != ROUTER and r.state == "created"}
