"""The second step: read the request. Up to a cap the body is collected, so that it can be sent again;
a longer one flows through and is sent once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType

from tuna_router.envelope import Receive
from tuna_router.errors import ClientGone, ClientSlow

_STREAM = re.compile(rb'"stream"\s*:\s*true')


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: `start`, and `rest` where it was longer than the cap."""

    start: bytes
    rest: AsyncIterator[bytes] | None = None

    @property
    def repeatable(self) -> bool:
        """True when it can be sent more than once."""
        return self.rest is None

    @property
    def asks_for_a_stream(self) -> bool:
        """True for an OpenAI request with `"stream": true`."""
        return _STREAM.search(self.start) is not None

    def content(self) -> bytes | AsyncIterator[bytes]:
        """What to send upstream."""
        return self.start if self.rest is None else self._all(self.rest)

    async def _all(self, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield self.start
        async for piece in rest:
            yield piece


async def read_body(receive: Receive, cap_bytes: int, patience_s: float, at_end: Callable[[], None]) -> Body:
    """Read a request's body; `at_end` is called when its last byte was read, now or later.

    Raises ClientGone, or ClientSlow when nothing comes for `patience_s`; reading the rest does, too.
    """
    collected = bytearray()
    while True:
        piece, more = await _next(receive, patience_s)
        collected += piece
        if not more:
            at_end()
            return Body(bytes(collected))
        if len(collected) > cap_bytes:
            return Body(bytes(collected), _rest(receive, patience_s, at_end))


async def _rest(receive: Receive, patience_s: float, at_end: Callable[[], None]) -> AsyncIterator[bytes]:
    more = True
    while more:
        piece, more = await _next(receive, patience_s)
        if not more:
            at_end()
        if piece:
            yield piece


async def _next(receive: Receive, patience_s: float) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(patience_s):
            message = await receive()
    except TimeoutError:
        raise ClientSlow from None
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


class Presence:
    """Cancels the block it guards when the client goes away, and turns that into ClientGone.

    It listens from `listen` on (nothing else may read the request then) until the answer is complete.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._owner: asyncio.Task[object] | None = None
        self._listener: asyncio.Task[None] | None = None
        self.answered = False
        """Set before the last byte is sent: what the client does then is its own affair."""
        self.gone = False

    def listen(self) -> None:
        """The request was read to its end; from now on only a disconnect can come."""
        if self._listener is None and self._owner is not None:
            self._listener = asyncio.create_task(self._listen())

    async def __aenter__(self) -> Presence:
        self._owner = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.answered = True
        if self._listener is None:
            return
        self._listener.cancel()
        try:
            await asyncio.wait((self._listener,))
        except asyncio.CancelledError:
            if not self.gone:
                raise
        if self.gone:
            assert self._owner is not None
            if self._owner.uncancel() == 0:
                raise ClientGone from error

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.answered:
            self.gone = True
            assert self._owner is not None
            self._owner.cancel()
