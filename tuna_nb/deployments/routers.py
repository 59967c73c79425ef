"""A deployment's router by itself: what it is and where, another process in its place, another place."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from tuna_nb.deployments.plan import ROUTER, near, serves_only_here
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.router_choice import require_reach
from tuna_nb.deployments.router_hosts import wheel
from tuna_nb.deployments.router_hosts.base import ALSO, CLEAR, PROCESS, RouterHost, RouterState, hosts_of
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import NotFoundError, RequestError, RouterError
from tuna_nb.jobs import Report
from tuna_nb.records import DeploymentRecord, ResourceRecord


@dataclass(frozen=True, slots=True)
class RouterReport:
    """A router as it is, beside the tuna-router of this machine. notes: what its reader should know or do."""

    name: str
    state: RouterState
    version_here: str
    build_here: str
    notes: tuple[str, ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether it runs what is installed here; True where its host can't tell."""
        return not self.state.build or self.state.build == self.build_here


async def report_of(workspace: Workspace, record: DeploymentRecord, *notes: str) -> RouterReport:
    """Raises NotFoundError where the deployment has no router, RouterError where its host can't be asked."""
    resource = _resource(workspace, record)
    state = await workspace.router_host(resource.provider).state(record.id)
    here = await asyncio.to_thread(wheel.make)
    report = RouterReport(record.name, state, here.version, here.build)
    said = list(notes)
    if state.url is None:
        said.append("it does not run; deploying the same name again starts it")
    elif not report.is_current:
        said.append(f"another build than the one here: `tuna router upgrade --service-name {record.name}`")
    if state.url is not None and state.tunnel is not None:
        said += [CLEAR, f"tunnel: {state.tunnel}"]
    if state.url is not None and record.endpoint_url not in (None, state.url):
        said.append(f"its address is another one than recorded ({record.endpoint_url}): deploy the same name again")
    return replace(report, notes=tuple(said))


async def restart(workspace: Workspace, record: DeploymentRecord, report: Report, *, upgrade: bool) -> RouterReport:
    """Another process in its place; with `upgrade`, the tuna-router that is installed here."""
    resource = _resource(workspace, record)
    host = workspace.router_host(resource.provider)
    report.step("installing" if upgrade else "restarting", 0.2)
    url = await (host.upgrade(record.id) if upgrade else host.restart(record.id))
    _moved_to(workspace, record, resource, url)
    workspace.store.add_event(record.id, "router upgraded" if upgrade else "router restarted")
    lost = resource.provider == PROCESS
    note = "requests of about a second were refused meanwhile" if lost else "running requests go on in the old one"
    return await report_of(workspace, workspace.store.deployment(record.name), note)


async def move(workspace: Workspace, record: DeploymentRecord, to: str, report: Report) -> RouterReport:
    """The same configuration and keys on another host, at another address; then the old one ends.

    Both run for a moment. Raises RequestError where it is there already or can't be there.
    """
    resource = _resource(workspace, record)
    if to == resource.provider:
        raise RequestError(f"the router of {record.name} is on {to} already", "`tuna router status` shows it")
    old, new = workspace.router_host(resource.provider), workspace.router_host(to)
    request = DeployRequest.from_json(record.request)
    prospect = await new.prospect(near(request))
    if prospect.trouble is not None:
        raise RequestError(f"no router can run on {to}: {prospect.trouble}", prospect.hint)
    require_reach(new, only_here=serves_only_here(workspace, request, record.id))
    config = await old.config(record.id)
    store = workspace.store
    for also in hosts_of(resource)[1:]:
        if also != to:  # the one that served while this one's machine came up, say
            await workspace.router_host(also).stop(record.id)
    # From here on a destroy looks at both places.
    store.update_resource(resource.id, provider_id=ALSO + to)
    report.step(f"starting a router on {to}", 0.2)
    url = await new.start(record.id, _fitting(config, new), None, request.public, near(request))
    store.update_resource(
        resource.id,
        provider=to,
        provider_id=ALSO + resource.provider,
        url=url,
        price_per_hour_usd=prospect.price_per_hour_usd,
    )
    store.update_deployment(record.id, endpoint_url=url, request=replace(request, router_host=to).to_json())
    store.add_event(record.id, f"router moved from {resource.provider} to {to}: {url}")
    report.step(f"the one on {resource.provider} finishes what runs", 0.7)
    await old.stop(record.id)
    store.update_resource(resource.id, provider_id=record.id)
    report.fact("endpoint", f"{url}/v1")
    return await report_of(workspace, store.deployment(record.name), f"clients must be told the address: {url}/v1")


def _fitting(config: dict[str, Any], host: RouterHost) -> dict[str, Any]:
    """Without what only the machine of the spot side reaches, elsewhere."""
    if host.beside_spot:
        return config
    return config | {"backends": [b | {"sync_url": None} for b in config.get("backends", [])]}


def _moved_to(workspace: Workspace, record: DeploymentRecord, resource: ResourceRecord, url: str) -> None:
    if resource.url != url:
        workspace.store.update_resource(resource.id, url=url)
    if record.endpoint_url != url:
        workspace.store.update_deployment(record.id, endpoint_url=url)


def _resource(workspace: Workspace, record: DeploymentRecord) -> ResourceRecord:
    found = next((r for r in workspace.store.resources(record.id) if r.role == ROUTER), None)
    if found is None or record.destroyed_at is not None:
        raise NotFoundError(
            f"{record.name} has no router", f"`tuna status --service-name {record.name}` says what it has"
        )
    if found.state in ("planned", "gone"):
        raise RouterError(
            f"the router of {record.name} is {found.state}", "deploying the same name again starts it"
        )
    return found
