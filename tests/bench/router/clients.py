"""Clients for the router's benchmark: so many connections, each with one request at a time.

    python -m tests.bench.router.clients PORT KEY BODY_FILE CONNECTIONS SECONDS [REQUESTS]

Prints what came as JSON: requests, tokens, errors, and the requests per connection in `REQUESTS` mode.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path


class Tally:
    """What came, over all connections."""

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self.errors = 0
        self.open = 0
        self.most_open = 0


class Client(asyncio.Protocol):
    """One connection; asks again when it was answered, until `end_at` or `asks` requests."""

    _transport: asyncio.Transport

    def __init__(self, request: bytes, tally: Tally, end_at: float, asks: int) -> None:
        self._request = request
        self._tally = tally
        self._end_at = end_at
        self._asks = asks
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting and time.monotonic() < self._end_at:
            self._tally.errors += 1
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        tally = self._tally
        self._answer += data
        tally.tokens += data.count(b"data: {")
        if b"\r\n\r\n" not in self._answer:
            return
        if not self._answer.startswith(b"HTTP/1.1 200"):
            tally.errors += 1
            self._waiting = False
            self._transport.close()
        elif self._complete():
            self._waiting = False
            tally.requests += 1
            tally.open -= 1
            self._asks -= 1
            if self._asks == 0 or time.monotonic() >= self._end_at:
                self._transport.close()
            else:
                self._ask()

    def stop(self) -> None:
        self._waiting = False
        self._transport.abort()

    def _ask(self) -> None:
        self._answer = bytearray()
        self._waiting = True
        self._tally.open += 1
        self._tally.most_open = max(self._tally.most_open, self._tally.open)
        self._transport.write(self._request)

    def _complete(self) -> bool:
        if b"chunked" in self._answer[:1000]:
            return self._answer.endswith(b"0\r\n\r\n")
        head, _, body = self._answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return len(body) >= length


async def run(port: int, request: bytes, connections: int, seconds: float, asks: int) -> Tally:
    loop, tally = asyncio.get_running_loop(), Tally()
    end_at = time.monotonic() + seconds
    clients: list[Client] = []
    for number in range(connections):
        _, client = await loop.create_connection(lambda: Client(request, tally, end_at, asks), "127.0.0.1", port)
        clients.append(client)
        if number % 50 == 49:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(seconds + 1) as patience:
        await asyncio.wait([client.closed for client in clients], timeout=seconds)
        patience.reschedule(None)
    for client in clients:
        if not client.closed.done():
            client.stop()
    return tally


def main() -> None:
    import uvloop

    port, key, body_file, connections, seconds, *asks = sys.argv[1:]
    body = Path(body_file).read_bytes()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\nUser-Agent: bench\r\n"
    head += f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    count = int(asks[0]) if asks else 0
    tally = uvloop.run(run(int(port), head.encode() + body, int(connections), float(seconds), count))
    print(json.dumps(vars(tally)))


if __name__ == "__main__":
    main()
