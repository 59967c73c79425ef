"""Replicas behind a balancer, addressed one by one: a set of them in, a list of backends out.

A balancer learns late that a replica is gone, and hides which one answers. So the router goes to each itself, as
to a backend of its own, with the balancer's headers, price and limits; the balancer is left for the time in which
no replica is known. Who told of a replica may be asleep by the time that its machine is somebody else's: one
that has not answered for `GONE_S` is forgotten, before our headers knock there once more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tuna_router.core import Core
from tuna_router.dataplane.connection import BackendLost
from tuna_router.errors import SettingsError
from tuna_router.fleet.live import LiveBackend
from tuna_router.settings import BackendSettings, check_url
from tuna_router.spot import Notice, SpotState

GONE_S: Final = 120.0
MOST: Final = 100
_LONGEST_NAME: Final = 63
_LOOK_S: Final = 1.0
_NOTICE_INTERVAL_S: Final = 1.0
_TRAFFIC_INTERVAL_S: Final = 1.0
_MOST_TOLD: Final = 100
"""Of the requests of one interval: enough for every replica that such traffic needs."""
_AT_ONCE: Final = 8
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")
_log = logging.getLogger("tuna_router.fleet.replicas")


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica: `id` tells it from the others of its balancer, `url` is its base."""

    id: str
    url: str
    notice_url: str | None = None


def parse(data: object) -> list[Replica]:
    """A list of `{"id", "url", "notice_url"?}`. Raises SettingsError."""
    if not isinstance(data, list):
        raise SettingsError("replicas must be a list", 'for example [{"id": "1", "url": "http://10.0.0.1:8000"}]')
    if len(data) > MOST:
        raise SettingsError(f"{len(data)} replicas are too many", f"at most {MOST}")
    found: list[Replica] = []
    for item in data:
        if (
            not isinstance(item, dict)
            or item.keys() - {"id", "url", "notice_url"}
            or not {"id", "url"} <= item.keys()
        ):
            raise SettingsError("a replica is no {id, url, notice_url}", "give each an id and a url")
        name, notice = item["id"], item.get("notice_url")
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise SettingsError(f"{name!r} can't name a replica", "use letters, digits, '.', '_' and '-'")
        if any(other.id == name for other in found):
            raise SettingsError(f"two replicas are named {name!r}", "give every replica an id of its own")
        notice = None if notice is None else check_url(notice, "notice_url")
        found.append(Replica(name, check_url(item["url"]), notice))
    return found


def with_replicas(
    backends: Sequence[BackendSettings], balancer: str, replicas: Sequence[Replica]
) -> tuple[BackendSettings, ...]:
    """The backends with exactly these replicas of `balancer`, right after it. Raises SettingsError for a name
    that is no balancer's."""
    behind = next((b for b in backends if b.name == balancer and b.balancer is None), None)
    if behind is None:
        raise SettingsError(f"there is no backend {balancer!r}", "known: " + ", ".join(b.name for b in backends))
    if any(len(behind.name) + 1 + len(replica.id) > _LONGEST_NAME for replica in replicas):
        raise SettingsError("the ids of these replicas are too long", f"{_LONGEST_NAME} with the balancer's name")
    result: list[BackendSettings] = []
    for backend in backends:
        if backend.balancer != balancer:
            result.append(backend)
        if backend is behind:
            result += [_backend(behind, replica) for replica in replicas]
    return tuple(result)


def with_headers_of_balancers(backends: Sequence[BackendSettings]) -> tuple[BackendSettings, ...]:
    """Every replica with the headers that its balancer has now."""
    headers = {backend.name: backend.headers for backend in backends}
    return tuple(
        backend if backend.balancer is None else dataclasses.replace(backend, headers=headers[backend.balancer])
        for backend in backends
    )


def _backend(behind: BackendSettings, replica: Replica) -> BackendSettings:
    return dataclasses.replace(
        behind,
        name=f"{behind.name}.{replica.id}",
        url=replica.url,
        balancer=behind.name,
        notice_url=replica.notice_url,
        traffic_url=None,
        replicas_url=None,
        keep_warm=False,
    )


async def listen_for_notice(core: Core, backend: LiveBackend) -> None:
    """Ask the replica each second whether its machine will be taken away, as long as it serves."""
    url = backend.settings.notice_url
    while url is not None:
        await asyncio.sleep(_NOTICE_INTERVAL_S)
        if backend.state is not SpotState.READY:
            continue
        seconds = await _notice(core, backend.settings, url)
        if seconds is not None:
            _log.info("%s: its machine goes in %g s", backend.name, seconds)
            backend.tell(Notice(seconds, last=True))


async def _notice(core: Core, backend: BackendSettings, url: str) -> float | None:
    try:
        status, body = await core.upstream.fetch(backend, "GET", url, timeout_s=core.settings.connect_timeout_s)
        if status != 200:
            return None
        seconds = json.loads(body)["seconds"]
    except (TimeoutError, BackendLost, ValueError, KeyError, TypeError):
        return None  # whether it serves is for probes and requests to find out
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 86400:
        return None
    return float(seconds)


async def forget_when_gone(core: Core, backend: LiveBackend) -> None:
    """Have a replica taken off the list that has not been READY for GONE_S."""
    machine = backend.machine
    seen = core.meter.clock()
    while machine is not None and backend.settings.balancer is not None:
        now = core.meter.clock()
        if machine.state is SpotState.READY:
            seen = now
        elif now - seen >= GONE_S and core.on_gone is not None:
            _log.warning("%s: not there for %g s: forgotten", backend.name, GONE_S)
            core.on_gone(backend)
            return
        await asyncio.sleep(_LOOK_S)


async def tell_traffic(core: Core, backend: LiveBackend) -> None:
    """Ask a balancer's `traffic_url` once for each request that went past it."""
    counted = {replica.name: replica.tally.started for replica in core.fleet.replicas_of(backend.name)}
    failing = False
    while backend.settings.traffic_url is not None:
        await asyncio.sleep(_TRAFFIC_INTERVAL_S)
        went_past = 0
        for replica in core.fleet.replicas_of(backend.name):
            started = replica.tally.started
            went_past += started - counted.get(replica.name, 0)
            counted[replica.name] = started
        told = await _tell(core, backend.settings, min(went_past, _MOST_TOLD))
        if failing is told:
            failing = not told
            if failing:
                _log.warning("%s: its balancer can't be told of traffic", backend.name)


async def _tell(core: Core, backend: BackendSettings, times: int) -> bool:
    url = backend.traffic_url
    assert url is not None
    left = times

    async def some() -> bool:
        nonlocal left
        while left > 0:
            left -= 1
            try:
                await core.upstream.fetch(backend, "GET", url, timeout_s=core.settings.connect_timeout_s)
            except (TimeoutError, BackendLost, ValueError):
                return False
        return True

    return all(await asyncio.gather(*(some() for _ in range(min(times, _AT_ONCE)))))
