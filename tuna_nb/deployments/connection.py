"""How a client reaches a deployment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuna_nb.deployments.keeping.watch import resource_ref
from tuna_nb.deployments.plan import ROUTER, SERVERLESS
from tuna_nb.deployments.tracking import POLL_S, live_job
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import NotFoundError, TunaError
from tuna_nb.records import DeploymentRecord

if TYPE_CHECKING:
    import openai


@dataclass(frozen=True, slots=True)
class Connection:
    """base_url: with `/v1`. headers: what opens it; left out of `repr`, so that no output ever shows a key."""

    name: str
    model: str
    base_url: str
    headers: dict[str, str] = field(repr=False)

    @property
    def api_key(self) -> str:
        """The bearer key, or a placeholder where none is needed or the provider wants other headers."""
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        return key if scheme == "Bearer" and key else "none"

    @property
    def needs_headers(self) -> bool:
        """Whether the endpoint wants more than a bearer key."""
        return bool(self._others)

    def client(self) -> openai.OpenAI:
        """A client of the `openai` package for this endpoint."""
        import openai

        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key, default_headers=self._others)

    @property
    def _others(self) -> dict[str, str]:
        bearer = f"Bearer {self.api_key}"
        return {k: v for k, v in self.headers.items() if (k, v) != ("Authorization", bearer)}


async def await_endpoint(workspace: Workspace, name: str) -> DeploymentRecord:
    """The deployment, once a deploy that is under way has got its endpoint to answer, or has ended."""
    while True:
        record = workspace.store.deployment(name)
        if record.endpoint_url is not None or live_job(workspace, name) is None:
            return workspace.store.deployment(name)
        await asyncio.sleep(POLL_S)


async def connection(workspace: Workspace, record: DeploymentRecord) -> Connection:
    """Raises NotFoundError where there is no endpoint, TunaError where its key is on another machine."""
    if record.destroyed_at is not None or record.endpoint_url is None:
        raise NotFoundError(
            f"{record.name} has no endpoint ({record.state})",
            f"`tuna status --service-name {record.name}` says why",
        )
    headers: dict[str, str] = {}
    resources = {r.role: r for r in workspace.store.resources(record.id)}
    if ROUTER not in resources:
        backend = workspace.backend(resources[SERVERLESS].provider)
        headers = dict((await backend.auth(resource_ref(resources[SERVERLESS]))).headers)
    elif not record.request["public"]:
        key = workspace.secrets.get(record.id, "api_key")
        if key is None:
            raise TunaError(
                f"the key of {record.name} is not on this machine", "connect from where it was deployed"
            )
        headers = {"Authorization": f"Bearer {key}"}
    return Connection(record.name, str(record.request["model"]), f"{record.endpoint_url}/v1", headers)
