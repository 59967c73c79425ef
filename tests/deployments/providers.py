"""Providers of a third party's making: the local cloud with a fault that real providers have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from tuna_nb.backends.base import (
    Auth,
    Check,
    Endpoint,
    Kind,
    Plan,
    PlannedResource,
    PriceAccess,
    Progress,
    Ref,
    ServiceRequest,
    Status,
)
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.errors import BackendError, CapacityError, RequestError


class SoldOut(LocalBackend):
    """Sells no GPU now."""

    name: ClassVar[str] = "sold-out"

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        raise CapacityError(f"{self.name} has no {plan.request.gpu} free", "try another region")


class Stubborn(LocalBackend):
    """Refuses to remove anything while `refuses` is set."""

    name: ClassVar[str] = "stubborn"
    refuses = True

    async def destroy(self, ref: Ref) -> None:
        if self.refuses:
            raise BackendError(f"{self.name}: 503 to DELETE {ref.name}", "try again later")
        await super().destroy(ref)


class Unheard(LocalBackend):
    """Can't be asked for its list, and so neither for orphans."""

    name: ClassVar[str] = "unheard"
    silent = True

    async def list_owned(self) -> list[Ref]:
        if self.silent:
            raise BackendError("unheard: timed out after 30 s")
        return await super().list_owned()


class Priced(LocalBackend):
    """Sells one GPU on the serverless side at a price that the test sets; tells none where it is None.

    trouble: what its check misses. ready: whether it is set up here at all. silent: it can't be asked.
    """

    options: ClassVar[dict[str, str]] = {"flavour": "an option of its own"}
    price_access: ClassVar[PriceAccess] = PriceAccess.ACCOUNT
    pretends: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        usd: float | None,
        gpu: str = "L4",
        kinds: frozenset[Kind] | None = None,
        *,
        trouble: str | None = None,
        ready: bool = True,
        pretends: bool = False,
        silent: bool = False,
    ) -> None:
        super().__init__()
        self.name = name  # type: ignore[misc]
        self.kinds = kinds or frozenset(Kind)  # type: ignore[misc]
        self.pretends = pretends  # type: ignore[misc]
        self._usd = usd
        self._gpu = gpu
        self._trouble = trouble
        self._ready = ready
        self._silent = silent

    def configured(self) -> bool:
        return self._ready

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        return [Check("quota", self._trouble is None, self._trouble or "plenty", "ask for more")]

    async def prices(self) -> list[Offer]:
        if self._usd is None:
            raise BackendError(f"{self.name} could not be asked")
        return [Offer(self.name, OfferKind.SERVERLESS, self._gpu, self._usd, None, 0.0, "the test")]

    async def plan(self, request: ServiceRequest) -> Plan:
        if request.gpu != self._gpu:
            raise RequestError(f"{self.name} sells no {request.gpu}")
        if self._silent:
            raise BackendError(f"{self.name}: 503")
        resource = PlannedResource("a thing", request.name, self._usd and self._usd * request.gpu_count)
        return Plan(request, (resource,), self._usd)


class Expiring(LocalBackend):
    """Its headers live for `life_s`; each set has a number. `refuses` while it is told to."""

    name: ClassVar[str] = "expiring"
    life_s = 1000.0
    refuses = False

    def __init__(self, folder: Path, wall: Callable[[], float]) -> None:
        super().__init__(folder)
        self.given = 0
        self._wall = wall

    async def auth(self, ref: Ref) -> Auth:
        if self.refuses:
            raise BackendError("expiring: 503 to the token")
        self.given += 1
        opened = await super().auth(ref)
        return Auth({**opened.headers, "x-number": str(self.given)}, self._wall() + self.life_s)


class Addressed(LocalBackend):
    """Its replicas can be addressed one by one, behind a balancer. `unheard`: its status can't be asked for.

    On this machine both are the fleet's own gateway. asked: how often for its status; takes: what that does to time.
    """

    name: ClassVar[str] = "addressed"
    tells_usage: ClassVar[bool] = False
    price_usd: float | None = None
    """Of a replica from now on; None for the local cloud's own."""
    unheard = False
    asked = 0
    takes: Callable[[], None] | None = None

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        made = await super().deploy(plan, progress)
        return replace(made, balances=True, traffic_url=f"{made.url}/health")

    async def plan(self, request: ServiceRequest) -> Plan:
        made = await super().plan(request)
        return made if self.price_usd is None else replace(made, price_per_hour_usd=self.price_usd)

    async def status(self, ref: Ref) -> Status:
        self.asked += 1
        if self.takes is not None:
            self.takes()
        if self.unheard:
            raise BackendError("addressed: the network is down")
        found = await super().status(ref)
        return replace(found, replicas=tuple(replace(r, url=found.endpoint_url) for r in found.replicas))
