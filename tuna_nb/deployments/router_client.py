"""Talking to a deployment's router: its health, counters and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuna_nb.errors import RouterError


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

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            async with httpx.AsyncClient(timeout=self._timeout_s, trust_env=False) as client:
                answer = await client.request(method, self.url + path, headers=self._headers, json=body)
        except httpx.HTTPError as e:
            raise RouterError(
                f"the router at {self.url} does not answer ({type(e).__name__})",
                "`tuna status` shows whether it runs; deploying the same name again restarts it",
            ) from e
        if answer.status_code != 200:
            raise RouterError(
                f"the router at {self.url} answered {answer.status_code} to {method} {path}: {answer.text[:200]}",
                "the key of this deployment may be on another machine" if answer.status_code == 401 else None,
            )
        data: dict[str, Any] = answer.json()
        return data
