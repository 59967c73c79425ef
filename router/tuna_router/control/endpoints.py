"""The control plane: FastAPI under `/router/*` and `/metrics`. Imported when first asked for.

Whoever comes here has been let in by `app`: stats and metrics need a client key, the rest an admin key.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from tuna_router import __version__
from tuna_router.books.meter import Tally
from tuna_router.control.budget import add_budget
from tuna_router.control.errors import RESPONSES, Unprocessable, add_errors, body_of, read_json
from tuna_router.control.keys import add_keys
from tuna_router.control.load import add_load
from tuna_router.control.metrics import exposition, rejected
from tuna_router.control.models import (
    HeadersIn,
    HeadersOut,
    NoticeIn,
    NoticeOut,
    ReplicaSetIn,
    ReplicaSetOut,
    ReplicasIn,
    ReplicasOut,
    Stats,
    configuration_schema,
)
from tuna_router.core import Core
from tuna_router.errors import SettingsError
from tuna_router.fleet.replicas import parse as parse_replica_set
from tuna_router.fleet.replicas import with_headers_of_balancers, with_replicas
from tuna_router.fleet.watch import parse_notice, parse_replicas
from tuna_router.settings import (
    BackendSettings,
    Kind,
    Settings,
    backend_to_json,
    check_url,
    keep_a_way_in,
    named,
    parse_settings,
    to_json,
)

if TYPE_CHECKING:
    from tuna_router.app import Router
    from tuna_router.core import Core

_FOUNDING_KEYS = ("serverless_url", "serverless_auth_token", "spot_url")


def build(router: Router) -> FastAPI:
    """The control application of one router."""
    app = FastAPI(
        title="tuna-router",
        version=__version__,
        openapi_url="/router/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=RESPONSES,
    )
    core = router.core
    add_errors(app)
    add_keys(app, router)
    add_load(app, router)
    add_budget(app, router)

    @app.get("/router/config", response_model=Settings)
    async def get_config() -> dict[str, Any]:
        """The configuration; the values of headers are masked."""
        return to_json(core.settings, mask=True)

    @app.post("/router/config", response_model=Settings, openapi_extra=body_of(configuration_schema()))
    async def post_config(request: Request) -> dict[str, Any]:
        """Change any part of the configuration."""
        data = await read_json(request)
        try:
            await router.configure(_changed(core.settings, data, open_door=core.open_door))
        except SettingsError as error:
            raise Unprocessable(error.message, error.hint) from error
        return to_json(core.settings, mask=True)

    @app.put(
        "/router/backends/{name}/headers",
        response_model=HeadersOut,
        openapi_extra=body_of(HeadersIn.model_json_schema()),
    )
    async def put_headers(name: str, request: Request) -> dict[str, Any]:
        """The whole set of headers that opens a backend from now on; requests that run keep theirs."""
        data = await read_json(request)
        if unknown := sorted(data.keys() - {"headers"}):
            raise Unprocessable(f"unknown key {unknown[0]!r}", "known: headers")
        if "headers" not in data:
            raise Unprocessable("there are no headers", 'send {"headers": {"Authorization": "Bearer ..."}}')
        backends = {backend.name: backend for backend in core.settings.backends}
        if name not in backends:
            raise Unprocessable(f"there is no backend {name!r}", "known: " + ", ".join(backends), 404)
        try:
            shown = [backend_to_json(b, mask=False) | (data if b.name == name else {}) for b in backends.values()]
            settings = parse_settings({"backends": shown}, core.settings)
            renewed = with_headers_of_balancers(settings.backends)
            await router.configure(dataclasses.replace(settings, backends=renewed))
        except SettingsError as error:
            raise Unprocessable(error.message, error.hint) from error
        return {"ok": True, "backend": name, "headers": sorted(core.fleet[name].settings.headers)}

    @app.put(
        "/router/backends/{name}/replicas",
        response_model=ReplicaSetOut,
        openapi_extra=body_of(ReplicaSetIn.model_json_schema()),
    )
    async def put_replicas(name: str, request: Request) -> dict[str, Any]:
        """The replicas behind a balancer, each to be addressed directly; those left out end what they have."""
        data = await read_json(request)
        if unknown := sorted(data.keys() - {"replicas"}):
            raise Unprocessable(f"unknown key {unknown[0]!r}", "known: replicas")
        if not any(b.name == name and b.kind is Kind.SPOT for b in core.settings.backends):
            spots = [b.settings.name for b in core.fleet.spots]
            raise Unprocessable(f"there is no spot backend {name!r}", "known: " + ", ".join(spots), 404)
        try:
            wanted = with_replicas(core.settings.backends, name, parse_replica_set(data.get("replicas")))
            if wanted != core.settings.backends:
                await router.configure(dataclasses.replace(core.settings, backends=wanted))
        except SettingsError as error:
            raise Unprocessable(error.message, error.hint) from error
        return {"ok": True, "replicas": {b.name: b.state_name for b in core.fleet.replicas_of(name)}}

    @app.post(
        "/router/spot-replicas",
        response_model=ReplicasOut,
        openapi_extra=body_of(ReplicasIn.model_json_schema()),
    )
    async def post_replicas(request: Request) -> dict[str, Any]:
        """What a fleet's controller knows of its replicas."""
        data = await read_json(request)
        known = {"replicas", "ready", "starting", "draining", "total", "backend"}
        if unknown := sorted(data.keys() - known):
            raise Unprocessable(f"unknown key {unknown[0]!r}", "known: " + ", ".join(sorted(known)))
        try:
            seen = parse_replicas(data)
        except ValueError as error:
            raise Unprocessable(str(error), 'send {"ready": 1, "starting": 0, "draining": 0}') from error
        spots = {backend.settings.name: backend for backend in core.fleet.spots}
        name = data.get("backend")
        if name is not None and not (isinstance(name, str) and name in spots):
            raise Unprocessable(f"there is no spot backend {name!r}", "known: " + ", ".join(spots), 404)
        for backend in spots.values() if name is None else [spots[name]]:
            backend.tell(seen)
        states = {b.settings.name: b.state_name for b in core.fleet.spots}
        return {"ok": True, "replicas": seen.ready, "states": states}

    @app.post(
        "/router/spot-replicas/{name}/notice",
        response_model=NoticeOut,
        openapi_extra=body_of(NoticeIn.model_json_schema()),
    )
    async def post_notice(name: str, request: Request) -> dict[str, Any]:
        """A replica of this backend will be taken away soon."""
        return _noticed(core, name, await read_json(request))

    @app.get("/router/stats", response_model=Stats)
    async def get_stats() -> dict[str, Any]:
        """The exact counters."""
        return stats(core)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def get_metrics() -> Response:
        """The same for Prometheus."""
        body, kind = exposition(core)
        return Response(body, media_type=kind)

    return app


