"""The adapter: Cerebrium's REST API, called."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from tuna_nb import tls
from tuna_nb.backends.base import (
    Auth,
    Backend,
    Check,
    Door,
    Endpoint,
    Kind,
    LogLine,
    Plan,
    PlannedResource,
    PriceAccess,
    Progress,
    Quote,
    Ref,
    Replica,
    ServerlessScaling,
    ServiceRequest,
    SpotScaling,
    State,
    Status,
)
from tuna_nb.backends.cerebrium import app as apps
from tuna_nb.backends.cerebrium.key import ends_at, project_of
from tuna_nb.backends.lifecycle import create_once, knock, until_gone
from tuna_nb.backends.names import deployment_of
from tuna_nb.backends.rest import TIMEOUT_S, Api, words
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Offer
from tuna_nb.errors import BackendError, CredentialsError, NotFoundError, RequestError
from tuna_nb.secrets import hugging_face_token

URL: Final = "https://rest.cerebrium.ai"
ENDPOINTS: Final = "https://api.aws.{region}.cerebrium.ai"
KEYS: Final = ("CEREBRIUM_SERVICE_ACCOUNT_TOKEN", "CEREBRIUM_API_KEY")
PROJECT: Final = "CEREBRIUM_PROJECT_ID"
_SIGN_IN: Final = f"export {KEYS[0]}=<a service account's token, from dashboard.cerebrium.ai, API Keys>"
_HF: Final = "export HF_TOKEN=<your token>, or put HF_TOKEN among the project's secrets at dashboard.cerebrium.ai"
_LOOK: Final = "https://dashboard.cerebrium.ai shows it"

_BUILT: Final = frozenset({"success", "ready"})
_BUILD_FAILED: Final = frozenset({"build_failure", "init_failure", "failure", "cancelled", "init_timeout"})
_BUILD_WAITS: Final = frozenset({"", "pending", "queued"})
_BUILD_S: Final = 3600.0
_ROUTE_S: Final = 30.0
_GONE_S: Final = 120.0
_RESTARTS: Final = 3
_PAGE: Final = 500
_TAIL: Final = 6
_OVERLAP_S: Final = 5.0
"""A followed log is asked for again from so long ago: lines of several containers come a little out of order."""


class CerebriumBackend(Backend):
    """Cerebrium's apps. url: of the API, by default CEREBRIUM_REST_URL or its own. endpoints: the address at which
    apps answer, with {region} in it. pace: of its waits."""

    name: ClassVar[str] = "cerebrium"
    price_access: ClassVar[PriceAccess] = PriceAccess.NOBODY
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    options: ClassVar[Mapping[str, str]] = apps.OPTIONS
    # A request is held while a container starts, and cut after its response grace period: an hour at the most.
    door: ClassVar[Door] = Door(first_byte_s=900, answer_s=3600)
    # Its REST API has no billing.
    invoice: ClassVar[str] = "Usage and Billing in https://dashboard.cerebrium.ai"

    def __init__(
        self, url: str | None = None, endpoints: str = ENDPOINTS, *, timeout_s: float = TIMEOUT_S, pace: float = 1.0
    ) -> None:
        base = url or os.environ.get("CEREBRIUM_REST_URL") or URL
        self._api = Api("cerebrium", base, self._headers, _SIGN_IN, timeout_s=timeout_s, pace=pace)
        self._endpoints = endpoints
        self._pace = pace
        self._urls: dict[str, str] = {}
        """By app's id, as told at its deploy: an app does not tell its region later."""

    def configured(self) -> bool:
        return any(os.environ.get(name, "").strip() for name in KEYS)

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        try:
            project = await self._project()
            names = await self._names(project)
        except CredentialsError as exc:
            return [Check("key", False, exc.message, exc.hint)]
        rows = [Check("key", True, f"the key is accepted; project {project} has {len(names)} apps")]
        if request is not None:
            rows.append(_gpu_row(request))
            if request.engine.gated:
                rows.append(await self._token_row(project, request))
        return rows

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = apps.checked(request)
        each, (cpu, memory_gb) = apps.price_per_hour(request), apps.size(request)
        notes = [
            f"the price has {cpu} cores and {memory_gb} GB in it, which are billed beside the GPU",
            "the build and the loading of weights are billed too",
        ]
        if request.public:
            notes.append("public: Cerebrium asks nobody for a key")
        if request.engine.gated:
            notes.append("the Hugging Face token becomes a secret of the app at Cerebrium")
        worst = None if each is None else each * scaling.workers_max
        what = f"Cerebrium app, at most {scaling.workers_max} containers"
        quote = Quote.of(apps.offer(request))
        return Plan(request, (PlannedResource(what, request.name, worst),), each, tuple(notes), quote)

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request
        project = await self._project()
        ref, region = _ref(project, request.name), apps.region(request)
        token = await self._token(project) if request.engine.gated else None

        async def make() -> dict[str, Any]:
            progress(f"creating Cerebrium app {request.name}", None)
            made: dict[str, Any] = await self._api.call(
                "POST", f"/v2/projects/{project}/apps", request.name, body=apps.body(request), creates=True
            )
            return made

        app = await create_once(lambda: self._find(ref), make, pace=self._pace)
        if _build(app) in _BUILT:
            progress(f"{ref.id} is there", 1.0)
            return Endpoint(ref, self._url(ref, region))
        if "uploadUrl" not in app:
            # Its last build came to no good end, or the answer got lost: another build, of the same app.
            app = await make()
        if token is not None:
            secrets = f"{_path(ref)}/secrets"
            await self._api.call("PATCH", secrets, f"secrets of {ref.name}", body={"HF_TOKEN": token})
        progress(f"uploading what {request.name} is built from", None)
        await self._upload(str(app["uploadUrl"]), apps.bundle(request), request.name)
        await self._built(ref, str(app["buildId"]), progress)
        url = str(app.get("internalEndpoint") or self._url(ref, region)).rstrip("/")
        self._urls[str(ref.id)] = url
        await self._routed(url + request.engine.health_path)
        progress(f"{request.name} is app {ref.id}", 1.0)
        return Endpoint(ref, url)

    async def status(self, ref: Ref) -> Status:
        try:
            ref, app = await self._app(ref)
            listed = await self._api.get(f"{_path(ref)}/containers", f"containers of {ref.name}")
        except NotFoundError:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        shown = [_replica(container, str(app.get("status") or "").lower()) for container in listed or ()]
        replicas = tuple(replica for replica in shown if replica is not None)
        build = _build(app)
        state, detail = _judge(replicas, build)
        building = build not in _BUILT | _BUILD_FAILED | _BUILD_WAITS
        billing = building or any(r.state is not State.WAITING for r in replicas)
        region = next((r.region for r in replicas if r.region), app.get("region"))
        url = self._urls.get(str(ref.id)) or (self._url(ref, str(region)) if region else None)
        return Status(ref, state, replicas, billing, time.time(), detail, url)

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        ref, _ = await self._app(ref)
        told: dict[str, float] = {}
        after = since
        while True:
            entries = [(number, line) async for number, line in self._entries(ref, after)]
            for number, line in sorted(entries, key=lambda entry: entry[1].at):
                if number not in told and (since is None or line.at >= since):
                    told[number] = line.at
                    yield line
            if not follow:
                return
            if told:
                after = max(told.values()) - _OVERLAP_S
                told = {number: at for number, at in told.items() if at >= after}
            await asyncio.sleep(self.poll_s * self._pace)

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        body = apps.scaled(apps.serverless(scaling))
        ref, _ = await self._app(ref)
        await self._api.call("PATCH", _path(ref), ref.name, body=body)

    async def wake(self, ref: Ref) -> None:
        url = (await self.status((await self._app(ref))[0])).endpoint_url or self._url(ref, apps.REGION)
        await knock(f"{url}/health", {"Authorization": f"Bearer {self._key()}"})

    async def destroy(self, ref: Ref) -> None:
        try:
            ref, _ = await self._app(ref)
            await self._api.call("DELETE", _path(ref), ref.name)
        except NotFoundError:
            return

        async def is_there() -> bool:
            return await self._find(ref) is not None or ref.name in await self._names(_project_in(ref))

        await until_gone(is_there, f"cerebrium: {ref.name}", within_s=_GONE_S, poll_s=self._pace, hint=_LOOK)
        self._urls.pop(str(ref.id), None)

    async def list_owned(self) -> list[Ref]:
        project = await self._project()
        return [_ref(project, name) for name in await self._names(project) if deployment_of(name) is not None]

    async def auth(self, ref: Ref) -> Auth:
        await self._app(ref)
        key = self._key()
        return Auth({"Authorization": f"Bearer {key}"}, ends_at(key))

    async def prices(self) -> list[Offer]:
        return list(snapshot.of(self.name))

    # Its own parts

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key()}"}

    def _key(self) -> str:
        key = next((found for name in KEYS if (found := os.environ.get(name, "").strip())), "")
        if not key:
            raise CredentialsError(f"cerebrium: {KEYS[0]} is not set", _SIGN_IN)
        end = ends_at(key)
        if end is not None and end < time.time():
            raise CredentialsError(f"cerebrium: the key's time ended at {_rfc3339(end)}", _SIGN_IN)
        return key

    async def _project(self) -> str:
        """As the user says, else as the key says, else the only one there is. Raises CredentialsError."""
        if asked := os.environ.get(PROJECT, "").strip() or project_of(self._key()):
            return asked
        ids = [str(one["id"]) for one in await self._api.get("/v2/projects", "the list of projects")]
        if len(ids) == 1:
            return ids[0]
        raise CredentialsError(
            f"cerebrium: the key names no project, and it opens {len(ids)}: {', '.join(ids)}",
            f"export {PROJECT}=<one of them>",
        )

    async def _names(self, project: str) -> list[str]:
        """Of all apps of the project."""
        listed = await self._api.get(f"/v2/projects/{project}/apps", "the list of apps")
        return [str(app["id"]).removeprefix(f"{project}-") for app in listed]

    async def _find(self, ref: Ref) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._api.get(_path(ref), ref.name)
        except NotFoundError:
            return None
        return found

    async def _app(self, ref: Ref) -> tuple[Ref, dict[str, Any]]:
        """With its id. Raises NotFoundError."""
        whole = _ref(await self._project() if ref.id is None else _project_in(ref), ref.name)
        return whole, await self._api.get(_path(whole), ref.name)

    async def _entries(self, ref: Ref, after: float | None) -> AsyncIterator[tuple[str, LogLine]]:
        """Every line that is kept, of all pages, with its id."""
        params: dict[str, str | int] = {"pageSize": _PAGE, "direction": "forward"}
        if after is not None:
            params["afterDate"] = _rfc3339(after)
        while True:
            page = await self._api.get(f"{_path(ref)}/logs", f"log of {ref.name}", **params)
            for entry in (page or {}).get("logs") or ():
                line = LogLine(_unix(entry["timestamp"]), str(entry["containerId"]), str(entry["logLine"]).rstrip())
                yield str(entry["logId"]), line
            if page is None or not page.get("hasMore") or not page.get("nextPageToken"):
                return
            params["nextToken"] = page["nextPageToken"]

    async def _token(self, project: str) -> str | None:
        """The Hugging Face token for the app; None where the project has one for all of its apps."""
        if token := hugging_face_token():
            return token
        if "HF_TOKEN" in (await self._api.get(f"/v2/projects/{project}/secrets", "the project's secrets") or {}):
            return None
        raise CredentialsError("cerebrium: the model is gated, and there is no Hugging Face token", _HF)

    async def _token_row(self, project: str, request: ServiceRequest) -> Check:
        try:
            mine = await self._token(project)
        except CredentialsError as exc:
            return Check("model", False, exc.message, exc.hint)
        whose = "your Hugging Face token" if mine else f"project {project}'s secret HF_TOKEN"
        return Check("model", True, f"{request.engine.model} is gated: {whose} is used")

    def _url(self, ref: Ref, region: str) -> str:
        made = f"{self._endpoints.format(region=region)}/v4/{_project_in(ref)}/{ref.name}"
        return self._urls.get(str(ref.id), made)

    async def _upload(self, url: str, data: bytes, name: str) -> None:
        """To a signed address at somebody else's: it never gets our key, and no error shows it."""
        import httpx

        said = ""
        async with httpx.AsyncClient(verify=tls.trusted(), timeout=60) as http:
            for number in range(3):
                await asyncio.sleep(number * self._pace)
                try:
                    answer = await http.put(url, content=data, headers={"Content-Type": "application/zip"})
                except httpx.HTTPError as exc:
                    said = type(exc).__name__
                    continue
                if answer.is_success:
                    return
                said = f"{words(answer.text)} ({answer.status_code})"
                if answer.status_code < 500:
                    break
        raise BackendError(f"cerebrium: {name}: its files could not be uploaded: {said}", "deploy again")

    async def _built(self, ref: Ref, build: str, progress: Progress) -> None:
        """Return when the build has come to a good end; where it did not, its own words are in the error."""
        path, end, told = f"{_path(ref)}/builds/{build}", time.monotonic() + _BUILD_S, ""
        while True:
            status = str((await self._api.get(path, f"build of {ref.name}"))["status"])
            if status in _BUILT:
                return
            if status in _BUILD_FAILED:
                said = await self._build_words(ref, path)
                raise BackendError(f"cerebrium: {ref.name}: {status}: {said}", _LOOK)
            if status != told:
                progress(f"building {ref.name}: {status}", None)
                told = status
            if time.monotonic() > end:
                raise BackendError(f"cerebrium: {ref.name} is still {status} after {_BUILD_S:g} s", _LOOK)
            await asyncio.sleep(self.poll_s * self._pace)

    async def _build_words(self, ref: Ref, path: str) -> str:
        """The last lines of the build, and of the container that it tried."""
        said = await self._api.get(f"{path}/logs", f"build log of {ref.name}") or {}
        lines = [str(line["log"]).strip() for line in said.get("logs") or ()][-_TAIL:]
        lines += [line.text async for line in self.logs(ref)][-_TAIL:]
        return " | ".join(line for line in lines if line) or "its log is empty"

    async def _routed(self, url: str) -> None:
        """Until the way in knows the app, some seconds after Cerebrium calls it deployed, its address answers 404.

        Asked without a key, so that no container is woken: who knows the app refuses us.
        """
        import httpx

        end = time.monotonic() + _ROUTE_S
        async with httpx.AsyncClient(verify=tls.trusted(), timeout=5) as http:
            while time.monotonic() < end:
                try:
                    if (await http.get(url)).status_code != 404:
                        return
                except httpx.ReadTimeout:
                    return  # public, and held until a container is there
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(self._pace)


