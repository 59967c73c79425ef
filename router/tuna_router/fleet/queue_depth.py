"""How long an engine's queue is, read off vLLM's `/metrics`: what the policy predicts a wait from.

A look is a request too: behind a SkyServe endpoint it counts for the autoscaler, which would start
replicas for it, and without traffic it would keep a fleet awake. So there is one at most every
`metrics_interval_s`, and one for ten requests of clients; without requests none. (A queue grows by requests
only. What has ended since is known without looking; what the engine does not tell yet is worth another look.)
"""

from __future__ import annotations

import asyncio
from typing import Final

from tuna_router.core import Core
from tuna_router.dataplane.connection import BackendLost
from tuna_router.fleet.live import LiveBackend
from tuna_router.spot import SpotState

REQUESTS_A_LOOK: Final = 10
LOOKS: Final = 5
"""The most for these, where the engine fails to tell or does not tell of all."""
_NOT_VLLM_S: Final = 300.0
_STALE_S: Final = 30.0
_CAP_BYTES: Final = 4 * 1024 * 1024
_RUNNING: Final = b"vllm:num_requests_running"
_WAITING: Final = b"vllm:num_requests_waiting"


async def look_at_queue(core: Core, backend: LiveBackend) -> None:
    """Keep `backend`'s queue current while it is READY and has traffic; runs until it is cancelled."""
    seen = 0
    looked_at = not_before = 0.0
    left = 0
    while True:
        await asyncio.sleep(core.settings.metrics_interval_s)
        now = core.meter.clock()
        fresh = backend.tally.started - seen >= REQUESTS_A_LOOK
        if backend.state is not SpotState.READY or now < not_before or not (fresh or left):
            if backend.waiting and now - looked_at > _STALE_S:
                # Of a queue of other people's requests nothing here would tell that it is gone.
                backend.queue_unknown()
            continue
        if fresh:
            seen, left = backend.tally.started, LOOKS
        left -= 1
        looked_at = now
        try:
            depth = await queue_depth(core, backend)
        except (TimeoutError, BackendLost):
            backend.queue_unknown()
            continue
        if depth is None or sum(depth) * backend.replicas >= backend.in_flight:
            left = 0  # it tells of all that it has of ours
        if depth is None:
            backend.queue_unknown()
            not_before = core.meter.clock() + _NOT_VLLM_S
        elif backend.state is SpotState.READY:
            backend.queue_seen(*depth)


async def queue_depth(core: Core, backend: LiveBackend) -> tuple[float, float] | None:
    """Running and waiting requests of the engine, all its processes together; None where it does not say.

    Raises TimeoutError or BackendLost.
    """
    url = backend.settings.url.removesuffix("/v1") + "/metrics"
    timeout_s = core.settings.probe_timeout_s
    try:
        status, body = await core.upstream.fetch(
            backend.settings, "GET", url, timeout_s=timeout_s, cap_bytes=_CAP_BYTES
        )
    except ValueError:
        return None  # endless, or not framed
    return parse_queue_depth(body) if status == 200 else None


def parse_queue_depth(text: bytes) -> tuple[float, float] | None:
    """Running and waiting, summed over engines, from Prometheus' text; None without both gauges.

    Only the gauges themselves: `..._created` and `..._by_reason` begin with the same words.
    """
    running, waiting = _sum(text, _RUNNING), _sum(text, _WAITING)
    return None if running is None or waiting is None else (running, waiting)


def _sum(text: bytes, name: bytes) -> float | None:
    total = None
    at = text.find(name)
    while at >= 0:
        end = text.find(b"\n", at)
        line = text[at : end if end >= 0 else len(text)]
        if at == 0 or text[at - 1 : at] == b"\n":
            value = _value(line[len(name) :])
            if value is not None:
                total = value + (total or 0.0)
        at = text.find(name, at + len(line))
    return total


def _value(rest: bytes) -> float | None:
    """The value of a sample whose name is cut off: `{labels} value [time]`. A label's text may have blanks."""
    if rest.startswith(b"{"):
        rest = rest[rest.rfind(b"}") + 1 :]
    elif not rest.startswith((b" ", b"\t")):
        return None
    words = rest.split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return value if 0 <= value < 1e9 else None
