"""Modal's control plane, as its SDK 1.6.4 speaks to it by gRPC: apps, images, functions, secrets, proxy tokens, logs.

A container does what the deployed function does: its pickled code is read, in a place that has neither Tuna nor the
tests, and called, and the process that it would start is started.
"""

from __future__ import annotations

import asyncio
import builtins
import io
import pickle
import re
import time
import types
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpclib
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Cardinality, Status
from grpclib.server import Server, Stream
from modal_proto import api_pb2 as api
from modal_proto.api_grpc import ModalClientBase

from tests.fakes.cloud import FakeCloud
from tests.fakes.faults import Fault
from tests.fakes.platform import Service

TOKEN = ("ak-the-tests-id", "as-the-test's-secret")
NO_KEY = (401, b"modal-http: missing credentials for proxy authorization")
GPUS = {"T4", "L4", "A10", "L40S", "A100-40GB", "A100-80GB", "H100", "H200", "B200"}
STATUSES = {
    400: Status.INVALID_ARGUMENT,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.NOT_FOUND,
    409: Status.ALREADY_EXISTS,
    429: Status.RESOURCE_EXHAUSTED,
    500: Status.INTERNAL,
    503: Status.UNAVAILABLE,
}
RATES = {
    "gpu_l4_second": "0.000225",
    "gpu_l4_nonpreemptible_second": "0.0007",
    "gpu-hours H100": "4.10",
    "gpu-hours H100 region us": "6.15",
    "gpu_quantum_hour": "99",
    "GPU T4": "77777",
    "cpu_core_second": "0.0000140",
    "memory_gib_hour": "0.0081",
    "volume_gib_month": "0.09",
}

LOST_S = 3.0
"""An app that is being made ends when its maker has not been heard for so long; really some heartbeats of 15 s."""


@dataclass
class App:
    id: str
    description: str
    state: int = api.APP_STATE_INITIALIZING
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)
    stopped_at: float = 0.0
    heard_at: float = field(default_factory=time.time)


@dataclass
class Function:
    app: App
    tag: str
    definition: api.Function = field(default_factory=api.Function)
    service: Service | None = None
    python: str = ""


