"""Who may ask a router that has no keys: not a web page of somewhere else, in the browser of someone who may.

A browser says in `Origin` which site's page a request is for. A page can make that equal to `Host` by giving its
own name this machine's address once it is loaded (DNS rebinding); so on a loopback address, which no name but
localhost stands for, other names are refused.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

HINT: Final = "start the router with an API key, or ask it as localhost or by its address"


def foreign(origin: bytes | None, host: bytes, *, loopback: bool) -> str | None:
    """Why a request with these headers is refused; None where it is not. `loopback`: no other machine reaches
    this router."""
    if origin is not None and origin.partition(b"://")[2].lower() != host.lower():
        return "Another web site may not use this router, which has no keys."
    if loopback and host and not _is_this_machine(host):
        return "This router has no keys, and answers on this machine only to the name localhost or an address."
    return None


@lru_cache(maxsize=64)
def _is_this_machine(host: bytes) -> bool:
    """True for localhost and names under it (RFC 6761: always this machine), and for addresses."""
    text = host.decode("latin-1").lower()
    name = text.partition("]")[0].lstrip("[") if text.startswith("[") else text.partition(":")[0]
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
