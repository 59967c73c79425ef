"""What SkyServe says of a service, in our words.

A record of SkyPilot's holds the whole task, secrets in clear: none leaves this room but as a `Service`, whose task
is there only to be sent back to SkyPilot.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from tuna_nb.backends.base import Replica, State
from tuna_nb.backends.skyserve.task import NOTICE_PORT

STATES: Final[Mapping[str, State]] = {
    "PENDING": State.WAITING,
    "PROVISIONING": State.STARTING,
    "STARTING": State.STARTING,
    "READY": State.READY,
    "NOT_READY": State.STARTING,
    "SHUTTING_DOWN": State.STOPPING,
    "PREEMPTED": State.STOPPING,
    "FAILED": State.FAILED,
    "FAILED_INITIAL_DELAY": State.FAILED,
    "FAILED_PROBING": State.FAILED,
    "FAILED_PROVISION": State.FAILED,
    "FAILED_CLEANUP": State.FAILED,
    "UNKNOWN": State.FAILED,
}
"""SkyServe's replica states (serve_state.ReplicaStatus of 0.14.1) to ours."""
WORDS: Final[Mapping[str, str]] = {
    "PENDING": "waits for its turn to be launched",
    "PROVISIONING": "looks for a machine",
    "STARTING": "loads image and model",
    "NOT_READY": "was ready and does not answer now",
    "SHUTTING_DOWN": "shuts down",
    "PREEMPTED": "preempted",
    "FAILED": "the engine ended: its log says why",
    "FAILED_INITIAL_DELAY": "was not ready in time: its log says why",
    "FAILED_PROBING": "no longer answered, and was removed",
    "FAILED_PROVISION": "no machine could be had",
    "FAILED_CLEANUP": "could not be removed and may still bill: look at the cloud's console",
    "UNKNOWN": "SkyServe does not know its state",
}
_BILLS: Final = frozenset(
    {"PROVISIONING", "STARTING", "READY", "NOT_READY", "SHUTTING_DOWN", "FAILED_CLEANUP", "UNKNOWN"}
)
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "0.0.0.0"})


@dataclass(frozen=True, slots=True)
class Service:
    """One service. endpoint: of its balancer, None until SkyServe knows it. target: replicas that it aims at.

    state, billing, detail: as in `base.Status`. raw: SkyServe's own word for its state. task: as it was sent, with
    secrets, and so left out of `repr`.
    """

    name: str
    raw: str
    state: State
    replicas: tuple[Replica, ...]
    billing: bool
    detail: str
    endpoint: str | None
    target: int | None
    task: str | None = field(repr=False, default=None)

    @property
    def stuck(self) -> bool:
        """SkyServe gave up removing it; only a purge does now, and may leave machines behind."""
        return self.raw in ("FAILED_CLEANUP", "CONTROLLER_FAILED")


def services(records: Any, server: str | None = None) -> list[Service]:
    """Of `serve.status`. server: the API server's address where it is not on this machine."""
    return [service(record, server) for record in records]


def service(record: Mapping[str, Any], server: str | None = None) -> Service:
    raw = _value(record["status"])
    told = [(r, _value(r["status"])) for r in record.get("replica_info") or ()]
    replicas = tuple(_replica(r, word) for r, word in told)
    target = record.get("target_num_replicas")
    state, detail = _judge(raw, replicas, target)
    return Service(
        name=str(record["name"]),
        raw=raw,
        state=state,
        replicas=replicas,
        billing=any(word in _BILLS for _, word in told),
        detail=detail,
        endpoint=address(record.get("endpoint"), server),
        target=target,
        task=record.get("yaml_content"),
    )


def address(told: Any, server: str | None = None) -> str | None:
    """A URL without trailing slash; None where SkyServe tells none, which it may write as `http://None`.

    An API server that runs the services itself calls their balancer `localhost`, meaning its own host.
    """
    text = str(told or "").strip().rstrip("/")
    if not text or text in ("-", "None") or text.endswith("://None"):
        return None
    url = text if "://" in text else f"http://{text}"
    host = urlsplit(url).hostname
    there = urlsplit(server).hostname if server else None
    if host in _LOCAL and there is not None and there not in _LOCAL:
        url = url.replace(f"//{host}", f"//{there}", 1)
    return url


def _replica(told: Mapping[str, Any], word: str) -> Replica:
    url = address(told.get("endpoint"))
    place = told.get("infra") or told.get("region") or ""
    parts = [WORDS.get(word, ""), str(place), "" if told.get("is_spot", True) else "on demand"]
    if word in ("PENDING", "PROVISIONING") and (more := told.get("status_detail")):
        parts.append(" ".join(str(more).split())[:200])
    return Replica(
        id=str(told["replica_id"]),
        state=STATES.get(word, State.FAILED),
        started_at=float(told.get("launched_at") or time.time()),
        region=told.get("region"),
        detail=", ".join(part for part in parts if part),
        url=url,
        notice_url=_notice(url),
    )


def _notice(url: str | None) -> str | None:
    host = urlsplit(url).hostname if url else None
    if host is None:
        return None
    return f"http://{f'[{host}]' if ':' in host else host}:{NOTICE_PORT}/notice"


def _judge(raw: str, replicas: tuple[Replica, ...], target: int | None) -> tuple[State, str]:
    """A service without replicas may be booting: it is idle only where SkyServe aims at none."""
    if raw == "SHUTTING_DOWN":
        return State.STOPPING, ""
    if raw == "FAILED_CLEANUP":
        return State.FAILED, "SkyServe could not remove all of it: destroy it again"
    if raw == "CONTROLLER_FAILED":
        return State.FAILED, "SkyServe's controller of this service has died: destroy it, and deploy again"
    states = {r.state for r in replicas}
    for state in (State.READY, State.STARTING):
        if state in states:
            return state, ""
    if State.WAITING in states:
        return State.STARTING, ""
    if State.FAILED in states:
        return State.FAILED, next(r.detail for r in replicas if r.state is State.FAILED)
    if raw == "NO_REPLICA" and not target and State.STOPPING not in states:
        return State.IDLE, ""
    return State.STARTING, ""


def _value(told: Any) -> str:
    """SkyPilot's enumerations come as members, and from some servers as text."""
    return str(getattr(told, "value", told))
