"""The process on the user's machine that goes with each deployment, wherever its router runs: it has the user's
credentials, which the router must not have. What it does is `keeper.py`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from tuna_nb.errors import RouterError
from tuna_nb.records import DeploymentRecord
from tuna_nb.settings import Settings

KEEPER = "tuna_nb.deployments.keeping.keeper"
"""The module that it runs."""
STOP_TIMEOUT_S = 10


async def ensure(settings: Settings, deployment_id: str) -> None:
    """Start it unless it runs. Whoever is cancelled waits for it: none may begin after its end was sought."""
    starting = asyncio.ensure_future(
        asyncio.to_thread(_ensure, settings, deployment_id, log_of(settings, deployment_id))
    )
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait({starting})
        raise


async def revive(settings: Settings, records: Iterable[DeploymentRecord]) -> None:
    """Start those of running deployments that were on this machine and are gone, as after it was switched off."""
    for record in records:
        if record.state == "running" and record.destroyed_at is None and was_here(settings, record.id):
            await ensure(settings, record.id)


def was_here(settings: Settings, deployment_id: str) -> bool:
    """Whether it has run on this machine, with whose credentials it works."""
    return (settings.data_dir / "companions" / f"{deployment_id}.log").exists()


def log_of(settings: Settings, deployment_id: str) -> Path:
    """What it has to say."""
    return settings.data_folder("companions") / f"{deployment_id}.log"


def end_of(settings: Settings, deployment_id: str) -> None:
    """Stop it for good, its log with it. Raises RouterError where it does not end."""
    stop(deployment_id)
    (settings.data_dir / "companions" / f"{deployment_id}.log").unlink(missing_ok=True)


def _ensure(settings: Settings, deployment_id: str, log: Path) -> None:
    with log.open("ab") as lock, log.open("ab") as out:
        try:
            # Two that find none would start two. What is started does not inherit this lock, but `out`.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody is just seeing to it
        if find(deployment_id, KEEPER) is not None:
            return
        # Its store and data folder are this process's, by whichever setting.
        environment = {**os.environ, "TUNA_DATA_DIR": str(settings.data_dir)}
        environment["TUNA_DATABASE_URL"] = settings.database_url
        subprocess.Popen(
            [sys.executable, "-m", KEEPER, deployment_id],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=environment,
        )


def stop(deployment_id: str, within_s: float = STOP_TIMEOUT_S) -> None:
    """End it, and return when it is gone. Not found is success, and so is that it is this process.

    Raises RouterError.
    """
    process = find(deployment_id, KEEPER)
    if process is not None:
        end(process, within_s)
    if find(deployment_id, KEEPER) is not None:
        raise RouterError(f"the process beside the router of {deployment_id} does not end", "end it by hand")


def end_strays(settings: Settings, known: Collection[str]) -> list[str]:
    """End those of this data folder that go with no deployment of the records, as after records were lost.

    Returns their deployments' ids. Raises RouterError where one does not end.
    """
    ended = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            line = process.cmdline()
            if KEEPER not in line or line[-1] in known or process.pid == os.getpid():
                continue
            if process.environ().get("TUNA_DATA_DIR") == str(settings.data_dir):
                end(process, STOP_TIMEOUT_S)
                end_of(settings, line[-1])
                ended.append(line[-1])
    return ended


def find(word: str, module: str) -> psutil.Process | None:
    """The process that runs `module` with `word` among its arguments: its command line is there from the first
    moment on, while a pid in a file may be missing or another's by now."""
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            line = process.cmdline()
            if module in line and word in line and process.status() != psutil.STATUS_ZOMBIE:
                return process
    return None


def end(process: psutil.Process, within_s: float) -> None:
    """Terminate it; kill what has not ended in time."""
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(max(0.1, within_s))
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(5)
