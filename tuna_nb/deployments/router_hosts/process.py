"""Routers as processes on this machine."""

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
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tuna_nb.backends.base import LogLine
from tuna_nb.deployments.keeping import companion
from tuna_nb.deployments.router_hosts.base import PROCESS, Prospect, RouterState
from tuna_nb.errors import RouterError
from tuna_nb.settings import Settings

ROUTER = "tuna_router"
"""The module that a router's process runs."""
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 20
"""The router finishes running requests when it is asked to stop, within its own shorter bound."""


class ProcessHost:
    """Routers as processes on this machine, in `<data folder>/routers/<deployment id>/`.

    Its configuration (0600) holds the providers' headers; our own keys are there only as hashes. The process
    has a session of its own, so that it outlives the kernel or terminal that started it.
    """

    name = PROCESS
    beside_spot = False
    elsewhere = False
    takes_minutes = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def prospect(self, near: str | None) -> Prospect:
        return Prospect()

    async def start(
        self, deployment_id: str, config: dict[str, Any], port: int | None, public: bool, near: str | None = None
    ) -> str:
        return await asyncio.to_thread(self._start, deployment_id, config, port, public)

    async def url(self, deployment_id: str) -> str | None:
        return self._announced(deployment_id) if self._process(deployment_id) else None

    async def state(self, deployment_id: str) -> RouterState:
        return await asyncio.to_thread(self._state, deployment_id)

    async def config(self, deployment_id: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder(deployment_id) / "config.json").read_text())
        except (OSError, ValueError) as e:
            raise RouterError(
                f"the router's configuration can't be read here ({type(e).__name__})", "deploy the name again"
            ) from e
        return found

    async def restart(self, deployment_id: str) -> str:
        # Running requests are finished first; who comes in between is refused for about a second.
        config = await self.config(deployment_id)
        process = await asyncio.to_thread(self._process, deployment_id)
        public = process is not None and "--no-auth" in process.cmdline()
        if process is None:
            raise RouterError("the router does not run", "deploying the same name again starts it")
        # The announcement goes with it, and the port must not.
        port = self._last_port(self._folder(deployment_id) / "router.json")
        await asyncio.to_thread(companion.end, process, STOP_TIMEOUT_S)
        return await self.start(deployment_id, config, port, public)

    async def upgrade(self, deployment_id: str) -> str:
        return await self.restart(deployment_id)

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

    def _stop(self, deployment_id: str) -> None:
        process = self._process(deployment_id)
        if process is not None:
            companion.end(process, STOP_TIMEOUT_S)
        if self._process(deployment_id) is not None:
            raise RouterError(f"the router of {deployment_id} does not end", "end its process by hand")
        shutil.rmtree(self._folder(deployment_id), ignore_errors=True)

    def _process(self, deployment_id: str) -> psutil.Process | None:
        return companion.find(str(self._folder(deployment_id) / "config.json"), ROUTER)

    def _state(self, deployment_id: str) -> RouterState:
        from tuna_nb.deployments.router_hosts import wheel

        process = self._process(deployment_id)
        if process is None:
            return RouterState(self.name, None)
        here = wheel.make()
        state = RouterState(
            self.name, self._announced(deployment_id), here.version, here.build, address="this machine"
        )
        with suppress(psutil.NoSuchProcess):
            started, memory = process.create_time(), process.memory_info().rss
            return replace(state, pid=process.pid, started_at=started, memory_bytes=memory)
        return RouterState(self.name, None)

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


def _written_at(line: str) -> float | None:
    """Unix seconds at the head of a line of the router's log; None for the lines of a traceback, say."""
    with suppress(ValueError):
        return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return None


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as f:
        f.write(text)
