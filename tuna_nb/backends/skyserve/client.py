"""Calls of SkyPilot's SDK: each in a thread of its own, with a deadline, and cancelled at the API server when the
caller goes away. `sky` is imported here only, in the thread: that takes seconds.

The threads are daemons: the SDK waits for some answers without a limit, and a process must be able to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import itertools
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from tuna_nb.backends.patience import Setback, patiently
from tuna_nb.backends.skyserve.quiet import THREADS, hush_logs, quiet
from tuna_nb.backends.skyserve.said import INSTALL, setback
from tuna_nb.errors import BackendError, CapacityError, TunaError, UnclearError

T = TypeVar("T")

_UNDO_S: Final = 10.0
"""So long an abandoned call is waited for: to be submitted, so that it has an id, and then to be cancelled."""
_AGAIN_S: Final = 45.0
"""SkyPilot waits twice 15 s for what it made to be known everywhere."""
_SYNCED: Final = "0.14."
_numbers = itertools.count(1)


def installed() -> bool:
    """Whether SkyPilot's package is here; it is not imported."""
    return importlib.util.find_spec("sky") is not None


def synced() -> bool:
    """Whether this SkyPilot's controllers have the endpoint that `Service.sync_url` names: it is a private one."""
    return importlib.metadata.version("skypilot").startswith(_SYNCED)


class Client:
    """timeout_s: of calls that only read. pace: of the back-off; a test quickens it."""

    def __init__(self, *, timeout_s: float, pace: float) -> None:
        self._timeout_s = timeout_s
        self._pace = pace

    async def ask(self, what: str, submit: Callable[[Any], Any], *, within_s: float | None = None) -> Any:
        """What a call that may be repeated gives. submit(sky): returns a request id, or the thing itself.

        Raises CredentialsError, CapacityError, NotFoundError, BackendError; `Down` where the controller is not up.
        """
        limit = self._timeout_s if within_s is None else within_s

        async def attempt() -> Any:
            return await self._once(what, submit, limit)

        return await patiently(attempt, creates=False, pace=self._pace)

    async def change(self, what: str, submit: Callable[[Any], Any], *, within_s: float) -> Any:
        """As `ask`, once. Raises UnclearError where nobody knows what came of it."""
        try:
            return await self._once(what, submit, within_s, changes=True)
        except Setback as back:
            if back.acted and (back.passes or isinstance(back.error, Late)):
                raise UnclearError(back.error.message, back.error.hint) from back
            raise back.error from back

    async def rent(self, what: str, submit: Callable[[Any], Any], *, within_s: float) -> Any:
        """As `change`, and once more where no machine was to be had.

        SkyPilot's first two launches on an AWS account, as of a service's controller and of a router's machine,
        both make its IAM profile, and the later one fails as if there were no room.
        """
        try:
            return await self.change(what, submit, within_s=within_s)
        except CapacityError:
            await asyncio.sleep(_AGAIN_S * self._pace)
            return await self.change(what, submit, within_s=within_s)

    async def stream(
        self, what: str, write: Callable[[str], object], call: Callable[[Any, Any], Any], *, within_s: float | None
    ) -> None:
        """call(sky, stream): prints to a stream until it ends; `write` gets what it prints, in its thread."""
        writer = _Writer(write)
        try:
            await self._once(what, lambda sky: call(sky, writer), within_s)
        except Setback as back:
            raise back.error from back
        finally:
            writer.closed = True

    async def _once(
        self, what: str, submit: Callable[[Any], Any], limit: float | None, *, changes: bool = False
    ) -> Any:
        """Raises Setback, Down, or TunaError for what no time will mend."""
        if not installed():
            raise BackendError("skyserve: SkyPilot is not installed", INSTALL)
        job = _Job(submit)
        job.start()
        try:
            async with asyncio.timeout(limit):
                return await asyncio.shield(job.outcome)
        except TimeoutError:
            await job.abandon(waits=changes)
            late = Late(
                f"skyserve: {what}: no answer from SkyPilot within {limit:g} s",
                "`sky api status` shows what it does",
            )
            raise Setback(late, passes=False) from None
        except asyncio.CancelledError:
            await job.abandon(waits=changes)
            raise
        except TunaError:
            raise
        except Exception as exc:  # SkyPilot raises whatever its clouds raise
            if type(exc).__name__ == "ClusterNotUpError":
                raise Down(exc, what) from exc
            raise setback(exc, what) from exc


