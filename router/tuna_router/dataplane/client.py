"""Intake: one client's connection. Reads requests one at a time, in their order, and writes answers.

What is done with a request is its handler's affair; the connection knows heads, bodies, limits and
when it may serve the next request. It has one timer, which the handler may use while it has the request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Final, Protocol

from tuna_router.dataplane.chunked import BadFraming, ChunkedBody
from tuna_router.dataplane.request_head import MAX_HEAD_BYTES, BadRequest, RequestHead, read_request_head
from tuna_router.dataplane.response_head import ResponseHead
from tuna_router.dataplane.wheel import Wheel
from tuna_router.envelope import error_body

KEEP_ALIVE_S: Final = 75.0
RETIRED_IDLE_S: Final = 10.0
"""Idle connections of a router that retires: longer than the usual clients keep theirs (httpx: 5 s)."""
HEAD_PATIENCE_S: Final = 20.0
_LINGER_S: Final = 5.0
_MOST_UNREAD: Final = 16 * 1024 * 1024
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


class Handler(Protocol):
    """Who answers one request. After its answer is finished, or `gone`, it is told nothing more."""

    def body(self, piece: bytes) -> None:
        """The next bytes of the request's body."""

    def body_end(self) -> None:
        """The request is complete."""

    def gone(self) -> None:
        """The client went away."""

    def paused(self, paused: bool) -> None:
        """The client takes no more for now; or it does again."""

    def timer(self) -> None:
        """The connection's timer fired."""

    def stop(self) -> None:
        """The router ends now: finish at once."""


def _nobody_counts(code: str) -> None:
    pass


class _State(Enum):
    HEAD = "waiting for a request"
    BODY = "reading a request's body"
    BUSY = "being answered"
    LINGER = "answered; what still comes is thrown away"
    CLOSED = "closed"


# Looked up several times in each request: a global is nearer than a member of an enumeration.
_HEAD, _BODY, _BUSY, _LINGER, _CLOSED = _State


