"""Cerebrium's REST API v2, as its command-line client has it: apps by name, builds from a zip, numbers as text.

An app's address is at the API's own port here, under `/v4/<project>/<name>`, and unknown for a short while after the
build. What runs is what the uploaded Dockerfile says.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import tomllib
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.fakes.cloud import FakeCloud
from tests.fakes.platform import REFUSED, Replica, Service, answer

PROJECT = "p-0f1e2d3c"
NEVER = "0001-01-01T00:00:00Z"
PAGE = 1
"""Lines of a log page, however many were asked for."""
STATES = {"waiting": "PENDING", "booting": "RUNNING", "ready": "RUNNING", "failed": "WAITING", "gone": "SUCCEEDED"}
COMPUTE = {
    "CPU",
    "TURING_T4",
    "ADA_L4",
    "AMPERE_A10",
    "ADA_L40",
    "AMPERE_A100_40GB",
    "AMPERE_A100_80GB",
    "HOPPER_H100",
}

SETTINGS: dict[str, Any] = {
    "cpu": (int, float),
    "memory": (int, float),
    "compute": list,
    "gpuCount": int,
    "minReplicaCount": int,
    "maxReplicaCount": int,
    "cooldownPeriodSeconds": int,
    "responseGracePeriodSeconds": int,
    "replicaConcurrency": int,
}
CREATE: dict[str, Any] = SETTINGS | {
    "name": str,
    "runtime": str,
    "entrypoint": list,
    "port": int,
    "healthcheckEndpoint": str,
    "readycheckEndpoint": str,
    "dockerfilePath": str,
    "provider": str,
    "region": str,
    "disableAuth": bool,
    "deploymentInitializationTimeout": int,
    "include": list,
    "exclude": list,
    "cerebrium_toml": str,
}


def key(**claims: Any) -> str:
    """A service account's JWT; nobody looks at its signature here."""
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts), "c2ln"]
    )


KEY = key(project_id=PROJECT, iat=1767225600)
BARE = key(sub="service-account-7")
"""Of the same project, which it does not name."""


@dataclass
class App:
    settings: dict[str, Any]
    created_at: float = field(default_factory=time.time)
    build: str = ""
    build_status: str = "pending"
    build_lines: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    service: Service | None = None
    routed_at: float = 0.0


