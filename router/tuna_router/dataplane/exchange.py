"""One client request from its head to the last byte of its answer: intake, choose, forward, relay, account.

No task and no coroutine: the parts call each other as bytes and deadlines come, so that a piece of a
stream is with the client in the turn of the loop in which it arrived.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from tuna_router.admission import Ticket
from tuna_router.core import Core
from tuna_router.dataplane.account import Account
from tuna_router.dataplane.chunked import END
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.forward import Answered, Failed, Forward, Refused, Result, asks_for_a_stream, patience
from tuna_router.dataplane.headers import own_lines, upstream_lines
from tuna_router.dataplane.relay import Relay
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.envelope import error_body
from tuna_router.fleet import Attempt, LiveBackend
from tuna_router.meter import Outcome
from tuna_router.policy import choose

_BODY_PATIENCE_S: Final = 60.0
_SECOND_CHANCE_PAUSE_S: Final = 0.05
_BUSY_COOLDOWN_S: Final = 1.0


class Exchange:
    """The state of one admitted request; the handler of its client's connection."""

    __slots__ = (
        "_account",
        "_again",
        "_attempt",
        "_attempts",
        "_backend",
        "_client",
        "_complete",
        "_core",
        "_deadline",
        "_failures",
        "_forward",
        "_head",
        "_key",
        "_last",
        "_left_patience_s",
        "_over",
        "_patience_s",
        "_pieces",
        "_reason",
        "_relay",
        "_request_id",
        "_second_chance",
        "_size",
        "_streams",
        "_ticket",
        "_timed_out",
        "_waiting",
    )

    def __init__(
        self,
        core: Core,
        client: ClientConnection,
        head: RequestHead,
        *,
        request_id: bytes,
        key: bytes | None,
        ticket: Ticket,
    ) -> None:
        self._core = core
        self._client = client
        self._head = head
        self._request_id = request_id
        self._key = key
        self._ticket = ticket
        self._account = Account(core.meter, head.target)
        self._deadline = client.timer.now() + core.settings.request_timeout_s
        self._pieces: list[bytes] = []
        self._size = 0
        self._complete = False
        self._streams = False
        """True when the body was longer than the cap: it flows through and can be sent only once."""
        self._attempts = 0
        self._waiting: deque[LiveBackend] = deque()
        self._backend: LiveBackend | None = None
        self._attempt: Attempt | None = None
        self._forward: Forward | None = None
        self._relay: Relay | None = None
        self._again: asyncio.TimerHandle | None = None
        self._second_chance = False
        self._failures: list[str] = []
        self._last: Refused | None = None
        self._reason = ""
        self._timed_out = False
        self._patience_s = 0.0
        self._left_patience_s = 0.0
        self._over = False
        if head.length != 0:
            client.timer.set(min(_BODY_PATIENCE_S, core.settings.request_timeout_s))

    def __repr__(self) -> str:
        place = self._backend.settings.name if self._backend is not None else "nowhere yet"
        return f"<Exchange {self._request_id!r} at {place}, attempt {self._attempts}>"

    # Intake: the connection's handler

    def body(self, piece: bytes) -> None:
        """The next bytes of the request's body."""
        self._size += len(piece)
        if self._size > self._core.settings.body_limit_bytes:
            self._too_large()
        elif self._streams:
            self._client.timer.set(_BODY_PATIENCE_S)
            self._stream(piece, more=True)
        else:
            self._pieces.append(piece)
            if self._size > self._core.settings.body_cap_bytes and self._size != self._head.length:
                self._streams = True
                self._client.pause_reading(True)
                self._plan()
            elif self._size != self._head.length:
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
            if self._client.write_paused:
                self._drop(Outcome.CANCELLED)  # it is the client that stalls
                self._client.abort()
            else:
                self._relay.break_off("it stalled")
        elif not self._complete and not self._client.read_paused:
            if self._attempt is not None:
                self._attempt.close(Outcome.CANCELLED)
            self._drop(Outcome.FAILED)
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
            self._end(Outcome.CANCELLED)
            self._relay.break_off("the router is stopping", "The router is stopping.", "router_stopping")
        else:
            self._drop(Outcome.CANCELLED)
            self._error(503, "The router is stopping.", "router_stopping")

    # Choose

    def _plan(self) -> None:
        fleet = self._core.fleet
        fleet.traffic()
        plan = choose(fleet.views())
        self._reason = plan.reason
        self._waiting.extend([fleet[name] for name in plan.names])
        self._second_chance = len(self._waiting) == 1 and not self._streams
        self._next()

    def _next(self) -> None:
        """Try the next backend of the plan, or say that there is none."""
        self._again = None
        if not self._waiting:
            self._give_up()
            return
        left_s = self._left_s()
        if left_s <= 0:
            self._timed_out = True
            self._last = None
            self._give_up()
            return
        core, head = self._core, self._head
        backend = self._backend = self._waiting.popleft()
        self._attempts += 1
        if self._attempts > 1:
            core.meter.failovers += 1
        self._attempt = backend.begin()
        self._patience_s, self._left_patience_s = patience(
            core.settings, backend.settings.kind, head, None if self._streams else self._pieces
        )
        if not self._streams:
            self._client.timer.set(max(min(self._patience_s, left_s), 0.001))
        route = backend.route
        lines = upstream_lines(
            head.headers, route.own_names, route.own_lines, self._request_id, self._key, nominated=head.nominated
        )
        if self._streams:
            length = head.length
            lines += b"transfer-encoding: chunked\r\n" if length is None else _length(length)
        elif self._size or head.framed or head.may_have_body:
            lines += _length(self._size)
        pieces = [route.request(head.method, head.target, lines)]
        if self._streams and head.length is None:
            pieces += [_chunk(piece) for piece in self._pieces]
        else:
            pieces += self._pieces
        forward = self._forward = Forward(pieces, self._result, to_head=head.method == b"HEAD", more=self._streams)
        if self._streams:
            self._pieces = []
            forward.when_writable(self._writable)
        forward.start(core.upstream, route, core.settings.connect_timeout_s)

    def _left_s(self) -> float:
        return self._deadline - self._client.timer.now()

    # Forward

    def _stream(self, piece: bytes, *, more: bool) -> None:
        if self._head.length is None:
            piece = (_chunk(piece) if piece else b"") + (b"" if more else END)
        if self._forward is not None:
            self._forward.write(piece, more=more)  # also while the answer comes already

    def _writable(self, ready: bool) -> None:
        """The backend takes more of the request's body, or none for now."""
        if not self._over:
            self._client.pause_reading(not ready)

    def _result(self, result: Result) -> None:
        """What came of the attempt."""
        backend, attempt = self._backend, self._attempt
        assert backend is not None
        assert attempt is not None
        name = backend.settings.name
        if isinstance(result, Answered):
            if not (result.hollow and self._waiting and not self._streams):
                self._deliver(backend, attempt, result)
                return
            if result.connection is not None:
                result.connection.drop()
            self._failed(backend, attempt, "an error before the first token")
            self._failures.append(f"{name}: an error before the first token")
        else:
            self._note(backend, attempt, result)
            self._failures.append(f"{name}: {result.reason}")
            if isinstance(result, Refused):
                self._last = result
            else:
                self._last = None
                self._timed_out = result.timed_out
        self._forward = None
        attempt.close(Outcome.FAILED)
        if self._streams:
            self._give_up()
        elif isinstance(result, Failed) and result.again and self._second_chance:
            # The only backend: a kept connection may have been closed just then, or another replica
            # behind the same address may answer.
            self._second_chance = False
            self._waiting.append(backend)
            self._client.timer.clear()
            self._again = asyncio.get_running_loop().call_later(_SECOND_CHANCE_PAUSE_S, self._next)
        else:
            self._next()

    def _failed(self, backend: LiveBackend, attempt: Attempt, reason: str) -> None:
        backend.failed(attempt, reason, gone=True, cooldown_s=self._core.settings.cooldown_s)

    def _note(self, backend: LiveBackend, attempt: Attempt, result: Refused | Failed) -> None:
        cooldown_s = self._core.settings.cooldown_s
        if isinstance(result, Refused) and result.busy:
            backend.busy(result.reason, cooldown_s=min(_BUSY_COOLDOWN_S, cooldown_s))
        else:
            backend.failed(attempt, result.reason, gone=result.gone, cooldown_s=cooldown_s)

    # Relay

    def _deliver(self, backend: LiveBackend, attempt: Attempt, result: Answered) -> None:
        core = self._core
        reader = self._account.answers(attempt, result.head)
        core.meter.answer(backend.settings.name, backend.settings.kind, result.head.status)
        self._relay = Relay(
            self._client, reader, self._done, idle_s=core.settings.stream_idle_timeout_s, end_at=self._deadline
        )
        if not self._streams:
            self._forward = None
            self._pieces = []
        self._relay.start(result, own_lines(backend.route.backend_line, self._attempts, self._request_id))

    def _done(self, broken: str | None) -> None:
        """The answer is over; its last bytes are about to be sent."""
        self._relay = self._forward = None
        if self._over:
            return
        backend, attempt, reader = self._backend, self._attempt, self._account.reader
        assert backend is not None
        assert attempt is not None
        if broken is None and (reader is None or not reader.error_seen):
            outcome = Outcome.FINISHED
            backend.served()
        else:
            outcome = Outcome.FAILED
            self._core.meter.broken_streams += 1
            self._failed(backend, attempt, broken or "an error in the middle of a stream")
        self._end(outcome)

    # Ends

    def _give_up(self) -> None:
        """No backend answers: pass the last refusal on, or say so ourselves."""
        refused, backend = self._last, self._backend
        if refused is not None and backend is not None:
            head, client, settings = refused.head, self._client, backend.settings
            self._core.meter.answer(settings.name, settings.kind, head.status)
            lines = own_lines(backend.route.backend_line, self._attempts, self._request_id)
            self._end(Outcome.FAILED)
            client.pass_on(head.start_line, head.lines_without_length + lines, refused.body)
        elif self._timed_out:
            self._error(504, f"No backend answered in time ({'; '.join(self._failures)}).", "timeout")
        elif self._failures:
            message = f"No backend could answer ({'; '.join(self._failures)})."
            self._error(502, message, "backends_unavailable")
        else:
            self._error(503, f"No backend can answer: {self._reason}.", "no_backend")

    def _too_large(self) -> None:
        begun = self._relay is not None
        if self._attempt is not None:
            self._attempt.close(Outcome.CANCELLED)
        self._drop(Outcome.FAILED)
        if begun:
            self._client.abort()
        else:
            self._error(413, "The request's body is too large.", "body_too_large")

    def _error(self, status: int, message: str, code: str) -> None:
        self._end(Outcome.FAILED)
        lines = own_lines(b"retry-after: 5\r\n" if status == 503 else b"", self._attempts, self._request_id)
        kind = "invalid_request_error" if status < 500 else "upstream_error"
        self._client.answer(status, error_body(message, kind, code), lines)

    def _drop(self, outcome: Outcome) -> None:
        """Stop all work for this request."""
        if self._again is not None:
            self._again.cancel()
        self._end(outcome)
        if self._relay is not None:
            self._relay.cancel()
        elif self._forward is not None:
            self._forward.cancel()
        self._relay = self._forward = None

    def _end(self, outcome: Outcome) -> None:
        """The request is over; the first call counts. Called before the last bytes of its answer are sent."""
        if self._over:
            return
        self._over = True
        if self._attempt is not None:
            self._attempt.close(outcome)
        self._account.close(outcome)
        self._ticket.leave()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _length(size: int) -> bytes:
    return b"content-length: %d\r\n" % size