class ClientConnection(asyncio.Protocol):
    """One connection. `begin` is given every head and returns who answers it, or None when that is done.

    `refused` is told the code of each request that is none.
    """

    __slots__ = (
        "_advancing",
        "_answered",
        "_begin",
        "_begun",
        "_chunked",
        "_handler",
        "_held",
        "_left",
        "_owner",
        "_refused",
        "_state",
        "_transport",
        "closing",
        "descriptor",
        "head",
        "last_one",
        "length",
        "read_paused",
        "timer",
        "write_paused",
    )
    _transport: asyncio.Transport

    def __init__(
        self,
        wheel: Wheel,
        begin: Callable[[ClientConnection, RequestHead], Handler | None],
        owner: set[ClientConnection],
        refused: Callable[[str], None] = _nobody_counts,
    ) -> None:
        self._refused = refused
        self._begin = begin
        self._owner = owner
        self._handler: Handler | None = None
        self._state = _HEAD
        self._held = b""
        self._left = 0
        self._chunked: ChunkedBody | None = None
        self._advancing = False
        self.read_paused = False
        self._answered = False
        self._begun = False
        self.closing = False
        """True when no further request is served after this one."""
        self.last_one = False
        """True when the next request is the last: its answer will say so. See `retire`."""
        self.write_paused = False
        self.head: RequestHead | None = None
        self.length: int | None = 0
        """Of the request's body; None for a chunked one."""
        self.timer = wheel.timer(self._timer_fired)
        self.descriptor = -1
        """Where to write to the client at once; what `os.write` does not take, or raises OSError for, is for
        `put_rest`. Past the loop's transport, whose queue would cost a token's way more than the writing, and
        therefore only while that queue is empty; negative otherwise, and where there is no plain socket (TLS)."""

    def __repr__(self) -> str:
        return f"<ClientConnection {self._state.value}>"

    # What a handler does with it

    def write(self, data: bytes) -> None:
        """The next bytes of the answer."""
        self._answered = True
        self._put_all(data)

    def put_rest(self, rest: bytes) -> None:
        """What was not taken at once. From now on all goes through the transport, which knows when it is sent."""
        self.descriptor = -1
        if not self._transport.is_closing():
            self._transport.write(rest)

    def finish(self, *, keep: bool = True) -> None:
        """The answer is complete; `keep` is False where only the connection's end ends it."""
        self._handler = None
        self.closing = self.closing or not keep
        if self._state is _BODY:
            # What comes of the body is thrown away; a client still sending must not be met by a reset.
            self._state = _LINGER
            self._left = 0
            self.pause_reading(False)
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self.timer.set(_LINGER_S)
        elif self.closing:
            self.close()
        else:
            self._state = _HEAD
            self.timer.set(RETIRED_IDLE_S if self.last_one else KEEP_ALIVE_S)
            if (self._held or self.read_paused) and not self._advancing:
                self._advance(b"")

    def answer(self, status: int, body: bytes, lines: bytes = b"", kind: str = "application/json") -> None:
        """Write one whole answer of our own, and finish."""
        self.write(self.answer_head(status, lines, kind, len(body)) + (b"" if self._to_head else body))
        self.finish()

    def pass_on(self, head: ResponseHead, lines: bytes, body: bytes) -> None:
        """Write one whole answer of a backend with `lines` of our own, and finish."""
        if self._to_head or head.is_bodiless:
            if self._state is _BODY:
                self.closing = True
            lines = (head.start if head.is_bodiless else head.start_line + head.lines) + lines
            self.write(b"%b%b\r\n" % (lines, self.connection_line))
            self.finish()
        else:
            self.send(head.start + lines, body)

    def send(self, start: bytes, body: bytes) -> None:
        """Write one whole answer, and finish; `start` is its first line and headers, without a length."""
        if self._state is _BODY:
            self.closing = True
        length, head = len(body), self.head
        if self.closing or (head is not None and head.http10):
            start += self.connection_line
        if self._to_head:
            body = b""
        self.write(b"%bcontent-length: %d\r\n\r\n%b" % (start, length, body))
        self.finish()

    def answer_head(self, status: int, lines: bytes, kind: str, length: int) -> bytes:
        """The head of an answer of our own."""
        if self._state is _BODY:
            self.closing = True
        start = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\ncontent-type: {kind}\r\ncontent-length: {length}"
        return b"%b\r\n%b%b\r\n" % (start.encode(), lines, self.connection_line)

    @property
    def connection_line(self) -> bytes:
        """The `Connection` header of the answer, where it needs one."""
        if self.closing:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.head is not None and self.head.http10 else b""

    @property
    def unsent_bytes(self) -> int:
        """What waits in memory for the client to take it."""
        return self._transport.get_write_buffer_size()

    @property
    def body_is_complete(self) -> bool:
        """True when the request was read to its end."""
        return self._state is not _BODY

    def hand_to(self, handler: Handler) -> None:
        """From now on this one has the request."""
        self._handler = handler

    @property
    def handler(self) -> Handler | None:
        """Who has the request, while there is one."""
        return self._handler

    def serves(self, handler: Handler) -> bool:
        """True while this handler has the request."""
        return self._handler is handler

    def close(self) -> None:
        """Close when everything is written."""
        self._state = _CLOSED
        if self._transport.get_write_buffer_size():
            self.timer.set(KEEP_ALIVE_S)  # a client that never reads does not keep it
        else:
            self.timer.clear()
        self._transport.close()

    def cut(self, *, framed: bool) -> None:
        """The answer ends incomplete. A client that can't count what is missing gets a reset."""
        self._handler = None
        if framed:
            self.close()
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever is still to be written."""
        self._handler = None
        self._state = _CLOSED
        self.timer.clear()
        self._transport.abort()

    def pause_reading(self, paused: bool) -> None:
        """Take no more of the request for now; or go on."""
        if paused is self.read_paused or self._transport.is_closing():
            return
        self.read_paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # What the server does with it

    def stop(self, *, now: bool) -> None:
        """Serve nothing more after what runs; with `now`, end that as well."""
        self.closing = True
        if self._handler is None:
            if self._state is _HEAD:
                self.close()
            elif now:
                self._transport.abort()
        elif now:
            self._handler.stop()

    def retire(self) -> None:
        """Serve one more request and say in its answer that it was the last: a client that keeps its connection
        and asks at the very moment of closing would lose that request."""
        if not self.last_one:
            self.last_one = True
            if self._handler is None and self._state is _HEAD and not self._held:
                self.timer.set(RETIRED_IDLE_S)

    # What the loop does with it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = transport  # type: ignore[assignment]
        sock = None if transport.get_extra_info("sslcontext") else transport.get_extra_info("socket")
        if sock is not None:
            self.descriptor = sock.fileno()
        self._owner.add(self)
        self.timer.set(KEEP_ALIVE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        self.descriptor = -1  # before anything else: its number may soon be another client's
        self._owner.discard(self)
        self._state = _CLOSED
        self.timer.clear()
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.gone()

    def eof_received(self) -> None:
        """asyncio's: a client that closes one half closes both, as with most servers."""

    def pause_writing(self) -> None:
        """asyncio's."""
        self.write_paused = True
        if self._handler is not None:
            self._handler.paused(True)

    def resume_writing(self) -> None:
        """asyncio's."""
        self.write_paused = False
        if self._handler is not None:
            self._handler.paused(False)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        if self._held:
            data = self._held + data
            self._held = b""
        self._advance(data)

    # Writing

    def _put_all(self, data: bytes) -> None:
        sent = 0
        if self.descriptor >= 0:
            try:
                sent = os.write(self.descriptor, data)
            except OSError:
                sent = 0  # it takes nothing now, or is gone: the transport finds out which
        if sent != len(data):
            self.put_rest(data[sent:])

    # Reading

    def _advance(self, data: bytes) -> None:
        """Read on: heads and bodies until something is missing or a request is being answered."""
        if self._advancing:
            self._held += data
            return
        self._advancing = True
        try:
            if not data:
                data, self._held = self._held, b""
            while data:
                if self._state is _HEAD:
                    data = self._read_head(data)
                elif self._state is _BODY:
                    data = self._read_body(data)
                elif self._state is _BUSY:
                    self._held = data  # pipelined: it waits for its turn
                    if len(data) > MAX_HEAD_BYTES:
                        self.pause_reading(True)
                    return
                else:
                    self._throw_away(data)
                    return
            if self._state is _HEAD and self.read_paused:
                self.pause_reading(False)
        except BadRequest as error:
            self._refuse(error)
        except BadFraming as error:
            self._refuse(BadRequest(400, f"The body is malformed: {error}."))
        finally:
            self._advancing = False

    def _read_head(self, data: bytes) -> bytes:
        if data.startswith(b"\r\n"):
            data = data[2:]  # RFC 9112, 2.2: one empty line before a request is forgiven
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > MAX_HEAD_BYTES:
            if len(data) > MAX_HEAD_BYTES:
                raise BadRequest(431, "The request's head is too large.", "headers_too_large")
            if b"\0" in data or data.count(b"\n") != data.count(b"\r\n"):
                raise BadRequest(400, "This is no HTTP/1.1 request.")
            if not self._begun and data:
                self._begun = True
                self.timer.set(HEAD_PATIENCE_S)
            self._held = data
            self.pause_reading(False)
            return b""
        head, length = read_request_head(data[:end])
        self.head = head
        self.length = length
        data = data[end:]
        if self.last_one or not head.keep_alive:
            self.closing = True
        self._begun = self._answered = False
        if length is None:
            self._chunked = ChunkedBody()
            self._state = _BODY
        else:
            self._chunked = None
            self._left = length
            self._state = _BODY if length else _BUSY
        handler = self._begin(self, head)
        if handler is None:
            return data
        self._handler = handler
        if length == 0:
            handler.body_end()
        elif length == len(data):
            # How requests come: all of it in one read.
            self._left = 0
            handler.body(data)
            if self._state is _BODY:
                self._complete()
            return b""
        elif head.expects_continue and not data:
            self._put_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        return data

    def _read_body(self, data: bytes) -> bytes:
        chunked, rest = self._chunked, b""
        handler = self._handler
        if chunked is not None:
            chunked.feed(data)
            if handler is not None and chunked.payload:
                handler.body(chunked.payload)
            ended, rest = chunked.ended, chunked.rest
        else:
            left = self._left
            if len(data) > left:
                rest = data[left:]
                data = data[:left]
            self._left = left = left - len(data)
            if handler is not None:
                handler.body(data)
            ended = left == 0
        if ended and self._state is _BODY:
            self._complete()
        return rest

    def _complete(self) -> None:
        self._state = _BUSY
        if self._handler is not None:
            self._handler.body_end()

    def _throw_away(self, data: bytes) -> None:
        self._left = self._left + len(data)
        if self._state is _LINGER and self._left > _MOST_UNREAD:
            self.abort()

    def _refuse(self, error: BadRequest) -> None:
        """Answer what can't be read, and close: nobody knows where the next request begins."""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.gone()
            if self._answered:
                self.abort()
                return
        self._refused(error.code)
        self._state = _BODY
        self.answer(error.status, error_body(error.message, "invalid_request_error", error.code))

    @property
    def _to_head(self) -> bool:
        return self.head is not None and self.head.method == b"HEAD"

    def _timer_fired(self) -> None:
        if self._handler is not None:
            self._handler.timer()
        elif self._state is _HEAD and self._held:
            self._refuse(BadRequest(408, "The request's head did not arrive in time.", "request_timeout"))
        elif self._state is _HEAD:
            self.close()
        else:
            self._transport.abort()
