"""What every cloud's adapter does alike: create once, whatever answers got lost; destroy until it is seen gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from tuna_nb import tls
from tuna_nb.errors import BackendError, ConflictError, UnclearError

T = TypeVar("T")

_LOOKS: Final = 4
_PAUSE_S: Final = 0.5
_KNOCK_S: Final = 2.0


async def create_once(
    find: Callable[[], Awaitable[T | None]], create: Callable[[], Awaitable[T]], *, pace: float = 1.0
) -> T:
    """What is there under our name, else what `create` makes.

    After an unclear answer, or when somebody was quicker, it is looked for several times: a listing may lag. Not
    found then, the error is raised as it was: creating again could make a second one.
    """
    if (there := await find()) is not None:
        return there
    try:
        return await create()
    except (UnclearError, ConflictError):
        for look in range(_LOOKS):
            if (there := await find()) is not None:
                return there
            await asyncio.sleep(_PAUSE_S * pace * 2**look)
        raise


async def unbroken(work: Awaitable[T]) -> T:
    """Await a call that creates to its end, even when cancelled meanwhile: who undoes it must find what it made.

    So `work` must be one call, which ends by its own time-out; raises CancelledError after that.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: what became of it is for the next listing to tell
        raise


async def knock(url: str, headers: Mapping[str, str]) -> None:
    """Ask for `url`: a request is what starts a container. Its answer is not waited for."""
    import httpx

    async with httpx.AsyncClient(verify=tls.trusted()) as http:
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(_KNOCK_S):
                await http.get(url, headers=dict(headers))


async def until_gone(
    is_there: Callable[[], Awaitable[bool]], what: str, *, within_s: float, poll_s: float, hint: str
) -> None:
    """Return when it is seen gone. Raises BackendError when it is still there after `within_s`."""
    end = time.monotonic() + within_s
    while await is_there():
        if time.monotonic() > end:
            raise BackendError(f"{what} is still there {within_s:g} s after it was deleted", hint)
        await asyncio.sleep(poll_s)
