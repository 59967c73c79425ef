"""The assembly: who answers a request. `/router/*` and `/metrics` are answered here, the rest is forwarded."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from tuna_router.admission import Ticket
from tuna_router.asgi import Application, AsgiCall
from tuna_router.auth import Role
from tuna_router.books.budget import Limit
from tuna_router.books.meter import SAMPLE_S
from tuna_router.core import Core
from tuna_router.cross_site import HINT, foreign
from tuna_router.dataplane.admit import admit, unauthorized
from tuna_router.dataplane.client import ClientConnection, Handler
from tuna_router.dataplane.event_stream import EventStream
from tuna_router.dataplane.exchange import Exchange
from tuna_router.dataplane.headers import PRIORITY, own_lines, request_id_of
from tuna_router.dataplane.queued import full, queued
from tuna_router.dataplane.refuse import refuse
from tuna_router.dataplane.request_head import RequestHead
from tuna_router.envelope import error_body
from tuna_router.fleet.live import LiveBackend
from tuna_router.fleet.replicas import Replica, with_replicas
from tuna_router.fleet.watch import Watchers
from tuna_router.health import health, public_health
from tuna_router.keys.live import LiveKey
from tuna_router.refusal import Refusal
from tuna_router.settings import BackendSettings, Settings
from tuna_router.told.access_log import REFUSED, Entry

_log = logging.getLogger("tuna_router")
BUDGET_S: Final = 1.0
"""Between two looks at what was counted."""
LISTEN_S: Final = 1.0
"""Between two looks for requests that have fallen silent."""


class Router:
    """One router. `start` and `stop` frame its life; between them `begin` is given every request."""

    def __init__(
        self,
        settings: Settings,
        *,
        open_door: bool = False,
        save_to: Path | None = None,
        not_saved: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.core = Core(
            settings, open_door=open_door, save_to=save_to, not_saved=not_saved, clock=clock, wall=wall
        )
        self._watchers = Watchers(self.core)
        self._control: Application | None = None
        self._control_lock = asyncio.Lock()
        self._configure_lock = asyncio.Lock()
        self.connections: set[ClientConnection] = set()
        """Of clients; kept by the connections themselves."""
        self.on_loopback = False
        """True when no other machine reaches it; set by the server."""
        self.core.fleet.on_move = self._move
        self.core.on_gone = self._forget
        self.core.on_replicas = self._take_replicas
        self._taking: set[asyncio.Future[None]] = set()
        self._sweeper = self.core.wheel.timer(self._sweep)
        self._listener = self.core.wheel.timer(self.leave_the_silent)
        self._budget_timer = self.core.wheel.timer(self._check_budget)

    async def start(self) -> None:
        """Begin to watch the spot backends."""
        self._sweep()
        self.leave_the_silent()
        self._check_budget()
        await self._watchers.follow(self.core.fleet.spots)

    async def stop(self) -> None:
        """End every task and connection."""
        await self._watchers.stop()
        await self.core.upstream.aclose()
        self.core.wheel.stop()

    async def configure(self, settings: Settings, *, save: bool = True) -> None:
        """Change the configuration. Raises SettingsError when it can't be saved."""
        self.core.configure(settings, save=save)
        async with self._configure_lock:
            await self._watchers.follow(self.core.fleet.spots)

    def begin(self, client: ClientConnection, head: RequestHead) -> Handler | None:
        """Who answers this request; None when it was answered."""
        target = head.target
        if self.core.open_door and (why := foreign(*head.place, loopback=self.on_loopback)) is not None:
            self.core.counts.refused.add(("cross_site",))
            return refuse(client, head, Refusal(403, error_body(why, "permission_error", "cross_site", hint=HINT)))
        if b"%" in target or target.startswith((b"/router", b"/metrics")):
            path = head.plain_path
            if path == b"/router/health":
                return self._health(client, head)
            if path == b"/router/events":
                return self._events(client, head)
            if path in (b"/metrics", b"/router") or path.startswith(b"/router/"):
                return self._control_plane(client, head, path)
        core = self.core
        request_id = request_id_of(head.special.get(b"x-request-id"))
        if client.length is not None and client.length > core.settings.body_limit_bytes:
            core.counts.refused.add(("body_too_large",))
            body = error_body("The request's body is too large.", "invalid_request_error", "body_too_large")
            self._log_refusal(head, request_id, 413, None)
            client.answer(413, body, own_lines(b"", 0, request_id))
            return None
        admitted = admit(core, head)
        if isinstance(admitted, Refusal):
            return self._refuse(client, head, request_id, admitted)
        if isinstance(admitted, LiveKey):
            return self._wait(client, head, request_id, admitted)
        return Exchange(core, client, head, request_id, admitted)

    def _wait(
        self, client: ClientConnection, head: RequestHead, request_id: bytes, live: LiveKey
    ) -> Handler | None:
        core = self.core

        def begin(ticket: Ticket) -> Handler:
            return Exchange(core, client, head, request_id, ticket)

        def give_up(refusal: Refusal) -> None:
            core.meter.rejected += 1
            core.events.publish_seldom("limit", "", {"key": None, "reason": "queue_timeout"})
            self._log_refusal(head, request_id, refusal.status, live)
            refusal = _with_own_lines(refusal, request_id)
            client.answer(refusal.status, refusal.body, refusal.lines)

        batch = head.special.get(PRIORITY, b"").lower() == b"batch"
        handler = queued(core, client, live, begin, give_up, batch=batch)
        if handler is None:
            core.meter.rejected += 1
            core.counts.refused.add(("concurrency_limit",))
            core.events.publish_seldom("limit", "", {"key": None, "reason": "concurrency_limit"})
            return self._refuse(client, head, request_id, full(core))
        live.enter()
        return handler

    def _refuse(
        self, client: ClientConnection, head: RequestHead, request_id: bytes, refusal: Refusal
    ) -> Handler | None:
        self._log_refusal(head, request_id, refusal.status, self.core.guard.find(head.key))
        return refuse(client, head, _with_own_lines(refusal, request_id))

    def _log_refusal(self, head: RequestHead, request_id: bytes, status: int, key: LiveKey | None) -> None:
        core, name = self.core, None if key is None else key.settings.name
        if core.access_log is not None:
            wall, method = core.meter.wall(), head.method
            entry = Entry(
                wall, request_id, method, head.target, status, None, 0, 0, None, 0.0, 0, 0, 0, name, REFUSED
            )
            core.access_log.add(entry)

    def _health(self, client: ClientConnection, head: RequestHead) -> Handler | None:
        if head.method not in (b"GET", b"HEAD"):
            body = error_body("Only GET is allowed here.", "invalid_request_error", "method_not_allowed")
            return refuse(client, head, Refusal(405, body, b"allow: GET\r\n"))
        core = self.core
        shown = health(core) if core.guard.role(head.key) >= Role.CLIENT else public_health(core)
        return refuse(client, head, Refusal(200, json.dumps(shown).encode(), b"cache-control: no-store\r\n"))

    def _events(self, client: ClientConnection, head: RequestHead) -> Handler | None:
        key = head.key
        if self.core.guard.role(key) < Role.CLIENT:
            self.core.meter.unauthorized += 1
            return refuse(client, head, unauthorized(key is not None))
        return EventStream(self.core.events, client, head)

    def _control_plane(self, client: ClientConnection, head: RequestHead, path: bytes) -> Handler | None:
        core, key = self.core, head.key
        role = core.guard.role(key)
        needed = Role.CLIENT if path in (b"/metrics", b"/router/stats") else Role.ADMIN
        if role < needed:
            core.meter.unauthorized += 1
            if role is Role.NOBODY:
                return refuse(client, head, unauthorized(key is not None))
            body = error_body("This needs an admin key.", "permission_error", "admin_key_required")
            return refuse(client, head, Refusal(403, body))
        return AsgiCall(client, head, self._load_control)

    async def _load_control(self) -> Application:
        async with self._control_lock:
            if self._control is None:
                # In a thread: FastAPI takes a quarter of a second to import, in which streams must flow.
                self._control = await asyncio.to_thread(_build_control, self)
        return self._control

    def _move(self, backend: LiveBackend) -> None:
        """A machine is about to go: what runs there goes on elsewhere."""
        for connection in list(self.connections):
            handler = connection.handler
            if isinstance(handler, Exchange):
                handler.move(backend)

    def _forget(self, backend: LiveBackend) -> None:
        """A replica is gone: off the list."""
        self._take(tuple(item for item in self.core.settings.backends if item.name != backend.name))

    def _take_replicas(self, balancer: str, replicas: Sequence[Replica]) -> None:
        """All replicas of a balancer, as somebody beside it knows them."""
        self._take(with_replicas(self.core.settings.backends, balancer, replicas))

    def _take(self, backends: tuple[BackendSettings, ...]) -> None:
        """In a task of its own: who asks for it may be a watcher that ends with its backend."""
        if backends != self.core.settings.backends:
            changed = dataclasses.replace(self.core.settings, backends=backends)
            self._own(asyncio.create_task(self.configure(changed)))

    def leave_the_silent(self) -> None:
        """A request whose backend is in doubt and says nothing goes on elsewhere: an engine that is told to end may
        leave its streams open and silent, and keep what it had accepted (vLLM 0.32 does)."""
        for connection in list(self.connections):
            handler = connection.handler
            if isinstance(handler, Exchange):
                handler.leave_if_silent()
        self._listener.set(LISTEN_S)

    async def put_budget(self, limit: Limit | None) -> None:
        """From now on this budget, kept before this returns."""
        self.core.budget.put(limit)
        self._check_budget()
        if self.core.save_state is not None:
            await self.core.save_state()

    def _check_budget(self) -> None:
        core = self.core
        budget = core.budget
        if budget.check():
            told = budget.to_json() or {}
            core.events.publish("budget", told)
            _log.warning(
                "$%.4f was counted, and the budget was $%.4f: serverless_use is %s from now on (%s)",
                told["counted_usd"],
                told["left_usd"],
                told["serverless_use"],
                told["note"] or "no note",
            )
            if core.save_state is not None:
                # Told once: not again by the next router.
                self._own(asyncio.ensure_future(core.save_state()))
        if budget.limit is not None and budget.exhausted_at is None:
            self._budget_timer.set(BUDGET_S)

    def _own(self, task: asyncio.Future[None]) -> None:
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def _sweep(self) -> None:
        self.core.upstream.sweep()
        self.core.meter.sample()
        self.core.meter.load.advance(self.core.clock())
        self._sweeper.set(SAMPLE_S)


def _with_own_lines(refusal: Refusal, request_id: bytes) -> Refusal:
    return refusal._replace(lines=refusal.lines + own_lines(b"", 0, request_id))


def _build_control(router: Router) -> Application:
    from tuna_router.control.endpoints import build

    return build(router)
