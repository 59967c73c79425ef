"""From a socket to a stopped server: binding, the port file, signals, a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuna_router.app import Router
from tuna_router.dataplane.client import ClientConnection
from tuna_router.envelope import error_body
from tuna_router.errors import RouterError
from tuna_router.load_file import LoadFile, load_folder
from tuna_router.settings import Settings
from tuna_router.state import write_private
from tuna_router.state_file import state_file

if TYPE_CHECKING:
    from tuna_router.tls import ServerTls

_log = logging.getLogger("tuna_router.serving")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 4096
_LAST_WORD_S = 1.0
_LOOK_S = 0.02
_MOST_FILES = 1 << 18
_OTHER_FILES = 100
_FEWEST_CONNECTIONS = 64


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


def adopt(descriptor: int) -> socket.socket:
    """The listening socket that whoever started this process opened for it. Raises RouterError.

    While they hold it too, connections that come between two routers wait in its queue.
    """
    try:
        sock = socket.socket(fileno=descriptor)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        message = f"--fd {descriptor} is no socket: {error.strerror}"
        raise RouterError(message, "it is for supervisors; leave it out") from error
    if not listens:
        raise RouterError(f"--fd {descriptor} is not a listening socket", "bind it and listen before")
    sock.setblocking(False)
    return sock


def local_url(host: str, port: int, *, tls: bool = False) -> str:
    """The URL under which this machine reaches the router."""
    scheme = "https" if tls else "http"
    name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def most_connections() -> int:
    """How many clients may be connected: half of the files that this process may have open, since a request
    has a connection on either side. Raises the soft limit to the hard one first, as most servers do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max((soft - _OTHER_FILES) // 2, _FEWEST_CONNECTIONS)


class _TooMany(asyncio.Protocol):
    """A connection above the limit: told so and closed, before it asks anything."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        assert isinstance(transport, asyncio.WriteTransport)
        body = error_body("The router has its limit of connections.", "rate_limit_error", "connection_limit")
        head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        transport.write(b"%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (head, len(body), body))
        transport.close()


class Server:
    """Accepts connections until told to stop; then lets finish what runs, for a while.

    `stop` twice ends at once.
    """

    def __init__(
        self,
        router: Router,
        shutdown_timeout_s: float,
        tls: ServerTls | None = None,
    ) -> None:
        self._router = router
        self._shutdown_timeout_s = shutdown_timeout_s
        self._tls = tls
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self.retires = False
        self.connections = router.connections
        self.most_connections = most_connections()

    def stop(self) -> None:
        """Accept nothing more, and return from `serve` when all is done."""
        if self._stop.is_set():
            self._stop_at_once.set()
        self._stop.set()

    def retire(self) -> None:
        """As `stop`, for one that is being replaced: each connection that is kept open gets one more answer, which
        says that it is the last, so that no request meets a connection that is just being closed."""
        self.retires = True
        self._stop.set()

    async def serve(self, sock: socket.socket) -> None:
        """Serve until stopped."""
        wheel, begin, connections = self._router.core.wheel, self._router.begin, self.connections
        most, counted = self.most_connections, self._router.core.counts.refused
        self._router.on_loopback = _is_loopback(sock.getsockname()[0])

        def refused(code: str) -> None:
            counted.add((code,))

        def accept() -> asyncio.Protocol:
            if len(connections) >= most:
                return _TooMany()
            return ClientConnection(wheel, begin, connections, refused)

        more: dict[str, Any] = {}
        if self._tls is not None:
            from tuna_router.tls import GOODBYE_S, HANDSHAKE_S

            more = {"ssl": self._tls.context}
            more |= {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": GOODBYE_S}
        listening = await asyncio.get_running_loop().create_server(accept, sock=sock, backlog=BACKLOG, **more)
        try:
            await self._stop.wait()
        finally:
            listening.close()
            await self._finish()

    async def _finish(self) -> None:
        ends_at = asyncio.get_running_loop().time() + self._shutdown_timeout_s
        tell_systemd("STOPPING=1")
        self._router.core.events.close()
        if not self.retires:
            for connection in list(self.connections):
                connection.stop(now=False)
        await self._gone(max(ends_at - asyncio.get_running_loop().time(), 0.0))
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
                    if self.retires:
                        # Each time, since some are still being accepted when it begins.
                        for connection in self.connections:
                            connection.retire()
                    await asyncio.sleep(_LOOK_S)


class Reload:
    """SIGHUP: the configuration file and the TLS files are read again, and the access log begins a new file.

    `read` returns the new settings and raises RouterError; then the old ones stay.
    """

    def __init__(self, router: Router, read: Callable[[], Settings] | None, tls: ServerTls | None = None) -> None:
        self._router = router
        self._read = read
        self._tls = tls
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Begin; a second time while it runs does nothing."""
        if self._router.core.access_log is not None:
            self._router.core.access_log.reopen()
        if self._tls is not None:
            try:
                self._tls.read_again()
            except RouterError as error:
                _log.error("SIGHUP: %s; the certificate stays as it was (%s)", error.message, error.hint)
            else:
                _log.warning("SIGHUP: the certificate was read again")
        if self._read is None:
            _log.warning("SIGHUP: there is no --config to read again")
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._reload(self._read))

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _reload(self, read: Callable[[], Settings]) -> None:
        try:
            settings = await asyncio.to_thread(read)
            await self._router.configure(settings, save=False)
        except RouterError as error:
            _log.error("SIGHUP: %s; the configuration stays as it was (%s)", error.message, error.hint)
        else:
            _log.warning("SIGHUP: the configuration was read again")


