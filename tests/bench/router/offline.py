"""What a request costs in the router's own Python, without sockets: fake transports, one request at a time.

    python -m tests.bench.router.offline [small|tokens|8k|load] [--profile]

Prints microseconds for each request, or for each token of a stream. The kernel's share, which is most of
the rest, is in the benchmark over real sockets. `load`: what counting the load minute by minute adds to `small`,
the median of pairs that alternate.
"""

from __future__ import annotations

import asyncio
import cProfile
import math
import pstats
import statistics
import sys
import time
from typing import Any

from tuna_router.app import Router
from tuna_router.auth import sha256_hex
from tuna_router.dataplane.client import ClientConnection
from tuna_router.dataplane.connection import Connection
from tuna_router.dataplane.upstream import Pool
from tuna_router.settings import parse_settings
from tuna_router.spot import ProbePassed

KEY = "sk-bench"
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8200\r\nAccept: application/json\r\n"
    f"Content-Type: application/json\r\nAuthorization: Bearer {KEY}\r\nUser-Agent: OpenAI/Python 1.99.0\r\n"
    "X-Stainless-Lang: python\r\nX-Stainless-Async: async:asyncio\r\nContent-Length: "
)
JSON = b'{"id":"c","object":"chat.completion","choices":[{"message":{"content":"' + b"x" * 400
JSON += b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":64,"total_tokens":73}}'
ANSWER = b"HTTP/1.1 200 OK\r\ndate: Thu, 06 Aug 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: application/json\r\n"
ANSWER += b"content-length: %d\r\n\r\n" % len(JSON) + JSON
STREAM = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
STREAM += b"transfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":'
EVENT += b'[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
END_EVENT = EVENT.replace(b"null", b'"stop"') + b"data: [DONE]\n\n"
LAST = b"%x\r\n%b\r\n0\r\n\r\n" % (len(END_EVENT), END_EVENT)


class Wire:
    """A transport that takes everything."""

    written = 0

    def write(self, data: bytes) -> None:
        self.written += 1

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += 1

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def abort(self) -> None: ...

    close = write_eof = pause_reading = resume_reading = abort


class NoLoad:
    """Counts nothing."""

    next_at = math.inf

    def begin(self, now: float, model: str, key: str | None) -> None: ...

    def end(self, uses: None, request_s: float, now: float, prompt: int, completion: int) -> None: ...


async def measure(workload: str, rounds: int, *, load: bool = True) -> float:
    """Microseconds for each request, or token."""
    backends = [{"name": k, "kind": k, "url": f"http://127.0.0.1:{p}"} for k, p in (("serverless", 1), ("spot", 2))]
    router = Router(parse_settings({"backends": backends, "api_key_sha256": [sha256_hex(KEY)]}))
    core = router.core
    if not load:
        core.meter.load = NoLoad()  # type: ignore[assignment]
        for backend in core.fleet:
            backend.load = core.meter.load
    spot = core.fleet["spot"]
    assert spot.machine is not None
    spot.tell(ProbePassed(spot.machine.epoch))
    pool = core.upstream._pools.setdefault(spot.route.origin, Pool(spot.route.origin))
    upstream: Any = Connection(pool)
    upstream.connection_made(Wire())
    pool.give_back(upstream)
    client: Any = ClientConnection(core.wheel, router.begin, set())
    client.connection_made(Wire())
    body = (
        b'{"model":"m","messages":[{"role":"user","content":"'
        + b"y" * (8000 if workload == "8k" else 430)
        + b'"}]}'
    )
    request = HEAD.encode() + b"%d\r\n\r\n" % len(body) + body
    begun = time.process_time()
    if workload == "tokens":
        client.data_received(request)
        upstream.data_received(STREAM)
        begun = time.process_time()
        for _ in range(rounds):
            upstream.data_received(CHUNK)
        spent = time.process_time() - begun
        upstream.data_received(LAST)
        assert core.meter.requests.finished == 1
    else:
        for _ in range(rounds):
            client.data_received(request)
            upstream.data_received(ANSWER)
        spent = time.process_time() - begun
        assert core.meter.requests.finished == rounds, core.meter.requests
    core.wheel.stop()
    return spent / rounds * 1e6


def main() -> None:
    workload = next((a for a in sys.argv[1:] if not a.startswith("-")), "small")
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.runcall(asyncio.run, measure(workload, 20_000))
        pstats.Stats(profile).sort_stats("tottime").print_stats(32)
        return
    if workload == "load":
        pairs = [[asyncio.run(measure("small", 5000, load=load)) for load in (True, False)] for _ in range(30)]
        print(f"load: {statistics.median(with_it - without for with_it, without in pairs):.2f} us a request")
        return
    print(f"{workload}: {min(asyncio.run(measure(workload, 10_000)) for _ in range(5)):.1f} us")


if __name__ == "__main__":
    main()
