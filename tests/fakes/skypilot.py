"""A pretend SkyPilot API server, which the real `sky` client talks to, and the SkyServe behind it.

Tasks are read and judged by SkyPilot's own classes. What a replica is told to run is run, by a real shell on this
machine with a loopback address of its own in the place of 0.0.0.0; `vllm` there is the stand-in for vLLM.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.platform import IGNORED, SWITCHES, answer

OTHERS = "somebody-elses-chatbot"
_CATALOG = Path(__file__).with_name("skypilot_catalog")


def home() -> Path:
    """The HOME of every test that imports `sky`: it keeps the one with which it was first imported."""
    global _home
    if _home is None:
        _home = Path(tempfile.mkdtemp(prefix="tuna-sky-"))
        atexit.register(shutil.rmtree, _home, ignore_errors=True)
        shutil.copytree(_CATALOG, _home / ".sky" / "catalogs" / "v8")
    return _home


_home: Path | None = None


def enter(setenv: Callable[[str, str], object], url: str) -> None:
    """Make this process a user of the API server at `url`."""
    setenv("HOME", str(home()))
    setenv("SKYPILOT_API_SERVER_ENDPOINT", url)
    setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    if "sky" in sys.modules:
        from sky.server import common

        common.get_server_url.cache_clear()


@dataclass
class Replica:
    """state: SkyServe's word. address: of its machine, on loopback."""

    id: int
    version: int
    address: str
    state: str = "PENDING"
    launched_at: float | None = None
    folder: Path | None = None
    process: asyncio.subprocess.Process | None = None
    work: asyncio.Task[None] | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.state.startswith("FAILED")


@dataclass
class Service:
    """task: as SkyPilot writes it. asked: times of the balancer's requests."""

    name: str
    task: dict[str, Any]
    network: int
    version: int = 1
    launched: int = 0
    state: str | None = None
    replicas: list[Replica] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    port: int = 0
    server: uvicorn.Server | None = None
    keeper: asyncio.Task[None] | None = None
    born: float = field(default_factory=time.time)

    @property
    def policy(self) -> dict[str, Any]:
        policy: dict[str, Any] = self.task["service"]["replica_policy"]
        return policy


