"""`local`: what only this machine's own cloud has: taking a GPU away on command, and its own bill."""

from __future__ import annotations

from argparse import Namespace

from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.commands.context import Context
from tuna_nb.costs.bill import Bill, BilledTime, make
from tuna_nb.deployments.plan import SPOT
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError


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
    spot = next((r for r in workspace.store.resources(record.id) if r.role == SPOT), None)
    if spot is None or spot.provider != LocalBackend.name:
        raise RequestError(
            f"{service_name} has no spot side on the local cloud", "only the local cloud preempts to order"
        )
    replica_id = await backend(workspace).cloud.preempt(spot.name, notice_s, replica)
    workspace.store.add_event(record.id, f"preemption of spot replica {replica_id} ordered")
    return replica_id


async def own_bill(workspace: Workspace, service_name: str | None) -> Bill:
    """The cloud's own account, kept apart from everything Tuna computes."""
    import time

    names = None
    if service_name is not None:
        record = workspace.store.deployment(service_name)
        names = {r.name for r in workspace.store.resources(record.id)}
    intervals = (await backend(workspace).cloud.bill()).intervals
    billed = [
        BilledTime(
            i.kind.value, "local", i.replica, i.started_at, i.ended_at, i.price_per_hour_usd, i.granularity_s
        )
        for i in intervals
        if names is None or i.resource in names
    ]
    return make(service_name or "the local cloud", billed, None, time.time())


def backend(workspace: Workspace) -> LocalBackend:
    found = workspace.backend(LocalBackend.name)
    if not isinstance(found, LocalBackend):
        raise RequestError("another package has taken the backend name 'local'", "uninstall it")
    return found
