"""Long work: one daemon asyncio loop, jobs that report immutable snapshots, cancel, re-attach by name.

A job holds no widget and never prints: from a background thread, `print` lands in whatever cell ran last.
Views subscribe; they are called on the loop thread only, one snapshot at a time, and a view that raises is
dropped without harm to the job.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tuna_nb.errors import CancelledError, TunaError

T = TypeVar("T")

INTERRUPT_GRACE_S = 60.0
"""How long an interrupted wait lets the job remove what it had made."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """at: Unix seconds."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at one moment. fraction: 0..1. state: running, cancelling, done, failed, cancelled."""

    name: str
    verb: str
    state: str = "running"
    step: str = "starting"
    fraction: float = 0.0
    started_at: float = 0.0
    ended_at: float | None = None
    log: tuple[LogEntry, ...] = ()
    error: TunaError | None = None
    facts: tuple[tuple[str, str], ...] = ()
    """Label and value pairs worth showing beside the bar: the endpoint, the rate per hour."""

    @property
    def final(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def elapsed_s(self, now: float) -> float:
        return max(0.0, (self.ended_at or now) - self.started_at)


class Report:
    """How work tells what it is doing. Each call makes a new snapshot; safe from any thread."""

    def __init__(self, publish: Callable[..., None]) -> None:
        self.publish = publish

    def step(self, step: str, fraction: float) -> None:
        """A new step begins; `fraction` (0..1) of the whole is done."""
        self.publish(log=step, step=step, fraction=fraction)

    def note(self, text: str) -> None:
        """A line for the log; the step stays."""
        self.publish(log=text)

    def fact(self, label: str, value: str) -> None:
        """Something to show beside the bar from now on."""
        self.publish(fact=(label, value))


@dataclass(frozen=True, slots=True)
class Work:
    """Long work that a command has checked and prepared; a frontend decides how to wait for it.

    name: re-running work of a name re-attaches to the job that is under way. run: gets a Report. shows_result: its
    result is what a person waits for, and is shown where its progress was shown already.
    """

    name: str
    verb: str
    run: Callable[[Report], Coroutine[Any, Any, Any]]
    shows_result: bool = False


class LoopThread:
    """The one background thread with the one asyncio loop of this process, started when first needed."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def loop(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            if cls._loop is None or cls._loop.is_closed():
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, name="tuna-jobs", daemon=True).start()
            return cls._loop

    @classmethod
    def run(cls, work: Coroutine[Any, Any, T]) -> T:
        """Run short work to its end from another thread; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, cls.loop())
        try:
            return _wait(future, None)
        except KeyboardInterrupt:
            future.cancel()
            raise


def _wait(future: concurrent.futures.Future[T], timeout_s: float | None) -> T:
    # Short waits keep the caller interruptible: a plain result() holds Ctrl-C back on some platforms.
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            return future.result(0.1)
        except concurrent.futures.TimeoutError:
            if future.done():
                return future.result()
            if end is not None and time.monotonic() > end:
                raise


