"""What is really there: the records held against the providers, the router and the processes of this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tuna_nb.backends.base import LogLine, Replica, State, Status
from tuna_nb.costs.meter import Reading
from tuna_nb.costs.unserving import Unserving
from tuna_nb.deployments.keeping.silence import unserving
from tuna_nb.deployments.keeping.watch import resource_ref
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.tracking import live_job
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import TunaError
from tuna_nb.records import DeploymentRecord, ResourceRecord


@dataclass(frozen=True, slots=True)
class Component:
    """One side, or the router. state: the provider's, `not created`, or `unknown` where it could not be asked.

    rate_usd_per_hour: what it costs now; None where that is unknown.
    """

    role: str
    provider: str
    name: str
    state: str
    billing: bool
    rate_usd_per_hour: float | None
    replicas: tuple[Replica, ...] = ()
    url: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """state: deploying, running, degraded, interrupted, destroying, failed or destroyed. Times: Unix seconds.

    routing: the router's `route_stats`; spot_state: its view of the spot side. unserving: what bills and does not
    serve.
    """

    name: str
    id: str
    state: str
    model: str
    gpu: str
    endpoint_url: str | None
    created_at: float
    observed_at: float
    components: tuple[Component, ...] = ()
    spot_state: str | None = None
    routing: dict[str, Any] | None = None
    step: str | None = None
    error: str | None = None
    hint: str | None = None
    unserving: tuple[Unserving, ...] = ()

    @property
    def rate_usd_per_hour(self) -> float | None:
        rates = [c.rate_usd_per_hour for c in self.components]
        return None if any(r is None for r in rates) else sum(r for r in rates if r is not None)


async def status(workspace: Workspace, record: DeploymentRecord) -> DeploymentStatus:
    """Ask everyone at once. A provider that can't be asked shows as `unknown`, never as gone."""
    resources = workspace.store.resources(record.id) if record.destroyed_at is None else []
    components = tuple(await asyncio.gather(*(_component(workspace, r) for r in resources)))
    router = next((c for c in components if c.role == ROUTER), None)
    health: dict[str, Any] = {}
    if router is not None and router.url is not None and router.state == State.READY:
        try:
            # Without the key, which may be on another machine, it tells its states and no more.
            key = workspace.secrets.get(record.id, "admin_key")
            health = await RouterClient(router.url, key, timeout_s=5).health()
        except TunaError as e:
            components = tuple(
                c if c is not router else _with(c, state="unknown", detail=e.message) for c in components
            )
    state, step, hint = _judge(workspace, record, components)
    return DeploymentStatus(
        name=record.name,
        id=record.id,
        state=state,
        model=str(record.request["model"]),
        gpu=f"{record.request['gpu_count']}x {record.request['gpu']}",
        endpoint_url=record.endpoint_url,
        created_at=record.created_at,
        observed_at=time.time(),
        components=components,
        spot_state=health.get("spot_state") if any(c.role == "spot" for c in components) else None,
        routing=health.get("route_stats"),
        step=step,
        error=record.error,
        hint=hint,
        unserving=_unserving(workspace, record, resources, components),
    )


def _unserving(
    workspace: Workspace,
    record: DeploymentRecord,
    resources: list[ResourceRecord],
    components: tuple[Component, ...],
) -> tuple[Unserving, ...]:
    """As far as somebody has looked."""
    states = {
        resource.id: Status(
            resource_ref(resource), State(part.state), part.replicas, part.billing, time.time(), part.detail
        )
        for resource, part in zip(resources, components, strict=True)
        if resource.role != ROUTER and part.state in set(State)
    }
    return tuple(unserving(workspace.store, record, states, time.time()).values()) if resources else ()


def _judge(
    workspace: Workspace, record: DeploymentRecord, components: tuple[Component, ...]
) -> tuple[str, str | None, str | None]:
    """(state, step under way, hint) as they are, whatever was last recorded."""
    if record.state in ("deploying", "destroying"):
        job = live_job(workspace, record.name)
        if job is not None:
            return record.state, job.step, None
        again = (
            "deploy the same name again to finish it, or destroy it"
            if record.state == "deploying"
            else f"`tuna destroy --service-name {record.name}` finishes it"
        )
        return "interrupted", None, f"the process that was {record.state} it has ended; {again}"
    if record.state == "running":
        broken = [c for c in components if c.role != "spot" and c.state in (State.GONE, State.FAILED, "unknown")]
        if broken:
            what = " and ".join(c.role for c in broken)
            return "degraded", None, f"{what} not working; deploying the same name again mends it"
    return record.state, None, None


async def _component(workspace: Workspace, resource: ResourceRecord) -> Component:
    base = Component(
        resource.role,
        resource.provider,
        resource.name,
        resource.state,
        False,
        0.0,
        url=resource.url,
        detail=resource.error or "",
    )
    if resource.state == "planned":
        return _with(base, state="not created")
    if resource.state == "gone":
        return base
    try:
        if resource.role == ROUTER:
            url = await workspace.router_host(resource.provider).url(resource.deployment_id)
            # A machine that is rented for it costs money whether it runs or not.
            price = resource.price_per_hour_usd
            state = State.READY if url else State.GONE
            return _with(base, state=state, url=url, billing=price != 0, rate_usd_per_hour=price)
        found = await workspace.backend(resource.provider).status(resource_ref(resource))
    except TunaError as e:
        return _with(base, state="unknown", rate_usd_per_hour=None, detail=e.message)
    billing = sum(r.state not in (State.GONE, State.FAILED) for r in found.replicas) if found.billing else 0
    price = resource.price_per_hour_usd
    return _with(
        base,
        state=found.state,
        billing=found.billing,
        rate_usd_per_hour=0.0 if not billing else None if price is None else price * billing,
        replicas=found.replicas,
        detail=found.detail or base.detail,
    )


def _with(component: Component, **change: Any) -> Component:
    from dataclasses import replace

    return replace(component, **change)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every deployment asked for. orphans: (provider, role, name) of what no deployment owns.

    unasked: (provider, reason) where nothing could be learned; never the same as "none".
    """

    deployments: tuple[DeploymentStatus, ...]
    orphans: tuple[tuple[str, str, str], ...] = ()
    unasked: tuple[tuple[str, str], ...] = ()
    meter: Reading | None = None
    """What those that run have cost so far, by the records; None where nothing runs or nobody can tell."""


@dataclass(frozen=True, slots=True)
class LogStream:
    """(role, line) as they come; to be read on the loop thread."""

    lines: AsyncIterator[tuple[str, LogLine]]
