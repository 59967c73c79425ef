"""Forward: one attempt at one backend, up to the first byte of the body. Until then nothing was sent to
the client, and another backend may be tried.

The first *body* byte, not the head: a vLLM answers 200 long before it schedules the request.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final, Protocol

from tuna_router.dataplane.connection import BackendLost, Connection
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.dataplane.response_head import WHOLE_CAP_BYTES, ResponseHead
from tuna_router.dataplane.route import Route
from tuna_router.dataplane.upstream import Upstream
from tuna_router.settings import BackendSettings, Kind, Settings

SILENCE_S: Final = 3.0
"""So long a backend may say nothing to a request where others have failed; a busy engine pauses for less."""
_MOST_TURNS: Final = 20
"""Browsers' limit; Modal sends a request on once in 150 s."""
_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')


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
    def kind(self) -> str:
        """One of few words, for counting."""
        return self.reason

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
    """No answer. `gone`: nobody is there. `again`: a second connection may do better. `sent`: the
    request, or some of it, was sent."""

    reason: str
    gone: bool
    again: bool = False
    timed_out: bool = False
    sent: bool = True
    busy = False

    @property
    def kind(self) -> str:
        """One of few words, for counting."""
        return "timeout" if self.timed_out else self.reason


FELL_SILENT: Final = Failed("it has fallen silent, as others have failed there", gone=True)


class Sender(Protocol):
    """Whose request it is. Told once what came of the attempt; in all cases but `begins` it is then over."""

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """An answer, complete."""

    def begins(self, head: ResponseHead, first: bytes, raw: bytes, connection: Connection | None) -> None:
        """The first bytes of an answer, `raw` being the same as they were framed. `connection` brings the
        rest; it is None when that was all."""

    def failed(self, failure: Refused | Failed) -> None:
        """Another backend may be tried."""

    def writable(self, ready: bool) -> None:
        """The backend takes more of a request's body that flows through, or none for now."""


def asks_for_a_stream(pieces: list[bytes]) -> bool:
    """True for an OpenAI request with `"stream": true`."""
    return _STREAM.search(b"".join(pieces)) is not None


def stream_patience_s(settings: Settings, backend: BackendSettings) -> float:
    """How long a backend may take to the first byte of a stream."""
    if backend.kind is Kind.SPOT:
        return settings.spot_first_byte_timeout_s
    return backend.first_byte_timeout_s or settings.first_byte_timeout_s


def patience(
    settings: Settings, backend: BackendSettings, request: RequestHead, pieces: list[bytes] | None
) -> tuple[float, float]:
    """How long a backend may take to its first byte, and how much longer where the request (`pieces`; None
    for one that flows through) turns out to ask for no stream.

    An unstreamed answer comes all at its end. Which it is, is looked up when the time for a stream is
    over, since searching a large body is dear.
    """
    stream_s, whole_s = stream_patience_s(settings, backend), settings.spot_unstreamed_timeout_s
    if backend.kind is Kind.SERVERLESS or request.method in (b"GET", b"HEAD"):
        return stream_s, 0.0
    if pieces is None or (whole_s < stream_s and not asks_for_a_stream(pieces)):
        return whole_s, 0.0
    return stream_s, max(whole_s - stream_s, 0.0)


