"""`tuna-router`, also `python -m tuna_router`."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Mapping, Sequence

from tuna_router.errors import RouterError


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a router until it is told to stop. Returns the exit code."""
    from tuna_router.command import parse, prepare, state_path

    try:
        options = parse(sys.argv[1:] if argv is None else list(argv))
        env = dict(os.environ if environ is None else environ)
        launch = prepare(options, env)
        from tuna_router.app import Router
        from tuna_router.serving import adopt, bind, serve_until_stopped
        from tuna_router.told.access_log import AccessLog
        from tuna_router.told.log_lines import log_to_stderr

        as_json = options.log_format == "json"
        log_to_stderr(options.log_level.upper(), as_json=as_json)

        tls = None
        if options.tls_cert is not None:
            from tuna_router.tls import ServerTls

            tls = ServerTls(options.tls_cert, options.tls_key)
        sock = bind(options.host, options.port) if options.fd is None else adopt(options.fd)

        async def run() -> None:
            router = Router(
                launch.settings,
                open_door=launch.open_door,
                save_to=launch.save_to,
                not_saved=launch.not_saved,
            )
            if options.access_log is not None:
                router.core.access_log = AccessLog(options.access_log, as_json=as_json)
            await serve_until_stopped(
                router,
                sock,
                host=options.host,
                port_file=options.port_file,
                shutdown_timeout_s=options.shutdown_timeout_s,
                state=state_path(options),
                tls=tls,
                reread=None if options.config is None else lambda: prepare(options, env).settings,
            )

        # What was imported lives as long as the process: the collector need not look at it again.
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())
    except RouterError as error:
        print(error.lines(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None  # the standard library's loop works as well, only slower
    return uvloop.Loop


if __name__ == "__main__":
    sys.exit(main())
