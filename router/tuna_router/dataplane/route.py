"""A backend as the data plane uses it: its URL taken apart, its headers as they are on the wire."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from tuna_router.dataplane.headers import lines_of
from tuna_router.settings import BackendSettings

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Route:
    """Where and how to reach one backend; made once for each configuration of it.

    `origin` is host, port and whether TLS is spoken: connections are shared by origin.
    """

    __slots__ = ("backend_line", "base", "host_line", "origin", "own_lines", "own_names", "settings")

    def __init__(self, settings: BackendSettings, url: str | None = None) -> None:
        parts = urlsplit(settings.url if url is None else url)
        name = parts.hostname or ""
        host = name if name.isascii() else name.encode("idna").decode()
        default = _DEFAULT_PORTS[parts.scheme]
        shown = f"[{host}]" if ":" in host else host
        if parts.port not in (None, default):
            shown += f":{parts.port}"
        self.settings = settings
        self.origin = (host, parts.port or default, parts.scheme == "https")
        self.base = (parts.path + (f"?{parts.query}" if parts.query else "")).encode()
        self.host_line = f"host: {shown}\r\n".encode()
        self.own_names = frozenset(name.lower().encode() for name in settings.headers)
        self.own_lines = lines_of(settings.headers)
        self.backend_line = f"x-tuna-backend: {settings.name}\r\n".encode()

    def request(self, method: bytes, target: bytes, lines: bytes) -> bytes:
        """A request's head with this backend's own headers, up to where `lines` end."""
        return b"%b %b HTTP/1.1\r\n%b%b%b" % (
            method,
            joined(self.base, target),
            self.host_line,
            lines,
            self.own_lines,
        )

    def target_of(self, location: bytes) -> bytes | None:
        """The target that a `Location` names at this backend's own origin; None where it leads elsewhere."""
        if not location.isascii() or any(byte <= 0x20 or byte == 0x7F for byte in location):
            return None
        try:
            parts = urlsplit(location.decode())
            port = parts.port
        except ValueError:
            return None
        if parts.scheme or parts.netloc:
            origin = (parts.hostname, port or _DEFAULT_PORTS.get(parts.scheme), parts.scheme == "https")
            if parts.scheme not in _DEFAULT_PORTS or parts.username is not None or origin != self.origin:
                return None
        elif not location.startswith(b"/"):
            return None
        return (parts.path + (f"?{parts.query}" if parts.query else "")).encode() or b"/"


def joined(base: bytes, target: bytes) -> bytes:
    """The backend's path and the client's; a base that ends in /v1 is not doubled."""
    if not base:
        return target
    base = base.rstrip(b"/")
    if base.endswith(b"/v1") and (target == b"/v1" or target.startswith((b"/v1/", b"/v1?"))):
        base = base[:-3]
    return base + target
