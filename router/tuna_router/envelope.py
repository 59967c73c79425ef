"""The router's own answers, in the OpenAI error shape that every client library reads."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


def error_body(message: str, kind: str, code: str | None, *, hint: str | None = None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}` as bytes."""
    error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": code}
    if hint is not None:
        error["hint"] = hint
    return json.dumps({"error": error}, separators=(",", ":")).encode()


def error_event(message: str, code: str, last: bytes) -> bytes:
    """An SSE error event that ends a stream well, whatever `last` (its latest bytes) left half said."""
    lead = b"\n" if last.endswith(b"\n") else b"\n\n"
    if not last or last.endswith((b"\n\n", b"\r\n\r\n")):
        lead = b""
    return lead + b"data: " + error_body(message, "upstream_error", code) + b"\n\n"


async def answer(
    send: Send,
    status: int,
    body: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    kind: bytes = b"application/json",
) -> None:
    """Send one whole answer."""
    head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
