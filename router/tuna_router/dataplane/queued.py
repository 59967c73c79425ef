"""Wait: a request that found no place under the concurrency limit, until there is one or its patience ends.

It is the connection's handler until then, and hands it to the request's real handler.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from tuna_router.admission import Ticket, Waiting
from tuna_router.core import Core
from tuna_router.dataplane.client import ClientConnection, Handler
from tuna_router.envelope import error_body
from tuna_router.keys.live import LiveKey
from tuna_router.refusal import Refusal

_HELD_BYTES: Final = 64 * 1024
_MOST_RETRY_AFTER_S: Final = 60


def full(core: Core) -> Refusal:
    """429: the limit and its queue are full. It says to come back after the time that others waited."""
    admission = core.admission
    message = f"The router already serves its limit of {admission.limit} requests"
    message += f", and {admission.waiting} wait." if admission.waiting else "."
    after = min(max(math.ceil(core.counts.last_wait_s), 1), _MOST_RETRY_AFTER_S)
    body = error_body(message, "rate_limit_error", "concurrency_limit")
    return Refusal(429, body, b"retry-after: %d\r\n" % after)


def queued(
    core: Core,
    client: ClientConnection,
    key: LiveKey | None,
    begin: Callable[[Ticket], Handler],
    refuse: Callable[[Refusal], None],
    *,
    batch: bool = False,
) -> Queued | None:
    """The handler of a request that waits for its place, or None when the queue is full.

    `begin` makes the request's real handler; `refuse` answers, when it waited in vain.
    """
    handler = Queued(core, client, begin, refuse)
    waiting = core.admission.wait(handler.admitted, key, batch=batch)
    if waiting is None:
        return None
    handler.waiting = waiting
    client.timer.set(core.settings.queue_timeout_s)
    return handler


class Queued:
    """See the module. Of the body it holds a little; the rest waits in the client's socket."""

    __slots__ = (
        "_begin",
        "_client",
        "_complete",
        "_core",
        "_over",
        "_pieces",
        "_refuse",
        "_since",
        "_size",
        "_ticket",
        "waiting",
    )
    waiting: Waiting

    def __init__(
        self,
        core: Core,
        client: ClientConnection,
        begin: Callable[[Ticket], Handler],
        refuse: Callable[[Refusal], None],
    ) -> None:
        self._core = core
        self._client = client
        self._begin = begin
        self._refuse = refuse
        self._since = client.timer.now()
        self._pieces: list[bytes] = []
        self._size = 0
        self._complete = False
        self._over = False
        self._ticket: Ticket | None = None

    def admitted(self, ticket: Ticket) -> None:
        """A place is free. Begins in the loop's next turn: this one belongs to the request that left."""
        self._ticket = ticket
        asyncio.get_running_loop().call_soon(self._start)

    # The connection's handler

    def body(self, piece: bytes) -> None:
        """The next bytes of the request's body."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _HELD_BYTES:
            self._client.pause_reading(True)

    def body_end(self) -> None:
        """The request is complete."""
        self._complete = True

    def gone(self) -> None:
        """The client went away."""
        self._give_up()

    def paused(self, paused: bool) -> None:
        """Nothing is being answered yet."""

    def timer(self) -> None:
        """Its patience is over."""
        if self._ticket is not None:
            return
        self._give_up()
        self._core.counts.refused.add(("queue_timeout",))
        seconds = self._core.settings.queue_timeout_s
        message = f"No place became free within {seconds:g} s: the router serves its limit of requests."
        body = error_body(message, "rate_limit_error", "queue_timeout")
        after = min(max(math.ceil(seconds), 1), _MOST_RETRY_AFTER_S)
        self._refuse(Refusal(429, body, b"retry-after: %d\r\n" % after))

    def stop(self) -> None:
        """The router ends now."""
        self._give_up()
        body = error_body("The router is stopping.", "upstream_error", "router_stopping")
        self._refuse(Refusal(503, body, b"retry-after: 5\r\n"))

    def _start(self) -> None:
        ticket = self._ticket
        if self._over or ticket is None:
            return  # the place was given back
        client = self._client
        self._core.counts.waited(client.timer.now() - self._since)
        client.timer.clear()
        client.pause_reading(False)
        handler = self._begin(ticket)
        client.hand_to(handler)
        for piece in self._pieces:
            if not client.serves(handler):
                return  # it was answered already
            handler.body(piece)
        if self._complete and client.serves(handler):
            handler.body_end()

    def _give_up(self) -> None:
        """Leave the queue, or the place that was just given."""
        self._over = True
        self._pieces.clear()
        if self._ticket is not None:
            self._ticket.leave()
        else:
            self.waiting.cancel()
