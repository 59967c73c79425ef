"""`destroy`: one deployment, all of them, or what nobody owns."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import replace

from tuna_nb.backends import registry
from tuna_nb.commands.context import Context
from tuna_nb.deployments import reconcile
from tuna_nb.deployments.destroy import Removed
from tuna_nb.deployments.destroy import destroy as take_down
from tuna_nb.deployments.keeping import companion
from tuna_nb.deployments.tracking import take_over, tracked
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import BackendError, TunaError
from tuna_nb.jobs import Report, Work


async def destroy(options: Namespace, context: Context) -> Work | Removed:
    """A name that is destroyed already is fine; a name that never was is an error."""
    workspace = context.workspace

    async def cleanup(destroying: Awaitable[Removed], report: Report) -> Removed:
        removed = await destroying
        providers = [*_set_up(workspace)] if options.shared else ["azure"] if options.azure_cleanup_env else []
        shared: list[str] = []
        for number, name in enumerate(providers):
            report.step(f"removing what {name} keeps between deployments", 0.9 + 0.1 * number / len(providers))
            shared += await workspace.backend(name).remove_shared()
        return replace(removed, names=(*removed.names, *shared))

    if options.service_name:
        record = workspace.store.deployment(options.service_name)
        if record.destroyed_at is not None:
            return Removed((), f"{record.name} was already {record.state}")
        name = record.name
        return Work(name, "destroy", lambda report: cleanup(_one(workspace, name, report), report))
    if options.all:
        return Work("all-deployments", "destroy", lambda report: cleanup(_all(workspace, report), report))
    return Work("orphans", "destroy", lambda report: cleanup(_orphans(workspace, report, only_ours=False), report))


def _set_up(workspace: Workspace) -> Iterator[str]:
    """The providers that can be asked here."""
    for name in registry.names():
        try:
            if workspace.backend(name).configured():
                yield name
        except BackendError:
            continue  # it can't be loaded: nothing was ever made with it here


async def _one(workspace: Workspace, name: str, report: Report) -> Removed:
    await take_over(workspace, name, report)

    async def body(inner: Report) -> Removed:
        record = workspace.store.live_deployment(name)
        if record is not None:
            await take_down(workspace, record, inner)
        return Removed((name,))

    return await tracked(workspace, name, "destroy", report, body)


async def _all(workspace: Workspace, report: Report) -> Removed:
    """Every deployment, then whatever of theirs a crash left at a provider."""
    names = [r.name for r in workspace.store.deployments() if r.destroyed_at is None]
    failed: list[TunaError] = []
    removed: list[str] = []
    for number, name in enumerate(names):
        report.step(f"destroying {name}", number / (len(names) + 1))
        try:
            removed += (await _one(workspace, name, report)).names
        except TunaError as e:
            report.note(f"{name}: {e.message}")
            failed.append(e)
    removed += (await _orphans(workspace, report, only_ours=True, failed=failed)).names
    if failed:
        raise _combined(failed)
    return Removed(tuple(removed))


async def _orphans(
    workspace: Workspace, report: Report, *, only_ours: bool, failed: list[TunaError] | None = None
) -> Removed:
    report.step("looking for what nobody owns", 0.9)
    errors: list[TunaError] = []
    living = {r.id for r in workspace.store.deployments() if r.destroyed_at is None}
    for lost in await asyncio.to_thread(companion.end_strays, workspace.settings, living):
        report.note(f"the process that looked after {lost}, which is in no record, is ended")
    found = await reconcile.orphans(workspace)
    errors += [BackendError(f"{provider} could not be asked: {why}") for provider, why in found.unasked]
    removed: list[str] = []
    for orphan in found.found:
        if only_ours and not orphan.ours:
            continue
        try:
            await reconcile.remove(workspace, orphan, report)
        except TunaError as e:
            errors.append(e)
        else:
            removed.append(orphan.name)
    if failed is not None:
        failed += errors
    elif errors:
        raise _combined(errors)
    return Removed(tuple(removed))


def _combined(failed: Sequence[TunaError]) -> TunaError:
    first = failed[0]
    if len(failed) == 1:
        return first
    return TunaError(
        f"{first.message} (and {len(failed) - 1} more failed)", first.hint or "`tuna list` shows the rest"
    )
