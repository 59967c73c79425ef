"""The router on SkyServe's controller, beside the balancer: no machine of its own to pay for.

The controller is SkyPilot's, which takes no tasks of others on it: ssh is the only way in. It opens twenty ports
for balancers, numbered from below; the router takes the highest free one, so that no firewall need be changed. It
stops ten minutes after its last service is gone, and with it the router; started again, it has another address,
which is read anew each time.
"""

from __future__ import annotations

from typing import Final

from tuna_nb.deployments.router_hosts.base import CLEAR, CONTROLLER, Prospect
from tuna_nb.deployments.router_hosts.remote import Machine, RemoteHost
from tuna_nb.errors import RouterError

OPEN_PORTS: Final = range(30020, 30010, -1)
"""Of the 30001 to 30020 that SkyServe 0.14 opens, those that more than ten services would come to."""

NOTE: Final = (
    "the router runs on SkyServe's controller, which stops ten minutes after its last "
    "service is gone, and the router with it; --use-different-vm-for-lb gives it a VM of its own, --router-host "
    "process runs it here"
)


class ControllerHost(RemoteHost):
    """Routers on the controller of the user's SkyPilot."""

    name = CONTROLLER
    beside_spot = True
    memory_mb = 768
    """A controller of 8 GB is mostly full of its own."""

    async def prospect(self, near: str | None) -> Prospect:
        trouble = await self.machines.no_controller()
        return Prospect(0.0, (NOTE, CLEAR), trouble, "--use-different-vm-for-lb gives it a VM of its own")

    async def machine(self, deployment_id: str, fresh: bool = False) -> Machine | None:
        return await self.machines.controller(fresh)

    async def prepared(self, deployment_id: str, port: int | None, near: str | None, mend: bool = False) -> Machine:
        machine = await self.machines.controller(fresh=True)
        if machine is None:
            raise RouterError(
                "SkyServe has no controller VM that runs now",
                "--use-different-vm-for-lb runs the router on a VM of its own, --router-host process here",
            )
        return machine

    def ports(self, wanted: int | None) -> list[int]:
        return list(OPEN_PORTS) if wanted is None else [wanted]

    async def opened(self, machine: Machine, port: int) -> None:
        if port not in OPEN_PORTS:
            await self.machines.open_port(machine.name, port)

    async def removed(self, deployment_id: str) -> None:
        """Nothing: the machine is not ours."""
