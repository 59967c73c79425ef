"""A router in this process on a free port, backends on free ports, and a client."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from tuna_router.app import Router
from tuna_router.auth import sha256_hex
from tuna_router.books.meter import Tally
from tuna_router.serving import Server, bind
from tuna_router.settings import Settings, parse_settings

from .backends import Backend, Handler, ok

KEY = "client-key-1"
QUICK: dict[str, Any] = {
    "probe_interval_s": 0.05,
    "replicas_interval_s": 0.05,
    "cooldown_s": 0.2,
    "connect_timeout_s": 2,
}


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that must become true; fails when it does not."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Running:
    """A served router and a client of it."""

    def __init__(self, router: Router, server: Server, port: int) -> None:
        self.router = router
        self.server = server
        self.port = port
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {KEY}"},
            timeout=10,
            trust_env=False,
            verify=False,
        )

    @property
    def tally(self) -> Tally:
        return self.router.core.meter.requests

    def state(self, name: str = "spot") -> str:
        return self.router.core.fleet[name].state_name

    async def complete(self, **more: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "m", "prompt": "p", **more})

    async def raw(
        self, body: bytes, *, path: str = "/v1/completions"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request on a bare socket, for tests that watch single bytes or hang up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return reader, writer


class StartBackend(Protocol):
    """Starts a backend that answers with a handler."""

    def __call__(self, handler: Handler = ok, probe: Handler | None = None) -> Awaitable[Backend]: ...


class StartRouter(Protocol):
    """Starts a router over backends."""

    def __call__(
        self,
        serverless: Backend | str | None = None,
        spot: Backend | str | None = None,
        *,
        ready: bool = True,
        save_to: Path | None = None,
        no_auth: bool = False,
        **settings: Any,
    ) -> Awaitable[Running]: ...


@pytest.fixture
async def start_backend() -> AsyncIterator[StartBackend]:
    started: list[Backend] = []

    async def start(handler: Handler = ok, probe: Handler | None = None) -> Backend:
        backend = Backend(handler, probe)
        await backend.start()
        started.append(backend)
        return backend

    yield start
    for backend in started:
        await backend.stop()


@pytest.fixture
async def start_router() -> AsyncIterator[StartRouter]:
    stops: list[Callable[[], Awaitable[None]]] = []

    async def start(
        serverless: Backend | str | None = None,
        spot: Backend | str | None = None,
        *,
        ready: bool = True,
        save_to: Path | None = None,
        no_auth: bool = False,
        **settings: Any,
    ) -> Running:
        backends = settings.pop("backends", None)
        if backends is None:
            backends = [
                {"name": kind, "kind": kind, "url": each if isinstance(each, str) else each.url}
                for kind, each in (("serverless", serverless), ("spot", spot))
                if each is not None
            ]
        values = {"api_key_sha256": [sha256_hex(KEY)], "backends": backends, **QUICK, **settings}
        router = Router(parse_settings(values), open_door=no_auth, save_to=save_to)
        sock = bind("127.0.0.1", 0)
        server = Server(router, 2)
        running = Running(router, server, sock.getsockname()[1])
        await router.start()
        task = asyncio.create_task(server.serve(sock))

        async def stop() -> None:
            await running.client.aclose()
            server.stop()
            server.stop()
            await task
            await router.stop()

        stops.append(stop)
        if isinstance(spot, Backend) and ready:
            await until(lambda: running.state() == "READY")
        return running

    yield start
    for stop in stops:
        await stop()


@pytest.fixture
def settings() -> Settings:
    """Settings with one client key."""
    return dataclasses.replace(Settings(), api_key_sha256=(sha256_hex(KEY),))
