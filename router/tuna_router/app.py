"""The assembly: an ASGI application that answers `/router/*` and `/metrics` itself and forwards the rest."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from tuna_router.auth import Role, presented_key
from tuna_router.core import Core
from tuna_router.dataplane.admit import unauthorized
from tuna_router.dataplane.exchange import serve
from tuna_router.envelope import Receive, Scope, Send, answer, error_body
from tuna_router.health import health
from tuna_router.settings import Settings
from tuna_router.watch import Watchers

_log = logging.getLogger("tuna_router")
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Router:
    """One router. `start` and `stop` frame its life; between them it is an ASGI application."""

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

    async def start(self) -> None:
        """Begin to watch the spot backends."""
        await self._watchers.follow(self.core.fleet.spots)

    async def stop(self) -> None:
        """End every task and connection."""
        await self._watchers.stop()
        await self.core.upstream.aclose()

    async def configure(self, settings: Settings) -> None:
        """Change the configuration. Raises SettingsError when it can't be saved."""
        self.core.configure(settings)
        async with self._configure_lock:
            await self._watchers.follow(self.core.fleet.spots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        path: str = scope["path"]
        try:
            if path == "/router/health":
                await self._health(scope, send)
            elif path in {"/metrics", "/router"} or path.startswith("/router/"):
                await self._control_plane(scope, receive, send)
            else:
                await serve(self.core, scope, receive, send)
        except Exception:
            # The server only closes the connection then; its own log is silent.
            _log.exception("a request failed in the router itself")
            raise

    async def _health(self, scope: Scope, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            body = error_body("Only GET is allowed here.", "invalid_request_error", "method_not_allowed")
            await answer(send, 405, body, [(b"allow", b"GET")])
            return
        await answer(send, 200, json.dumps(health(self.core)).encode(), [(b"cache-control", b"no-store")])

    async def _control_plane(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = presented_key(scope["headers"])
        role = self.core.guard.role(key)
        needed = Role.CLIENT if scope["path"] in ("/metrics", "/router/stats") else Role.ADMIN
        if role < needed:
            self.core.meter.unauthorized += 1
            if role is Role.NOBODY:
                refusal = unauthorized(key is not None)
                await answer(send, refusal.status, refusal.body, refusal.headers)
            else:
                body = error_body("This needs an admin key.", "permission_error", "admin_key_required")
                await answer(send, 403, body)
            return
        if self.core.open_door and _from_another_site(scope):
            body = error_body("Another web site may not use this router.", "permission_error", "cross_site")
            await answer(send, 403, body)
            return
        async with self._control_lock:
            if self._control is None:
                # In a thread: FastAPI takes a quarter of a second to import, in which streams must flow.
                self._control = await asyncio.to_thread(_build_control, self)
        await self._control(scope, receive, send)


def _from_another_site(scope: Scope) -> bool:
    """True for a request that a browser sends on behalf of a page of somewhere else.

    Matters without keys only: there any page that its user opens could change the configuration.
    """
    headers = dict(scope["headers"])
    origin = headers.get(b"origin", b"")
    return bool(origin) and origin.partition(b"://")[2] != headers.get(b"host", b"")


def _build_control(router: Router) -> Application:
    from tuna_router.control import build

    return build(router)