def _gpu_row(request: ServiceRequest) -> Check:
    try:
        apps.checked(request)
    except RequestError as exc:
        return Check("gpu", False, exc.message, exc.hint)
    compute = apps.HARDWARE[request.gpu].compute
    said = f"{request.gpu} is {compute} at Cerebrium; what your plan allows can't be asked"
    return Check("gpu", True, f"{said} (Hobby: T4, A10, L4, L40S)")


def _replica(container: Mapping[str, Any], app: str) -> Replica | None:
    """None for one that has ended: the listing keeps them for a while. app: the app's own status."""
    state = str(container["containerState"]).upper()
    if _unix(container.get("containerTerminationTimestamp")) > 0 or state in ("SUCCEEDED", "TERMINATED", "UNKNOWN"):
        return None
    started = _unix(container.get("containerStartTimestamp")) or _unix(container.get("timestamp")) or time.time()
    starts = int(container.get("containerRestartCount") or 0) + 1
    detail = state.lower()
    if container.get("isTerminating"):
        shown, detail = State.STOPPING, "terminating"
    elif state == "RUNNING":
        shown = State.STARTING if app in ("notready", "pending", "deploying") else State.READY
    elif state == "PENDING":
        shown = State.WAITING
    else:
        shown = State.STARTING
    if shown in (State.STARTING, State.WAITING) and starts > _RESTARTS:
        shown, detail = State.FAILED, f"{detail} after {starts} starts, and billing"
    return Replica(str(container["containerId"]), shown, started, container.get("region"), detail)


