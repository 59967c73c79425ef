"""Who may do what, and where a request carries its key; `keys` knows whose it is.

Two kinds of key: client keys use the endpoint, admin keys also change the router. As long as no
admin key is configured, client keys may do both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum


class Role(IntEnum):
    """What a caller may do; higher includes lower."""

    NOBODY = 0
    CLIENT = 1
    ADMIN = 2


def sha256_hex(key: str) -> str:
    """The hash under which a key is kept."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def key_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key of a request: `Authorization: Bearer KEY`, else `x-api-key: KEY`; names are lower case."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and (key := key.strip()):
            return key
    return headers.get(b"x-api-key", b"").strip() or None
