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
    request for the rest comes through. holds: after how many events the rest is kept back, until the engine ends;
    then the router gets the end as the engine made it, as if it had come right there. events: how many events each
    answer of a request had at the engine, in their order.
    """

    cuts: dict[str, int] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    events: dict[str, list[int]] = field(default_factory=dict)

    def began(self, request: str, events: int = 1) -> bool:
        """Whether so many events of its first answer came."""
        return self.events.get(request, [0])[0] >= events


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
        plan = self._plan
        while data := await reader.read(65536):
            counts = plan.events.get(self._request)
            if counts is None:
                writer.write(data)
                continue
            cut = plan.cuts.get(self._request)
            if cut is not None and (end := self._end(data, cut - counts[-1])) is not None:
                del plan.cuts[self._request]
                await _reset(writer, data[:end])
                return
            hold = plan.holds.get(self._request)
            if hold is not None and (end := self._end(data, hold - counts[-1])) is not None:
                self._count(counts, data)
                writer.write(data[:end] + b"\r\n")
                await self._keep_back(counts, data[end:], reader, writer)
                return
            self._count(counts, data)
            writer.write(data)

    async def _keep_back(
        self, counts: list[int], kept: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Read on. An engine that dies tells its error in a chunk of its own; one that is dead tells nothing."""
        while data := await reader.read(65536):
            self._count(counts, data)
            kept += data
            if (error := kept.find(b'data: {"error"')) >= 0:
                writer.write(kept[kept.rfind(b"\r\n", 0, error - 2) + 2 :])
                kept = b""
                while data := await reader.read(65536):
                    writer.write(data)

    def _count(self, counts: list[int], data: bytes) -> None:
        counts[-1] += (self._last + data).count(b"\n\n")
        self._last = data[-1:] if not data.endswith(b"\n\n") else b""

    def _end(self, data: bytes, events: int) -> int | None:
        """Where in `data` so many more events end; None when they are not all in it."""
        at = 0
        for _ in range(events):
            found = (self._last + data).find(b"\n\n", at)
            if found < 0:
                return None
            at = found + 2
        return max(at - len(self._last), 0)


async def _reset(writer: asyncio.StreamWriter, last: bytes) -> None:
    """Send these bytes and an RST, which overtakes what its receiver has not read yet: so a little later."""
    writer.write(last)
    await asyncio.sleep(_READ_S)
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
