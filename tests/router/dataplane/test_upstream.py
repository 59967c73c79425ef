"""Connections to backends."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tuna_router.app import Router
from tuna_router.auth import sha256_hex
from tuna_router.dataplane.route import joined
from tuna_router.serving import Server, bind, local_url
from tuna_router.settings import parse_settings

from ..backends import Backend
from ..conftest import KEY, StartBackend, StartRouter, free_port

CERTIFICATE = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=backend -addext subjectAltName=IP:127.0.0.1 "
    "-keyout key.pem -out cert.pem"
)


@pytest.fixture
async def tls_backend(tmp_path: Path) -> AsyncIterator[tuple[Backend, str]]:
    """A backend that would rather speak HTTP/2, and the path of its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    subprocess.run(CERTIFICATE.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    context.set_alpn_protocols(["h2", "http/1.1"])
    backend = Backend(tls=context)
    await backend.start()
    yield backend, str(tmp_path / "cert.pem")
    await backend.stop()


async def test_a_backend_with_a_trusted_certificate_is_used_and_any_other_is_not(
    start_router: StartRouter, tls_backend: tuple[Backend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, certificate = tls_backend
    distrusting = await start_router(backend)
    answer = await distrusting.complete()
    assert answer.status_code == 502
    assert "serverless: TLS failed" in answer.json()["error"]["message"]
    assert not backend.seen
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    trusting = await start_router(backend)
    answer = await trusting.complete(stream=True)
    assert answer.text.endswith("[DONE]\n\n")


async def test_a_tls_connection_is_kept_and_speaks_http_1_1(
    start_router: StartRouter, tls_backend: tuple[Backend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, certificate = tls_backend
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    router = await start_router(backend)
    for stream in (False, True, False):
        assert (await router.complete(stream=stream)).status_code == 200
    (connection,) = backend.connections
    assert connection.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


async def test_a_backend_and_a_client_may_be_reached_by_ipv6() -> None:
    backend = Backend(host="::1")
    try:
        await backend.start()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    entry = {"name": "six", "kind": "serverless", "url": backend.url}
    router = Router(parse_settings({"backends": [entry], "api_key_sha256": [sha256_hex(KEY)]}))
    server, sock = Server(router, 2), bind("::1", 0)
    await router.start()
    serving = asyncio.create_task(server.serve(sock))
    url = local_url("::1", sock.getsockname()[1])
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": KEY}, trust_env=False) as client:
        answer = await client.post("/v1/completions", json={"prompt": "p"})
    assert answer.headers["x-tuna-backend"] == "six"
    assert backend.seen[0].headers["host"] == f"[::1]:{backend.port}"
    server.stop()
    await serving
    await router.stop()
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
