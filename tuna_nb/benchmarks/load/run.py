"""A load test from the side of whoever asks for it: the generator has a process of its own, and its rows come here.

So a busy notebook delays no request, and a request delays no notebook. The load, its keys with it, goes through a
pipe; the process inherits what Python, TLS and name lookup need of the environment, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from tuna_nb.benchmarks.load import arrivals, prompts
from tuna_nb.benchmarks.load.spec import Lag, LoadSpec
from tuna_nb.benchmarks.load.wire import lag_of, spec_line, unpacked
from tuna_nb.benchmarks.rows import Row
from tuna_nb.errors import RequestError, TunaError

_TELL_EVERY_S: Final = 0.1
_STOP_S: Final = 5.0
_READ_BYTES: Final = 1 << 18
_LATE_S: Final = 0.005
_LAG_SHARE, _LAG_S = 0.05, 0.001
_BUSY: Final = 0.9
_MOST_GAPS: Final = 200_000
_PASSED_ON: Final = frozenset(
    "PATH HOME LANG TZ TMPDIR TEMP TMP SYSTEMROOT SSL_CERT_FILE SSL_CERT_DIR VIRTUAL_ENV LD_LIBRARY_PATH".split()
)


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a load test. began_at: Unix seconds of the measured part's begin; took_s: its length.

    lag: how late the generator was; None where it did not live to tell. interrupted: it was stopped, or died, and
    these are the rows until then. notes: what a reader must know of these figures. died: the first note says how.
    """

    rows: tuple[Row, ...]
    lag: Lag | None
    began_at: float
    took_s: float
    interrupted: bool
    notes: tuple[str, ...] = ()
    died: bool = False


def check(spec: LoadSpec) -> None:
    """Raises RequestError for a load that can't be. Files of prompts and traces are read when it runs."""
    parts = urlsplit(spec.target.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"no address: {spec.target.base_url!r}", "give a URL like http://host:port/v1")
    for name, seconds, least in (
        ("request timeout", spec.request_timeout_s, 0.001),
        ("grace", spec.grace_s, 0.0),
    ):
        if not (math.isfinite(seconds) and seconds >= least):
            raise RequestError(f"a {name} of {seconds:g} s", f"the {name} is {'above 0' if least else '0 or more'}")
    if not 0 <= spec.warmup_requests <= 100_000:
        raise RequestError(f"{spec.warmup_requests} warm-up requests", "there are 0 to 100,000 of them")
    arrivals.check(spec)
    prompts.check(spec)


