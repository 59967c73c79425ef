"""What goes on between the router and a fleet whose replicas it addresses one by one, past the fleet's balancer.

Each replica is asked for its notice. Who told of a replica may be asleep by the time that its machine is somebody
else's: one that has not answered for `GONE_S` is forgotten, before our headers knock there once more. The balancer
hears of the traffic that it does not see, because its count decides how many replicas there are.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
from typing import Final

from tuna_router.core import Core
from tuna_router.dataplane.connection import BackendLost
from tuna_router.errors import SettingsError
from tuna_router.fleet.live import LiveBackend
from tuna_router.fleet.replicas import parse
from tuna_router.settings import BackendSettings
from tuna_router.spot import Notice, SpotState

GONE_S: Final = 120.0
_LOOK_S: Final = 1.0
_NOTICE_INTERVAL_S: Final = 1.0
_TRAFFIC_INTERVAL_S: Final = 1.0
_SYNC_INTERVAL_S: Final = 5.0
_MOST_TOLD: Final = 100
"""Of the requests of one interval: enough for every replica that such traffic needs."""
_AT_ONCE: Final = 8
_log = logging.getLogger("tuna_router.fleet.balancer")


async def listen_for_notice(core: Core, backend: LiveBackend) -> None:
    """Ask the replica each second whether its machine will be taken away, as long as it serves."""
    while True:
        await asyncio.sleep(_NOTICE_INTERVAL_S)
        url = backend.settings.notice_url
        if url is None or backend.state is not SpotState.READY:
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


class _Past:
    """Requests that went past a balancer to its replicas, since it was last asked."""

    def __init__(self, core: Core, balancer: str) -> None:
        self._core = core
        self._balancer = balancer
        self._counted = {replica.name: replica.tally.started for replica in core.fleet.replicas_of(balancer)}

    def grown(self) -> int:
        """By how many they grew, at most as many as are worth telling."""
        grown = 0
        for replica in self._core.fleet.replicas_of(self._balancer):
            started = replica.tally.started
            grown += started - self._counted.get(replica.name, 0)
            self._counted[replica.name] = started
        return min(grown, _MOST_TOLD)


async def tell_traffic(core: Core, backend: LiveBackend) -> None:
    """Ask a balancer's `traffic_url` once for each request that went past it; or tell its `sync_url` of them."""
    past = _Past(core, backend.name)
    failing = False
    while True:
        beside = backend.settings.sync_url is not None
        await asyncio.sleep(_SYNC_INTERVAL_S if beside else _TRAFFIC_INTERVAL_S)
        settings = backend.settings
        if settings.sync_url is not None:
            told = await _sync(core, settings, past.grown())
        elif settings.traffic_url is not None:
            told = await _ask(core, settings, past.grown())
        else:
            continue
        if failing is told:
            failing = not told
            if failing:
                _log.warning("%s: its balancer can't be told of traffic", backend.name)


async def _ask(core: Core, backend: BackendSettings, times: int) -> bool:
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


async def _sync(core: Core, backend: BackendSettings, times: int) -> bool:
    """What SkyServe's own balancer says to its controller (0.14), and the addresses that it gets."""
    url = backend.sync_url
    assert url is not None
    body = json.dumps({"request_aggregator": {"timestamps": [core.meter.wall()] * times}}).encode()
    # No headers of the fleet's: the controller is no replica.
    bare = dataclasses.replace(backend, headers={})
    try:
        status, answer = await core.upstream.fetch(
            bare, "POST", url, body, timeout_s=core.settings.connect_timeout_s
        )
        found = [] if status != 200 else json.loads(answer)["replica_info"]
        if status != 200 or not isinstance(found, dict):
            return False
        replicas = parse([{"id": _id_of(address), "url": _with_scheme(address)} for address in found])
    except (TimeoutError, BackendLost, ValueError, KeyError, TypeError, SettingsError):
        return False  # an error is never read as "none there"
    if core.on_replicas is not None:
        core.on_replicas(backend.name, replicas)
    return True


def _with_scheme(address: str) -> str:
    return address if "://" in address else f"http://{address}"


def _id_of(address: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", address.partition("://")[2] or address)[-31:].lstrip(".-")
