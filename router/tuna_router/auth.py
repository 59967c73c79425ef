"""Who may do what. Keys are known only as SHA-256 hashes and compared in constant time.

Two kinds of key: client keys use the endpoint, admin keys also change the router. As long as no
admin key is configured, client keys may do both.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
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


class Guard:
    """Decides the role of a key. `open_door` is `--no-auth`: everyone is a client."""

    def __init__(
        self, client_hashes: Iterable[str], admin_hashes: Iterable[str] = (), *, open_door: bool = False
    ) -> None:
        self._clients = tuple(bytes.fromhex(h) for h in client_hashes)
        self._admins = tuple(bytes.fromhex(h) for h in admin_hashes)
        self.open_door = open_door

    def role(self, key: bytes | None) -> Role:
        """The role of whoever presents `key`; every known hash is compared, whichever matches."""
        is_client = self.open_door
        is_admin = False
        if key is not None:
            digest = hashlib.sha256(key).digest()
            for known in self._clients:
                is_client |= hmac.compare_digest(digest, known)
            for known in self._admins:
                is_admin |= hmac.compare_digest(digest, known)
        if is_admin or (is_client and not self._admins):
            return Role.ADMIN
        return Role.CLIENT if is_client else Role.NOBODY
