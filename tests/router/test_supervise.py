"""One socket, many routers: what ends is started again, and what is replaced loses no request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .conftest import StartBackend, free_port


class Kept:
    """A folder with a supervisor of its own."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.folder, self.process, self.port = folder, process, port
        self.url = f"http://127.0.0.1:{port}"

    def pid(self) -> int:
        return int(json.loads((self.folder / "router.json").read_text())["pid"])

    def healthy(self) -> bool:
        try:
            return httpx.get(self.url + "/router/health", trust_env=False, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def swap(self) -> str:
        (self.folder / "swapped").unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        until((self.folder / "swapped").exists, 40)
        return (self.folder / "swapped").read_text()


def until(condition: Callable[[], object], within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def environment(folder: Path, script: str) -> None:
    (folder / "env" / "bin").mkdir(parents=True, exist_ok=True)
    python = folder / "env" / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


@contextmanager
def kept(folder: Path, config: dict[str, object], code: int = 0, **launch: object) -> Iterator[Kept]:
    folder.mkdir()
    environment(folder, f'exec "{sys.executable}" "$@"')
    (folder / "current").symlink_to("env")
    (folder / "config.json").write_text(json.dumps(config))
    port = free_port()
    values = {"host": "127.0.0.1", "ports": [port], "public": True, **launch}
    (folder / "launch.json").write_text(json.dumps(values))
    with subprocess.Popen([sys.executable, "-m", "tuna_router.supervise", str(folder)]) as process:
        made = Kept(folder, process, port)
        try:
            until(lambda: (folder / "router.json").exists() and made.healthy())
            yield made
        finally:
            process.terminate()
            assert process.wait(30) == code


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_router_that_was_killed_is_back_and_its_supervisor_takes_it_along(tmp_path: Path) -> None:
    with kept(tmp_path / "r", {}) as router:
        first = router.pid()
        os.kill(first, signal.SIGKILL)
        until(lambda: (router.folder / "router.json").exists() and router.pid() != first)
        until(router.healthy)
        last = router.pid()
    assert not alive(last)
    assert not (tmp_path / "r" / "supervisor.pid").exists()


def test_a_router_does_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with kept(tmp_path / "r", {}, code=-signal.SIGKILL) as router:
        pid = router.pid()
        router.process.kill()
        until(lambda: not alive(pid))


async def test_a_swap_finishes_streams_and_answers_every_kept_connection(
    tmp_path: Path, start_backend: StartBackend
) -> None:
    import asyncio

    go_on = asyncio.Event()

    async def backend(wire, seen) -> None:  # type: ignore[no-untyped-def]
        await wire.stream_head()
        await wire.token("one")
        if b"slow" in seen.body:
            await go_on.wait()
        await wire.token("two", "stop")
        await wire.done()

    upstream = await start_backend(backend)
    config = {"backends": [{"name": "s", "kind": "serverless", "url": upstream.url}]}
    body = {"model": "m", "prompt": "p", "stream": True}
    manager = kept(tmp_path / "r", config)
    router = await asyncio.to_thread(manager.__enter__)
    try:
        old = router.pid()
        async with httpx.AsyncClient(base_url=router.url, trust_env=False, timeout=20) as idle:
            assert (await idle.post("/v1/completions", json=body)).status_code == 200
            async with (
                httpx.AsyncClient(base_url=router.url, trust_env=False, timeout=20) as busy,
                busy.stream("POST", "/v1/completions", json={**body, "prompt": "slow"}) as stream,
            ):
                pieces = stream.aiter_text()
                text = await anext(pieces)
                assert await asyncio.to_thread(router.swap) == "ok"
                assert router.pid() != old
                # The connection that was kept open is answered by the old one, for the last time.
                last = await idle.post("/v1/completions", json=body)
                assert (last.status_code, last.headers["connection"]) == (200, "close")
                assert (await idle.post("/v1/completions", json=body)).status_code == 200
                go_on.set()
                async for piece in pieces:
                    text += piece
        assert text.endswith("[DONE]\n\n")
        await asyncio.to_thread(until, lambda: not _runs(old))
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_new_router_that_does_not_start_leaves_the_old_one(tmp_path: Path) -> None:
    with kept(tmp_path / "r", {}) as router:
        pid = router.pid()
        environment(router.folder, "exit 3")
        assert "ended with 3" in router.swap()
        assert router.healthy()
        assert alive(pid)


def test_a_router_that_grows_too_big_is_swapped(tmp_path: Path) -> None:
    with kept(tmp_path / "r", {}, memory_mb=1) as router:
        first = router.pid()
        until(lambda: router.pid() != first, 30)
        assert router.healthy()


def test_the_port_is_kept_from_one_life_to_the_next(tmp_path: Path) -> None:
    taken = free_port()
    with kept(tmp_path / "r", {}) as router:
        assert (router.folder / "port").read_text() == str(router.port)
    (tmp_path / "r" / "launch.json").write_text(json.dumps({"host": "127.0.0.1", "ports": [taken], "public": True}))
    command = [sys.executable, "-m", "tuna_router.supervise", str(tmp_path / "r")]
    with subprocess.Popen(command) as again:
        again_at = Kept(tmp_path / "r", again, router.port)
        until(again_at.healthy)
        again.terminate()
        assert again.wait(20) == 0


def test_a_socket_that_does_not_listen_is_refused() -> None:
    import socket

    with socket.socket() as sock:
        command = [sys.executable, "-m", "tuna_router", "--no-auth", "--fd", str(sock.fileno())]
        done = subprocess.run(command, pass_fds=(sock.fileno(),), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "is not a listening socket" in done.stderr
