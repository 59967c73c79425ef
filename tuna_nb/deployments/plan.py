"""From a request to everything that will be created, with its worst-case price; nothing is created here."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, Kind, Plan, PlannedResource, ServiceRequest
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, RequestError, did_you_mean

SERVERLESS, SPOT, ROUTER = "serverless", "spot", "router"
"""The roles of a deployment's resources."""


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """spot and router_host are None for a serverless-only deployment."""

    deployment_id: str
    request: DeployRequest
    serverless: Plan
    spot: Plan | None
    router_host: str | None

    @property
    def router_name(self) -> str:
        return resource_name(self.request.service_name, self.deployment_id, ROUTER)

    @property
    def resources(self) -> list[tuple[str, str, PlannedResource]]:
        """(role, provider, resource), in the order of creation."""
        rows = [(SERVERLESS, self.serverless_provider, r) for r in self.serverless.resources]
        if self.router_host is not None:
            # On this machine it costs nothing; a host that rents a VM will say what that costs.
            rows.append((ROUTER, self.router_host, PlannedResource("router", self.router_name, 0.0)))
        if self.spot is not None:
            rows += [(SPOT, self.spot_provider, r) for r in self.spot.resources]
        return rows

    @property
    def serverless_provider(self) -> str:
        return self.request.serverless_provider or "local"

    @property
    def spot_provider(self) -> str:
        return self.request.spots_cloud or "local"

    @property
    def worst_case_usd_per_hour(self) -> float | None:
        """Everything at its most replicas at once; None when a part is unknown."""
        known = [r.worst_case_usd_per_hour for _, _, r in self.resources]
        return None if any(k is None for k in known) else sum(k for k in known if k is not None)

    def records(self) -> list[dict[str, Any]]:
        """One store row per side, to be written before anything is created."""
        rows: list[dict[str, Any]] = [
            {
                "role": SERVERLESS,
                "provider": self.serverless_provider,
                "name": self.serverless.request.name,
                "price_per_hour_usd": self.serverless.price_per_hour_usd,
            }
        ]
        if self.router_host is not None:
            rows.append(
                {"role": ROUTER, "provider": self.router_host, "name": self.router_name, "price_per_hour_usd": 0.0}
            )
        if self.spot is not None:
            rows.append(
                {
                    "role": SPOT,
                    "provider": self.spot_provider,
                    "name": self.spot.request.name,
                    "price_per_hour_usd": self.spot.price_per_hour_usd,
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        return {
            "worst_case_usd_per_hour": self.worst_case_usd_per_hour,
            "resources": [
                {
                    "role": role,
                    "provider": provider,
                    "what": r.what,
                    "name": r.name,
                    "worst_case_usd_per_hour": r.worst_case_usd_per_hour,
                }
                for role, provider, r in self.resources
            ],
        }


def new_id() -> str:
    """A deployment's id: ten hex digits, in every tag and name of its resources."""
    return uuid.uuid4().hex[:10]


def resource_name(service_name: str, deployment_id: str, role: str) -> str:
    """Unique at the provider, and readable in its console."""
    return f"tuna-{service_name}-{deployment_id}-{role}"


async def plan(workspace: Workspace, request: DeployRequest, deployment_id: str) -> DeploymentPlan:
    """Choose providers and ask each what it would create.

    The request in the result names the providers that were chosen. Raises RequestError for a GPU that a chosen
    provider does not sell, or an option that no chosen provider has.
    """
    from dataclasses import replace

    serverless_name = request.serverless_provider or await cheapest_serverless(workspace, request.gpu)
    request = replace(request, serverless_provider=serverless_name)
    sides: list[tuple[Backend, Kind]] = [(_side(workspace, serverless_name, Kind.SERVERLESS), Kind.SERVERLESS)]
    if not request.serverless_only:
        request = replace(request, spots_cloud=request.spots_cloud or "local")
        sides.append((_side(workspace, request.spots_cloud or "", Kind.SPOT), Kind.SPOT))
        # A wrong host is refused here, before anything is recorded.
        workspace.router_host(request.router_host)
    known = {option for backend, _ in sides for option in backend.options}
    for option in request.options:
        if option not in known:
            names = " or ".join(sorted({b.name for b, _ in sides}))
            raise RequestError(f"{names} has no option {option!r}", did_you_mean(option, known))
    plans = [
        await backend.plan(
            ServiceRequest(
                deployment_id=deployment_id,
                name=resource_name(request.service_name, deployment_id, kind.value),
                kind=kind,
                engine=request.engine,
                gpu=request.gpu,
                gpu_count=request.gpu_count,
                scaling=request.serverless if kind is Kind.SERVERLESS else request.spot,
                region=request.region if kind is Kind.SPOT else None,
                public=request.public and request.serverless_only,
                options={k: v for k, v in request.options.items() if k in backend.options},
            )
        )
        for backend, kind in sides
    ]
    return DeploymentPlan(
        deployment_id,
        request,
        plans[0],
        plans[1] if len(plans) > 1 else None,
        None if request.serverless_only else request.router_host,
    )


async def cheapest_serverless(workspace: Workspace, gpu: str) -> str:
    """The serverless provider with the lowest price for this GPU; ties go to the first name in the alphabet.

    Raises RequestError where nobody sells it.
    """
    offers: list[tuple[float, str]] = []
    failed: list[str] = []
    for name in registry.names():
        try:
            backend = workspace.backend(name)
            if Kind.SERVERLESS not in backend.kinds:
                continue
            offers += [
                (o.price_per_hour_usd, name)
                for o in await backend.prices()
                if o.kind is Kind.SERVERLESS and o.gpu == gpu
            ]
        except BackendError:
            failed.append(name)
    if not offers:
        also = f" ({', '.join(failed)} could not be asked)" if failed else ""
        raise RequestError(f"no serverless provider sells {gpu}{also}", "name one with --serverless-provider")
    return min(offers)[1]


def _side(workspace: Workspace, name: str, kind: Kind) -> Backend:
    backend = workspace.backend(name)
    if kind not in backend.kinds:
        sells = " and ".join(sorted(k.value for k in backend.kinds))
        raise RequestError(f"{name} has no {kind.value} GPUs", f"it sells {sells}; choose another provider")
    return backend
