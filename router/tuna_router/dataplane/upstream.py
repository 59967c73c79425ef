"""Connections to backends: httpx's transport without its client.

The client would add what a proxy must not have: default headers, a cookie jar, redirects, proxies
from the environment, a log line a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import httpx

from tuna_router.settings import BackendSettings

_LIMITS = httpx.Limits(
    max_connections=None,
    max_keepalive_connections=1024,
    # Below the 5 s after which uvicorn, and so vLLM, closes an idle connection.
    keepalive_expiry=4.0,
)


class Upstream:
    """The pooled connections of one router; TLS is set up when first needed."""

    def __init__(self) -> None:
        self._plain = httpx.AsyncHTTPTransport(verify=False, limits=_LIMITS, trust_env=False)
        self._tls: httpx.AsyncHTTPTransport | None = None

    async def open(
        self,
        backend: BackendSettings,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        content: bytes | AsyncIterator[bytes],
        *,
        connect_timeout_s: float,
    ) -> httpx.Response:
        """Send a request and return when the answer's head is there; the caller closes it.

        `target` is path and query as the client wrote them. Has no deadline of its own but that for
        connecting. Raises httpx.TransportError.
        """
        url = httpx.URL(backend.url)
        request = httpx.Request(
            method,
            url,
            headers=list(headers),
            content=content,
            extensions={
                "target": joined(url.raw_path, target),
                "timeout": {"connect": connect_timeout_s, "read": None, "write": None, "pool": connect_timeout_s},
            },
        )
        return await self._transport(url.scheme).handle_async_request(request)

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

        Raises TimeoutError, httpx.TransportError, or ValueError when the answer is above `cap_bytes`.
        """
        headers = {**backend.headers, **({"content-type": "application/json"} if body else {})}
        request = httpx.Request(method, url, headers=headers, content=body)
        async with asyncio.timeout(timeout_s):
            response = await self._transport(request.url.scheme).handle_async_request(request)
            try:
                return response.status_code, await read_capped(pieces_of(response), cap_bytes)
            finally:
                await response.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._plain.aclose()
        if self._tls is not None:
            await self._tls.aclose()

    def _transport(self, scheme: str) -> httpx.AsyncHTTPTransport:
        if scheme == "http":
            return self._plain
        if self._tls is None:
            self._tls = httpx.AsyncHTTPTransport(limits=_LIMITS, trust_env=False)
        return self._tls


def pieces_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes off the wire: undecoded, one piece a read."""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    return aiter(stream)


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
