"""One client request from its head to the last byte of its answer: intake, choose, forward, relay, account.

No task and no coroutine: the parts call each other as bytes and deadlines come, so that a piece of a
stream is with the client in the turn of the loop in which it arrived.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tuna_router.admission import Ticket
from tuna_router.books.meter import Outcome
from tuna_router.core import STOPPED, Core
from tuna_router.dataplane.account import Account, Reader, begins_with_an_error, usage_of
from tuna_router.dataplane.again import is_late, may_be_sent_again
from tuna_router.dataplane.chunked import END, chunk_of
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.connection import Connection
from tuna_router.dataplane.forward import FELL_SILENT, Failed, Forward, Refused, asks_for_a_stream, patience
from tuna_router.dataplane.headers import own_lines
from tuna_router.dataplane.outgoing import begun_request, whole_request
from tuna_router.dataplane.relay import Relay
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.dataplane.response_head import ResponseHead
from tuna_router.dataplane.resuming import Resuming
from tuna_router.dataplane.wish import BadWish
from tuna_router.envelope import error_body
from tuna_router.fleet.live import LiveBackend
from tuna_router.policy import PLAIN, Wish
from tuna_router.resume.ask import Ask, ask, refuses_token_ids
from tuna_router.told.access_log import Entry

_BODY_PATIENCE_S: Final = 60.0
_SECOND_CHANCE_PAUSE_S: Final = 0.05


class Exchange:
    """The state of one admitted request; the handler of its client's connection."""

    # Most requests change few of these: a default of the class costs nothing.
    _complete = False
    _streams = False
    """True when the body was longer than the cap: it flows through and can be sent only once."""
    _size = 0
    held_bytes = 0
    """What `core.bodies` counts of it."""
    _attempts = 0
    _backend: LiveBackend | None = None
    _forward: Forward | None = None
    _relay: Relay | None = None
    _asked: Ask | None = None
    _resuming: Resuming | None = None
    _again: asyncio.TimerHandle | None = None
    _second_chance = False
    _last: Refused | None = None
    _reason = ""
    _timed_out = False
    _patience_s = 0.0
    _left_patience_s = 0.0
    _over = False
    _status = 0
    _told_bytes = 0
    _failures: tuple[str, ...] = ()
    wish: Wish = PLAIN
    _load_stays = False

    def __init__(
        self, core: Core, client: ClientConnection, head: RequestHead, request_id: bytes, ticket: Ticket
    ) -> None:
        now = core.clock()
        self.core = core
        self.client = client
        self.head = head
        self.request_id = request_id
        self._ticket = ticket
        self.account = Account(core.meter, now, ticket.key)
        self.deadline = now + core.settings.request_timeout_s
        self._pieces: list[bytes] = []
        self._waiting: list[LiveBackend] = []
        """The rest of the plan, the next one last."""
        if client.length != 0:
            client.timer.set_at(min(now + _BODY_PATIENCE_S, self.deadline))

    def __repr__(self) -> str:
        place = self._backend.settings.name if self._backend is not None else "nowhere yet"
        return f"<Exchange {self.request_id!r} at {place}, attempt {self._attempts}>"

    # Intake: the connection's handler

    def body(self, piece: bytes) -> None:
        """The next bytes of the request's body."""
        self._size += len(piece)
        if self._size == self.client.length and not self._streams:
            self._pieces.append(piece)
        elif self._size > self.core.settings.body_limit_bytes:
            self._too_large()
        elif self._streams:
            self._wait_for_more()
            self._stream(piece, more=True)
        else:
            self._pieces.append(piece)
            if not self.core.bodies.keep(self, len(piece)) or self._size > self.core.settings.body_cap_bytes:
                self._streams = True
                self.client.pause_reading(True)
                self._plan()
            else:
                self._wait_for_more()

    def _wait_for_more(self) -> None:
        """A body that stands still is given up, and one that is dripped at the request's deadline."""
        timer = self.client.timer
        timer.set_at(min(timer.now() + _BODY_PATIENCE_S, self.deadline))

    def body_end(self) -> None:
        """The request is complete."""
        self._complete = True
        if self._streams:
            self._stream(b"", more=False)
            if self._relay is None and self._forward is not None:
                self.client.timer.set(max(min(self._patience_s, self._left_s()), 0.001))
        else:
            self._plan()

    def gone(self) -> None:
        """The client went away: stop the work for it."""
        if self._resuming is not None:
            self._resuming.drop(Outcome.CANCELLED)
        else:
            self._drop(Outcome.CANCELLED)

    def paused(self, paused: bool) -> None:
        """The client takes no more of the answer for now; or it does again."""
        if self._resuming is not None:
            self._resuming.stream.paused(paused)
        elif self._relay is not None:
            self._relay.paused(paused)

    def timer(self) -> None:
        """A deadline passed."""
        if self._resuming is not None:
            self._resuming.timer()
            return
        if self._relay is not None:
            if not self._relay.timer():
                return
            if self.client.write_paused:
                self._drop(Outcome.CANCELLED)  # it is the client that stalls
                self.client.abort()
            else:
                self._relay.break_off("it stalled")
        elif not self._complete and not self.client.read_paused:
            self._blame_the_client(408)
            self._error(408, "The request's body did not arrive in time.", "request_timeout")
        elif self._forward is not None:
            left_s, self._left_patience_s = self._left_patience_s, 0.0
            if left_s and not asks_for_a_stream(self._pieces) and self._left_s() > 0:
                # No stream was asked for: such an answer comes all at once, at its end.
                self._patience_s += left_s
                self.client.timer.set(max(min(left_s, self._left_s()), 0.001))
            else:
                self._forward.time_out(self._patience_s)

    def stop(self) -> None:
        """The router ends now."""
        if self._resuming is not None:
            self._resuming.stop()
        elif self._relay is not None:
            self.end(Outcome.CANCELLED, self.core.clock())
            self._relay.break_off("the router is stopping", "The router is stopping.", "router_stopping")
        else:
            self._status = 503
            self._drop(Outcome.CANCELLED)
            self._error(503, "The router is stopping.", "router_stopping")

    # Choose

    def _plan(self) -> None:
        core = self.core
        wish = core.wishes.read(self.head, self._pieces, self._size)
        if isinstance(wish, BadWish):
            self._error(400, wish.message, wish.code)
            return
        self.wish = wish
        plan = core.fleet.plan(wish)
        self._reason = plan.reason
        if plan.unknown_model or plan.stopped:
            unknown = (404, f"The model {wish.model!r} does not exist.", "model_not_found")
            self._error(*(unknown if plan.unknown_model else (503, *core.refused_for(plan.reason))))
            return
        if self.head.completes and core.settings.resume and not self._streams:
            self._asked = self._ask()
        self._load_stays = plan.load_stays
        self._waiting = [core.fleet[name] for name in reversed(plan.names)]
        self._second_chance = not self._streams
        self._next()

    def _ask(self) -> Ask | None:
        """How a request for a stream is sent, so that it can be continued."""
        pieces = self._pieces
        if len(pieces) > 1:
            pieces = self._pieces = [b"".join(pieces)]
        if not pieces or b'"stream"' not in pieces[0]:
            return None
        return ask(self.head.path, pieces[0])

    def _next(self) -> None:
        """Try the next backend of the plan, or say that there is none."""
        core, client, head = self.core, self.client, self.head
        self._again = None
        now = core.clock()
        while self._attempts and self._waiting and core.fleet.holds_back(self._waiting[-1], self.wish):
            self._waiting.pop()  # a spot that was slow or full is still there
        if not self._waiting:
            self._give_up()
            return
        if now >= self.deadline:
            self._timed_out = True
            self._last = None
            self._give_up()
            return
        backend = self._backend = self._waiting.pop()
        self._attempts += 1
        if self._attempts > 1:
            core.meter.failovers += 1
        self.account.tries(backend, now, self.wish.model or "")
        settings = core.settings
        if self._streams:
            self._patience_s, self._left_patience_s = patience(settings, backend.settings, head, None)
            request = begun_request(backend, head, self.request_id, self._pieces, client.length)
            self._let_body_go()
        else:
            self._patience_s, self._left_patience_s = patience(settings, backend.settings, head, self._pieces)
            client.timer.set_at(min(now + self._patience_s, self.deadline))
            request = whole_request(
                backend, head, self.request_id, self._pieces, self._size, asked=self._asked, model=self.wish.model
            )
        self._forward = Forward(self, request, to_head=head.method == b"HEAD", more=self._streams)
        self._forward.start(core.upstream, backend.route, settings.connect_timeout_s)

    def _left_s(self) -> float:
        return self.deadline - self.core.clock()

    # Forward

    def _stream(self, piece: bytes, *, more: bool) -> None:
        if self.client.length is None:
            piece = (chunk_of(piece) if piece else b"") + (b"" if more else END)
        if self._forward is not None:
            self._forward.write(piece, more=more)  # also while the answer comes already

    def writable(self, ready: bool) -> None:
        """The backend takes more of a body that flows through, or none for now."""
        if not self._over:
            self.client.pause_reading(not ready)

    def failed(self, failure: Refused | Failed) -> None:
        """No answer of this backend, or one that another may better."""
        core, account, backend = self.core, self.account, self._backend
        attempt = account.attempt
        assert backend is not None
        assert attempt is not None
        self._forward = None
        if isinstance(failure, Refused):
            self._last = failure
        else:
            self._last = None
            self._timed_out = failure.timed_out
        core.counts.retries.add((backend.name, failure.kind))
        backend.disappointed(attempt, failure.reason, gone=failure.gone, busy=failure.busy, settings=core.settings)
        if failure.busy and self._load_stays:
            self._waiting = [each for each in self._waiting if each.kind is backend.kind]
        reason = failure.reason
        if backend.at_limit(attempt, core.clock()):
            self._second_chance = False
            reason += f", after the {backend.settings.answer_limit_s:g} s that it gives an answer; ask for a stream"
        self._failures = (*self._failures, f"{backend.settings.name}: {reason}")
        attempt.close(Outcome.FAILED, core.clock())
        # The last backend: a kept connection may have been closed just then, as that of another may have been
        # before it, or another replica behind the same address may answer.
        again = isinstance(failure, Failed) and failure.again and self._second_chance and not self._waiting
        somewhere = bool(self._waiting) or again
        if self._streams or not may_be_sent_again(core, self.head, failure, self._attempts, somewhere=somewhere):
            self._give_up()
        elif again:
            self._second_chance = False
            self._waiting.append(backend)
            self.client.timer.clear()
            self._again = asyncio.get_running_loop().call_later(_SECOND_CHANCE_PAUSE_S, self._next)
        else:
            self._next()

    # Relay

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """The answer, complete."""
        core, client, account, backend = self.core, self.client, self.account, self._backend
        assert backend is not None
        self._forward = None
        now = core.clock()
        attempt = account.attempt
        assert attempt is not None
        if self._asked is not None and backend.token_ids and refuses_token_ids(head.status, body):
            self._without_token_ids(backend, now)
            return
        self._status, self._told_bytes = head.status, len(body)
        account.answers(head.status, now)
        if head.whole:
            account.tokens = usage_of(body) or account.tokens
        backend.served(attempt, now)
        lines = self._own_lines(backend.route.backend_line)
        self.end(Outcome.FINISHED, now)
        client.pass_on(head, lines, body)

    def begins(self, head: ResponseHead, first: bytes, raw: bytes, connection: Connection | None) -> None:
        """The first bytes of an answer that is passed on as it comes."""
        core, account, backend = self.core, self.account, self._backend
        assert backend is not None
        if head.streams and (self._waiting or self._asked) and not self._streams and begins_with_an_error(first):
            if connection is not None:
                connection.drop()
            self.failed(Failed("an error before the first token", gone=True))
            return
        now = core.clock()
        self._status = head.status
        account.answers(head.status, now)
        attempt = account.attempt
        assert attempt is not None
        if head.streams:
            backend.first_byte(now - attempt.began)
        lines = self._own_lines(backend.route.backend_line)
        if head.streams and head.status == 200 and self._asked is not None:
            self._forward = None
            self._resuming = resuming = Resuming(self, self._asked, self._pieces[0], backend)
            self._asked = None  # with its copy of the body
            core.streams.add(resuming.stream)
            account.streams(resuming.stream, now)
            resuming.stream.start(head, first, connection, lines)
            return
        reader = None
        if head.streams:
            reader = Reader(self.head.path, head.status)
            account.streams(reader, now)
        relay = self._relay = Relay(
            self.client,
            reader,
            self._done,
            idle_s=core.settings.stream_idle_timeout_s,
            end_at=self.deadline,
        )
        if not self._streams:
            self._forward = None
            self._let_body_go()
        relay.start(head, first, raw, connection, lines)

    def _without_token_ids(self, backend: LiveBackend, now: float) -> None:
        """It does not know `return_token_ids`: it gets the request as the client sent it."""
        backend.token_ids = False
        if self.account.attempt is not None:
            self.account.attempt.close(Outcome.FINISHED, now)
        self._waiting.append(backend)
        self._next()

    def move(self, backend: LiveBackend) -> None:
        """This backend's machine is about to go. What can run elsewhere does; the rest runs on to the end."""
        if self._resuming is not None:
            if self._resuming.backend is backend:
                self._resuming.move()
        elif self._backend is backend and self._forward is not None and not (self._streams or self.head.once):
            forward, self._forward = self._forward, None
            forward.cancel()
            self.core.counts.moves.add((backend.name,))
            if self.account.attempt is not None:
                self.account.attempt.close(Outcome.CANCELLED, self.core.clock())
            self._plan()

    def leave_if_silent(self) -> None:
        """Go on elsewhere, if the backend is in doubt and says nothing."""
        attempt, now = self.account.attempt, self.core.clock()
        if attempt is None or not attempt.in_doubt:
            return
        if self._resuming is not None:
            self._resuming.leave_if_silent(now)
        elif self._forward is not None and not self._streams and is_late(attempt.backend, self._pieces):
            core, elsewhere = self.core, self.core.fleet.is_any_well(self._waiting, self.wish)
            if elsewhere and may_be_sent_again(core, self.head, FELL_SILENT, self._attempts, somewhere=True):
                self._forward.leave_if_silent(now)

    def _done(self, broken: str | None, error_seen: bool) -> None:
        """The answer is over; its last bytes are about to be sent."""
        self._relay = self._forward = None
        if self._over:
            return
        backend, account = self._backend, self.account
        attempt = account.attempt
        assert backend is not None
        assert attempt is not None
        outcome = Outcome.FINISHED
        if broken is None and not error_seen:
            backend.served(attempt, self.core.clock())
        else:
            outcome = Outcome.FAILED
            self.core.meter.broken_streams += 1
            reason = broken or "an error in the middle of a stream"
            backend.failed(attempt, reason, gone=True, cooldown_s=self.core.settings.cooldown_s)
        self.end(outcome, self.core.clock())

    # Ends

    def _give_up(self) -> None:
        """No backend answers: pass the last refusal on, or say so ourselves."""
        refused, backend = self._last, self._backend
        if refused is not None and backend is not None:
            self._status, self._told_bytes = refused.head.status, len(refused.body)
            self.account.answers(refused.head.status, self.core.clock())
            lines = self._own_lines(backend.route.backend_line)
            self.end(Outcome.FAILED, self.core.clock())
            self.client.pass_on(refused.head, lines, refused.body)
        elif self._timed_out:
            self._error(504, f"No backend answered in time ({'; '.join(self._failures)}).", "timeout")
        elif self._failures:
            message = f"No backend could answer ({'; '.join(self._failures)})."
            self._error(502, message, "backends_unavailable")
        else:
            self._error(503, f"No backend can answer: {self._reason}.", "no_backend")

    def _too_large(self) -> None:
        begun = self._relay is not None
        self._blame_the_client(self._status if begun else 413)
        if begun:
            self.client.abort()
        else:
            self._error(413, "The request's body is too large.", "body_too_large")

    def _blame_the_client(self, status: int) -> None:
        """Stop all work; the backend did nothing wrong."""
        self._status = status
        if self.account.attempt is not None:
            self.account.attempt.close(Outcome.CANCELLED, self.core.clock())
        self._drop(Outcome.FAILED)

    def _error(self, status: int, message: str, code: str) -> None:
        self._status = status
        self.end(Outcome.FAILED, self.core.clock())
        if status < 500 or code in STOPPED:
            self.core.counts.refused.add((code,))
        lines = self._own_lines(b"retry-after: 5\r\n" if status == 503 else b"")
        body = error_body(message, "invalid_request_error" if status < 500 else "upstream_error", code)
        self.client.answer(status, body, lines)

    def _drop(self, outcome: Outcome) -> None:
        """Stop all work for this request."""
        if self._again is not None:
            self._again.cancel()
        self.end(outcome, self.core.clock())
        if self._relay is not None:
            self._relay.cancel()
        elif self._forward is not None:
            self._forward.cancel()
        self._relay = self._forward = None

    def end(self, outcome: Outcome, now: float) -> None:
        """The request is over; the first call counts. Called before the last bytes of its answer are sent."""
        if not self._over:
            self._over = True
            self.account.close(outcome, now, self.wish.model or "")
            self._ticket.leave()
            self.core.ended(self._resuming.stream if self._resuming is not None else None, self.account.tokens)
            if self.core.access_log is not None:
                self.core.access_log.add(self._entry(outcome, now))
            self._resuming = self.account.reader = None  # which know this one: no circles, see `Stream`
            if self.held_bytes:
                self.core.bodies.let_go(self)

    def _let_body_go(self) -> None:
        self._pieces = []
        if self.held_bytes:
            self.core.bodies.let_go(self)

    def _own_lines(self, first: bytes) -> bytes:
        """The headers that the router adds to an answer, after `first`."""
        lines, key = own_lines(first, self._attempts, self.request_id), self.account.key
        return lines + key.lines(self.core.clock()) if key is not None and key.limited else lines

    def _entry(self, outcome: Outcome, now: float) -> Entry:
        resumes, told_bytes = 0, self._told_bytes
        if self._resuming is not None:
            resumes, told_bytes = self._resuming.resumes, self._resuming.stream.told_bytes
        return self.account.entry(
            self.head,
            outcome,
            now,
            request_id=self.request_id,
            status=self._status,
            attempts=self._attempts,
            resumes=resumes,
            sent_bytes=told_bytes,
        )
