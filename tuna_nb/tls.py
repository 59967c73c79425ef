"""Whom our HTTPS clients trust."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


def trusted() -> ssl.SSLContext:
    """httpx's own choice (certifi, or SSL_CERT_FILE and SSL_CERT_DIR), to be given as `verify`.

    Made once: reading the certificates takes 30 ms, in which an event loop stands still, and httpx does it anew for
    every client.
    """
    return _made(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _made(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()
