"""An endpoint's front door: the key, a place on an instance, then the engine's answer handed through as it comes.

A request that has had no byte of its answer may be tried on another instance; one that has is cut with its
instance, as at a real provider. The gateway takes the caller's key off, so engines never see one.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from tuna_nb.backends.base import State
from tuna_nb.backends.local import upstream
from tuna_nb.backends.local.fleet import Fleet
from tuna_nb.backends.local.instance import Instance
from tuna_nb.backends.local.service import Service, Unavailable
from tuna_nb.backends.local.upstream import UpstreamBroken

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

MAX_BODY: Final = 64 * 1024 * 1024
_LEAVE_S: Final = 0.5
_FOREVER_S: Final = 365 * 86400.0


class ClientGone(Exception):
    """The caller closed its connection before it had sent its request."""


class Gateway:
    """The ASGI application of one resource's endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._expected = b"Bearer " + service.record.invoke_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        public = self._service.spec.public
        if not public and not self._is_allowed(scope["headers"]):
            await answer(send, 401, {"error": "this endpoint needs its key: Authorization: Bearer ..."})
            return
        if isinstance(self._service, Fleet) and scope["path"] == "/-/replicas":
            await answer(send, 200, asdict(self._service.counts()))
            return
        try:
            body = await read_body(receive, MAX_BODY)
        except ClientGone:
            return
        if body is None:
            await answer(send, 413, {"error": f"the request is larger than {MAX_BODY} bytes"})
            return
        work = asyncio.create_task(self._serve(scope, body, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.wait({work, gone})
        if not work.cancelled():
            work.result()

    def _is_allowed(self, headers: Sequence[upstream.Header]) -> bool:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)

    async def _serve(self, scope: Scope, body: bytes, send: Send) -> None:
        service = self._service
        limit = service.request_limit_s() or _FOREVER_S
        deadline = time.monotonic() + limit
        tried: frozenset[str] = frozenset()
        while True:
            try:
                instance = await service.acquire(tried, deadline)
            except Unavailable as exc:
                await answer(send, 503, {"error": exc.message}, exc.retry_after_s)
                return
            with service.lease(instance):
                relay = _Relay(send)
                try:
                    async with asyncio.timeout(limit):
                        await relay.run(instance, scope, body, not service.spec.public)
                    return
                except TimeoutError:
                    if not relay.started:
                        await answer(send, 504, {"error": f"the request took longer than {limit:g} s"})
                    return
                except UpstreamBroken as exc:
                    if relay.started:
                        # Returning in the middle of an answer makes the server break the connection off.
                        return
                    trouble = str(exc)
            tried |= {instance.id}
            if not await _has_left(instance):
                await answer(send, 502, {"error": f"the engine broke the connection off: {trouble}"})
                return


class _Relay:
    """One try on one instance. started: whether the caller has had a byte."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def run(self, instance: Instance, scope: Scope, body: bytes, strip_key: bool) -> None:
        target = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        headers = [h for h in scope["headers"] if not (strip_key and h[0] == b"authorization")]
        async with await upstream.send(instance.port, scope["method"], target, headers, body) as exchange:
            await exchange.head()
            self.started = True
            await self._send(
                {"type": "http.response.start", "status": exchange.status, "headers": exchange.headers}
            )
            async for piece in exchange.body():
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_body(receive: Receive, most: int) -> bytes | None:
    """The whole request body; None where it is larger than `most`. Raises ClientGone."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > most:
            return None
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def answer(send: Send, status: int, shown: object, retry_after_s: int | None = None) -> None:
    """A whole JSON answer."""
    body = json.dumps(shown).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _has_left(instance: Instance) -> bool:
    """Whether the instance is going or gone; the daemon may see its end a moment after the broken connection."""
    until = time.monotonic() + _LEAVE_S
    while instance.state in (State.READY, State.DRAINING) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return instance.state not in (State.READY, State.DRAINING)
