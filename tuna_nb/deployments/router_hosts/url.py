"""A router that somebody else runs, wherever: it is given a deployment's backends and keys, and they are taken from
it again.

Its own admin key comes from the environment, never from a command line, and is stored nowhere. It must serve
nothing else: a deployment's backends are all that its router has.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from tuna_nb.backends.base import LogLine
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.router_hosts.base import CLEAR, Prospect, RouterState
from tuna_nb.errors import RouterError
from tuna_nb.settings import Settings

ADMIN_KEY: Final = "TUNA_ROUTER_ADMIN_KEY"
_KEYS: Final = ("api_key_sha256", "admin_key_sha256")


class UrlHost:
    """The router at `url`; which also is this host's name in the records."""

    beside_spot = False
    elsewhere = False
    takes_minutes = False

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self.name = url.rstrip("/")

    async def prospect(self, near: str | None) -> Prospect:
        notes = () if self.name.startswith("https:") else (CLEAR.partition(";")[0],)
        if not os.environ.get(ADMIN_KEY):
            return Prospect(0.0, notes, f"{ADMIN_KEY} is not set", f"export {ADMIN_KEY}=<the router's admin key>")
        return Prospect(0.0, notes)

    async def start(
        self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool, near: str | None = None
    ) -> str:
        """Raises RouterError where it serves something else, or its door can't be set as asked."""
        if public:
            raise RouterError(f"--public can't be set at {self.name}", "keep the key, or start it with --no-auth")
        client = self._client()
        there = await client.config()
        ours = set(config["admin_key_sha256"]) & set(there["admin_key_sha256"])
        if there["backends"] and not ours:
            names = ", ".join(b["name"] for b in there["backends"])
            raise RouterError(f"the router at {self.name} serves something else: {names}", "give it one of its own")
        note = self._note(deployment_id)
        self._settings.data_folder(note.parent.name)
        # Written first, so that a crash leaves nothing there that is not known here.
        note.write_text(json.dumps({"url": self.name, **{key: list(config[key]) for key in _KEYS}}))
        keys = {key: list(dict.fromkeys([*there[key], *config[key]])) for key in _KEYS}
        await client.configure({"backends": config["backends"], **keys})
        return self.name

    async def url(self, deployment_id: str) -> str | None:
        return (await self.state(deployment_id)).url

    async def state(self, deployment_id: str) -> RouterState:
        if not self._note(deployment_id).exists():
            return RouterState(self.name, None)
        health = await RouterClient(self.name, None).health()
        return RouterState(self.name, self.name, str(health.get("version", "")), supervised="whoever runs it")

    async def config(self, deployment_id: str) -> dict[str, Any]:
        raise RouterError(f"the router at {self.name} shows no headers", "destroy the deployment, deploy it anew")

    async def restart(self, deployment_id: str) -> str:
        raise self._not_ours("restart")

    async def upgrade(self, deployment_id: str) -> str:
        raise self._not_ours("upgrade")

    async def stop(self, deployment_id: str) -> None:
        note = self._note(deployment_id)
        try:
            given = json.loads(note.read_text())
        except FileNotFoundError:
            return
        client = self._client()
        there = await client.config()
        if set(given["admin_key_sha256"]) & set(there["admin_key_sha256"]):
            left = {key: [k for k in there[key] if k not in given[key]] for key in _KEYS}
            await client.configure({"backends": [], **left})
        note.unlink()

    async def logs(
        self, deployment_id: str, since: float | None = None, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        """None: they are where it runs."""
        nothing: tuple[LogLine, ...] = ()
        for line in nothing:
            yield line

    async def list_owned(self) -> list[str]:
        folder = self._settings.data_dir / "url_routers"
        notes = folder.glob("*.json") if folder.is_dir() else ()
        return sorted(path.stem for path in notes if json.loads(path.read_text())["url"] == self.name)

    def _note(self, deployment_id: str) -> Path:
        return self._settings.data_dir / "url_routers" / f"{deployment_id}.json"

    def _client(self) -> RouterClient:
        key = os.environ.get(ADMIN_KEY)
        if not key:
            raise RouterError(f"{ADMIN_KEY} is not set", f"export {ADMIN_KEY}=<the admin key of {self.name}>")
        return RouterClient(self.name, key)

    def _not_ours(self, what: str) -> RouterError:
        return RouterError(f"the router at {self.name} is run by somebody else", f"{what} it where it runs")
