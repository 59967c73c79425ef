"""Clients that go or wait while their stream is continued, machines under notice, and very long bodies."""

from __future__ import annotations

import asyncio
import json

import pytest

from ..backends import Seen, Wire
from ..conftest import StartBackend, StartRouter, until
from .breaking import BODY, ask, breaks, counted, good, reset, whole
from .scripted import TEXT, WORDS, stream_of


async def test_the_work_for_a_client_that_goes_during_a_resume_ends(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    ended = asyncio.Event()

    async def silent(wire: Wire, seen: Seen) -> None:
        if await wire.closed_by_peer():
            ended.set()

    serverless = await start_backend(silent)
    router = await start_router(serverless, await start_backend(breaks(4, reset)))
    reader, writer = await router.raw(json.dumps(BODY).encode(), path="/v1/chat/completions")
    await reader.readuntil(b"\\u0107")
    await until(lambda: len(serverless.seen) == 1)
    writer.close()
    async with asyncio.timeout(5):
        await ended.wait()
    await until(lambda: router.tally.running == 0)
    assert counted(router) == {}
    assert (router.tally.cancelled, router.tally.failed) == (1, 0)


async def test_a_client_that_takes_nothing_during_a_resume_slows_the_backend_down_and_misses_nothing(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    padding = b": " + b"x" * 60_000 + b"\n\n"
    sent = 0

    async def long(wire: Wire, seen: Seen) -> None:
        nonlocal sent
        await wire.stream_head()
        events = stream_of(seen.json())
        await wire.chunk(events[0])
        for _ in range(1500):
            await wire.chunk(padding)
            sent += 1
        for event in events[1:]:
            await wire.chunk(event)
        await wire.raw(b"0\r\n\r\n")

    async def full_then_breaks(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for event in stream_of(seen.json())[:4]:
            await wire.chunk(event)
        for _ in range(60):
            await wire.chunk(padding)
        await asyncio.sleep(0.05)
        wire.reset()

    router = await start_router(await start_backend(long), await start_backend(full_then_breaks))
    reader, writer = await router.raw(json.dumps(BODY).encode(), path="/v1/chat/completions")
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: sent > 10)
    (client,) = (each for each in router.router.connections if each.handler is not None)
    await until(lambda: client.write_paused)
    for _ in range(100):
        await asyncio.sleep(0)
    assert sent < 1500
    assert client.unsent_bytes < 1024 * 1024
    reader._transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        answer = await _to_the_end(reader)
    assert answer.count(b"[DONE]") == 1
    assert answer.count(b'"content":') == len(WORDS) + 1
    writer.close()
    assert counted(router) == {"exact": 1}


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    pieces = [b""]
    while not pieces[-1].endswith(b"0\r\n\r\n"):
        pieces.append(await reader.read(1 << 20))
        assert pieces[-1]
    return b"".join(pieces)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_stream_moves_away_from_a_machine_under_notice_before_its_end(
    start_backend: StartBackend, start_router: StartRouter, begun: bool
) -> None:
    left = asyncio.Event()
    started = asyncio.Event()

    async def slow(wire: Wire, seen: Seen) -> None:
        if begun:
            await wire.stream_head()
            for event in stream_of(seen.json())[:4]:
                await wire.chunk(event)
        started.set()
        if await wire.closed_by_peer():
            left.set()

    serverless = await start_backend(good)
    router = await start_router(serverless, await start_backend(slow), move_margin_s=0.8)
    asking = asyncio.create_task(ask(router))
    await started.wait()
    if begun:
        await until(lambda: router.router.core.fleet["spot"].tally.ttft.count == 1)
    notice = await router.client.post("/router/spot-replicas/spot/notice", json={"seconds": 1, "last": True})
    assert notice.status_code == 200, notice.text
    assert whole(await asking) == TEXT
    assert left.is_set()
    assert router.state() == "DRAINING"
    assert counted(router) == ({"exact": 1} if begun else {})
    assert dict(router.router.core.counts.moves) == {("spot",): 1}
    spot = router.router.core.meter.backends["spot"]
    assert (spot.cancelled, spot.failed) == (1, 0)


async def test_a_hundred_megabytes_go_through_either_way(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    size = 100 * 1024 * 1024

    async def big(wire: Wire, seen: Seen) -> None:
        assert len(seen.body) == size
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(100):
            await wire.raw(bytes(1024 * 1024))

    router = await start_router(await start_backend(big))
    got = 0
    async with router.client.stream("POST", "/v1/files", content=bytes(size), timeout=30) as answer:
        async for piece in answer.aiter_raw():
            got += len(piece)
    assert got == size
    assert counted(router) == {}


def token_of(text: str, **more: object) -> bytes:
    """As vLLM writes one token."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    chunk = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk | more, separators=(",", ":")).encode() + b"\n\n"


async def test_tokens_of_every_length_reach_the_client_one_by_one_and_all_are_known_when_the_stream_breaks(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    """Through sizes of two, three and four digits; half way the events begin as before and end in another way."""
    texts = [f"{n} " + "x" * n for n in [*range(140), *range(3890, 3930)]]
    events = [token_of("", role="assistant"), *[token_of(text, tier=1) for text in texts]]
    events += [token_of(text, tier=12) for text in reversed(texts)]
    most_kept = 0
    read = asyncio.Queue[None]()

    async def tells(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for event in events:
            await wire.chunk(event)
            await read.get()  # so that each is read by itself
        wire.reset()

    async def ends(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.chunk(token_of("!").replace(b'"finish_reason":null', b'"finish_reason":"stop"'))
        await wire.raw(b"0\r\n\r\n")

    serverless = await start_backend(ends)
    router = await start_router(serverless, await start_backend(tells))
    reader, writer = await router.raw(json.dumps(BODY | {"max_tokens": 5000}).encode(), path="/v1/chat/completions")
    await reader.readuntil(b"\r\n\r\n")
    for event in events:
        size = int(await reader.readuntil(b"\r\n"), 16)
        assert await reader.readexactly(size) == event
        await reader.readexactly(2)
        most_kept = max(most_kept, *(len(each.kept) for each in router.router.core.upstream.connections))
        read.put_nowait(None)
    await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    assert most_kept > 100, "hardly one was read on its way"
    (asked,) = [seen.json() for seen in serverless.seen]
    assert asked["messages"][-1] == {"role": "assistant", "content": "".join([*texts, *reversed(texts)])}
