"""Stream: one completion stream as its client sees it, by as many backends as it takes.

What a backend says is recorded on its way (`resume.recorder`). When it breaks off, stalls or tells an error, the
owner sends what is left to another backend, and its answer is told in the terms of the first
(`resume.splice`). A stream that can't go on ends with an error event: never silently.
"""

from __future__ import annotations

from typing import Final, Protocol

from tuna_router.books.meter import Tokens
from tuna_router.books.series import Histogram
from tuna_router.dataplane.account import usage_of
from tuna_router.dataplane.chunked import END
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.connection import BackendLost, Connection
from tuna_router.dataplane.response_head import ResponseHead
from tuna_router.envelope import error_event
from tuna_router.resume.ask import Ask, read_body
from tuna_router.resume.plan import Closing, Continuation, Refusal, client_of, plan
from tuna_router.resume.recorder import Recorder
from tuna_router.resume.splice import Splice, closing_events
from tuna_router.resume.spoken import Spoken

_LOOKS: Final = 4
"""How often a stall is looked for in the time that makes one: nothing is noted on a token's way."""


class Owner(Protocol):
    """Whose stream it is."""

    def broke(self, reason: str) -> None:
        """The backend is gone. Call `go_on`, `close` or `give_up`, now or later."""

    def finished(self) -> None:
        """All is said; the last bytes are about to be sent."""


