"""How a router ends, in this process; `test_process` has the signals."""

from __future__ import annotations

import asyncio

from tuna_router.app import Router
from tuna_router.serving import Server, bind
from tuna_router.settings import Settings

from .conftest import until


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
