"""What must not get through, over real sockets: headers, keys, odd requests, slow ones, too many."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest

from tuna_router.auth import sha256_hex
from tuna_router.dataplane import client as intake
from tuna_router.fleet.urls import is_metadata_service

from .backends import Seen, Wire
from .conftest import KEY, Running, StartBackend, StartRouter, until


async def exchange(router: Running, data: bytes, timeout_s: float = 10.0) -> bytes:
    """What comes back for these bytes, until the router closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    finally:
        writer.close()


def request(lines: str, body: bytes = b"", target: str = "/v1/completions", method: str = "POST") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n{lines}\r\n"
    return head.encode() + body


async def test_hop_by_hop_and_nominated_headers_and_every_credential_of_the_client_stop_here(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend, keys=[{"name": "a", "sha256": sha256_hex("other")}])
    raw = (
        "POST /v1/completions?trace=1 HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {KEY}\r\nX-Copy: {KEY}\r\nProxy-Authorization: Basic abc\r\n"
        "Connection: close, X-Private, keep-alive, te\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n"
        "TE: trailers\r\nTrailer: X-After\r\nProxy-Connection: keep-alive\r\nX-Kept: yes\r\ntraceparent: 00-1-2-03\r\n"
        "Content-Length: 2\r\n\r\n{}"
    )
    assert (await exchange(router, raw.encode())).startswith(b"HTTP/1.1 200 ")
    got = backend.seen[0].headers
    assert got["x-kept"] == "yes"
    assert got["traceparent"] == "00-1-2-03"
    assert not got.keys() & {
        "authorization",
        "x-copy",
        "proxy-authorization",
        "connection",
        "x-private",
        "keep-alive",
        "te",
        "trailer",
        "proxy-connection",
        "x-api-key",
    }
    assert KEY not in str(got) + backend.seen[0].target


async def test_a_backends_credentials_go_to_it_alone_and_its_hop_by_hop_headers_stop_here(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def answer(wire: Wire, seen: Seen) -> None:
        await wire.raw(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"
            b"connection: keep-alive, x-internal\r\nx-internal: secret\r\nkeep-alive: timeout=5\r\n"
            b"proxy-authenticate: Basic\r\nx-tuna-backend: spoofed\r\nx-request-id: spoofed\r\nx-kept: yes\r\n\r\n{}"
        )

    first, second = await start_backend(answer), await start_backend(answer)
    router = await start_router(
        backends=[
            {"name": "a", "kind": "serverless", "url": first.url, "headers": {"authorization": "Bearer of-a"}},
            {"name": "b", "kind": "serverless", "url": second.url, "headers": {"x-b": "of-b"}},
        ]
    )
    answers = [await router.complete() for _ in range(2)]
    await first.stop()
    answers.append(await router.complete())
    assert {seen.headers.get("authorization") for seen in first.seen} == {"Bearer of-a"}
    for seen in second.seen:
        assert seen.headers["x-b"] == "of-b"
        assert "authorization" not in seen.headers
    for got in answers:
        assert got.headers["x-kept"] == "yes"
        assert got.headers["x-tuna-backend"] in ("a", "b")
        assert got.headers["x-request-id"] != "spoofed"
        assert not got.headers.keys() & {"x-internal", "proxy-authenticate", "keep-alive"}
        assert "of-a" not in str(got.headers)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (f"GET http://example.com/ HTTP/1.1\r\nhost: example.com\r\nx-api-key: {KEY}\r\n\r\n", 400),
        (f"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\nx-api-key: {KEY}\r\n\r\n", 405),
        (f"GET //example.com HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n", 200),
        (
            f"GET /v1/x HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            501,
        ),
    ],
)
async def test_it_is_no_open_proxy(
    start_backend: StartBackend, start_router: StartRouter, data: str, status: int
) -> None:
    backend = await start_backend()
    router = await start_router(backend)
    assert (await exchange(router, data.encode())).startswith(f"HTTP/1.1 {status} ".encode())
    # What looks like another host is a path: it went to the one configured backend, or nowhere.
    assert [seen.headers["host"] for seen in backend.seen] == [f"127.0.0.1:{backend.port}"] * (status == 200)


async def test_what_is_too_large_is_refused_before_and_while_it_comes(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend, body_limit_bytes=1000, body_cap_bytes=1000)
    assert b" 413 " in (await exchange(router, request("content-length: 1001\r\n")))[:20]
    chunks = b"".join(b"64\r\n" + b"x" * 100 + b"\r\n" for _ in range(11))
    assert b" 413 " in (await exchange(router, request("transfer-encoding: chunked\r\n", chunks)))[:20]
    assert b" 431 " in (await exchange(router, request(f"x-long: {'x' * 70_000}\r\n", method="GET")))[:20]
    many = "".join(f"x-{number}: 1\r\n" for number in range(201))
    assert b" 431 " in (await exchange(router, request(many, method="GET")))[:20]
    assert not backend.seen
    assert router.router.core.admission.in_flight == 0
    assert (await router.complete()).status_code == 200


async def test_a_head_that_is_dripped_is_ended_though_it_never_stands_still(
    start_backend: StartBackend, start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "HEAD_PATIENCE_S", 0.3)
    router = await start_router(await start_backend())
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)

    async def drip() -> None:
        for byte in b"GET /v1/x HTTP/1.1\r\nx-slow: " + b"x" * 10_000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()
    writer.close()
    await until(lambda: not router.server.connections)


