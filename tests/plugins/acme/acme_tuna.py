"""Acme's serverless GPUs for Tuna: a worked example of a backend in a distribution of its own.

It stands on what Tuna keeps for adapters: the contract (`base`), the engine's command line (`engine`), REST with honest
errors (`rest`), creating once and destroying until it is seen gone (`lifecycle`), names (`names`).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import (
    Auth,
    Backend,
    Check,
    Endpoint,
    Kind,
    LogLine,
    Plan,
    PlannedResource,
    Progress,
    Ref,
    Replica,
    ServerlessScaling,
    ServiceRequest,
    SpotScaling,
    State,
    Status,
)
from tuna_nb.backends.lifecycle import create_once, until_gone
from tuna_nb.backends.names import deployment_of
from tuna_nb.backends.options import known, whole
from tuna_nb.backends.rest import TIMEOUT_S, Api
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.errors import CredentialsError, NotFoundError, RequestError, did_you_mean

PRICES = {"L4": 0.5, "H100": 3.0}
"""USD per GPU-hour, from Acme's price list of 2026-11-01."""
PRICED_AT = 1_793_491_200.0
SIGN_IN = "export ACME_KEY=<your key>"


class AcmeBackend(Backend):
    """Acme Cloud. url: of its API, by default ACME_URL."""

    name: ClassVar[str] = "acme"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    options: ClassVar[Mapping[str, str]] = {"acme_tier": "1 to 3, how soon a container starts (default 1)"}

    def __init__(self, url: str | None = None, *, timeout_s: float = TIMEOUT_S, pace: float = 1.0) -> None:
        base = url or os.environ.get("ACME_URL", "https://api.acme.example")
        self._api = Api("acme", base, self._headers, SIGN_IN, timeout_s=timeout_s, pace=pace)
        self._pace = pace

    def configured(self) -> bool:
        return bool(os.environ.get("ACME_KEY"))

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        if not self.configured():
            return [Check("key", False, "ACME_KEY is not set", SIGN_IN)]
        try:
            await self._services()
        except CredentialsError as exc:
            return [Check("key", False, exc.message, exc.hint)]
        rows = [Check("key", True, "ACME_KEY is accepted")]
        if request is not None:
            offered = request.gpu in PRICES
            rows.append(Check("gpu", offered, f"Acme has {', '.join(PRICES)}", None if offered else "choose one"))
        return rows

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = _checked(request)
        each = PRICES[request.gpu] * request.gpu_count
        resource = PlannedResource("Acme service", request.name, each * scaling.workers_max)
        return Plan(request, (resource,), each, ("price: Acme's list of 2026-11-01",))

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request

        async def create() -> dict[str, Any]:
            progress(f"creating {request.name} at Acme", None)
            made: dict[str, Any] = await self._api.call(
                "POST", "/services", request.name, body=service_body(request), creates=True
            )
            return made

        found = await create_once(lambda: self._find(request.name), create, pace=self._pace)
        return Endpoint(_ref(found), found["url"])

    async def status(self, ref: Ref) -> Status:
        found = await self._find(ref.name)
        if found is None:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        replicas = tuple(Replica(c["id"], State(c["state"]), c["started_at"]) for c in found["containers"])
        states = {r.state for r in replicas}
        order = (State.READY, State.STARTING, State.FAILED)
        state = next((one for one in order if one in states), State.IDLE)
        return Status(_ref(found), state, replicas, bool(replicas), time.time(), "", found["url"])

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        seen = 0
        while True:
            lines = (await self._api.get(f"/services/{ref.name}/logs", f"log of {ref.name}"))["lines"]
            for line in lines[seen:]:
                if since is None or line["at"] >= since:
                    yield LogLine(line["at"], line["container"], line["text"])
            seen = len(lines)
            if not follow:
                return

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        assert isinstance(scaling, ServerlessScaling)
        await self._api.call("PATCH", f"/services/{ref.name}", ref.name, body={"scaling": _scaling(scaling)})

    async def wake(self, ref: Ref) -> None:
        await self._api.call("POST", f"/services/{ref.name}/wake", ref.name)

    async def destroy(self, ref: Ref) -> None:
        try:
            await self._api.call("DELETE", f"/services/{ref.name}", ref.name)
        except NotFoundError:
            return

        async def is_there() -> bool:
            return await self._find(ref.name) is not None

        await until_gone(is_there, f"acme: {ref.name}", within_s=60, poll_s=self._pace, hint="see Acme's console")

    async def list_owned(self) -> list[Ref]:
        return [_ref(found) for found in await self._services() if found["labels"].get("tuna")]

    async def auth(self, ref: Ref) -> Auth:
        """Acme's tokens live ten minutes: Tuna asks for the next one in time."""
        given = await self._api.call("POST", f"/services/{ref.name}/token", ref.name)
        return Auth({"Authorization": f"Bearer {given['token']}"}, time.time() + given["expires_in"])

    async def prices(self) -> list[Offer]:
        return [
            Offer(self.name, OfferKind.SERVERLESS, gpu, usd, None, PRICED_AT, "Acme's price list")
            for gpu, usd in PRICES.items()
        ]

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key()}"}

    def _key(self) -> str:
        key = os.environ.get("ACME_KEY")
        if not key:
            raise CredentialsError("acme: ACME_KEY is not set", SIGN_IN)
        return key

    async def _services(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: str | None = ""
        while page is not None:
            listed = await self._api.get("/services", "the list of services", page=page)
            found += listed["services"]
            page = listed["next"]
        return found

    async def _find(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._api.get(f"/services/{name}", name)
        except NotFoundError:
            return None
        return found


def service_body(request: ServiceRequest) -> dict[str, Any]:
    """What Acme is sent."""
    scaling = _checked(request)
    return {
        "name": request.name,
        "labels": {"tuna": request.deployment_id},
        "gpu": request.gpu,
        "image": engines.image(request.engine),
        "command": engines.command(request.engine),
        "env": engines.environment(request.engine),
        "scaling": _scaling(scaling),
    }


def _checked(request: ServiceRequest) -> ServerlessScaling:
    known("acme", request.options, AcmeBackend.options)
    whole(request.options, "acme_tier", 1, least=1, most=3)
    if request.gpu not in PRICES:
        raise RequestError(f"acme has no {request.gpu}", did_you_mean(request.gpu, PRICES))
    assert isinstance(request.scaling, ServerlessScaling)
    return request.scaling


def _scaling(scaling: ServerlessScaling) -> dict[str, Any]:
    return {"min": scaling.workers_min, "max": scaling.workers_max, "idle_s": scaling.scaledown_window}


def _ref(found: Mapping[str, Any]) -> Ref:
    return Ref("acme", Kind.SERVERLESS, found["name"], found["name"], deployment_of(found["name"]))