def _build(app: Mapping[str, Any]) -> str:
    """How the last build went; an app that serves has a good one, whatever became of a later one."""
    if str(app.get("status") or "").lower() in ("cold", "ready", "active"):
        return "success"
    return str(app.get("lastBuildStatus") or "").lower()


def _judge(replicas: tuple[Replica, ...], build: str) -> tuple[State, str]:
    by_state = {r.state: r for r in replicas}
    for state in (State.READY, State.STARTING):
        if state in by_state:
            return state, ""
    if State.FAILED in by_state:
        return State.FAILED, by_state[State.FAILED].detail
    if State.WAITING in by_state:
        return State.WAITING, "the container waits for a free GPU"
    if build in _BUILD_FAILED:
        return State.FAILED, f"the last build ended in {build}"
    if build not in _BUILT:
        return State.STARTING, f"the build is {build or 'not begun'}"
    return (State.STOPPING, "") if replicas else (State.IDLE, "")


def _ref(project: str, name: str) -> Ref:
    return Ref("cerebrium", Kind.SERVERLESS, name, f"{project}-{name}", deployment_of(name))


def _project_in(ref: Ref) -> str:
    return str(ref.id).removesuffix(f"-{ref.name}")


def _path(ref: Ref) -> str:
    return f"/v2/projects/{_project_in(ref)}/apps/{ref.id}"


def _unix(text: str | None) -> float:
    """Unix seconds; 0 for none, which Cerebrium also writes as the year 1."""
    return max(0.0, datetime.fromisoformat(text).timestamp()) if text else 0.0


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
