"""Relay: bytes to the client as they come, each read in the turn of the loop in which it came; and when
they stop coming, an end that says so.

Where both sides speak chunks, the backend's framing is passed on as it is; the terminator is written
here, so that a stream that ends without a finish can still be given an error event.
"""

from __future__ import annotations

from collections.abc import Callable

from tuna_router.dataplane.account import Reader
from tuna_router.dataplane.chunked import END
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.connection import BackendLost, Connection
from tuna_router.dataplane.response_head import Framing, ResponseHead
from tuna_router.envelope import error_event

_RAW, _CHUNK, _PLAIN = range(3)


class Relay:
    """Passes one answer on, from its first byte to its end.

    `done` is called once, before the last bytes are sent, so that whoever has read them finds the request
    counted and its place free: with None or with what broke it, and whether an error event was told. A stall
    is either side's: nothing read or written for `idle_s` (and up to a quarter more), or not done by `end_at`
    on the connection's clock. `reader` reads along where the answer is an event stream.
    """

    __slots__ = (
        "_client",
        "_done",
        "_end_at",
        "_idle_s",
        "_last",
        "_mode",
        "_moved_at",
        "_progress",
        "_reader",
        "_seen",
        "_source",
        "_timer",
        "_write",
    )

    def __init__(
        self,
        client: ClientConnection,
        reader: Reader | None,
        done: Callable[[str | None, bool], None],
        *,
        idle_s: float,
        end_at: float,
    ) -> None:
        self._client = client
        self._reader = reader
        self._done = done
        self._idle_s = idle_s
        self._end_at = end_at
        self._timer = client.timer
        self._write = client.write
        self._source: Connection | None = None
        self._mode = _PLAIN
        self._last = b""
        self._progress = 0
        self._seen = 0
        self._moved_at = self._timer.now()

    def start(
        self, head: ResponseHead, first: bytes, raw: bytes, source: Connection | None, own_lines: bytes
    ) -> None:
        """Send the head and the first bytes; `source` brings the rest, None when that was all."""
        client = self._client
        request = client.head
        assert request is not None
        framing = head.framing
        lines = head.lines
        if framing is Framing.CHUNKED or framing is Framing.CLOSE:
            if request.http10:
                client.closing = True
            else:
                self._mode = _RAW if framing is Framing.CHUNKED else _CHUNK
                lines += b"transfer-encoding: chunked\r\n"
        if source is not None and not client.body_is_complete:
            client.closing = True
        begin = b"%b%b%b%b\r\n" % (head.start_line, lines, own_lines, client.connection_line)
        if first and self._reader is not None:
            self._reader.feed(first)
            self._last = first
        if source is None:
            self._finish(begin, first, raw)
            return
        self._source = source
        source.listen(self)
        if client.write_paused:
            source.pause(True)
        client.write(begin + self._framed(first, raw))
        self._look_again()

    def answer(self, connection: Connection) -> None:
        """The backend's next bytes."""
        payload = connection.payload
        self._progress += 1
        if payload and self._reader is not None:
            self._reader.feed(payload)
            self._last = payload if len(payload) >= 4 else (self._last + payload)[-4:]
        if connection.ended:
            self._finish(b"", payload, connection.raw)
            return
        piece = connection.raw if self._mode == _RAW else self._framed(payload, connection.raw)
        if piece:
            self._write(piece)

    def timer(self) -> bool:
        """The connection's timer fired. Returns True when the answer stalls, else looks again later."""
        now = self._timer.now()
        if self._progress != self._seen:
            self._seen = self._progress
            self._moved_at = now
        if now >= min(self._moved_at + self._idle_s, self._end_at):
            return True
        self._look_again()
        return False

    def lost(self, error: BackendLost) -> None:
        """The backend broke off."""
        self.break_off(error.reason)

    def paused(self, paused: bool) -> None:
        """The client takes no more for now; or it does again."""
        if self._source is not None:
            self._source.pause(paused)
            self._progress += 1  # the client took something, or has just ceased to

    def cancel(self) -> None:
        """The client is gone: so is the reason to work."""
        source, self._source = self._source, None
        if source is not None:
            source.drop()

    def break_off(self, reason: str, message: str | None = None, code: str = "stream_broken") -> None:
        """End an incomplete answer: an event stream with an error event, anything else incomplete."""
        source = self._source
        assert source is not None
        end = None
        self.cancel()
        if self._reader is not None:
            text = message or f"The backend broke off in the middle of its answer: {reason}."
            end = self._last_word(source, error_event(text, code, self._last[-4:]))
        self._done(reason, False)
        if end is None:
            self._client.cut(framed=self._mode != _PLAIN or source.head_framing is Framing.LENGTH)
        else:
            self._client.write(end)
            self._client.finish(keep=self._mode != _PLAIN)

    def connected(self, connection: Connection) -> None:
        """It is."""

    def writable(self, ready: bool) -> None:
        """Of a request body that still flows while the answer comes already."""
        self._client.pause_reading(not ready)

    def _finish(self, begin: bytes, payload: bytes, raw: bytes) -> None:
        """The backend's answer is complete, `payload` being its last bytes."""
        self._source = None
        cut_short = self._reader is not None and self._reader.cut_short
        broken = "the stream ended without a finish" if cut_short else None
        end = self._framed(payload, raw)
        if broken is not None and (self._mode != _PLAIN or self._client.closing):
            message = f"The backend broke off in the middle of its answer: {broken}."
            event = error_event(message, "stream_broken", self._last[-4:])
            end += self._framed(event, b"%x\r\n%b\r\n" % (len(event), event))
        self._done(broken, self._reader is not None and self._reader.error_seen)
        tail = END if self._mode != _PLAIN else b""
        if begin or end or tail:
            self._client.write(begin + end + tail)
        self._client.finish()

    def _last_word(self, source: Connection, event: bytes) -> bytes | None:
        """`event` and the end of the body, framed; None where the framing leaves no room for it."""
        if self._mode == _PLAIN:
            return None if source.head_framing is Framing.LENGTH else event
        closing = b""
        if self._mode == _RAW:
            chunked = source.chunked
            assert chunked is not None
            filled = chunked.closing()
            if filled is None:
                return None
            closing = filled
        return b"%b%x\r\n%b\r\n%b" % (closing, len(event), event, END)

    def _framed(self, payload: bytes, raw: bytes) -> bytes:
        if self._mode == _RAW:
            return raw
        if self._mode == _CHUNK:
            return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        return payload

    def _look_again(self) -> None:
        timer = self._timer
        timer.set_at(min(timer.now() + self._idle_s / 4, self._end_at))
