"""What a request wants decides where it goes, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

from ..backends import Backend, Seen, Wire
from ..conftest import Running, StartBackend, StartRouter, until


def entry(name: str, backend: Backend, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": name.partition("-")[0], "url": backend.url, **more}


async def ready(router: Running) -> None:
    await until(lambda: all(spot.state_name == "READY" for spot in router.router.core.fleet.spots))


async def test_a_model_goes_to_the_backend_that_has_it_under_its_own_name(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    small, large = await start_backend(), await start_backend()
    backends = [
        entry("spot", small, models=["small"]),
        entry("serverless", large, models={"large": "org/large-70b"}),
    ]
    router = await start_router(backends=backends)
    await ready(router)
    answer = await router.complete(model="large", prompt='a "model" of its kind')
    assert answer.headers["x-tuna-backend"] == "serverless"
    assert large.seen[0].json() == {"model": "org/large-70b", "prompt": 'a "model" of its kind'}
    assert (await router.complete(model="small")).headers["x-tuna-backend"] == "spot"
    assert small.seen[0].json()["model"] == "small"
    refused = await router.complete(model="huge")
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert len(small.seen) + len(large.seen) == 2


async def test_a_priority_that_there_is_not_is_refused(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend())
    post = router.client.post
    answer = await post("/v1/completions", json={"model": "m"}, headers={"x-tuna-priority": "urgent"})
    assert answer.status_code == 400
    assert "interactive or batch" in answer.json()["error"]["message"]
    assert router.tally.running == 0


async def test_a_spot_without_room_sends_interactive_requests_on_and_batch_requests_not(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def full(wire: Wire, seen: Seen) -> None:
        await wire.json({"error": {"message": "slow down"}}, 429)

    serverless = await start_backend()
    router = await start_router(serverless, await start_backend(full))
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    batch = await router.client.post("/v1/completions", json={"model": "m"}, headers={"x-tuna-priority": "batch"})
    assert batch.status_code == 429
    assert batch.headers["x-tuna-backend"] == "spot"
    assert len(serverless.seen) == 1


async def test_a_batch_request_moves_when_spot_is_gone(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot = await start_backend()
    router = await start_router(await start_backend(), spot)
    await spot.stop()
    batch = await router.client.post("/v1/completions", json={"model": "m"}, headers={"x-tuna-priority": "batch"})
    assert (batch.status_code, batch.headers["x-tuna-backend"]) == (200, "serverless")


async def test_a_session_stays_on_one_backend(start_backend: StartBackend, start_router: StartRouter) -> None:
    backends = [entry(f"spot-{name}", await start_backend()) for name in "abc"]
    router = await start_router(backends=backends, session_header="x-session")
    await ready(router)

    async def where(session: str) -> str:
        answer = await router.client.post("/v1/completions", json={"model": "m"}, headers={"x-session": session})
        return answer.headers["x-tuna-backend"]

    homes = {str(n): await where(str(n)) for n in range(12)}
    assert len(set(homes.values())) > 1
    again = await asyncio.gather(*(where(session) for session in homes))
    assert list(homes.values()) == again


async def test_a_canary_gets_its_share(start_backend: StartBackend, start_router: StartRouter) -> None:
    old, new = await start_backend(), await start_backend()
    router = await start_router(backends=[entry("serverless-old", old, weight=9), entry("serverless-new", new)])
    for _ in range(50):
        await router.complete()
    assert 4 <= len(new.seen) <= 6


async def test_a_queue_at_spot_overflows_while_serverless_is_warm(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(), await start_backend())
    fleet = router.router.core.fleet
    spot, serverless = fleet["spot"], fleet["serverless"]
    spot.learned.service_s = 0.01
    spot.queue_seen(running=1, waiting=1000)
    assert (await router.complete()).headers["x-tuna-backend"] == "spot", "no container is warm: waiting is quicker"
    serverless.last_answer_at = router.router.core.clock()
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