class FakeModal(FakeCloud):
    """scale: a second of an idle window takes so many real ones. free_gpus: whether containers find a GPU.

    held_s: what a service's cold request is held before it is sent on. broken_build: what the build of an image says.
    roles: the workspace's tokens open no environment before they are allowed to.
    """

    def __init__(self, *, scale: float = 0.03) -> None:
        super().__init__()
        self.scale = scale
        self.free_gpus = True
        self.held_s: float | None = None
        self.broken_build: str | None = None
        self.roles = False
        self.rates = dict(RATES)
        self.requests: list[tuple[str, Any]] = []
        """Every request as it came: its RPC's name, and its message."""
        self.apps: dict[str, App] = {}
        self.functions: dict[str, Function] = {}
        self.tokens: dict[str, tuple[api.WebhookToken, str]] = {}
        self.allowed: set[tuple[str, str]] = set()
        self.secrets: dict[str, dict[str, str]] = {}
        self.images: dict[str, api.Image] = {}
        self.built: set[str] = set()
        self._named: dict[str, str] = {}
        self._once: dict[str, Any] = {}
        self.account: list[tuple[str, str, float, str]] = []
        """What has been billed: the object's id and name, when (Unix seconds), and USD as decimal text."""
        self._number = 0
        foreign = self.apps["ap-foreign"] = App("ap-foreign", "tuna-salad", api.APP_STATE_DEPLOYED, "tuna-salad")
        foreign.functions["serve"] = "fu-foreign"
        self.functions["fu-foreign"] = Function(foreign, "serve")
        gone = self.apps["ap-gone"] = App("ap-gone", "tuna-old-0000000000-serverless", api.APP_STATE_STOPPED)
        gone.stopped_at = time.time()
        self.tokens["wk-foreign"] = api.WebhookToken(token_id="wk-foreign", name="someone's"), "ws-foreign"

    @property
    def names(self) -> list[str]:
        """Of all apps that have not ended, and of all proxy tokens."""
        ended = (api.APP_STATE_STOPPED, api.APP_STATE_STOPPING)
        for app in self.apps.values():
            if app.state == api.APP_STATE_INITIALIZING and time.time() - app.heard_at > LOST_S:
                app.state, app.stopped_at = api.APP_STATE_STOPPED, time.time()
        return [app.description for app in self.apps.values() if app.state not in ended]

    @property
    def token_names(self) -> list[str]:
        return [token.name for token, _ in self.tokens.values()]

    @property
    def sent(self) -> str:
        """All that was sent, but for what is a secret of Modal's own, of the Hugging Face token and nothing else."""
        return "\n".join(
            str(message)
            for name, message in self.requests
            if name != "SecretGetOrCreate" or set(message.env_dict) != {"HF_TOKEN"}
        )

    async def open(self) -> None:
        from modal._utils.grpc_utils import custom_detail_codec

        self._grpc = Server([self._servicer()], status_details_codec=custom_detail_codec)
        await self._grpc.start("127.0.0.1", 0)
        assert self._grpc._server is not None
        self.url = f"http://127.0.0.1:{self._grpc._server.sockets[0].getsockname()[1]}"

    async def shut(self) -> None:
        self._grpc.close()

    def _servicer(self) -> Any:
        """Every RPC there is; one that nobody wrote here answers UNIMPLEMENTED."""

        def handler(name: str) -> Any:
            async def handle(_: Any, stream: Stream[Any, Any]) -> None:
                await self._call(name, stream)

            return handle

        methods = {name: handler(name) for name in ModalClientBase.__abstractmethods__}
        return type("Modal", (ModalClientBase,), methods)()

    async def _call(self, name: str, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        metadata = stream.metadata or {}
        self.requests.append((name, request))
        fault = self.faults.take(name)
        if (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret")) != TOKEN:
            raise grpclib.GRPCError(Status.UNAUTHENTICATED, "Token validation failed")
        work = getattr(self, f"_{name}", None)
        if work is None:
            raise grpclib.GRPCError(Status.UNIMPLEMENTED, f"{name} is not here")
        key = f"{name} {metadata.get('x-idempotency-key')}"
        if fault is not None and not fault.acts:
            await self._fail(fault, stream)
        if stream._cardinality is Cardinality.UNARY_STREAM:
            async for message in work(request):
                await stream.send_message(message)
            return
        if key not in self._once:
            self._once[key] = await work(request, metadata)
        if fault is not None:
            await self._fail(fault, stream)
        await stream.send_message(self._once[key])

    async def _fail(self, fault: Fault, stream: Stream[Any, Any]) -> None:
        if fault.hangs:
            await self.faults.hang()
        if fault.hangs or fault.drops:
            transport = stream._stream._transport
            transport.abort()
            await asyncio.sleep(0)
            raise asyncio.CancelledError
        wait_s = float(fault.headers.get("Retry-After", 0))
        details = [api.RPCRetryPolicy(retry_after_secs=wait_s)] if fault.status == 429 and wait_s else None
        raise grpclib.GRPCError(STATUSES[fault.status], fault.message, details)

    def _id(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number:08d}"

    def _for_name(self, kind: str, name: str) -> str:
        return self._named.setdefault(f"{kind} {name}", self._id(kind))

    # Workspace

    async def _ClientHello(self, _: Empty, __: Mapping[str, Any]) -> Any:
        return api.ClientHelloResponse()

    async def _WorkspaceNameLookup(self, _: Empty, __: Mapping[str, Any]) -> Any:
        return api.WorkspaceNameLookupResponse(workspace_name="testers", username="testers")

    async def _WorkspaceSettings(self, _: Empty, __: Mapping[str, Any]) -> Any:
        return api.WorkspaceSettingsResponse(default_environment_name="main", image_builder_version="2025.06")

    async def _WorkspaceBillingRates(self, _: Any, __: Mapping[str, Any]) -> Any:
        return api.WorkspaceBillingRatesResponse(
            rates={**self.rates, "gpu_l4_old": "0.0009"}, deprecation_warnings={"gpu_l4_old": "use another"}
        )

    async def _WorkspaceBillingReport(self, request: Any) -> AsyncIterator[Any]:
        """Whole hours alone: one that has not ended by the asked end is left out."""
        if request.resolution not in ("h", "d"):
            raise grpclib.GRPCError(Status.INVALID_ARGUMENT, f"unknown resolution {request.resolution!r}")
        step_s = {"h": 3600, "d": 86400}[request.resolution]
        since = request.start_timestamp.seconds // step_s * step_s
        until = request.end_timestamp.seconds // step_s * step_s
        for made, name, at, usd in self.account:
            start = int(at // step_s * step_s)
            if since <= start < until:
                row = api.WorkspaceBillingReportItem(
                    object_id=made,
                    description=name,
                    environment_name="main",
                    cost=usd,
                    cost_by_resource={"gpu_l4": usd, "cpu": "0"},
                )
                row.interval.FromSeconds(start)
                yield row

    async def _EnvironmentGetOrCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        if request.deployment_name not in ("", "main"):
            raise grpclib.GRPCError(Status.NOT_FOUND, f"Environment '{request.deployment_name}' not found")
        settings = api.EnvironmentSettings(image_builder_version="2025.06")
        return api.EnvironmentGetOrCreateResponse(
            environment_id="en-main", metadata=api.EnvironmentMetadata(name="main", settings=settings)
        )

    async def _WebhookTokenCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        made, secret = self._id("wk"), self._id("ws")
        token = api.WebhookToken(token_id=made, created_at=time.time(), scoped=self.roles, name=request.name)
        self.tokens[made] = token, secret
        return api.TokenCreateResponse(token_id=made, token_secret=secret)

    async def _WebhookTokenList(self, _: Empty, __: Mapping[str, Any]) -> Any:
        return api.WebhookTokenListResponse(tokens=[token for token, _ in self.tokens.values()])

    async def _WebhookTokenDelete(self, request: Any, __: Mapping[str, Any]) -> Any:
        if self.tokens.pop(request.token_id, None) is None:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"no proxy token {request.token_id}")
        return Empty()

    async def _WebhookTokenEnvironmentAdd(self, request: Any, __: Mapping[str, Any]) -> Any:
        self.allowed.add((request.token_id, request.environment_id))
        return Empty()

    # What an app is made of

    async def _SecretGetOrCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        owned = api.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP
        if request.object_creation_type != owned or request.app_id not in self.apps:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found")
        made = self._id("st")
        self.secrets[made] = dict(request.env_dict)
        return api.SecretGetOrCreateResponse(secret_id=made)

    async def _VolumeGetOrCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        if request.object_creation_type != api.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found")
        made = self._for_name("vo", request.deployment_name)
        return api.VolumeGetOrCreateResponse(
            volume_id=made, metadata=api.VolumeMetadata(name=request.deployment_name)
        )

    async def _MountGetOrCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        known = re.fullmatch(r"modal-client-mount-[\d.]+|python-build-standalone\..+", request.deployment_name)
        if request.namespace != api.DEPLOYMENT_NAMESPACE_GLOBAL or not known:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"Mount '{request.deployment_name}' not found")
        return api.MountGetOrCreateResponse(mount_id=self._for_name("mo", request.deployment_name))

    async def _ImageGetOrCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        if any(base.image_id not in self.images for base in request.image.base_images):
            raise grpclib.GRPCError(Status.NOT_FOUND, "base image not found")
        made = self._for_name("im", request.image.SerializeToString(deterministic=True).hex())
        self.images[made] = request.image
        done = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)
        return api.ImageGetOrCreateResponse(image_id=made, result=done if made in self.built else None)

    async def _ImageJoinStreaming(self, request: Any) -> AsyncIterator[Any]:
        yield api.ImageJoinStreamingResponse(task_logs=[api.TaskLogs(data="Building image\n")], entry_id="1-0")
        await asyncio.sleep(0.01)
        result = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)
        if self.broken_build is not None:
            failed = api.GenericResult.GENERIC_STATUS_FAILURE
            result = api.GenericResult(status=failed, exception=self.broken_build)
        else:
            self.built.add(request.image_id)
        metadata = api.ImageMetadata(python_version_info="Python 3.x", image_builder_version="2025.06")
        yield api.ImageJoinStreamingResponse(result=result, metadata=metadata, entry_id="2-0")

    def _commands(self, image: str) -> list[str]:
        """All lines of its Dockerfiles, from the first image on."""
        definition = self.images[image]
        below = [line for base in definition.base_images for line in self._commands(base.image_id)]
        return below + [line for line in definition.dockerfile_commands if line != "FROM base"]

    def _python(self, image: str) -> str:
        """The Python that Modal added to an image, as `3.11`; that of the image itself where it added none."""
        definition = self.images[image]
        for key, made in self._named.items():
            if made == definition.context_mount_id and "python-build-standalone" in key:
                return ".".join(key.split(".")[2:4])
        return self._python(definition.base_images[0].image_id) if definition.base_images else "3.12"

    # Apps and functions

    def _app(self, made: str) -> App:
        if made not in self.apps:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"App {made} not found")
        return self.apps[made]

    def _deployed(self, name: str) -> App | None:
        return next((a for a in self.apps.values() if a.name == name and a.state == api.APP_STATE_DEPLOYED), None)

    async def _AppGetByDeploymentName(self, request: Any, __: Mapping[str, Any]) -> Any:
        found = self._deployed(request.name)
        return api.AppGetByDeploymentNameResponse(app_id=found.id if found else "")

    async def _AppCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        made = self._id("ap")
        self.apps[made] = App(made, request.description, request.app_state, tags=dict(request.tags))
        return api.AppCreateResponse(app_id=made, app_page_url=f"https://modal.com/apps/testers/main/{made}")

    async def _AppHeartbeat(self, request: Any, __: Mapping[str, Any]) -> Any:
        self._app(request.app_id).heard_at = time.time()
        return Empty()

    async def _AppClientDisconnect(self, request: Any, __: Mapping[str, Any]) -> Any:
        app = self._app(request.app_id)
        if app.state == api.APP_STATE_INITIALIZING:
            app.state, app.stopped_at = api.APP_STATE_STOPPED, time.time()
        return Empty()

    async def _FunctionPrecreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        made = request.existing_function_id or self._id("fu")
        self.functions[made] = Function(self._app(request.app_id), request.function_name)
        return api.FunctionPrecreateResponse(function_id=made, handle_metadata=self._handle(self.functions[made]))

    async def _FunctionCreate(self, request: Any, metadata: Mapping[str, Any]) -> Any:
        function, definition = self.functions[request.existing_function_id], request.function
        if wrong := self._wrong(definition):
            raise grpclib.GRPCError(Status.INVALID_ARGUMENT, wrong)
        function.definition.CopyFrom(definition)
        function.python = ".".join(str(metadata["x-modal-python-version"]).split(".")[:2])
        return api.FunctionCreateResponse(
            function_id=request.existing_function_id,
            handle_metadata=self._handle(function),
            function_data=_data(function),
        )

    def _wrong(self, definition: Any) -> str | None:
        """What Modal would refuse a function for."""
        gpu, settings = definition.resources.gpu_config, definition.autoscaler_settings
        mounts = {made for key, made in self._named.items() if key.startswith("mo ")}
        volumes = {made for key, made in self._named.items() if key.startswith("vo ")}
        tests = {
            f"unknown GPU type {gpu.gpu_type!r}": gpu.gpu_type in GPUS,
            f"{gpu.count} GPUs": 1 <= gpu.count <= 8,
            "unknown image": definition.image_id in self.images,
            "unknown secret": set(definition.secret_ids) <= set(self.secrets),
            "unknown mount": set(definition.mount_ids) <= mounts,
            "unknown volume": {mount.volume_id for mount in definition.volume_mounts} <= volumes,
            "a volume path twice": len({m.mount_path for m in definition.volume_mounts})
            == len(definition.volume_mounts),
            "scaledown_window": not settings.scaledown_window or 2 <= settings.scaledown_window <= 3600,
            "max_containers": settings.min_containers <= settings.max_containers,
            "timeout": 1 <= definition.timeout_secs <= 86400,
            "web server": definition.webhook_config.type == api.WEBHOOK_TYPE_WEB_SERVER,
            "no source": definition.definition_type == api.Function.DEFINITION_TYPE_SERIALIZED,
        }
        return next((f"Invalid function: {said}" for said, fine in tests.items() if not fine), None)

    async def _AppPublish(self, request: Any, __: Mapping[str, Any]) -> Any:
        app = self._app(request.app_id)
        there = self._deployed(request.name)
        if there is not None and there is not app:
            raise grpclib.GRPCError(Status.ALREADY_EXISTS, f"App '{request.name}' exists")
        if app.state not in (api.APP_STATE_INITIALIZING, api.APP_STATE_DEPLOYED):
            raise grpclib.GRPCError(Status.FAILED_PRECONDITION, f"App {app.id} has stopped")
        app.state, app.name, app.tags = request.app_state, request.name, dict(request.tags)
        app.functions = dict(request.function_ids)
        for made in app.functions.values():
            await self._start(self.functions[made])
        return api.AppPublishResponse(url=f"https://modal.com/apps/testers/main/{app.id}", deployed_at=time.time())

    async def _start(self, function: Function) -> None:
        definition = function.definition
        env = {key: value for made in definition.secret_ids for key, value in self.secrets[made].items()}
        commands = self._commands(definition.image_id)
        if "ENTRYPOINT []" not in commands:
            argv, why = ["vllm", "serve"], "the image's own entrypoint was run"
        elif self._python(definition.image_id) != function.python:
            argv, why = ["python"], "Deserialization failed due to a version mismatch"
        else:
            (argv, env), why = _container(definition.function_serialized, env), ""
        service = function.service = Service(
            argv=argv,
            env=env,
            opens=lambda headers: self._opens(definition.webhook_config, headers),
            capacity=lambda: self.free_gpus,
            held_s=self.held_s,
        )
        if why:
            service.lines.append((time.time(), "r0", why))
        self._scale(function, definition.autoscaler_settings)
        await self.platform.start(service)

    def _opens(self, config: Any, headers: Mapping[str, str]) -> tuple[int, Any] | None:
        if not config.requires_proxy_auth:
            return None
        made, secret = headers.get("modal-key"), headers.get("modal-secret")
        if bearer := re.fullmatch(r"Bearer (wk-[^.]+)\.(ws-.+)", headers.get("authorization", "")):
            made, secret = bearer.groups()
        token = self.tokens.get(made or "")
        if token is None or token[1] != secret or (token[0].scoped and (made, "en-main") not in self.allowed):
            return NO_KEY
        return None

    def _scale(self, function: Function, settings: Any) -> None:
        service = function.service
        assert service is not None
        for name in ("min_containers", "max_containers", "scaledown_window"):
            if settings.HasField(name):
                setattr(function.definition.autoscaler_settings, name, getattr(settings, name))
        now = function.definition.autoscaler_settings
        service.min, service.max = now.min_containers, now.max_containers or 10**6
        service.idle_s = (now.scaledown_window or 60) * self.scale

    def _handle(self, function: Function) -> Any:
        url = function.service.url if function.service else f"https://testers--{function.app.description}.modal.run"
        return api.FunctionHandleMetadata(
            function_name=function.tag,
            function_type=api.Function.FUNCTION_TYPE_FUNCTION,
            web_url=url,
            app_id=function.app.id,
            supported_input_formats=[api.DATA_FORMAT_ASGI],
        )

    async def _FunctionGet(self, request: Any, __: Mapping[str, Any]) -> Any:
        app = self._deployed(request.app_name)
        if app is None or request.object_tag not in app.functions:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found in environment 'main'")
        made = app.functions[request.object_tag]
        function = self.functions[made]
        return api.FunctionGetResponse(
            function_id=made, handle_metadata=self._handle(function), function=_data(function)
        )

    def _running(self, made: str) -> tuple[Function, Service]:
        function = self.functions.get(made)
        if function is None or function.service is None:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"Function {made} not found")
        return function, function.service

    async def _FunctionGetCurrentStats(self, request: Any, __: Mapping[str, Any]) -> Any:
        _, service = self._running(request.function_id)
        tasks = [replica for replica in service.alive() if replica.state != "waiting"]
        return api.FunctionStats(
            backlog=service.waiting,
            num_total_tasks=len(tasks),
            num_running_inputs=sum(replica.in_flight for replica in tasks),
        )

    async def _FunctionGetTimeRangeStats(self, request: Any, __: Mapping[str, Any]) -> Any:
        _, service = self._running(request.function_id)
        errors = sum(r.starts - (r.state in ("booting", "ready")) for r in service.replicas if r.starts)
        return api.FunctionGetTimeRangeStatsResponse(
            since=request.since, until=request.until, container_error_count=errors
        )

    async def _FunctionUpdateSchedulingParams(self, request: Any, __: Mapping[str, Any]) -> Any:
        function, _ = self._running(request.function_id)
        self._scale(function, request.settings)
        return api.FunctionUpdateSchedulingParamsResponse(current_settings=function.definition.autoscaler_settings)

    def _metadata(self, app: App) -> Any:
        lifecycle = api.AppLifecycle(
            app_state=app.state, created_at=app.created_at, stopped_at=app.stopped_at, version=1
        )
        return api.AppHandleMetadata(
            description=app.description, app_id=app.id, lifecycle=lifecycle, functions=app.functions
        )

    async def _AppGetOrCreate(self, request: Any, __: Mapping[str, Any]) -> Any:
        if request.object_creation_type:
            raise grpclib.GRPCError(Status.UNIMPLEMENTED, "apps are only looked up here")
        app = self.apps.get(request.app_name) or self._deployed(request.app_name)
        if app is None:
            raise grpclib.GRPCError(
                Status.NOT_FOUND, f"No App with name '{request.app_name}' in environment 'main'"
            )
        return api.AppGetOrCreateResponse(app_id=app.id, handle_metadata=self._metadata(app))

    async def _AppGetInfo(self, request: Any, __: Mapping[str, Any]) -> Any:
        return api.AppGetInfoResponse(info=self._metadata(self._app(request.app_id)))

    async def _AppGetTags(self, request: Any, __: Mapping[str, Any]) -> Any:
        return api.AppGetTagsResponse(tags=self._app(request.app_id).tags)

    async def _AppList(self, request: Any, __: Mapping[str, Any]) -> Any:
        if request.environment_name not in ("", "main"):
            raise grpclib.GRPCError(Status.NOT_FOUND, f"Environment '{request.environment_name}' not found")
        return api.AppListResponse(apps=[self._listed(app) for app in self.apps.values()])

    def _listed(self, app: App) -> Any:
        services = [self.functions[made].service for made in app.functions.values()]
        tasks = sum(len(service.alive()) for service in services if service is not None)
        return api.AppListResponse.AppListItem(
            app_id=app.id,
            description=app.description,
            state=app.state,
            created_at=app.created_at,
            stopped_at=app.stopped_at,
            n_running_tasks=tasks,
            name=app.name,
        )

    async def _AppStop(self, request: Any, __: Mapping[str, Any]) -> Any:
        app = self._app(request.app_id)
        if app.state in (api.APP_STATE_DEPLOYED, api.APP_STATE_INITIALIZING):
            app.state = api.APP_STATE_STOPPING
            self.platform._run(self._end(app))
        return Empty()

    async def _end(self, app: App) -> None:
        await asyncio.sleep(0.05)
        for made in app.functions.values():
            if (service := self.functions[made].service) is not None:
                await self.platform.stop(service)
        app.state, app.stopped_at = api.APP_STATE_STOPPED, time.time()

    # Logs

    def _log(self, request: Any) -> list[tuple[float, str, str]]:
        _, service = self._running(request.function_id)
        since, until = (stamp.seconds + stamp.nanos / 1e9 for stamp in (request.since, request.until))
        return [line for line in service.lines if since <= line[0] <= until]

    async def _AppCountLogs(self, request: Any, __: Mapping[str, Any]) -> Any:
        if request.until.seconds - request.since.seconds > 35 * 86400:
            raise grpclib.GRPCError(Status.INVALID_ARGUMENT, "Time range cannot exceed 35 days.")
        counts: dict[int, int] = {}
        for at, _, _ in self._log(request):
            start = int(at // request.bucket_secs * request.bucket_secs)
            counts[start] = counts.get(start, 0) + 1
        answer = api.AppCountLogsResponse(app_id=request.app_id)
        for start, count in sorted(counts.items()):
            bucket = answer.buckets.add(stderr_logs=count)
            bucket.bucket_start_at.FromSeconds(start)
        return answer

    async def _AppFetchLogs(self, request: Any, __: Mapping[str, Any]) -> Any:
        """The newest `limit` lines; those of one container together, as they come from it."""
        lines = self._log(request)[-request.limit :]
        of: dict[str, api.TaskLogsBatch] = {}
        for at, replica, text in lines:
            batch = of.setdefault(
                replica, api.TaskLogsBatch(task_id=f"ta-{replica}", function_id=request.function_id)
            )
            batch.items.add(
                data=f"{text}\n",
                timestamp=at,
                timestamp_ns=int(at * 1e9),
                file_descriptor=api.FILE_DESCRIPTOR_STDERR,
            )
        return api.AppFetchLogsResponse(batches=list(of.values()))


def _data(function: Function) -> Any:
    ranked = api.FunctionData.RankedFunction(rank=0, function=function.definition)
    return api.FunctionData(function_name=function.tag, ranked_functions=[ranked])


def _container(code: bytes, env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What the pickled function starts in a container with this environment: command line and environment."""
    started: list[tuple[list[str], dict[str, str]]] = []
    given = {**env, "PYTHONPATH": "/root:/pkg:/the/image's/own", "PATH": "/usr/bin"}

    class Process:
        def __init__(self, words: list[str], env: Mapping[str, str]) -> None:
            started.append((words, dict(env)))

    class Thread:
        def __init__(self, target: Any, daemon: bool) -> None:
            assert daemon, "a container must end when Modal's own thread does"

        def start(self) -> None:
            pass

    modules = {
        "os": types.SimpleNamespace(environ=given),
        "subprocess": types.SimpleNamespace(Popen=Process),
        "threading": types.SimpleNamespace(Thread=Thread),
    }

    def give(name: str, *_: Any) -> Any:
        if name not in modules:
            raise ModuleNotFoundError(f"No module named {name!r} in the container")
        return modules[name]

    read = _Unpickler(io.BytesIO(code)).load()
    scope = {"__builtins__": {**vars(builtins), "__import__": give}}
    types.FunctionType(read.__code__, scope, read.__name__, read.__defaults__, read.__closure__)()
    [(words, told)] = started
    assert told.pop("PYTHONPATH") == "/the/image's/own", "Modal's packages are not for the engine's Python"
    told.pop("PATH")
    return words, told


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("tuna_nb", "tuna_router", "tests"):
            raise ModuleNotFoundError(f"No module named {module!r} in the container")
        return super().find_class(module, name)
