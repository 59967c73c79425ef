"""A deployment as it lives: its router's figures each second, its bill and replicas each quarter of a minute.

Nothing is asked of anybody but while somebody iterates `watch()`; what was learned is kept for whoever comes next.
The router's stream is taken up again where it ended, also after the router was restarted or moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from tuna_nb.costs.bill import Bill
from tuna_nb.deployments.moments import WINDOW_S, Mark, Moment, Recent, read_mark, read_moment
from tuna_nb.deployments.router_client import RouterClient
from tuna_nb.deployments.status import DeploymentStatus
from tuna_nb.errors import RouterError, TunaError

ASK_S: Final = 15.0
"""Between two looks at the providers."""
AGAIN_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0)
"""Before the router is tried again: the first time, the second, ... and ever after."""
TICK_S: Final = 1.0
_CALM_S: Final = 0.1

LIVE, LOST, CONNECTING, NONE, OFF = "live", "lost", "connecting", "none", "off"


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is known at one moment. at: Unix seconds.

    link: live, connecting, lost (the router can't be reached; why in link_error), none (it has no router), or off
    (nobody watches). heard_at: when the router last told something. bill, status: the last that were had; their
    errors: why there is no newer one. over: the deployment is gone, and nothing will change any more.
    """

    name: str
    at: float
    link: str = OFF
    link_error: str | None = None
    heard_at: float | None = None
    moments: tuple[Moment, ...] = ()
    marks: tuple[Mark, ...] = ()
    bill: Bill | None = None
    bill_at: float | None = None
    bill_error: str | None = None
    spending: tuple[tuple[float, float | None], ...] = ()
    """(Unix seconds, dollars per hour) of each bill of the last minutes; None where a price was unknown."""
    status: DeploymentStatus | None = None
    status_at: float | None = None
    status_error: str | None = None
    over: bool = False

    @property
    def now(self) -> Moment | None:
        """The last figures."""
        return self.moments[-1] if self.moments else None

    @property
    def silent_s(self) -> float | None:
        """How old the router's last figures are; None where there are none."""
        return None if self.heard_at is None else max(0.0, self.at - self.heard_at)


class Board:
    """See the module. router: a client of the router as it is reached now; None where there is none to reach.

    bill, status: asked each `ask_s` seconds. close: called once, when the board is put away. money_first: how it is
    to be shown. `wall` is Unix time.
    """

    def __init__(
        self,
        name: str,
        *,
        router: Callable[[], Awaitable[RouterClient | None]],
        bill: Callable[[], Awaitable[Bill]],
        status: Callable[[], Awaitable[DeploymentStatus]],
        has_router: bool = True,
        money_first: bool = False,
        close: Callable[[], None] = lambda: None,
        ask_s: float = ASK_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.money_first = money_first
        self._router, self._bill, self._status = router, bill, status
        self._has_router = has_router
        self._close: Callable[[], None] | None = close
        self._ask_s = ask_s
        self._wall = wall
        self._recent = Recent()
        self._last_id = 0
        self._picture = Picture(name, wall())
        self._changed = asyncio.Event()

    @property
    def picture(self) -> Picture:
        """As it is now, without asking anybody."""
        return replace(self._picture, at=self._wall())

    def close(self) -> None:
        """Free what it was made with; it can't be watched any more."""
        close, self._close = self._close, None
        if close is not None:
            close()

    async def watch(self) -> AsyncGenerator[Picture, None]:
        """The picture whenever it has changed, and each second; ends when the deployment is gone.

        To be iterated by one at a time, and closed (`contextlib.aclosing`): then it asks nobody any more.
        """
        tasks = [asyncio.create_task(self._ask())]
        if self._has_router:
            self._put(link=CONNECTING, link_error=None)
            tasks.append(asyncio.create_task(self._follow()))
        else:
            self._put(link=NONE)
        try:
            while True:
                self._changed.clear()
                yield self.picture
                if self._picture.over:
                    return
                for task in tasks:
                    if task.done():
                        task.result()
                await self._next()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._put(link=OFF if self._has_router else NONE)

    async def _next(self) -> None:
        """A change, or the next second. What comes together is shown together."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._changed.wait()
        await asyncio.sleep(_CALM_S)

    def _put(self, **change: object) -> None:
        """Every change goes through here."""
        self._picture = replace(self._picture, **change)  # type: ignore[arg-type]
        self._changed.set()

    async def _ask(self) -> None:
        while True:
            await asyncio.gather(self._ask_status(), self._ask_bill())
            await asyncio.sleep(self._ask_s)

    async def _ask_status(self) -> None:
        try:
            status = await self._status()
        except TunaError as e:
            self._put(status_error=e.message)
            return
        over = status.state == "destroyed"
        self._put(status=status, status_at=self._wall(), status_error=None, over=over)

    async def _ask_bill(self) -> None:
        try:
            bill = await self._bill()
        except TunaError as e:
            self._put(bill_error=e.message)
            return
        now = self._wall()
        kept = [told for told in self._picture.spending if now - WINDOW_S <= told[0] < now]
        spending = (*kept, (now, bill.rate_usd_per_hour))
        self._put(bill=bill, bill_at=now, bill_error=None, spending=spending)

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                client = await self._router()
                if client is None:
                    raise RouterError("the router does not run")
                async with contextlib.aclosing(client.events(self._last_id)) as events:
                    async for event in events:
                        failures = 0
                        if event.id is not None:
                            self._last_id = event.id
                        self._take(event.kind, event.data)
                self._put(link=CONNECTING, link_error="the router ended its stream: it stops, or starts again")
            except TunaError as e:
                self._put(link=LOST, link_error=e.message)
            await asyncio.sleep(AGAIN_S[min(failures, len(AGAIN_S) - 1)])
            failures += 1

    def _take(self, kind: str, data: dict[str, object]) -> None:
        if kind == "snapshot":
            with contextlib.suppress(ValueError):
                self._recent.add(read_moment(data))
        else:
            mark = read_mark(kind, {"time": self._wall(), **data})
            if mark is not None:
                self._recent.mark(mark)
        self._put(
            link=LIVE,
            link_error=None,
            heard_at=self._wall(),
            moments=self._recent.moments,
            marks=self._recent.marks,
        )
