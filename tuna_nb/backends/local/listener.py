"""An ASGI application on a loopback port of its own, several of them on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from tuna_nb.backends.local.processes import LOOPBACK
from tuna_nb.errors import BackendError


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: several run in this process, and the daemon has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """Listens from `open` to `close`."""

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
            backlog=1024,
            timeout_keep_alive=30,
        )
        self.port = int(wanted.getsockname()[1])
        self._socket = wanted
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[wanted]), name=f"listen {self.port}")

    async def close(self) -> None:
        """Take no more connections and break off those that are open."""
        self._server.should_exit = self._server.force_exit = True
        for connection in list(self._server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.wait({self._task})
        self._socket.close()
        self._task.result()


def bind(port: int = 0) -> socket.socket:
    """A listening loopback socket on `port`, 0 for any. Raises BackendError where it is taken."""
    wanted = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # The port of a daemon that died a moment ago is still in TIME_WAIT.
        wanted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wanted.bind((LOOPBACK, port))
        wanted.listen(1024)
        wanted.setblocking(False)
    except OSError as exc:
        wanted.close()
        raise BackendError(f"loopback port {port or 'any'} can't be bound: {exc.strerror or exc}") from exc
    return wanted
