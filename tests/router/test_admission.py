"""The concurrency limit is exact."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.admission import Admission, Ticket

from .backends import Seen, Wire
from .conftest import StartBackend, StartRouter, until


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(-1, 9), max_size=60))
def test_it_never_counts_wrong_whatever_comes_and_goes(limit: int, moves: list[int]) -> None:
    admission, tickets, rejected = Admission(limit), list[Ticket](), 0
    inside: set[Ticket] = set()
    for move in moves:
        if move < 0:
            ticket = admission.try_enter()
            assert (ticket is None) == (len(inside) >= limit)
            if ticket is None:
                rejected += 1
            else:
                tickets.append(ticket)
                inside.add(ticket)
        elif move < len(tickets):
            tickets[move].leave()  # also a second time
            inside.discard(tickets[move])
        assert admission.in_flight == len(inside)
        assert admission.rejected == rejected


async def test_the_request_above_the_limit_gets_429_and_a_cancelled_one_gives_its_place_back(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    release = asyncio.Event()

    async def hold(wire: Wire, seen: Seen) -> None:
        if seen.json().get("stream"):
            await wire.stream_head()
            await wire.token("one")
        if release.is_set():
            await wire.json({"ok": True})
        else:
            await wire.closed_by_peer()
            wire.close()

    backend = await start_backend(hold)
    router = await start_router(backend, max_concurrency=3)
    admission = router.router.core.admission
    for round_number in range(1, 6):
        raw = [await router.raw(body) for body in (b'{"stream":true}', b"{}", b'{"stream":true}')]
        await until(lambda: admission.in_flight == 3)
        refused = await router.complete()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert admission.rejected == round_number
        raw[0][1].close()
        await until(lambda: admission.in_flight == 2)
        one_more = asyncio.create_task(router.complete())
        await until(lambda: admission.in_flight == 3)
        assert (await router.complete()).status_code == 429
        admission.rejected -= 1
        one_more.cancel()
        for _, writer in raw[1:]:
            writer.close()
        await until(lambda: admission.in_flight == 0)
    release.set()
    assert (await router.complete()).status_code == 200
    tally = router.tally
    assert tally.started == tally.finished + tally.cancelled + tally.failed == 21
    assert tally.cancelled == 20


async def test_a_client_that_leaves_before_its_body_is_complete_gives_its_place_back(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    router = await start_router(await start_backend())
    _, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"POST /v1/x HTTP/1.1\r\nhost: x\r\nx-api-key: client-key-1\r\ncontent-length: 100\r\n\r\nhalf")
    await until(lambda: router.router.core.admission.in_flight == 1)
    writer.close()
    await until(lambda: router.router.core.admission.in_flight == 0)
    assert router.tally.cancelled == 1
