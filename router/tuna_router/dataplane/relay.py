"""The last step: bytes to the client as they come; and when they stop coming, an end that says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tuna_router.dataplane.account import Reader
from tuna_router.dataplane.forward import Answered
from tuna_router.dataplane.intake import Presence
from tuna_router.dataplane.upstream import BackendLost
from tuna_router.envelope import Headers, Send, error_event

_LAST_WORD_S = 1.0


async def relay(
    send: Send,
    answer: Answered,
    head: Headers,
    reader: Reader,
    presence: Presence,
    *,
    idle_s: float,
    total_s: float,
    done: Callable[[str | None], None],
) -> None:
    """Pass an answer on. `done` is called with None, or with what broke it after its first byte.

    It is called before the last bytes are sent, so that whoever has read them finds the request
    counted and its place free.

    A broken event stream ends with an error event. Anything else that breaks is left incomplete, upon
    which the server closes the connection and the client notices. A stall is either side's: nothing
    read or written for `idle_s`, or not done in `total_s`.
    """
    reader.feed(answer.first)
    await send({"type": "http.response.start", "status": answer.status, "headers": head})
    if answer.pieces is None:
        done(None)
        await send({"type": "http.response.body", "body": answer.first, "more_body": False})
        return
    last = answer.first[-4:]
    now = asyncio.get_running_loop().time
    end_at = now() + total_s
    broken: str | None = None
    try:
        async with asyncio.timeout(min(idle_s, total_s)) as patience:
            await send({"type": "http.response.body", "body": answer.first, "more_body": True})
            async for piece in answer.pieces:
                patience.reschedule(min(now() + idle_s, end_at))
                reader.feed(piece)
                last = (last + piece)[-4:]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except TimeoutError:
        broken = "it stalled"
    except BackendLost as error:
        broken = error.reason
    except asyncio.CancelledError:
        if answer.is_sse and not presence.gone:
            await _finish(send, error_event("The router is stopping.", "router_stopping", last))
        raise
    if broken is None and reader.cut_short:
        broken = "the stream ended without a finish"
    done(broken)
    if broken is None:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    elif answer.is_sse:
        message = f"The backend broke off in the middle of its answer: {broken}."
        await _finish(send, error_event(message, "stream_broken", last))


async def _finish(send: Send, body: bytes) -> None:
    try:
        async with asyncio.timeout(_LAST_WORD_S):
            await send({"type": "http.response.body", "body": body, "more_body": False})
    except TimeoutError:
        return  # the client does not read; closing is all that is left
