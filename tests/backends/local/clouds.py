"""What the local cloud's tests share: requests for the tiny engine, waits with a deadline, a look for leftovers."""

from __future__ import annotations

import asyncio
import inspect
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from tuna_nb.backends.base import Endpoint, Engine, Kind, Ref, ServerlessScaling, ServiceRequest, SpotScaling, State
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.backends.local.processes import marked_processes

T = TypeVar("T")
MODEL = "tiny/model"
TINY = shlex.join([sys.executable, str(Path(__file__).with_name("tiny_engine.py"))]) + " --port {port}"


def serverless(name: str, flags: str = "", options: dict[str, str] | None = None, **scaling: Any) -> ServiceRequest:
    """A request for a serverless resource that runs the tiny engine."""
    return ServiceRequest(
        deployment_id="d-1",
        name=name,
        kind=Kind.SERVERLESS,
        engine=Engine(MODEL, command=f"{TINY} {flags}"),
        gpu="L4",
        gpu_count=1,
        scaling=ServerlessScaling(**scaling),
        options={"cold_start_s": "0.1", "stop_grace_s": "1", **(options or {})},
    )


def spot(name: str, flags: str = "", options: dict[str, str] | None = None, **scaling: Any) -> ServiceRequest:
    """A request for a spot service that runs the tiny engine; one replica unless told."""
    return ServiceRequest(
        deployment_id="d-1",
        name=name,
        kind=Kind.SPOT,
        engine=Engine(MODEL, command=f"{TINY} {flags}"),
        gpu="L4",
        gpu_count=1,
        scaling=SpotScaling(**{"min_replicas": 1, "max_replicas": 1, **scaling}),
        options={"boot_s": "0.1", "stop_grace_s": "1", **(options or {})},
    )


class Deployed:
    """A resource that is up, and a client that has its key."""

    def __init__(self, backend: LocalBackend, endpoint: Endpoint, http: httpx.AsyncClient) -> None:
        self.backend, self.endpoint, self.http = backend, endpoint, http

    @property
    def ref(self) -> Ref:
        return self.endpoint.ref

    async def state(self) -> State:
        return (await self.backend.status(self.ref)).state

    async def becomes(self, state: State, within: float = 20) -> None:
        await until(lambda: self._is(state), within)

    async def _is(self, state: State) -> bool:
        return await self.state() is state

    async def ask(self, prompt: str = "hi", **more: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": MODEL, "prompt": prompt, **more})

    async def stream(self, tokens: int, on_first: Callable[[], Awaitable[object]] | None = None) -> list[str]:
        """The events; raises httpx.RemoteProtocolError where it is cut. on_first: called after the first."""
        events: list[str] = []
        body = {"model": MODEL, "prompt": "hi", "stream": True, "max_tokens": tokens}
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line:
                    events.append(line)
                    if len(events) == 1 and on_first is not None:
                        await on_first()
        return events


async def deploy(backend: LocalBackend, request: ServiceRequest) -> Deployed:
    endpoint = await backend.deploy(await backend.plan(request), lambda *_: None)
    headers = dict((await backend.auth(endpoint.ref)).headers)
    return Deployed(backend, endpoint, httpx.AsyncClient(base_url=endpoint.url, headers=headers, timeout=30))


async def until(condition: Callable[[], T | Awaitable[T]], within: float = 20) -> T:
    """Poll until the condition is true; fails the test at the deadline."""
    deadline = time.monotonic() + within
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within} s: {inspect.getsource(condition).strip()}"
        await asyncio.sleep(0.03)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def engines(cloud_id: str) -> list[psutil.Process]:
    """Every living process that an engine of this cloud is or has started."""
    return [process for process, marker in marked_processes() if marker.startswith(cloud_id + "/")]


def daemons(folder: Path) -> list[psutil.Process]:
    """Every living daemon of this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
