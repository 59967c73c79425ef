"""What every verb works on: settings, records, keys and providers, each opened when first needed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend
from tuna_nb.secrets import Secrets
from tuna_nb.settings import Settings

if TYPE_CHECKING:
    from tuna_nb.deployments.router_hosts.base import RouterHost
    from tuna_nb.store import Store


class Workspace:
    """One user's Tuna. Cheap to make; the store is opened and a backend imported on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.secrets = Secrets(settings)
        self._backends: dict[str, Backend] = {}
        self._router_hosts: dict[str, RouterHost] = {}

    @cached_property
    def store(self) -> Store:
        from tuna_nb.store import Store

        return Store(self.settings)

    def has_records(self) -> bool:
        """False where no store was ever made here; without making one."""
        scheme, _, path = self.settings.database_url.partition(":///")
        return scheme != "sqlite" or Path(path).exists()

    def backend(self, name: str) -> Backend:
        """Raises RequestError for a name nobody registered, BackendError where its package is missing."""
        if name not in self._backends:
            self._backends[name] = registry.get(name)
        return self._backends[name]

    def router_host(self, name: str = "process") -> RouterHost:
        """Where a deployment's router runs. Raises RequestError for an unknown host."""
        from tuna_nb.deployments.router_hosts.base import open_host

        if name not in self._router_hosts:
            self._router_hosts[name] = open_host(name, self.settings)
        return self._router_hosts[name]

    def close(self) -> None:
        if "store" in self.__dict__:
            self.store.close()
            del self.__dict__["store"]
