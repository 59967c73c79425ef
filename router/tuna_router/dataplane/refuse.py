"""Answers of our own that need nothing of the request's body."""

from __future__ import annotations

from typing import Final

from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.refusal import Refusal

_READ_BYTES: Final = 256 * 1024
_PATIENCE_S: Final = 10.0


def refuse(client: ClientConnection, head: RequestHead, refusal: Refusal) -> Refused | None:
    """Answer at once; or, where the body is short and on its way, after it, which keeps the connection."""
    if client.length and client.length <= _READ_BYTES and not head.expects_continue:
        return Refused(client, refusal)
    client.answer(refusal.status, refusal.body, refusal.lines)
    return None


class Refused:
    """The handler that reads a body for nothing."""

    def __init__(self, client: ClientConnection, refusal: Refusal) -> None:
        self._client = client
        self._refusal = refusal
        client.timer.set(_PATIENCE_S)

    def body(self, piece: bytes) -> None:
        """Not wanted."""

    def body_end(self) -> None:
        """The request is complete."""
        self._client.answer(self._refusal.status, self._refusal.body, self._refusal.lines)

    def gone(self) -> None:
        """Nothing to stop."""

    def paused(self, paused: bool) -> None:
        """An answer is sent in one piece."""

    def timer(self) -> None:
        """The body does not come."""
        self.body_end()

    def stop(self) -> None:
        """The router ends now."""
        self.body_end()
