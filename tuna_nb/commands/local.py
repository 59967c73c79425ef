"""`local`: what only this machine's own cloud has: taking a GPU away on command, and its own bill."""

from __future__ import annotations

import time
from argparse import Namespace

from tuna_nb.backends.base import Kind
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.backends.local.bill import BilledInterval
from tuna_nb.commands.context import Context
from tuna_nb.costs.bill import Bill, Side
from tuna_nb.deployments.plan import SPOT
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError
from tuna_nb.records import DeploymentRecord, ResourceRecord


async def local(options: Namespace, context: Context) -> str | Bill:
    workspace = context.workspace
    if options.action == "preempt":
        if options.notice is not None and options.notice < 0:
            raise RequestError(f"--notice is {options.notice:g}", "seconds, 0 for none")
        replica = await preempt(workspace, options.service_name, options.notice, options.replica)
        notice = "with its usual notice" if options.notice is None else f"with {options.notice:g} s of notice"
        return f"{options.service_name}: spot replica {replica} is being taken away {notice}"
    return await own_bill(workspace, options.service_name)


async def preempt(workspace: Workspace, service_name: str, notice_s: float | None, replica: str | None) -> str:
    """Take a spot replica away; returns its id. Raises RequestError where there is no local spot side."""
    record = workspace.store.deployment(service_name)
    replica_id = await backend(workspace).cloud.preempt(spot_side(workspace, record).name, notice_s, replica)
    workspace.store.add_event(record.id, f"preemption of spot replica {replica_id} ordered")
    return replica_id


def spot_side(workspace: Workspace, record: DeploymentRecord) -> ResourceRecord:
    """What can be preempted to order. Raises RequestError where there is no local spot side."""
    spot = next((r for r in workspace.store.resources(record.id) if r.role == SPOT), None)
    if spot is None or spot.provider != LocalBackend.name:
        raise RequestError(
            f"{record.name} has no spot side on the local cloud", "only the local cloud preempts to order"
        )
    return spot


async def own_bill(workspace: Workspace, service_name: str | None) -> Bill:
    """The cloud's own account, kept apart from everything Tuna computes."""
    names = None
    if service_name is not None:
        record = workspace.store.deployment(service_name)
        names = {r.name for r in workspace.store.resources(record.id)}
    told = (await backend(workspace).cloud.bill()).intervals
    intervals = [i for i in told if names is None or i.resource in names]
    sides = tuple(
        _side(kind.value, [i for i in intervals if i.kind is kind])
        for kind in (Kind.SERVERLESS, Kind.SPOT)
        if any(i.kind is kind for i in intervals)
    )
    return Bill(
        service_name or "the local cloud",
        sides,
        usd=sum(side.usd for side in sides),
        rate_usd_per_hour=sum(side.rate_usd_per_hour or 0.0 for side in sides),
        requests=None,
        prompt_tokens=None,
        completion_tokens=None,
        since=min((i.started_at for i in intervals), default=0.0),
        until=time.time(),
    )


def _side(role: str, intervals: list[BilledInterval]) -> Side:
    running = [i for i in intervals if i.ended_at is None]
    return Side(
        role,
        LocalBackend.name,
        replicas=len({i.replica for i in intervals}),
        running=len(running),
        hours=sum(i.billed_s for i in intervals) / 3600,
        usd=sum(i.usd for i in intervals),
        rate_usd_per_hour=sum(i.price_per_hour_usd for i in running),
        basis="provider-reported",
    )


def backend(workspace: Workspace) -> LocalBackend:
    found = workspace.backend(LocalBackend.name)
    if not isinstance(found, LocalBackend):
        raise RequestError("another package has taken the backend name 'local'", "uninstall it")
    return found
