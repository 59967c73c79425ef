"""The router's own answers, in the OpenAI error shape that every client library reads."""

from __future__ import annotations

import json
from typing import Any


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
