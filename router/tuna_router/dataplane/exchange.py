"""One client request from its head to the last byte of its answer."""

from __future__ import annotations

import asyncio
from collections import deque

from tuna_router.admission import Ticket
from tuna_router.auth import presented_key
from tuna_router.core import Core
from tuna_router.dataplane.account import Reader
from tuna_router.dataplane.admit import Refusal, admit
from tuna_router.dataplane.forward import Answered, Failed, Outgoing, Refused, open_answer
from tuna_router.dataplane.headers import downstream_headers, own_headers, request_id_of, upstream_headers
from tuna_router.dataplane.intake import Body, Presence, read_body
from tuna_router.dataplane.relay import relay
from tuna_router.envelope import Receive, Scope, Send, answer, error_body
from tuna_router.errors import ClientGone, ClientSlow
from tuna_router.fleet import Attempt, LiveBackend
from tuna_router.meter import Outcome
from tuna_router.policy import choose
from tuna_router.settings import Kind

_BODY_PATIENCE_S = 60.0
_SECOND_CHANCE_PAUSE_S = 0.05
_BUSY_COOLDOWN_S = 1.0


async def serve(core: Core, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one client request."""
    request_id = request_id_of(scope["headers"])
    key = presented_key(scope["headers"])
    admitted = admit(core, key)
    if isinstance(admitted, Refusal):
        extra = [*admitted.headers, *own_headers(None, 0, request_id)]
        await answer(send, admitted.status, admitted.body, extra)
        return
    exchange = _Exchange(core, scope, receive, send, request_id=request_id, key=key, ticket=admitted)
    try:
        await exchange.run()
    except ClientGone:
        exchange.end(Outcome.CANCELLED)
    except asyncio.CancelledError:
        exchange.end(Outcome.CANCELLED)
        raise
    finally:
        exchange.end(Outcome.FAILED)


class _Exchange:
    """The state of one admitted request."""

    def __init__(
        self,
        core: Core,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        request_id: bytes,
        key: bytes | None,
        ticket: Ticket,
    ) -> None:
        self.core = core
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.key = key
        self.mark = core.meter.request()
        self.ticket = ticket
        self.presence = Presence(receive)
        self.attempts = 0
        self.path: bytes = scope["raw_path"]
        query: bytes = scope["query_string"]
        self.target = self.path + b"?" + query if query else self.path
        self.deadline = core.meter.clock() + core.settings.request_timeout_s

    def end(self, outcome: Outcome) -> None:
        """The request is over; the first call counts. Called before the last bytes of its answer are sent."""
        self.presence.answered = True
        self.mark.close(outcome)
        self.ticket.leave()

    async def run(self) -> None:
        """Read, plan, try, relay. Raises ClientGone."""
        async with self.presence as presence:
            try:
                cap_bytes = self.core.settings.body_cap_bytes
                body = await read_body(self.receive, cap_bytes, _BODY_PATIENCE_S, presence.listen)
                await self._try_all(body)
            except ClientSlow:
                await self._error(408, "The request's body did not arrive in time.", "request_timeout")

    async def _try_all(self, body: Body) -> None:
        core = self.core
        core.fleet.traffic()
        plan = choose(core.fleet.views())
        waiting = deque(core.fleet[name] for name in plan.names)
        second_chance = len(waiting) == 1 and body.repeatable
        failures: list[str] = []
        last: tuple[LiveBackend, Refused] | None = None
        timed_out = False
        while waiting:
            backend = waiting.popleft()
            if self._left_s() <= 0:
                timed_out = True
                break
            self.attempts += 1
            if self.attempts > 1:
                core.meter.failovers += 1
            with backend.attempt() as attempt:
                result = await open_answer(
                    core.upstream,
                    backend.settings,
                    self._outgoing(backend, body),
                    connect_timeout_s=core.settings.connect_timeout_s,
                    first_byte_timeout_s=self._patience(backend, body),
                )
                if isinstance(result, Answered):
                    others = bool(waiting) and body.repeatable
                    if await self._delivered(backend, attempt, result, others=others):
                        return
                    failures.append(f"{backend.settings.name}: an error before the first token")
                    continue
                self._note(backend, attempt, result)
            failures.append(f"{backend.settings.name}: {result.reason}")
            if isinstance(result, Refused):
                last = backend, result
            else:
                last = None
                timed_out = result.timed_out
                if second_chance and result.again:
                    # The only backend: a kept connection may have been closed just then, or another
                    # replica behind the same address may answer.
                    second_chance = False
                    await asyncio.sleep(_SECOND_CHANCE_PAUSE_S)
                    waiting.append(backend)
            if not body.repeatable:
                break
        if last is not None:
            await self._pass_on(*last)
        else:
            await self._nobody(plan.reason, failures, timed_out)

    async def _delivered(self, backend: LiveBackend, attempt: Attempt, result: Answered, *, others: bool) -> bool:
        """Relay; False when the answer is an error before its first token and another may do better."""
        core, settings = self.core, backend.settings
        reader = Reader(self.path, result.status, result.headers)
        counted = False

        def count_tokens() -> None:
            nonlocal counted
            if not counted:
                counted = True
                tokens = reader.tokens()
                for mark in (self.mark, attempt.mark):
                    mark.tokens(tokens)

        def done(broken: str | None) -> None:
            count_tokens()
            if broken is None and not reader.error_seen:
                outcome = Outcome.FINISHED
                backend.served()
            else:
                outcome = Outcome.FAILED
                core.meter.broken_streams += 1
                self._failed(backend, attempt, broken or "an error in the middle of a stream")
            attempt.close(outcome)
            self.end(outcome)

        try:
            if result.hollow and others:
                self._failed(backend, attempt, "an error before the first token")
                return False
            for mark in (self.mark, attempt.mark):
                mark.first_byte()
            core.meter.answer(settings.name, settings.kind, result.status)
            await relay(
                self.send,
                result,
                downstream_headers(
                    result.headers,
                    settings.name,
                    self.attempts,
                    self.request_id,
                    bodiless=result.status in (204, 304),
                ),
                reader,
                self.presence,
                idle_s=core.settings.stream_idle_timeout_s,
                total_s=max(self._left_s(), 0.001),
                done=done,
            )
            return True
        finally:
            count_tokens()
            await result.response.aclose()

    def _failed(self, backend: LiveBackend, attempt: Attempt, reason: str) -> None:
        backend.failed(attempt, reason, gone=True, cooldown_s=self.core.settings.cooldown_s)

    def _note(self, backend: LiveBackend, attempt: Attempt, result: Refused | Failed) -> None:
        cooldown_s = self.core.settings.cooldown_s
        if isinstance(result, Refused) and result.busy:
            backend.busy(result.reason, cooldown_s=min(_BUSY_COOLDOWN_S, cooldown_s))
        else:
            backend.failed(attempt, result.reason, gone=result.gone, cooldown_s=cooldown_s)

    def _outgoing(self, backend: LiveBackend, body: Body) -> Outgoing:
        headers = upstream_headers(self.scope["headers"], backend.settings.headers, self.request_id, self.key)
        if not body.repeatable:
            # It would go chunked; a length that the client gave is passed on.
            headers += [(n, v) for n, v in self.scope["headers"] if n == b"content-length"]
        return Outgoing(self.scope["method"], self.target, headers, body)

    def _patience(self, backend: LiveBackend, body: Body) -> float:
        """How long this backend may take to its first byte: an unstreamed answer comes all at its end."""
        settings = self.core.settings
        if backend.settings.kind is Kind.SERVERLESS:
            seconds = settings.first_byte_timeout_s
        elif body.asks_for_a_stream or self.scope["method"] in ("GET", "HEAD"):
            seconds = settings.spot_first_byte_timeout_s
        else:
            seconds = settings.spot_unstreamed_timeout_s
        return max(min(seconds, self._left_s()), 0.001)

    def _left_s(self) -> float:
        return self.deadline - self.core.meter.clock()

    async def _pass_on(self, backend: LiveBackend, refused: Refused) -> None:
        """The last backend's refusal, as it was."""
        settings = backend.settings
        self.core.meter.answer(settings.name, settings.kind, refused.status)
        head = downstream_headers(refused.headers, settings.name, self.attempts, self.request_id)
        await self.send({"type": "http.response.start", "status": refused.status, "headers": head})
        self.end(Outcome.FAILED)
        await self.send({"type": "http.response.body", "body": refused.body, "more_body": False})

    async def _nobody(self, reason: str, failures: list[str], timed_out: bool) -> None:
        if not failures and not timed_out:
            await self._error(503, f"No backend can answer: {reason}.", "no_backend")
        elif timed_out:
            await self._error(504, f"No backend answered in time ({'; '.join(failures)}).", "timeout")
        else:
            message = f"No backend could answer ({'; '.join(failures)})."
            await self._error(502, message, "backends_unavailable")

    async def _error(self, status: int, message: str, code: str) -> None:
        headers = own_headers(None, self.attempts, self.request_id)
        if status == 503:
            headers.append((b"retry-after", b"5"))
        self.end(Outcome.FAILED)
        await answer(self.send, status, error_body(message, "upstream_error", code), headers)