def _noticed(core: Core, name: str, data: dict[str, Any]) -> dict[str, Any]:
    spots = {backend.settings.name: backend for backend in core.fleet.spots}
    if name not in spots:
        raise Unprocessable(f"there is no spot backend {name!r}", "known: " + ", ".join(spots), 404)
    try:
        notice = parse_notice(data)
    except ValueError as error:
        raise Unprocessable(str(error), 'send {"seconds": 120, "replica": "1", "last": true}') from error
    backend = spots[name]
    backend.tell(notice)
    machine = backend.machine
    deadline = machine.drain_deadline if machine is not None else None
    left_s = None if deadline is None else round(max(deadline - core.meter.clock(), 0.0), 3)
    return {"ok": True, "backend": name, "state": backend.state_name, "gone_in_s": left_s}


def stats(core: Core) -> dict[str, Any]:
    """What `/router/stats` answers."""
    meter, now = core.meter, core.meter.clock()
    backends = []
    core.ledger.advance()
    tallies = {b.settings.name: Tally(b.settings.kind) for b in core.fleet} | meter.backends
    for name, tally in tallies.items():
        backends.append({"name": name, "kind": tally.kind, **tally.to_json(now), **_dollars(core, name)})
    return {
        "requests": meter.requests.to_json(now),
        "totals": core.totals.learned(),
        "attempts": sum(tally.started for tally in meter.backends.values()),
        "failovers": meter.failovers,
        "broken_streams": meter.broken_streams,
        "resumes": {outcome: int(count) for (outcome,), count in core.counts.resumes},
        "rejected": meter.rejected,
        "rejected_by_reason": dict(rejected(core)),
        "unauthorized": meter.unauthorized,
        "in_flight": core.admission.in_flight,
        "max_concurrency": core.admission.limit,
        "waiting": core.admission.waiting,
        "max_queue": core.admission.max_queue,
        "backends": backends,
        "route_stats": meter.route_stats(core.fleet.ready_seconds),
        "state_changes": [change.to_json() for change in meter.changes],
    }


