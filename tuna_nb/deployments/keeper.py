"""What goes on beside a router after its deploy has ended: fresh headers, and the replicas of its spot fleet.

Providers whose tokens expire (Cloud Run's live an hour) are asked for new ones; a fleet whose replicas can be
addressed one by one is asked where they are. A loop of its own, `python -m tuna_nb.deployments.keeper
DEPLOYMENT_ID`: it outlives the notebook as the router does, has the user's credentials, which the router must not
have, and ends with the deployment. It goes by wall time and looks often, so that a laptop that slept catches up as
soon as it wakes; while it sleeps, the router goes by what it knows, and past that by the fleet's balancer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable
from typing import Final

from tuna_nb.backends.base import Auth, State
from tuna_nb.deployments.destroy import resource_ref
from tuna_nb.deployments.plan import ROUTER, SPOT
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import TunaError
from tuna_nb.records import DeploymentRecord, ResourceRecord
from tuna_nb.settings import Settings

LOOK_S: Final = 10.0
RETRY_S: Final = 30.0
REST: Final = 3.0
"""Times as long as a status took to tell, it is left alone: SkyPilot's takes seconds of a processor."""
LONGEST_REST_S: Final = 60.0
MARGIN: Final = 0.2
"""Of a token's life: renewed when so much of it is left."""

_log = logging.getLogger("tuna_nb.keeper")


class Keeper:
    """One deployment's. `wall` is Unix time; a test holds it."""

    def __init__(self, workspace: Workspace, deployment_id: str, wall: Callable[[], float] = time.time) -> None:
        self._workspace = workspace
        self._id = deployment_id
        self._wall = wall
        self._due: dict[str, float | None] = {}
        """By role: when to renew; None for headers that never expire."""
        self._addressed: bool | None = None
        """Whether the spot side tells where its replicas are; None until it has told of one."""
        self._ask_at = 0.0

    async def run(self, look_s: float = LOOK_S) -> None:
        """Look until the deployment is gone, or nothing is left to do for it."""
        while await self.look():
            await asyncio.sleep(look_s * random.uniform(0.8, 1.2))

    async def look(self) -> bool:
        """Renew what is due, and tell the router of the replicas. False once nothing is left to do."""
        try:
            record = self._record()
            if record is None or record.state == "destroying":
                return False
            resources = self._workspace.store.resources(record.id)
        except TunaError as e:
            _log.warning("the records can't be read: %s", e.message)
            return True
        router = next((r for r in resources if r.role == ROUTER), None)
        sides = [r for r in resources if r.role != ROUTER and r.state == "created"]
        if router is None or router.state != "created":
            return record.state == "deploying"
        for side in sides:
            due = self._due.get(side.role, 0.0)
            if due is not None and self._wall() >= due:
                await self._renew(record, router, side)
        for side in sides:
            if side.role == SPOT and self._addressed is not False and self._wall() >= self._ask_at:
                began = self._wall()
                await self._tell_replicas(record, router, side)
                self._ask_at = self._wall() + min(REST * max(0.0, self._wall() - began), LONGEST_REST_S)
        expires = any(self._due.get(side.role, 0.0) is not None for side in sides)
        return not sides or expires or self._addressed is not False

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

    async def _tell_replicas(self, record: DeploymentRecord, router: ResourceRecord, side: ResourceRecord) -> None:
        """An error changes nothing: it is never read as "none there"."""
        try:
            status = await self._workspace.backend(side.provider).status(resource_ref(side))
            serving = [r for r in status.replicas if r.state is State.READY]
            if self._addressed is None and serving:
                self._addressed = any(r.url is not None for r in serving)
            if not self._addressed:
                return
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
    asyncio.run(Keeper(Workspace(Settings.load()), sys.argv[1]).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
