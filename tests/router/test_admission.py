"""The concurrency limit and its queue are exact."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_router.admission import Admission, Ticket, Waiting
from tuna_router.keys.live import LiveKey
from tuna_router.keys.settings import KeySettings

from .backends import Seen, Wire
from .conftest import KEY, StartBackend, StartRouter, until

MOVES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["come", "come for batch"]), st.just(0)),
        st.tuples(st.sampled_from(["leave", "cancel", "leave both"]), st.integers(0, 9)),
        st.tuples(st.just("limit"), st.integers(1, 5)),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), MOVES)
def test_it_never_counts_wrong_whatever_comes_goes_and_is_cancelled(
    limit: int, most: int, moves: list[tuple[str, int]]
) -> None:
    admission, key = Admission(limit, most), LiveKey(KeySettings("k", ""), 0.0)
    inside: list[Ticket] = []
    gone: list[Ticket] = []
    lines: dict[bool, list[int]] = {False: [], True: []}
    waiting: dict[int, Waiting] = {}
    cancelled: list[Waiting] = []
    rejected = numbers = 0

    def gets_its_place(number: int, ticket: Ticket) -> None:
        line = lines[False] or lines[True]
        assert line[0] == number, "the oldest first, interactive before batch"
        line.pop(0)
        del waiting[number]
        inside.append(ticket)

    for move, which in moves:
        match move:
            case "come" | "come for batch":
                ticket = admission.enter(key)
                assert (ticket is None) == (len(inside) >= admission.limit)
                if ticket is not None:
                    key.enter()
                    inside.append(ticket)
                    continue
                number, batch, before = numbers, move == "come for batch", len(waiting)
                numbers += 1
                place = admission.wait(lambda t, n=number: gets_its_place(n, t), key, batch=batch)  # type: ignore[misc]
                assert (place is None) == (before >= most)
                if place is None:
                    rejected += 1
                else:
                    key.enter()
                    waiting[number] = place
                    lines[batch].append(number)
            case "leave" | "leave both" if which < len(inside):
                leaving = [inside.pop(which)]
                if move == "leave both" and inside:
                    leaving.append(inside.pop(0))
                for ticket in leaving:
                    ticket.leave()
                    ticket.leave()
                    gone.append(ticket)
            case "leave" if gone:
                gone[-1].leave()  # once more, long after
            case "cancel" if which < len(waiting):
                number = list(waiting)[which]
                place = waiting.pop(number)
                for line in lines.values():
                    if number in line:
                        line.remove(number)
                assert place.cancel()
                cancelled.append(place)
            case "cancel" if cancelled:
                assert not cancelled[-1].cancel()
            case "limit":
                admission.resize(which, most)
        assert admission.in_flight == len(inside)
        assert admission.waiting == len(waiting)
        assert admission.rejected == rejected
        assert key.in_flight == len(inside) + len(waiting)
        assert not (waiting and len(inside) < admission.limit), "nobody waits beside a free place"


def test_a_thousand_that_leave_at_once_when_they_get_their_place_do_not_recurse() -> None:
    admission, got = Admission(1, 5000), list[int]()
    first = admission.enter()
    assert first is not None
    for number in range(5000):

        def leave_at_once(ticket: Ticket, number: int = number) -> None:
            got.append(number)
            ticket.leave()

        assert admission.wait(leave_at_once) is not None
    first.leave()
    assert got == list(range(5000))
    assert (admission.in_flight, admission.waiting) == (0, 0)


async def test_without_a_queue_the_request_above_the_limit_gets_429_and_a_cancelled_one_gives_its_place_back(
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
    router = await start_router(backend, max_concurrency=3, max_queue=0)
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


class OneAtATime:
    """A backend that answers each request when it is told to, and knows their order."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.turns = asyncio.Semaphore(0)

    async def __call__(self, wire: Wire, seen: Seen) -> None:
        self.prompts.append(seen.json()["prompt"])
        await self.turns.acquire()
        await wire.json({"choices": [{"text": self.prompts[-1]}]})


