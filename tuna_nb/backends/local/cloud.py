"""The local cloud's daemon: `python -m tuna_nb.backends.local.cloud --folder DIR`.

One per folder, held by a file lock. It is control plane (the API on a loopback port, announced in cloud.json) and
data plane (each resource's endpoint on a port of its own). It lives in no notebook: it goes on when a kernel
restarts, and leaves by itself when there is nothing left to run. Killed at any moment, the next one ends what it
left running, closes its bill and brings the resources back on the same ports.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from tuna_nb.backends.base import Kind
from tuna_nb.backends.local import logbook, recovery
from tuna_nb.backends.local.api import Api
from tuna_nb.backends.local.bill import BilledInterval
from tuna_nb.backends.local.fleet import Fleet
from tuna_nb.backends.local.gateway import Gateway
from tuna_nb.backends.local.journal import Journal, ResourceRecord
from tuna_nb.backends.local.listener import Listener, bind
from tuna_nb.backends.local.serverless import ServerlessService
from tuna_nb.backends.local.service import Service
from tuna_nb.backends.local.spec import Spec
from tuna_nb.backends.local.wire import (
    ANNOUNCEMENT,
    LOCK_FILE,
    Announcement,
    Leaving,
    ResourceView,
    read_announcement,
)
from tuna_nb.errors import BackendError, ConflictError, NotFoundError, TunaError

IDLE_EXIT_S: Final = 5.0
_TICK_S: Final = 0.5


@dataclass
class _Hosted:
    """A resource that is being served. ending: set while it is destroyed."""

    service: Service
    listener: Listener
    ending: asyncio.Task[None] | None = None


class Cloud:
    """Every resource of one folder. All methods run on the daemon's event loop."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self.journal = journal
        self.hosted: dict[str, _Hosted] = {}
        self.closing = False
        """On the way out: nothing new is taken."""
        self.leaving = asyncio.Event()

    def restore(self) -> None:
        """Bring back what the journal has, on the same ports where they are free."""
        logbook.prune(self.folder)
        for record in self.journal.resources():
            if record.deleting:
                self.journal.remove_resource(record.spec.name)
                continue
            try:
                wanted = bind(record.port, record.spec.figures.listen)
            except BackendError:
                wanted = bind(address=record.spec.figures.listen)
                self.journal.set_port(record.spec.name, int(wanted.getsockname()[1]))
            self._host(record, wanted).log.write("the cloud has restarted")

    def _host(self, record: ResourceRecord, wanted: socket.socket) -> Service:
        kind = ServerlessService if record.spec.kind is Kind.SERVERLESS else Fleet
        service: Service = kind(record, self.folder, self.journal)
        self.hosted[record.spec.name] = _Hosted(service, Listener(Gateway(service), wanted))
        service.start()
        return service

    def find(self, name: str) -> Service:
        """Raises NotFoundError."""
        return self._find(name).service

    def _find(self, name: str) -> _Hosted:
        try:
            return self.hosted[name]
        except KeyError:
            raise NotFoundError(
                f"the local cloud has no resource {name!r}", "`tuna list` shows what there is"
            ) from None

    def fleet(self, name: str) -> Fleet:
        """Raises NotFoundError, and ConflictError where the resource is no spot service."""
        service = self.find(name)
        if not isinstance(service, Fleet):
            raise ConflictError(f"{name} is serverless: only spot replicas are preempted")
        return service

    async def deploy(self, spec: Spec) -> ResourceView:
        """Idempotent by name. Raises ConflictError where the name has another specification."""
        there = self.hosted.get(spec.name)
        if there is not None and there.ending is not None:
            await asyncio.wait({there.ending})
            there = self.hosted.get(spec.name)
        if there is not None:
            have = there.service.record
            # A resource that was scaled in place is still the one that was asked for.
            if spec not in (have.spec, _with_scaling(have)):
                raise ConflictError(
                    f"the local cloud has a resource {spec.name!r} with another specification",
                    "destroy it first, or choose another name",
                )
            return self.view(spec.name)
        if self.closing:
            raise Leaving("the local cloud is shutting down", "try again")
        wanted = bind(address=spec.figures.listen)
        record = ResourceRecord(
            uid=secrets.token_hex(8),
            spec=spec,
            scaling=spec.scaling,
            port=int(wanted.getsockname()[1]),
            invoke_key="lk-" + secrets.token_urlsafe(24),
            created_at=time.time(),
        )
        try:
            self.journal.add_resource(record)
        except TunaError:
            wanted.close()
            raise
        self._host(record, wanted).log.write(f"{spec.kind} resource {spec.name} is created")
        return self.view(spec.name)

    async def destroy(self, name: str) -> None:
        """Returns when nothing of it runs. Raises NotFoundError, and BackendError where it can't be ended."""
        hosted = self._find(name)
        if hosted.ending is None or (hosted.ending.done() and hosted.ending.exception() is not None):
            hosted.ending = asyncio.create_task(self._destroy(name, hosted), name=f"destroy {name}")
        # The caller may go away; what was begun is finished.
        await asyncio.shield(hosted.ending)

    async def _destroy(self, name: str, hosted: _Hosted) -> None:
        self.journal.set_deleting(name)
        await hosted.service.close()
        await hosted.listener.close()
        self.journal.remove_resource(name)
        del self.hosted[name]
        hosted.service.log.write(f"{name} is destroyed")
        hosted.service.log.close()

    def view(self, name: str) -> ResourceView:
        hosted = self._find(name)
        record, shown = hosted.service.record, hosted.service.status()
        return ResourceView(
            name=name,
            uid=record.uid,
            deployment_id=record.spec.deployment_id,
            kind=record.spec.kind,
            url=f"http://{hosted.listener.address}:{hosted.listener.port}",
            state=shown.state,
            replicas=shown.replicas,
            billing=shown.billing,
            detail=shown.detail,
            observed_at=time.time(),
        )

    def views(self) -> list[ResourceView]:
        return [self.view(name) for name in self.hosted]

    def bill(self, name: str | None) -> list[BilledInterval]:
        """To this moment."""
        self.journal.tick(time.time())
        return self.journal.intervals(name)

    async def leave(self, destroy: bool) -> None:
        """End every engine and stop; with `destroy` the resources too, else the next daemon brings them back."""
        self.closing = True
        if destroy:
            ends = [self.destroy(name) for name in list(self.hosted)]
        else:
            ends = [self._suspend(h) for h in self.hosted.values()]
        results = await asyncio.gather(*ends, return_exceptions=True)
        failures = [r for r in results if isinstance(r, BaseException)]
        if failures and destroy:
            self.closing = False
            raise failures[0]
        for failure in failures:
            print(f"not ended: {failure}", file=sys.stderr, flush=True)  # noqa: T201
        self.leaving.set()

    async def _suspend(self, hosted: _Hosted) -> None:
        if hosted.ending is not None:
            await asyncio.wait({hosted.ending})
            return
        await hosted.service.close()
        await hosted.listener.close()


