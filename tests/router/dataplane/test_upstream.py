"""Connections to backends."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tuna_router.dataplane.route import joined

from ..backends import Backend
from ..conftest import StartBackend, StartRouter, free_port

CERTIFICATE = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=backend -addext subjectAltName=IP:127.0.0.1 "
    "-keyout key.pem -out cert.pem"
)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_a_backend_with_a_trusted_certificate_is_used_and_any_other_is_not(
    start_router: StartRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(CERTIFICATE.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    backend = Backend(tls=context)
    await backend.start()
    try:
        distrusting = await start_router(backend)
        answer = await distrusting.complete()
        assert answer.status_code == 502
        assert "serverless: TLS failed" in answer.json()["error"]["message"]
        assert not backend.seen
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        trusting = await start_router(backend)
        answer = await trusting.complete(stream=True)
        assert answer.text.endswith("[DONE]\n\n")
    finally:
        await backend.stop()


async def test_plain_http_where_tls_was_expected_is_an_error(
    start_backend: StartBackend, start_router: StartRouter
) -> None:
    backend = await start_backend()
    router = await start_router(f"https://127.0.0.1:{backend.port}")
    assert "TLS failed" in (await router.complete()).json()["error"]["message"]


async def test_an_error_names_the_backend_and_the_reason_but_no_address(start_router: StartRouter) -> None:
    port = free_port()
    router = await start_router(f"http://127.0.0.1:{port}")
    message = (await router.complete()).json()["error"]["message"]
    assert "serverless: connection refused" in message
    assert str(port) not in message


@pytest.mark.parametrize(
    ("base", "target", "expected"),
    [
        (b"/", b"/v1/models", b"/v1/models"),
        (b"/v1", b"/v1/models", b"/v1/models"),
        (b"/app/v1", b"/v1/models?x=1", b"/app/v1/models?x=1"),
        (b"/app", b"/v1/models", b"/app/v1/models"),
        (b"/v1", b"/tokenize", b"/v1/tokenize"),
    ],
)
def test_a_base_url_that_ends_in_v1_is_not_doubled(base: bytes, target: bytes, expected: bytes) -> None:
    assert joined(base, target) == expected
