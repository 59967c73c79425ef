"""What the kernel does for us: it finds machines that are gone without a word, and sends few acknowledgements."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time

import pytest

from ..backends import Seen, Wire, ok
from ..conftest import StartBackend, StartRouter
from .breaking import ask, breaks, counted, good, whole
from .scripted import TEXT, stream_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a socket filter makes a machine vanish on Linux")

PATIENT = {"connect_timeout_s": 1.0, "probe_timeout_s": 30.0, "stream_idle_timeout_s": 60.0}
SECONDS = 10.0
"""Far below every other time-out there is."""


async def test_a_stream_goes_on_elsewhere_within_seconds(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend(good), await start_backend(breaks(4, Wire.vanish)), **PATIENT)
    began = time.monotonic()
    assert whole(await ask(router)) == TEXT
    assert time.monotonic() - began < SECONDS
    assert counted(router) == {"exact": 1}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_on_a_kept_connection_goes_elsewhere_within_seconds(
    start_backend: StartBackend, start_router: StartRouter, stream: bool
) -> None:
    async def once(wire: Wire, seen: Seen) -> None:
        await ok(wire, seen)
        await wire.vanish()

    serverless, spot = await start_backend(), await start_backend(once)
    router = await start_router(serverless, spot, **PATIENT)
    assert (await router.complete(stream=stream)).status_code == 200
    assert not serverless.seen
    began = time.monotonic()
    assert (await router.complete(stream=stream)).status_code == 200
    assert time.monotonic() - began < SECONDS
    assert len(serverless.seen) == 1
    assert router.router.core.meter.failovers == 1


async def test_an_engine_that_thinks_for_longer_is_waited_for(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    async def slow(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(3 * PATIENT["connect_timeout_s"])
        await ok(wire, seen)

    serverless, spot = await start_backend(), await start_backend(slow)
    router = await start_router(serverless, spot, **PATIENT)
    assert (await router.complete(stream=True)).status_code == 200
    assert not serverless.seen


def segments(wire: Wire) -> tuple[int, int]:
    """How many the server's end has sent and received: tcpi_segs_out and tcpi_segs_in of linux/tcp.h."""
    told = wire.writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return struct.unpack_from("II", told, 136)


class Paced:
    """An engine that says `TOKENS` more of the same, one each few milliseconds. nagle: its kernel puts small pieces
    together until the last one is acknowledged."""

    TOKENS = 60

    def __init__(self, *, nagle: bool = False) -> None:
        self.nagle = nagle
        self.sent: list[int] = []
        self.received: list[int] = []

    async def __call__(self, wire: Wire, seen: Seen) -> None:
        await wire.stream_head()
        *before, ordinary, last, done = stream_of(seen.json())
        for event in before:
            await wire.chunk(event)
            await asyncio.sleep(0.004)
        wire.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, not self.nagle)
        sent, received = segments(wire)
        for _ in range(self.TOKENS):
            await wire.chunk(ordinary)
            await asyncio.sleep(0.004)
        self.sent.append(segments(wire)[0] - sent)
        self.received.append(segments(wire)[1] - received)
        for event in (last, done):
            await wire.chunk(event)
        await wire.raw(b"0\r\n\r\n")


async def test_tokens_are_not_acknowledged_one_by_one(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    engine = Paced()
    router = await start_router(await start_backend(), await start_backend(engine))
    await ask(router)
    assert engine.sent[0] >= Paced.TOKENS
    assert engine.received[0] <= 0.6 * Paced.TOKENS


async def test_an_engine_whose_kernel_waits_for_acknowledgements_is_not_held_up(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    engine = Paced(nagle=True)
    router = await start_router(await start_backend(), await start_backend(engine))
    await ask(router)
    assert engine.sent[0] >= 0.6 * Paced.TOKENS, "about ten of them wait together, once"
