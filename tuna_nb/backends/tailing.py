"""Logs of several replicas as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

from tuna_nb.backends.base import LogLine

_END: Final = None


async def merged(sources: Sequence[AsyncIterator[LogLine]], *, follow: bool) -> AsyncIterator[LogLine]:
    """All lines in order of time; when following, as they come. An error of one source is raised."""
    if not follow:
        lines = [line for source in sources async for line in source]
        for found in sorted(lines, key=lambda one: one.at):
            yield found
        return
    queue: asyncio.Queue[LogLine | None] = asyncio.Queue(1000)

    async def pump(source: AsyncIterator[LogLine]) -> None:
        async for line in source:
            await queue.put(line)

    async def all_of_them() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(pump(source))
        finally:
            await queue.put(_END)

    task = asyncio.create_task(all_of_them())
    try:
        while (line := await queue.get()) is not _END:
            yield line
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_quiet(source: AsyncGenerator[LogLine, None], quiet_s: float) -> AsyncGenerator[LogLine]:
    """What is there of a log that never ends: up to now, or to the first `quiet_s` seconds without a line."""
    now = time.time()
    async with aclosing(source):
        while True:
            try:
                async with asyncio.timeout(quiet_s):
                    line = await anext(source)
            except (TimeoutError, StopAsyncIteration):
                return
            yield line
            if line.at > now:
                return  # a log that grows faster than it is read, of a crash loop, say, would never be quiet
