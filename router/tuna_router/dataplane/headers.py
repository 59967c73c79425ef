"""Which headers cross the router, and which do not."""

from __future__ import annotations

import re
import uuid
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
    }
)
_NOT_UPSTREAM: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"expect",
    b"x-request-id",
}
_NOT_DOWNSTREAM: Final = HOP_BY_HOP | {b"x-tuna-backend", b"x-tuna-attempts", b"x-request-id"}
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def nominated(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that a `Connection` header declares to be for this hop only."""
    names: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            names.update(token.strip().lower() for token in value.split(b","))
    return frozenset(names)


def upstream_headers(
    client: Iterable[tuple[bytes, bytes]], own: Mapping[str, str], request_id: bytes, key: bytes | None
) -> Headers:
    """What a backend gets: the client's headers without its key, and the backend's own set over them.

    `key` is the client's key for this router: no header that carries it leaves, whatever its name.
    """
    client = list(client)
    set_here = {name.lower().encode(): value.encode() for name, value in own.items()}
    dropped = _NOT_UPSTREAM | nominated(client) | set_here.keys()
    passed = [(n, v) for n, v in client if n not in dropped and not (key and key in v)]
    return [*passed, *set_here.items(), (b"x-request-id", request_id)]


def downstream_headers(
    backend: Iterable[tuple[bytes, bytes]], name: str, attempts: int, request_id: bytes, *, bodiless: bool = False
) -> Headers:
    """What the client gets: the backend's headers, and who answered after how many attempts.

    `bodiless` is for 204 and 304, whose content-length speaks of a body that is not sent.
    """
    backend = list(backend)
    dropped = _NOT_DOWNSTREAM | nominated(backend) | ({b"content-length"} if bodiless else set())
    passed = [(n, v) for n, v in backend if n.lower() not in dropped]
    return [*passed, *own_headers(name, attempts, request_id)]


def own_headers(name: str | None, attempts: int, request_id: bytes) -> Headers:
    """The headers that the router adds."""
    backend = [(b"x-tuna-backend", name.encode())] if name is not None else []
    return [*backend, (b"x-tuna-attempts", str(attempts).encode()), (b"x-request-id", request_id)]


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's x-request-id where it is a sane one, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex.encode()
