"""One client request from its head to the last byte of its answer: intake, choose, forward, relay, account.

No task and no coroutine: the parts call each other as bytes and deadlines come, so that a piece of a
stream is with the client in the turn of the loop in which it arrived.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tuna_router.admission import Ticket
from tuna_router.core import Core
from tuna_router.dataplane.account import Account, Reader, begins_with_an_error, usage_of
from tuna_router.dataplane.chunked import END
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.connection import Connection
from tuna_router.dataplane.forward import Failed, Forward, Refused, asks_for_a_stream, patience
from tuna_router.dataplane.headers import own_lines
from tuna_router.dataplane.relay import Relay
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.dataplane.response_head import ResponseHead
from tuna_router.envelope import error_body
from tuna_router.fleet import LiveBackend
from tuna_router.meter import Outcome
from tuna_router.policy import choose

_BODY_PATIENCE_S: Final = 60.0
_SECOND_CHANCE_PAUSE_S: Final = 0.05
_BUSY_COOLDOWN_S: Final = 1.0


class Exchange:
    """The state of one admitted request; the handler of its client's connection."""

    # Most requests change few of these: a default of the class costs nothing.
    _complete = False
    _streams = False
    """True when the body was longer than the cap: it flows through and can be sent only once."""
    _size = 0
    _attempts = 0
    _backend: LiveBackend | None = None
    _forward: Forward | None = None
    _relay: Relay | None = None
    _again: asyncio.TimerHandle | None = None
    _second_chance = False
    _last: Refused | None = None
    _reason = ""
    _timed_out = False
    _patience_s = 0.0
    _left_patience_s = 0.0
    _over = False
    _failures: tuple[str, ...] = ()

    def __init__(
        self, core: Core, client: ClientConnection, head: RequestHead, request_id: bytes, ticket: Ticket
    ) -> None:
        now = core.clock()
        self._core = core
        self._client = client
        self._head = head
        self._request_id = request_id
        self._ticket = ticket
        self._account = Account(core.meter, now)
        self._deadline = now + core.settings.request_timeout_s
        self._pieces: list[bytes] = []
        self._waiting: list[LiveBackend] = []
        """The rest of the plan, the next one last."""
        if client.length != 0:
            client.timer.set_at(now + min(_BODY_PATIENCE_S, core.settings.request_timeout_s))

    def __repr__(self) -> str:
        place = self._backend.settings.name if self._backend is not None else "nowhere yet"
        return f"<Exchange {self._request_id!r} at {place}, attempt {self._attempts}>"

    # Intake: the connection's handler

    def body(self, piece: bytes) -> None:
        """The next bytes of the request's body."""
        self._size += len(piece)
        if self._size == self._client.length and not self._streams:
            self._pieces.append(piece)
        elif self._size > self._core.settings.body_limit_bytes:
            self._too_large()
        elif self._streams:
            self._client.timer.set(_BODY_PATIENCE_S)
            self._stream(piece, more=True)
        else:
            self._pieces.append(piece)
            if self._size > self._core.settings.body_cap_bytes:
                self._streams = True
                self._client.pause_reading(True)
                self._plan()
            else:
                self._client.timer.set(_BODY_PATIENCE_S)

    def body_end(self) -> None:
        """The request is complete."""
        self._complete = True
        if self._streams:
            self._stream(b"", more=False)
            if self._relay is None and self._forward is not None:
                self._client.timer.set(max(min(self._patience_s, self._left_s()), 0.001))
        else:
            self._plan()

    def gone(self) -> None:
        """The client went away: stop the work for it."""
        self._drop(Outcome.CANCELLED)

    def paused(self, paused: bool) -> None:
        """The client takes no more of the answer for now; or it does again."""
        if self._relay is not None:
            self._relay.paused(paused)

    def timer(self) -> None:
        """A deadline passed."""
        if self._relay is not None:
            if not self._relay.timer():
                return
            if self._client.write_paused:
                self._drop(Outcome.CANCELLED)  # it is the client that stalls
                self._client.abort()
            else:
                self._relay.break_off("it stalled")
        elif not self._complete and not self._client.read_paused:
            self._blame_the_client()
            self._error(408, "The request's body did not arrive in time.", "request_timeout")
        elif self._forward is not None:
            left_s, self._left_patience_s = self._left_patience_s, 0.0
            if left_s and not asks_for_a_stream(self._pieces) and self._left_s() > 0:
                # No stream was asked for: such an answer comes all at once, at its end.
                self._patience_s += left_s
                self._client.timer.set(max(min(left_s, self._left_s()), 0.001))
            else:
                self._forward.time_out(self._patience_s)

    def stop(self) -> None:
        """The router ends now."""
        if self._relay is not None:
            self._end(Outcome.CANCELLED, self._core.clock())
            self._relay.break_off("the router is stopping", "The router is stopping.", "router_stopping")
        else:
            self._drop(Outcome.CANCELLED)
            self._error(503, "The router is stopping.", "router_stopping")

    # Choose

    def _plan(self) -> None:
        fleet = self._core.fleet
        fleet.traffic()
        names, self._reason = choose(fleet.views())
        self._waiting = [fleet[name] for name in reversed(names)]
        self._second_chance = len(names) == 1 and not self._streams
        self._next()

    def _next(self) -> None:
        """Try the next backend of the plan, or say that there is none."""
        core, client, head = self._core, self._client, self._head
        self._again = None
        now = core.clock()
        if not self._waiting:
            self._give_up()
            return
        if now >= self._deadline:
            self._timed_out = True
            self._last = None
            self._give_up()
            return
        backend = self._backend = self._waiting.pop()
        self._attempts += 1
        if self._attempts > 1:
            core.meter.failovers += 1
        self._account.tries(backend, now)
        route = backend.route
        begins = head.begins(route)
        if self._streams:
            self._flow(begins, backend)
            return
        self._patience_s, self._left_patience_s = patience(core.settings, backend.settings.kind, head, self._pieces)
        client.timer.set_at(min(now + self._patience_s, self._deadline))
        if self._size or head.framed or head.may_have_body:
            begins = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (begins, self._request_id, self._size)
        else:
            begins = b"%bx-request-id: %b\r\n\r\n" % (begins, self._request_id)
        forward = self._forward = Forward(self, [begins, *self._pieces], to_head=head.method == b"HEAD")
        forward.start(core.upstream, route, core.settings.connect_timeout_s)

    def _flow(self, begins: bytes, backend: LiveBackend) -> None:
        """Send a request whose body is still coming."""
        core, head, length = self._core, self._head, self._client.length
        self._patience_s, self._left_patience_s = patience(core.settings, backend.settings.kind, head, None)
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        begins = b"%bx-request-id: %b\r\n%b\r\n\r\n" % (begins, self._request_id, framing)
        pieces = [_chunk(piece) for piece in self._pieces] if length is None else self._pieces
        self._pieces = []
        self._forward = Forward(self, [begins, *pieces], to_head=head.method == b"HEAD", more=True)
        self._forward.start(core.upstream, backend.route, core.settings.connect_timeout_s)

    def _left_s(self) -> float:
        return self._deadline - self._core.clock()

    # Forward

    def _stream(self, piece: bytes, *, more: bool) -> None:
        if self._client.length is None:
            piece = (_chunk(piece) if piece else b"") + (b"" if more else END)
        if self._forward is not None:
            self._forward.write(piece, more=more)  # also while the answer comes already

    def writable(self, ready: bool) -> None:
        """The backend takes more of a body that flows through, or none for now."""
        if not self._over:
            self._client.pause_reading(not ready)

    def failed(self, failure: Refused | Failed) -> None:
        """No answer of this backend, or one that another may better."""
        core, account, backend = self._core, self._account, self._backend
        attempt = account.attempt
        assert backend is not None
        assert attempt is not None
        self._forward = None
        cooldown_s = core.settings.cooldown_s
        if isinstance(failure, Refused):
            self._last = failure
        else:
            self._last = None
            self._timed_out = failure.timed_out
        if isinstance(failure, Refused) and failure.busy:
            backend.busy(failure.reason, cooldown_s=min(_BUSY_COOLDOWN_S, cooldown_s))
        else:
            backend.failed(attempt, failure.reason, gone=failure.gone, cooldown_s=cooldown_s)
        self._failures = (*self._failures, f"{backend.settings.name}: {failure.reason}")
        attempt.close(Outcome.FAILED, core.clock())
        sent = isinstance(failure, Refused) or failure.sent
        if self._streams or (sent and not self._may_be_sent_again()):
            self._give_up()
        elif isinstance(failure, Failed) and failure.again and self._second_chance:
            # The only backend: a kept connection may have been closed just then, or another replica
            # behind the same address may answer.
            self._second_chance = False
            self._waiting.append(backend)
            self._client.timer.clear()
            self._again = asyncio.get_running_loop().call_later(_SECOND_CHANCE_PAUSE_S, self._next)
        else:
            self._next()

    def _may_be_sent_again(self) -> bool:
        """After an attempt that reached somebody."""
        core = self._core
        if self._head.once or self._attempts >= core.settings.max_attempts:
            return False
        return not (self._waiting or self._second_chance) or core.retries.take(core.meter.requests.started)

    # Relay

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """The answer, complete."""
        core, client, account, backend = self._core, self._client, self._account, self._backend
        assert backend is not None
        self._forward = None
        now = core.clock()
        account.answers(head.status, now)
        if head.whole:
            account.tokens = usage_of(body) or account.tokens
        backend.served()
        lines = own_lines(backend.route.backend_line, self._attempts, self._request_id)
        self._end(Outcome.FINISHED, now)
        client.pass_on(head, lines, body)

    def begins(self, head: ResponseHead, first: bytes, raw: bytes, connection: Connection | None) -> None:
        """The first bytes of an answer that is passed on as it comes."""
        core, account, backend = self._core, self._account, self._backend
        assert backend is not None
        if head.streams and self._waiting and not self._streams and begins_with_an_error(first):
            if connection is not None:
                connection.drop()
            self.failed(Failed("an error before the first token", gone=True))
            return
        now = core.clock()
        account.answers(head.status, now)
        if head.streams:
            account.streams(Reader(self._head.path, head.status), now)
        relay = self._relay = Relay(
            self._client,
            account.reader,
            self._done,
            idle_s=core.settings.stream_idle_timeout_s,
            end_at=self._deadline,
        )
        if not self._streams:
            self._forward = None
            self._pieces = []
        lines = own_lines(backend.route.backend_line, self._attempts, self._request_id)
        relay.start(head, first, raw, connection, lines)

    def _done(self, broken: str | None) -> None:
        """The answer is over; its last bytes are about to be sent."""
        self._relay = self._forward = None
        if self._over:
            return
        backend, account = self._backend, self._account
        attempt, reader = account.attempt, account.reader
        assert backend is not None
        assert attempt is not None
        outcome = Outcome.FINISHED
        if broken is None and (reader is None or not reader.error_seen):
            backend.served()
        else:
            outcome = Outcome.FAILED
            self._core.meter.broken_streams += 1
            reason = broken or "an error in the middle of a stream"
            backend.failed(attempt, reason, gone=True, cooldown_s=self._core.settings.cooldown_s)
        self._end(outcome, self._core.clock())

    # Ends

    def _give_up(self) -> None:
        """No backend answers: pass the last refusal on, or say so ourselves."""
        refused, backend = self._last, self._backend
        if refused is not None and backend is not None:
            self._account.answers(refused.head.status, self._core.clock())
            lines = own_lines(backend.route.backend_line, self._attempts, self._request_id)
            self._end(Outcome.FAILED, self._core.clock())
            self._client.pass_on(refused.head, lines, refused.body)
        elif self._timed_out:
            self._error(504, f"No backend answered in time ({'; '.join(self._failures)}).", "timeout")
        elif self._failures:
            message = f"No backend could answer ({'; '.join(self._failures)})."
            self._error(502, message, "backends_unavailable")
        else:
            self._error(503, f"No backend can answer: {self._reason}.", "no_backend")

    def _too_large(self) -> None:
        begun = self._relay is not None
        self._blame_the_client()
        if begun:
            self._client.abort()
        else:
            self._error(413, "The request's body is too large.", "body_too_large")

    def _blame_the_client(self) -> None:
        """Stop all work; the backend did nothing wrong."""
        if self._account.attempt is not None:
            self._account.attempt.close(Outcome.CANCELLED, self._core.clock())
        self._drop(Outcome.FAILED)

    def _error(self, status: int, message: str, code: str) -> None:
        self._end(Outcome.FAILED, self._core.clock())
        lines = own_lines(b"retry-after: 5\r\n" if status == 503 else b"", self._attempts, self._request_id)
        kind = "invalid_request_error" if status < 500 else "upstream_error"
        self._client.answer(status, error_body(message, kind, code), lines)

    def _drop(self, outcome: Outcome) -> None:
        """Stop all work for this request."""
        if self._again is not None:
            self._again.cancel()
        self._end(outcome, self._core.clock())
        if self._relay is not None:
            self._relay.cancel()
        elif self._forward is not None:
            self._forward.cancel()
        self._relay = self._forward = None

    def _end(self, outcome: Outcome, now: float) -> None:
        """The request is over; the first call counts. Called before the last bytes of its answer are sent."""
        if not self._over:
            self._over = True
            self._account.close(outcome, now)
            self._ticket.leave()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)
