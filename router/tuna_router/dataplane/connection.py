"""One connection to a backend, with one request at a time on it.

It goes back to its pool only after a clean end: the whole request sent, the answer framed and read to
its last byte, nothing after it, and neither side wishing to close.
"""

from __future__ import annotations

import asyncio
from os import write
from time import monotonic
from typing import Final, Protocol

from tuna_router.dataplane.chunked import BadFraming, ChunkedBody, size_line
from tuna_router.dataplane.response_head import (
    MAX_HEAD_BYTES,
    BadAnswer,
    Framing,
    ResponseHead,
    known_response_head,
    parse_response_head,
)
from tuna_router.dataplane.tcp import acknowledge

_INTERIM: Final = (100, 102, 103)
_REMEMBERED_BYTES: Final = 1024
MOST_KEPT: Final = 256
_MOST_SHAPES: Final = 16
_Shape = tuple[slice, bytes, slice, slice]
"""Of a whole chunk: where it has its size line and an event's beginning, what these are, where the event has its
middle, and where its end."""
_NO_CHUNK: Final[_Shape] = (slice(0), b"none begins like that", slice(0), slice(0))
NO_HTTP: Final = "its answer is no HTTP"
"""The `reason` of a BackendLost for an answer that can't be read."""


class BackendLost(Exception):
    """No answer, or half of one. `reason` is for people and names no address.

    `gone`: nobody is there. `again`: a second connection may do better.
    """

    def __init__(self, reason: str, *, gone: bool, again: bool = False, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.gone = gone
        self.again = again
        self.timed_out = timed_out


class Listener(Protocol):
    """Who waits for an answer. Told nothing more after `lost`, or after an `answer` that has ended."""

    def connected(self, connection: Connection) -> None:
        """A connection was made: send the request."""

    def answer(self, connection: Connection) -> None:
        """Bytes came. `connection` says what is known: head, payload, raw, ended."""

    def lost(self, error: BackendLost) -> None:
        """There will be no (further) answer."""

    def writable(self, ready: bool) -> None:
        """The backend takes more of the request's body, or none for now."""


class Outlet(Protocol):
    """Where a shortcut leads: a client's connection."""

    descriptor: int
    """To write to; negative where nothing can be."""

    def put_rest(self, rest: bytes) -> None:
        """What was not taken."""


class Home(Protocol):
    """Where connections belong; `origin` is the host, the port and whether TLS is spoken."""

    origin: tuple[str, int, bool]

    def opened(self, connection: Connection) -> None:
        """It is connected."""

    def give_back(self, connection: Connection) -> None:
        """It came to a clean end and waits for the next request."""

    def forget(self, connection: Connection) -> None:
        """It is closed."""


class Connection(asyncio.Protocol):
    """One connection. After each read, `payload` is what it brought of the body, `raw` the same with its
    chunk framing where it has one (the terminator excepted), `ended` whether that was all."""

    __slots__ = (
        "_begins",
        "_ends",
        "_held",
        "_late",
        "_left",
        "_listener",
        "_outlet",
        "_paused",
        "_pool",
        "_sending",
        "_shapes",
        "_to_head",
        "_transport",
        "chunked",
        "ended",
        "head",
        "idle_since",
        "kept",
        "kept_at",
        "payload",
        "raw",
    )
    _transport: asyncio.Transport

    def __init__(self, pool: Home) -> None:
        self._pool = pool
        self._listener: Listener | None = None
        self._held = b""
        self._left = 0
        self._paused = False
        self._sending = False
        self._to_head = False
        self._late = False
        self.idle_since = 0.0
        self.head: ResponseHead | None = None
        self.chunked: ChunkedBody | None = None
        self.payload = b""
        self.raw = b""
        self.ended = False
        self.kept: list[bytes] = []
        """Of the chunks that went straight to the client, see `shortcut`, what was between beginning and end;
        `kept_at` is when, by time.monotonic()."""
        self.kept_at: list[float] = []
        self._outlet: Outlet | None = None
        self._begins = self._ends = b""
        self._shapes: dict[int, _Shape] = {}
        """By length."""

    def __repr__(self) -> str:
        state = "idle" if self._listener is None else "waiting" if self.head is None else "answering"
        return f"<Connection {state}>"

    # What a listener does with it

    def send(self, listener: Listener, pieces: list[bytes], *, to_head: bool = False, more: bool = False) -> None:
        """Send a request: its head and what there is of its body. `more`: `write` brings the rest."""
        self._listener = listener
        self._outlet = None
        self._to_head = to_head
        self._sending = more
        self.head = None
        self.chunked = None
        self.ended = False
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)

    def listen(self, listener: Listener) -> None:
        """Tell somebody else from now on."""
        self._listener = listener

    def shortcut(self, outlet: Outlet, begins: bytes, ends: bytes) -> None:
        """Until the listener is told of something else, a read that is one chunk of one line, with a blank line
        after it, which begins and ends like that, goes straight to `outlet`; the rest of it is kept in `kept`.

        The listener empties `kept` when it is told of the next bytes, at the latest after MOST_KEPT chunks.
        """
        chunked = self.chunked
        if chunked is not None and chunked.at_rest:
            self._ack_late(True)
            self._outlet = outlet
            ends += b"\r\n"
            if begins != self._begins or ends != self._ends:
                self._begins, self._ends, self._shapes = begins, ends, {}
        else:
            self._outlet = None

    def _ack_late(self, late: bool) -> None:
        if late is not self._late:
            self._late = late
            acknowledge(self._transport, at_once=not late)

    @property
    def head_framing(self) -> Framing:
        """How the end of the body is known."""
        assert self.head is not None
        return self.head.framing

    def write(self, piece: bytes, *, more: bool) -> None:
        """The next piece of a request's body; the last one has `more` False."""
        self._sending = more
        if piece:
            self._transport.write(piece)

    def pause(self, paused: bool) -> None:
        """Read nothing for now, because nobody takes it; or go on."""
        if paused is self._paused or self._transport.is_closing():
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def drop(self) -> None:
        """Nobody wants the answer any more: close at once, which is what makes a backend stop working."""
        self._listener = self._outlet = None
        self._transport.abort()

    # What the loop does with it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = transport  # type: ignore[assignment]
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        outlet = self._outlet
        if outlet is not None:
            # All in one frame, and few functions that are used again (three slices, where startswith and endswith
            # would be two more): to a processor that has just woken up every function is far.
            shape = self._shapes.get(len(data)) or self._shape_of(len(data))
            first, opening, middle, last = shape
            part = data[middle]
            if (
                data[first] == opening
                and data[last] == self._ends
                and b"\n" not in part
                and len(self.kept) < MOST_KEPT
            ):
                self.kept.append(part)
                self.kept_at.append(monotonic())
                descriptor, sent = outlet.descriptor, 0
                if descriptor >= 0:
                    try:
                        sent = write(descriptor, data)
                    except OSError:
                        sent = 0
                if sent != len(data):
                    outlet.put_rest(data[sent:])
                return
        listener = self._listener
        if listener is None:
            self._transport.abort()  # words that nobody asked for
            return
        try:
            if self.head is None:
                body = self._read_head(data)
                if body is None:
                    return
                data = body
            chunked = self.chunked
            if chunked is None:
                self._read_plain(data)
            else:
                chunked.feed(data)
                self.payload = chunked.payload
                self.raw = chunked.raw
                if chunked.ended:
                    self.ended = True
                    self._held = chunked.rest
        except (BadAnswer, BadFraming):
            self.drop()
            listener.lost(BackendLost(NO_HTTP, gone=True, again=True))
            return
        if self.ended:
            self._part()
        listener.answer(self)

    def eof_received(self) -> None:
        """asyncio's: the transport closes itself, and `connection_lost` says the rest."""

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        self._pool.forget(self)
        self._outlet = None
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if exc is None and self.head is not None and self.head.framing is Framing.CLOSE and not self._sending:
            self.payload = self.raw = b""
            self.ended = True
            listener.answer(self)
        else:
            listener.lost(BackendLost("connection lost", gone=True, again=True))

    def pause_writing(self) -> None:
        """asyncio's."""
        if self._listener is not None:
            self._listener.writable(False)

    def resume_writing(self) -> None:
        """asyncio's."""
        if self._listener is not None:
            self._listener.writable(True)

    # Reading

    def _shape_of(self, total: int) -> _Shape:
        if len(self._shapes) >= _MOST_SHAPES:
            self._shapes.clear()
        shape, line = _NO_CHUNK, size_line(total)
        if line is not None:
            begin, end = len(line) + len(self._begins), total - len(self._ends)
            if begin <= end:
                shape = (slice(0, begin), line + self._begins, slice(begin, end), slice(end, total))
        self._shapes[total] = shape
        return shape

    def _read_head(self, data: bytes) -> bytes | None:
        """Sets `head`; returns what came after it, or None while it is incomplete."""
        if self._held:
            data = self._held + data
            self._held = b""
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES or not data.startswith(b"HTTP/1."[: len(data)]):
                    raise BadAnswer("no head")
                self._held = data
                return None
            if end <= _REMEMBERED_BYTES:
                head = known_response_head(data[:end], self._to_head)
            else:
                head = parse_response_head(data[:end], to_head=self._to_head)
            data = data[end:]
            if head.status in _INTERIM:
                if not data:
                    return None
                continue  # interim; the answer is still to come
            if head.place and head.place == self._pool.origin[0]:
                head = head.without_location()
            self.head = head
            self._left = head.length
            if head.framing is Framing.CHUNKED:
                self.chunked = ChunkedBody()
            return data

    def _read_plain(self, data: bytes) -> None:
        """A body that is not chunked."""
        head = self.head
        assert head is not None
        if head.framing is not Framing.CLOSE:
            if len(data) > self._left:
                self._held = data[self._left :]
                data = data[: self._left]
            self._left -= len(data)
            self.ended = self._left == 0
        self.payload = self.raw = data

    def _part(self) -> None:
        """The answer is complete: back to the pool after a clean end, else close."""
        self._listener = self._outlet = None
        clean = self.head is not None and self.head.keep_alive and not self._sending and not self._held
        if clean and not self._transport.is_closing():
            self.pause(False)
            self._ack_late(False)
            self._pool.give_back(self)
        else:
            self._transport.abort() if self._sending else self._transport.close()
