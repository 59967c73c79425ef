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
from tuna_nb.settings import Settings

PROCESS, VM, CONTROLLER, URL = "process", "vm", "controller", "url"
HOSTS = {
    PROCESS: "process:ProcessHost",
    VM: "vm:VmHost",
    CONTROLLER: "controller:ControllerHost",
    URL: "url:UrlHost",
}
"""As in `--router-host NAME`: "module:class" of each."""


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

    async def start(
        self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool, near: str | None = None
    ) -> str:
        """Start it, or find it running, and return its URL. near: SkyPilot's name of where the spot side is
        (`aws/us-east-1`), for a host that rents a machine."""

    async def keep_renewed(self, deployment_id: str) -> None:
        """Have the headers of its backends renewed before they expire, for as long as it runs."""

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


def open_host(name: str, settings: Settings) -> RouterHost:
    """The host of that name. Raises RequestError."""
    if name not in HOSTS:
        raise RequestError(f"unknown router host {name!r}", did_you_mean(name, HOSTS))
    module, _, kind = HOSTS[name].partition(":")
    host: RouterHost = getattr(importlib.import_module(f"{__package__}.{module}"), kind)(settings)
    return host
