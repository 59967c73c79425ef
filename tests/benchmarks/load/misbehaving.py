"""A server on a real socket that does what a test says: each request is answered by a function of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return chunk(f"data: {json.dumps({'id': 'c', 'choices': [choice]})}\n\n".encode())


TOKEN = event({"content": " word"})
END = (
    event({}, "stop")
    + chunk(b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n')
    + chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
WHOLE = STREAM + b"\r\n" + event({"role": "assistant", "content": ""}) + TOKEN * 3 + END


def json_answer(status: str, body: Any) -> bytes:
    text = json.dumps(body).encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status.encode(),
        len(text),
        text,
    )


@dataclass
class Request:
    """One request: its number over all connections, and on its own."""

    number: int
    on_connection: int
    head: bytes
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the other side is gone, or the test is over."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


Answer = Callable[[Request], Awaitable[None]]


class Misbehaving:
    """url: with /v1. seen: the requests that came whole."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._over = asyncio.Event()
        self.seen: list[Request] = []
        self.connections = 0
        self.url = ""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        on_connection = 0
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                body = json.loads(await reader.readexactly(length)) if length else {}
                request = Request(len(self.seen), on_connection, head, body, writer, self._over)
                self.seen.append(request)
                on_connection += 1
                await self._answer(request)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def misbehaving(answer: Answer, host: str = "127.0.0.1") -> AsyncIterator[Misbehaving]:
    """Such a server, until the end of the block."""
    behind = Misbehaving(answer)
    server = await asyncio.start_server(behind.connected, host, 0)
    port = server.sockets[0].getsockname()[1]
    behind.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    try:
        yield behind
    finally:
        behind._over.set()
        server.close()


async def whole(request: Request) -> None:
    """As it should be."""
    await request.send(WHOLE)
