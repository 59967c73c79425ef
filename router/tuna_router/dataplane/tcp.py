"""What the kernel does at our word for a connection to a backend. tcp(7), Linux; elsewhere as far as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from typing import Final

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
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    idle_s = max(1, int(within_s / 2))
    probes = max(1, math.ceil(within_s) - idle_s)
    options = ((_IDLE, idle_s), (_BETWEEN, _PROBE_EVERY_S), (_COUNT, probes), (_UNANSWERED, int(within_s * 1000)))
    # A connection that was lost just now, or a system without one of them, is told by what happens next.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in options:
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def acknowledge(transport: asyncio.BaseTransport, *, at_once: bool) -> None:
    """Acknowledge each read at once, or with the next one, which spares a packet for every other token.

    A sender with Nagle's algorithm waits for an acknowledgement: once, for 40 ms, after which the kernel sends them
    at once again.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and _AT_ONCE is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _AT_ONCE, at_once)
