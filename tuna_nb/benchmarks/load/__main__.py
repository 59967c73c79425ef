"""The generator's own process: `python -m tuna_nb.benchmarks.load`, started by `run`.

The load comes as one line on stdin, rows go out on stdout; see `wire`. It ends at once at a SIGTERM,
or when stdin closes: whoever started it is gone then. Nobody waits for stdout but a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, Final

from tuna_nb.benchmarks.load.generator import Generator
from tuna_nb.benchmarks.load.wire import packed, spec_of
from tuna_nb.benchmarks.rows import Row
from tuna_nb.errors import TunaError

_FLUSH_S: Final = 0.1
_LAST_WORDS_S: Final = 2.0
_YOUNG: Final = 20_000


class Outlet:
    """stdout, written by a thread: a reader that is slow, as a busy notebook is, delays no stream."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._rows: list[str] = []
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def row(self, row: Row) -> None:
        """Keep a row for the next line."""
        self._rows.append(json.dumps(packed(row)))

    def flush(self) -> None:
        """Write the rows that there are."""
        if self._rows:
            self._lines.put(f'{{"rows":[{",".join(self._rows)}]}}\n'.encode())
            self._rows.clear()

    def tell(self, what: dict[str, Any]) -> None:
        """Write a line, after the rows."""
        self.flush()
        self._lines.put(json.dumps(what).encode() + b"\n")

    def close(self) -> None:
        """Return when all is written, or nobody has read it for a while."""
        self._lines.put(None)
        self._thread.join(_LAST_WORDS_S)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):
                view = memoryview(line)
                while view:
                    view = view[os.write(1, view) :]


async def _generate(line: bytes, outlet: Outlet, uvloop: bool) -> None:
    try:
        generator = Generator(spec_of(line), outlet.row, uvloop=uvloop)
    except TunaError as error:
        outlet.tell({"refused": [error.message, error.hint]})
        return
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows has no such signal: stdin's end is enough
        loop.add_signal_handler(signal.SIGTERM, generator.stop)
    threading.Thread(target=_watch, args=(loop, generator), daemon=True).start()
    # What is here stays: only what is new is looked through now and then, in a fraction of a millisecond.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 1_000_000, 1_000_000)
    flushing = loop.create_task(_flush(outlet))
    try:
        lag = await generator.run(lambda at: outlet.tell({"begun": at}))
    finally:
        flushing.cancel()
    outlet.tell({"lag": asdict(lag), "took_s": generator.took_s})


async def _flush(outlet: Outlet) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        outlet.flush()


def _watch(loop: asyncio.AbstractEventLoop, generator: Generator) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(generator.stop)


def _line() -> bytes:
    """Unbuffered: `_watch` reads on from there."""
    told = b""
    while not told.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            return b""
        told += piece
    return told


def _run(main: Coroutine[Any, Any, None], uvloop: bool) -> None:
    if uvloop:
        import uvloop as fast

        fast.run(main)
    else:
        asyncio.run(main)


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> None:
    """See the module."""
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever started it
    line = _line()
    if not line:
        sys.exit(1)
    outlet, uvloop = Outlet(), _has_uvloop()
    try:
        _run(_generate(line, outlet, uvloop), uvloop)
    finally:
        outlet.close()


if __name__ == "__main__":
    main()
