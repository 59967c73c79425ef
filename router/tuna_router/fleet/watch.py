"""The eyes of the spot machine: one watcher a spot backend, which polls its replica count, probes it, looks
at its engine's queue, and says when what runs there must move.

Ready means that it generates: an engine whose worker is broken still answers `/health`. In COLD
nothing is sent to the endpoint itself, since a request is what wakes a fleet that has scaled to zero.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterable

from tuna_router.core import Core
from tuna_router.dataplane.connection import BackendLost
from tuna_router.fleet.balancer import forget_when_gone, listen_for_notice, tell_traffic
from tuna_router.fleet.live import LiveBackend
from tuna_router.fleet.queue_depth import look_at_queue
from tuna_router.settings import BackendSettings
from tuna_router.spot import Notice, ProbeFailed, ProbePassed, ReplicasSeen, SpotState, Tick

_log = logging.getLogger("tuna_router.fleet.watch")
_LONGEST_SLEEP_S = 30.0
_COUNT_FAILED = "its replica count:"


class Watchers:
    """Owns one task for every spot backend of a router."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tasks: dict[LiveBackend, asyncio.Task[None]] = {}

    async def follow(self, backends: Iterable[LiveBackend]) -> None:
        """Watch exactly these from now on."""
        wanted = list(backends)
        for gone in [backend for backend in self._tasks if backend not in wanted]:
            await _stop(self._tasks.pop(gone))
        for backend in wanted:
            if backend not in self._tasks:
                task = asyncio.create_task(_watch(self._core, backend), name=f"watch {backend.settings.name}")
                task.add_done_callback(_report)
                self._tasks[backend] = task

    async def stop(self) -> None:
        """End all of them."""
        await self.follow(())


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s ended: %r", task.get_name(), error, exc_info=error)


async def _watch(core: Core, backend: LiveBackend) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_act_when_due(core, backend))
        group.create_task(_move_when_due(core, backend))
        group.create_task(_poll_replicas(core, backend))
        group.create_task(look_at_queue(core, backend))
        group.create_task(listen_for_notice(core, backend))
        group.create_task(forget_when_gone(core, backend))
        group.create_task(tell_traffic(core, backend))


async def _act_when_due(core: Core, backend: LiveBackend) -> None:
    machine = backend.machine
    assert machine is not None
    while True:
        backend.nudge.clear()
        backend.tell(Tick())
        if machine.probe_due():
            epoch = machine.begin_probe()
            reason = await probe(core, backend.settings)
            backend.last_probe_at = core.meter.wall()
            backend.last_probe_error = reason
            backend.tell(ProbePassed(epoch) if reason is None else ProbeFailed(epoch, reason))
            continue
        wait_s = _LONGEST_SLEEP_S
        if machine.next_at is not None:
            wait_s = min(wait_s, max(machine.next_at - core.meter.clock(), 0.0) + 0.001)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await backend.nudge.wait()


async def _move_when_due(core: Core, backend: LiveBackend) -> None:
    """Says when what runs on a machine under notice must move: on time, whatever a probe of it waits for."""
    machine = backend.machine
    assert machine is not None
    while True:
        backend.noticed.clear()
        if machine.begin_move() and core.fleet.on_move is not None:
            core.fleet.on_move(backend)
        wait_s = None
        if machine.move_at is not None:
            wait_s = max(machine.move_at - core.meter.clock(), 0.0) + 0.001
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await backend.noticed.wait()


async def _poll_replicas(core: Core, backend: LiveBackend) -> None:
    while True:
        interval_s = core.settings.replicas_interval_s
        if backend.settings.replicas_url is not None:
            try:
                backend.tell(await replicas(core, backend.settings))
                backend.last_probe_at = core.meter.wall()
                if (backend.last_probe_error or "").startswith(_COUNT_FAILED):
                    backend.last_probe_error = None
            except (TimeoutError, BackendLost, ValueError) as error:
                backend.last_probe_at = core.meter.wall()
                backend.last_probe_error = f"{_COUNT_FAILED} {_reason(error)}"
                # An error is never read as "none there": the state stays until something is known.
                interval_s = max(interval_s, core.settings.probe_interval_s)
        await asyncio.sleep(interval_s)


