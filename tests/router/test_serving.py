"""How a router ends, in this process; `test_process` has the signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from tuna_router.app import Router
from tuna_router.serving import Server, bind
from tuna_router.settings import Settings

from .conftest import until


async def ended(router: Router, server: Server, *, signals: int = 1) -> None:
    """Serve and stop; returns when it has ended."""
    sock = bind("127.0.0.1", 0)
    await router.start()
    task = asyncio.create_task(server.serve(sock))
    await asyncio.sleep(0)
    server.stop()
    for _ in range(signals - 1):
        await asyncio.sleep(0.05)
        server.stop()
    async with asyncio.timeout(5):
        await task
    await router.stop()


async def test_what_is_to_be_done_before_the_end_is_done_while_streams_run_and_nothing_more_is_accepted() -> None:
    router, sock, seen = Router(Settings(), open_door=True), bind("127.0.0.1", 0), list[str]()
    port = sock.getsockname()[1]
    go_on = asyncio.Event()

    async def move_streams() -> None:
        seen.append(f"{len(server.connections)} connected")
        with contextlib.suppress(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
            seen.append("accepted")
        await go_on.wait()
        seen.append("moved")

    server = Server(router, 5, move_streams)
    await router.start()
    task = asyncio.create_task(server.serve(sock))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n")
    await until(lambda: router.core.admission.in_flight == 1)
    server.stop()
    await until(lambda: bool(seen))
    assert not task.done()
    go_on.set()
    writer.close()
    async with asyncio.timeout(5):
        await task
    assert seen == ["1 connected", "moved"]
    await router.stop()


async def test_a_reader_of_events_does_not_hold_it_up() -> None:
    router, sock = Router(Settings(), open_door=True), bind("127.0.0.1", 0)
    server = Server(router, 600)
    port = sock.getsockname()[1]
    await router.start()
    task = asyncio.create_task(server.serve(sock))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /router/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await until(lambda: len(router.core.events.listeners) == 1)
    server.stop()
    async with asyncio.timeout(5):
        assert (await reader.read()).endswith(b"\r\n0\r\n\r\n"), "a clean end"
        await task
    writer.close()
    await router.stop()


@pytest.mark.parametrize(("timeout_s", "signals"), [(0.2, 1), (600.0, 2)])
async def test_what_is_to_be_done_before_the_end_does_not_hold_it_up(timeout_s: float, signals: int) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    router = Router(Settings(), open_door=True)
    await ended(router, Server(router, timeout_s, forever), signals=signals)


async def test_what_fails_before_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("no backend to move to")

    router = Router(Settings(), open_door=True)
    with caplog.at_level(logging.ERROR):
        await ended(router, Server(router, 5, fail))
    assert "no backend to move to" in caplog.text
