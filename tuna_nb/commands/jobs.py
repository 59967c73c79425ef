"""`jobs` and `cancel`: long work, in whichever process it runs."""

from __future__ import annotations

from argparse import Namespace

from tuna_nb.commands.context import Context
from tuna_nb.deployments.tracking import live_job
from tuna_nb.errors import NotFoundError, did_you_mean
from tuna_nb.jobs import Job
from tuna_nb.records import JobRecord


async def jobs(options: Namespace, context: Context) -> Job | list[JobRecord]:
    """One job by name: the job itself if it is this process's own, so that it can be awaited; else its record."""
    store = context.workspace.store
    if options.name is None:
        records = store.jobs(running_only=not options.all)
        return records if options.all else [j for j in records if j.alive]
    own = context.jobs.get(options.name)
    if own is not None:
        return own
    named = store.jobs(name=options.name)
    if not named:
        raise NotFoundError(f"no job named {options.name!r}", _known(context))
    return named[-1:]


async def cancel(options: Namespace, context: Context) -> str:
    """Returns at once; the job undoes itself in its own process."""
    own = context.jobs.get(options.name)
    if own is not None and own.cancel():
        return f"cancelling {options.name}: what it had created is being removed"
    job = live_job(context.workspace, options.name)
    if job is None:
        raise NotFoundError(f"no job named {options.name!r} is under way", _known(context))
    context.workspace.store.update_job(job.id, cancel_requested=True)
    return f"asked process {job.pid} on {job.host} to cancel {options.name}"


def _known(context: Context) -> str:
    names = {j.name for j in context.workspace.store.jobs(running_only=True) if j.alive}
    return did_you_mean("", names) if names else "none is under way; `tuna jobs --all` shows ended ones"