async def run(spec: LoadSpec, on_rows: Callable[[Sequence[Row]], None]) -> Ran:
    """Run a load test. on_rows: told of new rows on this loop, at most ten times a second.

    Cancelled, it stops the generator and returns what came until then, `interrupted`; so when the generator dies.
    Raises RequestError for a load that can't be, TunaError where the generator does not start.
    """
    check(spec)
    reading = _Reading(on_rows)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "tuna_nb.benchmarks.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(os.environ),
        # A terminal's Ctrl-C is not for it. No session of its own: Linux schedules sessions as groups, and one more
        # would get another share of a busy machine, whatever its niceness.
        process_group=0,
    )
    assert process.stderr is not None
    complaints = asyncio.create_task(process.stderr.read())
    cancelled = False
    try:
        try:
            await _talk(process, spec, reading)
        except asyncio.CancelledError:
            cancelled = True
            await _stop(process, reading)
        await process.wait()
        reading.tell()
        said = (await complaints).decode(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        complaints.cancel()
    if cancelled:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()  # what it asked for is done: the result is what came until then
    return reading.result(process.returncode, said, cancelled)


async def _talk(process: asyncio.subprocess.Process, spec: LoadSpec, reading: _Reading) -> None:
    """Hand the load over, and read until the generator closes its end. stdin stays open: its end is a command."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):  # it died: what it has to say comes on stderr
        process.stdin.write(spec_line(spec))
        await process.stdin.drain()
    await reading.to_end(process.stdout)


async def _stop(process: asyncio.subprocess.Process, reading: _Reading) -> None:
    """Ask it to end and read its last rows; kill it where it does not."""
    assert process.stdout is not None
    try:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(_STOP_S):
            await reading.to_end(process.stdout)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()


class _Reading:
    """What the generator has told so far."""

    def __init__(self, on_rows: Callable[[Sequence[Row]], None]) -> None:
        self._on_rows = on_rows
        self._rows: list[Row] = []
        self._told = 0
        self._told_at = -math.inf
        self._held = b""
        self._task: asyncio.Task[bytes] | None = None
        self._begun: tuple[float, float] | None = None
        self._last: dict[str, Any] | None = None
        self._refused: tuple[str, str | None] | None = None

    async def to_end(self, stdout: asyncio.StreamReader) -> None:
        """Read on, telling of rows now and then. May be cancelled and begun again: nothing is lost."""
        while True:
            if self._task is None:
                self._task = asyncio.create_task(stdout.read(_READ_BYTES))
            waiting = self._told < len(self._rows)
            left = max(0.0, self._told_at + _TELL_EVERY_S - time.monotonic()) if waiting else None
            await asyncio.wait([self._task], timeout=left)
            if self._task.done():
                data, self._task = self._task.result(), None
                if not data:
                    return
                self._feed(data)
            if time.monotonic() - self._told_at >= _TELL_EVERY_S:
                self.tell()

    def tell(self) -> None:
        """Hand on what is new."""
        if self._told < len(self._rows):
            new = self._rows[self._told :]
            self._told, self._told_at = len(self._rows), time.monotonic()
            self._on_rows(new)

    def result(self, code: int | None, said: str, cancelled: bool) -> Ran:
        """What came of it. Raises as `run` does."""
        if self._refused is not None:
            raise RequestError(*self._refused)
        notes: list[str] = []
        died = self._last is None and not cancelled
        why = _why(code, said)
        if died and self._begun is None and not self._rows:
            raise TunaError(f"the load generator did not start: {why}", "run it again; if it stays, this is a bug")
        if died:
            notes.append(f"the load generator died ({why}): these are the rows until then")
        lag, now = None, time.monotonic()
        began_at, begun = self._begun or (time.time(), now)
        took_s = now - begun
        if self._last is not None:
            lag, took_s = lag_of(self._last["lag"]), float(self._last["took_s"])
            notes += notes_of(lag, self._rows)
        return Ran(tuple(self._rows), lag, began_at, took_s, cancelled or died, tuple(notes), died)

    def _feed(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n") if b"\n" in data else (self._held + data,)
        for line in lines:
            told = json.loads(line)
            if "rows" in told:
                self._rows += [unpacked(values) for values in told["rows"]]
            elif "begun" in told:
                self._begun = (float(told["begun"]), time.monotonic())
            elif "refused" in told:
                message, hint = told["refused"]
                self._refused = (message, hint)
            else:
                self._last = told


def notes_of(lag: Lag, rows: Sequence[Row]) -> list[str]:
    """What the generator's own lateness means for the figures, where it means something."""
    notes = []
    if lag.late_p99 > _LATE_S:
        notes.append(
            f"the generator itself was late by {_ms(lag.late_p99)} or more for 1 % of the requests: these "
            "latencies are not the server's alone; lower the rate, or give this machine less other work"
        )
    gap_s = _median_gap_s(rows)
    bound = max(_LAG_S, _LAG_SHARE * gap_s) if gap_s is not None else _LATE_S
    if lag.loop_p99 > bound:
        against = f", and the median gap between chunks is {_ms(gap_s)}" if gap_s is not None else ""
        notes.append(
            f"1 % of the time the generator itself noticed answers {_ms(lag.loop_p99)} or more too late{against}: "
            "the slowest times are not the server's alone; lower the number of streams, or give this machine less "
            "other work"
        )
    if lag.cpu > _BUSY:
        notes.append(
            f"the generator used {lag.cpu:.0%} of the one core that it can use: what was reached is its limit, and "
            "perhaps not the server's"
        )
    if not lag.uvloop:
        notes.append("the generator ran without uvloop (there is none here): its own delay is several times higher")
    return notes


def _median_gap_s(rows: Sequence[Row]) -> float | None:
    gaps: list[float] = []
    for row in rows:
        if not row.warmup:
            gaps += row.gaps_ms
            if len(gaps) > _MOST_GAPS:
                break
    return statistics.median(gaps) / 1000 if gaps else None


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _why(code: int | None, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    ended = f"signal {-code}" if code is not None and code < 0 else f"exit {code}"
    return f"{ended}: {lines[-1][:200]}" if lines else ended


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in ours.items()
        if name.upper() in _PASSED_ON or name.startswith(("PYTHON", "LC_"))
    }
