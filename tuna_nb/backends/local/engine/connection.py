"""HTTP/1.1 on a socket: requests in, answers out, and every way in which a connection can end.

A server of its own instead of ASGI because the engine must be able to reset a connection or cut an answer short
on order, must know at once that a client has gone, and must start within a fraction of a second. Headers look
like uvicorn's, which is what vLLM runs on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol

import httptools


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool
    chunks_allowed: bool
    """False for HTTP/1.0, where an answer of unknown length ends with the connection."""


class Handler(Protocol):
    """What answers a request: it calls the exchange's methods, now or later."""

    def __call__(self, request: HttpRequest, exchange: Exchange, /) -> None: ...


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


class Exchange:
    """The answer to one request. After the client has gone, everything here does nothing."""

    __slots__ = ("_chunked", "_connection", "_request", "on_disconnect", "open")

    def __init__(self, connection: Connection, request: HttpRequest) -> None:
        self._connection = connection
        self._request = request
        self._chunked = False
        self.open = True
        self.on_disconnect: Callable[[], None] | None = None

    def reply(
        self, status: int, body: bytes, content_type: str | None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """A whole answer at once."""
        if not self.open:
            return
        if content_type is not None:
            headers = (*headers, ("content-type", content_type))
        head = self._head(status, (("content-length", str(len(body))), *headers))
        self._connection.write(head if self._request.method == "HEAD" else head + body)
        self._finish()

    def start(self, content_type: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Status 200 and the headers of an answer whose body follows in pieces; they go out now."""
        if not self.open:
            return
        self._chunked = self._request.chunks_allowed
        length = (("transfer-encoding", "chunked"),) if self._chunked else ()
        self._connection.write(self._head(200, (*headers, ("content-type", content_type), *length)))

    def send(self, data: bytes) -> None:
        """The next piece of the body, as an HTTP chunk of its own."""
        if self.open:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        """The clean end of a body in pieces."""
        if self.open:
            if self._chunked:
                self._connection.write(b"0\r\n\r\n")
            self._finish()

    def cut(self) -> None:
        """Close the connection with the body unfinished."""
        if self.open:
            self.open = False
            self._connection.close()

    def reset(self) -> None:
        """Reset the connection: the client's next read fails."""
        if self.open:
            self.open = False
            self._connection.reset()

    def _head(self, status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {_REASONS.get(status, '')}",
            f"date: {_date()}",
            "server: uvicorn",
            "vary: Origin",
        ]
        lines += [f"{name}: {value}" for name, value in headers]
        if not self._request.keep_alive:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _finish(self) -> None:
        self.open = False
        chunked_or_sized = self._chunked or self._request.chunks_allowed
        self._connection.exchange_done(keep=self._request.keep_alive and chunked_or_sized)

    def lost(self) -> None:
        """The client has gone; called by the connection, once."""
        if self.open:
            self.open = False
            if self.on_disconnect is not None:
                self.on_disconnect()


class Connection(asyncio.Protocol):
    """One client's connection. Requests are answered one after the other; pipelined ones wait."""

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._queue: deque[HttpRequest] = deque()
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._connections.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        self._queue.clear()
        if self._exchange is not None:
            self._exchange.lost()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.close()

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path = self._url.split(b"?", 1)[0].decode("latin-1")
        request = HttpRequest(
            method=self._parser.get_method().decode("ascii"),
            path=path,
            headers=self._headers,
            body=b"".join(self._body),
            keep_alive=self._parser.should_keep_alive(),
            chunks_allowed=self._parser.get_http_version() != "1.0",
        )
        if self._exchange is None:
            self._answer(request)
        else:
            self._queue.append(request)

    def _answer(self, request: HttpRequest) -> None:
        self._exchange = Exchange(self, request)
        self._handler(request, self._exchange)

    def exchange_done(self, *, keep: bool) -> None:
        """The current answer is complete; the next request of the client may be answered."""
        self._exchange = None
        if not keep:
            self.close()
        elif self._queue:
            self._answer(self._queue.popleft())

    def write(self, data: bytes) -> None:
        """Send bytes, if the client is still there."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Close after what was written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close with a TCP reset; what was written may be lost."""
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            # Linger of zero seconds makes the kernel send RST instead of FIN.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


_date_at = 0
_date_text = ""


def _date() -> str:
    global _date_at, _date_text
    now = int(time.time())
    if now != _date_at:
        _date_at, _date_text = now, formatdate(now, usegmt=True)
    return _date_text
