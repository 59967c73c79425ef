"""Replicas behind a balancer: addressed one by one while they are there, by the balancer while none is known."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tuna_router.errors import SettingsError
from tuna_router.fleet import balancer as balancer_module
from tuna_router.fleet.replicas import Replica, parse, with_replicas
from tuna_router.settings import parse_settings
from tuna_router.state import load

from ..backends import Backend, Seen, Wire
from ..conftest import Running, StartBackend, StartRouter, free_port, until


def balancer(backend: Backend, **more: Any) -> dict[str, Any]:
    entry = {"name": "spot", "kind": "spot", "url": backend.url, "headers": {"authorization": "Bearer replica-key"}}
    return entry | {"price_per_hour_usd": 1.5} | more


async def put(router: Running, *replicas: Backend | str, **more: Any) -> httpx.Response:
    urls = [each if isinstance(each, str) else each.url for each in replicas]
    body = {"replicas": [{"id": str(number), "url": url, **more} for number, url in enumerate(urls, 1)]}
    return await router.client.put("/router/backends/spot/replicas", json=body)


async def chosen(router: Running) -> str:
    answer = await router.complete()
    assert answer.status_code == 200
    return answer.headers["x-tuna-backend"]


async def test_requests_go_to_replicas_directly_and_to_the_balancer_only_while_none_is_ready(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    front, one, two = await start_backend(), await start_backend(), await start_backend()
    serverless = {"name": "serverless", "kind": "serverless", "url": (await start_backend()).url}
    router = await start_router(backends=[serverless, balancer(front)])
    await until(lambda: router.state() == "READY")
    assert await chosen(router) == "spot"

    assert (await put(router, one, two)).status_code == 200
    await until(lambda: router.state("spot.1") == router.state("spot.2") == "READY")
    before = len(front.seen)
    answers = await asyncio.gather(*(chosen(router) for _ in range(20)))
    assert set(answers) == {"spot.1", "spot.2"}
    assert len(front.seen) == before
    assert one.seen[0].headers["authorization"] == "Bearer replica-key", "the balancer's own headers"

    await one.stop()
    assert {await chosen(router) for _ in range(10)} == {"spot.2"}
    assert (await put(router)).json() == {"ok": True, "replicas": {}}
    assert router.state() != "READY", "who told of none knows what is behind the balancer"
    assert await chosen(router) == "serverless"
    await until(lambda: router.state() == "READY")
    assert await chosen(router) == "spot"


async def test_a_replica_that_is_lost_under_load_costs_no_request(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    front, one, two = await start_backend(), await start_backend(), await start_backend()
    serverless = {"name": "serverless", "kind": "serverless", "url": (await start_backend()).url}
    router = await start_router(backends=[serverless, balancer(front)])
    await put(router, one, two)
    await until(lambda: router.state("spot.1") == router.state("spot.2") == "READY")
    load = [asyncio.create_task(chosen(router)) for _ in range(60)]
    await until(lambda: len(one.seen) > 3)
    await one.stop()
    await asyncio.gather(*load)
    assert (router.tally.started, router.tally.finished) == (60, 60)


async def test_the_last_replica_lost_leaves_the_traffic_to_serverless_and_not_to_a_balancer_that_knows_no_better(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def never(wire: Wire, seen: Seen) -> None:
        await asyncio.Event().wait()

    front, one = await start_backend(), await start_backend()
    serverless = {"name": "serverless", "kind": "serverless", "url": (await start_backend()).url}
    router = await start_router(backends=[serverless, balancer(front)])
    await put(router, one)
    await until(lambda: router.state() == router.state("spot.1") == "READY")
    assert await chosen(router) == "spot.1"
    front.handler = never
    await one.stop()
    assert {await chosen(router) for _ in range(5)} == {"serverless"}
    assert not front.seen


async def test_a_replica_left_out_finishes_what_it_has_and_gets_nothing_new(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    go_on = asyncio.Event()

    async def slow(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await go_on.wait()
        await wire.token("two", "stop")
        await wire.done()

    front, one = await start_backend(), await start_backend(slow)
    router = await start_router(backends=[balancer(front)])
    await put(router, one)
    await until(lambda: router.state("spot.1") == "READY")
    running = asyncio.create_task(router.complete(stream=True))
    await until(lambda: len(one.seen) == 1)
    await put(router)
    assert await chosen(router) == "spot"
    go_on.set()
    assert (await running).text.endswith("[DONE]\n\n")


async def test_replicas_outlive_a_restart_and_follow_renewed_headers(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    kept = tmp_path / "config.json"
    front, one = await start_backend(), await start_backend()
    router = await start_router(backends=[balancer(front)], save_to=kept)
    await put(router, one)
    fresh = {"headers": {"authorization": "Bearer fresh"}}
    assert (await router.client.put("/router/backends/spot/headers", json=fresh)).status_code == 200
    found = {backend.name: backend for backend in load(kept).backends}
    assert found["spot.1"].url == one.url
    assert found["spot.1"].headers == {"authorization": "Bearer fresh"}
    await until(lambda: router.state("spot.1") == "READY")
    await chosen(router)
    assert one.seen[-1].headers["authorization"] == "Bearer fresh"


async def test_a_router_that_retires_leaves_the_file_to_its_successor(
    start_backend: StartBackend, start_router: StartRouter, tmp_path: Path
) -> None:
    kept = tmp_path / "config.json"
    router = await start_router(backends=[balancer(await start_backend())], save_to=kept)
    await put(router, await start_backend())
    before = kept.read_text()
    router.router.core.leave_file()
    assert (await put(router)).status_code == 200
    assert kept.read_text() == before


async def test_a_notice_at_the_replica_moves_its_traffic_before_the_machine_goes(
    start_backend: StartBackend, start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancer_module, "_NOTICE_INTERVAL_S", 0.01)
    going = False

    async def sidecar(wire: Wire, seen: Seen) -> None:
        assert seen.headers["authorization"] == "Bearer replica-key"
        if going:
            await wire.json({"seconds": 60})
        else:
            await wire.raw(b"HTTP/1.1 204 No Content\r\n\r\n")

    front, one, watch = await start_backend(), await start_backend(), await start_backend(sidecar)
    serverless = {"name": "serverless", "kind": "serverless", "url": (await start_backend()).url}
    router = await start_router(backends=[serverless, balancer(front)])
    await put(router, one, notice_url=f"{watch.url}/notice")
    await until(lambda: router.state("spot.1") == "READY" and len(watch.seen) > 2)
    assert await chosen(router) == "spot.1"
    going = True
    await until(lambda: router.state("spot.1") == "DRAINING")
    assert await chosen(router) != "spot.1"


async def test_the_balancer_hears_of_every_request_that_went_past_it(
    start_backend: StartBackend, start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancer_module, "_TRAFFIC_INTERVAL_S", 0.01)
    told = 0

    async def count(wire: Wire, seen: Seen) -> None:
        nonlocal told
        told += seen.target == "/told"
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    front, one, counter = await start_backend(), await start_backend(), await start_backend(count)
    router = await start_router(backends=[balancer(front, traffic_url=f"{counter.url}/told")])
    await put(router, one)
    await until(lambda: router.state("spot.1") == "READY")
    for _ in range(7):
        assert await chosen(router) == "spot.1"
    await until(lambda: told == 7)
    await asyncio.sleep(0.05)
    assert told == 7


async def test_beside_its_controller_the_addresses_come_from_there_and_the_times_of_requests_go_there(
    start_backend: StartBackend, start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancer_module, "_SYNC_INTERVAL_S", 0.01)
    stamps: list[float] = []
    one = await start_backend()
    answers: list[Any] = [{"replica_info": {one.url: {"gpu_type": "L4"}}}]

    async def controller(wire: Wire, seen: Seen) -> None:
        assert (seen.method, seen.target) == ("POST", "/controller/load_balancer_sync")
        assert "authorization" not in seen.headers
        stamps.extend(seen.json()["request_aggregator"]["timestamps"])
        if answers[-1] is None:
            await wire.json({"detail": "busy"}, 500)
        else:
            await wire.json(answers[-1])

    front, beside = await start_backend(), await start_backend(controller)
    sync_url = f"{beside.url}/controller/load_balancer_sync"
    router = await start_router(backends=[balancer(front, sync_url=sync_url)])
    name = "spot." + one.url.removeprefix("http://").replace(":", "-")
    await until(lambda: name in [b.name for b in router.router.core.fleet] and router.state(name) == "READY")
    for _ in range(5):
        assert await chosen(router) == name
    await until(lambda: len(stamps) == 5)
    assert (await put(router, one, notice_url="http://127.0.0.1:1/notice")).status_code == 200
    assert [b.name for b in router.router.core.fleet] == ["spot", name], "known by its address"
    assert router.router.core.fleet[name].settings.notice_url == "http://127.0.0.1:1/notice"
    answers.append(None)
    seen = len(beside.seen)
    await until(lambda: len(beside.seen) > seen + 2)
    assert router.state(name) == "READY", "an error is not read as none there"
    answers.append({"replica_info": {}})
    await until(lambda: [b.name for b in router.router.core.fleet] == ["spot"])


async def test_a_replica_that_is_not_there_for_long_is_forgotten_with_our_headers(
    start_backend: StartBackend, start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancer_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(balancer_module, "GONE_S", 0.3)
    front, one = await start_backend(), await start_backend()
    router = await start_router(backends=[balancer(front)])
    await put(router, one, f"http://127.0.0.1:{free_port()}")
    await until(lambda: [b.name for b in router.router.core.fleet] == ["spot", "spot.1"])
    await asyncio.sleep(0.5)
    assert router.state("spot.1") == "READY", "one that serves stays"


async def test_a_spot_machine_is_billed_once_whoever_is_asked_for_it(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    front, one = await start_backend(), await start_backend()
    router = await start_router(backends=[balancer(front)])
    await until(lambda: router.state() == "READY")
    core = router.router.core
    assert core.ledger.per_hour_usd(core.settings.backends) == 1.5
    await put(router, one)
    await until(lambda: router.state("spot.1") == "READY")
    assert core.ledger.per_hour_usd(core.settings.backends) == 1.5
    before = dict(core.counts.preemptions.values)
    await one.stop()
    await router.complete()
    await until(lambda: router.state("spot.1") == "WARMING")
    gone = {
        labels: count for labels, count in core.counts.preemptions.values.items() if before.get(labels) != count
    }
    assert gone == {("spot.1",): 1}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"replicas": {}}, "list"),
        ({"replicas": [{"id": "1"}]}, "id"),
        ({"replicas": [{"id": "a b", "url": "http://h"}]}, "name"),
        ({"replicas": [{"id": "1", "url": "ftp://h"}]}, "http"),
        ({"replicas": [{"id": "1", "url": "http://h"}, {"id": "1", "url": "http://g"}]}, "two replicas"),
        ({"replicas": [{"id": "1", "url": "http://h", "weight": 1}]}, "replica"),
        ({"replicas": [], "more": 1}, "unknown key"),
    ],
)
async def test_a_wrong_set_is_refused_and_changes_nothing(
    start_backend: StartBackend, start_router: StartRouter, body: object, word: str
) -> None:
    router = await start_router(backends=[balancer(await start_backend())])
    answer = await router.client.put("/router/backends/spot/replicas", json=body)
    assert answer.status_code == 422
    assert word in answer.json()["error"]["message"]
    assert [b.name for b in router.router.core.fleet] == ["spot"]
    missing = await router.client.put("/router/backends/nobody/replicas", json={"replicas": []})
    assert missing.status_code == 404


def test_a_replica_needs_a_balancer_that_is_there() -> None:
    spot = {"name": "spot", "kind": "spot", "url": "http://a"}
    with pytest.raises(SettingsError, match="no replica of"):
        parse_settings({"backends": [spot, {"name": "r", "kind": "spot", "url": "http://b", "balancer": "other"}]})
    with pytest.raises(SettingsError, match="no replica of"):
        parse_settings(
            {"backends": [spot, {"name": "s", "kind": "serverless", "url": "http://b", "balancer": "spot"}]}
        )
    backends = parse_settings({"backends": [spot]}).backends
    with pytest.raises(SettingsError, match="too long"):
        with_replicas(
            parse_settings({"backends": [spot | {"name": "s" * 60}]}).backends,
            "s" * 60,
            [Replica("1234", "http://b")],
        )
    assert parse(json.loads('[{"id": "1", "url": "http://b/"}]')) == [Replica("1", "http://b")]
    assert [b.name for b in with_replicas(backends, "spot", [Replica("1", "http://b")])] == ["spot", "spot.1"]
