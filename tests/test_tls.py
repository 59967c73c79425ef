"""Our HTTPS clients trust whom httpx would, and read the certificates once."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from tuna_nb import tls


def test_the_certificates_are_read_once() -> None:
    assert tls.trusted() is tls.trusted()
    assert tls.trusted().verify_mode == ssl.CERT_REQUIRED
    assert tls.trusted().check_hostname


async def test_an_authority_of_the_users_is_trusted_from_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        async def asked() -> int:
            async with httpx.AsyncClient(verify=tls.trusted()) as http:
                return (await http.get(url)).status_code

        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await asked()
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert await asked() == 204
