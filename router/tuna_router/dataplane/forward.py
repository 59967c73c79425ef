"""Forward: one attempt at one backend, up to the first byte of the body. Until then nothing was sent to
the client, and another backend may be tried.

The first *body* byte, not the head: a vLLM answers 200 long before it schedules the request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tuna_router.dataplane.account import begins_with_an_error
from tuna_router.dataplane.connection import BackendLost, Connection
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.dataplane.response_head import Framing, ResponseHead
from tuna_router.dataplane.route import Route
from tuna_router.dataplane.upstream import Upstream
from tuna_router.settings import Kind, Settings

_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
WHOLE_CAP_BYTES: Final = 1024 * 1024
"""JSON answers up to this size are taken whole before anything is sent, so that half of one is retried."""


@dataclass(slots=True)
class Answered:
    """The backend answers: `first` is the first of its body, `raw` the same as it was framed.

    `connection` brings the rest; it is None when that was all. `hollow`: it is an error all the same
    (an event stream that begins with one).
    """

    head: ResponseHead
    first: bytes
    raw: bytes
    connection: Connection | None
    hollow: bool = False


@dataclass(slots=True)
class Refused:
    """A status that another backend may not give; complete, so that it can be passed on if none does."""

    head: ResponseHead
    body: bytes

    @property
    def reason(self) -> str:
        """For people."""
        return f"status {self.head.status}"

    @property
    def gone(self) -> bool:
        """True when nobody is there behind the endpoint."""
        return self.head.status in (502, 503, 504) and not self.busy

    @property
    def busy(self) -> bool:
        """True when it is well but has no room: also vLLM's full queue, which is a 503."""
        status = self.head.status
        return status in (408, 429) or (status == 503 and b"currently busy" in self.body)


@dataclass(slots=True)
class Failed:
    """No answer. `gone`: nobody is there. `again`: a second connection may do better."""

    reason: str
    gone: bool
    again: bool = False
    timed_out: bool = False


Result = Answered | Refused | Failed


def is_retryable(status: int) -> bool:
    """408, 429 and every 5xx: vLLM's drain is a 500."""
    return status in (408, 429) or status >= 500


def asks_for_a_stream(pieces: list[bytes]) -> bool:
    """True for an OpenAI request with `"stream": true`."""
    return _STREAM.search(b"".join(pieces)) is not None


def patience(
    settings: Settings, kind: Kind, request: RequestHead, pieces: list[bytes] | None
) -> tuple[float, float]:
    """How long a backend of this kind may take to its first byte, and how much longer where the request
    (`pieces`; None for one that flows through) turns out to ask for no stream.

    An unstreamed answer comes all at its end. Which it is, is looked up when the time for a stream is
    over, since searching a large body is dear.
    """
    if kind is Kind.SERVERLESS:
        return settings.first_byte_timeout_s, 0.0
    stream_s, whole_s = settings.spot_first_byte_timeout_s, settings.spot_unstreamed_timeout_s
    if request.method in (b"GET", b"HEAD"):
        return stream_s, 0.0
    if pieces is None or (whole_s < stream_s and not asks_for_a_stream(pieces)):
        return whole_s, 0.0
    return stream_s, max(whole_s - stream_s, 0.0)


class Forward:
    """One attempt. `done` is called once with its result; in all cases but `Answered` everything is closed."""

    __slots__ = ("_body", "_collects", "_connection", "_dialling", "_done", "_pieces", "_ready", "_to_head", "more")

    def __init__(
        self, pieces: list[bytes], done: Callable[[Result], None], *, to_head: bool, more: bool = False
    ) -> None:
        self._pieces = pieces
        self._done = done
        self._to_head = to_head
        self._body: list[bytes] | None = None
        self._collects = 0
        self._connection: Connection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._ready: Callable[[bool], None] | None = None
        self.more = more
        """True while the rest of the request's body is still to come, by `write`."""

    def start(self, upstream: Upstream, route: Route, connect_timeout_s: float) -> None:
        """Send the request on a kept connection, or on a new one."""
        connection = upstream.idle(route)
        if connection is not None:
            self.connected(connection)
        else:
            self._dialling = upstream.dial(route, self, connect_timeout_s)

    def when_writable(self, ready: Callable[[bool], None]) -> None:
        """`ready` is told whether the backend takes more of the request's body."""
        self._ready = ready

    def write(self, piece: bytes, *, more: bool) -> None:
        """The next piece of the request's body, framed."""
        self.more = more
        if self._connection is not None:
            self._connection.write(piece, more=more)
        elif self._dialling is not None:
            self._pieces.append(piece)

    def cancel(self) -> None:
        """Give up: nobody waits any more."""
        connection, self._connection = self._connection, None
        if self._dialling is not None and connection is None:
            self._dialling.cancel()
        if connection is not None:
            connection.drop()

    def time_out(self, seconds: float) -> None:
        """Its time is over without a byte."""
        self.cancel()
        self._done(Failed(f"no byte in {seconds:g} s", gone=False, timed_out=True))

    # The connection's listener

    def connected(self, connection: Connection) -> None:
        """A connection was made."""
        self._dialling = None
        self._connection = connection
        connection.send(self, self._pieces, to_head=self._to_head, more=self.more)
        if self._ready is not None:
            self._ready(True)

    def lost(self, error: BackendLost) -> None:
        """Connecting failed, or the connection is gone."""
        self._connection = None
        self._dialling = None
        self._done(Failed(error.reason, error.gone, error.again, error.timed_out))

    def writable(self, ready: bool) -> None:
        """The backend takes more of the request's body, or none for now."""
        if self._ready is not None:
            self._ready(ready)

    def answer(self, connection: Connection) -> None:
        """Bytes came."""
        head, piece, ended = connection.head, connection.payload, connection.ended
        assert head is not None
        if self._body is not None:
            self._collect(head, piece, ended)
            return
        status, kind = head.status, head.content_type
        if not 200 <= status < 600:
            self._fail(f"status {status}", ended)
        elif is_retryable(status):
            self._body = []
            self._collect(head, piece, ended)
        elif kind == b"application/json" and head.framing is Framing.LENGTH and head.length <= WHOLE_CAP_BYTES:
            if ended:
                self._connection = None
                self._done(Answered(head, piece, piece, None))
            else:
                self._body = [piece]
        elif piece:
            hollow = kind == b"text/event-stream" and begins_with_an_error(piece)
            kept = None if ended else connection
            if ended or not self.more:
                self._connection = None
            self._done(Answered(head, piece, connection.raw, kept, hollow))
        elif ended:
            self._connection = None
            if kind == b"text/event-stream" and status == 200 and not self._to_head:
                self._done(Failed("an empty stream", gone=False))
            else:
                self._done(Answered(head, b"", b"", None))

    def _collect(self, head: ResponseHead, piece: bytes, ended: bool) -> None:
        body = self._body
        assert body is not None
        if piece:
            body.append(piece)
            self._collects += len(piece)
        retryable = is_retryable(head.status)
        if retryable and self._collects > WHOLE_CAP_BYTES:
            self._fail(f"status {head.status}, with an endless body", ended)
        elif ended:
            self._connection = None
            whole = b"".join(body)
            self._done(Refused(head, whole) if retryable else Answered(head, whole, whole, None))

    def _fail(self, reason: str, ended: bool) -> None:
        if ended:
            self._connection = None
        self.cancel()
        self._done(Failed(reason, gone=False))
