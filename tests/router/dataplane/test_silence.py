"""A backend where others fail, and that says nothing to a request, is left in time: it may be ending."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tuna_router import app
from tuna_router.dataplane import forward, resuming

from ..backends import Backend, Handler, Seen, Wire, ok
from ..conftest import Running, StartBackend, StartRouter, until
from .breaking import ask, counted, good, unasked, whole
from .scripted import TEXT, stream_of

ONCE = {"x-tuna-side-effects": "1"}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Running], None]:
    """The router looks for silence when it is told to; what was silent between two looks has been so for too long."""
    monkeypatch.setattr(app, "LISTEN_S", 3600.0)
    for module in (forward, resuming):
        monkeypatch.setattr(module, "SILENCE_S", 0.0)

    def look(router: Running) -> None:
        router.router.leave_the_silent()
        router.router.leave_the_silent()

    return look


class Ending:
    """An engine that has taken a request in which `taken` stands and says nothing to it until it `goes_on`; all others
    are reset."""

    def __init__(self, says: Handler = ok, *, begun: bool = False, taken: bytes = b"first") -> None:
        self._says = says
        self._taken = taken
        self._begun = begun
        self.took = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.left = asyncio.Event()
        self.probes_fail = False

    async def __call__(self, wire: Wire, seen: Seen) -> None:
        if self._taken not in seen.body:
            wire.reset()
            return
        if self._begun:
            await wire.stream_head()
            await wire.chunk(stream_of(seen.json())[0])
        self.took.set()
        goes_on = asyncio.create_task(self.goes_on.wait())
        left = asyncio.create_task(wire.closed_by_peer())
        await asyncio.wait((goes_on, left), return_when=asyncio.FIRST_COMPLETED)
        goes_on.cancel()
        if left.done():
            self.left.set()
            return
        left.cancel()
        await asyncio.wait((left,))
        await self._says(wire, seen)

    async def probe(self, wire: Wire, seen: Seen) -> None:
        if self.probes_fail:
            wire.reset()
        elif seen.target == "/health":
            await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        else:
            await wire.json({"data": [{"id": "m"}], "choices": [{"text": "x"}]})


async def rest(wire: Wire, seen: Seen) -> None:
    """What comes after the first event."""
    for event in stream_of(seen.json())[1:]:
        await wire.chunk(event)
    await wire.raw(b"0\r\n\r\n")


async def asked(router: Running, engine: Ending, **more: Any) -> asyncio.Task[httpx.Response]:
    """A request that the engine has taken; another was reset since, so that it is in doubt."""
    headers = more.pop("headers", None)
    body = {"model": "m", "prompt": "first", **more}
    task = asyncio.create_task(router.client.post("/v1/completions", json=body, headers=headers))
    await engine.took.wait()
    await router.complete(stream=True, prompt="second")
    return task


async def stays(router: Running, engine: Ending, looks: Callable[[Running], None], **more: Any) -> str:
    """Who answers such a request that two looks have left where it was."""
    first = await asked(router, engine, **more)
    looks(router)
    engine.goes_on.set()
    return (await first).headers["x-tuna-backend"]


async def stays_begun(router: Running, engine: Ending, looks: Callable[[Running], None], **more: Any) -> None:
    """The same of a stream that has begun; nothing is asked again."""
    first = asyncio.create_task(ask(router, messages=[{"role": "user", "content": "first"}], **more))
    await engine.took.wait()
    await router.complete(stream=True, prompt="second")
    looks(router)
    engine.goes_on.set()
    assert whole(await first) == TEXT
    assert counted(router) == {}


async def goes_on_elsewhere(router: Running, engine: Ending, looks: Callable[[Running], None]) -> None:
    """A stream that has begun ends whole, though its engine says nothing more."""
    first = asyncio.create_task(ask(router, messages=[{"role": "user", "content": "first"}]))
    await engine.took.wait()
    assert whole(await ask(router)) == TEXT
    looks(router)
    assert whole(await first) == TEXT
    assert counted(router) == {"exact": 1}


async def both(
    engine: Ending, start_backend: StartBackend, start_router: StartRouter, other: Handler = ok, **more: Any
) -> tuple[Running, Backend]:
    """A router over the engine, which is spot, and a serverless side that answers so."""
    serverless = await start_backend(other)
    spot = await start_backend(engine, engine.probe)
    return await start_router(serverless, spot, cooldown_s=60, **more), serverless


async def test_a_stream_without_a_first_byte_leaves_an_engine_that_resets_others(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    router, serverless = await both(engine, start_backend, start_router)
    first = await asked(router, engine, stream=True)
    looks(router)
    answer = await first
    assert (answer.headers["x-tuna-backend"], answer.headers["x-tuna-attempts"]) == ("serverless", "2")
    assert answer.text.rstrip().endswith("[DONE]")
    await engine.left.wait()
    assert len(serverless.seen) == 2
    assert counted(router) == {}
    assert router.tally.finished == 2
    assert dict(router.router.core.counts.retries)["spot", forward.FELL_SILENT.kind] == 1


async def test_one_look_is_not_enough(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    router, _ = await both(engine, start_backend, start_router)
    first = await asked(router, engine, stream=True)
    router.router.leave_the_silent()
    engine.goes_on.set()
    assert (await first).headers["x-tuna-backend"] == "spot"


async def test_a_short_silence_is_none(
    start_backend: StartBackend,
    start_router: StartRouter,
    looks: Callable[[Running], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward, "SILENCE_S", 3600.0)
    engine = Ending()
    router, _ = await both(engine, start_backend, start_router)
    assert await stays(router, engine, looks, stream=True) == "spot"


async def test_no_engine_is_left_that_nothing_speaks_against(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    router, _ = await both(engine, start_backend, start_router, unasked)
    first = asyncio.create_task(router.complete(stream=True, prompt="first"))
    await engine.took.wait()
    looks(router)
    engine.goes_on.set()
    assert (await first).headers["x-tuna-backend"] == "spot"


async def test_an_engine_is_doubted_that_was_lost_meanwhile_though_another_is_ready_there(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    router, serverless = await both(engine, start_backend, start_router)
    first = asyncio.create_task(router.complete(stream=True, prompt="first"))
    await engine.took.wait()
    backend = router.router.core.fleet["spot"]
    assert backend.machine is not None
    engine.probes_fail = True
    backend.machine.next_probe_at = 0.0
    backend.nudge.set()
    await until(lambda: router.state() == "WARMING")
    engine.probes_fail = False
    await until(lambda: router.state() == "READY")
    looks(router)
    assert (await first).headers["x-tuna-backend"] == "serverless"
    assert len(serverless.seen) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_backend_that_was_taken_off_the_list_is_left(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None], stream: bool
) -> None:
    engine = Ending()
    router, _ = await both(engine, start_backend, start_router)
    first = asyncio.create_task(router.complete(stream=stream, prompt="first"))
    await engine.took.wait()
    core = router.router.core
    kept = tuple(each for each in core.settings.backends if each.name != "spot")
    await router.router.configure(dataclasses.replace(core.settings, backends=kept))
    looks(router)
    answer = await first
    assert (answer.status_code, answer.headers["x-tuna-backend"]) == (200, "serverless")


async def test_an_answer_that_comes_at_its_end_is_waited_for_while_the_engine_passes_its_probes(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    router, _ = await both(engine, start_backend, start_router)
    first = await asked(router, engine)
    await until(lambda: router.state() == "READY")
    looks(router)
    engine.goes_on.set()
    assert (await first).headers["x-tuna-backend"] == "spot"


async def test_an_answer_that_comes_at_its_end_is_not_waited_for_where_the_probes_fail(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    router, _ = await both(engine, start_backend, start_router)
    engine.probes_fail = True
    first = await asked(router, engine)
    assert router.state() == "WARMING"
    looks(router)
    assert (await first).headers["x-tuna-backend"] == "serverless"


async def test_a_request_with_side_effects_stays(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    router, serverless = await both(engine, start_backend, start_router)
    assert await stays(router, engine, looks, stream=True, headers=ONCE) == "spot"
    assert len(serverless.seen) == 1  # the one that was reset


async def test_a_request_stays_where_nobody_else_is_well(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    async def resets(wire: Wire, seen: Seen) -> None:
        wire.reset()

    engine = Ending()
    router, _ = await both(engine, start_backend, start_router, resets)
    assert await stays(router, engine, looks, stream=True) == "spot"


async def test_a_container_that_starts_is_waited_for_whatever_happens_to_others(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending()
    backends = [
        {"name": "a", "kind": "serverless", "url": (await start_backend(engine)).url},
        {"name": "b", "kind": "serverless", "url": (await start_backend()).url, "weight": 0},
    ]
    router = await start_router(backends=backends, cooldown_s=60)
    assert await stays(router, engine, looks, stream=True) == "a"


async def test_a_stream_that_has_begun_goes_on_elsewhere_from_where_it_fell_silent(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending(begun=True)
    router, _ = await both(engine, start_backend, start_router, good)
    await goes_on_elsewhere(router, engine, looks)


async def test_a_stream_that_has_begun_leaves_serverless_as_well(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending(begun=True)
    backends = [
        {"name": "a", "kind": "serverless", "url": (await start_backend(engine)).url},
        {"name": "b", "kind": "serverless", "url": (await start_backend(good)).url, "weight": 0},
    ]
    router = await start_router(backends=backends, cooldown_s=60)
    await goes_on_elsewhere(router, engine, looks)


async def test_a_stream_that_no_other_backend_could_go_on_with_is_waited_for(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending(rest, begun=True)
    router, _ = await both(engine, start_backend, start_router)
    await stays_begun(router, engine, looks, n=2)


async def test_a_slow_stream_is_waited_for_where_nobody_else_is_well(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    engine = Ending(rest, begun=True)
    url = (await start_backend(engine)).url
    router = await start_router(backends=[{"name": "a", "kind": "serverless", "url": url}], cooldown_s=60)
    await stays_begun(router, engine, looks)


async def test_the_rest_of_a_stream_is_asked_of_another_where_the_first_that_was_asked_is_silent(
    start_backend: StartBackend, start_router: StartRouter, looks: Callable[[Running], None]
) -> None:
    begun = asyncio.Event()

    async def breaks(wire: Wire, seen: Seen) -> None:
        if b'"first' not in seen.body:
            await ok(wire, seen)
            return
        await wire.stream_head()
        for event in stream_of(seen.json())[:3]:
            await wire.chunk(event)
        await begun.wait()
        wire.reset()

    engine = Ending(taken=b"")
    silent = await start_backend(engine, engine.probe)
    backends = [
        {"name": "a", "kind": "spot", "url": (await start_backend(breaks)).url, "weight": 1},
        {"name": "b", "kind": "spot", "url": silent.url, "weight": 0},
        {"name": "c", "kind": "serverless", "url": (await start_backend(good)).url},
    ]
    router = await start_router(backends=backends, cooldown_s=60)
    await until(lambda: router.state("a") == router.state("b") == "READY")
    first = asyncio.create_task(ask(router, messages=[{"role": "user", "content": "first"}]))
    await until(lambda: router.router.core.fleet["a"].in_flight == 1)
    begun.set()
    await engine.took.wait()
    engine.probes_fail = True
    backend = router.router.core.fleet["b"]
    assert backend.machine is not None
    backend.machine.next_probe_at = 0.0
    backend.nudge.set()
    await until(lambda: router.state("b") == "WARMING")
    looks(router)
    assert whole(await first) == TEXT


@pytest.mark.parametrize("begun", [False, True])
async def test_the_router_looks_by_itself(
    start_backend: StartBackend, start_router: StartRouter, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    monkeypatch.setattr(app, "LISTEN_S", 0.05)
    for module in (forward, resuming):
        monkeypatch.setattr(module, "SILENCE_S", 0.1)
    engine = Ending(begun=begun)
    router, _ = await both(engine, start_backend, start_router, good)
    first = asyncio.create_task(ask(router, messages=[{"role": "user", "content": "first"}]))
    await engine.took.wait()
    assert whole(await ask(router)) == TEXT
    assert whole(await first) == TEXT
    await engine.left.wait()
