"""Resuming: a completion stream from its first byte on. When a backend breaks off, the rest is asked of another.

It is told by the stream what broke, plans, sends the request for the rest, and gives its answer to the stream.
The client waits meanwhile, for `resume_wait_s` where nobody is there, within the request's deadline; each break
may cost so many attempts as a request may, counted anew when a backend has said something more.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from tuna_router.books.meter import Outcome
from tuna_router.core import Core
from tuna_router.dataplane.account import Account
from tuna_router.dataplane.again import is_late
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.connection import Connection
from tuna_router.dataplane.forward import FELL_SILENT, SILENCE_S, Failed, Forward, Refused, stream_patience_s
from tuna_router.dataplane.outgoing import rest_request
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.dataplane.response_head import ResponseHead
from tuna_router.dataplane.stream import Stream
from tuna_router.fleet.live import LiveBackend
from tuna_router.policy import Wish
from tuna_router.resume.ask import Ask, context_length_of, refuses_token_ids
from tuna_router.resume.plan import Closing, Continuation, Refusal

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0


class Exchange(Protocol):
    """The request whose answer this is."""

    core: Core
    client: ClientConnection
    head: RequestHead
    request_id: bytes
    account: Account
    deadline: float
    wish: Wish

    def end(self, outcome: Outcome, now: float) -> None:
        """The request is over."""


class Resuming:
    """One stream and its backends; `body` is the client's request."""

    def __init__(self, exchange: Exchange, asked: Ask, body: bytes, backend: LiveBackend) -> None:
        self._exchange = exchange
        self._body = body
        self._backend = backend
        self._waiting: list[LiveBackend] = []
        """Backends to ask for the rest, the next one last."""
        self._forward: Forward | None = None
        self._step: Continuation | None = None
        self._again: asyncio.TimerHandle | None = None
        self._reason = ""
        self._nobody = ""
        self._attempts = 0
        """Since a backend said something new; so are `_rounds` of waiting for one, and `_lost_at`."""
        self._rounds = 0
        self._lost_at = 0.0
        self._heard_then = -1
        """The stream's progress when its backend was doubted, at `_doubted_at`."""
        self._doubted_at = 0.0
        self.resumes = 0
        """How often it was continued."""
        self._said = 0
        core = exchange.core
        self.stream = Stream(
            exchange.client,
            asked,
            self,
            idle_s=core.settings.stream_idle_timeout_s,
            end_at=exchange.deadline,
            cap_bytes=core.settings.resume_cap_bytes,
            inter_token=core.counts.itl(backend.name),
        )

    def __repr__(self) -> str:
        return f"<Resuming {self.stream!r} at {self._backend.settings.name}, attempt {self._attempts}>"

    @property
    def backend(self) -> LiveBackend | None:
        """Where it runs now."""
        return self._backend if self.stream.source is not None or self._forward is not None else None

    # The exchange's side

    def timer(self) -> None:
        """The connection's timer fired."""
        if self._forward is not None:
            self._forward.time_out(self._patience_s())
        elif self.stream.source is not None and self.stream.timer():
            if self._exchange.client.write_paused:
                self.drop(Outcome.CANCELLED)  # it is the client that stalls
                self._exchange.client.abort()
            else:
                self.stream.leave("it stalled")

    def move(self) -> None:
        """Its machine is about to go: elsewhere, while there is time."""
        if self.backend is None or self._exchange.head.once or not self.stream.may_go_on:
            return
        self._exchange.core.counts.moves.add((self._backend.name,))
        account = self._exchange.account
        if account.attempt is not None:
            account.attempt.close(Outcome.CANCELLED, self._exchange.core.clock())
        if self._forward is not None:
            forward, self._forward = self._forward, None
            forward.cancel()
            self._next()
        else:
            self.stream.leave("its machine is going")

    def leave_if_silent(self, now: float) -> None:
        """Its backend is in doubt: go on elsewhere, if nothing was said since a doubt `SILENCE_S` ago."""
        stream, core, wish = self.stream, self._exchange.core, self._exchange.wish
        if self._forward is not None:
            elsewhere = core.fleet.is_any_well(self._waiting, wish)
            if elsewhere and self._attempts < core.settings.max_attempts and is_late(self._backend, [self._body]):
                self._forward.leave_if_silent(now)
        elif stream.source is None or self._exchange.client.write_paused:
            return
        elif stream.progress != self._heard_then:
            self._heard_then, self._doubted_at = stream.progress, now
        elif now - self._doubted_at >= SILENCE_S and stream.may_go_on and not self._exchange.head.once:
            others = (each for each in core.fleet if each is not self._backend)
            if core.fleet.is_any_well(others, wish):
                stream.leave(FELL_SILENT.reason)

    def stop(self) -> None:
        """The router ends now."""
        if self.stream.done:
            self.stream.leave("the router is stopping")
            return
        self._cancel()
        self.stream.cancel()
        self._exchange.end(Outcome.CANCELLED, self._exchange.core.clock())
        self.stream.give_up("The router is stopping.", "router_stopping")

    def drop(self, outcome: Outcome) -> None:
        """Nobody wants it any more."""
        self._exchange.end(outcome, self._exchange.core.clock())
        self._cancel()
        self.stream.drop()

    def _cancel(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._forward is not None:
            self._forward.cancel()
            self._forward = None

    # The stream's side

    def finished(self) -> None:
        """All is said; the last bytes are about to be sent."""
        attempt = self._exchange.account.attempt
        now = self._exchange.core.clock()
        if attempt is not None and attempt.is_open:
            self._backend.served(attempt, now)
        self._exchange.end(Outcome.FINISHED, now)

    def broke(self, reason: str) -> None:
        """The backend is gone, or says what it should not."""
        exchange, attempt = self._exchange, self._exchange.account.attempt
        core = exchange.core
        assert attempt is not None
        self._reason = reason
        if attempt.is_open:
            core.counts.retries.add((self._backend.name, "broken stream"))
            self._backend.failed(attempt, reason, gone=True, cooldown_s=core.settings.cooldown_s)
            attempt.close(Outcome.FAILED, core.clock())
        if self.stream.shown > self._said or not self._lost_at:
            self._attempts = self._rounds = 0
            self._lost_at = core.clock()
        self._resume()

    def _resume(self) -> None:
        """Plan anew, and ask for the rest."""
        self._again = None
        exchange = self._exchange
        if exchange.head.once:
            self._lose("a request with side effects is not sent again")
            return
        fleet = exchange.core.fleet
        plan = fleet.plan(exchange.wish)
        self._nobody = f": serverless takes nothing new, and {plan.reason}" if plan.stopped else ""
        self._waiting = [fleet[name] for name in reversed(plan.names)]
        if self._backend in self._waiting:
            # Others first; but where there is none, another replica may stand behind the same address.
            self._waiting.remove(self._backend)
            self._waiting.insert(0, self._backend)
        self._next()

    def _next(self) -> None:
        core, exchange = self._exchange.core, self._exchange
        now = core.clock()
        while self._waiting and core.fleet.holds_back(self._waiting[-1], exchange.wish):
            self._waiting.pop()
        if now >= exchange.deadline:
            self._lose("no time is left")
        elif self._attempts >= core.settings.max_attempts:
            self._lose("no backend goes on with it")
        elif self._waiting:
            self._ask(self._waiting.pop(), now)
        elif now - self._lost_at >= core.settings.resume_wait_s:
            self._lose(f"no backend was there to go on with it{self._nobody}")
        else:
            pause_s = min(_FIRST_PAUSE_S * 2**self._rounds, _LONGEST_PAUSE_S)
            self._rounds += 1
            self._again = asyncio.get_running_loop().call_later(pause_s, self._resume)

    def _ask(self, backend: LiveBackend, now: float) -> None:
        """Ask a backend for the rest."""
        exchange, core, head = self._exchange, self._exchange.core, self._exchange.head
        step = self.stream.next_step(
            head.path, self._body, token_ids=backend.token_ids, context_length=backend.context_length
        )
        if isinstance(step, Refusal):
            self._lose(step.reason, "refused")
            return
        if isinstance(step, Closing):
            core.counts.resumes.add(("closed",))
            self.stream.close(step)
            return
        self._step = step
        self._backend = backend
        self._attempts += 1
        exchange.account.tries(backend, now)
        request = rest_request(backend, head, exchange.request_id, step.path, step.body, model=exchange.wish.model)
        exchange.client.timer.set_at(min(now + self._patience_s(), exchange.deadline))
        self._forward = Forward(self, request, to_head=False)
        self._forward.start(core.upstream, backend.route, core.settings.connect_timeout_s)

    def _patience_s(self) -> float:
        return stream_patience_s(self._exchange.core.settings, self._backend.settings)

    def _lose(self, why: str, outcome: str = "failed") -> None:
        """It can't go on."""
        core = self._exchange.core
        core.counts.resumes.add((outcome,))
        core.meter.broken_streams += 1
        self._exchange.end(Outcome.FAILED, self._exchange.core.clock())
        self.stream.give_up(
            f"The backend broke off in the middle of its answer ({self._reason}), and it can't be continued: {why}."
        )

    # What came of a request for the rest

    def begins(self, head: ResponseHead, first: bytes, raw: bytes, connection: Connection | None) -> None:
        """The first bytes of an answer."""
        if head.status != 200 or not head.streams:
            if connection is not None:
                connection.drop()
            self._refused(head.status)
            return
        self._forward = None
        core, step = self._exchange.core, self._step
        assert step is not None
        now, attempt = core.clock(), self._exchange.account.attempt
        assert attempt is not None
        self._exchange.account.continues(now)
        self._backend.first_byte(now - attempt.began)
        core.counts.resumes.add(("exact" if step.exact else step.how.value,))
        self.resumes += 1
        self.stream.inter_token = core.counts.itl(self._backend.name)
        self._said = self.stream.shown
        self.stream.go_on(self.stream.splice(step), first, connection)

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """An answer that is no stream: what it refuses may be left out."""
        self._forward = None
        backend, account = self._backend, self._exchange.account
        length = context_length_of(head.status, body)
        if length is not None and backend.context_length is None:
            backend.context_length = length
        elif refuses_token_ids(head.status, body) and backend.token_ids:
            backend.token_ids = False
        else:
            self._refused(head.status)
            return
        if account.attempt is not None:
            account.attempt.close(Outcome.FINISHED, self._exchange.core.clock())
        self._waiting.append(backend)
        self._next()

    def _refused(self, status: int) -> None:
        """It won't go on with it: nothing is wrong with it, such requests are ours."""
        self._forward = None
        core, attempt = self._exchange.core, self._exchange.account.attempt
        assert attempt is not None
        core.counts.retries.add((self._backend.name, f"status {status}"))
        attempt.close(Outcome.FAILED, core.clock())
        self._next()

    def failed(self, failure: Refused | Failed) -> None:
        """Not from this one."""
        self._forward = None
        core, backend, attempt = self._exchange.core, self._backend, self._exchange.account.attempt
        assert attempt is not None
        if isinstance(failure, Failed) and not failure.sent:
            self._attempts -= 1  # it reached nobody: that is a matter of time, not of tries
        core.counts.retries.add((backend.name, failure.kind))
        backend.disappointed(attempt, failure.reason, gone=failure.gone, busy=failure.busy, settings=core.settings)
        attempt.close(Outcome.FAILED, core.clock())
        self._next()

    def writable(self, ready: bool) -> None:
        """Its requests are sent whole."""
