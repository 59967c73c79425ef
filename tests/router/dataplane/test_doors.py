"""What providers' doors do to requests, whoever is behind them: hold them, send them on, end them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tuna_router.fleet.breaker import Circuit

from ..backends import Backend, Handler, Seen, Wire, ok
from ..conftest import StartBackend, StartRouter


def door(backend: Backend, **settings: Any) -> list[dict[str, Any]]:
    headers = {"Modal-Key": "wk-1", "Modal-Secret": "ws-1"}
    return [{"name": "modal", "kind": "serverless", "url": backend.url, "headers": headers, **settings}]


RESULT = "/v1/completions?__modal_function_call_id=fc-1"


def later(*locations: str) -> Handler:
    """Sends a request on from each place to the next, for ever to the last but `RESULT`, where the answer is."""
    asked: list[bytes] = []

    async def handler(wire: Wire, seen: Seen) -> None:
        if seen.method == "POST":
            asked.append(seen.body)
        elif seen.target == RESULT:
            await ok(wire, Seen("POST", "/v1/completions", seen.headers, asked[0]))
            return
        location = locations[min(len(turns), len(locations) - 1)]
        turns.append(location)
        await wire.raw(f"HTTP/1.1 303 See Other\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode())

    turns: list[str] = []
    return handler


@pytest.mark.parametrize("locations", [(RESULT,), ("/v1/result?again=1", RESULT)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_answer_is_fetched_where_the_door_sends_its_client(
    start_backend: StartBackend, start_router: StartRouter, locations: tuple[str, ...], stream: bool
) -> None:
    backend = await start_backend(later(*locations))
    router = await start_router(backends=door(backend, redirects=True))
    answer = await router.complete(stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-tuna-attempts"] == "1"
    assert "three" in answer.text if stream else answer.json()["choices"]
    posts = [seen for seen in backend.seen if seen.method == "POST"]
    gets = [seen for seen in backend.seen if seen.method == "GET"]
    assert len(posts) == 1, "it must not be executed twice"
    assert len(gets) == len(locations)
    assert gets[-1].target == RESULT
    assert gets[-1].headers["modal-key"] == "wk-1"
    assert not gets[-1].body
    assert router.tally.finished == 1


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:9/elsewhere", "http://evil.example/x", "//evil.example/x", "x", "", "/a b"]
)
async def test_a_door_that_sends_its_client_elsewhere_gets_no_key_there(
    start_backend: StartBackend, start_router: StartRouter, location: str
) -> None:
    other = await start_backend()
    backend = await start_backend(later(location.replace("127.0.0.1:9", other.url.removeprefix("http://"))))
    router = await start_router(backends=door(backend, redirects=True))
    assert (await router.complete()).status_code == 502
    assert not other.seen
    assert not [seen for seen in backend.seen if seen.method == "GET"]


async def test_a_door_that_sends_its_client_round_in_circles_is_left(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend(later("/v1/result?again=1"))
    router = await start_router(backends=door(backend, redirects=True))
    answer = await router.complete()
    assert answer.status_code == 502
    assert "redirect" in answer.text
    assert len(backend.seen) == 21


async def test_where_no_door_does_so_a_303_is_an_answer_like_any_other(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend(later("/v1/result"))
    router = await start_router(backends=door(backend))
    assert (await router.complete()).status_code == 303
    assert len(backend.seen) == 1


async def test_a_door_may_hold_a_request_longer_than_others(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def parked(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.3)
        await ok(wire, seen)

    backend = await start_backend(parked)
    router = await start_router(backends=door(backend, first_byte_timeout_s=5), first_byte_timeout_s=0.1)
    assert (await router.complete()).status_code == 200
    impatient = await start_router(backends=door(backend), first_byte_timeout_s=0.1)
    assert (await impatient.complete()).status_code == 504


async def test_an_answer_that_the_door_cut_at_its_limit_is_no_fault_of_the_backend(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def too_long(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.2)
        wire.reset()

    backend = await start_backend(too_long)
    router = await start_router(backends=door(backend, answer_limit_s=0.1))
    for _ in range(5):
        answer = await router.complete()
        assert answer.status_code == 502
        assert "ask for a stream" in answer.text
    assert len(backend.seen) == 5, "it is not sent again to run into the same limit"
    assert router.router.core.fleet["modal"].circuit is Circuit.CLOSED


async def test_a_stream_that_the_door_cut_at_its_limit_goes_on_behind_the_same_door(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def cut(wire: Wire, seen: Seen) -> None:
        if "two" in seen.json()["prompt"]:
            await wire.stream_head()
            await wire.token(" three", "length")
            await wire.done()
            return
        await wire.stream_head()
        await wire.token("one")
        await wire.token(" two")
        await asyncio.sleep(0.2)
        wire.reset()

    backend = await start_backend(cut)
    router = await start_router(backends=door(backend, answer_limit_s=0.1))
    answer = await router.complete(stream=True, max_tokens=9)
    assert [part for part in ("one", " two", " three") if part in answer.text] == ["one", " two", " three"]
    assert answer.text.rstrip().endswith("[DONE]")
    assert router.router.core.fleet["modal"].circuit is Circuit.CLOSED
    assert router.tally.finished == 1