class FakeCerebrium(FakeCloud):
    """tries: whether a build ends by starting a container, as the real one's does; route_s: for so long an app that
    is ready has no address yet. scale: a second of Cerebrium's takes so many real ones."""

    def __init__(self, *, tries: bool = False, route_s: float = 0.05, scale: float = 0.03) -> None:
        super().__init__()
        self.tries, self.route_s, self.scale = tries, route_s, scale
        self.free_gpus = True
        self.build_s = 0.03
        self.leaving_s = 0.1
        """For so long a container that has ended is told as terminating."""
        self.bodies: list[Any] = []
        self.projects = [{"id": PROJECT, "name": "ours"}]
        self.secrets: dict[str, str] = {}
        self.hidden = 0
        """So many requests come too early, however late they come."""
        self.early = 0
        """Requests to addresses that were not known yet."""
        self._number = 0
        self.apps = {f"{PROJECT}-tuna-salad": App({**_defaults(), "name": "tuna-salad"}, build_status="success")}

    @property
    def names(self) -> list[str]:
        return [app.settings["name"] for app in self.apps.values()]

    def routes(self) -> list[BaseRoute]:
        apps = f"/v2/projects/{PROJECT}/apps"
        return [
            Route("/v2/projects", self._guarded(self._projects)),
            Route(f"/v2/projects/{PROJECT}/secrets", self._guarded(self._project_secrets)),
            Route(apps, self._guarded(self._list), methods=["GET"]),
            Route(apps, self._guarded(self._create), methods=["POST"]),
            Route(f"{apps}/{{id}}", self._guarded(self._get), methods=["GET"]),
            Route(f"{apps}/{{id}}", self._guarded(self._patch), methods=["PATCH"]),
            Route(f"{apps}/{{id}}", self._guarded(self._delete), methods=["DELETE"]),
            Route(f"{apps}/{{id}}/secrets", self._guarded(self._app_secrets), methods=["GET", "PATCH"]),
            Route(f"{apps}/{{id}}/containers", self._guarded(self._containers)),
            Route(f"{apps}/{{id}}/logs", self._guarded(self._logs)),
            Route(f"{apps}/{{id}}/builds/{{build}}", self._guarded(self._build)),
            Route(f"{apps}/{{id}}/builds/{{build}}/logs", self._guarded(self._build_logs)),
            Route("/bucket/{id}/{build}.zip", self._uploaded, methods=["PUT"]),
        ]

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path", "").startswith("/v4/"):
            await self._way_in(scope, receive, send)
        else:
            await super()._http(scope, receive, send)

    async def _way_in(self, scope: Any, receive: Any, send: Any) -> None:
        project, name = scope["path"].split("/")[2:4]
        app = self.apps.get(f"{project}-{name}")
        if app is None or app.service is None or time.time() < app.routed_at or self.early < self.hidden:
            self.early += 1
            await answer(send, 404, {"message": "app not found"})
        else:
            await self.platform._gateway(app.service, scope, receive, send)

    def _guarded(self, handler: Any) -> Any:
        async def guarded(request: Request) -> Response:
            if request.headers.get("authorization") not in (f"Bearer {KEY}", f"Bearer {BARE}"):
                return wrong(401, "Unauthorized")
            one = request.path_params.get("id")
            if one is not None and one not in self.apps:
                return wrong(404, f"App {one} not found")
            answered: Response = await handler(request)
            return answered

        return guarded

    async def _projects(self, request: Request) -> Response:
        return JSONResponse(self.projects)

    async def _project_secrets(self, request: Request) -> Response:
        return JSONResponse(self.secrets or None)

    async def _list(self, request: Request) -> Response:
        return JSONResponse([{"id": one, "status": _status(app), "zzzNew": 1} for one, app in self.apps.items()])

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        mistake = _wrong_create(body)
        if mistake:
            return wrong(400, mistake)
        self._number += 1
        one = f"{PROJECT}-{body['name']}"
        app = self.apps.setdefault(one, App({}))
        app.settings = {**_defaults(), **body}
        app.build, app.build_status, app.build_lines = f"b-{self._number:04x}", "pending", []
        made = {
            "buildId": app.build,
            "status": "pending",
            "uploadUrl": f"{self.url}/bucket/{one}/{app.build}.zip?X-Amz-Signature=5163726574",
            "keyName": f"{one}/{app.build}.zip",
            "internalEndpoint": f"{self.url}/v4/{PROJECT}/{body['name']}",
            "dashboardUrl": f"https://dashboard.cerebrium.ai/projects/{PROJECT}/apps/{one}",
            "zzzNew": {"a": [1]},
        }
        return JSONResponse(made)

    async def _uploaded(self, request: Request) -> Response:
        """A bucket's signed address: what else says who one is makes it refuse."""
        app = self.apps[request.path_params["id"]]
        signed = request.query_params.get("X-Amz-Signature") == "5163726574"
        if "authorization" in request.headers or not signed:
            return Response("<Error><Code>InvalidArgument</Code></Error>", 400, media_type="application/xml")
        if request.headers.get("content-type") != "application/zip":
            return Response("<Error><Code>SignatureDoesNotMatch</Code></Error>", 403, media_type="application/xml")
        with zipfile.ZipFile(io.BytesIO(await request.body())) as packed:
            files = {name: packed.read(name).decode() for name in packed.namelist()}
        self.bodies.append(files)
        app.build_status = "building"
        self.platform._run(self._builds(app, app.build, files))
        return Response()

    async def _builds(self, app: App, build: str, files: dict[str, str]) -> None:
        await asyncio.sleep(self.build_s)
        app.build_lines.append("Step 1: reading the files")
        try:
            argv, env = _program(app.settings, files)
        except ValueError as mistake:
            app.build_lines.append(f"error: {mistake}")
            app.build_status = "build_failure"
            return
        if app.service is not None:
            await self.platform.stop(app.service)
        public = app.settings["disableAuth"]

        def opens(headers: Any) -> Any:
            known = headers.get("authorization") in (f"Bearer {KEY}", f"Bearer {BARE}")
            return None if public or known else REFUSED

        app.service = await self.platform.start(
            Service(
                argv=argv,
                env={**env, **self.secrets, **app.secrets},
                opens=opens,
                prefix=f"/v4/{PROJECT}/{app.settings['name']}",
                capacity=lambda: self.free_gpus,
            )
        )
        self._scale(app)
        if self.tries:
            app.build_lines.append("Step 2: starting a container")
            self.platform.wake(app.service)
            while not any(r.state == "ready" for r in app.service.replicas):
                if any(r.starts > 1 for r in app.service.replicas):
                    app.build_lines.append("the container did not get ready")
                    await self.platform.stop(app.service)
                    app.build_status = "init_failure"
                    return
                await asyncio.sleep(0.01)
        app.routed_at = time.time() + self.route_s
        app.build_status = "success"

    async def _get(self, request: Request) -> Response:
        one = request.path_params["id"]
        app = self.apps[one]
        told = {name: str(app.settings[name]) for name in SETTINGS if name != "compute"}
        made = _time(app.created_at)
        more = {"lastBuildStatus": app.build_status, "latestBuildId": app.build, "zzzNew": None}
        return JSONResponse(
            {"id": one, "createdAt": made, "hardware": "GPU", "status": _status(app), **told, **more}
        )

    async def _patch(self, request: Request) -> Response:
        body = await request.json()
        mistake = _wrong(body, SETTINGS)
        if mistake:
            return wrong(400, mistake)
        app = self.apps[request.path_params["id"]]
        app.settings.update(body)
        self._scale(app)
        return JSONResponse({"message": "updated"})

    async def _delete(self, request: Request) -> Response:
        app = self.apps[request.path_params["id"]]
        if app.service is not None:
            await self.platform.stop(app.service)
        await asyncio.sleep(0.01)
        self.apps.pop(request.path_params["id"], None)
        return JSONResponse({"message": "deleted"})

    async def _app_secrets(self, request: Request) -> Response:
        app = self.apps[request.path_params["id"]]
        if request.method == "PATCH":
            app.secrets = await request.json()
        return JSONResponse(app.secrets)

    async def _containers(self, request: Request) -> Response:
        app = self.apps[request.path_params["id"]]
        replicas = app.service.replicas if app.service else []
        return JSONResponse([self._container(app, r) for r in replicas])

    async def _logs(self, request: Request) -> Response:
        app, query = self.apps[request.path_params["id"]], request.query_params
        unknown = set(query) - {
            "pageSize",
            "nextToken",
            "direction",
            "beforeDate",
            "afterDate",
            "container",
            "stream",
        }
        if unknown:
            return wrong(400, f"unknown parameters {sorted(unknown)}")
        after = datetime.fromisoformat(query["afterDate"]).timestamp() if "afterDate" in query else 0.0
        told = [
            (n, line)
            for n, line in enumerate(app.service.lines if app.service else [])
            if round(line[0], 6) >= after
        ]
        if query.get("direction") != "forward":
            told.reverse()
        if not told:
            return Response(status_code=204)
        begin = int(query.get("nextToken", "0"))
        more = begin + PAGE < len(told)
        lines = [
            {
                "logId": f"log-{number}",
                "lineNumber": number,
                "containerId": container,
                "logLine": text + "\n",
                "stream": "stderr",
                "timestamp": _time(at).replace("Z", "123Z"),
            }
            for number, (at, container, text) in told[begin : begin + PAGE]
        ]
        return JSONResponse({"logs": lines, "nextPageToken": str(begin + PAGE) if more else None, "hasMore": more})

    async def _build(self, request: Request) -> Response:
        app = self.apps[request.path_params["id"]]
        if request.path_params["build"] != app.build:
            return wrong(404, "build not found")
        return JSONResponse({"id": app.build, "status": app.build_status, "createdAt": _time(app.created_at)})

    async def _build_logs(self, request: Request) -> Response:
        app = self.apps[request.path_params["id"]]
        lines = [{"id": str(n), "createdAt": _time(), "log": text} for n, text in enumerate(app.build_lines)]
        return JSONResponse({"logs": lines, "status": app.build_status})

    def _scale(self, app: App) -> None:
        if app.service is not None:
            app.service.min, app.service.max = app.settings["minReplicaCount"], app.settings["maxReplicaCount"]
            app.service.idle_s = app.settings["cooldownPeriodSeconds"] * self.scale

    def _container(self, app: App, replica: Replica) -> dict[str, Any]:
        """Recent ones are told too, and first as terminating."""
        ended = replica.ended_at
        leaving = ended is not None and time.time() - ended < self.leaving_s
        return {
            "appId": f"{PROJECT}-{app.settings['name']}",
            "projectId": PROJECT,
            "containerId": replica.id,
            "containerState": "RUNNING" if leaving else STATES[replica.state],
            "timestamp": _time(app.created_at),
            "containerStartTimestamp": _time(replica.started_at) if replica.started_at else NEVER,
            "containerTerminationTimestamp": _time(ended) if ended and not leaving else NEVER,
            "containerRestartCount": max(0, replica.starts - 1),
            "region": app.settings["region"],
            "buildId": app.build,
            "isTerminating": leaving,
            "zzzNew": 7,
        }


