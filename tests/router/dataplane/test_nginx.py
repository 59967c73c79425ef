"""What this router accepts, nginx reads in the same way or refuses: nothing that two readers see differently."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ..conftest import free_port, until
from .test_request_head import mutated, ours

ROUNDS = 1500
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
CONFIGURATION = """worker_processes 1; pid {folder}/pid; error_log {folder}/error; daemon off; user root;
events {{ worker_connections 1024; }}
http {{ access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
 uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5; merge_slashes off;
 server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{backend}; }}
 location = /up {{ return 204; }} }} }}
"""

pytestmark = [pytest.mark.nginx, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


class Recorder:
    """A backend that answers everything and keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.seen.append((head, await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()


@pytest.fixture
async def recorder() -> AsyncIterator[tuple[Recorder, int]]:
    recorder = Recorder()
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
    yield recorder, server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def nginx(recorder: tuple[Recorder, int], tmp_path: Path) -> AsyncIterator[int]:
    port = free_port()
    (tmp_path / "conf").write_text(CONFIGURATION.format(folder=tmp_path, port=port, backend=recorder[1]))
    assert NGINX is not None
    process = await asyncio.create_subprocess_exec(
        NGINX, "-c", str(tmp_path / "conf"), "-e", str(tmp_path / "error"), stderr=asyncio.subprocess.DEVNULL
    )
    answered: list[bytes] = []
    while b"204" not in b"".join(answered)[:20]:
        try:
            answered = [await send(port, b"GET /up HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")]
        except OSError:
            assert process.returncode is None, (tmp_path / "error").read_text()
            await asyncio.sleep(0.02)
    yield port
    process.terminate()
    await process.wait()


async def send(port: int, wire: bytes) -> bytes:
    """The head of the answer; empty when the connection is closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(wire)
    try:
        async with asyncio.timeout(5):
            return await reader.readuntil(b"\r\n\r\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()


async def test_what_is_accepted_nginx_reads_alike(recorder: tuple[Recorder, int], nginx: int) -> None:
    seen, dice = recorder[0].seen, random.Random(20261121)
    alike = 0
    for _ in range(ROUNDS):
        wire = mutated(dice)
        mine = ours(wire)
        if mine is None:
            continue
        head, body = mine
        before = len(seen)
        answer = await send(nginx, wire)
        if not answer.startswith(b"HTTP/1.1 200"):
            continue  # it refuses more than we do, such as odd versions of a Host
        await until(lambda: len(seen) > before)  # noqa: B023
        theirs, their_body = seen[before]
        method, _, rest = theirs.partition(b" ")
        assert (method, rest.partition(b" ")[0], their_body) == (head.method, head.target, body), wire
        alike += 1
    assert alike > ROUNDS / 100
