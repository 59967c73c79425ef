"""Watching a serverless side while it starts, and while it goes to zero: what its provider shows, and when."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from tuna_nb.backends.base import Backend, LogLine, Ref, Replica, State, Status, UsageInterval
from tuna_nb.benchmarks.cold_start import PLACED, READY, Mark, Zero, engine_marks
from tuna_nb.errors import BackendError, EngineError, TunaError

LOGS_S: Final = 15.0
MOST_LINES: Final = 5000
_OVER: Final = (State.GONE, State.FAILED)
_BEGUN: Final = (State.STARTING, State.READY, State.DRAINING, State.STOPPING)
_SLACK_S: Final = 2.0
"""A provider's clock may be off by so much and still tell of this start."""


@dataclass(frozen=True, slots=True)
class _Look:
    """began_at, ended_at: Unix seconds, of the asking and of the answer."""

    began_at: float
    ended_at: float
    status: Status


@dataclass
class Watch:
    """Looks at one resource as often as its provider allows, while it is being `looking`.

    ref: how the provider knows it by now. began_at: Unix seconds of the asking that it is about.
    """

    backend: Backend
    ref: Callable[[], Ref]
    began_at: float = 0.0
    failed: str | None = None
    """Why the engine can't start, as the provider says."""
    troubles: int = 0
    """Looks that the provider did not answer."""
    _looks: list[_Look] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[Watch]:
        task = asyncio.create_task(self._look_on())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def marks(self, ended_at: float) -> tuple[Mark, ...]:
        """What the provider has shown of the start that ended at `ended_at` (Unix seconds); asks once more."""
        with contextlib.suppress(BackendError):
            await self._look()
        begun = self._begun()
        found = [
            mark for mark in (self._seen(PLACED, _BEGUN), self._seen(READY, (State.READY,))) if mark is not None
        ]
        told = {mark.name: mark for mark in found}
        if begun is not None and begun.start_told and begun.started_at >= self.began_at - _SLACK_S:
            told[PLACED] = Mark(PLACED, self._ms(begun.started_at), 0, "status")
        for interval in await self._usage():
            told[PLACED] = Mark(PLACED, self._ms(interval.started_at), 0, "usage")
            if interval.ready_at is not None:
                told[READY] = Mark(READY, self._ms(interval.ready_at), 0, "usage")
            break
        names = frozenset(r.id for look in self._looks for r in look.status.replicas)
        lines = await self._lines()
        return (*told.values(), *engine_marks(lines, self.began_at, ended_at, names))

    @property
    def resolution_s(self) -> float:
        """The longest time between one look and the next."""
        ends = [look.ended_at for look in self._looks]
        return max((b - a for a, b in itertools.pairwise(ends)), default=self.backend.poll_s)

    async def _look_on(self) -> None:
        while True:
            try:
                await self._look()
            except BackendError:
                self.troubles += 1
            await asyncio.sleep(self.backend.poll_s)

    async def _look(self) -> None:
        began = time.time()
        status = await self.backend.status(self.ref())
        self._looks.append(_Look(began, time.time(), status))
        if status.state is State.FAILED:
            self.failed = status.detail or "the provider says that it failed"

    def _ms(self, at: float) -> int:
        return round((at - self.began_at) * 1000)

    def _begun(self) -> Replica | None:
        return next((r for look in self._looks for r in look.status.replicas if r.state in _BEGUN), None)

    def _seen(self, name: str, states: tuple[State, ...]) -> Mark | None:
        """When a replica was first seen in one of the states; it was so at some time since the look before."""
        before = self.began_at
        for look in self._looks:
            if any(r.state in states for r in look.status.replicas):
                error = max(0.0, look.ended_at - max(before, self.began_at))
                return Mark(name, self._ms(look.ended_at), round(error * 1000), "looks")
            before = look.began_at
        return None

    async def _usage(self) -> list[UsageInterval]:
        if not self.backend.tells_usage:
            return []
        with contextlib.suppress(BackendError):
            told = await self.backend.usage(self.ref())
            # At the asking all earlier ones had ended.
            new = [i for i in told if i.ended_at is None or i.ended_at > self.began_at]
            own = [i for i in new if i.started_at >= self.began_at - _SLACK_S]
            return sorted(own, key=lambda i: i.started_at)
        return []

    async def _lines(self) -> list[LogLine]:
        found: list[LogLine] = []
        with contextlib.suppress(TunaError, TimeoutError):
            async with asyncio.timeout(LOGS_S), contextlib.aclosing(_generator(self)) as lines:
                async for line in lines:
                    found.append(line)
                    if len(found) >= MOST_LINES:
                        break
        return found


async def _generator(watch: Watch) -> AsyncGenerator[LogLine, None]:
    async for line in watch.backend.logs(watch.ref(), since=watch.began_at):
        yield line


async def wait_for_zero(backend: Backend, ref: Ref, wait_s: float) -> Zero:
    """Return when the provider itself says that nothing runs and nothing bills.

    Raises EngineError where the resource is gone or has failed, BackendError where it is not at zero in `wait_s`.
    """
    begun = time.monotonic()
    said = "nothing: it could not be asked"
    while True:
        try:
            status = await backend.status(ref)
            said = words(status)
            if status.state in _OVER:
                raise EngineError(f"{backend.name} says that {ref.name} is {status.state}: {status.detail}")
            if at_zero(status) and not await _still_billed(backend, ref):
                return Zero(time.monotonic() - begun, said)
        except EngineError:
            raise
        except BackendError as e:
            said = f"nothing: {e.message}"
        if time.monotonic() - begun > wait_s:
            raise BackendError(
                f"{backend.name} has not scaled {ref.name} to zero in {wait_s:.0f} s: it says {said}",
                "--idle-wait SECONDS waits longer; a shorter --scaledown-window comes to zero sooner",
            )
        await asyncio.sleep(min(backend.poll_s, max(0.0, wait_s)))


def at_zero(status: Status) -> bool:
    """Idle, without a replica that has not ended, and not billing."""
    return status.state is State.IDLE and not status.billing and all(r.state in _OVER for r in status.replicas)


def words(status: Status) -> str:
    """A provider's status in a few words."""
    alive = sum(r.state not in _OVER for r in status.replicas)
    billing = "billing" if status.billing else "not billing"
    return f"{status.state}, {alive} replica{'s' * (alive != 1)}, {billing}"


async def _still_billed(backend: Backend, ref: Ref) -> bool:
    """Where the provider keeps a history of what it bills, it has to be at its end, too."""
    return backend.tells_usage and any(i.ended_at is None for i in await backend.usage(ref))
