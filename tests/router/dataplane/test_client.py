"""A client's connection: what is read, in which order it is answered, and when it is kept."""

from __future__ import annotations

import asyncio

import pytest

from tuna_router.dataplane import client as client_module

from ..backends import Seen, Wire
from ..conftest import KEY, Running, StartBackend, StartRouter, until
from .test_request_head import REFUSED

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(router: Running) -> Streams:
    return await asyncio.open_connection("127.0.0.1", router.port)


def get(path: str = "/x", more: str = "", version: str = "1.1", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: x\r\nx-api-key: {KEY}\r\n{more}\r\n".encode()


async def read_answer(reader: asyncio.StreamReader, *, to_head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection, with a content-length or chunked."""
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        body = b""
        if not to_head and "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
    return int(head[0].split(" ")[1]), headers, body


async def ended(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(5):
        return await reader.read(1) == b""


async def echo(wire: Wire, seen: Seen) -> None:
    await wire.json({"target": seen.target, "length": len(seen.body)})


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_request_is_answered_closed_and_never_forwarded(
    start_backend: StartBackend, start_router: StartRouter, name: str
) -> None:
    status, wire = REFUSED[name]
    backend = await start_backend()
    router = await start_router(backend, no_auth=True)
    reader, writer = await connect(router)
    writer.write(wire + b"A" * 10 + get())
    answered, headers, body = await read_answer(reader)
    assert answered == status
    assert b'"invalid_request_error"' in body
    assert headers["connection"] == "close"
    assert await ended(reader)
    assert not backend.seen
    assert router.tally.started == 0
    writer.close()


async def test_requests_sent_all_at_once_are_answered_in_their_order(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def slower_first(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(0.05 if seen.target == "/0" else 0)
        await echo(wire, seen)

    router = await start_router(await start_backend(slower_first))
    reader, writer = await connect(router)
    post = get("/p", "content-length: 3\r\n", method="POST") + b"abc"
    chunked = get("/c", "transfer-encoding: chunked\r\n", method="POST") + b"2\r\nab\r\n0\r\n\r\n"
    writer.write(get("/0") + get("/router/health") + post + chunked + b"\r\n" + get("/4") + get("/refused")[:-2])
    for target in ("/0", None, "/p", "/c", "/4"):
        status, _, body = await read_answer(reader)
        assert status == 200
        assert target is None or f'"target": "{target}"'.encode() in body
    assert router.tally.finished == 4
    writer.close()


async def test_a_connection_is_kept_or_closed_as_the_client_asks(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(echo))
    for request, kept in (
        (get(), True),
        (get(more="connection: close\r\n"), False),
        (get(version="1.0"), False),
        (get(version="1.0", more="connection: keep-alive\r\n"), True),
    ):
        reader, writer = await connect(router)
        writer.write(request)
        _, headers, _ = await read_answer(reader)
        if kept:
            writer.write(get())
            assert (await read_answer(reader))[0] == 200
        else:
            assert headers["connection"] == "close"
            assert await ended(reader)
        writer.close()


async def test_an_http_1_0_client_gets_a_stream_without_chunks(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend())
    reader, writer = await connect(router)
    body = b'{"stream": true}'
    writer.write(get("/v1/completions", f"content-length: {len(body)}\r\n", "1.0", "POST") + body)
    async with asyncio.timeout(5):
        answer = await reader.read()
    head, _, text = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert text.startswith(b"data: ")
    assert text.endswith(b"data: [DONE]\n\n")
    writer.close()


async def test_a_body_is_asked_for_when_the_client_waits_to_be_asked(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend(echo)
    router = await start_router(backend)
    reader, writer = await connect(router)
    writer.write(get(more="content-length: 3\r\nexpect: 100-continue\r\n", method="POST"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    status, _, body = await read_answer(reader)
    assert (status, body) == (200, b'{"target": "/x", "length": 3}')
    assert "expect" not in backend.seen[0].headers
    writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await read_answer(reader))[0] == 401, "without a key nobody asks for the body"
    assert await ended(reader)
    writer.close()


async def test_the_answer_to_a_head_has_no_body_and_the_next_answer_is_not_taken_for_it(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def bodiless(wire: Wire, seen: Seen) -> None:
        body = b"" if seen.method == "HEAD" else b"12345"
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + body)

    backend = await start_backend(bodiless)
    router = await start_router(backend)
    reader, writer = await connect(router)
    writer.write(get(method="HEAD") + get("/router/health", method="HEAD") + get("/nothing-here") + get("/last"))
    for to_head in (True, True, False, False):
        status, _, body = await read_answer(reader, to_head=to_head)
        assert status == 200
        assert (body == b"12345") is not to_head
    assert backend.open_connections == 1
    writer.close()


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1\r\na: " + b"x" * 70_000, b"GET /" + b"x" * 70_000])
async def test_a_head_that_is_too_large_is_refused(start_router: StartRouter, request_line: bytes) -> None:
    router = await start_router()
    reader, writer = await connect(router)
    writer.write(request_line)
    assert (await read_answer(reader))[0] == 431
    writer.close()


@pytest.mark.parametrize("wire", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\nHost: x\n\n"])
async def test_what_can_not_become_a_head_is_refused_at_once(start_router: StartRouter, wire: bytes) -> None:
    router = await start_router()
    reader, writer = await connect(router)
    writer.write(wire)
    assert (await read_answer(reader))[0] == 400
    writer.close()


async def test_a_body_above_the_limit_is_refused(start_backend: StartBackend, start_router: StartRouter) -> None:
    backend = await start_backend(echo)
    router = await start_router(backend, body_cap_bytes=1000, body_limit_bytes=5000)
    for framing, body in (
        ("content-length: 5001\r\n", b"x" * 100),
        (
            "transfer-encoding: chunked\r\n",
            b"1000\r\n" + b"x" * 4096 + b"\r\n1000\r\n" + b"x" * 4096 + b"\r\n0\r\n\r\n",
        ),
    ):
        reader, writer = await connect(router)
        writer.write(get(more=framing, method="POST") + body)
        status, headers, answer = await read_answer(reader)
        assert (status, headers["connection"]) == (413, "close")
        assert b"body_too_large" in answer
        writer.close()
    await until(lambda: router.tally.running == 0)
    assert router.router.core.admission.in_flight == 0
    assert not backend.seen
    assert (await router.client.post("/x", content=b"x" * 5000)).json()["length"] == 5000


async def test_a_client_that_sends_its_head_slowly_is_told_so(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "HEAD_PATIENCE_S", 0.3)
    router = await start_router()
    reader, writer = await connect(router)
    writer.write(b"GET / HTTP/1.1\r\n")
    for _ in range(3):
        await asyncio.sleep(0.05)
        writer.write(b"a: b\r\n")  # more of it does not buy time
    assert (await read_answer(reader))[0] == 408
    assert await ended(reader)
    writer.close()


async def test_an_idle_connection_is_closed_after_a_while(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "KEEP_ALIVE_S", 0.2)
    router = await start_router()
    reader, writer = await connect(router)
    writer.write(get("/router/health"))
    assert (await read_answer(reader))[0] == 200
    assert await ended(reader)
    writer.close()


async def test_a_refusal_keeps_the_connection_where_the_body_is_short(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(echo))
    reader, writer = await connect(router)
    writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + get("/y"))
    assert (await read_answer(reader))[0] == 401
    assert (await read_answer(reader))[0] == 200
    writer.close()


async def test_a_malformed_chunk_in_the_middle_of_a_body_is_refused(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend(echo)
    router = await start_router(backend)
    reader, writer = await connect(router)
    writer.write(get(more="transfer-encoding: chunked\r\n", method="POST") + b"2\r\nab\r\n")
    await until(lambda: router.tally.running == 1)
    writer.write(b"-1\r\n")
    assert (await read_answer(reader))[0] == 400
    assert not backend.seen
    assert router.tally.cancelled == 1
    writer.close()


async def test_what_is_said_to_a_client_that_is_gone_reaches_nobody_else(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(echo))
    _, gone = await connect(router)
    await until(lambda: len(router.router.connections) == 1)
    (connection,) = router.router.connections
    gone.close()
    await until(lambda: not router.router.connections)
    others = [await connect(router) for _ in range(5)]  # one of them has the number of the descriptor now
    await until(lambda: len(router.router.connections) == 5)
    connection.write(b"somebody's tokens")
    connection.put_rest(b"more of them")
    assert connection.descriptor < 0
    for reader, writer in others:
        writer.write(get())
        assert (await read_answer(reader))[0] == 200
        writer.close()


async def test_it_listens_on_ipv6(start_backend: StartBackend) -> None:
    from tuna_router.serving import bind, local_url

    with bind("::1", 0) as sock:
        assert local_url("::", sock.getsockname()[1]).startswith("http://[::1]:")
