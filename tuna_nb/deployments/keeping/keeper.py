"""What goes on beside a deployment for as long as it is there: its bill, its budgets, fresh headers, the replicas
of its fleet.

Every look asks the providers what is up, writes it into the ledger with the router's load, and holds the budgets
against that. Providers whose tokens expire (Cloud Run's live an hour) are asked for new ones; a fleet whose
replicas can be addressed one by one is asked where they are. A loop of its own,
`python -m tuna_nb.deployments.keeping.keeper DEPLOYMENT_ID`: it outlives the notebook, has the user's
credentials, which the router must not have, and ends with the deployment. It goes by wall time and looks often,
so that a laptop that slept catches up as it wakes; while it sleeps, the router goes by what it knows, and past
that by the fleet's balancer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from tuna_nb.backends.base import Auth, State, Status
from tuna_nb.costs.account import Zone, own_zone
from tuna_nb.deployments.keeping.enforce import CLOSING_S, Enforcer
from tuna_nb.deployments.keeping.watch import CHARGES_EVERY_S, charges, look, resource_ref
from tuna_nb.deployments.plan import ROUTER, SPOT, price_now
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import StoreError, TunaError
from tuna_nb.records import DeploymentRecord, ResourceRecord
from tuna_nb.settings import Settings

LOOK_S: Final = 10.0
RETRY_S: Final = 30.0
LAST_WORD_S: Final = 3.0
"""How long messages are waited for when somebody else ends this process."""
REST: Final = 3.0
"""Times as long as a status took to tell, it is left alone: SkyPilot's takes seconds of a processor."""
LONGEST_REST_S: Final = 60.0
MARGIN: Final = 0.2
"""Of a token's life: renewed when so much of it is left."""

_log = logging.getLogger("tuna_nb.keeper")


