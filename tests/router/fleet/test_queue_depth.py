"""The engine's queue as vLLM's /metrics tells it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_router.core import Core
from tuna_router.fleet.queue_depth import REQUESTS_A_LOOK, look_at_queue, parse_queue_depth
from tuna_router.settings import parse_settings

from ..backends import Seen, Wire, ok
from ..conftest import StartBackend, StartRouter, until

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } 7"} 8.0
vllm:num_requests_running{engine="1",model_name="tiny"} 3
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 4.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 1e0 1395066363000
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:num_requests_running_created{engine="0"} 1.7e+09
vllm:request_success_created{engine="0"} 1.7e+09
"""


def test_engines_are_added_up_and_what_only_looks_alike_is_not() -> None:
    assert parse_queue_depth(VLLM) == (11, 5)
    assert parse_queue_depth(b"vllm:num_requests_running 2\nvllm:num_requests_waiting 0") == (2, 0)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"vllm:num_requests_running 2\n",
        b"x_vllm:num_requests_running 2\nx_vllm:num_requests_waiting 1\n",
        b"vllm:num_requests_running NaN\nvllm:num_requests_waiting -1\n",
        b"vllm:num_requests_running\nvllm:num_requests_waiting{\n",
        b"<html>",
    ],
)
def test_what_says_nothing_of_a_queue_is_no_queue(text: bytes) -> None:
    assert parse_queue_depth(text) is None


@given(st.binary(max_size=200) | st.lists(st.sampled_from([*VLLM.split(), b"\n", b"{", b"}", b" "])).map(b"".join))
def test_any_answer_is_read_without_an_error(text: bytes) -> None:
    depth = parse_queue_depth(text)
    assert depth is None or min(depth) >= 0


async def test_a_queue_is_looked_at_while_there_is_traffic_and_only_then(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    looks = 0

    async def engine(wire: Wire, seen: Seen) -> None:
        nonlocal looks
        if seen.target != "/metrics":
            await ok(wire, seen)
            return
        looks += 1
        assert seen.headers["x-token"] == "t"
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(VLLM), VLLM))

    spot = await start_backend(engine)
    entry = {"name": "spot", "kind": "spot", "url": f"{spot.url}/v1", "headers": {"x-token": "t"}}
    router = await start_router(backends=[entry], metrics_interval_s=0.01)
    await until(lambda: router.state() == "READY")
    backend = router.router.core.fleet["spot"]
    for _ in range(REQUESTS_A_LOOK):
        assert looks == 0
        await router.complete()
    await until(lambda: backend.waiting == 5)
    assert backend.running == 11
    for _ in range(3 * REQUESTS_A_LOOK):
        await router.complete()
    assert looks <= 4, "one for ten requests"


async def test_an_engine_that_has_no_such_metrics_is_left_in_peace(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    looks = 0

    async def engine(wire: Wire, seen: Seen) -> None:
        nonlocal looks
        looks += seen.target == "/metrics"
        await (wire.json({}, 404) if seen.target == "/metrics" else ok(wire, seen))

    router = await start_router(spot=await start_backend(engine), metrics_interval_s=0.01)
    for _ in range(REQUESTS_A_LOOK):
        await router.complete()
    await until(lambda: looks == 1)
    for _ in range(5 * REQUESTS_A_LOOK):
        await router.complete()
    assert looks == 1
    assert router.router.core.fleet["spot"].waiting is None
    assert (await router.complete()).headers["x-tuna-backend"] == "spot"


async def test_a_queue_that_can_not_be_looked_at_for_a_moment_is_looked_at_again(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    looks = 0

    async def engine(wire: Wire, seen: Seen) -> None:
        nonlocal looks
        if seen.target != "/metrics":
            await ok(wire, seen)
            return
        looks += 1
        if looks == 1:
            wire.reset()
        else:
            await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(VLLM), VLLM))

    router = await start_router(spot=await start_backend(engine), metrics_interval_s=0.01)
    backend = router.router.core.fleet["spot"]
    for _ in range(REQUESTS_A_LOOK):
        await router.complete()
    await until(lambda: backend.waiting == 5)
    assert looks == 2


async def test_a_queue_that_shows_itself_late_is_seen_without_further_requests(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    looks, release = 0, asyncio.Event()

    async def engine(wire: Wire, seen: Seen) -> None:
        nonlocal looks
        if b"runs" in seen.body:
            await release.wait()
        if seen.target != "/metrics":
            await ok(wire, seen)
            return
        looks += 1
        text = VLLM if looks == 4 else b"vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\n"
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))

    router = await start_router(spot=await start_backend(engine), metrics_interval_s=0.01)
    backend = router.router.core.fleet["spot"]
    for _ in range(REQUESTS_A_LOOK - 1):
        await router.complete()
    _, writer = await router.raw(b'{"prompt": "runs"}')
    await until(lambda: backend.waiting == 5)
    release.set()
    writer.close()


async def test_a_queue_of_other_peoples_requests_is_not_believed_for_long() -> None:
    core = Core(
        parse_settings({"backends": [{"kind": "spot", "url": "http://a"}], "metrics_interval_s": 0.01}),
        open_door=True,
        clock=lambda: 1000.0,
    )
    backend = core.fleet["spot"]
    backend.queue_seen(running=8, waiting=30)  # long ago: nothing was looked at since the clock began
    looking = asyncio.create_task(look_at_queue(core, backend))
    await until(lambda: backend.waiting is None)
    looking.cancel()
    await asyncio.wait((looking,))
