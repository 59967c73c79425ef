"""A TCP proxy between the router and an engine that counts a stream's events, and resets it where it is told to."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType

_ID = re.compile(rb"\r\nx-request-id: ([^\r]+)\r\n")
_READ_S = 0.02


@dataclass
class Plan:
    """What the proxies in front of several engines share, by request id.

    cuts: after how many events a request's first answer is reset. Taken out when that is done: the answer to the
    request for the rest comes through. events: how many events each answer of a request had, in their order.
    """

    cuts: dict[str, int] = field(default_factory=dict)
    events: dict[str, list[int]] = field(default_factory=dict)

    def began(self, request: str) -> bool:
        """Whether an event of its answer came."""
        return any(self.events.get(request, ()))


class Cutter:
    """`async with Cutter(port, plan) as cutter:` stands before the engine on that port, at `cutter.url`."""

    def __init__(self, engine_port: int, plan: Plan) -> None:
        self._engine_port = engine_port
        self._plan = plan
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Cutter:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            engine_reader, engine = await asyncio.open_connection("127.0.0.1", self._engine_port)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        link = _Link(self._plan)
        there = asyncio.create_task(link.requests(reader, engine))
        back = asyncio.create_task(link.answers(engine_reader, writer))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            for each in (there, back):
                each.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            for end in (writer, engine):
                end.close()
            self._tasks.discard(task)


class _Link:
    """One connection of the router and one to the engine. `_request` is the id of the request that is on it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._request = ""
        self._last = b""

    async def requests(self, reader: asyncio.StreamReader, engine: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if found := _ID.search(data):
                self._request = found[1].decode()
                self._plan.events.setdefault(self._request, []).append(0)
            engine.write(data)

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            counts = self._plan.events.get(self._request)
            if counts is None:
                writer.write(data)
                continue
            cut = self._plan.cuts.get(self._request)
            if cut is not None and (end := self._end(data, cut - counts[-1])) is not None:
                del self._plan.cuts[self._request]
                writer.write(data[:end])
                counts[-1] = cut
                # A reset overtakes what its receiver has not read yet.
                await asyncio.sleep(_READ_S)
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return
            counts[-1] += (self._last + data).count(b"\n\n")
            self._last = data[-1:] if not data.endswith(b"\n\n") else b""
            writer.write(data)

    def _end(self, data: bytes, events: int) -> int | None:
        """Where in `data` so many more events end; None when they are not all in it."""
        at = 0
        for _ in range(events):
            found = (self._last + data).find(b"\n\n", at)
            if found < 0:
                return None
            at = found + 2
        return max(at - len(self._last), 0) if events > 0 else 0