async def test_those_above_the_limit_wait_and_are_answered_in_their_order_batch_last(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    answers = OneAtATime()
    router = await start_router(await start_backend(answers), max_concurrency=1)
    admission, tasks = router.router.core.admission, []
    for position, (prompt, priority) in enumerate(
        [("first", ""), ("batch", "batch"), ("second", ""), ("third", "interactive")]
    ):
        post = router.client.post(
            "/v1/completions", json={"prompt": prompt}, headers={"x-tuna-priority": priority} if priority else {}
        )
        tasks.append(asyncio.create_task(post))
        await until(lambda: admission.in_flight + admission.waiting == position + 1)  # noqa: B023
    health = (await router.client.get("/router/stats")).json()
    assert (health["in_flight"], health["waiting"], health["max_queue"]) == (1, 3, 100)
    for _ in range(4):
        answers.turns.release()
    got = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in got] == [200] * 4
    assert answers.prompts == ["first", "second", "third", "batch"]
    assert (admission.in_flight, admission.waiting, router.tally.finished) == (0, 0, 4)
    assert router.router.core.counts.queue_wait.count == 3


async def test_a_full_queue_and_one_that_is_too_slow_refuse_with_429_in_openais_shape(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    answers = OneAtATime()
    router = await start_router(await start_backend(answers), max_concurrency=1, max_queue=1, queue_timeout_s=0.3)
    admission = router.router.core.admission
    running = asyncio.create_task(router.complete())
    await until(lambda: admission.in_flight == 1)
    waits = asyncio.create_task(router.complete())
    await until(lambda: admission.waiting == 1)
    full = await router.complete()
    assert (full.status_code, full.json()["error"]["code"]) == (429, "concurrency_limit")
    assert full.json()["error"]["type"] == "rate_limit_error"
    assert int(full.headers["retry-after"]) >= 1
    in_vain = await waits
    assert (in_vain.status_code, in_vain.json()["error"]["code"]) == (429, "queue_timeout")
    assert in_vain.headers["retry-after"] == "1"
    assert in_vain.headers["x-request-id"]
    answers.turns.release()
    assert (await running).status_code == 200
    assert (admission.in_flight, admission.waiting) == (0, 0)
    assert router.router.core.meter.rejected == 2
    assert [key.in_flight for key in router.router.core.guard] == [0]


@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_waiting_request_keeps_its_body_and_one_that_leaves_gives_its_place_in_the_queue_back(
    start_backend: StartBackend, start_router: StartRouter, size: int
) -> None:
    answers = OneAtATime()
    router = await start_router(await start_backend(answers), max_concurrency=1)
    admission = router.router.core.admission
    running = asyncio.create_task(router.complete())
    await until(lambda: admission.in_flight == 1)
    _, leaves = await router.raw(json.dumps({"prompt": "gone"}).encode())
    await until(lambda: admission.waiting == 1)
    waits = asyncio.create_task(router.complete(prompt="x" * size))
    await until(lambda: admission.waiting == 2)
    if size > 100_000:  # what is above a little waits in the socket, not here
        await until(lambda: any(connection.read_paused for connection in router.server.connections))
    leaves.close()
    await until(lambda: admission.waiting == 1)
    answers.turns.release()
    answers.turns.release()
    assert (await running).status_code == 200
    assert (await waits).status_code == 200
    assert answers.prompts == ["p", "x" * size]
    assert (admission.in_flight, admission.waiting, router.tally.started) == (0, 0, 2)


async def test_a_router_that_stops_answers_those_who_wait(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    answers = OneAtATime()
    router = await start_router(await start_backend(answers), max_concurrency=1)
    admission = router.router.core.admission
    first, second = await router.raw(b'{"prompt":"a"}'), await router.raw(b'{"prompt":"b"}')
    await until(lambda: admission.waiting == 1)
    router.server.stop()
    router.server.stop()
    async with asyncio.timeout(5):
        for reader, writer in (first, second):
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
            writer.close()
    assert (admission.in_flight, admission.waiting) == (0, 0)


async def test_the_limit_can_be_raised_while_requests_wait(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    answers = OneAtATime()
    router = await start_router(await start_backend(answers), max_concurrency=1)
    tasks = [asyncio.create_task(router.complete()) for _ in range(3)]
    await until(lambda: router.router.core.admission.waiting == 2)
    await router.client.post("/router/config", json={"max_concurrency": 3}, headers={"x-api-key": KEY})
    await until(lambda: len(answers.prompts) == 3)
    for _ in tasks:
        answers.turns.release()
    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 3
