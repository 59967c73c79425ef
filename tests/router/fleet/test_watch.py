"""A router and a spot fleet that comes, goes and lies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tuna_router.fleet.watch import parse_notice, parse_replicas
from tuna_router.spot import Notice

from ..backends import Backend, Seen, Wire, _probe, ok
from ..conftest import StartBackend, StartRouter, free_port, until


async def test_traffic_shifts_from_serverless_to_spot_when_spot_comes_up(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    spot = Backend(port=free_port())
    router = await start_router(await start_backend(), spot.url)
    await until(lambda: router.state() == "COLD")
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    assert router.state() == "WARMING"
    await spot.start()
    try:
        await until(lambda: router.state() == "READY")
        assert (await router.complete()).headers["x-tuna-backend"] == "spot"
        health = (await router.client.get("/router/health")).json()
        assert (health["skyserve_ready"], health["spot_state"]) == (True, "READY")
    finally:
        await spot.stop()
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    assert not (await router.client.get("/router/health")).json()["skyserve_ready"]


async def test_an_engine_that_answers_health_but_can_not_generate_is_not_ready(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    repaired = False

    async def broken(wire: Wire, seen: Seen) -> None:
        if seen.target == "/v1/completions" and not repaired:
            await wire.json({"error": {"message": "EngineDeadError"}}, 500)
        else:
            await _probe(wire, seen)

    spot = await start_backend(probe=broken)
    router = await start_router(await start_backend(), spot, ready=False)
    await router.complete()
    await until(lambda: len(spot.probes) >= 6)
    assert router.state() == "WARMING"
    assert router.router.core.fleet["spot"].last_probe_error == "a one-token completion says 500"
    repaired = True
    await until(lambda: router.state() == "READY")
    asked = spot.probes[-1].json()
    assert (asked["max_tokens"], asked["model"]) == (1, "m")


async def test_a_container_that_is_no_openai_server_is_ready_when_it_is_healthy(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def plain(wire: Wire, seen: Seen) -> None:
        await wire.json({}, 200 if seen.target == "/health" else 404)

    await start_router(spot=await start_backend(probe=plain))  # waits for READY


async def test_a_cold_fleet_is_not_woken_by_the_router_itself(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def nobody(wire: Wire, seen: Seen) -> None:
        await wire.json({"error": "No ready replicas"}, 503)

    polls = 0
    counts: dict[str, Any] = {"ready": 0, "starting": 0, "draining": 0, "total": 0}

    async def count(wire: Wire, seen: Seen) -> None:
        nonlocal polls
        polls += 1
        assert seen.headers["x-token"] == "t"
        await wire.json(counts)

    spot, controller = await start_backend(nobody, probe=nobody), await start_backend(count)
    entry = {
        "name": "spot",
        "kind": "spot",
        "url": spot.url,
        "headers": {"x-token": "t"},
        "replicas_url": f"{controller.url}/replicas",
    }
    serverless = {"name": "serverless", "kind": "serverless", "url": (await start_backend()).url}
    router = await start_router(backends=[entry, serverless])
    await until(lambda: router.state() == "COLD")
    looked, polled = len(spot.probes), polls
    await until(lambda: polls >= polled + 5)
    assert len(spot.probes) == looked

    await router.complete()
    await until(lambda: len(spot.probes) >= looked + 3)
    assert router.state() == "WARMING"

    spot.probe_handler, spot.handler = None, ok
    counts["ready"] = 1
    await until(lambda: router.state() == "READY")
    counts |= {"ready": 0, "draining": 1}
    await until(lambda: router.state() == "DRAINING")
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    counts["draining"] = 0
    await until(lambda: router.state() == "COLD")


async def test_a_controller_that_fails_is_not_read_as_an_empty_fleet(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    polls, recovered = 0, False

    async def confused(wire: Wire, seen: Seen) -> None:
        nonlocal polls
        polls += 1
        if recovered:
            await wire.json({"ready": 1})
            return
        match polls % 3:
            case 0:
                await wire.json({}, 500)
            case 1:
                await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")
            case _:
                await wire.json({"ready": -1})

    spot, controller = await start_backend(), await start_backend(confused)
    entry = {"name": "spot", "kind": "spot", "url": spot.url, "replicas_url": f"{controller.url}/replicas"}
    router = await start_router(backends=[entry])
    await until(lambda: polls >= 5)
    assert router.state() == "READY"
    assert (await router.client.get("/router/health")).json()["last_probe_err"]
    recovered = True
    backend = router.router.core.fleet["spot"]
    await until(lambda: backend.last_probe_error is None)


async def test_a_draining_spot_finishes_what_it_has(start_backend: StartBackend, start_router: StartRouter) -> None:
    go_on = asyncio.Event()

    async def slow(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await go_on.wait()
        await wire.token("two", "stop")
        await wire.done()

    spot = await start_backend(slow)
    router = await start_router(await start_backend(), spot)
    running = asyncio.create_task(router.complete(stream=True))
    await until(lambda: len(spot.seen) == 1)
    answer = await router.client.post("/router/spot-replicas", json={"ready": 0, "starting": 0, "draining": 1})
    assert answer.json()["states"] == {"spot": "DRAINING"}
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    go_on.set()
    finished = await running
    assert finished.headers["x-tuna-backend"] == "spot"
    assert finished.text.endswith("[DONE]\n\n")


async def test_a_spot_that_was_lost_for_one_request_is_back_after_a_probe(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def dies_once(wire: Wire, seen: Seen) -> None:
        if len(spot.seen) == 1:
            wire.reset()
        else:
            await ok(wire, seen)

    spot = await start_backend(dies_once)
    router = await start_router(await start_backend(), spot)
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    await until(lambda: router.state() == "READY")
    backend = router.router.core.fleet["spot"]
    await until(lambda: not backend.cooling)
    assert (await router.complete()).headers["x-tuna-backend"] == "spot"
    log = (await router.client.get("/router/stats")).json()["state_changes"]
    assert [(c["from"], c["to"]) for c in log] == [
        ("COLD", "WARMING"),
        ("WARMING", "READY"),
        ("READY", "WARMING"),
        ("WARMING", "READY"),
    ]
    assert log[2]["reason"] == "a request failed: connection lost"


async def test_a_spot_with_a_full_queue_stays_ready(start_backend: StartBackend, start_router: StartRouter) -> None:
    async def full(wire: Wire, seen: Seen) -> None:
        await wire.json({"error": {"message": "The engine is currently busy.", "type": "Service Unavailable"}}, 503)

    spot = await start_backend(full)
    router = await start_router(await start_backend(), spot)
    probes = len(spot.probes)
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    assert router.state() == "READY"
    assert len(spot.probes) == probes


async def test_a_notice_drains_a_spot_and_says_when_what_runs_there_must_move(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    moved: list[str] = []
    router = await start_router(await start_backend(), await start_backend(), move_margin_s=0.05)
    fleet = router.router.core.fleet
    fleet.on_move = lambda backend: moved.append(backend.name)
    path = "/router/spot-replicas/spot/notice"
    answer = await router.client.post(path, json={"seconds": 0.3, "replica": 1})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["state"], 0 < told["gone_in_s"] <= 0.3) == ("DRAINING", True)
    assert (await router.complete()).headers["x-tuna-backend"] == "serverless"
    await until(lambda: moved == ["spot"])
    machine = fleet["spot"].machine
    assert machine is not None
    await until(lambda: router.state() != "DRAINING")
    assert moved == ["spot"]


async def test_a_probe_that_hangs_does_not_keep_what_runs_from_moving(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    hangs = False

    async def probed(wire: Wire, seen: Seen) -> None:
        if hangs:
            await asyncio.Event().wait()
        await _probe(wire, seen)

    async def fails(wire: Wire, seen: Seen) -> None:
        await wire.json({}, 500)

    spot = await start_backend(fails, probe=probed)
    router = await start_router(await start_backend(), spot, move_margin_s=0.1)
    fleet, moved = router.router.core.fleet, asyncio.Event()
    fleet.on_move = lambda backend: moved.set()
    hangs, probes = True, len(spot.probes)
    await router.complete()
    await until(lambda: len(spot.probes) > probes)
    fleet["spot"].tell(Notice(0.2))
    async with asyncio.timeout(5):
        await moved.wait()


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"seconds": "1"},
        {"seconds": -1},
        {"seconds": True},
        {"seconds": 1e9},
        {"seconds": 1, "replica": []},
        {"seconds": 1, "last": 1},
        {"seconds": 1, "x": 1},
    ],
)
def test_a_notice_that_makes_no_sense_is_refused(data: object) -> None:
    with pytest.raises(ValueError):
        parse_notice(data)


@pytest.mark.parametrize("data", [[], {}, {"ready": "1"}, {"replicas": -1}, {"ready": True}, {"starting": 1}])
def test_a_replica_count_that_makes_no_sense_is_refused(data: object) -> None:
    with pytest.raises(ValueError):
        parse_replicas(data)


def test_both_forms_of_a_replica_count_are_read() -> None:
    assert parse_replicas({"replicas": 2}).ready == 2
    seen = parse_replicas({"ready": 1, "starting": 2, "draining": 3, "total": 6})
    assert (seen.ready, seen.starting, seen.draining) == (1, 2, 3)
