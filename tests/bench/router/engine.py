"""An engine for the router's benchmark: answers at once, in JSON, or in `max_tokens` paced events.

    python -m tests.bench.router.engine PORT [PORT ...]

The interval between events is the request's `seed`, in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Final

_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STREAM: Final = re.compile(rb'"stream": ?true')
_MAX_TOKENS: Final = re.compile(rb'"max_tokens": ?(\d+)')
_SEED: Final = re.compile(rb'"seed": ?(\d+)')


def _json(path: bytes) -> bytes:
    if b"/models" in path:
        return json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "x" * 400},
        "text": "x",
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 9, "completion_tokens": 64, "total_tokens": 73}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    ).encode()


def _event(finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": " token"}, "finish_reason": finish}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    body = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(body), body)


_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_TOKEN, _FINISH = _event(None), _event("stop")
_END: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection."""

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self._held = b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n") + 4) >= 4:
            head = self._held[:end]
            found = _LENGTH.search(head)
            size = end + (int(found[1]) if found is not None else 0)
            if len(self._held) < size:
                return
            body, self._held = self._held[end:size], self._held[size:]
            if _STREAM.search(body):
                tokens, interval = _MAX_TOKENS.search(body), _SEED.search(body)
                self._transport.write(_STREAM_HEAD)
                self._stream(int(tokens[1]) if tokens else 16, int(interval[1]) / 1000 if interval else 0.0)
            else:
                answer = _json(head.partition(b"\r\n")[0])
                self._transport.write(_HEAD % len(answer) + answer)

    def _stream(self, left: int, interval_s: float) -> None:
        if self._transport.is_closing():
            return
        if left <= 1:
            self._transport.write(_FINISH + _END)
            return
        self._transport.write(_TOKEN)
        asyncio.get_running_loop().call_later(interval_s, self._stream, left - 1, interval_s)


async def serve(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Engine, "127.0.0.1", port, backlog=2048) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve([int(word) for word in sys.argv[1:]]))
