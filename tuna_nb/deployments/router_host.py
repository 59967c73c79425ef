"""Where a deployment's router runs. `process` is this machine; the seam for a controller and a VM.

A host finds its router by the deployment's id alone, so that a crash between starting it and recording it
loses nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import psutil

from tuna_nb.backends.base import LogLine
from tuna_nb.errors import RequestError, RouterError, did_you_mean
from tuna_nb.settings import Settings

ROUTER, RENEWAL = "tuna_router", "tuna_nb.deployments.keeper"
"""The modules that a deployment's processes run."""
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 20
"""The router finishes running requests when it is asked to stop, within its own shorter bound."""


class RouterHost(Protocol):
    """A place that runs routers, one per deployment."""

    name: str

    async def start(self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool) -> str:
        """Start it, or find it running, and return its URL. Raises RouterError."""

    async def keep_renewed(self, deployment_id: str) -> None:
        """Have the headers of its backends renewed before they expire, for as long as it runs."""

    async def url(self, deployment_id: str) -> str | None:
        """Its URL, or None when it does not run."""

    async def stop(self, deployment_id: str) -> None:
        """End it and remove what it kept; returns when it is seen gone. Not found is success."""

    def logs(self, deployment_id: str, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        """What it has logged, oldest first, from `since` (Unix seconds) on."""

    async def list_owned(self) -> list[str]:
        """The deployment ids of every router here, running or left behind."""


class ProcessHost:
    """Routers as processes on this machine, in `<data folder>/routers/<deployment id>/`.

    Its configuration (0600) holds the providers' headers; our own keys are there only as hashes. The process
    has a session of its own, so that it outlives the kernel or terminal that started it.
    """

    name = "process"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def start(self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool) -> str:
        return await asyncio.to_thread(self._start, deployment_id, config, port, public)

    async def keep_renewed(self, deployment_id: str) -> None:
        await asyncio.to_thread(self._keep_renewed, deployment_id)

    async def url(self, deployment_id: str) -> str | None:
        return self._announced(deployment_id) if self._process(deployment_id) else None

    async def stop(self, deployment_id: str) -> None:
        await asyncio.to_thread(self._stop, deployment_id)

    async def logs(
        self, deployment_id: str, since: float | None = None, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        path = self._folder(deployment_id) / "router.log"
        position, at = 0, 0.0
        while True:
            try:
                with path.open(errors="replace") as f:
                    f.seek(position)
                    for line in f:
                        at = _written_at(line) or at
                        if since is None or at >= since:
                            yield LogLine(at, "router", line.rstrip("\n"))
                    position = f.tell()
            except FileNotFoundError:
                return
            if not follow:
                return
            await asyncio.sleep(0.5)

    async def list_owned(self) -> list[str]:
        root = self._settings.data_dir / "routers"
        return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []

    def _folder(self, deployment_id: str) -> Path:
        return self._settings.data_dir / "routers" / deployment_id

    def _start(self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool) -> str:
        folder = self._settings.data_folder("routers", deployment_id)
        announcement = folder / "router.json"
        if self._process(deployment_id) is None:
            last = folder / "last.json"
            if port is None:
                # A restarted router keeps its address: clients have it in their configuration.
                port = self._last_port(announcement) or self._last_port(last) or 0
            with suppress(FileNotFoundError):
                # Kept aside, so that a start that fails does not forget it.
                announcement.replace(last)
            _write_private(folder / "config.json", json.dumps(config))
            command = [sys.executable, "-m", "tuna_router", "--host", "127.0.0.1", "--port", str(port)]
            command += ["--config", str(folder / "config.json"), "--port-file", str(announcement)]
            command += ["--no-auth"] if public else []
            log = folder / "router.log"
            with log.open("ab") as out:
                started = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=folder
                )
            self._await_start(started, announcement, log)
        url = self._announced(deployment_id)
        if url is None:
            raise RouterError("the router runs but has not told its address", f"see {folder / 'router.log'}")
        return url

    def _await_start(self, started: subprocess.Popen[bytes], announcement: Path, log: Path) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while not announcement.exists():
            if started.poll() is not None:
                said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-2:]
                hints = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
                what = [line for line in said if not line.startswith("hint: ")]
                raise RouterError(
                    f"the router did not start: {what[-1] if what else f'exit {started.returncode}'}",
                    hints[-1] if hints else f"see {log}",
                )
            if time.monotonic() > end:
                started.kill()
                raise RouterError(f"the router did not start within {START_TIMEOUT_S} s", f"see {log}")
            time.sleep(0.02)

    def _keep_renewed(self, deployment_id: str) -> None:
        if self._process(deployment_id, RENEWAL) is not None:
            return
        folder = self._settings.data_folder("routers", deployment_id)
        # Its store and data folder are this process's, by whichever setting.
        environment = {**os.environ, "TUNA_DATA_DIR": str(self._settings.data_dir)}
        environment["TUNA_DATABASE_URL"] = self._settings.database_url
        with (folder / "keeper.log").open("ab") as out:
            subprocess.Popen(
                [sys.executable, "-m", RENEWAL, deployment_id],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=environment,
            )

    def _stop(self, deployment_id: str) -> None:
        end = time.monotonic() + STOP_TIMEOUT_S
        for module in (RENEWAL, ROUTER):
            process = self._process(deployment_id, module)
            if process is not None:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
                    try:
                        process.wait(max(0.1, end - time.monotonic()))
                    except psutil.TimeoutExpired:
                        process.kill()
                        process.wait(5)
        if self._process(deployment_id) is not None:
            raise RouterError(f"the router of {deployment_id} does not end", "end its process by hand")
        shutil.rmtree(self._folder(deployment_id), ignore_errors=True)

    def _process(self, deployment_id: str, module: str = ROUTER) -> psutil.Process | None:
        """The router that was started with this deployment's configuration, or its renewal, found by its command
        line: it is there from the first moment on, while a pid in a file may be missing or another's by now."""
        word = str(self._folder(deployment_id) / "config.json") if module == ROUTER else deployment_id
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = process.cmdline()
                if module in line and word in line and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def _announced(self, deployment_id: str) -> str | None:
        path = self._folder(deployment_id) / "router.json"
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(FileNotFoundError):
                return str(json.loads(path.read_text())["url"])
            # Found by its command line but not listening yet: another process has only just started it.
            if self._process(deployment_id) is None or time.monotonic() > end:
                return None
            time.sleep(0.02)

    @staticmethod
    def _last_port(announcement: Path) -> int | None:
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads(announcement.read_text())["port"])
        return None


HOSTS = {ProcessHost.name: ProcessHost}


def open_host(name: str, settings: Settings) -> RouterHost:
    """The host of that name. Raises RequestError."""
    if name not in HOSTS:
        raise RequestError(f"unknown router host {name!r}", did_you_mean(name, HOSTS))
    return HOSTS[name](settings)


def _written_at(line: str) -> float | None:
    """Unix seconds at the head of a line of the router's log; None for the lines of a traceback, say."""
    with suppress(ValueError):
        return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return None


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as f:
        f.write(text)
