"""One reader of `/router/events`: the handler of its connection. A slow one loses events, and is told how many."""

from __future__ import annotations

from collections import deque
from typing import Final
from urllib.parse import parse_qs

from tuna_router.dataplane.chunked import END
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.envelope import error_body
from tuna_router.told.events import Events, dropped_frame

HEARTBEAT_S: Final = 15.0
_MOST_WAITING: Final = 64
_PATIENCE_S: Final = 60.0
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\nx-accel-buffering: no\r\n"
)


class EventStream:
    """See the module. `?snapshots=no` leaves the figures of each second out."""

    __slots__ = ("_chunked", "_client", "_dropped", "_events", "_head", "_waiting", "wants_snapshots")

    def __init__(self, events: Events, client: ClientConnection, head: RequestHead) -> None:
        query = parse_qs(head.target.partition(b"?")[2])
        self.wants_snapshots = query.get(b"snapshots", [b"yes"])[-1] not in (b"no", b"0", b"false")
        self._events = events
        self._client = client
        self._head = head
        self._chunked = not head.http10
        self._waiting: deque[bytes] = deque()
        self._dropped = 0

    # The connection's handler

    def body(self, piece: bytes) -> None:
        """Not wanted."""

    def body_end(self) -> None:
        """The request is complete: begin."""
        client, head = self._client, self._head
        if head.method not in (b"GET", b"HEAD"):
            body = error_body("Only GET is allowed here.", "invalid_request_error", "method_not_allowed")
            client.answer(405, body, b"allow: GET\r\n")
            return
        client.closing = client.closing or not self._chunked
        coding = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        if head.method == b"HEAD":
            client.write(b"%b%b%b\r\n" % (_HEAD, coding, client.connection_line))
            client.finish()
            return
        given = dict(head.headers).get(b"last-event-id", b"")
        last_id = int(given) if given.isdigit() and len(given) < 16 else None
        client.write(b"%b%b%b\r\n" % (_HEAD, coding, client.connection_line))
        client.timer.set(HEARTBEAT_S)
        if not self._events.listen(self, last_id):
            self._write(b'event: full\ndata: {"message":"too many listen to this router"}\n\n')
            self.end()

    def gone(self) -> None:
        """The client went away."""
        self._events.leave(self)

    def paused(self, paused: bool) -> None:
        """The client takes no more for now; or it does again."""
        if paused:
            self._client.timer.set(_PATIENCE_S)
            return
        self._client.timer.set(HEARTBEAT_S)
        if self._dropped:
            self._waiting.appendleft(dropped_frame(self._dropped))
            self._dropped = 0
        while self._waiting and not self._client.write_paused:
            self._write(self._waiting.popleft())

    def timer(self) -> None:
        """It was quiet for a while, or the client does not read."""
        if self._client.write_paused:
            self._events.leave(self)
            self._client.abort()
        else:
            self._write(b": still here\n\n")
            self._client.timer.set(HEARTBEAT_S)

    def stop(self) -> None:
        """The router ends now."""
        self.end()

    # The events' listener

    def push(self, frame: bytes) -> None:
        """The next event."""
        if not self._client.write_paused and not self._waiting:
            self._write(frame)
            self._client.timer.set(HEARTBEAT_S)
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(frame)

    def end(self) -> None:
        """There will be no more."""
        self._events.leave(self)
        if self._client.serves(self):
            if self._chunked:
                self._client.write(END)
            self._client.finish(keep=self._chunked)

    def _write(self, frame: bytes) -> None:
        self._client.write(b"%x\r\n%b\r\n" % (len(frame), frame) if self._chunked else frame)
