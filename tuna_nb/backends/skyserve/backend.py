"""The spot side at AWS, Google Cloud and Azure: one SkyServe service per deployment, told by its name.

SkyServe's controller is a small on-demand VM that all services of a user share; SkyPilot starts it with the first
and stops it ten minutes after the last. A service is found by its name: the controller takes no second of one name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, Final

import yaml

from tuna_nb.backends.base import (
    Auth,
    Backend,
    Charge,
    Check,
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
from tuna_nb.backends.names import deployment_of
from tuna_nb.backends.skyserve import accounts, checks, placing, report
from tuna_nb.backends.skyserve import logs as log_lines
from tuna_nb.backends.skyserve import prices as catalog
from tuna_nb.backends.skyserve import task as tasks
from tuna_nb.backends.skyserve.client import Client, Down, installed, synced
from tuna_nb.backends.skyserve.keys import replica_key
from tuna_nb.backends.skyserve.machines import CONTROLLER
from tuna_nb.backends.skyserve.said import Unregistered, words
from tuna_nb.backends.skyserve.status import Service, services
from tuna_nb.backends.tailing import merged
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.catalog.rules import rule
from tuna_nb.catalog.sources.skypilot import SkyPilotFiles
from tuna_nb.errors import (
    BackendError,
    CredentialsError,
    NotFoundError,
    RequestError,
    UnclearError,
    did_you_mean,
)
from tuna_nb.secrets import hugging_face_token

_UP_S: Final = 3600.0
"""The controller's VM, its set-up and SkyPilot's own retries while its cloud has no room."""
_UPDATE_S: Final = 300.0
_GONE_S: Final = 1200.0
_KNOWN_S: Final = 120.0
_SETTLES_S: Final = 30.0
_LATE_S: Final = 45.0
_LATE_LOOKS: Final = 9
_FRESH_S: Final = 3600.0
_LOOK: Final = "`sky serve status` shows it"
_HEALTH: Final = "/health"


class SkyServeBackend(Backend):
    """SkyServe's services of this user. timeout_s: of calls that only read. pace: of its waits."""

    name: ClassVar[str] = "skyserve"
    price_access: ClassVar[PriceAccess] = PriceAccess.NOBODY
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SPOT})
    clouds: ClassVar[tuple[str, ...]] = tasks.CLOUDS
    controller: ClassVar[bool] = True
    options: ClassVar[Mapping[str, str]] = tasks.OPTIONS
    poll_s: ClassVar[float] = 10.0

    def __init__(self, *, timeout_s: float = 120.0, pace: float = 1.0) -> None:
        self._sky = Client(timeout_s=timeout_s, pace=pace)
        self._pace = pace
        self._unsettled: dict[str, float] = {}
        """Services whose creation did not end clearly, and when: they may appear yet."""
        self._quotes: dict[tuple[str, str | None], tuple[float, list[catalog.Quote]]] = {}

    def configured(self) -> bool:
        return installed() and bool(accounts.clouds_here())

    def clouds_here(self) -> tuple[str, ...]:
        return accounts.clouds_here() if installed() else ()

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        return await checks.rows(self._sky, self._found, request)

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = tasks.checked(request)
        cloud, fallback = tasks.cloud_of(request.options), request.options.get("ondemand_fallback") == "on"
        if request.gpu not in catalog.ACCELERATORS:
            raise RequestError(f"skyserve knows no {request.gpu}", did_you_mean(request.gpu, catalog.ACCELERATORS))
        where = tasks.places(request.region)
        found = await self._found(cloud, request.gpu) or await self._found(cloud, None)
        price = catalog.replica(found, request.gpu, request.gpu_count, where, on_demand=fallback)
        await self._accepted(request)
        controller = await self._controller_price(cloud)
        most = scaling.max_replicas + int(request.options.get("overprovision", "0"))
        worst = None if price.dearest is None else price.dearest * most
        what = f"SkyServe spot replicas at {cloud}, at most {most}"
        return Plan(
            request,
            (
                PlannedResource(what, request.name, worst),
                PlannedResource("SkyServe controller (on-demand VM, shared)", f"{CONTROLLER}*", controller),
            ),
            price.cheapest,
            _notes(request, cloud, price, controller, fallback),
            None if (at := SkyPilotFiles().observed_at(cloud)) is None else Quote(at, catalog.SOURCE),
        )

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request
        progress(f"looking for SkyServe service {request.name}", None)

        async def create() -> Service:
            progress(f"creating SkyServe service {request.name}; a first controller takes some minutes", None)
            secret = _secrets(request)

            def up(sky: Any) -> Any:
                # SkyPilot takes what it is given apart: each try gets its own.
                made = placing.made(sky, request, secret)
                return sky.serve.up(made, service_name=request.name)

            self._unsettled[request.name] = time.monotonic()
            what = f"creating {request.name}"
            try:
                await self._sky.rent(what, up, within_s=_UP_S)
            except Unregistered:
                if (late := await self._registers_late(request.name)) is not None:
                    return late
                try:
                    await self._sky.rent(what, up, within_s=_UP_S)
                except Unregistered as still:
                    raise UnclearError(still.message, still.hint) from still
            return await self._known(request.name)

        try:
            found = await create_once(lambda: self._registered(request.name), create, pace=self._pace)
        except UnclearError:
            self._unsettled[request.name] = time.monotonic()  # when it ended: it may appear from now on
            raise
        except BackendError:
            self._unsettled.pop(request.name, None)
            raise
        self._unsettled.pop(request.name, None)
        if found.endpoint is None:
            found = await self._known(request.name)
        assert found.endpoint is not None
        progress(f"{request.name} is at {found.endpoint}", 1.0)
        health = request.engine.health_path
        return Endpoint(
            _ref(request.name),
            found.endpoint,
            balances=True,
            traffic_url=f"{found.endpoint}{health}",
            sync_url=found.sync_url if synced() else None,
        )

    async def status(self, ref: Ref) -> Status:
        found = await self._find(ref.name)
        if found is None:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        return Status(
            _ref(found.name),
            found.state,
            found.replicas,
            found.billing,
            time.time(),
            found.detail,
            found.endpoint,
        )

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        found = await self._service(ref.name)
        with_log = [r.id for r in found.replicas if r.state is not State.WAITING]
        sources: list[AsyncGenerator[LogLine, None]] = [
            log_lines.of_replica(self._sky, found.name, replica, follow=follow) for replica in with_log
        ]
        async with aclosing(_closing(merged(sources, follow=follow))) as lines:
            async for line in lines:
                if since is None or line.at >= since:
                    yield line

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        """By the running service's own task, so that nothing but its scaling is seen to change."""
        assert isinstance(scaling, SpotScaling)
        found = await self._service(ref.name)
        if not found.task:
            raise BackendError(f"skyserve: SkyPilot tells no task of {ref.name}", "destroy it, and deploy again")
        config = tasks.rescaled(yaml.safe_load(found.task), scaling)

        def update(sky: Any) -> Any:
            made = sky.Task.from_yaml_config(config)
            return sky.serve.update(made, service_name=ref.name, mode=sky.serve.UpdateMode.ROLLING)

        await self._sky.change(f"scaling {ref.name}", update, within_s=_UPDATE_S)

    async def wake(self, ref: Ref) -> None:
        found = await self._service(ref.name)
        if found.endpoint is not None:
            await knock(f"{found.endpoint}{_HEALTH}", _headers(found))

    async def destroy(self, ref: Ref) -> None:
        purged: list[str] = []

        async def is_there() -> bool:
            try:
                found = await self._find(ref.name)
            except Down as down:
                if down.state != "INIT":
                    raise
                return True  # the controller is being started, and may have it
            if found is None:
                return self._may_appear(ref.name)
            if found.stuck and not purged:
                purged.append(found.raw)
                await self._down(ref.name, purge=True)
            elif found.raw != "SHUTTING_DOWN" and not found.stuck:
                await self._down(ref.name, purge=False)
            return True

        poll_s = min(self.poll_s, 5.0) * self._pace
        await until_gone(is_there, f"skyserve: {ref.name}", within_s=_GONE_S, poll_s=poll_s, hint=_LOOK)
        self._unsettled.pop(ref.name, None)
        if purged:
            raise BackendError(
                f"skyserve: SkyServe could not remove {ref.name} by itself ({purged[0]}); its record is purged",
                f"look in the cloud's console for machines named {ref.name}-<number>, and remove them there",
            )

    async def list_owned(self) -> list[Ref]:
        return [_ref(found.name) for found in await self._all() if deployment_of(found.name) is not None]

    async def auth(self, ref: Ref) -> Auth:
        return Auth(_headers(await self._service(ref.name)))

    async def prices(self) -> list[Offer]:
        now, offers = time.time(), []
        for cloud in accounts.signed_in() or (tasks.CLOUDS[0],):
            best: dict[tuple[str, str], tuple[float, catalog.Quote]] = {}
            for quote in await self._found(cloud, None):
                if quote.spot is not None:
                    each = quote.spot / quote.count
                    if (key := (quote.gpu, quote.region)) not in best or each < best[key][0]:
                        best[key] = (each, quote)
            offers += [
                Offer(
                    cloud,
                    OfferKind.SPOT,
                    gpu,
                    each,
                    region,
                    now,
                    catalog.SOURCE,
                    gpu_count=quote.count,
                    machine=quote.machine,
                    billing=rule(cloud, OfferKind.SPOT).billing,
                )
                for (gpu, region), (each, quote) in best.items()
            ]
        return offers

    async def charges(self, ref: Ref, since: float, until: float) -> list[Charge]:
        """Of the service's machines, by SkyPilot's own estimate; the cloud's invoice has what is really charged."""
        return await report.charges(self._sky, ref, since, until)

    async def remove_shared(self) -> list[str]:
        """SkyServe's controller VM, where no service is left: while it runs it costs money, stopped its disk."""
        try:
            if await self._records(None):
                return []
        except Down as down:
            if not down.has_no_services:
                raise
        clusters = await self._sky.ask("SkyPilot's clusters", lambda sky: sky.status())
        idle = [str(c["name"]) for c in clusters if str(c["name"]).startswith(CONTROLLER)]
        for cluster in idle:
            await self._take_down(cluster)
        return idle

    # Its own parts

    async def _records(self, name: str | None) -> list[Service]:
        """Raises Down where SkyServe's controller is not up."""
        asked = "the list of services" if name is None else name
        told = await self._sky.ask(asked, lambda sky: sky.serve.status(name))
        return services(told, accounts.server())

    async def _all(self) -> list[Service]:
        """Where SkyPilot was never used nobody is asked: that would start an API server, and take long."""
        if accounts.never_used():
            return []
        try:
            return await self._records(None)
        except Down as down:
            if down.has_no_services:
                return []
            raise

    async def _find(self, name: str) -> Service | None:
        try:
            return next((found for found in await self._records(name) if found.name == name), None)
        except Down as down:
            if down.has_no_services:
                return None
            raise

    async def _registered(self, name: str) -> Service | None:
        """As `_find`; while the controller is being started nothing is registered, and names can't clash."""
        try:
            return await self._find(name)
        except Down as down:
            if down.state == "INIT":
                return None
            raise

    async def _service(self, name: str) -> Service:
        found = await self._find(name)
        if found is None:
            raise NotFoundError(f"skyserve: there is no service {name}")
        return found

    async def _known(self, name: str) -> Service:
        """The service with its balancer's address."""
        end = time.monotonic() + _KNOWN_S
        while True:
            found = await self._find(name)
            if found is not None and found.endpoint is not None:
                return found
            if time.monotonic() > end:
                raise UnclearError(f"skyserve: SkyServe tells no address of {name}", _LOOK)
            await asyncio.sleep(min(self.poll_s, 5.0) * self._pace)

    async def _down(self, name: str, *, purge: bool) -> None:
        what = f"removing {name}"
        try:
            await self._sky.ask(what, lambda sky: sky.serve.down(name, purge=purge), within_s=_UPDATE_S)
        except NotFoundError:
            return
        except Down as down:
            if not down.has_no_services:
                raise

    async def _take_down(self, cluster: str) -> None:
        await self._sky.ask(f"taking {cluster} down", lambda sky: sky.down(cluster), within_s=_GONE_S)

    async def _registers_late(self, name: str) -> Service | None:
        """What a controller has registered after SkyPilot gave it up; None where it seems to be dead."""
        for _ in range(_LATE_LOOKS):
            await asyncio.sleep(_LATE_S / _LATE_LOOKS * self._pace)
            if (found := await self._registered(name)) is not None:
                return found
        return None

    def _may_appear(self, name: str) -> bool:
        """A creation that was broken off may register its service a little later."""
        began = self._unsettled.get(name)
        return began is not None and time.monotonic() < began + _SETTLES_S * self._pace

    async def _accepted(self, request: ServiceRequest) -> None:
        """SkyPilot takes the task. Raises RequestError in its words."""
        unset = [(name, "unset") for name in tasks.secret_names(request.engine)]

        def read(sky: Any) -> str | None:
            try:
                placing.made(sky, request, unset)
            except ValueError as exc:
                return words(exc)
            return None

        if (refused := await self._sky.ask(f"the task of {request.name}", read)) is not None:
            raise RequestError(f"skyserve: SkyPilot refuses the task: {refused}", "`sky api logs` has more")

    async def _found(self, cloud: str, gpu: str | None) -> list[catalog.Quote]:
        """The catalog is read once an hour."""
        known = self._quotes.get((cloud, gpu))
        if known is None or time.monotonic() > known[0] + _FRESH_S:
            found = await self._sky.ask(f"the catalog of {cloud}", lambda sky: catalog.quotes(sky, cloud, gpu))
            known = self._quotes[cloud, gpu] = (time.monotonic(), found)
        return known[1]

    async def _controller_price(self, cloud: str) -> float:
        found = await self._sky.ask(f"the catalog of {cloud}", lambda sky: catalog.controller(sky, cloud))
        return catalog.CONTROLLER_USD if found is None else float(found)