@contextlib.contextmanager
def signals_stop(server: Server, retire: Callable[[], None] | None = None) -> Generator[None, None, None]:
    """Take SIGINT and SIGTERM as the wish to stop, a second one as the wish to stop at once; SIGUSR2 as word that
    another router has taken over the socket."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, retire or server.retire)
    for number in _SIGNALS:
        loop.add_signal_handler(number, server.stop)
    try:
        yield
    finally:
        for number in (*_SIGNALS, signal.SIGUSR2):
            loop.remove_signal_handler(number)


async def serve_until_stopped(
    router: Router,
    sock: socket.socket,
    *,
    host: str,
    port_file: Path | None,
    shutdown_timeout_s: float,
    state: Path | None = None,
    tls: ServerTls | None = None,
    reread: Callable[[], Settings] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what runs, within `shutdown_timeout_s`.

    What is learned is kept in `state`; at SIGHUP the configuration is that of `reread`.
    """
    server = Server(router, shutdown_timeout_s, tls=tls)
    port = sock.getsockname()[1]
    url = local_url(host, port, tls=tls is not None)
    memory, load = None, None
    keeping: list[asyncio.Task[None]] = []
    if state is not None:
        memory = state_file(router.core, state)
        memory.load()
        router.core.save_state = memory.save_now
        keeping.append(asyncio.create_task(memory.keep(lambda: router.core.settings.state_interval_s)))
        load = router.core.load_file = LoadFile(load_folder(state), router.core.meter.load)
        load.open()
        keeping.append(asyncio.create_task(load.keep()))
    await router.start()
    reload = Reload(router, reread, tls)

    def retire() -> None:
        # From now on both files are the successor's; the load is written by both, side by side.
        router.core.leave_file()
        if keeping:
            keeping[0].cancel()
        server.retire()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        if port_file is not None:
            card = {"pid": os.getpid(), "port": port, "host": host, "url": url, "started_at": time.time()}
            write_private(port_file, json.dumps(card) + "\n")
        if router.core.open_door and not _is_loopback(sock.getsockname()[0]):
            _log.warning("without a key, everyone who reaches %s may use and change this router", url)
        print(f"tuna-router: listening on {url}", file=sys.stderr, flush=True)  # noqa: T201
        tell_systemd("READY=1")
        with signals_stop(server, retire):
            await server.serve(sock)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        await reload.stop()
        await router.stop()
        if memory is not None and load is not None:
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)
            load.close()
            if not server.retires:
                memory.save()
        if router.core.access_log is not None:
            router.core.access_log.close()
        if port_file is not None:
            _remove_own(port_file)


def tell_systemd(message: str) -> None:
    """Notify the service manager that started this process, if one did (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)


def _remove_own(port_file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        if json.loads(port_file.read_text())["pid"] == os.getpid():
            port_file.unlink()
