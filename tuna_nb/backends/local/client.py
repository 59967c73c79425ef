"""The local cloud from outside: starts its daemon when something is to run, and talks to it.

Reading never starts anything: an empty folder is empty, and a journal with nothing to run is read from the disk.
But a journal that can't be read is an error, never "nothing": engines may be running.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from tuna_nb.backends.base import LogLine
from tuna_nb.backends.local import bill as bills
from tuna_nb.backends.local import logbook, wire
from tuna_nb.backends.local import spec as specs
from tuna_nb.backends.local.bill import Bill
from tuna_nb.backends.local.journal import Journal
from tuna_nb.backends.local.spec import Scaling, Spec
from tuna_nb.backends.local.wire import Announcement, ResourceView
from tuna_nb.errors import BackendError, NotFoundError, SettingsError

if TYPE_CHECKING:
    import httpx

START_DEADLINE_S: Final = 30.0
CALL_TIMEOUT_S: Final = 30.0
DESTROY_TIMEOUT_S: Final = 120.0
_LOG_BYTES: Final = 1_000_000


class LocalCloud:
    """One folder's cloud. idle_exit_s: how long a daemon that this client starts stays without resources."""

    def __init__(self, folder: Path, idle_exit_s: float | None = None) -> None:
        self.folder = Path(folder).absolute()
        self._idle_exit_s = idle_exit_s

    def __repr__(self) -> str:
        return f"LocalCloud({str(self.folder)!r})"

    # The daemon

    async def ensure_running(self) -> Announcement:
        """The daemon's address; starts it where none runs. Raises SettingsError, BackendError.

        A cancelled call still sees a daemon that it has begun to start to its first answer: whoever ends things
        next must find it.
        """
        coming = asyncio.ensure_future(self._come_up())
        try:
            return await asyncio.shield(coming)
        except asyncio.CancelledError:
            await asyncio.wait({coming}, timeout=START_DEADLINE_S)
            if coming.done() and not coming.cancelled():
                coming.exception()  # looked at, so that asyncio does not complain of it later
            raise

    async def _come_up(self) -> Announcement:
        deadline = time.monotonic() + START_DEADLINE_S
        started: subprocess.Popen[bytes] | None = None
        while True:
            there = await self._healthy()
            if there is not None:
                return there
            if started is not None and started.poll() not in (None, 0):
                raise BackendError(f"the local cloud can't start: {self._last_words()}", f"see {self._log_path}")
            if time.monotonic() > deadline:
                raise BackendError("the local cloud did not come up in time", f"see {self._log_path}")
            if started is None or started.poll() == 0:
                # Code 0: another daemon has the lock. It answers soon, or it is leaving and makes room.
                started = self._spawn()
            await asyncio.sleep(0.05)

    async def running(self) -> Announcement | None:
        """The daemon's address where one runs; starts none."""
        there = wire.read_announcement(self.folder)
        return there if there is not None and there.is_alive else None

    async def shutdown(self, force: bool = False) -> None:
        """End the daemon and, with `force`, all its resources. Raises ConflictError where it still has some."""
        import httpx

        told = False
        while not told and await self._should_ask():
            there = await self.ensure_running()
            try:
                await self._call(there, "POST", "/shutdown", {"force": force}, DESTROY_TIMEOUT_S)
                told = True
            except httpx.TimeoutException as exc:
                raise BackendError("the local cloud did not answer that it ends", f"see {self._log_path}") from exc
            except (httpx.TransportError, wire.Leaving):
                pass  # It was just leaving by itself: what it has left, if anything, the next one is told to end.
            deadline = time.monotonic() + CALL_TIMEOUT_S
            while there.is_alive:
                if time.monotonic() > deadline:
                    raise BackendError(f"the local cloud's daemon (pid {there.pid}) does not end")
                await asyncio.sleep(0.02)

    # Resources

    async def deploy(self, spec: Spec) -> ResourceView:
        """Create, or find by name. Raises ConflictError where the name has another specification."""
        return wire.resource_from_json(await self._ask("POST", "/resources", specs.to_json(spec)))

    async def status(self, name: str) -> ResourceView:
        """Raises NotFoundError."""
        return wire.resource_from_json(await self._ask_of(name, "GET"))

    async def resources(self) -> list[ResourceView]:
        """Every resource of this cloud."""
        if not await self._should_ask():
            return []
        return [wire.resource_from_json(shown) for shown in await self._ask("GET", "/resources")]

    async def destroy(self, name: str) -> None:
        """Returns when a fresh listing lacks it; not found is success. Its processes are gone by then."""
        if not await self._should_ask():
            return
        with contextlib.suppress(NotFoundError):
            await self._ask("DELETE", f"/resources/{quote(name, safe='')}", timeout_s=DESTROY_TIMEOUT_S)
        if any(view.name == name for view in await self.resources()):
            raise BackendError(f"the local cloud still lists {name!r} after destroying it", "destroy it again")

    async def key(self, name: str) -> str:
        """The endpoint's invoke key. Raises NotFoundError."""
        return str((await self._ask_of(name, "GET", "/key"))["key"])

    async def scale(self, name: str, scaling: Scaling) -> None:
        """In place. Raises NotFoundError, RequestError."""
        await self._ask_of(name, "POST", "/scale", specs.scaling_to_json(scaling))

    async def wake(self, name: str) -> None:
        """Start a container or replica where none runs. Raises NotFoundError."""
        await self._ask_of(name, "POST", "/wake", {})

    async def preempt(self, name: str, notice_s: float | None = None, replica: str | None = None) -> str:
        """Take a spot replica away and return its id. notice_s None: as configured; 0: killed at once.

        replica None: the one that has the most requests. Raises NotFoundError, ConflictError.
        """
        body = {"notice_s": notice_s, "replica": replica}
        return str((await self._ask_of(name, "POST", "/preempt", body))["replica"])

    async def bill(self, name: str | None = None) -> Bill:
        """What one resource, or everything, has cost so far; destroyed ones included."""
        if await self._should_ask():
            return bills.from_json(await self._ask("GET", "/bill" + (f"?name={quote(name)}" if name else "")))
        journal = self._journal()
        if journal is None:
            return Bill(())
        try:
            return Bill(tuple(journal.intervals(name)))
        finally:
            journal.close()

    async def logs(self, name: str, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        """Lines in order of time; of a destroyed resource too. `follow` waits for more until it is destroyed."""
        if not follow or not await self._should_ask():
            for line in await asyncio.to_thread(logbook.read, self.folder, name, since):
                yield line
            return
        there = await self.ensure_running()
        path = f"/resources/{quote(name, safe='')}/logs" + (f"?since={since}" if since is not None else "")
        import httpx

        async with self._http(there, None) as http:
            try:
                async with http.stream("GET", path) as response:
                    if response.status_code != 200:
                        raise wire.error_from_json(json.loads(await response.aread()))
                    async for raw in response.aiter_lines():
                        yield LogLine(**json.loads(raw))
            except httpx.TransportError as exc:
                raise BackendError(f"the local cloud's log of {name!r} broke off: {exc}") from exc

    # Inside

    @property
    def _log_path(self) -> Path:
        return self.folder / wire.LOG_FILE

    def _last_words(self) -> str:
        try:
            return self._log_path.read_text(errors="replace")[-2000:].strip() or "it left no message"
        except OSError as exc:
            return str(exc)

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start a daemon in a session of its own, its output in the folder's log file."""
        command = [sys.executable, "-m", "tuna_nb.backends.local.cloud", "--folder", str(self.folder)]
        if self._idle_exit_s is not None:
            command += ["--idle-exit-s", str(self._idle_exit_s)]
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
            if self._log_path.exists() and self._log_path.stat().st_size > _LOG_BYTES:
                flags |= os.O_TRUNC
            log = os.open(self._log_path, flags, 0o600)
        except OSError as exc:
            raise SettingsError(
                f"the local cloud's folder {self.folder} can't be used: {exc.strerror or exc}",
                "set TUNA_LOCAL_FOLDER to a folder that you can write to",
            ) from exc
        try:
            daemon = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        # Collected when it ends, so that a long-lived notebook keeps no zombie.
        threading.Thread(target=daemon.wait, name="local cloud", daemon=True).start()
        return daemon

    async def _healthy(self) -> Announcement | None:
        there = await self.running()
        if there is None:
            return None
        import httpx

        try:
            await self._call(there, "GET", "/health", None, 5)
        except httpx.TransportError:
            return None
        return there

    def _journal(self) -> Journal | None:
        """The journal as it is on disk; None where there is none or nothing was ever written."""
        journal = Journal.open(self.folder, create=False)
        if journal is not None and journal.is_blank:
            journal.close()
            return None
        return journal

    def _owns_anything(self) -> bool:
        """Whether the journal names something that runs or is to run."""
        journal = self._journal()
        if journal is None:
            return False
        try:
            return bool(journal.resources() or journal.replicas())
        finally:
            journal.close()

    async def _should_ask(self) -> bool:
        """Whether a daemon runs, or has to be started because it left something behind."""
        return await self.running() is not None or await asyncio.to_thread(self._owns_anything)

    async def _ask(self, method: str, path: str, body: object = None, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call the daemon, starting it where needed. One that was just leaving is asked again; calls bear that."""
        import httpx

        for last in (False, False, True):
            there = await self.running() or await self.ensure_running()
            try:
                return await self._call(there, method, path, body, timeout_s)
            except httpx.TimeoutException as exc:
                raise BackendError(
                    f"the local cloud did not answer {method} {path} within {timeout_s:g} s",
                    f"see {self._log_path}",
                ) from exc
            except (httpx.TransportError, wire.Leaving) as exc:
                if last:
                    raise BackendError(f"the local cloud broke off {method} {path}: {exc}") from exc
                if isinstance(exc, wire.Leaving):
                    await self._gone(there)
                await self.ensure_running()
        raise AssertionError("unreachable")

    async def _ask_of(self, name: str, method: str, what: str = "", body: object = None) -> Any:
        """A call about one resource; starts no daemon to learn that there is none. Raises NotFoundError."""
        if not await self._should_ask():
            raise NotFoundError(f"the local cloud has no resource {name!r}", "`tuna list` shows what there is")
        return await self._ask(method, f"/resources/{quote(name, safe='')}{what}", body)

    async def _gone(self, there: Announcement) -> None:
        """Wait for a daemon that is leaving, as long as a destroy of all it has may take."""
        deadline = time.monotonic() + DESTROY_TIMEOUT_S
        while there.is_alive and await self._healthy() is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def _call(self, there: Announcement, method: str, path: str, body: object, timeout_s: float) -> Any:
        async with self._http(there, timeout_s) as http:
            response = await http.request(method, path, json=body if body is not None else None)
        try:
            shown = response.json()
        except ValueError as exc:
            raise BackendError(f"the local cloud answered {response.status_code} and no JSON") from exc
        if response.status_code != 200:
            raise wire.error_from_json(shown)
        return shown

    def _http(self, there: Announcement, timeout_s: float | None) -> httpx.AsyncClient:
        import httpx

        # No proxy from the environment: it is loopback, and the token goes to nobody else.
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{there.port}",
            headers=self._headers(there),
            timeout=timeout_s,
            trust_env=False,
            verify=False,  # noqa: S501  plain HTTP on loopback: spares loading the certificates
        )

    @staticmethod
    def _headers(there: Announcement) -> Mapping[str, str]:
        return {"authorization": f"Bearer {there.token}"}
