"""An ASGI application on a port of its own, several of them on one event loop."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import uvicorn

from tuna_nb.backends.local.options import LOOPBACK
from tuna_nb.errors import BackendError

_CLOSE_S: Final = 2.0


class Listener:
    """Listens from the moment it is made (its socket does already) to `close`.

    Of uvicorn's server only the start is used: its main loop catches signals, which are the daemon's own
    business here, and wakes ten times a second for a Date header that nobody needs.
    """

    def __init__(self, app: Any, wanted: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            backlog=1024,
            timeout_keep_alive=30,
        )
        self.address, self.port = wanted.getsockname()
        self._socket = wanted
        self._server = uvicorn.Server(config)
        self._starting = asyncio.create_task(self._start(), name=f"listen {self.port}")

    async def _start(self) -> None:
        config = self._server.config
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[self._socket])

    async def close(self) -> None:
        """Take no more connections, break off those that are open, and wait until their work has ended."""
        await self._starting
        for server in self._server.servers:
            server.close()
        self._socket.close()
        state = self._server.server_state
        for connection in list(state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        if state.tasks:
            _, late = await asyncio.wait(set(state.tasks), timeout=_CLOSE_S)
            for task in late:
                task.cancel()


def bind(port: int = 0, address: str = LOOPBACK) -> socket.socket:
    """A listening socket on `port`, 0 for any. Raises BackendError where it is taken, or not this machine's."""
    wanted = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # The port of a daemon that died a moment ago is still in TIME_WAIT.
        wanted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wanted.bind((address, port))
        wanted.listen(1024)
        wanted.setblocking(False)
    except OSError as exc:
        wanted.close()
        raise BackendError(f"port {port or 'any'} of {address} can't be bound: {exc.strerror or exc}") from exc
    return wanted
