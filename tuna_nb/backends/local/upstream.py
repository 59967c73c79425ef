"""One HTTP exchange with an engine: a connection of its own, the answer handed on piece by piece as it arrives.

A connection per request costs nothing worth saving on loopback and keeps the rule simple that closing it cancels
the work. A broken answer is told from a finished one by its own framing, never by guess.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import httptools

from tuna_nb.backends.local.options import LOOPBACK

Header = tuple[bytes, bytes]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_READ: Final = 65536


class UpstreamBroken(Exception):
    """The engine went away, or spoke no HTTP, before its answer was complete."""


@dataclass
class _Collector:
    """What the parser has seen; httptools calls it."""

    headers: list[Header] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    has_head: bool = False
    complete: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.complete = True

    def take(self) -> bytes:
        taken = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        return taken


class Exchange:
    """A request under way. `async with await send(...)`: leaving the block closes the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str) -> None:
        self._reader = reader
        self._writer = writer
        self._is_head = method == "HEAD"
        self._seen = _Collector()
        self._parser = httptools.HttpResponseParser(self._seen)
        self.status = 0
        self.headers: list[Header] = []

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def _feed(self) -> bool:
        """Read once; False at the end of the stream."""
        try:
            data = await self._reader.read(_READ)
        except OSError as exc:
            raise UpstreamBroken(str(exc)) from exc
        if not data:
            return False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            raise UpstreamBroken(f"no HTTP: {exc}") from exc
        return True

    async def head(self) -> None:
        """Wait for the answer's head; fills `status` and `headers`. Raises UpstreamBroken."""
        while True:
            while not self._seen.has_head:
                if not await self._feed():
                    raise UpstreamBroken("closed before it answered")
            self.status = self._parser.get_status_code()
            if self.status >= 200:
                break
            # 100 Continue and its like are between engine and gateway; the answer is still to come.
            self._seen.headers.clear()
            self._seen.has_head = self._seen.complete = False
        self.headers = [h for h in self._seen.headers if h[0] not in HOP_BY_HOP]

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes in. Raises UpstreamBroken where it ends too soon."""
        if self._is_head or self.status in (204, 304):
            return
        framed = any(
            name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower())
            for name, value in self._seen.headers
        )
        while True:
            if self._seen.pieces:
                yield self._seen.take()
            if self._seen.complete:
                return
            if not await self._feed():
                if framed and not self._seen.complete:
                    raise UpstreamBroken("closed in the middle of its answer")
                if self._seen.pieces:
                    yield self._seen.take()
                return


async def send(port: int, method: str, target: bytes, headers: Sequence[Header], body: bytes) -> Exchange:
    """Open a connection to the engine on `port` and send the request. Raises UpstreamBroken."""
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError as exc:
        raise UpstreamBroken(f"can't connect: {exc}") from exc
    own = (b"host", b"content-length", b"expect")
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"host: %s:%d" % (LOOPBACK.encode(), port)]
    lines += [name + b": " + value for name, value in headers if name not in HOP_BY_HOP and name not in own]
    if body or method not in ("GET", "HEAD", "OPTIONS"):
        lines.append(b"content-length: %d" % len(body))
    lines += [b"connection: close", b"", b""]
    try:
        writer.write(b"\r\n".join(lines) + body)
        await writer.drain()
    except OSError:
        # An engine may answer (413, say) and close before it has read everything: look for its answer.
        pass
    except BaseException:  # cancelled, too: half a request must not stay on the wire
        writer.transport.abort()
        raise
    return Exchange(reader, writer, method)
