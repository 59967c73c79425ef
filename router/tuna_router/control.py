"""The control plane: FastAPI under `/router/*` and `/metrics`. Imported when first asked for.

Whoever comes here has been let in by `app`: stats and metrics need a client key, the rest an admin key.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tuna_router import __version__
from tuna_router.errors import SettingsError
from tuna_router.meter import Tally
from tuna_router.metrics import exposition
from tuna_router.settings import BackendSettings, Kind, Settings, check_url, named, parse_settings, to_json
from tuna_router.watch import parse_replicas

if TYPE_CHECKING:
    from tuna_router.app import Router

_BODY_CAP_BYTES = 1024 * 1024
_FOUNDING_KEYS = ("serverless_url", "serverless_auth_token", "spot_url")


class _Unprocessable(Exception):
    def __init__(self, message: str, hint: str, status: int = 422) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


def build(router: Router) -> FastAPI:
    """The control application of one router."""
    app = FastAPI(
        title="tuna-router", version=__version__, openapi_url="/router/openapi.json", docs_url=None, redoc_url=None
    )
    core = router.core

    @app.exception_handler(_Unprocessable)
    async def unprocessable(request: Request, error: _Unprocessable) -> JSONResponse:
        return _error(error.status, error.message, error.hint)

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> JSONResponse:
        hint = "/router/health, /router/config, /router/stats, /router/spot-replicas, /metrics"
        return _error(404, f"There is no {request.url.path}.", hint)

    @app.get("/router/config")
    async def get_config() -> dict[str, Any]:
        """The configuration; the values of headers are masked."""
        return to_json(core.settings, mask=True)

    @app.post("/router/config")
    async def post_config(request: Request) -> dict[str, Any]:
        """Change any part of the configuration."""
        data = await _json(request)
        try:
            await router.configure(_changed(core.settings, data, open_door=core.open_door))
        except SettingsError as error:
            raise _Unprocessable(error.message, error.hint) from error
        return to_json(core.settings, mask=True)

    @app.post("/router/spot-replicas")
    async def post_replicas(request: Request) -> dict[str, Any]:
        """What a fleet's controller knows of its replicas."""
        data = await _json(request)
        known = {"replicas", "ready", "starting", "draining", "total", "backend"}
        if unknown := sorted(data.keys() - known):
            raise _Unprocessable(f"unknown key {unknown[0]!r}", "known: " + ", ".join(sorted(known)))
        try:
            seen = parse_replicas(data)
        except ValueError as error:
            raise _Unprocessable(str(error), 'send {"ready": 1, "starting": 0, "draining": 0}') from error
        spots = {backend.settings.name: backend for backend in core.fleet.spots}
        name = data.get("backend")
        if name is not None and name not in spots:
            raise _Unprocessable(f"there is no spot backend {name!r}", "known: " + ", ".join(spots), 404)
        for backend in spots.values() if name is None else [spots[name]]:
            backend.tell(seen)
        states = {b.settings.name: b.state_name for b in core.fleet.spots}
        return {"ok": True, "replicas": seen.ready, "states": states}

    @app.get("/router/stats")
    async def get_stats() -> dict[str, Any]:
        """The exact counters."""
        return stats(router)

    @app.get("/metrics")
    async def get_metrics() -> Response:
        """The same for Prometheus."""
        body, kind = exposition(core)
        return Response(body, media_type=kind)

    return app


def stats(router: Router) -> dict[str, Any]:
    """What `/router/stats` answers."""
    core = router.core
    meter, now = core.meter, core.meter.clock()
    backends = []
    tallies = {b.settings.name: Tally(b.settings.kind) for b in core.fleet} | meter.backends
    for name, tally in tallies.items():
        backends.append({"name": name, "kind": tally.kind, **tally.to_json(now)})
    return {
        "requests": meter.requests.to_json(now),
        "attempts": sum(tally.started for tally in meter.backends.values()),
        "failovers": meter.failovers,
        "broken_streams": meter.broken_streams,
        "rejected": meter.rejected,
        "unauthorized": meter.unauthorized,
        "in_flight": core.admission.in_flight,
        "max_concurrency": core.admission.limit,
        "waiting": core.admission.waiting,
        "max_queue": core.admission.max_queue,
        "backends": backends,
        "route_stats": meter.route_stats(core.fleet.ready_seconds),
        "state_changes": [change.to_json() for change in meter.changes],
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
    if not open_door and not changed.all_keys:
        raise SettingsError("this would remove the last key", "keep at least one hash")
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


async def _json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_CAP_BYTES:
            raise _Unprocessable("the body is too large", "at most 1 MiB", 413)
    try:
        data = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise _Unprocessable("the body is not JSON", "send a JSON object", 400) from error
    if not isinstance(data, dict):
        raise _Unprocessable("the body is not a JSON object", "send {...}")
    return data


def _error(status: int, message: str, hint: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, "hint": hint}
    return JSONResponse({"error": error}, status)