def _dollars(core: Core, name: str) -> dict[str, Any]:
    """A backend's dollars: None where none of them is known."""
    cost = core.ledger.backends.get(name)
    if cost is None:
        return {"cost_usd": None, "idle_cost_usd": None, "unpriced_seconds": 0.0}
    known = cost.requests_usd or not cost.unpriced_s
    idle_known = cost.idle_usd or not cost.idle_unpriced_s
    return {
        "cost_usd": round(cost.requests_usd, 9) if known else None,
        "idle_cost_usd": round(cost.idle_usd, 9) if idle_known else None,
        "unpriced_seconds": round(cost.unpriced_s + cost.idle_unpriced_s, 6),
    }


def _changed(settings: Settings, data: dict[str, Any], *, open_door: bool) -> Settings:
    """`settings` with a posted subset. Raises SettingsError."""
    founding = {key: data[key] for key in _FOUNDING_KEYS if key in data}
    changed = parse_settings({k: v for k, v in data.items() if k not in founding}, settings)
    for key, value in founding.items():
        if not isinstance(value, str):
            raise SettingsError(f"{key} must be a string", "see router/README.md")
    backends = changed.backends
    if "serverless_url" in founding:
        backends = _with_url(backends, Kind.SERVERLESS, check_url(founding["serverless_url"], "serverless_url"))
    if "spot_url" in founding:
        backends = _with_url(backends, Kind.SPOT, check_url(founding["spot_url"], "spot_url"))
    if "serverless_auth_token" in founding:
        backends = _with_token(backends, founding["serverless_auth_token"])
    changed = dataclasses.replace(changed, backends=named(backends))
    keep_a_way_in(settings, changed, open_door=open_door)
    return changed


def _with_url(backends: tuple[BackendSettings, ...], kind: Kind, url: str) -> tuple[BackendSettings, ...]:
    first = next((b for b in backends if b.kind is kind), None)
    if first is None:
        return (*backends, BackendSettings("", kind, url))
    if first.url == url:
        return backends
    # Not the old headers: they are another server's credentials.
    new = dataclasses.replace(first, url=url, headers={}, replicas_url=None)
    return tuple(new if b is first else b for b in backends)


def _with_token(backends: tuple[BackendSettings, ...], token: str) -> tuple[BackendSettings, ...]:
    first = next((b for b in backends if b.kind is Kind.SERVERLESS), None)
    if first is None:
        raise SettingsError("there is no serverless backend for this token", "send serverless_url with it")
    parsed = parse_settings(
        {"backends": [{"kind": "serverless", "url": first.url, "headers": {"authorization": f"Bearer {token}"}}]}
    )
    new = dataclasses.replace(first, headers={**first.headers, **parsed.backends[0].headers})
    return tuple(new if b is first else b for b in backends)
