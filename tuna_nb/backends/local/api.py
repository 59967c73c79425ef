"""The daemon's control API: JSON over loopback HTTP, every call with the token from cloud.json."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote

from tuna_nb.backends.local import bill as bills
from tuna_nb.backends.local import spec as specs
from tuna_nb.backends.local import wire
from tuna_nb.backends.local.gateway import ClientGone, Receive, Scope, Send, answer, read_body
from tuna_nb.errors import ConflictError, NotFoundError, RequestError, TunaError

if TYPE_CHECKING:
    from tuna_nb.backends.local.cloud import Cloud

_STATUS: Final[Mapping[type[TunaError], int]] = {
    NotFoundError: 404,
    ConflictError: 409,
    RequestError: 400,
    wire.Leaving: 503,
}
_MAX_BODY: Final = 1024 * 1024
Query = Mapping[str, list[str]]


class Api:
    """The ASGI application of the control plane."""

    def __init__(self, cloud: Cloud, token: str) -> None:
        self._cloud = cloud
        self._expected = b"Bearer " + token.encode()
        self._calls: set[asyncio.Task[Any]] = set()
        self._on_resource: Mapping[tuple[str, str], Callable[[str, Any], Awaitable[object]]] = {
            ("GET", ""): self._show,
            ("DELETE", ""): self._destroy,
            ("GET", "key"): self._key,
            ("POST", "scale"): self._scale,
            ("POST", "wake"): self._wake,
            ("POST", "preempt"): self._preempt,
        }

    @property
    def busy(self) -> bool:
        """Whether a call is being answered."""
        return bool(self._calls)

    async def finish(self) -> None:
        """Let the calls under way be answered, a moment at most."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._expected):
            await answer(send, 401, {"error": {"kind": "CredentialsError", "message": "wrong token", "hint": None}})
            return
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            return
        except TunaError as exc:
            await answer(send, _STATUS.get(type(exc), 500), wire.error_to_json(exc))
        finally:
            self._calls.discard(task)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].strip("/").split("/")
        query = parse_qs(scope["query_string"].decode())
        raw = await read_body(receive, _MAX_BODY)
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            raise RequestError("the call's body is not JSON") from None
        match (method, *path):
            case ("GET", "health"):
                shown: object = {"status": "ok"}
            case ("GET", "bill"):
                shown = bills.to_json(self._cloud.bill(query.get("name", [None])[0]))
            case ("GET", "resources"):
                shown = [wire.resource_to_json(v) for v in self._cloud.views()]
            case ("POST", "resources"):
                shown = await self._deploy(body)
            case ("POST", "shutdown"):
                shown = await self._shutdown(body)
            case ("GET", "resources", name, "logs"):
                await self._follow(unquote(name), query, receive, send)
                return
            case (_, "resources", name, *rest) if call := self._on_resource.get((method, "/".join(rest))):
                shown = await call(unquote(name), body)
            case _:
                raise NotFoundError(f"the local cloud knows no {method} {scope['path']}")
        await answer(send, 200, shown)

    async def _deploy(self, body: Any) -> object:
        try:
            spec = specs.from_json(body)
        except (KeyError, TypeError, ValueError) as exc:
            raise RequestError(f"no specification of a resource: {exc}") from exc
        return wire.resource_to_json(await self._cloud.deploy(spec))

    async def _show(self, name: str, _: Any) -> object:
        return wire.resource_to_json(self._cloud.view(name))

    async def _destroy(self, name: str, _: Any) -> object:
        await self._cloud.destroy(name)
        return {}

    async def _key(self, name: str, _: Any) -> object:
        return {"key": self._cloud.find(name).record.invoke_key}

    async def _scale(self, name: str, body: Any) -> object:
        service = self._cloud.find(name)
        try:
            scaling = specs.scaling_from_json(service.spec.kind, body)
        except TypeError as exc:
            raise RequestError(f"no scaling for the {service.spec.kind} side: {exc}") from exc
        service.scale(scaling)
        return {}

    async def _wake(self, name: str, _: Any) -> object:
        self._cloud.find(name).wake()
        return {}

    async def _preempt(self, name: str, body: Any) -> object:
        notice_s, replica = body.get("notice_s"), body.get("replica")
        if notice_s is not None and (not isinstance(notice_s, int | float) or not notice_s >= 0):
            raise RequestError(f"notice_s must be a number of seconds, 0 or more, not {notice_s!r}")
        return {"replica": self._cloud.fleet(name).preempt(notice_s, replica)}

    async def _shutdown(self, body: Any) -> object:
        if self._cloud.hosted and not body.get("force"):
            names = ", ".join(sorted(self._cloud.hosted))
            raise ConflictError(f"the local cloud still has {names}", "destroy them, or force the shutdown")
        await self._cloud.leave(destroy=True)
        return {}

    async def _follow(self, name: str, query: Query, receive: Receive, send: Send) -> None:
        """Log lines as JSON lines, until the reader goes or the resource is destroyed."""
        service = self._cloud.find(name)
        since = float(query["since"][0]) if "since" in query else None
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/x-ndjson")],
            }
        )
        lines: AsyncIterator[Any] = service.log.follow(since)

        async def pump() -> None:
            async for line in lines:
                body = json.dumps(asdict(line)).encode() + b"\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        work = asyncio.create_task(pump())
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.wait({work, gone})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
