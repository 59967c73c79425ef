"""Where the router goes, when the user names no place, and what is to be known of that place."""

from __future__ import annotations

from tuna_nb.backends.base import Backend
from tuna_nb.deployments.router_hosts.base import CONTROLLER, PROCESS, VM, Prospect, RouterHost
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError


async def choose_host(
    workspace: Workspace, asked: str | None, spot: Backend, near: str | None, *, only_here: bool
) -> tuple[str, Prospect]:
    """The host's name and what it promises.

    This machine, where the spot side keeps no machine of its own; else that machine, which costs nothing more and
    goes on when this one sleeps; else, where there is none, a small VM. only_here: the serverless side is reached
    from this machine alone, and so must the router be on it. Raises RequestError where the place that was asked for
    can't have a router.
    """
    if asked is not None:
        host = workspace.router_host(asked)
        prospect = await host.prospect(near)
        if prospect.trouble is not None:
            raise RequestError(f"no router can run on {asked!r}: {prospect.trouble}", prospect.hint)
        require_reach(host, only_here=only_here)
        return asked, prospect
    if only_here or not spot.controller:
        return PROCESS, await workspace.router_host(PROCESS).prospect(near)
    beside = await workspace.router_host(CONTROLLER).prospect(near)
    if beside.trouble is None:
        return CONTROLLER, beside
    own = await workspace.router_host(VM).prospect(near)
    why = f"the router gets a VM of its own, since {beside.trouble}; --router-host process runs it here instead"
    return VM, Prospect(own.price_per_hour_usd, (why, *own.notes))


def require_reach(host: RouterHost, *, only_here: bool) -> None:
    """Raises RequestError where a router on the host would not reach its serverless side."""
    if only_here and host.elsewhere:
        raise RequestError(
            f"no router can run on {host.name!r}: the serverless side is reached from this machine alone",
            "--router-host process, a serverless provider in a cloud, or --option listen=<this machine's address>",
        )
