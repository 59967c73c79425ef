"""The connections of one router to its backends, pooled by origin. TLS is set up when first needed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import time
from typing import Final

from tuna_router.dataplane.connection import BackendLost, Connection, Listener
from tuna_router.dataplane.route import Route
from tuna_router.dataplane.tcp import notice_silence
from tuna_router.settings import BackendSettings

_KEPT_CONNECTIONS: Final = 1024
# Below the 5 s after which uvicorn, and so vLLM, closes an idle connection.
_KEPT_S: Final = 4.0

Origin = tuple[str, int, bool]


class Pool:
    """The connections to one origin; the idle ones are taken last in, first out."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.connections: set[Connection] = set()
        self.idle: dict[Connection, None] = {}

    def take(self) -> Connection | None:
        """An idle connection, no longer idle."""
        while self.idle:
            connection, _ = self.idle.popitem()
            if time.monotonic() - connection.idle_since < _KEPT_S:
                return connection
            connection.drop()
        return None

    def opened(self, connection: Connection) -> None:
        """A connection was made."""
        self.connections.add(connection)

    def give_back(self, connection: Connection) -> None:
        """A connection after a clean end."""
        if len(self.idle) >= _KEPT_CONNECTIONS:
            connection.drop()
            return
        connection.idle_since = time.monotonic()
        self.idle[connection] = None

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        self.idle.pop(connection, None)


class Upstream:
    """All of them."""

    def __init__(self) -> None:
        self.silent_s = 5.0
        """A machine of which nothing is heard for so long is gone."""
        self._pools: dict[Origin, Pool] = {}
        self._tls: asyncio.Task[ssl.SSLContext] | None = None

    async def prepare(self, route: Route) -> None:
        """Set TLS up, where the route needs it, so that no first request waits for that."""
        if route.origin[2]:
            await asyncio.shield(self._trust())

    def idle(self, route: Route) -> Connection | None:
        """A connection that waits for a request to this backend, if there is one."""
        pool = self._pools.get(route.origin)
        return pool.take() if pool is not None else None

    def dial(self, route: Route, listener: Listener, timeout_s: float) -> asyncio.Task[None]:
        """Open a connection and tell the listener; cancel the task to give up."""
        return asyncio.get_running_loop().create_task(self._dial(route, listener, timeout_s))

    @property
    def connections(self) -> list[Connection]:
        """Every open connection."""
        return [connection for pool in self._pools.values() for connection in pool.connections]

    @property
    def idle_count(self) -> int:
        """How many of them wait for a request."""
        return sum(len(pool.idle) for pool in self._pools.values())

    async def fetch(
        self,
        backend: BackendSettings,
        method: str,
        url: str,
        body: bytes = b"",
        *,
        timeout_s: float,
        cap_bytes: int = 1024 * 1024,
    ) -> tuple[int, bytes]:
        """The status and body of a small request of our own, with the backend's headers.

        Raises TimeoutError, BackendLost, or ValueError when the answer is above `cap_bytes`.
        """
        route = Route(backend, url)
        lines = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body) if body else b""
        request = route.request(method.encode(), b"" if route.base else b"/", lines) + b"\r\n"
        fetch = _Fetch([request, body] if body else [request], cap_bytes)
        dialling = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = self.idle(route)
                if connection is not None:
                    fetch.connected(connection)
                else:
                    dialling = self.dial(route, fetch, timeout_s)
                return await fetch.result
        finally:
            fetch.give_up()
            if dialling is not None and not dialling.done():
                dialling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await dialling

    async def aclose(self) -> None:
        """Close every connection."""
        for connection in self.connections:
            connection.drop()
        self._pools.clear()
        if self._tls is not None and not self._tls.done():
            self._tls.cancel()

    def sweep(self) -> None:
        """Close what has been idle for too long."""
        oldest = time.monotonic() - _KEPT_S
        for origin, pool in list(self._pools.items()):
            for connection in [c for c in pool.idle if c.idle_since < oldest]:
                connection.drop()
            if not pool.connections:
                del self._pools[origin]

    async def _dial(self, route: Route, listener: Listener, timeout_s: float) -> None:
        host, port, secure = route.origin
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                context = await asyncio.shield(self._trust()) if secure else None
                pool = self._pools.setdefault(route.origin, Pool(route.origin))
                factory = functools.partial(Connection, pool)
                transport, connection = await loop.create_connection(factory, host, port, ssl=context)
                notice_silence(transport, self.silent_s)
        except TimeoutError:
            listener.lost(BackendLost("connecting took too long", gone=True, timed_out=True))
        except (OSError, UnicodeError) as error:  # ssl.SSLError is an OSError
            reason = _why_not_connected(error)
            if secure and isinstance(error, ConnectionResetError | ConnectionAbortedError):
                reason = "TLS failed"  # it was reached, and hung up in the handshake
            listener.lost(BackendLost(reason, gone=True, again=True))
        else:
            listener.connected(connection)

    def _trust(self) -> asyncio.Task[ssl.SSLContext]:
        if self._tls is None:
            # In a thread: reading the certificates takes tens of milliseconds, in which streams must flow.
            self._tls = asyncio.get_running_loop().create_task(asyncio.to_thread(_trusting))
        return self._tls


class _Fetch:
    """The listener of one small request of our own."""

    def __init__(self, pieces: list[bytes], cap_bytes: int) -> None:
        self.result: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._pieces = pieces
        self._cap_bytes = cap_bytes
        self._body = bytearray()
        self._connection: Connection | None = None

    def connected(self, connection: Connection) -> None:
        self._connection = connection
        connection.send(self, self._pieces)

    def answer(self, connection: Connection) -> None:
        self._body += connection.payload
        if connection.ended:
            self._connection = None
        if self.result.done():
            return
        if len(self._body) > self._cap_bytes:
            self.result.set_exception(ValueError(f"an answer of more than {self._cap_bytes} bytes"))
        elif connection.ended:
            assert connection.head is not None
            self.result.set_result((connection.head.status, bytes(self._body)))

    def lost(self, error: BackendLost) -> None:
        self._connection = None
        if not self.result.done():
            self.result.set_exception(error)

    def writable(self, ready: bool) -> None:
        """Its requests are small."""

    def give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()
        if self.result.done():
            if not self.result.cancelled():
                self.result.exception()  # it was, or will be, raised where it is awaited
        else:
            self.result.cancel()


def _why_not_connected(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
        if isinstance(cause, socket.gaierror):
            return "its name is unknown"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        cause = cause.__cause__ or cause.__context__
    return "it can't be reached"


def _trusting() -> ssl.SSLContext:
    """The system's certificates (or SSL_CERT_FILE's), and certifi's for images that have none."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
