"""From a request to everything that will be created, with its worst-case price; nothing is created here."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, Engine, Kind, Plan, PlannedResource, Quote, ServiceRequest
from tuna_nb.backends.names import resource_name
from tuna_nb.catalog import hub
from tuna_nb.catalog.offers import DAY_S, SHELF_LIFE_S, OfferKind
from tuna_nb.deployments import memory_check
from tuna_nb.deployments.choice import Choice, choose
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_choice import choose_host
from tuna_nb.deployments.router_hosts.base import Prospect
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, CredentialsError, RequestError, did_you_mean
from tuna_nb.records import BudgetRecord, QuietRecord
from tuna_nb.secrets import hugging_face_token

SERVERLESS, SPOT, ROUTER = "serverless", "spot", "router"
"""The roles of a deployment's resources."""
_PREFERRED, _HERE = "aws", "local"


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """spot and router_host are None for a serverless-only deployment. choice: why this serverless provider,
    where the user named none. spot_provider: which backend rents at the request's `spots_cloud`. budget, quiet: to
    be recorded with it; budget_notes: what the budgets over it mean for it."""

    deployment_id: str
    request: DeployRequest
    serverless: Plan
    spot: Plan | None
    router_host: str | None
    choice: Choice | None = None
    router: Prospect | None = None
    spot_provider: str = _HERE
    price_notes: tuple[str, ...] = ()
    budget: BudgetRecord | None = None
    quiet: QuietRecord | None = None
    budget_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What its reader should know, each once."""
        parts = (
            self.budget_notes,
            self.choice.notes if self.choice else (),
            self.price_notes,
            self.serverless.notes,
            self.spot.notes if self.spot else (),
            self.router.notes if self.router else (),
        )
        return tuple(dict.fromkeys(note for part in parts for note in part))

    @property
    def router_name(self) -> str:
        return resource_name(self.request.service_name, self.deployment_id, ROUTER)

    @property
    def resources(self) -> list[tuple[str, str, PlannedResource]]:
        """(role, provider, resource), in the order of creation."""
        rows = [(SERVERLESS, self.serverless_provider, r) for r in self.serverless.resources]
        if self.router_host is not None:
            rows.append((ROUTER, self.router_host, PlannedResource("router", self.router_name, self._router_price)))
        if self.spot is not None:
            rows += [(SPOT, self.spot_provider, r) for r in self.spot.resources]
        return rows

    @property
    def serverless_provider(self) -> str:
        return self.request.serverless_provider or "local"

    @property
    def _router_price(self) -> float | None:
        return self.router.price_per_hour_usd if self.router else 0.0

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
                {
                    "role": ROUTER,
                    "provider": self.router_host,
                    "name": self.router_name,
                    "price_per_hour_usd": self._router_price,
                }
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
            "notes": list(self.notes),
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


async def plan(workspace: Workspace, request: DeployRequest, deployment_id: str) -> DeploymentPlan:
    """Choose providers and ask each what it would create.

    The request in the result names the providers that were chosen. Raises RequestError for a GPU that a chosen
    provider does not sell, an option that no chosen provider has, a gated model without a token, and one that can't
    fit the GPUs.
    """
    choice: Choice | None = None
    prospect: Prospect | None = None
    name = request.serverless_provider
    if name is None:
        choice = await choose(
            workspace,
            request.gpu,
            lambda name: _service(request, workspace.backend(name), Kind.SERVERLESS, deployment_id, request.engine),
        )
        name = choice.provider
    request = replace(request, serverless_provider=name)
    sides: list[tuple[Backend, Kind]] = [(_side(workspace, name, Kind.SERVERLESS), Kind.SERVERLESS)]
    if not request.serverless_only:
        cloud = request.spots_cloud or _default_cloud(workspace, sides[0][0])
        request = replace(request, spots_cloud=cloud)
        sides.append((_side(workspace, registry.for_cloud(cloud, workspace.backend).name, Kind.SPOT), Kind.SPOT))
        # A wrong host is refused here, before anything is recorded.
        only_here = serves_only_here(workspace, request, deployment_id)
        host, prospect = await choose_host(
            workspace, request.router_host, sides[1][0], near(request), only_here=only_here
        )
        request = replace(request, router_host=host)
    known = {option for backend, _ in sides for option in backend.options}
    for option in request.options:
        if option not in known:
            names = " or ".join(sorted({b.name for b, _ in sides}))
            raise RequestError(f"{names} has no option {option!r}", did_you_mean(option, known))
    engine = request.engine
    if not all(backend.pretends for backend, _ in sides) and engine.command is None:
        engine = replace(engine, gated=await _gated(request))
        # Where resources are only pretended, the stand-in serves whatever it is called.
        if (refused := await memory_check.check(request)) is not None:
            raise refused
    plans = [await backend.plan(_service(request, backend, kind, deployment_id, engine)) for backend, kind in sides]
    return DeploymentPlan(
        deployment_id,
        request,
        plans[0],
        plans[1] if len(plans) > 1 else None,
        None if request.serverless_only else request.router_host,
        choice,
        prospect,
        sides[-1][0].name,
        tuple(
            note
            for side, kind in zip(plans, (OfferKind.SERVERLESS, OfferKind.SPOT), strict=False)
            if (note := quoted(side.quote, kind, request.gpu, time.time())) is not None
        ),
    )


async def price_now(workspace: Workspace, request: DeployRequest, deployment_id: str, role: str) -> float | None:
    """What a replica of a side costs an hour at this moment, as its provider says; None where it does not tell.

    Raises TunaError where it can't be asked.
    """
    kind = Kind(role)
    name = request.serverless_provider or _HERE
    if kind is Kind.SPOT:
        name = registry.for_cloud(request.spots_cloud or _HERE, workspace.backend).name
    backend = workspace.backend(name)
    return (await backend.plan(_service(request, backend, kind, deployment_id, request.engine))).price_per_hour_usd


def quoted(quote: Quote | None, kind: OfferKind, gpu: str, now: float) -> str | None:
    """Where a side's price comes from and how old it is, and a warning where it may not be believed any more.

    None where it is nobody's list price. now: Unix seconds.
    """
    if quote is None:
        return None
    days = (now - quote.observed_at) / DAY_S
    when = "now" if days < 1 / 24 else "today" if days < 1 else f"{days:.0f} day{'s' * (round(days) != 1)} old"
    said = f"{kind} price: {quote.source}, {when}"
    if now - quote.observed_at > SHELF_LIFE_S[kind]:
        said += f": STALE, the bill may differ; `tuna show-gpus --gpu {gpu} --live` asks for today's"
    elif quote.snapshot:
        said += "; only from the table that ships with Tuna"
    return said


def serves_only_here(workspace: Workspace, request: DeployRequest, deployment_id: str) -> bool:
    """Whether the serverless side, whose provider is chosen, is reached from this machine alone."""
    backend = workspace.backend(request.serverless_provider or _HERE)
    return backend.only_here(_service(request, backend, Kind.SERVERLESS, deployment_id, request.engine))


def near(request: DeployRequest) -> str | None:
    """Where the spot side is, as SkyPilot names places: a cloud, or a cloud and its region; None for wherever.

    Of a zone its region: what is only to be near need not be where spot machines are scarce.
    """
    cloud = request.options.get("cloud") or request.spots_cloud
    region = (request.region or "").partition(",")[0].partition("/")[0].strip()
    if cloud in (None, _HERE):
        return None
    return f"{cloud}/{region}" if region else cloud


def _default_cloud(workspace: Workspace, serverless: Backend) -> str:
    """AWS where it can be rented from, else another cloud that can, else this machine, which only pretends.

    This machine, too, beside a serverless side that pretends: who tries something out rents nothing. A provider
    that is no cloud's broker has to be named.
    """
    if serverless.pretends:
        return _HERE
    found: list[str] = []
    for name in registry.names():
        try:
            backend = workspace.backend(name)
        except BackendError:
            continue  # it can't be loaded, and `tuna check` says so
        found += backend.clouds_here()
    return _PREFERRED if _PREFERRED in found else next(iter(found), _HERE)


def _service(
    request: DeployRequest, backend: Backend, kind: Kind, deployment_id: str, engine: Engine
) -> ServiceRequest:
    """One side of the deployment, as its provider gets it."""
    return ServiceRequest(
        deployment_id=deployment_id,
        name=resource_name(request.service_name, deployment_id, kind.value),
        kind=kind,
        engine=engine,
        gpu=request.gpu,
        gpu_count=request.gpu_count,
        scaling=request.serverless if kind is Kind.SERVERLESS else request.spot,
        region=request.region if kind is Kind.SPOT else None,
        public=request.public and request.serverless_only,
        options={k: v for k, v in request.options.items() if k in backend.options}
        | (cloud_option(backend, request.spots_cloud) if kind is Kind.SPOT else {}),
    )


def cloud_option(backend: Backend, cloud: str | None) -> dict[str, str]:
    """How a backend of several clouds is told which of them is meant: by its option `cloud`."""
    return {"cloud": cloud} if cloud in backend.clouds else {}


async def require_set_up(workspace: Workspace, planned: DeploymentPlan) -> None:
    """Raises CredentialsError, with the step that mends it, where a provider of the plan is not set up here.

    To be asked before anything is recorded: what can't be asked could not be seen gone either.
    """
    sides = [(planned.serverless_provider, planned.serverless)]
    if planned.spot is not None:
        sides.append((planned.spot_provider, planned.spot))
    for name, side in sides:
        backend = workspace.backend(name)
        if backend.configured():
            continue
        # What its environment lacks the request may have told.
        missing = next((row for row in await backend.check(side.request) if not row.passed), None)
        if missing is not None:
            raise CredentialsError(f"{name} is not set up here: {missing.message}", missing.fix)


async def _gated(request: DeployRequest) -> bool:
    """Whether the model's weights need a token. Raises RequestError where they do and there is none."""
    token = hugging_face_token()
    if not (await hub.access(request.model, token)).gated:
        return False
    if token is None and not any(option.startswith("hf_") for option in request.options):
        raise RequestError(
            f"{request.model} is gated: its weights are given only to who shows a Hugging Face token",
            f"accept its licence at {hub.URL}/{request.model}, then export HF_TOKEN=<your token>",
        )
    return True


def _side(workspace: Workspace, name: str, kind: Kind) -> Backend:
    backend = workspace.backend(name)
    if kind not in backend.kinds:
        sells = " and ".join(sorted(k.value for k in backend.kinds))
        raise RequestError(f"{name} has no {kind.value} GPUs", f"it sells {sells}; choose another provider")
    return backend
