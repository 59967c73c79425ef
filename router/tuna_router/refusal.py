"""An answer instead of service."""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """`body` is OpenAI's error shape; `lines` are headers as they are on the wire."""

    status: int
    body: bytes
    lines: bytes = b""
