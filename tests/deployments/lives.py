"""Deployments made and ended in this process, over real routers, clouds and engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import psutil

from tests.deployments.conftest import Told
from tuna_nb.backends.local import wire
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.deployments import destroy as destruction
from tuna_nb.deployments.apply import apply
from tuna_nb.deployments.connection import connection
from tuna_nb.deployments.plan import DeploymentPlan, new_id, plan
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.records import DeploymentRecord, ResourceRecord

Make = Callable[..., DeployRequest]


async def planned(workspace: Workspace, request: DeployRequest) -> DeploymentPlan:
    live = workspace.store.live_deployment(request.service_name)
    return await plan(workspace, request, live.id if live else new_id())


async def deploy(
    workspace: Workspace, request: DeployRequest, told: Told | None = None, until_spot: bool = True
) -> DeploymentRecord:
    made = await planned(workspace, request)
    return await apply(workspace, made, (told or Told()).report, until_spot=until_spot)


async def destroy(workspace: Workspace, name: str, told: Told | None = None) -> None:
    record = workspace.store.live_deployment(name)
    assert record is not None
    await destruction.destroy(workspace, record, (told or Told()).report)


async def ask(workspace: Workspace, name: str) -> str:
    """Chat once; returns which side answered."""
    link = await connection(workspace, workspace.store.deployment(name))
    body = {"model": link.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        answer = await http.post(f"{link.base_url}/chat/completions", json=body, headers=link.headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-tuna-backend"]


async def until(condition: Callable[[], Awaitable[Any] | Any], within_s: float = 30) -> Any:
    """Poll until the condition holds; fails the test at the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.05)


def parts(workspace: Workspace, name: str) -> dict[str, ResourceRecord]:
    return {r.role: r for r in workspace.store.resources(workspace.store.deployment(name).id)}


def router_process(workspace: Workspace, name: str) -> psutil.Process | None:
    return workspace.router_host()._process(workspace.store.deployment(name).id)  # type: ignore[attr-defined]


def kill_router(workspace: Workspace, name: str) -> None:
    process = router_process(workspace, name)
    assert process is not None
    process.kill()
    process.wait(5)


def local(workspace: Workspace) -> LocalBackend:
    backend = workspace.backend("local")
    assert isinstance(backend, LocalBackend)
    return backend


def kill_cloud(workspace: Workspace) -> None:
    """SIGKILL to the local cloud's daemon: its engines go on without it."""
    there = wire.read_announcement(local(workspace).folder)
    assert there is not None
    daemon = psutil.Process(there.pid)
    daemon.kill()
    daemon.wait(5)


class CorruptJournal:
    """The provider can't be asked: its daemon is dead and its memory unreadable, until `mend()`."""

    def __init__(self, workspace: Workspace) -> None:
        kill_cloud(workspace)
        folder = local(workspace).folder
        self._saved = {p: p.read_bytes() for p in folder.glob("journal.db*")}
        self.break_()

    def break_(self) -> None:
        for path in self._saved:
            path.write_bytes(b"not a journal any more " * 400)

    def mend(self) -> None:
        for path, data in self._saved.items():
            path.write_bytes(data)