class FakeSkyPilot(FakeCloud):
    """controller: None, or the status of SkyServe's controller where it is not up. capacity: whether the cloud has
    spot machines. denied: the cloud refuses our credentials. offline: it does not reach the internet. sticks:
    services can't be removed but by a purge. up_s: so long `serve.up` takes. lost_races: so many controllers fail to be
    launched, as they do beside another first launch on an AWS account. unregistered: so many controllers do not tell of
    their service within SkyPilot's minute; registers_late: they do a moment later."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.controller: str | None = "UP"
        self.capacity = True
        self.quota = True
        self.denied = False
        self.offline = False
        self.sticks = False
        self.no_rsync = False
        self.lost_races = 0
        self.unregistered = 0
        self.registers_late = False
        self.up_s = 0.02
        self.boot_s = 0.05
        self.scheme = "http://"
        self.bodies: list[dict[str, Any]] = []
        self.clusters: list[str] = []
        self.taken_down: list[str] = []
        self.cancelled: list[str] = []
        self.machines: list[dict[str, Any]] = []
        """Of every machine that there ever was: name, usage_intervals, total_cost."""

    @property
    def names(self) -> list[str]:
        return [OTHERS, *self.services]

    async def open(self) -> None:
        self.services: dict[str, Service] = {}
        self._requests: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._http_client = httpx.AsyncClient(trust_env=False, timeout=60)
        self._bin = Path(tempfile.mkdtemp(prefix="tuna-sky-bin-"))
        _write_vllm(self._bin / "vllm")
        self._networks = itertools.count(1 + os.getpid() % 200)
        await super().open()

    async def shut(self) -> None:
        for service in list(self.services.values()):
            await self._remove(service)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http_client.aclose()
        shutil.rmtree(self._bin)
        await super().shut()

    async def clear(self) -> None:
        """No service is left."""
        for service in list(self.services.values()):
            await self._remove(service)

    def routes(self) -> list[BaseRoute]:
        def post(path: str, handle: Callable[[Request], Coroutine[Any, Any, Response]]) -> Route:
            return Route(path, handle, methods=["POST"])

        return [
            Route("/api/health", self._health),
            Route("/api/get", self._get),
            Route("/api/stream", self._stream),
            post("/api/cancel", self._cancel),
            post("/validate", self._validate),
            post("/optimize", self._submitted("optimize", self._optimize)),
            post("/check", self._submitted("check", self._check)),
            post("/status", self._submitted("status", self._clusters)),
            post("/cost_report", self._submitted("cost_report", self._cost_report)),
            post("/down", self._submitted("down", self._cluster_down)),
            post("/serve/up", self._submitted("serve.up", self._up)),
            post("/serve/update", self._submitted("serve.update", self._update)),
            post("/serve/down", self._submitted("serve.down", self._down)),
            post("/serve/status", self._submitted("serve.status", self._status)),
            post("/serve/logs", self._logs),
        ]

    # Requests and their answers

    async def _health(self, _: Request) -> Response:
        import sky
        from sky.server import constants

        told = {
            "status": "healthy",
            "api_version": str(constants.API_VERSION),
            "version": sky.__version__,
            "version_on_disk": sky.__version__,
            "commit": sky.__commit__,
        }
        return self._reply(told)

    def _submitted(
        self, name: str, carry_out: Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            body = json.loads(await request.body())
            self.bodies.append(body)
            made = self._begin(name, carry_out(body))
            return self._reply(None, {"X-SkyPilot-Request-ID": made})

        return handle

    def _begin(self, name: str, work: Coroutine[Any, Any, Any]) -> str:
        from sky import exceptions
        from sky.server.requests.serializers.encoders import pickle_and_encode

        number = str(uuid.uuid4())
        entry: dict[str, Any] = {"name": name, "status": "RUNNING", "value": None, "error": None}
        self._requests[number] = entry

        async def run() -> None:
            try:
                entry["value"] = await work
                entry["status"] = "SUCCEEDED"
            except asyncio.CancelledError:
                entry["status"] = "CANCELLED"
                raise
            except Exception as exc:  # noqa: BLE001 - SkyPilot raises whatever it likes
                entry["status"] = "FAILED"
                entry["error"] = {
                    "object": pickle_and_encode(exceptions.serialize_exception(exc)),
                    "type": type(exc).__name__,
                    "message": str(exc),
                }

        entry["task"] = self._run(run())
        return number

    async def _get(self, request: Request) -> Response:
        number = request.query_params["request_id"]
        if (entry := self._requests.get(number)) is None:
            return self._reply({"detail": f"Request {number!r} not found"}, status=404)
        await asyncio.wait({entry["task"]})
        payload = self._payload(number, entry)
        if entry["error"] is not None:
            return self._reply({"detail": payload}, status=500)
        return self._reply(payload)

    def _payload(self, number: str, entry: dict[str, Any]) -> dict[str, Any]:
        from sky.server import constants

        return {
            "request_id": number,
            "name": constants.REQUEST_NAME_PREFIX + entry["name"],
            "entrypoint": constants.EMPTY_PICKLED_VALUE,
            "request_body": constants.EMPTY_PICKLED_VALUE,
            "status": entry["status"],
            "created_at": time.time(),
            "user_id": "fake",
            "return_value": json.dumps(entry["value"]),
            "error": json.dumps(entry["error"]),
            "pid": None,
            "schedule_type": "short",
        }

    async def _stream(self, request: Request) -> Response:
        number = request.query_params["request_id"]
        if (entry := self._requests.get(number)) is None:
            return self._reply({"detail": "no such request"}, status=404)

        async def text() -> AsyncIterator[str]:
            yield f"Considered resources for {entry['name']}\n"
            await asyncio.wait({entry["task"]})

        return StreamingResponse(text(), headers=self._headers({"X-SkyPilot-Stream-Request-ID": number}))

    async def _cancel(self, request: Request) -> Response:
        body = json.loads(await request.body())
        for number in body["request_ids"]:
            if (entry := self._requests.get(number)) is not None and entry["status"] == "RUNNING":
                entry["task"].cancel()
                self.cancelled.append(entry["name"])

        async def done() -> list[str]:
            return list(body["request_ids"])

        return self._reply(None, {"X-SkyPilot-Request-ID": self._begin("api_cancel", done())})

    def _reply(self, body: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
        return JSONResponse(body, status, headers=self._headers(headers or {}))

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        import sky
        from sky.server import constants

        return {
            constants.API_VERSION_HEADER: str(constants.API_VERSION),
            constants.VERSION_HEADER: sky.__version__,
            **more,
        }

    # What it does

    async def _validate(self, request: Request) -> Response:
        from sky import exceptions

        try:
            _task(json.loads(await request.body())["dag"])
        except Exception as exc:  # noqa: BLE001 - SkyPilot raises whatever it likes
            return self._reply({"detail": exceptions.serialize_exception(exc)}, status=400)
        return self._reply(None)

    async def _optimize(self, body: dict[str, Any]) -> None:
        from sky import exceptions

        _task(body["dag"])
        if self.denied:
            raise exceptions.NoCloudAccessError("No cloud access: AWS: the security token is invalid")
        if not self.quota:
            raise exceptions.ResourcesUnavailableError("MaxSpotInstanceCountExceeded: quota of us-east-1 exceeded")
        if not self.capacity:
            raise exceptions.ResourcesUnavailableError("Failed to provision all possible launchable resources.")

    async def _check(self, body: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
        return {"default": {} if self.denied else {name.upper(): ["compute"] for name in body["clouds"]}}

    async def _clusters(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        from sky.server.requests.serializers.encoders import pickle_and_encode

        return [
            {"name": name, "status": "STOPPED", "handle": pickle_and_encode(None), **_CLUSTER}
            for name in self.clusters
        ]

    async def _cost_report(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        from sky.server.requests.serializers.encoders import pickle_and_encode

        oldest = time.time() - body["days"] * 86400
        more = {"launched_at": 1, "num_nodes": 1, "status": None, "resources": pickle_and_encode(None)}
        return [
            {**more, "cluster_hash": f"h{number}", "resources_str": "1x(L4:1, spot)", **machine}
            for number, machine in enumerate(self.machines)
            if any(end is None or end >= oldest for _, end in machine["usage_intervals"])
        ]

    async def _cluster_down(self, body: dict[str, Any]) -> None:
        self.clusters.remove(body["cluster_name"])
        self.taken_down.append(body["cluster_name"])

    def _controller_is_up(self) -> None:
        from sky import exceptions
        from sky.utils.status_lib import ClusterStatus

        if self.offline:
            raise RuntimeError("Failed to refresh services status due to network error.")
        if self.controller != "UP":
            known = None if self.controller is None else ClusterStatus(self.controller)
            raise exceptions.ClusterNotUpError("No live services.", cluster_status=known)

    async def _up(self, body: dict[str, Any]) -> list[str]:
        from sky import exceptions

        name = body["service_name"]
        task = _task(body["task"])
        if self.no_rsync:
            raise RuntimeError("rsync is not installed, please install it first.")
        await asyncio.sleep(self.up_s)
        if self.lost_races:
            self.lost_races -= 1
            raise exceptions.ResourcesUnavailableError("Failed to provision all possible launchable resources.")
        if name in self.services:
            raise RuntimeError("Failed to spin up the service. Please check the logs above for more details.")
        self.controller = "UP"
        if self.unregistered:
            self.unregistered -= 1
            if self.registers_late:
                self._run(self._register(name, task))
            raise ValueError(f"Failed to register service {name!r} on the SkyServe controller. Reason:\n")
        service = await self._register(name, task)
        return [name, f"{self.scheme}127.0.0.1:{service.port}"]

    async def _register(self, name: str, task: Any) -> Service:
        service = Service(name, task.to_yaml_config(), next(self._networks))
        self.services[name] = service
        await self._open_balancer(service)
        service.keeper = self._run(self._keep(service))
        return service

    async def _update(self, body: dict[str, Any]) -> None:
        self._controller_is_up()
        service = self.services.get(body["service_name"])
        if service is None:
            raise RuntimeError(f"Cannot find service {body['service_name']!r}.")
        fresh = _task(body["task"]).to_yaml_config()
        service.version += 1
        same = _besides_service(service.task) == _besides_service(fresh) and fresh.get("file_mounts") == {}
        service.task = fresh
        for replica in list(service.replicas):
            if same:
                replica.version = service.version
            else:
                await self._end(service, replica)

    async def _down(self, body: dict[str, Any]) -> None:
        self._controller_is_up()
        names = body["service_names"]
        for name in [names] if isinstance(names, str) else names:
            service = self.services.get(name)
            if service is None or service.state == "SHUTTING_DOWN":
                continue
            if self.sticks and not body["purge"]:
                service.state = "FAILED_CLEANUP"
                continue
            service.state = "SHUTTING_DOWN"
            self._run(self._remove(service, after_s=0.05))

    async def _status(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self._controller_is_up()
        names = body["service_names"]
        asked = None if names is None else ([names] if isinstance(names, str) else names)
        theirs = [] if asked is not None and OTHERS not in asked else [_record(OTHERS, "READY", 1, [], None, {}, 1)]
        return [*theirs, *(self._told(s) for s in self.services.values() if asked is None or s.name in asked)]

    def _told(self, service: Service) -> dict[str, Any]:
        from sky.serve.serve_state import ReplicaStatus, ServiceStatus

        words = [ReplicaStatus(r.state) for r in service.replicas]
        state = service.state or ServiceStatus.from_replica_statuses(words).value
        endpoint = f"{self.scheme}127.0.0.1:{service.port}"
        listed = [_replica(service, r) for r in service.replicas]
        return _record(service.name, state, service.version, listed, endpoint, service.task, self._target(service))

    async def _logs(self, request: Request) -> Response:
        body = json.loads(await request.body())
        service = self.services[body["service_name"]]
        replica = next(r for r in service.replicas if r.id == body["replica_id"])

        async def text() -> AsyncIterator[str]:
            told = 0
            while True:
                for line in replica.lines[told:]:
                    yield f"\x1b[36m({service.name}, pid=42)\x1b[0m {line}\n"
                told = len(replica.lines)
                if not body["follow"]:
                    return
                await asyncio.sleep(0.01)

        async def nothing() -> None:
            return None

        number = self._begin("serve.logs", nothing())
        return StreamingResponse(text(), headers=self._headers({"X-SkyPilot-Request-ID": number}))

    # Replicas

    def preempt(self, name: str) -> None:
        """The cloud takes the machine of its first ready replica."""

        async def take() -> None:
            service = self.services[name]
            await self._end(service, next(r for r in service.replicas if r.state == "READY"))

        self.do(take())

    def _target(self, service: Service) -> int:
        policy = service.policy
        least, most = policy["min_replicas"], policy.get("max_replicas", policy["min_replicas"])
        lately = [at for at in service.asked if at > time.time() - 60]
        return max(least, min(most, 1 if lately else 0))

    async def _keep(self, service: Service) -> None:
        while service.state is None:
            alive = [r for r in service.replicas if not r.ended]
            failed = [r for r in service.replicas if r.state == "FAILED"]
            if len(alive) < self._target(service) and not failed:
                service.launched += 1
                number = service.launched
                replica = Replica(number, service.version, f"127.{service.network % 250 + 1}.{number % 250}.2")
                service.replicas.append(replica)
                replica.work = self._run(self._live(service, replica))
            elif len(alive) > service.policy.get("max_replicas", 10**6):
                await self._end(service, alive[-1])
            await asyncio.sleep(0.01)

    async def _live(self, service: Service, replica: Replica) -> None:
        replica.state, replica.launched_at = "PROVISIONING", time.time()
        await asyncio.sleep(self.boot_s)
        if not self.capacity:
            replica.state = "FAILED_PROVISION"
            return
        replica.state = "STARTING"
        replica.folder = Path(tempfile.mkdtemp(prefix="tuna-sky-machine-"))
        task = service.task
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "VLLM_API_KEY")},
            **{name: str(value) for name, value in {**task.get("envs", {}), **task.get("secrets", {})}.items()},
            "HOME": str(replica.folder),
            "PATH": f"{self._bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        replica.process = await asyncio.create_subprocess_exec(
            "/bin/bash",
            "-c",
            task["run"].replace("0.0.0.0", replica.address),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._run(_read(replica))
        while replica.process.returncode is None and not replica.ended:
            ready = await self._probe(service, replica)
            if replica.state in ("STARTING", "READY", "NOT_READY"):
                replica.state = "READY" if ready else ("STARTING" if replica.state == "STARTING" else "NOT_READY")
            await asyncio.sleep(0.05)
        if replica.process.returncode is not None and replica in service.replicas:
            replica.state = "FAILED"

    async def _probe(self, service: Service, replica: Replica) -> bool:
        section = service.task["service"]
        probe = section["readiness_probe"]
        url = f"http://{replica.address}:{section['ports']}{probe['path']}"
        try:
            if (data := probe.get("post_data")) is not None:
                answered = await self._http_client.post(url, json=data, headers=probe.get("headers"))
            else:
                answered = await self._http_client.get(url, headers=probe.get("headers"))
        except httpx.HTTPError:
            return False
        return answered.status_code == 200

    async def _end(self, service: Service, replica: Replica) -> None:
        if replica in service.replicas:
            service.replicas.remove(replica)
        if replica.work is not None:
            replica.work.cancel()
            await asyncio.gather(replica.work, return_exceptions=True)
        if replica.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(replica.process.pid, signal.SIGKILL)
            await replica.process.wait()
        if replica.folder is not None:
            shutil.rmtree(replica.folder, ignore_errors=True)

    async def _remove(self, service: Service, after_s: float = 0.0) -> None:
        service.state = service.state or "SHUTTING_DOWN"
        await asyncio.sleep(after_s)
        for replica in list(service.replicas):
            await self._end(service, replica)
        if service.server is not None:
            service.server.should_exit = service.server.force_exit = True
        self.services.pop(service.name, None)

    # The balancer

    async def _open_balancer(self, service: Service) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await self._balance(service, scope, receive, send)

        config = uvicorn.Config(app, port=0, lifespan="off", log_level="error", ws="none", interface="asgi3")
        service.server = uvicorn.Server(config)
        self._run(service.server.serve())
        while not service.server.started:
            await asyncio.sleep(0.002)
        service.port = service.server.servers[0].sockets[0].getsockname()[1]

    async def _balance(self, service: Service, scope: Any, receive: Any, send: Any) -> None:
        service.asked.append(time.time())
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        ready = next((r for r in service.replicas if r.state == "READY"), None)
        if ready is None:
            await answer(send, 503, {"detail": "No ready replicas."})
            return
        port = service.task["service"]["ports"]
        url = f"http://{ready.address}:{port}{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        dropped = (b"host", b"content-length", b"transfer-encoding")
        passed = [(name, value) for name, value in scope["headers"] if name not in dropped]
        try:
            got = await self._http_client.request(scope["method"], url, headers=passed, content=body)
        except httpx.HTTPError:
            await answer(send, 502, {"detail": "the replica broke off"})
            return
        await answer(send, got.status_code, got.content, {"content-type": got.headers.get("content-type", "")})

    def _run(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_CLUSTER: dict[str, Any] = {
    "launched_at": 1,
    "last_use": "",
    "autostop": 10,
    "to_down": False,
    "owner": None,
    "metadata": {},
    "cluster_hash": "h",
    "storage_mounts_metadata": None,
    "cluster_ever_up": True,
    "status_updated_at": 1,
    "user_hash": "u",
    "user_name": "u",
    "config_hash": None,
    "workspace": "default",
    "last_creation_yaml": None,
    "last_creation_command": None,
    "is_managed": False,
    "nodes": 1,
    "labels": {},
}


async def _read(replica: Replica) -> None:
    assert replica.process is not None
    assert replica.process.stdout is not None
    async for line in replica.process.stdout:
        replica.lines.append(line.decode(errors="replace").rstrip())


def _task(text: str) -> Any:
    """As the server reads and judges it. Raises what SkyPilot raises."""
    from sky.serve import serve_utils
    from sky.utils import dag_utils

    [task] = dag_utils.load_chain_dag_from_yaml_str(text).tasks
    if task.service is not None:
        serve_utils.validate_service_task(task, pool=False)
    return task


def _besides_service(task: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in task.items() if name not in ("service", "_user_specified_yaml")}


def _replica(service: Service, replica: Replica) -> dict[str, Any]:
    booted = replica.state not in ("PENDING", "PROVISIONING", "FAILED_PROVISION")
    return {
        "replica_id": replica.id,
        "name": f"{service.name}-{replica.id}",
        "status": replica.state,
        "version": replica.version,
        "endpoint": f"http://{replica.address}:{service.task['service']['ports']}" if booted else None,
        "is_spot": True,
        "launched_at": replica.launched_at,
        "handle": None,
        "cloud": "AWS",
        "region": "us-east-1",
        "infra": "AWS (us-east-1b)",
        "resources_str": "1x(L4:1, spot)",
        "resources_str_full": "1x(L4:1, spot)",
    }


def _record(  # noqa: PLR0917
    name: str,
    state: str,
    version: int,
    replicas: list[dict[str, Any]],
    endpoint: str | None,
    task: dict[str, Any],
    target: int,
) -> dict[str, Any]:
    """With the fields that 0.14.1 gives, the task's secrets among them."""
    return {
        "name": name,
        "status": state,
        "version": version,
        "active_versions": [version],
        "controller_job_id": 1,
        "controller_port": 20001,
        "load_balancer_port": 30001,
        "uptime": 10,
        "policy": "Autoscaling",
        "requested_resources_str": "1x(L4:1, spot)",
        "load_balancing_policy": "least_load",
        "tls_encrypted": False,
        "pool": False,
        "target_num_replicas": target,
        "replica_info": replicas,
        "endpoint": endpoint or "http://None",
        "yaml_content": yaml.safe_dump(task),
    }


def _write_vllm(path: Path) -> None:
    """`vllm serve MODEL …` by the stand-in."""
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"values, switches = {sorted(IGNORED)!r}, {sorted(SWITCHES)!r}\n"
        "assert sys.argv[1] == 'serve'\n"
        "rest = iter(sys.argv[3:])\n"
        "made = [sys.executable, '-m', 'tuna_nb.backends.local.engine', '--model', sys.argv[2]]\n"
        "made += ['--decode-tokens-per-s', '0', '--prefill-tokens-per-s', '0']\n"
        "for word in rest:\n"
        "    if word in values:\n"
        "        next(rest)\n"
        "    elif word not in switches:\n"
        "        made.append(word)\n"
        "os.execv(sys.executable, made)\n"
    )
    path.chmod(0o755)