class Keeper:
    """One deployment's. `wall` is Unix time, `zone` the user's own; a test holds them."""

    def __init__(
        self,
        workspace: Workspace,
        deployment_id: str,
        wall: Callable[[], float] = time.time,
        zone: Zone = own_zone,
    ) -> None:
        self._workspace = workspace
        self._id = deployment_id
        self._wall = wall
        self._zone = zone
        self._enforcer: Enforcer | None = None
        self._due: dict[str, float | None] = {}
        """By role: when to renew; None for headers that never expire."""
        self._addressed = False
        """Whether the spot side has told where its replicas are."""
        self._look_at = 0.0
        self._charges_at: dict[int, float] = {}
        """By resource: when its provider's account is to be read."""

    async def run(self, look_s: float = LOOK_S) -> None:
        """Look until the deployment is gone."""
        try:
            while await self.look():
                await asyncio.sleep(look_s * random.uniform(0.8, 1.2))
            await self.close()
        finally:
            await self.close(LAST_WORD_S)

    async def close(self, within_s: float = CLOSING_S) -> None:
        """Wait so long for messages that are on their way."""
        if self._enforcer is not None:
            await self._enforcer.close(within_s)

    async def look(self) -> bool:
        """See what is up and what it costs, hold the budgets against it, renew what is due, tell the router of the
        replicas.

        False once the deployment is gone, or is being taken down by somebody else.
        """
        if not self._workspace.settings.data_dir.exists():
            return False  # the records were thrown away: nobody could ever end this process
        try:
            record = self._record()
            if record is None:
                return False
            if self._enforcer is None:
                self._enforcer = Enforcer(self._workspace, self._wall, self._zone)
            if record.state == "destroying" and not self._enforcer.has_to_destroy(record.id):
                return False
            resources = self._workspace.store.resources(record.id)
            if self._wall() >= self._look_at:
                await self._see(record, resources)
                record = self._record()
                if record is None:
                    return False  # a budget has ended it
            if record.state != "destroying":
                await self._serve(record, resources)
        except StoreError as e:
            _log.warning("the records can't be used: %s", e.message)
            # Should they be moved away and begun anew, the next look must see the new ones.
            self._workspace.close()
        return True

    async def _see(self, record: DeploymentRecord, resources: list[ResourceRecord]) -> None:
        seen = await look(self._workspace, record, self._wall)
        for who, why in seen.trouble:
            _log.warning("%s can't be asked: %s", who, why)
        self._look_at = self._wall() + min(REST * max(0.0, seen.took_s), LONGEST_REST_S)
        for resource in resources:
            if resource.role == SPOT and resource.id in seen.statuses:
                await self._tell_replicas(record, resources, resource, seen.statuses[resource.id])
            if resource.role != ROUTER and resource.state == "created":
                await self._read_account(record, resource)
        if self._enforcer is not None:
            await self._enforcer.check(record, seen.statuses)

    async def _read_account(self, record: DeploymentRecord, resource: ResourceRecord) -> None:
        """Once an hour: what it costs from now on, and what its provider's own account says."""
        now = self._wall()
        if now < self._charges_at.setdefault(resource.id, now + CHARGES_EVERY_S):
            return
        self._charges_at[resource.id] = now + CHARGES_EVERY_S
        try:
            request = DeployRequest.from_json(record.request)
            price = await price_now(self._workspace, request, record.id, resource.role)
            if price != resource.price_per_hour_usd and price is not None:
                self._workspace.store.update_resource(resource.id, price_per_hour_usd=price)
                self._workspace.store.add_event(
                    record.id, f"{resource.role} costs ${price:.4f} per hour from now on"
                )
        except TunaError as e:
            _log.info("%s: no price was read: %s", resource.role, e.message)
        try:
            await charges(self._workspace, resource, now)
        except TunaError as e:
            _log.info("%s: no account was read: %s", resource.role, e.message)

    async def _serve(self, record: DeploymentRecord, resources: list[ResourceRecord]) -> None:
        router = next((r for r in resources if r.role == ROUTER), None)
        if router is None or router.state != "created":
            return
        for side in resources:
            due = self._due.get(side.role, 0.0)
            if side.role != ROUTER and side.state == "created" and due is not None and self._wall() >= due:
                await self._renew(record, router, side)

    async def _renew(self, record: DeploymentRecord, router: ResourceRecord, side: ResourceRecord) -> None:
        try:
            auth = await self._workspace.backend(side.provider).auth(resource_ref(side))
            url = await self._workspace.router_host(router.provider).url(record.id)
            if url is None:
                # Deploying the same name again starts it, with fresh headers.
                self._due[side.role] = self._wall() + RETRY_S
                return
            client = RouterClient(url, self._workspace.secrets.get(record.id, "admin_key"))
            await client.put_headers(side.role, auth.headers)
        except TunaError as e:
            _log.warning("%s: not renewed, trying again in %g s: %s", side.role, RETRY_S, e.message)
            self._due[side.role] = self._wall() + RETRY_S
            return
        self._due[side.role] = renew_at(auth, self._wall())
        _log.info("%s: renewed", side.role)

    async def _tell_replicas(
        self, record: DeploymentRecord, resources: list[ResourceRecord], side: ResourceRecord, status: Status
    ) -> None:
        """Where a fleet's replicas answer, if they can be addressed one by one."""
        router = next((r for r in resources if r.role == ROUTER and r.state == "created"), None)
        serving = [r for r in status.replicas if r.state is State.READY]
        self._addressed = self._addressed or any(r.url is not None for r in serving)
        if router is None or not self._addressed:
            return
        try:
            url = await self._workspace.router_host(router.provider).url(record.id)
            if url is None:
                return  # deploying the same name again starts it
            client = RouterClient(url, self._workspace.secrets.get(record.id, "admin_key"))
            await client.put_replicas(
                side.role, {r.id: (r.url, r.notice_url) for r in serving if r.url is not None}
            )
        except TunaError as e:
            _log.warning("%s: the router was not told of the replicas: %s", side.role, e.message)

    def _record(self) -> DeploymentRecord | None:
        records = self._workspace.store.deployments()
        return next((r for r in records if r.id == self._id and r.destroyed_at is None), None)


def renew_at(auth: Auth, now: float) -> float | None:
    """When headers that were got `now` must be renewed (Unix seconds); None for those that never expire."""
    return None if auth.expires_at is None else auth.expires_at - MARGIN * max(0.0, auth.expires_at - now)


def main() -> int:
    """Run until the deployment named on the command line is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_until_told(Keeper(Workspace(Settings.load()), sys.argv[1])))
    return 0


async def _until_told(keeper: Keeper) -> None:
    """Run it; who ends this process gets a clean end, with the last messages sent."""
    task = asyncio.ensure_future(keeper.run())
    with contextlib.suppress(NotImplementedError):  # not where signals can't be handled
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    sys.exit(main())
