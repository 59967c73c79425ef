"""A pretend provider: its API over loopback, in a thread with a loop of its own, as strict as the real one is known
to be. The adapter under test, or the provider's own SDK in it, talks to it over a socket and can't tell."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from tests.fakes.faults import Faults
from tests.fakes.platform import Platform, answer

T = TypeVar("T")


class FakeCloud:
    """`with FakeRunpod() as cloud:` runs one; `cloud.url` is its API's base.

    Subclasses give `routes()`, or take `open()` and `shut()` over where the API is no HTTP.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on its loop, from the test's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def routes(self) -> list[BaseRoute]:
        """Of its API."""
        return []

    async def open(self) -> None:
        """Begin to listen; sets `url`."""
        self._app = Starlette(routes=self.routes())
        self._server = uvicorn.Server(
            uvicorn.Config(self._http, port=0, lifespan="off", log_level="error", ws="none", interface="asgi3")
        )
        self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.002)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def shut(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        await self._serving

    async def _open(self) -> None:
        self.platform = Platform()
        await self.open()

    async def _shut(self) -> None:
        await self.shut()
        await self.platform.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        fault = self.faults.take(f"{scope['method']} {scope['path']}")
        if fault is None:
            await self._app(scope, receive, send)
            return
        if fault.acts:

            async def unheard(message: Any) -> None:
                """The answer that gets lost."""

            await self._app(scope, receive, unheard)
        if fault.hangs:
            await self.faults.hang()
        if fault.hangs or fault.drops:
            headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
        else:
            await answer(send, fault.status, fault.body, fault.headers)
