"""Runs one engine: `python -m tuna_nb.backends.local.engine --model NAME --port 8000`."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
import time

from tuna_nb.backends.local.engine.connection import Connection
from tuna_nb.backends.local.engine.engine import Engine
from tuna_nb.backends.local.engine.language import Language
from tuna_nb.backends.local.engine.metrics import Metrics
from tuna_nb.backends.local.engine.options import Options, parse
from tuna_nb.backends.local.engine.scheduler import Scheduler
from tuna_nb.backends.local.engine.server import Server


def _log(level: str, message: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    print(f"{level} {stamp} [stand-in] {message}", file=sys.stderr, flush=True)


def _write_port_file(options: Options, port: int) -> None:
    """Tell whoever waits for the file; it appears whole or not at all."""
    if options.port_file is None:
        return
    partial = options.port_file.with_name(f".{options.port_file.name}.{os.getpid()}")
    partial.write_text(json.dumps({"pid": os.getpid(), "port": port}))
    partial.replace(options.port_file)


async def _serve(options: Options) -> int:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    if options.never_ready or options.startup_delay_s:
        # Signals end the wait at once; nothing listens yet.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        wait_s = None if options.never_ready else options.startup_delay_s
        try:
            async with asyncio.timeout(wait_s):
                await ended.wait()
        except TimeoutError:
            pass
        else:
            return 0

    language = Language(
        min_answer_tokens=options.min_answer_tokens,
        raw_bytes=options.raw_bytes,
        thinks=options.reasoning_parser is not None,
    )
    engine = Engine(
        Scheduler(options.limits, options.speed),
        language,
        Metrics(options.model.names[0]),
        loop,
        seed=options.seed,
        leak=options.leak,
    )
    server = Server(options, engine)
    connections: set[Connection] = set()
    try:
        listener = await loop.create_server(
            lambda: Connection(server, connections), options.host, options.port, backlog=1024
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = f"port {options.port} on {options.host} is taken" if taken else str(error)
        print(
            f"The engine was not started: {reason}\nhint: choose another --port, or 0 for any free one.",
            file=sys.stderr,
        )
        return 2

    server.on_death = ended.set

    def stop() -> None:
        if options.hang_on_sigterm and server.replies:
            # Seen on vLLM 0.32: the engine was killed at once, and the server waited for its open streams, which
            # nobody fed any more.
            listener.close()
            engine.freeze()
            server.on_idle = ended.set
        elif options.shutdown_timeout_s and not server.draining and server.replies:
            server.draining = True
            server.on_idle = ended.set
            loop.call_later(options.shutdown_timeout_s, ended.set)
        else:
            ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    port = listener.sockets[0].getsockname()[1]
    _write_port_file(options, port)
    _log("INFO", f"serving {options.model.names[0]} on http://{options.host}:{port}")
    await ended.wait()
    listener.close()
    engine.die()
    _log("INFO", "shutting down")
    for connection in tuple(connections):
        connection.close()
    # Closing lets what was written go out; a client that does not read cannot hold up the end.
    for _ in range(20):
        if not connections:
            break
        await asyncio.sleep(0.01)
    return 0


def main() -> int:
    """Serve until a signal; returns the exit status."""
    options = parse(sys.argv[1:], dict(os.environ))
    if options.die_at_start:
        _log("ERROR", "engine core initialization failed: ordered by --die-at-start")
        return 1
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_serve(options))
    return uvloop.run(_serve(options))


if __name__ == "__main__":
    sys.exit(main())
