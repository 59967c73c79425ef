"""Talking to a deployment's router: its health, counters and configuration."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuna_nb import tls
from tuna_nb.errors import RouterError

SILENCE_S: Final = 10.0
"""A stream of events in which nothing comes for so long is dead: there is a snapshot each second."""


@dataclass(frozen=True, slots=True)
class RouterEvent:
    """id: to go on after; None for one that is not kept, as a snapshot. kind: as the router calls it."""

    id: int | None
    kind: str
    data: dict[str, Any]


class RouterClient:
    """url: of the router, without a path. admin_key: opens `/router/*`; never part of an error's text."""

    def __init__(self, url: str, admin_key: str | None, timeout_s: float = 10) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
        self._timeout_s = timeout_s

    async def health(self) -> dict[str, Any]:
        """`/router/health`: states of the backends and what share each has served."""
        return await self._call("GET", "/router/health")

    async def stats(self) -> dict[str, Any]:
        """`/router/stats`: exact counters."""
        return await self._call("GET", "/router/stats")

    async def load(self, since: float) -> dict[str, Any]:
        """`/router/load`: the traffic minute by minute, from the one that `since` (Unix seconds) is in."""
        return await self._call("GET", f"/router/load?since={since:.0f}")

    async def config(self) -> dict[str, Any]:
        """The configuration, header values masked."""
        return await self._call("GET", "/router/config")

    async def configure(self, change: dict[str, Any]) -> None:
        """Change part of the configuration; what is not named stays."""
        await self._call("POST", "/router/config", change)

    async def put_headers(self, backend: str, headers: Mapping[str, str]) -> None:
        """The whole set of headers that opens a backend from now on."""
        await self._call("PUT", f"/router/backends/{backend}/headers", {"headers": dict(headers)})

    async def put_replicas(self, backend: str, replicas: Mapping[str, tuple[str, str | None]]) -> None:
        """All replicas behind a balancer, by id: where each answers, and where it tells of a notice."""
        listed = [{"id": name, "url": url, "notice_url": notice} for name, (url, notice) in replicas.items()]
        await self._call("PUT", f"/router/backends/{backend}/replicas", {"replicas": listed})

    async def put_budget(self, left_usd: float, serverless_use: str, note: str) -> None:
        """When it has counted so many dollars more, serverless is used less: `cover` or `never`. In place of the
        one before."""
        body = {"left_usd": left_usd, "serverless_use": serverless_use, "note": note}
        await self._call("PUT", "/router/budget", body)

    async def delete_budget(self) -> None:
        """No budget any more."""
        await self._call("DELETE", "/router/budget")

    async def events(self, last_id: int | None = None) -> AsyncGenerator[RouterEvent, None]:
        """`/router/events` as they come, first those after `last_id` that the router has kept (0: all of them).

        Ends when the router ends it, which it does when it stops. Raises RouterError where it can't be reached,
        refuses, or falls silent. To be closed by whoever leaves early: `contextlib.aclosing`.
        """
        import httpx

        headers = self._headers if last_id is None else {**self._headers, "Last-Event-ID": str(last_id)}
        timeout = httpx.Timeout(self._timeout_s, read=SILENCE_S)
        try:
            async with (
                httpx.AsyncClient(verify=tls.trusted(), timeout=timeout, trust_env=False) as client,
                client.stream("GET", f"{self.url}/router/events", headers=headers) as answer,
            ):
                if answer.status_code != 200:
                    await answer.aread()
                    raise self._refused("GET", "/router/events", answer.status_code, answer.text)
                lines: list[str] = []
                async for line in answer.aiter_lines():
                    if line:
                        lines.append(line)
                        continue
                    event = read_event(lines)
                    lines = []
                    if event is not None:
                        yield event
        except httpx.HTTPError as e:
            raise self._unreachable(e) from e

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            async with httpx.AsyncClient(verify=tls.trusted(), timeout=self._timeout_s, trust_env=False) as client:
                answer = await client.request(method, self.url + path, headers=self._headers, json=body)
        except httpx.HTTPError as e:
            raise self._unreachable(e) from e
        if answer.status_code != 200:
            raise self._refused(method, path, answer.status_code, answer.text)
        data: dict[str, Any] = answer.json()
        return data

    def _unreachable(self, error: Exception) -> RouterError:
        return RouterError(
            f"the router at {self.url} does not answer ({type(error).__name__})",
            "`tuna status` shows whether it runs; deploying the same name again restarts it",
        )

    def _refused(self, method: str, path: str, status: int, text: str) -> RouterError:
        return RouterError(
            f"the router at {self.url} answered {status} to {method} {path}: {text[:200]}",
            "the key of this deployment may be on another machine" if status == 401 else None,
        )


def read_event(lines: Iterable[str]) -> RouterEvent | None:
    """One server-sent event from its lines; None for a comment and for what has no JSON object as its data."""
    id_, kind, data = None, "message", ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id" and value.isdigit():
            id_ = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            data += value
    try:
        read = json.loads(data) if data else None
    except ValueError:
        return None
    return RouterEvent(id_, kind, read) if isinstance(read, dict) else None
