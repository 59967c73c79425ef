"""From a socket to a stopped server: binding, the port file, signals, a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Generator
from pathlib import Path

from tuna_router.app import Router
from tuna_router.dataplane.client import ClientConnection
from tuna_router.errors import RouterError
from tuna_router.state import write_private

_log = logging.getLogger("tuna_router.serving")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 4096
_LAST_WORD_S = 1.0
_LOOK_S = 0.02


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises RouterError when the address can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise RouterError(f"{host!r} is no address of this machine", "try --host 127.0.0.1") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise RouterError(
                f"port {port} on {host} is taken", "choose another with --port, or --port 0 for a free one"
            ) from error
        if error.errno == errno.EACCES:
            raise RouterError(f"port {port} may not be opened", "ports below 1024 need privileges") from error
        raise RouterError(f"can't listen on {host}:{port}: {error.strerror}", "try --host 127.0.0.1") from error
    sock.setblocking(False)
    return sock


def local_url(host: str, port: int) -> str:
    """The URL under which this machine reaches the router."""
    name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class Server:
    """Accepts connections until told to stop; then lets finish what runs, for a while.

    `stop` twice ends at once.
    """

    def __init__(self, router: Router, shutdown_timeout_s: float) -> None:
        self._router = router
        self._shutdown_timeout_s = shutdown_timeout_s
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self.connections = router.connections

    def stop(self) -> None:
        """Accept nothing more, and return from `serve` when all is done."""
        if self._stop.is_set():
            self._stop_at_once.set()
        self._stop.set()

    async def serve(self, sock: socket.socket) -> None:
        """Serve until stopped."""
        wheel, begin, connections = self._router.core.wheel, self._router.begin, self.connections
        listening = await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(wheel, begin, connections), sock=sock, backlog=BACKLOG
        )
        try:
            await self._stop.wait()
        finally:
            listening.close()
            await self._finish()

    async def _finish(self) -> None:
        for connection in list(self.connections):
            connection.stop(now=False)
        await self._gone(self._shutdown_timeout_s)
        for connection in list(self.connections):
            connection.stop(now=True)
        await self._gone(_LAST_WORD_S)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)

    async def _gone(self, seconds: float) -> None:
        """Until no connection is left, at most `seconds`, or until it shall end at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.connections and not self._stop_at_once.is_set():
                    await asyncio.sleep(_LOOK_S)


@contextlib.contextmanager
def signals_stop(server: Server) -> Generator[None, None, None]:
    """Take SIGINT and SIGTERM as the wish to stop; a second one as the wish to stop at once."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, server.stop)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def serve_until_stopped(
    router: Router, sock: socket.socket, *, host: str, port_file: Path | None, shutdown_timeout_s: float
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what runs, within `shutdown_timeout_s`."""
    server = Server(router, shutdown_timeout_s)
    port = sock.getsockname()[1]
    url = local_url(host, port)
    await router.start()
    try:
        if port_file is not None:
            card = {"pid": os.getpid(), "port": port, "host": host, "url": url, "started_at": time.time()}
            write_private(port_file, json.dumps(card) + "\n")
        if router.core.open_door and not _is_loopback(sock.getsockname()[0]):
            _log.warning("without a key, everyone who reaches %s may use and change this router", url)
        print(f"tuna-router: listening on {url}", file=sys.stderr, flush=True)  # noqa: T201
        with signals_stop(server):
            await server.serve(sock)
    finally:
        await router.stop()
        if port_file is not None:
            _remove_own(port_file)


def _remove_own(port_file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        if json.loads(port_file.read_text())["pid"] == os.getpid():
            port_file.unlink()
