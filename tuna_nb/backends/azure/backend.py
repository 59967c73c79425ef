"""Azure Container Apps: vLLM's own image on serverless GPUs, through Azure's SDK.

An app's ingress is open to the internet: a key of Tuna's, kept at Azure as a secret of the app, is vLLM's own.
Anyone who knows the address can wake it, but only the key gets an answer. A deploy returns when the address is
known; Azure's own operation goes on until a first replica runs, as long as it takes to find a GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

from tuna_nb import tls
from tuna_nb.backends.azure import app as apps
from tuna_nb.backends.azure import checks, states
from tuna_nb.backends.azure import place as places
from tuna_nb.backends.azure.arm import Arm
from tuna_nb.backends.azure.environments import Environments, profile_in
from tuna_nb.backends.azure.place import Place
from tuna_nb.backends.azure.prices import Prices
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
    ServerlessScaling,
    ServiceRequest,
    SpotScaling,
    State,
    Status,
)
from tuna_nb.backends.lifecycle import create_once, knock, until_gone
from tuna_nb.backends.rest import words
from tuna_nb.backends.tailing import merged
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Lines, Offer, OfferKind
from tuna_nb.errors import BackendError, ConflictError, CredentialsError, NotFoundError
from tuna_nb.secrets import hugging_face_token, new_key

_ANSWER_S: Final = 240.0
_SETTLE_S: Final = 60.0
"""So long a deploy watches Azure's operation for a failure once the address is known."""
_GONE_S: Final = 900.0
_POLL_S: Final = 2.0
_TAIL: Final = 300
"""The most past lines that Azure's log stream gives."""


