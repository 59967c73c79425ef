"""`router`: a deployment's router by itself: where it is, another one in its place, another place."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable

from tuna_nb.commands import inspect
from tuna_nb.commands.context import Context
from tuna_nb.deployments import routers
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.routers import RouterReport
from tuna_nb.deployments.status import LogStream
from tuna_nb.deployments.tracking import tracked
from tuna_nb.errors import RequestError
from tuna_nb.jobs import Report, Work


async def router(options: Namespace, context: Context) -> RouterReport | LogStream | Work:
    workspace = context.workspace
    name, action = options.service_name, options.action
    record = workspace.store.deployment(name)
    if action == "status":
        return await routers.report_of(workspace, record)
    if action == "logs":
        options.role = ROUTER
        return await inspect.logs(options, context)
    if action == "move":
        if not options.yes:
            raise RequestError(
                f"moving the router of {name} gives it another address, which its clients must be told",
                "add --yes to move it",
            )
        body: Callable[[Report], Awaitable[RouterReport]] = lambda report: routers.move(  # noqa: E731
            workspace, record, options.to, report
        )
    else:
        body = lambda report: routers.restart(workspace, record, report, upgrade=action == "upgrade")  # noqa: E731
    # Seen here, before a job exists, where there is none.
    await routers.report_of(workspace, record)
    verb = f"router {action}"
    return Work(name, verb, lambda report: tracked(workspace, name, verb, report, body))