class Stream:
    """Listens to the backend that speaks, if one does; `source` is its connection."""

    __slots__ = (
        "_chat",
        "_chunks",
        "_client",
        "_end_at",
        "_idle_s",
        "_last_at",
        "_moved_at",
        "_owner",
        "_progress",
        "_recorder",
        "_seen",
        "_splice",
        "_spoken",
        "_timer",
        "_write",
        "inter_token",
        "source",
        "told_bytes",
    )

    def __init__(
        self,
        client: ClientConnection,
        asked: Ask,
        owner: Owner,
        *,
        idle_s: float,
        end_at: float,
        cap_bytes: int,
        inter_token: Histogram,
    ) -> None:
        self._client = client
        self._chat = asked.chat
        self._owner = owner
        self._idle_s = idle_s
        self._end_at = end_at
        self._timer = client.timer
        self._write = client.write
        self._recorder = Recorder(hides_ids=asked.hides_ids, given_up=asked.refusal, cap_bytes=cap_bytes)
        self._spoken: Spoken | None = None
        self._splice: Splice | None = None
        self._chunks = True
        self._progress = self._seen = 0
        self._moved_at = 0.0
        self._last_at = 0.0
        self.inter_token = inter_token
        """Of the backend that speaks: seconds between pieces."""
        self.told_bytes = 0
        self.source: Connection | None = None

    def __repr__(self) -> str:
        return f"<Stream {'silent' if self.source is None else 'telling'}, {self.memory_bytes} bytes kept>"

    @property
    def memory_bytes(self) -> int:
        """About what is kept to go on from, in bytes."""
        spoken = self._spoken.memory_bytes if self._spoken is not None else self._recorder.memory_bytes
        return spoken + (sum(map(len, self.source.kept)) if self.source is not None else 0)

    @property
    def progress(self) -> int:
        """Grows with each piece that was told."""
        return self._progress + (len(self.source.kept) if self.source is not None else 0)

    @property
    def shown(self) -> int:
        """Characters that the client was shown; known once it has broken."""
        return self._spoken.shown if self._spoken is not None else 0

    @property
    def said_all(self) -> bool:
        """True when only the end can be missing."""
        return self._recorder.finished if self._splice is None else self._splice.finished

    @property
    def done(self) -> bool:
        """True when the client has [DONE], and only the end of the body is missing."""
        return self._recorder.done if self._splice is None else self._splice.done

    @property
    def may_go_on(self) -> bool:
        """False when it is known that another backend could not go on with it."""
        return self._spoken is not None or self._recorder.given_up is None

    def start(self, head: ResponseHead, first: bytes, source: Connection | None, own_lines: bytes) -> None:
        """Send the head and the first bytes; `source` brings the rest, None when that was all."""
        client = self._client
        assert client.head is not None
        lines = head.start + own_lines
        if client.head.http10:
            self._chunks = False
            client.closing = True
        else:
            lines += b"transfer-encoding: chunked\r\n"
        self._heard(b"%b%b\r\n" % (lines, client.connection_line), first, source, ended=source is None)

    def go_on(self, splice: Splice, first: bytes, source: Connection | None) -> None:
        """The first bytes of a continuation; the rest as with `start`."""
        self._splice = splice
        self._heard(b"", first, source, ended=source is None)

    def next_step(
        self, path: bytes, body: bytes, *, token_ids: bool, context_length: int | None
    ) -> Continuation | Closing | Refusal:
        """How the stream may go on at a backend which knows token ids, or not, and has this context."""
        if self._spoken is None:
            events = self._recorder.events()
            if events is None:
                if self.said_all:
                    return Closing(None, client_of(read_body(body) or {}))
                return Refusal(self._recorder.given_up or "it was not recorded")
            self._spoken = Spoken.read(events, chat=self._chat)
        return plan(path, body, self._spoken, token_ids=token_ids, context_length=context_length)

    def splice(self, continuation: Continuation) -> Splice:
        """What tells the answer to `continuation`; for `go_on`."""
        assert self._spoken is not None
        return Splice(self._spoken, continuation)

    def close(self, closing: Closing) -> None:
        """All was generated: say what is missing of the end."""
        spoken = self._spoken if self._spoken is not None else Spoken(chat=self._chat)
        told = closing_events(spoken, closing)
        self._owner.finished()
        self._finish(told)

    def give_up(self, message: str, code: str = "stream_broken") -> None:
        """End with an error event."""
        self._finish(error_event(message, code, b""))

    def tokens(self) -> Tokens:
        """What was used so far: as the backend tells it, else an estimate."""
        spoken = self._spoken
        if spoken is not None:
            prompt, said = spoken.prompt_tokens or 0, spoken.tokens
            return Tokens(prompt, said) if spoken.exact else Tokens(prompt, estimated=said)
        self._catch_up()
        recorder = self._recorder
        usage = usage_of(recorder.usage)
        return usage if usage is not None else Tokens(estimated=recorder.texts)

    # The connection's listener

    def connected(self, connection: Connection) -> None:
        """It is."""

    def writable(self, ready: bool) -> None:
        """The request was sent."""

    def answer(self, connection: Connection) -> None:
        """The backend's next bytes."""
        self._catch_up()
        self._heard(b"", connection.payload, connection, ended=connection.ended)

    def lost(self, error: BackendLost) -> None:
        """The backend broke off."""
        self.leave(error.reason)

    # What the exchange does with it

    def timer(self) -> bool:
        """The connection's timer fired. Returns True when the backend stalls, else looks again later."""
        now, progress = self._timer.now(), self.progress
        if progress != self._seen:
            self._seen = progress
            self._moved_at = now
        if now >= min(self._moved_at + self._idle_s, self._end_at):
            return True
        self._look_again()
        return False

    def paused(self, paused: bool) -> None:
        """The client takes no more for now; or it does again."""
        self._progress += 1  # it took something, or has just ceased to
        if self.source is not None:
            self.source.pause(paused)

    def cancel(self) -> None:
        """Stop the backend's work: nobody wants it any more."""
        if self.source is not None:
            self._catch_up()
            self.source.drop()
            self.source = None

    def drop(self) -> None:
        """The client is gone: so is the reason to go on."""
        self.cancel()
        self._forget()

    def leave(self, reason: str) -> None:
        """This backend says no more, whatever it still would."""
        told = b""
        self._catch_up()
        self.cancel()
        if self._splice is None:
            self._recorder.lost(reason)
        else:
            told = self._splice.lost(reason)
        if self.done:
            self._owner.finished()
            self._finish(told)
            return
        self._tell(told)
        self._owner.broke(reason)

    def _heard(self, begin: bytes, payload: bytes, source: Connection | None, *, ended: bool) -> None:
        """Tell what came, after `begin`; then either all is said, or something broke, or `source` goes on."""
        now = self._timer.now()
        if self.source is not None:
            self.inter_token.add(now - self._last_at)
        self._last_at = now
        self.told_bytes += len(payload)
        speaker = self._recorder if self._splice is None else self._splice
        told = speaker.feed(payload)
        if ended:
            told += speaker.end()
        self._progress += 1
        broken = speaker.broken
        if broken is None and not ended:
            assert source is not None
            if self.source is None:
                self._listen(source)
            if begin or told:
                self._write(begin + self._framed(told))
            if self._splice is None:
                source.shortcut(self._client, *self._recorder.ordinary)
            return
        if self.source is None:
            self.source = source if not ended else None
        if ended:
            self.source = None
        if broken is None:
            self._owner.finished()
            self._finish(told, begin)
            return
        if begin or told:
            self._write(begin + self._framed(told))
        self.cancel()
        self._owner.broke(broken)

    def _listen(self, source: Connection) -> None:
        self.source = source
        source.listen(self)
        if self._client.write_paused:
            source.pause(True)
        self._moved_at = self._timer.now()
        self._look_again()

    def _catch_up(self) -> None:
        """Record what took the shortcut."""
        source = self.source
        if source is not None and source.kept:
            self._progress += len(source.kept)
            self.told_bytes += self._recorder.took(source.kept)
            self.inter_token.add_between(self._last_at, source.kept_at)
            self._last_at = source.kept_at[-1]
            source.kept, source.kept_at = [], []

    def _tell(self, told: bytes) -> None:
        if told:
            self._write(self._framed(told))

    def _framed(self, told: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(told), told) if told and self._chunks else told

    def _finish(self, told: bytes, begin: bytes = b"") -> None:
        end = END if self._chunks else b""
        self._client.write(begin + self._framed(told) + end)
        self._client.finish(keep=self._chunks)
        self._forget()

    def _forget(self) -> None:
        """It is over. With its owner it makes a circle, and the collector, which seldom looks at what has lived
        for a while, would let all that was said lie in memory."""
        del self._owner

    def _look_again(self) -> None:
        self._timer.set_at(min(self._timer.now() + self._idle_s / _LOOKS, self._end_at))
