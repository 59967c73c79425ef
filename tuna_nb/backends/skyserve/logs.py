"""A replica's log as lines. SkyPilot's logs have no times: a line's time is when it was read."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from tuna_nb.backends.base import LogLine
from tuna_nb.backends.skyserve.client import Client

_ALL_S: Final = 60.0
_TAIL: Final = 5000
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX: Final = re.compile(r"^\([^)]*pid=\d+[^)]*\) ?")


async def of_replica(sky: Client, service: str, replica: str, *, follow: bool) -> AsyncGenerator[LogLine, None]:
    """What the replica's job printed, its end or all that comes. Raises BackendError."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def write(text: str) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, text)

    def tail(sdk: Any, stream: Any) -> None:
        sdk.serve.tail_logs(
            service, target="replica", replica_id=int(replica), follow=follow, output_stream=stream, tail=_TAIL
        )

    async def read() -> None:
        try:
            await sky.stream(f"log of {service}-{replica}", write, tail, within_s=None if follow else _ALL_S)
        finally:
            pieces.put_nowait(None)

    reading = asyncio.create_task(read())
    rest = ""
    try:
        while (piece := await pieces.get()) is not None:
            *whole, rest = (rest + piece).split("\n")
            for text in whole:
                if (line := _clean(text)) is not None:
                    yield LogLine(time.time(), replica, line)
        if (line := _clean(rest)) is not None:
            yield LogLine(time.time(), replica, line)
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _clean(text: str) -> str | None:
    line = _PREFIX.sub("", _ESCAPES.sub("", text.rpartition("\r")[2] or text.rstrip("\r"))).rstrip()
    return line or None
