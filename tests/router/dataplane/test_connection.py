"""Connections to backends: how many there are, when one is used again, and what a strange answer does."""

from __future__ import annotations

import asyncio
import resource

import pytest

from tuna_router.dataplane.response_head import BadAnswer, Framing, parse_response_head

from ..backends import Seen, Wire, ok
from ..conftest import StartBackend, StartRouter, until

STREAM = b'{"model":"m","prompt":"p","stream":true}'


async def test_there_are_as_many_connections_as_requests_at_once_and_no_more(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    made = 0

    async def slowly(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.001)
        await ok(wire, seen)

    backend = await start_backend(slowly)
    router = await start_router(backend)
    pool_of = router.router.core.upstream
    original = pool_of._dial

    async def counted(*args: object) -> None:
        nonlocal made
        made += 1
        await original(*args)  # type: ignore[arg-type]

    pool_of._dial = counted  # type: ignore[method-assign]

    async def client(number: int) -> None:
        for turn in range(25):
            assert (await router.complete(stream=(number + turn) % 2 == 0)).status_code == 200

    await asyncio.gather(*(client(number) for number in range(8)))
    assert router.tally.finished == 200
    assert made <= 8
    assert backend.open_connections == len(pool_of.connections) == made


async def test_a_thousand_streams_at_once_have_no_error(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    everybody = asyncio.Event()

    async def hold(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        await wire.token("one")
        await everybody.wait()
        await wire.token("two", "stop")
        await wire.done()

    router = await start_router(await start_backend(hold), max_concurrency=1000)
    core = router.router.core

    async def client() -> bytes:
        reader, writer = await router.raw(STREAM)
        try:
            return await reader.readuntil(b"\n\r\n0\r\n\r\n")
        finally:
            writer.close()

    tasks = [asyncio.create_task(client()) for _ in range(1000)]
    async with asyncio.timeout(60):
        await until(lambda: core.fleet["serverless"].in_flight == 1000, 45)
        everybody.set()
        answers = await asyncio.gather(*tasks)
    assert all(b"[DONE]" in answer and b'"error"' not in answer for answer in answers)
    assert (router.tally.started, router.tally.finished) == (1000, 1000)
    assert core.admission.in_flight == 0


async def closes(wire: Wire, seen: Seen) -> None:
    await wire.json({"ok": True}, headers="connection: close\r\n")
    await wire.closed_by_peer()


async def says_too_much(wire: Wire, seen: Seen) -> None:
    await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
    await wire.closed_by_peer()


async def speaks_unasked(wire: Wire, seen: Seen) -> None:
    await wire.json({"ok": True})
    await asyncio.sleep(0.02)
    await wire.raw(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
    await wire.closed_by_peer()


async def is_old(wire: Wire, seen: Seen) -> None:
    await wire.raw(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    await wire.closed_by_peer()


@pytest.mark.parametrize("handler", [closes, says_too_much, speaks_unasked, is_old])
async def test_a_connection_is_used_again_only_after_a_clean_end(
    start_backend: StartBackend, start_router: StartRouter, handler
) -> None:
    backend = await start_backend(handler)
    router = await start_router(backend)
    for _ in range(3):
        assert (await router.complete()).status_code == 200
        await until(lambda: backend.open_connections == 0)
    assert len(router.router.core.upstream.connections) == 0
    assert router.tally.finished == 3


async def test_a_body_that_ends_with_the_connection_is_passed_on_in_chunks(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def until_close(wire: Wire, seen: Seen) -> None:
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhello ")
        await asyncio.sleep(0.02)
        await wire.raw(b"world")
        wire.close()

    router = await start_router(await start_backend(until_close))
    for _ in range(2):
        answer = await router.client.get("/x")
        assert answer.text == "hello world"
        assert answer.headers["transfer-encoding"] == "chunked"


async def test_interim_answers_are_not_taken_for_the_answer(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def hints(wire: Wire, seen: Seen) -> None:
        await wire.raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        await asyncio.sleep(0.02)
        await wire.json({"ok": True})

    answer = await (await start_router(await start_backend(hints))).complete()
    assert answer.json() == {"ok": True}
    assert "link" not in answer.headers


async def test_trailers_stop_at_the_router(start_backend: StartBackend, start_router: StartRouter) -> None:
    async def with_trailer(wire: Wire, seen: Seen) -> None:
        await wire.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n")

    router = await start_router(await start_backend(with_trailer))
    for _ in range(2):
        answer = await router.client.get("/x")
        assert answer.text == "ab"
    assert len(router.router.core.upstream.connections) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: y\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: y\0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_is_none(head: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_response_head(head, to_head=False)


def test_an_answers_head_is_read() -> None:
    head = parse_response_head(
        b"HTTP/1.1 200 Fine\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n",
        to_head=False,
    )
    assert (head.status, head.framing, head.keep_alive) == (200, Framing.CHUNKED, True)
    assert head.start_line == b"HTTP/1.1 200 Fine\r\n"
    assert head.content_type == b"text/event-stream"
    assert head.lines == b"Content-Type: Text/Event-Stream; charset=utf-8\r\nX-End: 2\r\n"


async def test_a_hundred_megabytes_flow_through_in_bounded_memory(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    piece, count = b"x" * 1_000_000, 100
    most = 0

    async def flood(wire: Wire, seen: Seen) -> None:
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * count))
        for _ in range(count):
            await wire.raw(piece)

    router = await start_router(await start_backend(flood))
    reader, writer = await router.raw(b"{}", path="/file")
    held = 0
    await reader.readuntil(b"\r\n\r\n")
    while held < len(piece) * count:
        data = await reader.read(1 << 20)
        assert data
        held += len(data)
        for connection in router.server.connections:
            most = max(most, connection.unsent_bytes)
        if held % 7 == 0:
            await asyncio.sleep(0.001)
    assert most < 2_000_000
    await until(lambda: router.tally.finished == 1)
    writer.close()


async def test_a_backend_that_reads_slowly_slows_the_client_down(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    """A body above the cap waits with the client, not in the router's memory."""
    backend = await start_backend()
    gate, taken = asyncio.Event(), 0

    async def lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        while taken < 50_000_000:
            taken += len(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(lazy, "127.0.0.1", 0)
    router = await start_router(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", body_cap_bytes=1_000_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"POST /f HTTP/1.1\r\nhost: x\r\nx-api-key: client-key-1\r\ncontent-length: 50000000\r\n\r\n")
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent < 50_000_000:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    sending = asyncio.create_task(send())
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.2)
    assert sent < 25_000_000
    gate.set()
    async with asyncio.timeout(20):
        await sending
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    writer.close()
    server.close()
    assert not backend.seen
