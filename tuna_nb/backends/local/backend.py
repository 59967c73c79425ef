"""The `local` backend: real processes on this machine that act like a serverless and a spot provider.

It is the default where no cloud is configured. Engines listen on loopback without a key; the endpoints in front of
them ask for one. Anyone with an account on this machine could reach an engine's port directly: that is the price of
running any command as an engine, and nothing on this machine's "cloud" is worth more than its owner's files.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

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
    Ref,
    ServerlessScaling,
    ServiceRequest,
    SpotScaling,
    State,
    Status,
    UsageInterval,
)
from tuna_nb.backends.local.options import LOOPBACK, OPTIONS
from tuna_nb.catalog.offers import Offer
from tuna_nb.errors import NotFoundError

if TYPE_CHECKING:
    from tuna_nb.backends.local.client import LocalCloud
    from tuna_nb.backends.local.wire import ResourceView


def default_folder() -> Path:
    """TUNA_LOCAL_FOLDER, else `local-cloud` in Tuna's data folder (TUNA_DATA_DIR or the user's)."""
    if own := os.environ.get("TUNA_LOCAL_FOLDER"):
        return Path(own).expanduser()
    if data := os.environ.get("TUNA_DATA_DIR"):
        return Path(data).expanduser() / "local-cloud"
    import platformdirs

    return Path(platformdirs.user_data_dir("tuna")) / "local-cloud"


class LocalBackend(Backend):
    """The local cloud in `folder`, by default `default_folder()`."""

    name: ClassVar[str] = "local"
    price_access: ClassVar[PriceAccess] = PriceAccess.NOBODY
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    options: ClassVar[Mapping[str, str]] = OPTIONS
    pretends: ClassVar[bool] = True
    tells_usage: ClassVar[bool] = True
    poll_s: ClassVar[float] = 0.25

    def __init__(self, folder: Path | str | None = None, idle_exit_s: float | None = None) -> None:
        self.folder = (default_folder() if folder is None else Path(folder)).absolute()
        self._idle_exit_s = idle_exit_s

    @property
    def cloud(self) -> LocalCloud:
        """What the backend talks to; it can also preempt, and show its own bill."""
        from tuna_nb.backends.local.client import LocalCloud

        return LocalCloud(self.folder, self._idle_exit_s)

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        from tuna_nb.backends.local import checks

        return checks.rows(self.folder, request)

    def only_here(self, request: ServiceRequest) -> bool:
        return request.options.get("listen", LOOPBACK).startswith("127.")

    async def plan(self, request: ServiceRequest) -> Plan:
        from tuna_nb.backends.local import spec as specs

        spec = specs.from_request(request)
        price = spec.price_per_hour_usd
        notes = ["prices of the local cloud are illustrative; nothing is charged"]
        if isinstance(request.scaling, ServerlessScaling):
            most, what = request.scaling.workers_max, "serverless containers"
        else:
            most, what = request.scaling.max_replicas, "spot replicas"
            notes.append("a preempted replica bills to the end of its notice, beside its replacement")
        resource = PlannedResource(f"local {what}, at most {most}", request.name, most * price)
        return Plan(request, (resource,), price, tuple(notes))

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        from tuna_nb.backends.local import spec as specs

        progress(f"creating local {plan.request.kind} resource {plan.request.name}", None)
        try:
            cwd: str | None = os.getcwd()
        except FileNotFoundError:
            cwd = None  # the user's folder was removed under the shell
        spec = specs.from_request(plan.request, cwd=cwd, path=os.environ.get("PATH"))
        view = await self.cloud.deploy(spec)
        progress(f"{view.name} is at {view.url}", 1.0)
        counted = f"{view.url}/-/replicas" if view.kind is Kind.SPOT else None
        return Endpoint(_ref(view), view.url, counted)

    async def status(self, ref: Ref) -> Status:
        try:
            view = await self.cloud.status(ref.name)
        except NotFoundError:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        return Status(
            ref=_ref(view),
            state=view.state,
            replicas=view.replicas,
            billing=view.billing,
            observed_at=view.observed_at,
            detail=view.detail,
            endpoint_url=view.url,
        )

    def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        return self.cloud.logs(ref.name, since, follow)

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        from tuna_nb.backends.local import spec as specs

        specs.check_scaling(ref.kind, scaling)
        await self.cloud.scale(ref.name, scaling)

    async def wake(self, ref: Ref) -> None:
        await self.cloud.wake(ref.name)

    async def destroy(self, ref: Ref) -> None:
        await self.cloud.destroy(ref.name)

    async def list_owned(self) -> list[Ref]:
        return [_ref(view) for view in await self.cloud.resources()]

    async def auth(self, ref: Ref) -> Auth:
        return Auth({"Authorization": f"Bearer {await self.cloud.key(ref.name)}"})

    async def prices(self) -> list[Offer]:
        from tuna_nb.backends.local import prices

        return prices.offers()

    async def usage(self, ref: Ref) -> list[UsageInterval]:
        bill = await self.cloud.bill(ref.name)
        return [
            UsageInterval(i.replica, i.started_at, i.ended_at, i.price_per_hour_usd, i.granularity_s, i.ready_at)
            for i in bill.intervals
            if ref.id is None or i.uid == ref.id
        ]

    async def charges(self, ref: Ref, since: float, until: float) -> list[Charge]:
        """The cloud's own bill, a line for each container or replica, up to when it was last seen."""
        bill = await self.cloud.bill(ref.name)
        return [
            Charge(i.started_at, i.seen_at if i.ended_at is None else i.ended_at, i.usd, f"{i.gpu} of {i.replica}")
            for i in bill.intervals
            if (ref.id is None or i.uid == ref.id)
            and i.started_at < until
            and (i.seen_at if i.ended_at is None else i.ended_at) > since
        ]


def _ref(view: ResourceView) -> Ref:
    return Ref("local", view.kind, view.name, view.uid, view.deployment_id)
