"""A rare request answered by an ASGI application in this process: the control plane is one.

Small on purpose: the request is complete before the application is called, and its answer is sent when
it is complete. Nothing here is on the way of a request to a backend.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.envelope import error_body

_log = logging.getLogger("tuna_router")
_BODY_CAP_BYTES: Final = 1024 * 1024
_PATIENCE_S: Final = 60.0

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class AsgiCall:
    """The handler of one request that an application answers. `load` returns the application."""

    def __init__(
        self, client: ClientConnection, head: RequestHead, load: Callable[[], Awaitable[Application]]
    ) -> None:
        self._client = client
        self._head = head
        self._load = load
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None
        client.timer.set(_PATIENCE_S)

    def body(self, piece: bytes) -> None:
        """The next bytes of the request's body."""
        self._body += piece
        if len(self._body) > _BODY_CAP_BYTES:
            message = "The body is too large: at most 1 MiB."
            self._client.answer(413, error_body(message, "invalid_request_error", "body_too_large"))

    def body_end(self) -> None:
        """The request is complete."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def gone(self) -> None:
        """The client went away. What an application has begun, it finishes: it may be changing the router."""

    def paused(self, paused: bool) -> None:
        """An answer is sent in one piece."""

    def timer(self) -> None:
        """It took too long."""
        if self._task is not None:
            self._task.cancel()
        self._fail(408 if self._task is None else 504, "This took too long.")

    def stop(self) -> None:
        """The router ends now."""
        if self._task is not None:
            self._task.cancel()
        self._fail(503, "The router is stopping.")

    async def _run(self) -> None:
        answer = _Answer(bytes(self._body))
        try:
            application = await self._load()
            await application(_scope(self._head, len(self._body)), answer.receive, answer.send)
        except Exception:  # noqa: BLE001  (whatever it is, the client gets an answer and the log the reason)
            _log.exception("the control plane failed")
            answer.status = 0
        if not self._client.serves(self):
            return
        if not answer.status:
            self._fail(500, "The control plane failed; the router's log says why.")
            return
        self._client.send(answer.start(), bytes(answer.body))

    def _fail(self, status: int, message: str) -> None:
        self._client.answer(status, error_body(message, "server_error", None))


class _Answer:
    """The application's side of one exchange."""

    def __init__(self, request_body: bytes) -> None:
        self._request_body: bytes | None = request_body
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()

    async def receive(self) -> Message:
        body, self._request_body = self._request_body, None
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(bytes(n), bytes(v)) for n, v in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    def start(self) -> bytes:
        """The first line and the headers, as they are on the wire, without a length."""
        lines = b"".join(b"%b: %b\r\n" % pair for pair in self.headers if pair[0].lower() != b"content-length")
        return b"HTTP/1.1 %d \r\n%b" % (self.status, lines)


def _scope(head: RequestHead, length: int) -> Message:
    path, _, query = head.target.partition(b"?")
    headers = [pair for pair in head.headers if pair[0] not in (b"content-length", b"transfer-encoding")]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.0" if head.http10 else "1.1",
        "method": head.method.decode(),
        "scheme": "http",
        "path": head.plain_path.decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [*headers, (b"content-length", b"%d" % length)],
        "client": None,
        "server": None,
    }