class Job:
    """One piece of work under way. `await job` waits without blocking the kernel; `wait()` blocks."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.time) -> None:
        self.name = work.name
        self.verb = work.verb
        self._clock = clock
        self._work = work
        self._lock = threading.Lock()
        self._snapshot = Snapshot(work.name, work.verb, started_at=clock())
        self._views: list[Callable[[Snapshot], None]] = []
        self._loop = LoopThread.loop()
        self._task: asyncio.Task[Any] | None = None
        self._future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(self._run(), self._loop)

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def subscribe(self, view: Callable[[Snapshot], None]) -> None:
        """Call `view` on the loop thread with the snapshot of now and with every one to come."""

        def attach() -> None:
            self._views.append(view)
            self._show(view, self._snapshot)

        self._loop.call_soon_threadsafe(attach)

    def unsubscribe(self, view: Callable[[Snapshot], None]) -> None:
        def detach() -> None:
            if view in self._views:
                self._views.remove(view)

        self._loop.call_soon_threadsafe(detach)

    def cancel(self) -> bool:
        """Ask the work to stop and undo itself; False when it has ended. Returns at once, from any thread."""
        if self._snapshot.final:
            return False

        def stop() -> None:
            if self._task is None:
                # Submitted but not begun: its first step is already in the loop's queue, before this one.
                self._loop.call_soon(stop)
            elif not self._snapshot.final and self._snapshot.state != "cancelling":
                self._publish(log="cancelling", state="cancelling")
                self._task.cancel()

        self._loop.call_soon_threadsafe(stop)
        return True

    def wait(self, timeout_s: float | None = None) -> Any:
        """Block until it ends and return its result. An interrupt cancels it and waits for its clean-up.

        Raises the TunaError it failed with, CancelledError when it was cancelled, TimeoutError.
        """
        try:
            return _wait(self._future, timeout_s)
        except KeyboardInterrupt:
            self.interrupt()
            return None

    def interrupt(self) -> None:
        """Cancel it and wait for its clean-up; a second interrupt ends the waiting.

        Raises CancelledError, or the TunaError it failed with; returns where it had ended well just then.
        """
        self.cancel()
        try:
            _wait(self._future, INTERRUPT_GRACE_S)
        except TunaError as e:
            raise e from None
        except (concurrent.futures.TimeoutError, KeyboardInterrupt):
            raise CancelledError(
                f"{self.name}: interrupted; its clean-up is still running",
                f"`tuna list` shows what is left, `tuna destroy --service-name {self.name}` removes it",
            ) from None

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self._future).__await__()

    def __repr__(self) -> str:
        s = self._snapshot
        return f"<tuna job {s.name}: {s.verb}, {s.state}, {s.fraction:.0%}, {s.step}>"

    async def _run(self) -> Any:
        self._task = asyncio.current_task()
        ticking = asyncio.create_task(self._tick())
        try:
            return await self._work_on()
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        """Show the views the same snapshot again each second, so that a person sees time pass."""
        while True:
            await asyncio.sleep(1)
            for view in list(self._views):
                self._show(view, self._snapshot)

    async def _work_on(self) -> Any:
        try:
            result = await self._work.run(Report(self._report))
        except asyncio.CancelledError:
            error: TunaError = CancelledError(f"{self.name}: {self.verb} was cancelled")
            self._publish(log="cancelled", state="cancelled", ended_at=self._clock(), error=error)
            # Our own error, not asyncio's: a bare CancelledError has no text and would look like a crash.
            raise error from None
        except TunaError as e:
            state = "cancelled" if isinstance(e, CancelledError) else "failed"
            self._publish(log=f"{state}: {e.message}", state=state, ended_at=self._clock(), error=e)
            raise
        except Exception as e:
            error = TunaError(
                f"{self.name}: {self.verb} failed unexpectedly: {type(e).__name__}: {e}",
                "this is a defect in Tuna; `%tb` (notebook) or `-v` (terminal) has the details",
            )
            self._publish(log=f"failed: {e}", state="failed", ended_at=self._clock(), error=error)
            raise error from e
        self._publish(log="done", state="done", fraction=1.0, step="done", ended_at=self._clock())
        return result

    def _report(self, **change: Any) -> None:
        if threading.current_thread().name == "tuna-jobs":
            self._publish(**change)
        else:
            self._loop.call_soon_threadsafe(lambda: self._publish(**change))

    def _publish(self, *, log: str | None = None, fact: tuple[str, str] | None = None, **change: Any) -> None:
        """Every change of a job goes through here, on the loop thread."""
        with self._lock:
            old = self._snapshot
            if log is not None:
                change["log"] = (*old.log, LogEntry(self._clock(), log))[-500:]
            if fact is not None:
                change["facts"] = (*(f for f in old.facts if f[0] != fact[0]), fact)
            self._snapshot = snapshot = replace(old, **change)
        for view in list(self._views):
            self._show(view, snapshot)

    def _show(self, view: Callable[[Snapshot], None], snapshot: Snapshot) -> None:
        try:
            view(snapshot)
        except Exception as e:  # noqa: BLE001 - a view is a guest: whatever breaks it must not break the work
            if view in self._views:
                self._views.remove(view)
            entry = LogEntry(self._clock(), f"a view was dropped: {type(e).__name__}: {e}")
            self._snapshot = replace(self._snapshot, log=(*self._snapshot.log, entry))


class Jobs:
    """The jobs of this process by name: submitting a name that is under way re-attaches to it."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def submit(self, work: Work) -> tuple[Job, bool]:
        """The job, and whether it is new."""
        with self._lock:
            running = self._jobs.get(work.name)
            if running is not None and not running.snapshot.final and running.verb == work.verb:
                return running, False
            self._jobs[work.name] = job = Job(work)
            return job, True

    def get(self, name: str) -> Job | None:
        return self._jobs.get(name)

    def running(self) -> list[Job]:
        return [j for j in self._jobs.values() if not j.snapshot.final]

    def cancel_all(self, grace_s: float = INTERRUPT_GRACE_S) -> None:
        """Cancel what runs and wait for the clean-up, at most `grace_s` seconds in all."""
        jobs = self.running()
        for job in jobs:
            job.cancel()
        end = time.monotonic() + grace_s
        for job in jobs:
            concurrent.futures.wait([job._future], max(0.0, end - time.monotonic()))
