"""TLS towards clients: `--tls-cert` and `--tls-key`. Imported only where it is asked for."""

from __future__ import annotations

import ssl
from pathlib import Path

from tuna_router.errors import RouterError

HANDSHAKE_S = 20.0
"""Like the patience for a request's head: a client that connects and says nothing does not stay."""
GOODBYE_S = 5.0


class ServerTls:
    """What the router shows to its clients. `context` is the same for life; `read_again` changes what is in it.

    TLS 1.2 or later, HTTP/1.1 only. Raises RouterError for files that can't be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self.read_again()

    def read_again(self) -> None:
        """Take both files as they are now, for new connections. Raises RouterError; then nothing changes."""
        for path, flag in ((self._certificate, "--tls-cert"), (self._key, "--tls-key")):
            try:
                path.read_bytes()
            except FileNotFoundError as error:
                raise RouterError(f"{flag}: there is no file {path}", "give the path of a PEM file") from error
            except OSError as error:
                hint = "make it readable for the user that runs the router"
                raise RouterError(f"{flag}: {path} can't be read: {error.strerror}", hint) from error
        # First into a context of its own: half of a pair would end the one that is in use.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None)
            if reason == "KEY_VALUES_MISMATCH":
                message = f"{self._key} is not the key of {self._certificate}"
                raise RouterError(message, "give the key that the certificate was made with") from error
            message = f"{self._certificate} and {self._key} are no certificate and key in PEM"
            hint = "the certificate first, then those it rests on; a key without a password"
            raise RouterError(message, hint) from error


def _no_password() -> str:
    # Without this, OpenSSL would ask at the terminal.
    raise ValueError("the key has a password")
