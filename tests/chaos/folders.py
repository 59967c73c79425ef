"""What a data folder's deployment has left on this machine: processes, resources, files."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psutil

from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.deployments.keeping.companion import KEEPER


def processes_of(folder: Path) -> list[str]:
    """Command lines of every process that names the folder, or runs in it: routers, keepers, the cloud, engines."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            about = any(str(folder) in word for word in line) or str(folder) in process.cwd()
            # A deployment's keeper is told its folder by its environment.
            about = about or (KEEPER in line and process.environ().get("TUNA_DATA_DIR") == str(folder))
            if about and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(line))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def owned(folder: Path) -> set[str]:
    """Names of the local cloud's resources."""
    return {ref.name for ref in asyncio.run(LocalBackend(folder=folder / "local-cloud").list_owned())}


def assert_nothing_left(folder: Path, within_s: float = 30) -> None:
    """No resource, no key, no router's folder, and within `within_s` seconds no process."""
    assert owned(folder) == set()
    # The cloud's own process ends by itself a few seconds after it has nothing to run.
    deadline = time.monotonic() + within_s
    while left := processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    for kept in ("routers", "secrets"):
        if (folder / kept).exists():
            assert list((folder / kept).iterdir()) == []
