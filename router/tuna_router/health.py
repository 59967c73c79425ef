"""`GET /router/health`: cheap, so that it can be polled. Without a key it tells states by name, and nothing else:
addresses and error texts of backends, and how much traffic there is, are for those who may use them."""

from __future__ import annotations

from typing import Any

from tuna_router import __version__
from tuna_router.core import Core
from tuna_router.fleet.live import LiveBackend
from tuna_router.fleet.watch import best_state
from tuna_router.policy import predicted_wait_s
from tuna_router.settings import Kind
from tuna_router.spot import SpotState


def public_health(core: Core) -> dict[str, Any]:
    """What everyone may know."""
    state = best_state(core.fleet.spots)
    return {
        "status": "ok",
        "version": __version__,
        "skyserve_ready": state is SpotState.READY,
        "spot_state": state.value,
        "backends": [{"name": b.settings.name, "state": b.state_name} for b in core.fleet],
    }


def health(core: Core) -> dict[str, Any]:
    """The founding system's keys, and one entry for each backend."""
    probed = [b for b in core.fleet.spots if b.last_probe_at is not None]
    latest = max(probed, key=lambda b: b.last_probe_at or 0.0, default=None)
    return public_health(core) | {
        "last_probe_ts": latest.last_probe_at if latest is not None else None,
        "last_probe_err": latest is not None and latest.last_probe_error is not None,
        "serverless_base_url": _first_url(core, Kind.SERVERLESS),
        "skyserve_base_url": _first_url(core, Kind.SPOT),
        "route_stats": core.meter.route_stats(core.fleet.ready_seconds),
        "in_flight": core.admission.in_flight,
        "max_concurrency": core.admission.limit,
        "backends": [_backend(core, backend) for backend in core.fleet],
    }


def _backend(core: Core, backend: LiveBackend) -> dict[str, Any]:
    settings, machine = backend.settings, backend.machine
    shown: dict[str, Any] = {
        "name": settings.name,
        "kind": settings.kind.value,
        "url": settings.url,
        "state": backend.state_name,
        "in_flight": backend.in_flight,
        "max_concurrency": settings.max_concurrency,
        "cooling": backend.cooling,
        "circuit": backend.circuit.value,
        "last_error": backend.last_error,
    }
    if machine is None:
        shown["warm"] = backend.warm(core.meter.clock())
    else:
        seen = machine.replicas
        shown |= {
            "reason": machine.reason,
            "predicted_wait_s": round(predicted_wait_s(backend), 3),
            "since_s": round(core.meter.clock() - machine.since, 3),
            "last_probe_error": backend.last_probe_error,
            "replicas": None
            if seen is None
            else {"ready": seen.ready, "starting": seen.starting, "draining": seen.draining},
        }
    return shown


def _first_url(core: Core, kind: Kind) -> str | None:
    return next((b.url for b in core.settings.backends if b.kind is kind), None)
