"""How backends break off, and what their client may see of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from ..backends import Handler, Seen, Wire
from ..conftest import Running
from .scripted import WORDS, stream_of

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "p"}], "stream": True}
BODY |= {"max_tokens": len(WORDS), "temperature": 0}
ERROR = b'data: {"error":{"message":"EngineCore encountered an issue"}}\n\n'
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


async def good(wire: Wire, seen: Seen) -> None:
    """The rest, or all of it."""
    await wire.stream_head()
    for event in stream_of(seen.json()):
        await wire.chunk(event)
    await wire.raw(b"0\r\n\r\n")


async def unasked(wire: Wire, seen: Seen) -> None:
    raise AssertionError("not asked for")


def breaks(after: int, end: Callable[[Wire], Awaitable[None]], *, ids: bool = True) -> Handler:
    """Tells so many events, then ends like that."""

    async def handler(wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        for event in stream_of(seen.json(), ids=ids)[:after]:
            await wire.chunk(event)
        await asyncio.sleep(0.01)  # or a reset would overtake what was said
        await end(wire)

    return handler


async def reset(wire: Wire) -> None:
    wire.reset()


async def closed(wire: Wire) -> None:
    wire.close()


async def stalls(wire: Wire) -> None:
    await wire.closed_by_peer()


async def half_a_chunk(wire: Wire) -> None:
    await wire.raw(b'ff\r\ndata: {"id":"c-1","object"')
    await asyncio.sleep(0.01)
    wire.reset()


async def half_an_event(wire: Wire) -> None:
    await wire.chunk(b'data: {"id":"c-1","object"')
    await wire.raw(b"0\r\n\r\n")


async def a_closed_half_event(wire: Wire) -> None:
    await wire.chunk(b'data: {"id":"c-1","object"\n\n' + ERROR)
    await wire.raw(b"0\r\n\r\n")


async def a_long_chunk(wire: Wire) -> None:
    await wire.raw(b"3\r\ndata: x\r\n")


async def no_chunk(wire: Wire) -> None:
    await wire.raw(b"garbage\r\n")


async def no_terminator(wire: Wire) -> None:
    await wire.raw(b"0\r\n")
    wire.close()


async def early_end(wire: Wire) -> None:
    await wire.raw(b"0\r\n\r\n")


async def error_and_done(wire: Wire) -> None:
    await wire.chunk(ERROR)
    await wire.chunk(DONE)
    await wire.raw(b"0\r\n\r\n")


async def error_in_pieces(wire: Wire) -> None:
    for n in range(0, len(ERROR), 7):
        await wire.chunk(ERROR[n : n + 7])
    await wire.raw(b"0\r\n\r\n")


async def done_without_finish(wire: Wire) -> None:
    await wire.chunk(DONE)
    await wire.raw(b"0\r\n\r\n")


async def aborted(wire: Wire) -> None:
    await wire.chunk(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}\n\n' + DONE)
    await wire.raw(b"0\r\n\r\n")


async def failed(wire: Wire) -> None:
    await wire.chunk(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}\n\n' + DONE)
    await wire.raw(b"0\r\n\r\n")


async def huge_event(wire: Wire) -> None:
    for _ in range(40):
        await wire.chunk(b"x" * 65536)


ENDS = (
    reset, closed, stalls, half_a_chunk, half_an_event, a_closed_half_event, a_long_chunk, no_chunk, no_terminator,
    early_end, error_and_done, error_in_pieces, done_without_finish, aborted, failed, huge_event,
)  # fmt: skip


def events_of(answer: bytes) -> list[bytes]:
    assert answer.endswith(b"\n\n")
    return [event.removeprefix(b"data: ") for event in answer.split(b"\n\n")[:-1]]


def whole(answer: bytes) -> str:
    """The text of a stream that ended well."""
    *events, last = events_of(answer)
    assert last == b"[DONE]"
    text, roles, finishes = "", 0, []
    for event in events:
        chunk = json.loads(event)
        assert "error" not in chunk
        for choice in chunk["choices"]:
            delta = choice.get("delta", choice)
            roles += "role" in delta
            text += delta.get("content") or delta.get("text") or ""
            assert not choice.get("token_ids")
            if choice["finish_reason"]:
                finishes.append(choice["finish_reason"])
    assert (roles, finishes) == (1, ["length"])
    return text


def broken(answer: bytes) -> str:
    """The message of a stream that ended with an error event."""
    *events, last = events_of(answer)
    assert all("error" not in json.loads(event) for event in events)
    error = json.loads(last)["error"]
    assert error["code"] == "stream_broken"
    return str(error["message"])


async def ask(router: Running, headers: dict[str, str] | None = None, **more: Any) -> bytes:
    answer = await router.client.post("/v1/chat/completions", json=BODY | more, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.content


def counted(router: Running) -> dict[str, int]:
    """Broken streams by what came of them; and the books are even."""
    core = router.router.core
    for tally in (core.meter.requests, *core.meter.backends.values()):
        assert tally.started == tally.finished + tally.cancelled + tally.failed
        assert tally.running == 0
    assert core.admission.in_flight == 0
    assert all(key.in_flight == 0 for key in core.guard)
    assert not core.streams
    return {outcome: count for (outcome,), count in core.counts.resumes}