class AzureBackend(Backend):
    """Azure's serverless GPUs.

    url, credential, pipeline, timeout_s: of ARM and of the SDK's client, for tests. prices_url: of the Retail
    Prices API. endpoint_url: an app's URL from its host name. pace: of its own waits.
    """

    name: ClassVar[str] = "azure"
    price_access: ClassVar[PriceAccess] = PriceAccess.ANYONE
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    options: ClassVar[Mapping[str, str]] = {
        "azure_subscription": f"subscription id (default {places.SUBSCRIPTION}, or az's own default)",
        "azure_resource_group": f"resource group that is already there (default {places.GROUP})",
        "azure_region": f"region with GPUs, e.g. swedencentral (default {places.REGION})",
        "azure_environment": f"environment of yours to use (default {places.ENVIRONMENT}, or one that Tuna makes)",
        "azure_cleanup_env": "true removes Tuna's environment with its last app (default false)",
    }
    # The ingress cuts an answer after four minutes, streamed or not.
    door: ClassVar[Door] = Door(answer_s=_ANSWER_S)
    # Cost Management's query API wants a role on the subscription that a deployer need not have.
    invoice: ClassVar[str] = "Cost Management > Cost analysis in Azure's portal, by resource; a day late"

    def __init__(
        self,
        url: str | None = None,
        *,
        credential: Any = None,
        pipeline: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
        prices_url: str | None = None,
        endpoint_url: Callable[[str], str] = lambda fqdn: f"https://{fqdn}",
        pace: float = 1.0,
    ) -> None:
        self._arm = Arm(url, credential=credential, pipeline=pipeline, pace=pace, timeout_s=timeout_s)
        self._environments = Environments(self._arm, pace)
        self._prices = Prices(prices_url)
        self._endpoint_url = endpoint_url
        self._pace = pace
        self._seen: set[str] = set()
        """Subscriptions that were named in a request or a resource's id, to be searched like the default one."""

    def configured(self) -> bool:
        return checks.installed() and bool(places.default_subscription())

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        return await checks.rows(self._arm, self._environments, request)

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = apps.checked(request, dict(self.options))
        place = places.of(request)
        rates, shape = await self._prices.rates(place.region), apps.PROFILES[request.gpu]
        each = rates.replica(request.gpu)
        notes = [
            f"the price has the GPU, {shape.vcpus} vCPUs and {shape.memory_gib} GiB, which Azure bills apart",
            f"Azure cuts an answer after {_ANSWER_S:g} s, streamed or not",
        ]
        if place.environment is None:
            notes.append("the first deploy in a region makes an environment: up to half an hour, and free")
        if request.public:
            notes.append("public: anyone who knows the address can use it, at your cost")
        else:
            notes.append("the engine asks for a key that Tuna makes; it is a secret of the app at Azure")
        worst = None if each is None else each * scaling.workers_max
        what = f"Azure container app in {place.region}, at most {scaling.workers_max} replicas"
        quote = Quote(rates.at, rates.source, rates.snapshot)
        return Plan(request, (PlannedResource(what, request.name, worst),), each, tuple(notes), quote)

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request
        apps.checked(request, dict(self.options))
        place = places.of(request)
        self._seen.add(place.subscription)
        token = hugging_face_token() if request.engine.gated else None
        if request.engine.gated and token is None:
            raise CredentialsError(f"azure: {request.engine.model} is gated", "export HF_TOKEN=hf_...")
        environment = await self._environments.ensure(place, request.gpu, progress)
        operations: list[str] = []
        """Where Azure tells of what was begun here; empty where the app was there."""

        async def create() -> Any:
            progress(f"creating container app {request.name} in {environment.name}", None)
            key = None if request.public else new_key()
            profile = profile_in(environment, request.gpu)
            assert profile is not None
            envelope = apps.envelope(request, environment.id, profile, key, token)
            envelope.location = place.region
            operations.append("")

            def begun(answer: Any) -> None:
                operations.append(answer.http_response.headers.get("azure-asyncoperation") or "")

            return await self._arm.call(
                place.subscription,
                request.name,
                lambda client: client.container_apps.begin_create_or_update(
                    place.group, request.name, envelope, polling=False, raw_response_hook=begun
                ).result(),
                creates=True,
            )

        found = await create_once(lambda: self._in(place, request.name), create, pace=self._pace)
        try:
            found = await self._settled(place, found, progress, operations)
        except BackendError:
            if operations:
                # The first error is the one that counts; what is left then is found by its name.
                with contextlib.suppress(BackendError):
                    await self.destroy(_ref(found))
            raise
        return Endpoint(_ref(found), self._url(found))

    async def status(self, ref: Ref) -> Status:
        try:
            found = await self._app(ref)
            revisions, replicas = await self._inside(found)
        except NotFoundError:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        seen = tuple(states.replica(one) for one in replicas)
        state, detail = states.judge(found, revisions, seen)
        billing = any(one.state is not State.WAITING for one in seen)
        url = self._url(found) if _fqdn(found) else None
        return Status(_ref(found), state, seen, billing, time.time(), detail, url)

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        # A stream that is opened again begins with lines that were told.
        told: deque[LogLine] = deque(maxlen=4 * _TAIL)
        found = await self._app(ref)
        while True:
            sources = [self._stream(*source, follow) for source in await self._streams(found)]
            async for line in merged(sources, follow=follow):
                if (since is None or line.at >= since) and line not in told:
                    told.append(line)
                    yield line
            if not follow:
                return
            # All its replicas have ended, or none was there yet.
            await asyncio.sleep(self.poll_s * self._pace)
            found = await self._app(ref)

    async def _streams(self, app: Any) -> list[tuple[str, str, str]]:
        """Of each container that runs: its replica, where its log streams, and the token that opens it."""
        _, replicas = await self._inside(app)
        running = [
            (str(replica.name), str(container.log_stream_endpoint))
            for replica in replicas
            for container in replica.properties.containers or []
            if container.log_stream_endpoint
        ]
        if not running:
            return []
        subscription, group, name = places.parts(app.id)
        token = await self._arm.call(
            subscription, f"log of {name}", lambda client: client.container_apps.get_auth_token(group, name)
        )
        return [(replica, url, str(token.properties.token)) for replica, url in running]

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        from azure.mgmt.appcontainers import models

        assert isinstance(scaling, ServerlessScaling)
        apps.checked_scaling(scaling)
        found = await self._app(ref)
        subscription, group, name = places.parts(found.id)
        change = models.ContainerApp(
            location=found.location,
            properties=models.ContainerAppProperties(template=models.Template(scale=apps.scale(scaling))),
        )
        end = time.monotonic() + _SETTLE_S
        while True:
            try:
                await self._arm.call(
                    subscription,
                    name,
                    lambda client: client.container_apps.begin_update(group, name, change, polling=False).result(),
                )
                return
            except ConflictError:
                # Azure changes an app only when its last operation is over.
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(_POLL_S * self._pace)

    async def wake(self, ref: Ref) -> None:
        found = await self._app(ref)
        [container, *_] = found.properties.template.containers
        path = next((p.http_get.path for p in container.probes or [] if p.http_get is not None), "/health")
        headers = dict((await self._auth(found)).headers)
        await knock(f"{self._url(found)}{path}", headers)

    async def destroy(self, ref: Ref) -> None:
        try:
            found = await self._app(ref)
        except NotFoundError:
            return
        subscription, group, name = places.parts(found.id)

        async def is_there() -> bool:
            return any(places.same(one.id, found.id) for one in await self._apps(subscription))

        end = time.monotonic() + _GONE_S
        while True:
            try:
                await self._arm.call(
                    subscription,
                    name,
                    lambda client: client.container_apps.begin_delete(group, name, polling=False).result(),
                )
            except NotFoundError:
                pass
            except ConflictError:
                # An operation of Azure's is still going on, somebody's delete among them.
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(_POLL_S * self._pace)
                if await is_there():
                    continue
            break
        hint = f"az containerapp delete -g {group} -n {name} --yes"
        await until_gone(is_there, f"azure: {name}", within_s=_GONE_S, poll_s=_POLL_S * self._pace, hint=hint)
        if (found.tags or {}).get(apps.CLEANUP_TAG) == "true":
            await self._environments.remove_idle(subscription, str(found.properties.managed_environment_id))

    async def list_owned(self) -> list[Ref]:
        listed = [one for subscription in self._subscriptions() for one in await self._apps(subscription)]
        return [_ref(one) for one in listed if _is_ours(one)]

    async def auth(self, ref: Ref) -> Auth:
        return await self._auth(await self._app(ref))

    async def prices(self) -> list[Offer]:
        where = places.default_region()
        rates, shipped = await self._prices.live(where), snapshot.rates(self.name)
        lines = Lines(rates.vcpu, rates.memory_gib, 0.0)
        return [
            Offer(
                self.name,
                OfferKind.SERVERLESS,
                gpu,
                rates.gpus[gpu],
                where,
                rates.at,
                rates.source,
                machine=shape.kind,
                vcpus=shape.vcpus,
                memory_gib=shape.memory_gib,
                lines=lines,
                billing=next(iter(shipped.values())).billing,
            )
            for gpu, shape in apps.PROFILES.items()
            if gpu in rates.gpus
        ]

    async def remove_shared(self) -> list[str]:
        """Remove Tuna's environments that hold no app; returns their names when a fresh listing lacks them.

        Raises BackendError.
        """
        return [name for one in self._subscriptions() for name in await self._environments.remove_idle(one)]

    # Its own parts

    def _subscriptions(self) -> list[str]:
        default = places.default_subscription()
        if not default and not self._seen:
            raise CredentialsError(
                "azure: no subscription is told",
                f"export {places.SUBSCRIPTION}=$(az account show --query id -o tsv)",
            )
        return sorted({*self._seen, *([default] if default else [])})

    async def _apps(self, subscription: str) -> list[Any]:
        def listed(client: Any) -> list[Any]:
            return list(client.container_apps.list_by_subscription())

        return await self._arm.call(subscription, "the list of container apps", listed)

    async def _in(self, place: Place, name: str) -> Any:
        """The app of that name in the group, None where there is none; somebody else's is refused."""
        try:
            found = await self._got(place.subscription, place.group, name)
        except NotFoundError:
            return None
        if not _is_ours(found):
            raise BackendError(f"azure: there is a container app {name} that is not Tuna's", "remove or rename it")
        return found

    async def _app(self, ref: Ref) -> Any:
        """Raises NotFoundError."""
        if ref.id is not None:
            subscription, group, name = places.parts(ref.id)
            self._seen.add(subscription)
            return await self._got(subscription, group, name)
        for subscription in self._subscriptions():
            for one in await self._apps(subscription):
                if _is_ours(one) and places.same(one.name, ref.name):
                    return one
        raise NotFoundError(f"azure: there is no container app {ref.name}")

    async def _got(self, subscription: str, group: str, name: str) -> Any:
        """Raises NotFoundError."""
        return await self._arm.call(subscription, name, lambda client: client.container_apps.get(group, name))

    async def _inside(self, app: Any) -> tuple[list[Any], list[Any]]:
        """The active revisions, newest last, and all their replicas."""
        subscription, group, name = places.parts(app.id)

        def listed(client: Any) -> tuple[list[Any], list[Any]]:
            revisions = [
                r for r in client.container_apps_revisions.list_revisions(group, name) if r.properties.active
            ]
            revisions.sort(
                key=lambda r: r.properties.created_time.timestamp() if r.properties.created_time else 0.0
            )
            of = client.container_apps_revision_replicas.list_replicas
            return revisions, [one for r in revisions for one in of(group, name, r.name).value or []]

        return await self._arm.call(subscription, f"replicas of {name}", listed)

    async def _settled(self, place: Place, app: Any, progress: Progress, operations: list[str]) -> Any:
        """The app with its address, once Azure's operation is over or has gone on for a while without failing."""
        began = time.monotonic()
        while True:
            state, passed = places.word(app.properties.provisioning_state), time.monotonic() - began
            if state in ("Failed", "Canceled"):
                why = await self._said(place, operations)
                if not why:
                    revisions, _ = await self._inside(app)
                    why = states.failure(revisions) or state
                raise BackendError(f"azure: {app.name}: {why}", "mend what Azure names, then deploy again")
            if _fqdn(app) and (state == "Succeeded" or passed > _SETTLE_S * self._pace):
                progress(f"{app.name} answers at {_fqdn(app)}", 1.0)
                return app
            if passed > _GONE_S:
                raise BackendError(f"azure: {app.name} has no address after {passed:.0f} s", "deploy again")
            progress(f"container app {app.name}: {state}", None)
            await asyncio.sleep(_POLL_S * self._pace)
            app = await self._got(place.subscription, place.group, app.name)

    async def _said(self, place: Place, operations: list[str]) -> str:
        """Why the operation failed, in Azure's words; empty where it tells nothing."""
        for url in filter(None, reversed(operations)):
            told = await self._arm.get(place.subscription, "the operation", url)
            return str((told.get("error") or {}).get("message") or "")
        return ""

    async def _auth(self, app: Any) -> Auth:
        if (app.tags or {}).get(apps.PUBLIC_TAG) == "true":
            return Auth({})
        subscription, group, name = places.parts(app.id)
        secrets = await self._arm.call(
            subscription, f"secrets of {name}", lambda client: client.container_apps.list_secrets(group, name)
        )
        key = next((one.value for one in secrets.value if one.name == apps.KEY_SECRET), None)
        if not key:
            raise BackendError(f"azure: {name} has no secret {apps.KEY_SECRET}", "destroy it and deploy again")
        return Auth({"Authorization": f"Bearer {key}"})

    async def _stream(self, replica: str, url: str, token: str, follow: bool) -> AsyncIterator[LogLine]:
        import httpx

        params: dict[str, str | int] = {"follow": str(follow).lower(), "output": "json", "tailLines": _TAIL}
        patience = httpx.Timeout(30, read=None if follow else 30)
        at = 0.0
        try:
            async with (
                httpx.AsyncClient(verify=tls.trusted(), timeout=patience) as http,
                http.stream("GET", url, params=params, headers={"Authorization": f"Bearer {token}"}) as answer,
            ):
                if not answer.is_success:
                    said = words((await answer.aread()).decode(errors="replace"))
                    raise BackendError(f"azure: log of {replica}: {said} ({answer.status_code})", "try again")
                async for text in answer.aiter_lines():
                    if text.strip():
                        at, said = _read(text, at)
                        yield LogLine(at, replica, said)
        except httpx.HTTPError as exc:
            raise BackendError(f"azure: log of {replica}: {exc or type(exc).__name__}", "try again") from exc

    def _url(self, app: Any) -> str:
        return self._endpoint_url(_fqdn(app)).rstrip("/")


def _ref(app: Any) -> Ref:
    return Ref("azure", Kind.SERVERLESS, app.name, app.id, (app.tags or {}).get(apps.DEPLOYMENT_TAG))


def _is_ours(app: Any) -> bool:
    return apps.DEPLOYMENT_TAG in (app.tags or {})


def _fqdn(app: Any) -> str:
    ingress = app.properties.configuration.ingress if app.properties.configuration else None
    return str(ingress.fqdn or "") if ingress else ""


def _read(line: str, last: float) -> tuple[float, str]:
    """A line of the log stream: JSON with TimeStamp and Log. One without a time has that of the line before it."""
    try:
        said = json.loads(line)
        stamp, text = str(said["TimeStamp"]), str(said.get("Log", said.get("Msg", ""))).rstrip()
    except (ValueError, KeyError, TypeError, AttributeError):
        return last or time.time(), line.rstrip()
    # Both 2026-03-01T10:00:00.1234567+00:00 and `2026-03-01 10:00:00 +0000 UTC` are seen.
    plain = re.sub(r" ([+-]\d\d)(\d\d)(?: UTC)?$", r"\1:\2", stamp)
    try:
        return datetime.fromisoformat(plain).timestamp(), text
    except ValueError:
        return last or time.time(), text
