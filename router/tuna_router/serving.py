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

import uvicorn

from tuna_router.app import Router
from tuna_router.errors import RouterError
from tuna_router.state import write_private

_log = logging.getLogger("tuna_router.serving")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        sock.listen(2048)
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


class Server(uvicorn.Server):
    """uvicorn's server that returns after a signal (uvicorn raises the signal again after its end)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGINT and SIGTERM as the wish to stop; a second one as the wish to stop at once."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def server_for(router: Router, shutdown_timeout_s: float) -> Server:
    """A uvicorn server with nothing between the socket and the router."""
    config = uvicorn.Config(
        router,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(shutdown_timeout_s)),
    )
    return Server(config)


async def serve_until_stopped(
    router: Router, sock: socket.socket, *, host: str, port_file: Path | None, shutdown_timeout_s: float
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what runs, within `shutdown_timeout_s`."""
    server = server_for(router, shutdown_timeout_s)
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
        await server.serve(sockets=[sock])
    finally:
        await router.stop()
        if port_file is not None:
            _remove_own(port_file)


def _remove_own(port_file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        if json.loads(port_file.read_text())["pid"] == os.getpid():
            port_file.unlink()


def quiet_server_log() -> None:
    """uvicorn logs a broken answer as an error of the application; the router has its own words."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
