"""One container or spot machine, from the moment it bills to the moment that its last process is gone.

STARTING (boot, then the engine's start) -> READY -> DRAINING (spot: notice given, or scaled down) -> STOPPING ->
GONE, or FAILED where the engine never gave a token. One task owns the whole life; `stop` asks it to end.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tuna_nb.backends.base import Replica, State
from tuna_nb.backends.local import probe, processes
from tuna_nb.backends.local.bill import BilledInterval
from tuna_nb.backends.local.journal import Journal
from tuna_nb.backends.local.logbook import LastWords, LogBook
from tuna_nb.backends.local.options import LOOPBACK
from tuna_nb.backends.local.processes import EngineProcess
from tuna_nb.backends.local.spec import Spec
from tuna_nb.errors import EngineError, TunaError

_WATCH_S: Final = 0.05
_PROBE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Site:
    """Where an instance lives: what it writes to, and whom it tells."""

    journal: Journal
    log: LogBook
    cloud_id: str
    changed: Callable[[], None]
    """Called after every change of state."""


class Instance:
    """One engine's life. `in_flight` and `idle_since` are kept by the gateway's leases."""

    def __init__(self, spec: Spec, uid: str, site: Site) -> None:
        self.id = f"{spec.name}-{secrets.token_hex(3)}"
        self.spec = spec
        self.started_at = time.time()
        self.state = State.STARTING
        self.detail = ""
        self.port = 0
        self.in_flight = 0
        self.idle_since = time.monotonic()
        self.was_ready = False
        self.kill_at: float | None = None
        """Monotonic time of the kill once notice is given or draining has a limit."""
        self.preempted = False
        self._site = site
        self._last_words = LastWords()
        self._process: EngineProcess | None = None
        self._hurry = asyncio.Event()
        self._ending = False
        self._readers: asyncio.Task[None] | None = None
        self._work: asyncio.Task[None] | None = None
        site.journal.add_replica(self.id, spec.name)
        site.journal.open_interval(
            BilledInterval(
                self.id,
                spec.name,
                uid,
                spec.kind,
                spec.gpu,
                self.started_at,
                self.started_at,
                None,
                spec.price_per_hour_usd,
            )
        )
        self._task = asyncio.create_task(self._live(), name=self.id)

    def __repr__(self) -> str:
        return f"<Instance {self.id} {self.state} in_flight={self.in_flight}>"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_over(self) -> bool:
        return self._task.done()

    @property
    def trouble(self) -> str:
        """Why its life went wrong once it is over: a failed start, or a process that would not end; else empty."""
        failure = self._task.exception() if self._task.done() else None
        if isinstance(failure, TunaError):
            return failure.message
        if failure is not None:
            raise failure
        return self.detail if self.state is State.FAILED else ""

    def view(self) -> Replica:
        """As the provider shows it."""
        detail = self.detail
        if self.kill_at is not None and self.state is State.DRAINING:
            left = max(0.0, self.kill_at - time.monotonic())
            detail = f"{detail}; ends in {left:.1f} s"
        return Replica(self.id, self.state, self.started_at, self.spec.region, detail)

    def drain(self, detail: str, seconds: float, preempted: bool) -> None:
        """Take nothing new; the owner ends it `seconds` from now, or earlier where it is only scaled down."""
        self.kill_at = time.monotonic() + seconds
        self.preempted = self.preempted or preempted
        self._to(State.DRAINING, detail)

    def stop(self, detail: str, hard: bool = False) -> None:
        """End it: SIGTERM and the grace of `stop_grace_s`, or SIGKILL at once where `hard`. Returns at once."""
        if hard:
            self._hurry.set()
        if not self._ending:
            self._ending = True
            if self.state is not State.FAILED:
                self._to(State.STOPPING, detail)
            if self._work is not None:
                self._work.cancel()

    async def ended(self) -> None:
        """Wait until nothing of it runs. Raises BackendError where its processes don't end."""
        await asyncio.wait([self._task])
        self._task.result()

    def _to(self, state: State, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self._site.log.write(f"{self.id} is {state}" + (f": {detail}" if detail else ""))
        self._site.changed()

    async def _live(self) -> None:
        """Never cancelled itself, so that the end of the life always happens, however early the stop came."""
        if not self._ending:
            self._work = asyncio.create_task(self._serve())
            await asyncio.wait({self._work})
        self._ending = True
        await self._end()
        if self._work is not None and not self._work.cancelled():
            self._work.result()

    async def _serve(self) -> None:
        try:
            self._site.log.write(f"{self.id} is starting")
            await asyncio.sleep(self.spec.start_delay_s)
            await self._start_engine()
        except EngineError as exc:
            self._to(State.FAILED, exc.message)
            return
        self.was_ready = True
        self.idle_since = time.monotonic()
        if self.state is State.STARTING:
            # Else it was preempted while it booted: ready too late to be given anything.
            self._site.journal.set_ready(self.id, time.time())
            self._to(State.READY)
        code = await self._exit()
        self._to(State.STOPPING, f"its engine ended by itself ({_exit_words(code)})")

    async def _start_engine(self) -> None:
        self.port = processes.free_port()
        spec = self.spec
        self._process = processes.spawn(
            spec.argv(LOOPBACK, self.port),
            processes.engine_environment(spec.path, spec.figures.engine_env),
            # Only a command is looked up from the user's folder: a random.py there must not shadow our imports.
            spec.cwd if spec.engine.command is not None else None,
            marker_of(self._site.cloud_id, self.id),
        )
        self._site.journal.set_process(self.id, self._process.pid, self._process.create_time)
        self._readers = asyncio.create_task(self._read_output(self._process))
        exited = asyncio.create_task(self._exit())
        ready = asyncio.create_task(self._ready())
        try:
            await asyncio.wait({exited, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=spec.start_timeout_s)
            if exited.done():
                # Its last words may still be in the pipe.
                await asyncio.wait({self._readers}, timeout=1)
                raise EngineError(self._why(f"the engine died at start ({_exit_words(exited.result())})"))
            if not ready.done():
                raise EngineError(self._why(f"the engine gave no token within {spec.start_timeout_s:g} s"))
            ready.result()
        finally:
            for task in (exited, ready):
                task.cancel()
            await asyncio.wait({exited, ready})

    def _why(self, what: str) -> str:
        """One line: what happened, what the engine said of it, and what the last probe saw."""
        return "; ".join(said for said in (what, str(self._last_words), self.detail) if said)

    async def _ready(self) -> None:
        while True:
            trouble = await probe.one_token(self.port, self.spec.engine.model)
            if trouble is None:
                return
            self.detail = f"waiting for the first token: {trouble}"
            await asyncio.sleep(_PROBE_S)

    async def _exit(self) -> int:
        assert self._process is not None
        while (code := self._process.popen.poll()) is None:
            await asyncio.sleep(_WATCH_S)
        return code

    async def _read_output(self, process: EngineProcess) -> None:
        """Until the last process that holds the pipe has closed it."""
        reader = asyncio.StreamReader(limit=65536)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.output)
        try:
            rest = b""
            while data := await reader.read(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._print(line)
                if len(rest) > 65536:
                    self._print(rest)
                    rest = b""
            if rest:
                self._print(rest)
        finally:
            transport.close()

    def _print(self, raw: bytes) -> None:
        text = raw.decode(errors="replace").rstrip("\r")
        self._last_words.add(text)
        self._site.log.write(text, self.id)

    async def _end(self) -> None:
        """Nothing of it runs after this; then, and only then, the journal forgets it and the bill stops."""
        try:
            if self._process is not None:
                await processes.end(self._process, self.spec.figures.stop_grace_s, self._hurry)
            self._site.journal.remove_replica(self.id)
        finally:
            self._site.journal.close_interval(self.id, time.time())
            if self._readers is not None and self._process is not None:
                # With the last process gone the pipe ends by itself; the last lines are worth a moment.
                await asyncio.wait({self._readers}, timeout=0.5)
                self._readers.cancel()
                await asyncio.wait({self._readers})
                self._process.output.close()
        if self.state is not State.FAILED:
            self._to(State.GONE, self.detail)
        self._site.changed()


def marker_of(cloud_id: str, replica: str) -> str:
    """What an engine's environment carries, so that it is found whatever the journal still had time to write."""
    return f"{cloud_id}/{replica}"


def _exit_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
