"""Modal: an app with one web-server function, declared with Modal's SDK in this process and deployed by it.

The function is sent as its pickled code: Modal runs it in the Python that it adds to the engine's image, which is
made the same as ours, because pickled code runs only in the Python that made it. The engine keeps the image's own.

Modal tells how many containers an app has, not which: they are numbered here, and bill from when they were first
seen. One that has started is ready when the engine behind it answers; that is asked only while one runs, for a
request to an app at zero would start one.

A proxy token is made after the app and removed before it, so that whatever a crash leaves is found with the app. An
app whose deploy dies half-way is not deployed, runs nothing, and is ended by Modal when its client is silent.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tuna_nb import tls
from tuna_nb.backends.base import (
    Auth,
    Backend,
    Charge,
    Check,
    Door,
    Endpoint,
    Kind,
    LogLine,
    Plan,
    PlannedResource,
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
from tuna_nb.backends.lifecycle import create_once, until_gone
from tuna_nb.backends.modal import account, prices, tokens
from tuna_nb.backends.modal.function import (
    DOOR_TAG,
    FUNCTION,
    OPTIONS,
    PUBLIC,
    PYTHON,
    VOLUMES,
    checked,
    declare,
    reserved,
    serverless,
    window,
)
from tuna_nb.backends.modal.told import SIGN_IN, told
from tuna_nb.backends.names import deployment_of
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Lines, Offer
from tuna_nb.errors import BackendError, CredentialsError, NotFoundError, RequestError
from tuna_nb.secrets import hugging_face_token

if TYPE_CHECKING:
    import modal.types

PYTHONS: Final = ((3, 11), (3, 15))
"""The oldest and newest Python that Modal adds to an image (modal 1.6.4, `SUPPORTED_PYTHON_SERIES`)."""
_INSTALL: Final = "pip install 'tuna-nb[modal]'"
_LOOK: Final = "https://modal.com/apps shows it; `modal app stop --yes NAME` stops it"
_DEPLOY_S: Final = 3600.0
_SAY_S: Final = 15.0
_GONE_S: Final = 120.0
_ERRORS: Final = 3
_ERRORS_WITHIN: Final = timedelta(minutes=10)
_LOGS_FOR: Final = timedelta(days=30)
_LATE_S: Final = 10.0
"""A line may be told so long after its own time."""
_LIVE: Final = "Modal's rates"


class ModalBackend(Backend):
    """Modal's web functions. pace: of its own waits. Where it talks to is the SDK's setting MODAL_SERVER_URL."""

    name: ClassVar[str] = "modal"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    options: ClassVar[Mapping[str, str]] = OPTIONS
    # An HTTP request is held for 150 seconds, then answered with a 303 to where its answer will be.
    door: ClassVar[Door] = Door(first_byte_s=160, redirects=True)
    call_s: ClassVar[float] = 60.0
    """The longest that one question may take, the SDK's own repeats and waits for a rate limit included."""
    probe_s: ClassVar[float] = 2.0

    def __init__(self, *, pace: float = 1.0) -> None:
        self._pace = pace
        self._opened: tuple[tuple[str, str, str], modal.Client] | None = None
        self._since: dict[str, list[float]] = {}
        self._up: set[str] = set()

    def configured(self) -> bool:
        if find_spec("modal") is None:
            return False
        if os.environ.get("MODAL_TOKEN_ID") and os.environ.get("MODAL_TOKEN_SECRET"):
            return True
        try:
            return "token_id" in Path(os.environ.get("MODAL_CONFIG_PATH", "~/.modal.toml")).expanduser().read_text()
        except OSError:
            return False

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        if find_spec("modal") is None:
            return [Check("package", False, "Modal's SDK is not installed", _INSTALL)]
        rows = [Check("package", True, "Modal's SDK is installed")]
        try:
            workspace = await self._workspace()
            async with told("the workspace", self.call_s):
                await workspace.hydrate.aio()
        except CredentialsError as exc:
            return [*rows, Check("token", False, exc.message, exc.hint)]
        rows.append(Check("token", True, f"Modal accepts the token; the workspace is {workspace.name}"))
        rows.append(
            Check("python", True, f"Modal has this Python ({PYTHON})")
            if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
            else Check("python", False, f"Modal has no Python {PYTHON}", "start Tuna with a Python of 3.11 to 3.15")
        )
        if request is not None:
            rows.append(_gpu_row(request))
            if request.engine.gated:
                rows.append(_model_row(request))
            if not request.public:
                rows.append(await tokens.row(await self._workspace(), self.call_s))
        return rows

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = checked(request)
        rates, offer = prices.shipped(), snapshot.rates(self.name).get(request.gpu)
        quote = Quote.of(offer)
        if self.configured():
            try:
                rates, live = prices.live(await self._rates())
                if request.gpu in live:
                    quote = Quote(time.time(), _LIVE)
                else:
                    quote = Quote.of(offer, "Modal's rates name no such GPU")
            except BackendError as exc:
                quote = Quote.of(offer, exc.message)
        cores, gib = reserved(request.options)
        each = prices.container(
            rates, request.gpu, count=request.gpu_count, cores=cores, gib=gib, region=request.region
        )
        what = f"Modal app, at most {scaling.workers_max} containers"
        worst = None if each is None else each * scaling.workers_max
        notes = [
            f"the price has {cores} CPU cores and {gib} GiB of memory in it; memory used beyond is billed too",
            f"volumes {' and '.join(VOLUMES.values())} keep weights and compiled code for the next deployment",
        ]
        if request.region is not None:
            notes.append(f"the region makes it {prices.region_factor(request.region):g} times as dear")
        if request.public:
            notes.append("public: whoever knows the URL uses the GPU")
        return Plan(request, (PlannedResource(what, request.name, worst),), each, tuple(notes), quote)

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request
        secret = {"HF_TOKEN": _token_for(request)} if request.engine.gated else {}

        async def create() -> str:
            progress(f"deploying Modal app {request.name}; an image that is new to Modal is built first", None)
            client = await self._client()
            async with told(request.name, _DEPLOY_S, creates=True):
                app = await asyncio.to_thread(declare, request, secret)
                await self._awaited(app.deploy.aio(client=client), request.name, progress)
            return str(app.app_id)

        made = await create_once(lambda: self._find(request.name), create, pace=self._pace)
        ref = Ref(self.name, Kind.SERVERLESS, request.name, made, request.deployment_id)
        if not request.public:
            await tokens.found(await self._workspace(), ref, self.call_s)
        endpoint = Endpoint(ref, await self._url(await self._function(ref)))
        progress(f"{request.name} is app {made}", 1.0)
        return endpoint

    async def status(self, ref: Ref) -> Status:
        try:
            app = await self._app(ref)
        except NotFoundError:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        function = await self._function(ref)
        url = await self._url(function)
        ref = Ref(self.name, Kind.SERVERLESS, ref.name, str(app.app_id), deployment_of(ref.name))
        async with told(ref.name, self.call_s):
            stats = await function.get_current_stats.aio()
        running = stats.num_total_runners
        state, detail = State.IDLE, ""
        if not running:
            self._up.discard(ref.name)
        elif ref.name in self._up or stats.num_running_inputs or await self._answers(ref, url):
            self._up.add(ref.name)
            state = State.READY
        else:
            state = State.STARTING
        if not running and stats.backlog:
            state, detail = State.WAITING, f"{stats.backlog} requests wait for Modal to place a container"
        if state in (State.STARTING, State.WAITING) and (errors := await self._errors(ref, function)) >= _ERRORS:
            state, detail = State.FAILED, f"{errors} containers ended with an error in ten minutes; see the logs"
        now = time.time()
        since = self._since.setdefault(ref.name, [])
        since[:] = since[:running] + [now] * (running - len(since))
        replicas = tuple(Replica(f"{ref.id}/{n}", state, at, start_told=False) for n, at in enumerate(since, 1))
        return Status(ref, state, replicas, bool(running), now, detail, url)

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        function = await self._function(ref)
        after = time.time() - _LOGS_FOR.total_seconds() if since is None else since
        seen: set[LogLine] = set()
        while True:
            lines: list[LogLine] = []
            if after < time.time():
                async with told(f"logs of {ref.name}", self.call_s):
                    async for entry in function.logs.fetch.aio(since=datetime.fromtimestamp(after, UTC)):
                        lines += _lines(entry)
            for line in sorted((one for one in dict.fromkeys(lines) if one not in seen), key=lambda one: one.at):
                yield line
            if not follow:
                return
            seen = set(lines)
            after = max([after, *(line.at - _LATE_S for line in lines)])
            await asyncio.sleep(self.poll_s * self._pace)

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        """Containers and their idle window. Requests per container and time-outs are part of a deployed app."""
        wanted = serverless(scaling)
        function = await self._function(ref)
        async with told(ref.name, self.call_s):
            await function.autoscaler.update.aio(
                min_containers=wanted.workers_min,
                max_containers=wanted.workers_max,
                scaledown_window=window(wanted),
            )

    async def wake(self, ref: Ref) -> None:
        url = await self._url(await self._function(ref))
        # A request is what starts a container; its answer is not waited for.
        await self._get(f"{url}/health", await self.auth(ref))

    async def destroy(self, ref: Ref) -> None:
        try:
            await tokens.forget(await self._workspace(), ref, self.call_s)
        finally:
            # Whatever becomes of the token, the app must not go on billing.
            await self._stop(ref)

    async def list_owned(self) -> list[Ref]:
        deployed = await self._deployed()
        ours = [(app.name, app.app_id, deployment_of(app.name)) for app in deployed]
        return [
            Ref(self.name, Kind.SERVERLESS, name, made, owner) for name, made, owner in ours if owner is not None
        ]

    async def auth(self, ref: Ref) -> Auth:
        app = await self._app(ref)
        async with told(ref.name, self.call_s):
            tags = await app.get_tags.aio(client=await self._client())
        if tags.get(DOOR_TAG) == PUBLIC:
            return Auth({})
        return tokens.auth(await tokens.found(await self._workspace(), ref, self.call_s))

    async def prices(self) -> list[Offer]:
        shipped = snapshot.rates(self.name)
        if not self.configured():
            return list(shipped.values())
        rates, live = prices.live(await self._rates())
        now, lines = time.time(), Lines(rates[prices.CORE], rates[prices.GIB], 0.0)
        return [
            replace(o, price_per_hour_usd=rates[gpu], lines=lines, observed_at=now, source=_LIVE, snapshot=False)
            if gpu in live
            else o
            for gpu, o in shipped.items()
        ]

    async def charges(self, ref: Ref, since: float, until: float) -> list[Charge]:
        """An app's rows of the workspace's billing report, hour by hour; before credits."""
        return await account.charges(await self._workspace(), ref, since, until, self.call_s)

    # Asking Modal

    def _credentials(self) -> tuple[str, str]:
        """The token's id and secret, of the environment or of the active profile in Modal's own file."""
        from modal.config import config

        pair = config.get("token_id"), config.get("token_secret")
        if not all(pair):
            raise CredentialsError("modal: there is no token", SIGN_IN)
        return pair

    async def _client(self) -> modal.Client:
        """Opened once for each server and token, never Modal's own shared one: a changed token counts."""
        if find_spec("modal") is None:
            raise BackendError("modal: its SDK is not installed", _INSTALL)
        import modal
        from modal.config import config

        pair = self._credentials()
        key = (str(config.get("server_url")), *pair)
        if self._opened is None or self._opened[0] != key or self._opened[1].is_closed():
            self._opened = key, await modal.Client.from_credentials.aio(*pair)
        return self._opened[1]

    async def _workspace(self) -> modal.Workspace:
        client = await self._client()
        import modal

        return modal.Workspace.from_context(client=client)

    async def _rates(self) -> Mapping[str, Any]:
        workspace = await self._workspace()
        async with told("its rates", self.call_s):
            return dict(await workspace.billing.rates.aio())

    async def _deployed(self) -> list[Any]:
        client = await self._client()
        from modal.experimental import list_deployed_apps

        async with told("the list of apps", self.call_s):
            return list(await list_deployed_apps.aio(client=client))

    async def _find(self, name: str) -> str | None:
        return next((app.app_id for app in await self._deployed() if app.name == name), None)

    async def _app(self, ref: Ref) -> modal.App:
        """Raises NotFoundError. Looked up by name: Modal gives a stopped app for its id."""
        client = await self._client()
        import modal

        async with told(ref.name, self.call_s):
            return await modal.App.lookup.aio(ref.name, client=client)

    async def _function(self, ref: Ref) -> modal.Function[..., Any, Any]:
        client = await self._client()
        import modal

        return modal.Function.from_name(ref.name, FUNCTION, client=client)

    async def _url(self, function: modal.Function[..., Any, Any]) -> str:
        async with told("the app's URL", self.call_s):
            url = await function.get_web_url.aio()
        if url is None:
            raise BackendError("modal: the app's function has no URL", _LOOK)
        return url.rstrip("/")

    async def _errors(self, ref: Ref, function: modal.Function[..., Any, Any]) -> int:
        async with told(ref.name, self.call_s):
            stats = await function.stats.aio(since=datetime.now(UTC) - _ERRORS_WITHIN)
        return int(stats.container_error_count)

    async def _answers(self, ref: Ref, url: str) -> bool:
        """Whether the engine answers. Where there is no key to ask with, it is taken to."""
        pair = tokens.known(ref)
        return await self._get(f"{url}/health", Auth({}) if pair is None else tokens.auth(pair)) in (200, 401)

    async def _get(self, url: str, auth: Auth) -> int | None:
        """The status of its answer, None where there was none at once."""
        import httpx

        async with httpx.AsyncClient(verify=tls.trusted()) as http:
            try:
                async with asyncio.timeout(self.probe_s):
                    return (await http.get(url, headers=dict(auth.headers))).status_code
            except (httpx.HTTPError, TimeoutError):
                return None

    async def _awaited(self, work: Coroutine[Any, Any, object], name: str, progress: Progress) -> None:
        """Modal tells nothing of a build under way but in print: that it goes on is said now and then."""
        began, task = time.monotonic(), asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_SAY_S * self._pace))[0]:
                progress(f"{name}: Modal is at it for {time.monotonic() - began:.0f} s", None)
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _stop(self, ref: Ref) -> None:
        from modal.types import AppState

        try:
            app = await self._app(ref)
            client = await self._client()
            async with told(ref.name, self.call_s):
                await app.stop.aio(client=client)
        except NotFoundError:
            return

        async def is_there() -> bool:
            # Out of the listing at once; its containers end, and bill, a little later.
            try:
                async with told(ref.name, self.call_s):
                    state = (await app.info.aio(refresh=True)).lifecycle.state
            except NotFoundError:
                state = AppState.STOPPED
            return state is not AppState.STOPPED or await self._find(ref.name) is not None

        await until_gone(is_there, f"modal: {ref.name}", within_s=_GONE_S, poll_s=self._pace, hint=_LOOK)
        self._since.pop(ref.name, None)
        self._up.discard(ref.name)


def _token_for(request: ServiceRequest) -> str:
    token = hugging_face_token()
    if token is None:
        row = _model_row(request)
        raise CredentialsError(f"modal: {row.message}", row.fix)
    return token


def _model_row(request: ServiceRequest) -> Check:
    model = request.engine.model
    if hugging_face_token() is None:
        return Check("model", False, f"{model} is gated, and there is no Hugging Face token here", "hf auth login")
    return Check("model", True, f"{model} is gated: your Hugging Face token goes to Modal as the app's secret")


def _gpu_row(request: ServiceRequest) -> Check:
    try:
        checked(request)
    except RequestError as exc:
        return Check("gpu", False, exc.message, exc.hint or "choose another --gpu")
    return Check("gpu", True, f"Modal offers {request.gpu_count} x {request.gpu}")


def _lines(entry: modal.types.LogEntry) -> list[LogLine]:
    containers = [made for made in entry.context_ids if made.startswith("ta-")]
    source = containers[-1] if containers else entry.object_id
    return [LogLine(entry.timestamp.timestamp(), source, text) for text in entry.message.splitlines()]
