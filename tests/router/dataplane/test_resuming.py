"""A stream that breaks goes on elsewhere: faults over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ..backends import Seen, Wire
from ..conftest import KEY, StartBackend, StartRouter, until
from .breaking import (
    BODY,
    ENDS,
    HEAD,
    ask,
    breaks,
    broken,
    counted,
    error_and_done,
    good,
    reset,
    stalls,
    unasked,
    whole,
)
from .scripted import TEXT, WORDS, stream_of


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("after", [1, 4])
async def test_however_a_backend_breaks_off_the_client_gets_the_undisturbed_text(
    start_backend: StartBackend, start_router: StartRouter, after: int, end: Callable[[Wire], Awaitable[None]]
) -> None:
    serverless = await start_backend(good)
    settings: dict[str, Any] = {"stream_idle_timeout_s": 0.2} if end is stalls else {}
    router = await start_router(serverless, await start_backend(breaks(after, end)), **settings)
    assert whole(await ask(router)) == TEXT
    assert counted(router) == {"exact": 1}
    assert (router.tally.finished, router.tally.failed) == (1, 0)
    assert router.router.core.meter.broken_streams == 0
    assert (router.tally.completion_tokens, router.tally.completion_tokens_estimated) == (len(WORDS), 0)
    if after == 4:
        assert serverless.seen[0].json()["prompt"] == [1, 2, 3, 100, 101, 102]


@pytest.mark.parametrize("lines", [b"content-length: 5000\r\n\r\n", b"connection: close\r\n\r\n"])
async def test_a_length_that_is_too_long_and_an_end_without_one_are_breaks(
    start_backend: StartBackend, start_router: StartRouter, lines: bytes
) -> None:
    async def short(wire: Wire, seen: Seen) -> None:
        await wire.raw(HEAD + lines + b"".join(stream_of(seen.json())[:4]))
        await asyncio.sleep(0.01)
        wire.close()

    router = await start_router(await start_backend(good), await start_backend(short))
    assert whole(await ask(router)) == TEXT
    assert counted(router) == {"exact": 1}


async def test_a_slow_backend_that_tells_byte_by_byte_is_no_break(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def loris(wire: Wire, seen: Seen) -> None:
        answer = HEAD + b"transfer-encoding: chunked\r\n\r\n"
        for event in stream_of(seen.json())[:3]:
            answer += b"%x\r\n%b\r\n" % (len(event), event)
        for byte in answer:
            await wire.raw(bytes([byte]))
            await asyncio.sleep(0)
        wire.reset()

    async def slow(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for event in stream_of(seen.json()):
            for byte in b"%x\r\n%b\r\n" % (len(event), event):
                await wire.raw(bytes([byte]))
                await asyncio.sleep(0)
        await wire.raw(b"0\r\n\r\n")

    router = await start_router(await start_backend(slow), await start_backend(loris))
    assert whole(await ask(router)) == TEXT


@pytest.mark.parametrize("breaks_before", [2, 3, 4])
async def test_a_continuation_that_breaks_is_continued_in_its_turn(
    start_backend: StartBackend, start_router: StartRouter, breaks_before: int
) -> None:
    calls = iter(range(100))

    async def handler(wire: Wire, seen: Seen) -> None:
        # Each says a little more; far more breaks than a request has attempts without one.
        await (breaks(2, reset) if next(calls) < breaks_before else good)(wire, seen)

    router = await start_router(await start_backend(handler), max_attempts=2)
    assert whole(await ask(router)) == TEXT
    assert counted(router) == {"exact": breaks_before}


async def test_who_says_nothing_new_is_not_asked_for_ever(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def dies(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        if "messages" in seen.json():
            for event in stream_of(seen.json())[:3]:
                await wire.chunk(event)
        await error_and_done(wire)

    backend = await start_backend(dies)
    router = await start_router(backend, max_attempts=4)
    assert "no backend goes on with it" in broken(await ask(router))
    assert len(backend.seen) <= 5
    assert router.tally.failed == 1
    assert counted(router)["failed"] == 1


async def test_all_are_dead_and_one_comes_back(start_backend: StartBackend, start_router: StartRouter) -> None:
    told = asyncio.Event()

    async def dies(wire: Wire, seen: Seen) -> None:
        await breaks(4, wait)(wire, seen)

    async def wait(wire: Wire) -> None:
        told.set()
        await wire.closed_by_peer()

    backend = await start_backend(dies)
    router = await start_router(backend)
    asking = asyncio.create_task(ask(router))
    await told.wait()
    await backend.stop()
    fleet = router.router.core.fleet["serverless"]
    await until(lambda: (fleet.last_error or "").endswith("refused"))
    backend.handler = good
    await backend.start()
    assert whole(await asking) == TEXT
    assert counted(router) == {"exact": 1}


async def test_when_all_stay_dead_the_stream_ends_with_an_error_event(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    told = asyncio.Event()

    async def wait(wire: Wire) -> None:
        told.set()
        await wire.closed_by_peer()

    backend = await start_backend(breaks(3, wait))
    router = await start_router(backend, max_attempts=3, resume_wait_s=0.3)
    asking = asyncio.create_task(ask(router))
    await told.wait()
    await backend.stop()
    assert "connection lost" in broken(await asking)
    assert counted(router) == {"failed": 1}
    assert router.tally.failed == 1


async def test_the_deadline_of_the_request_is_that_of_its_continuations(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def silent(wire: Wire, seen: Seen) -> None:
        if "messages" in seen.json():
            await breaks(3, reset)(wire, seen)
        else:
            await wire.closed_by_peer()

    router = await start_router(await start_backend(silent), request_timeout_s=0.5)
    assert "no time is left" in broken(await ask(router))
    assert counted(router) == {"failed": 1}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"n": 2}, "n is more than 1"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "guided"),
        ({"structured_outputs": {"regex": "a"}}, "guided"),
        ({"tool_choice": "required"}, "tool call"),
    ],
)
async def test_what_cannot_go_on_honestly_ends_with_an_error_event(
    start_backend: StartBackend, start_router: StartRouter, more: dict[str, Any], why: str
) -> None:
    serverless = await start_backend(unasked)
    router = await start_router(serverless, await start_backend(breaks(4, reset)))
    assert why in broken(await ask(router, **more))
    assert serverless.seen == []
    assert counted(router) == {"refused": 1}


async def test_a_tool_call_in_progress_is_not_continued(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def calls(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
        choice = {"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}, "finish_reason": None}
        await wire.chunk(b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n")
        await asyncio.sleep(0.01)
        wire.reset()

    serverless = await start_backend(unasked)
    router = await start_router(serverless, await start_backend(calls))
    assert "tool_calls" in broken(await ask(router, tools=[{"type": "function", "function": {"name": "f"}}]))
    assert serverless.seen == []


@pytest.mark.parametrize("status", [400, 404, 422, 503])
async def test_a_backend_that_refuses_to_continue_is_passed_over(
    start_backend: StartBackend, start_router: StartRouter, status: int
) -> None:
    async def refuses(wire: Wire, seen: Seen) -> None:
        if "messages" in seen.json():
            await breaks(4, reset)(wire, seen)
        else:
            await wire.json({"error": {"message": "no"}}, status=status)

    backends = [await start_backend(refuses), await start_backend(refuses), await start_backend(good)]
    names = [
        {"name": f"b{n}", "kind": "serverless", "url": each.url, "price_per_hour_usd": n}
        for n, each in enumerate(backends)
    ]
    router = await start_router(backends=names)
    assert whole(await ask(router)) == TEXT
    assert [len(each.seen) for each in backends] == [1, 1, 1]
    # Nothing is wrong with one that only won't do this.
    assert (router.router.core.fleet["b1"].last_error is None) == (status < 500)


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("resumes", [False, True])
async def test_a_backend_that_does_not_know_token_ids_gets_the_request_as_it_was(
    start_backend: StartBackend, start_router: StartRouter, status: int, resumes: bool
) -> None:
    async def strict(wire: Wire, seen: Seen) -> None:
        if "return_token_ids" in seen.json():
            await wire.json({"error": {"message": "return_token_ids: extra fields not permitted"}}, status=status)
        else:
            await good(wire, seen)

    serverless = await start_backend(strict)
    spot = await start_backend(breaks(4, reset)) if resumes else None
    router = await start_router(serverless, spot)
    assert whole(await ask(router)) == TEXT
    asked = [seen.json() for seen in serverless.seen]
    assert [("return_token_ids" in each) for each in asked] == [True, False]
    if resumes:
        assert asked[1]["messages"][-1] == {"role": "assistant", "content": "abć"}
    else:
        assert asked[1] == BODY
        assert serverless.seen[1].body == serverless.seen[0].body.replace(b'"return_token_ids":true,', b"")
    assert whole(await ask(router)) == TEXT
    last = [seen.json() for seen in serverless.seen][2:]
    assert ["return_token_ids" in each for each in last] == [False]


async def test_the_context_that_a_refusal_names_is_learned(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def engine(wire: Wire, seen: Seen) -> None:
        asked = seen.json()
        if asked["max_tokens"] is None:
            await wire.stream_head()
            for event in stream_of(asked | {"max_tokens": len(WORDS)})[:4]:
                await wire.chunk(event)
            await asyncio.sleep(0.01)
            wire.reset()
        elif asked["max_tokens"] > 100:
            await wire.json({"error": {"message": "too many: max_model_len=11"}}, status=400)
        else:
            await good(wire, seen)

    backend = await start_backend(engine)
    router = await start_router(backend)
    assert whole(await ask(router, max_tokens=None)) == TEXT
    assert [seen.json()["max_tokens"] for seen in backend.seen] == [None, 2**31 - 1, 5]
    assert whole(await ask(router, max_tokens=None)) == TEXT
    assert [seen.json()["max_tokens"] for seen in backend.seen][3:] == [None, 5]


async def test_a_request_with_side_effects_is_never_sent_again(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    serverless = await start_backend(unasked)
    router = await start_router(serverless, await start_backend(breaks(4, reset)))
    assert "side effects" in broken(await ask(router, {"x-tuna-side-effects": "true"}))
    assert serverless.seen == []
    assert router.tally.failed == 1


async def test_resuming_can_be_switched_off(start_backend: StartBackend, start_router: StartRouter) -> None:
    serverless = await start_backend(unasked)
    spot = await start_backend(breaks(4, reset))
    router = await start_router(serverless, spot, resume=False)
    broken(await ask(router))
    assert serverless.seen == []
    assert "return_token_ids" not in spot.seen[0].json()


async def test_a_client_of_http_1_0_gets_the_rest_too(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(good), await start_backend(breaks(4, reset)))
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    body = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nx-api-key: {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(5):
        answer = await reader.read()
    start, _, said = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in start
    assert whole(said) == TEXT
    writer.close()


async def test_the_model_has_its_own_name_on_each_backend(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    first, second = await start_backend(breaks(4, reset)), await start_backend(good)
    backends = [
        {"name": "a", "kind": "serverless", "url": first.url, "models": {"m": "m-a"}, "price_per_hour_usd": 1},
        {"name": "b", "kind": "serverless", "url": second.url, "models": {"m": "m-b"}, "price_per_hour_usd": 2},
    ]
    router = await start_router(backends=backends)
    answer = await ask(router)
    assert whole(answer) == TEXT
    assert first.seen[0].json()["model"] == "m-a"
    assert second.seen[0].json()["model"] == "m-b"
    assert second.seen[0].target == "/v1/completions"


async def test_more_than_the_memory_allows_is_given_up_and_counted(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    serverless = await start_backend(unasked)
    router = await start_router(
        serverless, await start_backend(breaks(8, reset)), resume_memory_bytes=400, max_concurrency=1
    )
    assert "more than 400 bytes" in broken(await ask(router))
    assert counted(router) == {"refused": 1}
