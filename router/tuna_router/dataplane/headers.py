"""Which headers cross the router, and which do not."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Mapping
from typing import Final

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
SIDE_EFFECTS: Final = b"x-tuna-side-effects"
"""A client's word that its request must not be executed twice."""
PRIORITY: Final = b"x-tuna-priority"
"""`interactive` or `batch`."""
_NOT_UPSTREAM: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"expect",
    b"x-request-id",
    SIDE_EFFECTS,
}
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# Unique, not secret: a generator of our own spares a system call for each request.
_random = random.Random(os.urandom(32))


def upstream_lines(
    client: Iterable[tuple[bytes, bytes]],
    own_names: frozenset[bytes],
    key: bytes | None,
    *,
    nominated: frozenset[bytes] = frozenset(),
) -> bytes:
    """What of the client's headers a backend gets: all but its key and its cookies (a browser sends those of
    every service of this host), and but what the backend's own set replaces.

    `client` has lower-case names; `own_names` are those of the backend's headers; `nominated` are the
    headers that the client's `Connection` declares to be for this hop only. `key` is the client's key for
    this router: no header that carries it leaves, whatever its name.
    """
    dropped = _NOT_UPSTREAM
    if own_names or nominated:
        dropped = dropped | own_names | nominated
    return b"".join(
        [
            b"%b: %b\r\n" % pair
            for pair in client
            if pair[0] not in dropped and not (key and (key in pair[1] or key in pair[0]))
        ]
    )


def lines_of(headers: Mapping[str, str]) -> bytes:
    """Configured headers as they are on the wire."""
    return b"".join(b"%b: %b\r\n" % (name.lower().encode(), value.encode()) for name, value in headers.items())


def own_lines(backend_line: bytes, attempts: int, request_id: bytes) -> bytes:
    """The headers that the router adds to an answer; `backend_line` names the backend, or is empty."""
    return b"%bx-tuna-attempts: %d\r\nx-request-id: %b\r\n" % (backend_line, attempts, request_id)


def request_id_of(given: bytes | None) -> bytes:
    """The client's x-request-id where it is a sane one, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return b"%032x" % _random.getrandbits(128)
