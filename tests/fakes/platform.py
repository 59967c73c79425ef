"""Where a pretend provider runs containers: real engine processes, each service behind a gateway with a port of its own.

What a container is told to run is run: `vllm serve …` by the stand-in for vLLM, which ends with an error for a flag
it does not know, and such a container crashes again and again, as a real one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import uvicorn

IGNORED = frozenset({"--dtype", "--quantization", "--tensor-parallel-size", "--gpu-memory-utilization"})
"""vLLM's, with a value, that the stand-in has no use for."""
SWITCHES = frozenset({"--enforce-eager"})
RESULT = "__modal_function_call_id"
"""The parameter of a URL at which a held request's answer is."""
REFUSED = (401, {"error": "missing or wrong credentials"})
Authorize = Callable[[Mapping[str, str]], tuple[int, Any] | None]


@dataclass
class Replica:
    """state: waiting, booting, ready, failed or gone. Times: Unix seconds."""

    id: str
    state: str = "booting"
    started_at: float = 0.0
    ended_at: float | None = None
    starts: int = 0
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    in_flight: int = 0
    used_at: float = 0.0
    task: asyncio.Task[None] | None = None


@dataclass
class Service:
    """What a provider was asked to run. idle_s, boot_s: real seconds. prefix: of its paths, not the engine's.

    opens: None where a request may pass, else the status and body that it gets. reject_cold: no request is kept
    waiting while a container starts; it gets this status. held_s: a request that finds no container ready is
    answered after so long with a 303 to where its answer will be, for a GET with the same credentials.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    opens: Authorize
    min: int = 0
    max: int = 1
    idle_s: float = 60
    boot_s: float = 0.02
    prefix: str = ""
    reject_cold: int | None = None
    held_s: float | None = None
    waiting: int = 0
    calls: dict[str, tuple[asyncio.Task[None], list[Any]]] = field(default_factory=dict)
    capacity: Callable[[], bool] = lambda: True
    url: str = ""
    replicas: list[Replica] = field(default_factory=list)
    lines: list[tuple[float, str, str]] = field(default_factory=list)
    """(Unix seconds, replica, text)."""
    stopped: bool = False

    def alive(self) -> list[Replica]:
        return [r for r in self.replicas if r.state not in ("gone",)]


class Platform:
    """All services of one provider; to be used on its loop."""

    def __init__(self) -> None:
        self.services: list[Service] = []
        self._numbers = itertools.count(1)
        self._http = httpx.AsyncClient(trust_env=False, timeout=60)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers: list[uvicorn.Server] = []
        self._folder = tempfile.TemporaryDirectory()

    async def start(self, service: Service) -> Service:
        """Open its gateway; containers start when they are wanted."""

        async def gateway(scope: Any, receive: Any, send: Any) -> None:
            await self._gateway(service, scope, receive, send)

        server = uvicorn.Server(
            uvicorn.Config(gateway, port=0, lifespan="off", log_level="error", ws="none", interface="asgi3")
        )
        self._servers.append(server)
        self._run(server.serve())
        while not server.started:
            await asyncio.sleep(0.002)
        port = server.servers[0].sockets[0].getsockname()[1]
        service.url = f"http://127.0.0.1:{port}{service.prefix}"
        self.services.append(service)
        self._run(self._keep(service))
        return service

    async def stop(self, service: Service) -> None:
        """End its containers; requests get 404 from now on."""
        service.stopped = True
        await asyncio.gather(*(self._end(replica) for replica in service.replicas))

    async def close(self) -> None:
        await asyncio.gather(*(self.stop(service) for service in self.services))
        for server in self._servers:
            server.should_exit = True
            server.force_exit = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()
        self._folder.cleanup()

    def wake(self, service: Service) -> None:
        """One container more, if there is none and one is allowed."""
        if not service.alive() and service.max > 0 and not service.stopped:
            self._add(service)

    # Containers

    async def _keep(self, service: Service) -> None:
        """As many as there must be, none that is idle for too long."""
        while not service.stopped:
            alive = service.alive()
            if len(alive) < service.min:
                self._add(service)
            elif len(alive) > max(service.min, 0):
                for replica in alive:
                    idle = replica.state == "ready" and not replica.in_flight
                    if idle and time.time() - replica.used_at > service.idle_s:
                        await self._end(replica)
                        break
                    if len(alive) > max(service.min, service.max) and idle:
                        await self._end(replica)
                        break
            await asyncio.sleep(0.01)

    def _add(self, service: Service) -> None:
        replica = Replica(f"r{next(self._numbers)}")
        service.replicas.append(replica)
        replica.task = self._run(self._live(service, replica))

    async def _live(self, service: Service, replica: Replica) -> None:
        """Boot, serve, and after a crash start again."""
        while not service.stopped:
            while not service.capacity():
                replica.state = "waiting"
                await asyncio.sleep(0.01)
            replica.state, replica.started_at = "booting", time.time()
            replica.starts += 1
            await asyncio.sleep(service.boot_s)
            if await self._boot(service, replica):
                replica.state, replica.used_at = "ready", time.time()
                assert replica.process is not None
                await replica.process.wait()
            if replica.state == "gone":
                return
            replica.state = "failed"
            await asyncio.sleep(0.05)

    async def _boot(self, service: Service, replica: Replica) -> bool:
        """Start its process. False when that ended before it listened."""
        say = lambda text: service.lines.append((time.time(), replica.id, text))  # noqa: E731
        say("container started")
        try:
            argv = stand_in(service.argv)
        except ValueError as error:
            say(f"vllm: error: {error}")
            return False
        told = Path(self._folder.name) / f"{replica.id}-{replica.starts}.json"
        environment = {**os.environ, **service.env}
        environment.pop("VLLM_API_KEY", None)
        if key := service.env.get("VLLM_API_KEY"):
            environment["VLLM_API_KEY"] = key
        replica.process = process = await asyncio.create_subprocess_exec(
            *argv, "--port", "0", "--port-file", str(told), env=environment, stderr=asyncio.subprocess.PIPE
        )
        self._run(self._read(service, replica, process))
        while not told.exists():
            if process.returncode is not None or replica.state == "gone":
                return False
            await asyncio.sleep(0.005)
        replica.port = json.loads(told.read_text())["port"]
        return True

    async def _read(self, service: Service, replica: Replica, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            service.lines.append((time.time(), replica.id, line.decode(errors="replace").rstrip()))

    async def _end(self, replica: Replica) -> None:
        if replica.state == "gone":
            return
        replica.state, replica.ended_at = "gone", time.time()
        if replica.process is not None and replica.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                replica.process.send_signal(signal.SIGKILL)
            await replica.process.wait()
        if replica.task is not None:
            replica.task.cancel()

    # Requests

    async def _gateway(self, service: Service, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["raw_path"].decode("ascii")
        if service.stopped or not path.startswith(service.prefix):
            await answer(send, 404, {"error": "no such service"})
            return
        refused = service.opens(headers)
        if refused is not None:
            await answer(send, *refused)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        cold = not any(replica.state == "ready" for replica in service.replicas)
        if service.held_s is not None and (cold or RESULT.encode() in scope["query_string"]):
            await self._hold(service, scope, headers, body, send)
        else:
            await self._pass(service, scope, headers, body, send)

    async def _hold(self, service: Service, scope: Any, headers: Mapping[str, str], body: bytes, send: Any) -> None:
        """The answer if it comes in time, else the place where it will be: the same URL with one parameter more."""
        query = scope["query_string"].decode()
        asked = parse_qs(query).get(RESULT)
        if asked is None:
            call = f"fc-{next(self._numbers)}"
            told: list[Any] = []

            async def keep(message: Any) -> None:
                told.append(message)

            service.calls[call] = (self._run(self._pass(service, scope, headers, body, keep)), told)
            query = f"{query}&{RESULT}={call}" if query else f"{RESULT}={call}"
        else:
            call = asked[0]
        if call not in service.calls or (asked is not None and scope["method"] != "GET"):
            await answer(send, 404, {"error": "no such call"})
            return
        task, messages = service.calls[call]
        done, _ = await asyncio.wait({task}, timeout=service.held_s)
        if not done:
            await answer(send, 303, b"", {"location": f"http://{headers['host']}{scope['path']}?{query}"})
            return
        for message in messages:
            await send(message)

    async def _pass(self, service: Service, scope: Any, headers: Mapping[str, str], body: bytes, send: Any) -> None:
        service.waiting += 1
        try:
            ready = await self._ready(service)
        finally:
            service.waiting -= 1
        path = scope["raw_path"].decode("ascii")
        if ready is None:
            await answer(send, service.reject_cold or 503, {"error": "no container is ready"})
            return
        target = f"http://127.0.0.1:{ready.port}{path.removeprefix(service.prefix)}"
        if scope["query_string"]:
            target += f"?{scope['query_string'].decode()}"
        passed = {n: v for n, v in headers.items() if n not in ("host", "content-length", "transfer-encoding")}
        ready.in_flight += 1
        try:
            request = self._http.build_request(scope["method"], target, headers=passed, content=body)
            reply = await self._http.send(request, stream=True)
            try:
                kept = [
                    (n.encode(), v.encode())
                    for n, v in reply.headers.items()
                    if n not in ("transfer-encoding", "connection")
                ]
                await send({"type": "http.response.start", "status": reply.status_code, "headers": kept})
                async for piece in reply.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await reply.aclose()
        except httpx.HTTPError:
            await answer(send, 502, {"error": "the container broke off"})
        finally:
            ready.in_flight -= 1
            ready.used_at = time.time()

    async def _ready(self, service: Service) -> Replica | None:
        end = time.time() + 20
        while time.time() < end and not service.stopped:
            for replica in service.replicas:
                if replica.state == "ready":
                    return replica
            self.wake(service)
            if service.reject_cold is not None:
                return None
            await asyncio.sleep(0.005)
        return None

    def _run(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def stand_in(argv: Sequence[str]) -> list[str]:
    """The stand-in's command line for `vllm serve MODEL …`. Raises ValueError as vLLM's parser refuses."""
    words = list(argv)
    if words[:2] != ["vllm", "serve"] or len(words) < 3 or words[2].startswith("-"):
        raise ValueError(f"not `vllm serve MODEL`: {words}")
    made = [sys.executable, "-m", "tuna_nb.backends.local.engine", "--model", words[2]]
    made += ["--decode-tokens-per-s", "0", "--prefill-tokens-per-s", "0"]
    rest = iter(words[3:])
    for word in rest:
        if word in IGNORED or word in ("--host", "--port"):
            next(rest)
        elif word not in SWITCHES:
            made.append(word)
    return made


async def answer(send: Any, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
    """A whole answer in one go."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    shown = [(n.encode(), v.encode()) for n, v in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": shown})
    await send({"type": "http.response.body", "body": data})