async def replicas(core: Core, backend: BackendSettings) -> ReplicasSeen:
    """Ask the fleet's controller. Raises TimeoutError, BackendLost or ValueError."""
    assert backend.replicas_url is not None
    status, body = await core.upstream.fetch(
        backend, "GET", backend.replicas_url, timeout_s=core.settings.connect_timeout_s
    )
    if status != 200:
        raise ValueError(f"status {status}")
    return parse_replicas(json.loads(body))


def parse_replicas(data: object) -> ReplicasSeen:
    """`{"ready", "starting", "draining"}`, or the founding `{"replicas": n}`. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if "replicas" not in data and "ready" not in data:
        raise ValueError('neither "ready" nor "replicas" in it')
    counts = {}
    for key in ("replicas", "ready", "starting", "draining"):
        value = data.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{key!r} must be a whole number of at least 0")
        counts[key] = value
    return ReplicasSeen(
        counts["ready"] if "ready" in data else counts["replicas"], counts["starting"], counts["draining"]
    )


def parse_notice(data: object) -> Notice:
    """`{"seconds", "replica"?, "last"?}`. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if unknown := sorted(str(key) for key in data.keys() - {"seconds", "replica", "last"}):
        raise ValueError(f"unknown key {unknown[0]!r}")
    seconds, replica, last = data.get("seconds"), data.get("replica", ""), data.get("last")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 86400:
        raise ValueError("'seconds' must be a number from 0 to 86400")
    if isinstance(replica, bool) or not isinstance(replica, str | int):
        raise ValueError("'replica' must be a name or a number")
    if last is not None and not isinstance(last, bool):
        raise ValueError("'last' must be true or false")
    return Notice(float(seconds), str(replica), last)


async def probe(core: Core, backend: BackendSettings) -> str | None:
    """Generate one token. Returns None when that worked, else what did not."""
    try:
        async with asyncio.timeout(core.settings.probe_timeout_s):
            return await _generate_one_token(core, backend)
    except (TimeoutError, BackendLost, ValueError) as error:
        return _reason(error)


async def _generate_one_token(core: Core, backend: BackendSettings) -> str | None:
    timeout_s = core.settings.probe_timeout_s

    def url(path: str) -> str:
        base = backend.url
        return (base[:-3] if base.endswith("/v1") else base) + path

    status, _ = await core.upstream.fetch(backend, "GET", url("/health"), timeout_s=timeout_s)
    if status not in (200, 204, 404, 405):  # some engines have no /health
        return f"/health says {status}"
    health = status
    status, body = await core.upstream.fetch(backend, "GET", url("/v1/models"), timeout_s=timeout_s)
    if status in (404, 405) and health in (200, 204):
        return None  # a container that is no OpenAI server: there is nothing to generate
    if status != 200:
        return f"/v1/models says {status}"
    model = _first_model(json.loads(body))
    for path, prompt in (
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ):
        asked = json.dumps({"model": model, "max_tokens": 1, "temperature": 0, **prompt}).encode()
        status, body = await core.upstream.fetch(backend, "POST", url(path), asked, timeout_s=timeout_s)
        if status not in (404, 405):
            break
    if status != 200:
        return f"a one-token completion says {status}"
    value = json.loads(body)
    if not isinstance(value, dict) or not value.get("choices"):
        return "a one-token completion has no choices"
    return None


def _first_model(listing: object) -> str:
    data = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(data, list) or not data or not isinstance(data[0], dict) or not data[0].get("id"):
        raise ValueError("/v1/models lists no model")
    return str(data[0]["id"])


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, BackendLost):
        return error.reason
    return " ".join(str(error).split())[:200]


def best_state(backends: Iterable[LiveBackend]) -> SpotState:
    """The state of the spot backend that is nearest to READY; COLD where there is none."""
    order = (SpotState.READY, SpotState.WARMING, SpotState.DRAINING, SpotState.COLD)
    states = [b.machine.state for b in backends if b.machine is not None]
    return min(states, key=order.index, default=SpotState.COLD)