class Late(BackendError):
    """No answer in time."""


class Down(BackendError):
    """SkyServe's controller is not up. state: as SkyPilot knows it, None where there is no controller at all."""

    def __init__(self, exc: Any, what: str) -> None:
        error = setback(exc, what).error
        super().__init__(error.message, error.hint)
        known = getattr(exc, "cluster_status", None)
        self.state: str | None = None if known is None else str(getattr(known, "value", known))

    @property
    def has_no_services(self) -> bool:
        """There is none, or it stopped itself, which it does when no service is left."""
        return self.state in (None, "STOPPED")


class _Job:
    """One call in its thread."""

    def __init__(self, submit: Callable[[Any], Any]) -> None:
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()
        # Nobody may be left to look at it.
        self.outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._submitted = asyncio.Event()
        self._request: str | None = None
        self._abandoned = False

    def start(self) -> None:
        _thread(self._run)

    async def abandon(self, *, waits: bool) -> None:
        """End what the API server does for it. waits: until that is done, as far as it is quickly done."""
        self._abandoned = True
        if not waits:
            if self._request is not None:
                _thread(self._cancel)
            return
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(_UNDO_S):
                await self._submitted.wait()
                if self._request is not None and not self.outcome.done():
                    undone: asyncio.Future[None] = self._loop.create_future()
                    _thread(lambda: self._tell(undone, self._cancel))
                    await undone

    def _run(self) -> None:
        self._tell(self.outcome, self._call)
        self._post(self._submitted.set)

    def _call(self) -> Any:
        import sky

        hush_logs()
        try:
            return self._carry_out(sky)
        except BaseException:
            _look_afresh(sky)
            raise

    def _carry_out(self, sky: Any) -> Any:
        with quiet():
            told = self._submit(sky)
            if not isinstance(told, sky.server.common.RequestId):
                return told
            self._request = str(told)
            self._post(self._submitted.set)
            if self._abandoned:
                sky.api_cancel(told, silent=True)
            return sky.get(told)

    def _cancel(self) -> None:
        import sky

        with quiet(), contextlib.suppress(Exception):  # what was to be ended may have ended
            sky.get(sky.api_cancel(self._request, silent=True))

    def _tell(self, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
        value, raised = None, None
        try:
            value = call()
        except BaseException as exc:  # noqa: BLE001 - told to whoever waits, SystemExit too
            raised = exc if isinstance(exc, Exception) else RuntimeError(repr(exc))

        def settle() -> None:
            if future.done():
                return
            if raised is not None:
                future.set_exception(raised)
            else:
                future.set_result(value)

        self._post(settle)

    def _post(self, step: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(step)


class _Writer:
    """A text stream for the SDK to print to. One that is closed breaks the SDK's loop at its next line."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self.closed = False

    def write(self, text: str) -> int:
        if self.closed:
            raise BrokenPipeError("nobody reads any more")
        self._write(text)
        return len(text)

    def flush(self) -> None:
        pass


def _look_afresh(sky: Any) -> None:
    """SkyPilot keeps what its API server last said of its health for 5 s, a failure too, and raises it anew without
    asking: what passed at once would outlast our tries."""
    kept = getattr(sky.server.common, "get_api_server_status_response", None)
    if (forget := getattr(kept, "cache_clear", None)) is not None:
        forget()


def _thread(target: Callable[[], object]) -> None:
    threading.Thread(target=target, name=f"{THREADS}-{next(_numbers)}", daemon=True).start()
