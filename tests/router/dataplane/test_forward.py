"""Until the first byte of the body, another backend may answer."""

from __future__ import annotations

import asyncio

import pytest

from ..backends import Handler, Seen, Wire, ok
from ..conftest import StartBackend, StartRouter, free_port, until


async def test_a_request_goes_to_spot_when_it_is_ready(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot, serverless = await start_backend(), await start_backend()
    router = await start_router(serverless, spot)
    answer = await router.complete()
    assert answer.status_code == 200
    assert answer.headers["x-tuna-backend"] == "spot"
    assert answer.headers["x-tuna-attempts"] == "1"
    assert not serverless.seen


async def test_a_request_moves_to_serverless_when_spot_refuses_the_connection(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot, serverless = await start_backend(), await start_backend()
    router = await start_router(serverless, spot)
    await spot.stop()
    answer = await router.complete()
    assert answer.status_code == 200
    assert answer.headers["x-tuna-backend"] == "serverless"
    assert answer.headers["x-tuna-attempts"] == "2"
    assert router.state() != "READY"
    assert router.tally.finished == 1


async def reset_at_once(wire: Wire, seen: Seen) -> None:
    wire.reset()


async def close_at_once(wire: Wire, seen: Seen) -> None:
    wire.close()


async def reset_after_the_head(wire: Wire, seen: Seen) -> None:
    await wire.stream_head()
    await asyncio.sleep(0.01)
    wire.reset()


async def end_after_the_head(wire: Wire, seen: Seen) -> None:
    await wire.stream_head()
    await wire.raw(b"0\r\n\r\n")


async def half_a_json(wire: Wire, seen: Seen) -> None:
    await wire.raw(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"choices": [')
    wire.close()


async def garbage(wire: Wire, seen: Seen) -> None:
    await wire.raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    wire.close()


async def an_engine_that_dies(wire: Wire, seen: Seen) -> None:
    await wire.stream_head()
    await wire.chunk(b'data: {"error":{"message":"EngineCore encountered an issue","code":500}}\n\n')
    await wire.done()


async def drains(wire: Wire, seen: Seen) -> None:
    await wire.json({"error": {"message": "cannot schedule new futures after shutdown", "code": 500}}, 500)


async def says_429(wire: Wire, seen: Seen) -> None:
    await wire.json({"error": {"message": "slow down"}}, 429, "retry-after: 7\r\n")


async def is_busy(wire: Wire, seen: Seen) -> None:
    await wire.json({"error": {"message": "The engine is currently busy..."}}, 503)


async def stalls_after_the_head(wire: Wire, seen: Seen) -> None:
    await wire.stream_head()
    await wire.closed_by_peer()


async def never_answers(wire: Wire, seen: Seen) -> None:
    await wire.closed_by_peer()


@pytest.mark.parametrize(
    "fault",
    [
        reset_at_once,
        close_at_once,
        reset_after_the_head,
        end_after_the_head,
        half_a_json,
        garbage,
        an_engine_that_dies,
        drains,
        says_429,
        is_busy,
        stalls_after_the_head,
        never_answers,
    ],
)
async def test_a_spot_that_fails_before_its_first_byte_costs_no_request(
    start_backend: StartBackend, start_router: StartRouter, fault
) -> None:
    spot, serverless = await start_backend(fault), await start_backend()
    router = await start_router(serverless, spot, spot_first_byte_timeout_s=0.2, spot_unstreamed_timeout_s=0.2)
    answer = await router.complete(stream=True)
    assert answer.status_code == 200
    assert answer.headers["x-tuna-backend"] == "serverless"
    assert answer.text.endswith("data: [DONE]\n\n")
    assert '"error"' not in answer.text
    assert len(spot.seen) == 1
    stats = (await router.client.get("/router/stats")).json()
    assert stats["failovers"] == 1
    ends = {b["name"]: (b["finished"], b["failed"], b["running"]) for b in stats["backends"]}
    assert ends == {"spot": (0, 1, 0), "serverless": (1, 0, 0)}


async def test_every_other_4xx_is_an_answer_and_is_not_tried_elsewhere(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def bad_request(wire: Wire, seen: Seen) -> None:
        await wire.json({"error": {"message": "max_tokens must be at least 1", "code": 400}}, 400)

    spot, serverless = await start_backend(bad_request), await start_backend()
    router = await start_router(serverless, spot)
    answer = await router.complete()
    assert answer.status_code == 400
    assert answer.json() == {"error": {"message": "max_tokens must be at least 1", "code": 400}}
    assert not serverless.seen
    assert router.state() == "READY"


async def test_the_last_backends_refusal_is_passed_on_as_it_is(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot, serverless = await start_backend(drains), await start_backend(says_429)
    router = await start_router(serverless, spot)
    answer = await router.complete()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.json() == {"error": {"message": "slow down"}}
    assert answer.headers["x-tuna-attempts"] == "2"
    assert router.tally.failed == 1


async def test_when_no_backend_can_be_reached_the_answer_is_an_error_envelope(start_router: StartRouter) -> None:
    router = await start_router(f"http://127.0.0.1:{free_port()}")
    answer = await router.complete()
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "backends_unavailable"
    assert answer.headers["x-tuna-attempts"] == "2", "the only backend gets a second connection"


async def test_without_any_backend_the_answer_says_so(start_router: StartRouter) -> None:
    router = await start_router()
    answer = await router.complete()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_backend"


async def test_a_backend_that_is_too_slow_everywhere_is_a_504(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(never_answers), first_byte_timeout_s=0.1)
    answer = await router.complete()
    assert answer.status_code == 504


async def test_the_only_backend_gets_a_second_connection(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def first_dies(wire: Wire, seen: Seen) -> None:
        if len(backend.seen) == 1:
            wire.reset()
        else:
            await wire.json({"ok": True})

    backend = await start_backend(first_dies)
    router = await start_router(backend)
    answer = await router.complete()
    assert answer.json() == {"ok": True}


async def test_a_spot_that_is_not_ready_is_tried_when_there_is_nothing_else(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def broken(wire: Wire, seen: Seen) -> None:
        await wire.json({}, 500)

    router = await start_router(spot=await start_backend(probe=broken), ready=False)
    await until(lambda: router.state() == "COLD")
    answer = await router.complete()
    assert answer.status_code == 200
    assert answer.headers["x-tuna-backend"] == "spot"


async def test_requests_above_the_limit_of_spot_overflow_to_serverless(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    release = asyncio.Event()

    async def slow(wire: Wire, seen: Seen) -> None:
        await release.wait()
        await wire.json({"ok": True})

    spot, serverless = await start_backend(slow), await start_backend()
    backends = [
        {"name": "spot", "kind": "spot", "url": spot.url, "max_concurrency": 2},
        {"name": "serverless", "kind": "serverless", "url": serverless.url},
    ]
    router = await start_router(backends=backends)
    await until(lambda: router.state() == "READY")
    held = [asyncio.create_task(router.complete()) for _ in range(2)]
    await until(lambda: len(spot.seen) == 2)
    third = await router.complete()
    assert third.headers["x-tuna-backend"] == "serverless"
    release.set()
    assert {(await task).headers["x-tuna-backend"] for task in held} == {"spot"}


async def test_a_body_above_the_cap_flows_through_and_is_sent_once(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def echo_length(wire: Wire, seen: Seen) -> None:
        await wire.json({"length": len(seen.body)})

    spot, serverless = await start_backend(echo_length), await start_backend()
    router = await start_router(serverless, spot, body_cap_bytes=1000)
    big = b"x" * 300_000
    answer = await router.client.post("/v1/files", content=big)
    assert answer.json() == {"length": 300_000}

    async def chunks():
        for _ in range(30):
            yield big[:10_000]

    answer = await router.client.post("/v1/files", content=chunks())
    assert answer.json() == {"length": 300_000}

    spot.handler = drains
    answer = await router.client.post("/v1/files", content=big)
    assert answer.status_code == 500, "its body is gone: nobody else can be asked"
    assert not serverless.seen


async def test_an_unstreamed_answer_may_take_longer_than_the_first_token_of_a_stream(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def slow(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.4)
        await wire.json({"slow": True})

    spot, serverless = await start_backend(slow), await start_backend()
    router = await start_router(serverless, spot, spot_first_byte_timeout_s=0.1, spot_unstreamed_timeout_s=5)
    assert (await router.complete()).headers["x-tuna-backend"] == "spot"
    assert (await router.complete(stream=True)).headers["x-tuna-backend"] == "serverless"


def answers_one_request_a_connection() -> Handler:
    """And closes it only as the next request comes: what an engine's idle time-out looks like when both cross."""
    used: set[asyncio.StreamWriter] = set()

    async def handler(wire: Wire, seen: Seen) -> None:
        if wire.writer in used:
            wire.reset()
            return
        used.add(wire.writer)
        await ok(wire, seen)

    return handler


async def test_kept_connections_that_are_closed_as_they_are_used_lose_no_request(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backends = [await start_backend(answers_one_request_a_connection()) for _ in range(2)]
    router = await start_router(*backends)
    for _ in range(6):
        answer = await router.complete(stream=True)
        assert answer.status_code == 200, answer.text
        await until(lambda: not any(backend.cooling for backend in router.router.core.fleet))
    assert router.tally.failed == 0


async def test_a_kept_connection_that_is_closed_as_it_is_used_is_no_leave_to_act_twice(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend(answers_one_request_a_connection())
    router = await start_router(backend)
    assert (await router.complete()).status_code == 200
    answer = await router.client.post(
        "/v1/completions", json={"prompt": "p"}, headers={"x-tuna-side-effects": "true"}
    )
    assert answer.status_code == 502
    assert len(backend.seen) == 2


async def test_a_machine_that_is_gone_with_its_kept_connections_is_not_waited_for(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot, serverless = await start_backend(answers_one_request_a_connection()), await start_backend()
    router = await start_router(serverless, spot)
    assert (await router.complete()).headers["x-tuna-backend"] == "spot"
    await spot.stop()
    answer = await router.complete()
    assert (answer.status_code, answer.headers["x-tuna-backend"]) == (200, "serverless")
