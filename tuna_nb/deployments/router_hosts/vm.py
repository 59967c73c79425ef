"""The router on a small VM of its own, rented through SkyPilot on demand: nothing takes it away or stops it."""

from __future__ import annotations

import re
from typing import Final

from tuna_nb.deployments.router_hosts.base import CLEAR, VM, Prospect
from tuna_nb.deployments.router_hosts.remote import Machine, RemoteHost

PORT: Final = 8080
_OURS: Final = re.compile(r"tuna-([0-9a-f]{10})-router")


class VmHost(RemoteHost):
    """A cluster of one small machine for each router. It costs money until it is stopped, whether the router runs
    or not."""

    name = VM
    memory_mb = 2048

    async def prospect(self, near: str | None) -> Prospect:
        if (why := await self.machines.no_cloud()) is not None:
            return Prospect(None, trouble=why, hint="`tuna check --provider aws` shows what is missing")
        return Prospect(await self.machines.price(near), (CLEAR,))

    async def machine(self, deployment_id: str, fresh: bool = False) -> Machine | None:
        return await self.machines.find(cluster_name(deployment_id), fresh)

    async def prepared(self, deployment_id: str, port: int | None, near: str | None, mend: bool = False) -> Machine:
        return await self.machines.launch(cluster_name(deployment_id), deployment_id, port or PORT, near, mend)

    def ports(self, wanted: int | None) -> list[int]:
        return [wanted or PORT]

    async def opened(self, machine: Machine, port: int) -> None:
        """Nothing: it was launched with the port open."""

    async def removed(self, deployment_id: str) -> None:
        await self.machines.down(cluster_name(deployment_id))

    async def list_owned(self) -> list[str]:
        ours = (_OURS.fullmatch(name) for name in await self.machines.names())
        return sorted(found[1] for found in ours if found)


def cluster_name(deployment_id: str) -> str:
    """Made of the deployment's id alone, so that it can be found by that."""
    return f"tuna-{deployment_id}-router"
