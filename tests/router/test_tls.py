"""TLS towards clients: the router as a process, with certificates that openssl made."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from .backends import ok
from .conftest import KEY, StartBackend
from .test_process import Process, run, started

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make certificates")


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is signed by itself, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *new_key, "-keyout", str(key), "-out", str(cert), "-days", "2", *subject]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def shown(router: Process) -> str:
    """The certificate that a new connection gets to see."""
    return ssl.get_server_certificate(("127.0.0.1", int(str(router.card["port"]))))


def trusting(cert: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(cert))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_with_a_certificate_it_speaks_https_and_nothing_else(
    tmp_path: Path, start_backend: StartBackend
) -> None:
    backend = await start_backend(ok)
    cert, key = certificate(tmp_path, "first")

    def talk() -> None:
        flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--serverless", backend.url]
        with started(tmp_path, *flags, API_KEY=KEY) as router:
            assert router.url == f"https://127.0.0.1:{router.card['port']}"
            bearer = {"authorization": f"Bearer {KEY}"}
            with httpx.Client(
                base_url=router.url, verify=trusting(cert), trust_env=False, headers=bearer
            ) as client:
                assert client.get("/router/health").json()["status"] == "ok"
                large = {"model": "m", "prompt": "x" * 500_000}
                assert client.post("/v1/completions", json=large).json()["choices"][0]["text"] == "hi"
                answer = client.post("/v1/completions", json={"model": "m", "prompt": "p", "stream": True})
                assert answer.text.endswith("data: [DONE]\n\n")
            address = ("127.0.0.1", int(str(router.card["port"])))
            with (
                socket.create_connection(address) as plain,
                trusting(cert).wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
            ):
                assert wrapped.selected_alpn_protocol() == "http/1.1"
                assert wrapped.version() in ("TLSv1.2", "TLSv1.3")
            old = trusting(cert)
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            with socket.create_connection(address) as plain, pytest.raises(ssl.SSLError):
                old.wrap_socket(plain, server_hostname="127.0.0.1")
            # Plain HTTP: no answer, and the end.
            with socket.create_connection(address, timeout=5) as plain:
                plain.sendall(b"GET /router/health HTTP/1.1\r\nhost: x\r\n\r\n")
                told = b""
                try:
                    while piece := plain.recv(4096):
                        told += piece
                except ConnectionResetError:
                    pass
                assert b"HTTP" not in told
            assert httpx.get(f"{router.url}/router/health", verify=trusting(cert), trust_env=False).is_success
            assert router.end() == 0
            assert router.process.stderr is not None
            assert "Traceback" not in router.process.stderr.read()

    await asyncio.to_thread(talk)
    assert len(backend.seen) == 2


def test_sighup_takes_a_new_certificate_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    (cert, key), (new_cert, new_key) = certificate(tmp_path, "first"), certificate(tmp_path, "second")
    first, second = cert.read_text(), new_cert.read_text()
    with started(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key), "--no-auth") as router:
        assert shown(router) == first
        shutil.copy(new_cert, cert)
        router.process.send_signal(signal.SIGHUP)
        assert router.process.stderr is not None
        while "is not the key of" not in (line := router.process.stderr.readline()):
            assert line, "it ended"
        assert shown(router) == first
        shutil.copy(new_key, key)
        router.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while shown(router) != second:
            assert time.monotonic() < deadline
        assert router.end() == 0


def test_files_that_can_not_be_used_are_told_in_two_lines(tmp_path: Path) -> None:
    (cert, key), (_, other) = certificate(tmp_path, "first"), certificate(tmp_path, "second")
    locked, text, folder = tmp_path / "locked.key", tmp_path / "text.pem", tmp_path / "folder"
    command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", str(key), "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    text.write_text("no certificate\n")
    folder.mkdir()
    for given, code, words in (
        ((cert, None), 2, "--tls-cert and --tls-key go together"),
        ((None, key), 2, "--tls-cert and --tls-key go together"),
        ((tmp_path / "none.pem", key), 1, f"--tls-cert: there is no file {tmp_path}/none.pem"),
        ((cert, folder), 1, f"--tls-key: {folder} can't be read"),
        ((cert, other), 1, f"{other} is not the key of {cert}"),
        ((text, key), 1, f"{text} and {key} are no certificate and key in PEM"),
        ((cert, locked), 1, f"{cert} and {locked} are no certificate and key in PEM"),
    ):
        flags = [
            word
            for flag, path in zip(("--tls-cert", "--tls-key"), given, strict=True)
            if path
            for word in (flag, str(path))
        ]
        result = run("--port", "0", "--no-auth", *flags)
        lines = result.stderr.splitlines()
        assert (result.returncode, len(lines)) == (code, 2), result.stderr
        assert words in lines[0]
        assert lines[1].startswith("hint: ")