def _with_scaling(record: ResourceRecord) -> Spec:
    return replace(record.spec, scaling=record.scaling)


async def serve(folder: Path, journal: Journal, idle_exit_s: float) -> None:
    """Run the cloud until it is told to leave or has had nothing to do for `idle_exit_s`."""
    cloud = Cloud(folder, journal)
    token = "ct-" + secrets.token_urlsafe(24)
    api = Api(cloud, token)
    listener = Listener(api, bind())
    cloud.restore()
    loop = asyncio.get_running_loop()
    stopping: set[asyncio.Task[None]] = set()

    def stop() -> None:
        if not stopping:
            stopping.add(loop.create_task(cloud.leave(destroy=False)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    mine = Announcement(os.getpid(), psutil.Process().create_time(), listener.port, token)
    announce(folder, mine)
    try:
        await _watch(cloud, api, mine, stop, idle_exit_s)
    finally:
        # Whatever ends this loop, no engine may outlive it unseen.
        if not cloud.leaving.is_set():
            await cloud.leave(destroy=False)
    if _is_announced(folder, mine):
        (folder / ANNOUNCEMENT).unlink(missing_ok=True)
    # The answer to the call that ended us is still to be sent.
    await api.finish()
    await listener.close()
    for task in stopping:
        await task


async def _watch(cloud: Cloud, api: Api, mine: Announcement, stop: Callable[[], None], idle_exit_s: float) -> None:
    """Keep the bill's clock until the cloud is to leave."""
    idle_since = time.monotonic()
    while not cloud.leaving.is_set():
        cloud.journal.tick(time.time())
        for hosted in cloud.hosted.values():
            hosted.service.raise_if_broken()
        if cloud.hosted or api.busy:
            idle_since = time.monotonic()
        if time.monotonic() - idle_since >= idle_exit_s:
            await cloud.leave(destroy=False)
        if not _is_announced(cloud.folder, mine):
            # Someone removed the folder under us: nobody can reach us any more, so nothing must stay.
            print("cloud.json is gone or not ours: leaving", file=sys.stderr, flush=True)  # noqa: T201
            stop()
        try:
            async with asyncio.timeout(_TICK_S):
                await cloud.leaving.wait()
        except TimeoutError:
            continue


def _is_announced(folder: Path, mine: Announcement) -> bool:
    try:
        return read_announcement(folder) == mine
    except BackendError:
        return False


def announce(folder: Path, mine: Announcement) -> None:
    """Write cloud.json, whole or not at all."""
    draft = folder / f"{ANNOUNCEMENT}.{mine.pid}"
    handle = os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"pid": mine.pid, "create_time": mine.create_time, "port": mine.port, "token": mine.token}, file)
    os.replace(draft, folder / ANNOUNCEMENT)


def lock(folder: Path) -> int | None:
    """Become this folder's only daemon; None where another is. The lock ends with the process."""
    handle = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 also where another daemon has the folder already."""
    parser = argparse.ArgumentParser(prog="tuna_nb.backends.local.cloud", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--idle-exit-s", type=float, default=IDLE_EXIT_S)
    args = parser.parse_args(argv)
    os.umask(0o077)
    try:
        if lock(args.folder) is None:
            return 0
        journal = Journal.open(args.folder, create=True)
        assert journal is not None
        recovery.end_orphans(journal)
        asyncio.run(serve(args.folder, journal, args.idle_exit_s))
        journal.close()
    except (TunaError, OSError) as exc:
        lines = exc.lines() if isinstance(exc, TunaError) else [str(exc)]
        print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
