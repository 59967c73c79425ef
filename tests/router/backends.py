"""A backend on a real socket whose every byte a test decides."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_probe(self) -> bool:
        return self.target in ("/health", "/v1/models") or b'"prompt": "Hi"' in self.body

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Wire:
    """The server's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def json(self, value: object, status: int = 200, headers: str = "") -> None:
        body = json.dumps(value).encode()
        await self.raw(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n".encode()
            + f"content-length: {len(body)}\r\n{headers}\r\n".encode()
            + body
        )

    async def stream_head(self, headers: str = "") -> None:
        await self.raw(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            + f"transfer-encoding: chunked\r\n{headers}\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def token(self, text: str, finish: str | None = None) -> None:
        await self.chunk(
            b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": finish}]}).encode() + b"\n\n"
        )

    async def event(self, value: object) -> None:
        await self.chunk(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")

    async def done(self) -> None:
        await self.chunk(b"data: [DONE]\n\n")
        await self.raw(b"0\r\n\r\n")

    def reset(self) -> None:
        """An RST, not a FIN: what a killed machine's peer sees."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def vanish(self) -> None:
        """What the peer of a machine without power sees: nothing. Whatever comes here is dropped before the kernel
        acknowledges it (a socket filter that takes no byte; Linux). Returns when the connection is ended."""
        nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(nothing))
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        await asyncio.Event().wait()

    def close(self) -> None:
        self.writer.close()

    async def closed_by_peer(self) -> bool:
        """Waits until the router closes its end; False if it sends something instead."""
        try:
            async with asyncio.timeout(5):
                return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True


Handler = Callable[[Wire, Seen], Awaitable[None]]


async def ok(wire: Wire, seen: Seen) -> None:
    """A short good answer."""
    if seen.body and json.loads(seen.body).get("stream"):
        await wire.stream_head()
        for text in ("one", " two"):
            await wire.token(text)
        await wire.token(" three", "length")
        await wire.done()
        return
    await wire.json({"choices": [{"text": "hi"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


SO_ATTACH_FILTER = 26


@dataclass
class Backend:
    """Answers probes well and everything else by `handler`."""

    handler: Handler = ok
    probe_handler: Handler | None = None
    seen: list[Seen] = field(default_factory=list)
    probes: list[Seen] = field(default_factory=list)
    port: int = 0
    open_connections: int = 0
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    connections: list[asyncio.StreamWriter] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self.host, self.port, ssl=self.tls, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """The port is refused from here on, and every open connection is reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open_connections += 1
        self.connections.append(writer)
        wire = Wire(reader, writer)
        try:
            while not writer.is_closing() and (seen := await _read(reader)) is not None:
                if seen.is_probe:
                    self.probes.append(seen)
                    await (self.probe_handler or _probe)(wire, seen)
                else:
                    self.seen.append(seen)
                    await self.handler(wire, seen)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            wire.reset()
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()


async def _probe(wire: Wire, seen: Seen) -> None:
    if seen.target == "/health":
        await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    elif seen.target == "/v1/models":
        await wire.json({"data": [{"id": "m"}]})
    else:
        await wire.json({"choices": [{"text": "x"}]})


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    line = await reader.readline()
    if not line:
        return None
    method, target, _ = line.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return Seen(method, target, headers, body)