async def test_a_backend_that_drips_its_answer_is_given_up_in_time(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def drip(wire: Wire, seen: Seen) -> None:
        for byte in b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-slow: " + b"x" * 10_000:
            await wire.raw(bytes([byte]))
            await asyncio.sleep(0.01)

    slow = await start_backend(drip)
    router = await start_router(slow, first_byte_timeout_s=0.5)
    async with asyncio.timeout(5):
        answer = await router.complete()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


async def test_above_the_limit_of_connections_one_is_told_so_and_those_that_are_there_go_on(
    start_backend: StartBackend, start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuna_router.serving.most_connections", lambda: 2)
    router = await start_router(await start_backend())
    idle = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(2)]
    await until(lambda: len(router.server.connections) == 2)
    with pytest.raises(httpx.HTTPError):  # a client that writes to what is being closed may see a reset
        (await router.client.get("/router/health")).raise_for_status()
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    async with asyncio.timeout(5):
        assert b"connection_limit" in await reader.read()
    writer.close()
    idle[0][1].write(request("", method="GET", target="/router/health"))
    async with asyncio.timeout(5):
        assert (await idle[0][0].read()).startswith(b"HTTP/1.1 200 ")
    for _, held in idle:
        held.close()
    await until(lambda: not router.server.connections)
    assert (await router.client.get("/router/health")).status_code == 200


async def test_a_body_that_is_dripped_is_ended_at_the_requests_deadline_though_it_never_stands_still(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(), request_timeout_s=0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(request("content-length: 100000\r\n"))

    async def drip() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    assert router.router.core.admission.in_flight == 0
    dripping.cancel()
    writer.close()


async def test_what_a_providers_front_tells_browsers_stops_here_and_so_do_the_clients_cookies(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def answer(wire: Wire, seen: Seen) -> None:
        place = seen.target.partition("?")[2]
        await wire.raw(
            b"HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\nSet-Cookie: a=1\r\nServer: front\r\n"
            b"Via: 1.1 x\r\nAlt-Svc: h3\r\nStrict-Transport-Security: max-age=1\r\nWWW-Authenticate: Basic\r\n"
            b"Proxy-Status: x\r\nClear-Site-Data: *\r\nx-kept: yes\r\nLocation: " + place.encode() + b"\r\n\r\n"
        )

    backend = await start_backend(answer)
    router = await start_router(backend)
    places = {
        "/v1/other": "/v1/other",
        "https://files.example/x": "https://files.example/x",
        f"http://127.0.0.1:{backend.port}/v1/x": None,
        "//127.0.0.1/x": None,
        "http://[bad": "http://[bad",
    }
    for place, shown in [*places.items(), *places.items()]:
        data = f"GET /x?{place} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncookie: session=1\r\nconnection: close\r\n\r\n"
        head = (await exchange(router, data.encode())).decode().lower().split("\r\n\r\n")[0]
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        assert lines.pop("location", None) == shown, place
        assert lines.keys() == {
            "content-length",
            "x-kept",
            "x-tuna-backend",
            "x-tuna-attempts",
            "x-request-id",
            "connection",
        }
    assert all("cookie" not in seen.headers for seen in backend.seen)


async def test_when_bodies_fill_their_memory_new_ones_flow_through_and_are_sent_once(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(backend, body_memory_bytes=250_000)
    bodies, size = router.router.core.bodies, 400_000
    part = b'{"model": "m", "prompt": "' + b"x" * 99_974
    held = []
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(request(f"content-length: {size}\r\n"))
        await writer.drain()
        held.append((reader, writer))
    for number, (_, writer) in enumerate(held):
        writer.write(part)
        await until(lambda number=number: bodies.held == (number + 1) * len(part))
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    whole = part + b"x" * (size - len(part) - 2) + b'"}'
    writer.write(request(f"content-length: {size}\r\n") + whole)
    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert backend.seen[0].body == whole
    assert bodies.flowed == 1
    assert bodies.held == 2 * len(part)
    exposed = (await router.client.get("/metrics")).text
    assert "tuna_router_bodies_flowed_total 1.0" in exposed
    assert f"tuna_router_body_bytes {2.0 * len(part)}" in exposed
    # One ends, the other goes away: nothing is held any more.
    held[0][1].write(whole[len(part) : 200_000])
    held[1][1].close()
    await until(lambda: bodies.held == 200_000)
    held[0][1].write(whole[200_000:])
    async with asyncio.timeout(5):
        assert (await held[0][0].read()).startswith(b"HTTP/1.1 200 ")
    held[0][1].close()
    assert bodies.held == 0
    assert backend.seen[-1].body == whole


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("http://169.254.169.254/latest", True),
        ("http://[fd00:ec2::254]", True),
        ("http://[::ffff:169.254.169.254]", True),
        ("http://metadata.google.internal.", True),
        ("http://100.100.100.200", True),
        ("http://10.0.0.1:8000", False),
        ("https://metadata.example.com", False),
        ("http://127.0.0.1", False),
    ],
)
def test_a_metadata_service_is_known(url: str, is_one: bool) -> None:
    assert is_metadata_service(url) is is_one


async def test_a_metadata_service_as_backend_is_warned_of(
    start_router: StartRouter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await start_router(backends=[{"name": "odd", "kind": "serverless", "url": "http://169.254.169.254"}])
    assert "backend odd is a metadata service" in caplog.text
