"""What the kernel does at our word for a connection to a backend. tcp(7), Linux; elsewhere as far as it goes."""

from __future__ import annotations

import asyncio
import functools
import math
import socket
from typing import Final

_TCP: Final = socket.IPPROTO_TCP
_Option = tuple[int, int, int]
"""Level, name and value."""
_PROBE_EVERY_S: Final = 1
_IDLE: Final = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_BETWEEN: Final = getattr(socket, "TCP_KEEPINTVL", None)
_COUNT: Final = getattr(socket, "TCP_KEEPCNT", None)
_UNANSWERED: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
_AT_ONCE: Final = getattr(socket, "TCP_QUICKACK", None)


def notice_silence(transport: asyncio.BaseTransport, within_s: float) -> None:
    """Have the connection be lost about `within_s` seconds after its machine was last heard of; whole seconds from
    two on.

    A machine that is gone without a word acknowledges neither what was sent to it nor the probes that go out while
    nothing is sent. An engine that computes for minutes is not concerned: its machine acknowledges both at once.
    """
    _set(transport, _noticing(within_s))


@functools.lru_cache(maxsize=8)
def _noticing(within_s: float) -> tuple[_Option, ...]:
    idle_s = max(1, int(within_s / 2))
    probes = max(1, math.ceil(within_s) - idle_s)
    options = ((_IDLE, idle_s), (_BETWEEN, _PROBE_EVERY_S), (_COUNT, probes), (_UNANSWERED, int(within_s * 1000)))
    known = [(_TCP, option, value) for option, value in options if option is not None]
    return ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known)


def acknowledge(transport: asyncio.BaseTransport, *, at_once: bool) -> None:
    """Acknowledge each read at once, or with the next one, which spares a packet for every other token.

    A sender with Nagle's algorithm waits for an acknowledgement: once, for 40 ms, after which the kernel sends them
    at once again.
    """
    if _AT_ONCE is not None:
        _set(transport, ((_TCP, _AT_ONCE, at_once),))


def _set(transport: asyncio.BaseTransport, options: tuple[_Option, ...]) -> None:
    known = transport.get_extra_info("socket")
    descriptor = -1 if known is None else known.fileno()
    if descriptor < 0:
        return
    try:
        # What uvloop gives makes a socket for every call: here it is one for all of them.
        sock = socket.socket(fileno=descriptor)
        try:
            for level, option, value in options:
                sock.setsockopt(level, option, value)
        finally:
            sock.detach()
    except OSError:
        return  # a connection that was lost just now is told by what happens next
