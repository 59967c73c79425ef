"""The serverless side, with real processes and sockets."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import httpx
import pytest

from tests.backends.local.clouds import MODEL, Deployed, deploy, serverless, until
from tuna_nb.backends.base import ServerlessScaling, State
from tuna_nb.backends.local.backend import LocalBackend

pytestmark = pytest.mark.usefixtures("unclouded")


async def test_a_request_is_held_through_the_cold_start_and_answered(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("cold", options={"cold_start_s": "1.5"}))
    assert await side.state() is State.IDLE
    began = time.monotonic()
    answer = await side.ask()
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == " word"
    assert time.monotonic() - began >= 1.5
    began = time.monotonic()
    assert (await side.ask()).status_code == 200
    assert time.monotonic() - began < 1.5


async def test_it_listens_where_it_was_told_to(shared: LocalBackend) -> None:
    assert shared.only_here(serverless("x"))
    request = serverless("elsewhere", options={"listen": "127.0.0.2"})
    side = await deploy(shared, request)
    assert side.http.base_url.host == "127.0.0.2"
    assert (await side.ask()).status_code == 200


async def test_the_stand_in_serves_where_no_command_is_given(shared: LocalBackend) -> None:
    from dataclasses import replace

    request = serverless("stand-in")
    side = await deploy(shared, replace(request, engine=replace(request.engine, command=None)))
    answer = await side.http.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    )
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= 3


async def test_scaled_to_zero_it_costs_nothing_and_a_request_wakes_it(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("zero", scaledown_window=0.3))
    await side.ask()
    await side.becomes(State.IDLE)
    status = await shared.status(side.ref)
    assert not status.billing
    assert status.replicas == ()
    [first] = await shared.usage(side.ref)
    assert first.ended_at is not None
    assert first.ended_at - first.started_at >= 0.4
    await side.ask()
    assert len(await shared.usage(side.ref)) == 2


async def test_more_requests_than_one_container_takes_start_another(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("wide", concurrency=2, workers_max=2, scaledown_window=30))
    answers = await asyncio.gather(*(side.ask(sleep=1.5) for _ in range(4)))
    assert len({a.json()["pid"] for a in answers}) == 2
    assert len((await shared.status(side.ref)).replicas) == 2


async def test_beyond_its_capacity_a_request_waits_for_the_timeout_and_gets_503(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("full", concurrency=1, workers_max=1, timeout=1.5))
    await side.ask()
    # One is served at once, one in its turn; the third would still have waited after the time limit.
    answers = await asyncio.gather(*(side.ask(sleep=1.2) for _ in range(3)))
    assert sorted(a.status_code for a in answers) == [200, 200, 503]
    [refused] = [a for a in answers if a.status_code == 503]
    assert "no container" in refused.json()["error"]
    assert refused.headers["retry-after"] == "1"


async def test_a_request_over_the_time_limit_gets_504(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("slow", timeout=1.5))
    await side.ask()
    answer = await side.ask(sleep=4)
    assert answer.status_code == 504
    assert "1.5 s" in answer.json()["error"]


async def test_only_the_key_opens_it_and_the_engine_never_sees_the_key(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("locked"))
    async with httpx.AsyncClient(base_url=side.endpoint.url) as stranger:
        for headers in ({}, {"Authorization": "Bearer lk-wrong"}, {"Authorization": ""}):
            refused = await stranger.get("/v1/models", headers=headers)
            assert refused.status_code == 401
            assert "key" in refused.json()["error"]
    assert await side.state() is State.IDLE, "a refused request must not wake it"
    seen = (await side.http.get("/any/path?with=query")).json()
    assert seen["path"] == "/any/path?with=query"
    assert "authorization" not in seen["headers"]


async def test_a_public_endpoint_needs_no_key(shared: LocalBackend) -> None:
    from dataclasses import replace

    side = await deploy(shared, replace(serverless("open"), public=True))
    async with httpx.AsyncClient(base_url=side.endpoint.url, timeout=20) as anyone:
        assert (await anyone.get("/v1/models")).status_code == 200


async def test_a_container_that_dies_before_the_first_byte_is_replaced_under_the_request(
    shared: LocalBackend, tmp_path: Path
) -> None:
    side = await deploy(shared, serverless("phoenix", flags=f"--die-once {tmp_path / 'died'}"))
    first = (await side.ask()).json()["pid"]
    answer = await side.ask("die")
    assert answer.status_code == 200
    assert answer.json()["pid"] != first


async def test_an_engine_that_only_breaks_off_gives_502(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("rude"))
    answer = await side.ask("drop")
    assert answer.status_code == 502


async def test_a_stream_is_cut_with_its_container(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("cut"))
    await side.ask()

    async def die() -> None:
        asyncio.get_running_loop().create_task(side.ask("die"))

    with pytest.raises(httpx.RemoteProtocolError):
        await side.stream(500, on_first=die)


async def test_a_client_that_goes_away_cancels_the_work_upstream(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("leaver"))
    body = {"prompt": "hi", "stream": True, "max_tokens": 5000}
    async with side.http.stream("POST", "/v1/completions", json=body) as response:
        await anext(response.aiter_bytes())

    async def told() -> bool:
        return any(line.text == "client gone" for line in [x async for x in shared.logs(side.ref)])

    await until(told)


async def test_fifty_streams_at_once_arrive_whole(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("many", flags="--rate 30", concurrency=64))
    await side.ask()
    streams = await asyncio.gather(*(side.stream(30) for _ in range(50)))
    for events in streams:
        assert [json.loads(e[6:])["choices"][0]["text"] for e in events[:-1]] == [f" w{n}" for n in range(30)]
        assert events[-1] == "data: [DONE]"


async def test_wake_starts_a_container_and_scale_changes_it_in_place(shared: LocalBackend) -> None:
    side = await deploy(shared, serverless("woken", scaledown_window=60))
    await shared.wake(side.ref)
    await side.becomes(State.READY)
    await shared.scale(side.ref, ServerlessScaling(workers_min=2, workers_max=2))
    await until(lambda: _ready(side, 2))
    await shared.scale(side.ref, ServerlessScaling(workers_min=0, workers_max=2, scaledown_window=0))
    await side.becomes(State.IDLE)


async def _ready(side: Deployed, number: int) -> bool:
    status = await side.backend.status(side.ref)
    return [r.state for r in status.replicas].count(State.READY) == number
