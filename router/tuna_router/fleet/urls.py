"""Backend addresses that are allowed and yet hardly meant."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

_METADATA_NAMES: Final = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_METADATA_ADDRESSES: Final = frozenset({"100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254"})
"""Alibaba's, Oracle's, Azure's and AWS's; the link-local range has the rest."""


def is_metadata_service(url: str) -> bool:
    """True for a cloud's metadata service: it hands out the machine's credentials to whoever asks."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    if host in _METADATA_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_link_local or str(address) in _METADATA_ADDRESSES