def wrong(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)


def _status(app: App) -> str:
    if app.build_status != "success":
        return "deploying" if app.build_status in ("pending", "building") else "error"
    alive = app.service.alive() if app.service else []
    if not alive:
        return "cold"
    return "ready" if any(r.state == "ready" for r in alive) else "notready"


def _program(settings: dict[str, Any], files: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """What the image runs. Raises ValueError as the build fails."""
    path = settings["dockerfilePath"].removeprefix("./")
    if path not in files or "cerebrium.toml" not in files:
        raise ValueError(f"no {path} or no cerebrium.toml in the zip")
    if files["cerebrium.toml"] != settings["cerebrium_toml"]:
        raise ValueError("cerebrium.toml is not the one that was sent")
    steps = [line.split(" ", 1) for line in files[path].splitlines()]
    by_word = dict(steps)
    if steps[0][0] != "FROM" or by_word.get("EXPOSE") != str(settings["port"]) or "CMD" not in by_word:
        raise ValueError("the Dockerfile needs FROM, EXPOSE of the port, and CMD")
    command = json.loads(by_word["CMD"])
    # vLLM's image has an entrypoint, which stays unless it is emptied.
    before = json.loads(by_word["ENTRYPOINT"]) if "ENTRYPOINT" in by_word else ["vllm", "serve"]
    if settings["entrypoint"] != before + command:
        raise ValueError("entrypoint and Dockerfile disagree")
    env = dict(rest.split("=", 1) for word, rest in steps if word == "ENV")
    return before + command, {name: json.loads(value) for name, value in env.items()}


def _defaults() -> dict[str, Any]:
    return {
        "cpu": 2,
        "memory": 8,
        "gpuCount": 0,
        "minReplicaCount": 0,
        "maxReplicaCount": 2,
        "cooldownPeriodSeconds": 1800,
        "responseGracePeriodSeconds": 900,
        "replicaConcurrency": 1,
        "region": "us-east-1",
        "disableAuth": False,
    }


def _wrong(body: dict[str, Any], known: dict[str, Any]) -> str:
    for name, value in body.items():
        if name not in known:
            return f"property {name} should not exist"
        if not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] is not bool):
            return f"{name} has the wrong type"
    for name in ("cooldownPeriodSeconds", "responseGracePeriodSeconds"):
        if not 1 <= body.get(name, 1) <= 3600:
            return f"{name} must be between 1 and 3600"
    return ""


