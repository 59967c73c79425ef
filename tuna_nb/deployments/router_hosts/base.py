"""What a place that runs routers can do, and which places there are.

A host finds its router by the deployment's id alone, so that a crash between starting it and recording it
loses nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from tuna_nb.backends.base import LogLine
from tuna_nb.errors import RequestError, did_you_mean
from tuna_nb.records import ResourceRecord
from tuna_nb.settings import Settings

PROCESS, VM, CONTROLLER = "process", "vm", "controller"
HOSTS = {
    PROCESS: "process:ProcessHost",
    VM: "vm:VmHost",
    CONTROLLER: "controller:ControllerHost",
}
"""As in `--router-host NAME`: "module:class" of each."""


ALSO = "also:"
"""Before the name of a second host, in a router's `provider_id`, while it moves."""
CLEAR = (
    "the router is reached by plain http: keys and texts cross the network readable; `tuna router status` shows "
    "the ssh tunnel that hides them"
)
"""Said of every router on another machine."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a router on a host would be. price_per_hour_usd: beside all else; None is unknown. notes: for the plan's
    reader. trouble: why it can't be there, with a hint."""

    price_per_hour_usd: float | None = 0.0
    notes: tuple[str, ...] = ()
    trouble: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class RouterState:
    """A router as its host sees it. url: None when it does not run.

    version, build: of the tuna-router there; build tells two of the same version apart and is empty where the host
    does not know it. supervised: what starts it again when it ends (systemd, cron, loop), empty for nothing.
    memory_bytes: resident; started_at: Unix seconds; restarts: since its supervisor began. address: of its machine.
    """

    host: str
    url: str | None
    version: str = ""
    build: str = ""
    supervised: str = ""
    pid: int | None = None
    started_at: float | None = None
    memory_bytes: int | None = None
    restarts: int | None = None
    address: str | None = None
    tunnel: str | None = None
    """The command that reaches it through ssh, where its own address is plain http over a network."""


class RouterHost(Protocol):
    """A place that runs routers, one per deployment. Everything raises RouterError where the place can't be asked:
    that is never read as "not there"."""

    name: str
    beside_spot: bool
    """It is on the machine that the spot side keeps: that one must be there first, and what it alone reaches is
    reached from here."""
    elsewhere: bool
    """On another machine, to be sure: what is reached from this one alone is out of its reach."""
    takes_minutes: bool
    """Its machine may have to come up first."""

    async def prospect(self, near: str | None) -> Prospect:
        """What a router here would cost, and what may be in its way; starts nothing."""

    async def start(
        self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool, near: str | None = None
    ) -> str:
        """Start it, or find it running, and return its URL. near: SkyPilot's name of where the spot side is
        (`aws/us-east-1`), for a host that rents a machine."""

    async def url(self, deployment_id: str) -> str | None:
        """Its URL, or None when it does not run."""

    async def state(self, deployment_id: str) -> RouterState:
        """What is known of it, running or not."""

    async def config(self, deployment_id: str) -> dict[str, Any]:
        """Its configuration as it is now, headers and all: secret, for another host's `start` only."""

    async def restart(self, deployment_id: str) -> str:
        """Another process in its place, with the same configuration; its URL."""

    async def upgrade(self, deployment_id: str) -> str:
        """The tuna-router that is installed here in its place; its URL."""

    async def stop(self, deployment_id: str) -> None:
        """End it and remove what it kept; returns when it is seen gone. Not found is success."""

    def logs(self, deployment_id: str, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        """What it has logged, oldest first, from `since` (Unix seconds) on."""

    async def list_owned(self) -> list[str]:
        """The deployment ids of every router here, running or left behind."""


def is_moving(resource: ResourceRecord) -> bool:
    """Whether a second host may have a router of it, too."""
    return (resource.provider_id or "").startswith(ALSO)


def hosts_of(resource: ResourceRecord) -> list[str]:
    """Every host that may have a router of this record: two, where a move did not come to its end."""
    known = resource.provider_id or ""
    return [resource.provider, *([known.removeprefix(ALSO)] if known.startswith(ALSO) else [])]


def open_host(name: str, settings: Settings) -> RouterHost:
    """The host of that name; a router's URL names the one that runs there. Raises RequestError."""
    if name.startswith(("http://", "https://")):
        from tuna_nb.deployments.router_hosts.url import UrlHost

        return UrlHost(settings, name)
    if name not in HOSTS:
        raise RequestError(f"unknown router host {name!r}", did_you_mean(name, HOSTS))
    module, _, kind = HOSTS[name].partition(":")
    host: RouterHost = getattr(importlib.import_module(f"{__package__}.{module}"), kind)(settings)
    return host
