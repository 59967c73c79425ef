"""What a data folder has left on this machine: routers, a cloud, engines, records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import psutil

from tuna_nb.backends.local.client import LocalCloud
from tuna_nb.backends.local.journal import Journal
from tuna_nb.backends.local.processes import marked_processes
from tuna_nb.commands.destroy import _all
from tuna_nb.deployments.keeping.companion import KEEPER
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import TunaError
from tuna_nb.jobs import Report
from tuna_nb.settings import Settings

OF_THE_USER = {"skyserve.key"}
"""Made once for all deployments of a user, which have theirs from it."""


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every living process that names the folder or works in it, and every engine of its cloud."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            line = process.cmdline()
            about = any(str(folder) in word for word in line) or str(folder) in process.cwd()
            # A deployment's keeper is told its folder by its environment.
            about = about or (KEEPER in line and process.environ().get("TUNA_DATA_DIR") == str(folder))
            if about and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
    if cloud := _cloud_id(folder):
        found |= {p.pid: p for p, marker in marked_processes() if marker.startswith(cloud + "/")}
    return list(found.values())


def settings_of(folder: Path) -> Settings:
    return Settings(folder, f"sqlite:///{folder / 'tuna.db'}")


def live_names(folder: Path) -> list[str]:
    """The deployments that its records say are not destroyed."""
    if not (folder / "tuna.db").exists():
        return []
    workspace = Workspace(settings_of(folder))
    try:
        return [d.name for d in workspace.store.deployments() if d.destroyed_at is None]
    finally:
        workspace.close()


async def assert_nothing_left(folder: Path) -> None:
    """No record, no resource, no key, no process. The cloud's own process is told to leave: it would anyway."""
    assert live_names(folder) == []
    cloud = LocalCloud(folder / "local-cloud")
    assert await cloud.resources() == []
    await cloud.shutdown()
    deadline = time.monotonic() + 20
    while left := processes_of(folder):
        assert time.monotonic() < deadline, [" ".join(p.cmdline()) for p in left if p.is_running()]
        await asyncio.sleep(0.05)
    for name in ("routers", "secrets"):
        assert not (folder / name).exists() or {p.name for p in (folder / name).iterdir()} <= OF_THE_USER


async def clear(folder: Path) -> None:
    """Destroy whatever is there, however broken, so that a failed test leaves the machine as it was."""
    workspace = Workspace(settings_of(folder))
    workspace._backends["local"] = _backend(folder)
    try:
        async with asyncio.timeout(60):
            await _all(workspace, Report(lambda **_: None))
        await LocalCloud(folder / "local-cloud").shutdown(force=True)
    except (TunaError, TimeoutError):
        pass
    finally:
        workspace.close()
    for process in processes_of(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _backend(folder: Path):
    from tuna_nb.backends.local.backend import LocalBackend

    return LocalBackend(folder / "local-cloud")


def _cloud_id(folder: Path) -> str | None:
    with contextlib.suppress(TunaError):
        journal = Journal.open(folder / "local-cloud", create=False)
        if journal is not None:
            try:
                return None if journal.is_blank else journal.cloud_id
            finally:
                journal.close()
    return None
