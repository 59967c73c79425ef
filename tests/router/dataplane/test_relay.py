"""Bytes reach the client as they come, and a stream never ends without a word."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
import pytest

from ..backends import Seen, Wire
from ..conftest import KEY, StartBackend, StartRouter, until

STREAM = b'{"model":"m","prompt":"p","stream":true}'


async def test_a_token_is_readable_before_the_next_one_is_written(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    go_on = asyncio.Semaphore(0)

    async def one_by_one(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for number in range(5):
            await go_on.acquire()
            await wire.token(f"token-{number}")
        await go_on.acquire()
        await wire.token("end", "stop")
        await wire.done()

    router = await start_router(await start_backend(one_by_one))
    reader, writer = await router.raw(STREAM)
    async with asyncio.timeout(5):
        for number in range(5):
            go_on.release()  # token n+1 is not written before token n was read
            assert f'"token-{number}"'.encode() in await reader.readuntil(b"\n\n")
        go_on.release()
        assert b"[DONE]" in await reader.readuntil(b"[DONE]\n\n")
    writer.close()


async def test_the_bytes_of_a_body_are_not_touched(start_backend: StartBackend, start_router: StartRouter) -> None:
    body = bytes(range(256)) * 100

    async def compressed(wire: Wire, seen: Seen) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
        await wire.raw(head.encode() + body)

    router = await start_router(await start_backend(compressed))
    async with router.client.stream("GET", "/file") as answer:
        assert b"".join([piece async for piece in answer.aiter_raw()]) == body
        assert answer.headers["content-encoding"] == "gzip"


async def reset(wire: Wire) -> None:
    wire.reset()


async def plain_end(wire: Wire) -> None:
    await wire.raw(b"0\r\n\r\n")


async def close(wire: Wire) -> None:
    wire.close()


async def stall(wire: Wire) -> None:
    await wire.closed_by_peer()


@pytest.mark.parametrize("end", [reset, plain_end, close, stall])
@pytest.mark.parametrize("tail", [b"", b'data: {"choices": [{"te', b"data: half\n"])
async def test_a_stream_that_breaks_ends_with_an_error_event(
    start_backend: StartBackend, start_router: StartRouter, end, tail: bytes
) -> None:
    async def breaks(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        if tail:
            await wire.chunk(tail)
        await asyncio.sleep(0.02)
        await end(wire)

    router = await start_router(
        await start_backend(), await start_backend(breaks), stream_idle_timeout_s=0.2, resume=False
    )
    answer = await router.complete(stream=True)  # httpx would raise if the body were cut
    events = [event for event in answer.text.split("\n\n") if event]
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == "one"
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == "stream_broken"
    assert router.tally.failed == 1
    assert router.state() != "READY" or end is plain_end


async def test_an_error_event_of_the_engine_reaches_the_client_and_counts_as_a_failure(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def dies(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await wire.chunk(b'data: {"error":{"message":"EngineCore encountered an issue"}}\n\n')
        await wire.done()

    router = await start_router(await start_backend(), await start_backend(dies), resume=False)
    answer = await router.complete(stream=True)
    assert "EngineCore" in answer.text
    assert answer.text.count("error") == 1
    assert (router.tally.finished, router.tally.failed) == (0, 1)


async def test_a_file_that_breaks_is_seen_as_broken_by_the_client(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def cut(wire: Wire, seen: Seen) -> None:
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 5000\r\n\r\n" + b"x" * 100)
        await asyncio.sleep(0.02)
        wire.reset()

    router = await start_router(await start_backend(cut))
    with pytest.raises(httpx.RemoteProtocolError):
        await router.client.get("/file")
    assert router.tally.failed == 1


@pytest.mark.parametrize("body", [STREAM, b'{"model":"m"}'])
async def test_a_client_that_hangs_up_ends_the_work_upstream(
    start_backend: StartBackend, start_router: StartRouter, body: bytes
) -> None:
    upstream_closed = asyncio.Event()

    async def generate(wire: Wire, seen: Seen) -> None:
        if seen.json().get("stream"):
            await wire.stream_head()
            await wire.token("one")
        if await wire.closed_by_peer():
            upstream_closed.set()

    backend = await start_backend(generate)
    router = await start_router(backend)
    reader, writer = await router.raw(body)
    if body == STREAM:
        await reader.readuntil(b'"one"')
    else:
        await until(lambda: len(backend.seen) == 1)
    writer.close()
    async with asyncio.timeout(2):
        await upstream_closed.wait()
    await until(lambda: router.tally.running == 0)
    assert router.tally.cancelled == 1
    assert router.router.core.admission.in_flight == 0
    assert router.router.core.fleet["serverless"].in_flight == 0


async def test_a_client_may_use_one_connection_for_many_requests(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend)
    for _ in range(20):
        assert (await router.complete()).status_code == 200
    assert backend.open_connections == 1
    assert router.tally.finished == 20
    assert router.tally.cancelled == 0


async def test_answers_without_a_body_pass(start_backend: StartBackend, start_router: StartRouter) -> None:
    async def bare(wire: Wire, seen: Seen) -> None:
        if seen.method == "HEAD":
            await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 42\r\ncontent-type: text/plain\r\n\r\n")
        elif seen.method == "GET":
            await wire.raw(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 42\r\netag: e\r\n\r\n")
        else:
            await wire.raw(b"HTTP/1.1 204 No Content\r\nx-was: deleted\r\n\r\n")

    router = await start_router(await start_backend(bare))
    head = await router.client.head("/file")
    assert (head.status_code, head.headers["content-length"]) == (200, "42")
    kept = await router.client.get("/file")
    assert (kept.status_code, kept.headers["etag"]) == (304, "e")
    deleted = await router.client.delete("/v1/files/1?really=yes")
    assert (deleted.status_code, deleted.headers["x-was"]) == (204, "deleted")


async def test_a_hundred_streams_at_once_are_all_complete(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(), await start_backend())
    answers = await asyncio.gather(*(router.complete(stream=True) for _ in range(100)))
    assert all(answer.text.endswith("[DONE]\n\n") for answer in answers)
    assert (router.tally.started, router.tally.finished) == (100, 100)


async def test_hundreds_of_clients_that_hang_up_anywhere_leave_nothing_behind(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def trickle(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.002)
        await wire.stream_head()
        for _ in range(10):
            await wire.token("x")
            await asyncio.sleep(0.002)
        await wire.token("x", "length")
        await wire.done()

    backend = await start_backend(trickle)
    router = await start_router(backend)

    async def client(number: int) -> None:
        reader, writer = await router.raw(STREAM)
        try:
            async with asyncio.timeout(number % 40 / 1000):
                await reader.readuntil(b"[DONE]")
        except TimeoutError:
            pass
        writer.close()

    for start in range(0, 200, 50):
        await asyncio.gather(*(client(number) for number in range(start, start + 50)))
    await until(lambda: router.tally.running == 0)
    tally = router.tally
    assert tally.started == tally.finished + tally.cancelled + tally.failed
    assert tally.failed == 0
    assert tally.cancelled > 0
    assert router.router.core.admission.in_flight == 0
    assert router.router.core.fleet["serverless"].in_flight == 0
    upstream = router.router.core.upstream
    assert (await router.complete(stream=True)).status_code == 200
    await until(lambda: upstream.idle_count == len(upstream.connections))
    await until(lambda: backend.open_connections == len(upstream.connections))


async def test_a_client_that_reads_slowly_slows_the_backend_down(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    piece, count, written = b"x" * 100_000, 500, 0

    async def flood(wire: Wire, seen: Seen) -> None:
        nonlocal written
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * count))
        for _ in range(count):
            await wire.raw(piece)
            written += len(piece)

    router = await start_router(await start_backend(flood))
    reader, writer = await router.raw(b"{}", path="/file")
    before = -1
    while written != before:  # until the backend can write no more
        before = written
        await asyncio.sleep(0.2)
    assert 0 < written < 30_000_000, "the rest waits at the backend, not in the router's memory"
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"200 OK" in head
    body = await reader.readexactly(len(piece) * count)
    assert len(body) == 50_000_000
    writer.close()


async def test_tokens_that_a_slow_client_does_not_take_at_once_come_later_and_in_their_order(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    count = 2000
    texts = [f"{number:06d}" + "x" * 3000 for number in range(count)]

    async def speak(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for text in texts:
            await wire.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
            await asyncio.sleep(0)  # so that the router reads them one by one
        await wire.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await wire.done()

    router = await start_router(await start_backend(speak))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", router.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=8192)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await until(lambda: any(client.unsent_bytes for client in router.router.connections))
    answer = await reader.read(-1)
    writer.close()
    said = [piece.split(b'"')[0].decode() for piece in answer.split(b'"content":"')[1:]]
    assert said == texts
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