def _secrets(request: ServiceRequest) -> list[tuple[str, str]]:
    """Raises CredentialsError for a gated model without a token."""
    values = {tasks.KEY: replica_key(request.name)}
    if request.engine.gated:
        if (token := hugging_face_token()) is None:
            raise CredentialsError(
                f"skyserve: {request.engine.model} is gated, and there is no Hugging Face token",
                "export HF_TOKEN=<your token>",
            )
        values[tasks.HF_TOKEN] = token
    return list(values.items())


def _headers(found: Service) -> dict[str, str]:
    """The key that the service was made with, on whichever machine."""
    sent = yaml.safe_load(found.task or "") or {}
    key = (sent.get("secrets") or {}).get(tasks.KEY) if isinstance(sent, dict) else None
    if not key or key.startswith("<"):
        key = replica_key(found.name)
    return {"Authorization": f"Bearer {key}"}


def _ref(name: str) -> Ref:
    return Ref("skyserve", Kind.SPOT, name, None, deployment_of(name))


def _notes(
    request: ServiceRequest, cloud: str, price: catalog.Price, controller: float, fallback: bool
) -> tuple[str, ...]:
    notes = [
        f"spot price: {catalog.SOURCE} of {cloud}"
        + (
            f", cheapest in {price.region}; the worst case is the dearest that it may come to"
            if price.region
            else ", has none"
        ),
        f"SkyServe's controller is a small on-demand VM (about ${controller:.2f} an hour) for all your services;"
        " it stops itself 10 minutes after the last, and `tuna destroy --shared` removes it",
    ]
    if fallback:
        notes.append("an on-demand GPU stands in while no spot one is ready, from the first start on")
    if request.engine.command is not None and request.engine.image is None:
        notes.append("the engine command runs on the machine itself, not in a container: it must be there")
    return tuple(notes)


async def _closing(lines: AsyncIterator[LogLine]) -> AsyncGenerator[LogLine, None]:
    async for line in lines:
        yield line
