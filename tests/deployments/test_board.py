"""A board asks a real router while it is watched, and nobody else; what it missed it hears when it comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.router.conftest import KEY, Running, StartRouter, free_port, start_router, until
from tests.views.boards import bill, status
from tuna_nb.costs.bill import Bill
from tuna_nb.deployments.board import LIVE, LOST, NONE, OFF, Board, Picture
from tuna_nb.deployments.router_client import RouterClient, RouterEvent, read_event
from tuna_nb.deployments.status import DeploymentStatus
from tuna_nb.errors import BackendError, RouterError

__all__ = ["start_router"]
"""A fixture."""


class Asked:
    """What a board asks, counted. answers may be replaced; an exception is raised."""

    def __init__(self) -> None:
        self.bills = self.statuses = 0
        self.bill: Bill | BackendError = bill()
        self.status: DeploymentStatus = status()

    async def ask_bill(self) -> Bill:
        self.bills += 1
        if isinstance(self.bill, BackendError):
            raise self.bill
        return self.bill

    async def ask_status(self) -> DeploymentStatus:
        self.statuses += 1
        return self.status


def url(running: Running) -> str:
    return f"http://127.0.0.1:{running.port}"


def board_of(asked: Asked, where: Callable[[], str | None] | None, **more: Any) -> Board:
    async def router() -> RouterClient | None:
        at = where() if where else None
        return None if at is None else RouterClient(at, KEY, timeout_s=2)

    values = {"ask_s": 0.05, "has_router": where is not None, **more}
    return Board("seen", router=router, bill=asked.ask_bill, status=asked.ask_status, **values)


@contextlib.asynccontextmanager
async def watched(board: Board) -> AsyncIterator[list[Picture]]:
    """The pictures so far, as they come."""
    seen: list[Picture] = []

    async def look() -> None:
        async with contextlib.aclosing(board.watch()) as pictures:
            async for picture in pictures:
                seen.append(picture)

    task = asyncio.create_task(look())
    try:
        yield seen
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def preempted(running: Running, reason: str = "noticed") -> None:
    running.router.core.events.publish("preemption", {"backend": "spot", "reason": reason})


async def test_it_asks_while_it_is_watched_and_nobody_else_hears_of_it(start_router: StartRouter) -> None:
    running, asked = await start_router(), Asked()
    listeners = running.router.core.events.listeners
    board = board_of(asked, lambda: url(running))
    assert (len(listeners), asked.bills, board.picture.link) == (0, 0, OFF)
    async with watched(board) as seen:
        await until(lambda: bool(seen) and seen[-1].now is not None and seen[-1].bill is not None)
        assert len(listeners) == 1
        assert (seen[-1].link, seen[-1].bill, seen[-1].status) == (LIVE, asked.bill, asked.status)
        await until(lambda: asked.bills >= 3 and asked.statuses >= 3)
        assert seen[-1].spending[-1][1] == asked.bill.rate_usd_per_hour  # type: ignore[union-attr]
    await until(lambda: not listeners)
    before = (asked.bills, asked.statuses)
    await asyncio.sleep(0.2)
    assert (asked.bills, asked.statuses) == before
    assert board.picture.link == OFF
    assert board.picture.moments, "what was learned is kept"


async def test_what_happened_while_nobody_looked_is_told_once(start_router: StartRouter) -> None:
    running = await start_router()
    preempted(running, "before anybody looked")
    board = board_of(Asked(), lambda: url(running))
    async with watched(board) as seen:
        await until(lambda: bool(seen) and len(seen[-1].marks) == 1)
    preempted(running, "while nobody looked")
    async with watched(board) as seen:
        await until(lambda: bool(seen) and len(seen[-1].marks) >= 2)
        await until(lambda: seen[-1].link == LIVE)
        said = [m.said for m in seen[-1].marks]
    assert said == ["spot was taken away (before anybody looked)", "spot was taken away (while nobody looked)"]


async def test_a_router_that_comes_back_elsewhere_is_found(start_router: StartRouter) -> None:
    first, second = await start_router(), await start_router()
    at = first
    board = board_of(Asked(), lambda: url(at))
    preempted(second, "by the next router")
    async with watched(board) as seen:
        await until(lambda: bool(seen) and seen[-1].link == LIVE)
        at = second
        first.server.stop()
        first.server.stop()
        await until(lambda: any("by the next" in m.said for m in seen[-1].marks), 10)
        assert len(second.router.core.events.listeners) == 1


async def test_a_router_that_is_gone_is_said_to_be_with_the_age_of_its_figures(start_router: StartRouter) -> None:
    running, now = await start_router(), [1_800_000_000.0]
    here: list[str | None] = [url(running)]
    board = board_of(Asked(), lambda: here[0], wall=lambda: now[0])
    async with watched(board) as seen:
        await until(lambda: bool(seen) and seen[-1].link == LIVE)
        here[0] = f"http://127.0.0.1:{free_port()}"
        running.server.stop()
        running.server.stop()
        await until(lambda: seen[-1].link == LOST, 10)
        assert "does not answer" in (seen[-1].link_error or "")
        now[0] += 40
        await until(lambda: seen[-1].silent_s == 40, 10)
        here[0] = None
        await until(lambda: seen[-1].link_error == "the router does not run", 10)
    assert board.picture.now is not None, "the last figures stay"


async def test_a_provider_that_cannot_be_asked_leaves_the_last_bill_and_says_so() -> None:
    asked = Asked()
    board = board_of(asked, None)
    async with watched(board) as seen:
        await until(lambda: bool(seen) and seen[-1].bill is not None)
        assert seen[-1].link == NONE
        known, asked.bill = asked.bill, BackendError("local: the bill can't be read")
        await until(lambda: seen[-1].bill_error is not None)
        assert seen[-1].bill == known
        assert seen[-1].bill_error == "local: the bill can't be read"


async def test_it_ends_with_the_deployment() -> None:
    asked = Asked()
    board = board_of(asked, None)
    async with asyncio.timeout(5), contextlib.aclosing(board.watch()) as pictures:
        async for _ in pictures:
            asked.status = status(state="destroyed")
    assert board.picture.over


async def test_a_defect_in_what_it_asks_is_no_silence() -> None:
    asked = Asked()
    asked.ask_bill = None  # type: ignore[assignment]
    board = board_of(asked, None)

    async def look() -> None:
        async with asyncio.timeout(5), contextlib.aclosing(board.watch()) as pictures:
            async for _ in pictures:
                pass

    with pytest.raises(TypeError):
        await look()


async def test_a_wrong_key_is_said_and_is_in_no_error(start_router: StartRouter) -> None:
    running = await start_router()
    client = RouterClient(url(running), "a-wrong-key")
    with pytest.raises(RouterError, match="answered 401 to GET /router/events") as refused:
        await anext(client.events())
    assert "a-wrong-key" not in str(refused.value)


def test_events_are_read_as_the_standard_says() -> None:
    read = read_event(["id: 7", "event: state", 'data: {"a":', "data:1}"])
    assert read == RouterEvent(7, "state", {"a": 1})
    assert read_event([": still here"]) is None
    assert read_event(["data: [1]"]) is None
    assert read_event(["data: {"]) is None
