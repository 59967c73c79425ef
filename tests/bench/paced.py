"""A server of known speed that knows when it sent what: `python -m tests.bench.paced`, for `tests.bench.load`.

A request says how fast: `ttft_ms`, `itl_ms`, `max_tokens`. Each token is one event, due at an absolute time after the
request's last byte came, and goes to the kernel at once, by a write of its own; `usage.prompt_tokens` is the stream's
number. `GET /stamps` tells of each stream when it came and when each of its tokens left, by time.monotonic, and how
late that was; and forgets them.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import sys
from time import monotonic
from typing import Any

from tuna_nb.benchmarks.load.alarm import Alarm


def _chunk(event: dict[str, Any] | None) -> bytes:
    text = b"data: " + (b"[DONE]" if event is None else json.dumps(event, separators=(",", ":")).encode()) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(text), text)


def _event(**choice: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-8f14e45fceea167a5a36dedd4bea2543",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": "paced",
        "choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}],
    }


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
ROLE = _chunk(_event(delta={"role": "assistant", "content": ""}))
TOKEN = _chunk(_event(delta={"content": " token"}))
FINISH = _chunk(_event(delta={}, finish_reason="length"))


class Stream:
    """One answer. stamps: when it came, then when each token left."""

    __slots__ = ("count", "fd", "gap_s", "late", "left", "number", "stamps", "transport")

    def __init__(self, number: int, transport: asyncio.Transport, fd: int, asked: dict[str, Any]) -> None:
        self.number = number
        self.transport = transport
        self.fd = fd
        self.count = self.left = int(asked["max_tokens"])
        self.gap_s = asked["itl_ms"] / 1000
        self.stamps = [monotonic()]
        self.late = 0.0


class Pace:
    """All streams, and what is due next."""

    def __init__(self) -> None:
        self.alarm = Alarm(self.ring)
        self.due: list[tuple[float, int, Stream]] = []
        self.set_for = 0.0
        self.streams: list[Stream] = []
        self.late: list[float] = []
        self.number = 0

    def begin(self, transport: asyncio.Transport, fd: int, asked: dict[str, Any]) -> None:
        self.number += 1
        stream = Stream(self.number, transport, fd, asked)
        self.streams.append(stream)
        self._put(stream, HEAD + ROLE)
        at = stream.stamps[0] + asked["ttft_ms"] / 1000
        heapq.heappush(self.due, (at, stream.number, stream))
        if self.due[0][0] == at:
            self.alarm.set(at)

    def ring(self) -> None:
        due = self.due
        while due and due[0][0] <= (now := monotonic()):
            at, number, stream = due[0]
            if stream.transport.is_closing():
                heapq.heappop(due)
                continue
            stream.stamps.append(now)
            self.late.append(now - at)
            self._put(stream, TOKEN)
            stream.left -= 1
            if stream.left:
                heapq.heapreplace(due, (at + stream.gap_s, number, stream))
            else:
                heapq.heappop(due)
                usage = {
                    **_event(),
                    "choices": [],
                    "usage": {"prompt_tokens": number, "completion_tokens": stream.count},
                }
                self._put(stream, FINISH + _chunk(usage) + _chunk(None) + b"0\r\n\r\n")
        if due:
            self.alarm.set(due[0][0])

    def told(self) -> bytes:
        streams, self.streams = self.streams, []
        late, self.late = sorted(self.late), []
        told = {
            "streams": {s.number: s.stamps for s in streams},
            "late": [_at(late, p) for p in (0.5, 0.99, 0.999)],
        }
        return json.dumps(told).encode()

    @staticmethod
    def _put(stream: Stream, data: bytes) -> None:
        if stream.transport.is_closing():
            return
        try:
            sent = 0 if stream.transport.get_write_buffer_size() else os.write(stream.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            stream.transport.abort()
            return
        if sent < len(data):
            stream.transport.write(data[sent:])


def _at(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


class Client(asyncio.Protocol):
    """One connection."""

    _transport: asyncio.Transport

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._fd = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, blank, body = self._held.partition(b"\r\n\r\n")
        if not blank:
            return
        if head.startswith(b"GET"):
            told = self._pace.told()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(told) + told)
            self._held = b""
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._held = b""
            self._pace.begin(self._transport, self._fd, json.loads(body))


async def serve() -> None:
    loop, pace = asyncio.get_running_loop(), Pace()
    server = await loop.create_server(lambda: Client(pace), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    watching = loop.run_in_executor(None, sys.stdin.read)  # whoever started it is gone
    await watching
    server.close()


if __name__ == "__main__":
    import gc

    import uvloop

    gc.disable()
    uvloop.run(serve())