def _wrong_create(body: dict[str, Any]) -> str:
    for name in ("name", "dockerfilePath", "port", "entrypoint", "cerebrium_toml"):
        if name not in body:
            return f"{name} should not be empty"
    if body.get("runtime") != "custom":
        return "a Dockerfile needs the custom runtime"
    if set(body.get("compute", [])) - COMPUTE:
        return f"compute must be one of {sorted(COMPUTE)}"
    if not 60 <= body.get("deploymentInitializationTimeout", 60) <= 830:
        return "deploymentInitializationTimeout must be between 60 and 830"
    try:
        told = tomllib.loads(body["cerebrium_toml"])["cerebrium"]
    except (tomllib.TOMLDecodeError, KeyError) as mistake:
        return f"cerebrium.toml: {mistake!r}"
    same = (
        (told["deployment"]["name"], body["name"]),
        (told["deployment"]["disable_auth"], body["disableAuth"]),
        ([told["hardware"]["compute"]], body["compute"]),
        (told["hardware"]["gpu_count"], body["gpuCount"]),
        (told["scaling"]["min_replicas"], body["minReplicaCount"]),
        (told["scaling"]["max_replicas"], body["maxReplicaCount"]),
        (told["scaling"]["cooldown"], body["cooldownPeriodSeconds"]),
        (told["scaling"]["replica_concurrency"], body["replicaConcurrency"]),
        (told["runtime"]["custom"]["entrypoint"], body["entrypoint"]),
        (told["runtime"]["custom"]["port"], body["port"]),
        (told["runtime"]["custom"]["dockerfile_path"], body["dockerfilePath"]),
    )
    return next((f"cerebrium.toml says {a}, the request {b}" for a, b in same if a != b), _wrong(body, CREATE))


def _time(at: float | None = None) -> str:
    return (
        datetime.fromtimestamp(time.time() if at is None else at, UTC)
        .isoformat(timespec="microseconds")
        .replace("+00:00", "Z")
    )
