"""Long work that other processes can see and cancel: its progress goes into the store as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import CancelledError, ConflictError, TunaError
from tuna_nb.jobs import Report
from tuna_nb.records import JobRecord

T = TypeVar("T")

POLL_S = 0.5
SIGN_OF_LIFE_S = 5.0
TAKE_OVER_S = 120.0
"""How long a destroy waits for a cancelled deploy to undo itself."""


async def tracked(
    workspace: Workspace, name: str, verb: str, report: Report, body: Callable[[Report], Awaitable[T]]
) -> T:
    """Run `body` as the one job that works on `name`, recorded from start to end.

    A cancel request in the store cancels the body as if its own task had been cancelled. Raises ConflictError
    when another live process works on it.
    """
    store = workspace.store
    record = store.claim_job(name, verb)

    def publish(*, step: str | None = None, fraction: float | None = None, **change: object) -> None:
        if step is not None:
            store.update_job(record.id, step=step, fraction=fraction)
            change |= {"step": step, "fraction": fraction}
        report.publish(**change)

    task = asyncio.ensure_future(body(Report(publish)))
    asked, seen_at = False, record.seen_at
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=POLL_S)
            if time.time() - seen_at > SIGN_OF_LIFE_S:
                seen_at = time.time()
                store.update_job(record.id, seen_at=seen_at)
            if not asked and not task.done() and store.cancel_requested(record.id):
                asked = True
                report.note("cancel requested from elsewhere")
                task.cancel()
        result = task.result()
    except asyncio.CancelledError:
        # Ours was cancelled, or the body was on request: either way let the body undo itself to the end.
        task.cancel()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        error = task.exception() if not task.cancelled() else None
        store.update_job(record.id, state="cancelled", ended_at=time.time(), error=str(error) if error else None)
        if isinstance(error, TunaError):
            raise error from None
        raise CancelledError(f"{name}: {verb} was cancelled") from None
    except TunaError as e:
        state = "cancelled" if isinstance(e, CancelledError) else "failed"
        store.update_job(record.id, state=state, ended_at=time.time(), error=e.message)
        raise
    except BaseException as e:
        store.update_job(record.id, state="failed", ended_at=time.time(), error=type(e).__name__)
        raise
    store.update_job(record.id, state="done", fraction=1.0, ended_at=time.time())
    return result


async def take_over(workspace: Workspace, name: str, report: Report) -> None:
    """Cancel whatever live job works on `name`, in whichever process, and wait until it has ended.

    Raises ConflictError when it does not end.
    """
    end = time.monotonic() + TAKE_OVER_S
    while (job := live_job(workspace, name)) is not None:
        if not job.cancel_requested:
            report.note(f"cancelling the {job.verb} under way in process {job.pid}")
            workspace.store.update_job(job.id, cancel_requested=True)
        if time.monotonic() > end:
            raise ConflictError(
                f"{name}: the {job.verb} in process {job.pid} on {job.host} does not stop",
                "end that process, then try again",
            )
        await asyncio.sleep(POLL_S / 2)


def live_job(workspace: Workspace, name: str) -> JobRecord | None:
    """The job under way on `name`, if its process is alive."""
    alive = [j for j in workspace.store.jobs(running_only=True, name=name) if j.alive]
    return alive[-1] if alive else None