class Forward:
    """One attempt."""

    __slots__ = (
        "_body",
        "_connection",
        "_dial",
        "_dialling",
        "_doubted_at",
        "_pieces",
        "_raw",
        "_sender",
        "_size",
        "_to_head",
        "_turns",
        "more",
    )

    def __init__(self, sender: Sender, pieces: list[bytes], *, to_head: bool, more: bool = False) -> None:
        self._sender = sender
        self._pieces = pieces
        self._to_head = to_head
        self._body: list[bytes] | None = None
        """Of an answer that is taken whole; `_raw` is the same as it was framed, or what of the framing came before
        the first byte of any other."""
        self._raw: list[bytes] = []
        self._size = 0
        self._connection: Connection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._dial: tuple[Upstream, Route, float] | None = None
        """How it was started, where the backend may send it elsewhere."""
        self._turns = 0
        self._doubted_at = 0.0
        """When its backend was first in doubt, since it last said something; 0 when it was not."""
        self.more = more
        """True while the rest of the request's body is still to come, by `write`."""

    def start(self, upstream: Upstream, route: Route, connect_timeout_s: float) -> None:
        """Send the request on a kept connection, or on a new one."""
        if route.settings.redirects:
            self._dial = upstream, route, connect_timeout_s
        connection = upstream.idle(route)
        if connection is not None:
            self.connected(connection)
        else:
            self._dialling = upstream.dial(route, self, connect_timeout_s)

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
        self._sender.failed(Failed(f"no byte in {seconds:g} s", gone=False, timed_out=True))

    def leave_if_silent(self, now: float) -> None:
        """Its backend is in doubt: give up, if it was so `SILENCE_S` ago."""
        if not self._doubted_at:
            self._doubted_at = now
        elif now - self._doubted_at >= SILENCE_S:
            self.cancel()
            self._sender.failed(FELL_SILENT)

    # The connection's listener

    def connected(self, connection: Connection) -> None:
        """A connection was made."""
        self._dialling = None
        self._connection = connection
        connection.send(self, self._pieces, to_head=self._to_head, more=self.more)
        if self.more:
            self._sender.writable(True)

    def lost(self, error: BackendLost) -> None:
        """Connecting failed, or the connection is gone."""
        sent = self._connection is not None
        self._connection = None
        self._dialling = None
        self._sender.failed(Failed(error.reason, error.gone, error.again, error.timed_out, sent))

    def writable(self, ready: bool) -> None:
        """The backend takes more of the request's body, or none for now."""
        if self.more:
            self._sender.writable(ready)

    def answer(self, connection: Connection) -> None:
        """Bytes came."""
        head = connection.head
        assert head is not None
        if self._body is not None:
            self._collect(connection, head)
        elif head.status == 303 and self._dial is not None and not self.more:
            self._turn(connection, head)
        elif head.is_odd:
            self._fail(f"status {head.status}", connection)
        elif head.is_retryable or (head.whole and not connection.ended):
            self._body = []
            self._collect(connection, head)
        elif connection.ended:
            self._connection = None
            if not head.streams:
                self._sender.whole(head, connection.payload)
            elif connection.payload or self._to_head or head.status != 200:
                self._sender.begins(head, connection.payload, self._framed(connection), None)
            else:
                self._sender.failed(Failed("an empty stream", gone=False))
        elif connection.payload:
            if not self.more:
                self._connection = None
            self._sender.begins(head, connection.payload, self._framed(connection), connection)
        elif connection.raw:
            self._raw.append(connection.raw)  # a chunk's first line, in a read of its own

    def _framed(self, connection: Connection) -> bytes:
        return b"".join((*self._raw, connection.raw)) if self._raw else connection.raw

    def _collect(self, connection: Connection, head: ResponseHead) -> None:
        """More of an answer that is taken whole."""
        body, piece = self._body, connection.payload
        assert body is not None
        body.append(piece)
        self._raw.append(connection.raw)
        self._size += len(piece)
        self._doubted_at = 0.0
        retryable = head.is_retryable
        if connection.ended:
            self._connection = None
            whole = b"".join(body)
            if retryable:
                self._sender.failed(Refused(head, whole))
            else:
                self._sender.whole(head, whole)
        elif self._size > WHOLE_CAP_BYTES:
            if retryable:
                self._fail(f"status {head.status}, with an endless body", connection)
                return
            if not self.more:
                self._connection = None
            self._sender.begins(head, b"".join(body), b"".join(self._raw), connection)

    def _turn(self, connection: Connection, head: ResponseHead) -> None:
        """The answer will be elsewhere: ask for it there. Only at the same origin, since our headers open it."""
        assert self._dial is not None
        upstream, route, connect_timeout_s = self._dial
        target = route.target_of(head.special.get(b"location", b""))
        self._turns += 1
        if target is None or self._turns > _MOST_TURNS:
            self._fail("a redirect that can't be followed", connection)
            return
        self._connection = None
        self._raw = []
        if not connection.ended:
            connection.drop()
        self._pieces = [b"GET %b HTTP/1.1\r\n%b%b\r\n" % (target, route.host_line, route.own_lines)]
        self.start(upstream, route, connect_timeout_s)

    def _fail(self, reason: str, connection: Connection) -> None:
        if connection.ended:
            self._connection = None
        self.cancel()
        self._sender.failed(Failed(reason, gone=False))
