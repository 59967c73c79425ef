"""Connections to backends. The only module that knows by which library they are made.

It is httpcore itself rather than httpx over it: a proxy wants none of what the client adds (default
headers, a cookie jar, redirects, proxies from the environment, a log line a request), and a start
without it is a third shorter.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

import certifi
import httpcore

from tuna_router.dataplane.headers import Headers
from tuna_router.settings import BackendSettings

_KEPT_CONNECTIONS: Final = 1024
# Below the 5 s after which uvicorn, and so vLLM, closes an idle connection.
_KEPT_S: Final = 4.0
_BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})


class BackendLost(Exception):
    """No answer, or half of one. `reason` is for people and names no address.

    `gone`: nobody is there. `again`: a second connection may do better.
    """

    def __init__(self, reason: str, *, gone: bool, again: bool = False, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.gone = gone
        self.again = again
        self.timed_out = timed_out


class Response:
    """An answer whose head is there; `pieces` is the body as it comes off the wire, one piece a read."""

    def __init__(self, inner: httpcore.Response) -> None:
        self.status = inner.status
        self.headers: Headers = inner.headers
        self.pieces = self._read(inner)
        self._inner = inner

    async def aclose(self) -> None:
        """Give the connection back, or close it where the body was not read to its end."""
        await self._inner.aclose()

    @staticmethod
    async def _read(inner: httpcore.Response) -> AsyncIterator[bytes]:
        assert isinstance(inner.stream, AsyncIterable)
        try:
            async for piece in inner.stream:
                yield piece
        except _ERRORS as error:
            raise _lost(error) from error


@dataclass(frozen=True, slots=True)
class _Origin:
    """A backend's URL, taken apart."""

    scheme: bytes
    host: bytes
    port: int | None
    path: bytes
    host_header: bytes


class Upstream:
    """The pooled connections of one router; TLS is set up when first needed."""

    def __init__(self) -> None:
        self._plain = _Pool(None)
        self._tls: httpcore.AsyncConnectionPool | None = None

    async def open(
        self,
        backend: BackendSettings,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        content: bytes | AsyncIterator[bytes],
        *,
        connect_timeout_s: float,
    ) -> Response:
        """Send a request and return when the answer's head is there; the caller closes it.

        `target` is path and query as the client wrote them. Has no deadline of its own but that for
        connecting. Raises BackendLost.
        """
        return await self._send(
            backend.url, method, target, headers, content, connect_timeout_s=connect_timeout_s, join=True
        )

    async def fetch(
        self,
        backend: BackendSettings,
        method: str,
        url: str,
        body: bytes = b"",
        *,
        timeout_s: float,
        cap_bytes: int = 1024 * 1024,
    ) -> tuple[int, bytes]:
        """The status and body of a small request of our own, with the backend's headers.

        Raises TimeoutError, BackendLost, or ValueError when the answer is above `cap_bytes`.
        """
        headers = [(name.encode(), value.encode()) for name, value in backend.headers.items()]
        if body:
            headers.append((b"content-type", b"application/json"))
        async with asyncio.timeout(timeout_s):
            response = await self._send(url, method, b"", headers, body, connect_timeout_s=timeout_s, join=False)
            try:
                return response.status, await read_capped(response.pieces, cap_bytes)
            finally:
                await response.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._plain.aclose()
        if self._tls is not None:
            await self._tls.aclose()

    async def _send(
        self,
        url: str,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        content: bytes | AsyncIterator[bytes],
        *,
        connect_timeout_s: float,
        join: bool,
    ) -> Response:
        origin = _origin(url)
        head = [(b"host", origin.host_header), *headers]
        if not isinstance(content, bytes):
            if not any(name == b"content-length" for name, _ in headers):
                head.append((b"transfer-encoding", b"chunked"))
        elif content or method in _BODY_METHODS:
            head.append((b"content-length", str(len(content)).encode()))
        request = httpcore.Request(
            method,
            httpcore.URL(
                scheme=origin.scheme,
                host=origin.host,
                port=origin.port,
                target=joined(origin.path, target) if join else origin.path or b"/",
            ),
            headers=head,
            content=content,
            extensions={"timeout": {"connect": connect_timeout_s, "pool": connect_timeout_s}},
        )
        try:
            return Response(await self._pool(origin.scheme).handle_async_request(request))
        except _ERRORS as error:
            raise _lost(error) from error

    def _pool(self, scheme: bytes) -> httpcore.AsyncConnectionPool:
        if scheme == b"http":
            return self._plain
        if self._tls is None:
            self._tls = _Pool(_trusting())
        return self._tls


async def read_capped(pieces: AsyncIterator[bytes], cap_bytes: int) -> bytes:
    """All of a body. Raises ValueError above `cap_bytes`."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > cap_bytes:
            raise ValueError(f"an answer of more than {cap_bytes} bytes")
    return bytes(body)


def joined(base: bytes, target: bytes) -> bytes:
    """The backend's path and the client's; a base that ends in /v1 is not doubled."""
    base = base.rstrip(b"/")
    if base.endswith(b"/v1") and (target == b"/v1" or target.startswith((b"/v1/", b"/v1?"))):
        base = base[:-3]
    return base + target


class _Connection(httpcore.AsyncHTTPConnection):
    """httpcore's connection, closed when it was opened for a request that is cancelled before using it.

    httpcore 1.0.9 then keeps it open and counted for ever (state NEW: neither idle nor closed); to go when
    encode/httpcore issue 1093 is mended (pull request 1099).
    """

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        try:
            return await super().handle_async_request(request)
        except asyncio.CancelledError:
            if "Request Count: 0" in self.info():
                await self.aclose()
            raise


class _Pool(httpcore.AsyncConnectionPool):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(
            context, max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS, keepalive_expiry=_KEPT_S
        )
        self._context = context

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        return _Connection(origin, ssl_context=self._context, keepalive_expiry=_KEPT_S)


@lru_cache(maxsize=1024)
def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    name = parts.hostname or ""
    host = name.encode() if name.isascii() else name.encode("idna")
    shown = b"[%s]" % host if b":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    if parts.port not in (None, default):
        shown += b":%d" % parts.port
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return _Origin(parts.scheme.encode(), host, parts.port, path.encode(), shown)


_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)


def _lost(error: Exception) -> BackendLost:
    match error:
        case httpcore.ConnectTimeout() | httpcore.PoolTimeout():
            return BackendLost("connecting took too long", gone=True, timed_out=True)
        case httpcore.ConnectError():
            return BackendLost(_why_not_connected(error), gone=True, again=True)
        case httpcore.LocalProtocolError() | httpcore.UnsupportedProtocol():
            return BackendLost("the request can't be sent", gone=False)
        case _:
            return BackendLost("connection lost", gone=True, again=True)


def _why_not_connected(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
        if isinstance(cause, socket.gaierror):
            return "its name is unknown"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        cause = cause.__cause__ or cause.__context__
    return "it can't be reached"


def _trusting() -> ssl.SSLContext:
    """The system's certificates (or SSL_CERT_FILE's), and certifi's for images that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
