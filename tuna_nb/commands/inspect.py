"""`status`, `list`, `logs`: looking. All that they change is that whoever looks after a deployment is back."""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import AsyncIterator
from typing import Any

from tuna_nb.backends.base import LogLine
from tuna_nb.commands.context import Context
from tuna_nb.commands.live import board_of
from tuna_nb.costs import meter
from tuna_nb.deployments import reconcile
from tuna_nb.deployments.board import Board
from tuna_nb.deployments.keeping import companion
from tuna_nb.deployments.keeping.watch import resource_ref
from tuna_nb.deployments.plan import ROUTER
from tuna_nb.deployments.status import DeploymentStatus, Fleet, LogStream
from tuna_nb.deployments.status import status as status_of
from tuna_nb.errors import TunaError
from tuna_nb.records import ACTIVE


async def status(options: Namespace, context: Context) -> DeploymentStatus | Board:
    """What is really there; with --live a board, which goes on telling it."""
    workspace = context.workspace
    if options.live:
        return board_of(workspace.settings, options.service_name)
    record = workspace.store.deployment(options.service_name)
    await companion.revive(workspace.settings, [record])
    return await status_of(workspace, record)


async def list_(options: Namespace, context: Context) -> Fleet:
    """Deployments as they are, and anything at a provider that none of them owns."""
    workspace = context.workspace
    if options.status in ("destroyed", "failed"):
        records = workspace.store.deployments([options.status])
        return Fleet(tuple(await asyncio.gather(*(status_of(workspace, r) for r in records))))
    records = [r for r in workspace.store.deployments(ACTIVE) if r.destroyed_at is None]
    await companion.revive(workspace.settings, records)
    rows = await asyncio.gather(*(status_of(workspace, r) for r in records))
    found = await reconcile.orphans(workspace)
    return Fleet(
        tuple(rows),
        tuple((o.provider, o.role, o.name) for o in found.found),
        found.unasked,
        meter.reading(workspace.settings),
    )


async def logs(options: Namespace, context: Context) -> LogStream:
    workspace = context.workspace
    record = workspace.store.deployment(options.service_name)
    since = None if options.since is None else time.time() - options.since
    streams: list[tuple[str, AsyncIterator[LogLine]]] = []
    for resource in workspace.store.resources(record.id):
        if options.role not in (None, resource.role) or resource.state == "planned":
            continue
        if resource.role == ROUTER:
            streams.append(
                (ROUTER, workspace.router_host(resource.provider).logs(record.id, since, options.follow))
            )
        else:
            backend = workspace.backend(resource.provider)
            streams.append((resource.role, backend.logs(resource_ref(resource), since, options.follow)))
    return LogStream(_merge(streams, options.follow))


async def _merge(
    streams: list[tuple[str, AsyncIterator[LogLine]]], follow: bool
) -> AsyncIterator[tuple[str, LogLine]]:
    """In order of time, or as they come when following."""
    if not follow:
        lines = [(role, line) for role, stream in streams async for line in stream]
        for found in sorted(lines, key=lambda one: one[1].at):
            yield found
        return
    queue: asyncio.Queue[Any] = asyncio.Queue(1000)

    async def pump(role: str, stream: AsyncIterator[LogLine]) -> None:
        try:
            async for line in stream:
                await queue.put((role, line))
        except TunaError as e:
            await queue.put(e)

    pumps = [asyncio.create_task(pump(*s)) for s in streams]
    try:
        while pumps:
            item = await queue.get()
            if isinstance(item, TunaError):
                raise item
            yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
