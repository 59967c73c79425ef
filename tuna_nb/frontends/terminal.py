"""`tuna`: the verbs in a terminal."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from types import FrameType
from typing import Any, TextIO

from tuna_nb import grammar
from tuna_nb.errors import CancelledError, TunaError, UsageError
from tuna_nb.frontends.pages import page

SENT_AGAIN_S = 0.02


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 1 for a failure, 2 for bad usage, 130 for Ctrl-C."""
    words = sys.argv[1:] if words is None else words
    verbose = "-v" in words or "--verbose" in words
    if threading.current_thread() is threading.main_thread():
        _listen()
        sys.unraisablehook = _again_if_swallowed
    try:
        code = _answer(words, verbose)
        # Here and not while Python ends, where nobody could catch it.
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has gone (`tuna list | head`); Python would complain again while closing.
        nobody = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nobody, stream.fileno())
        return 1
    return code


def _answer(words: Sequence[str], verbose: bool) -> int:
    try:
        return _run(grammar.parse(grammar.build("tuna"), words))
    except grammar.HelpShown as shown:
        print(shown.text)
        return 0
    except KeyboardInterrupt:
        return _fail(CancelledError("interrupted"), verbose)
    except TunaError as e:
        return _fail(e, verbose)


def _run(options: Namespace) -> int:
    from tuna_nb.commands.context import Context, run
    from tuna_nb.deployments.workspace import Workspace
    from tuna_nb.jobs import Work
    from tuna_nb.settings import Settings

    for flag in grammar.NOTEBOOK_ONLY:
        if getattr(options, flag, None):
            there = f"in a notebook: %tuna {options.verb} --{flag}; here: -o json"
            raise UsageError(f"{options.verb}: --{flag} can't be shown in a terminal", there)
    if options.verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    # A terminal command returns when the endpoint answers; --wait goes on until spot has taken over.
    context = Context(Workspace(Settings.load()), until_spot=False, page=page)
    try:
        result = run(options, context)
        if isinstance(result, Work):
            result = _work(result, options, context)
        return _show(result, options)
    except KeyboardInterrupt:
        # Wherever it struck: what runs in the background is stopped and undone before this process ends.
        context.jobs.cancel_all()
        raise
    finally:
        context.workspace.close()


def _work(work: Any, options: Namespace, context: Any) -> Any:
    from tuna_nb.views.text import TextProgress

    job, _ = context.jobs.submit(work)
    job.subscribe(TextProgress(sys.stderr, error_is_shown=True))
    return job.wait()


def _show(result: Any, options: Namespace) -> int:
    """A result is known by what it has, not by its class: importing every class costs more than most verbs."""
    if hasattr(result, "watch"):
        from tuna_nb.views import ticker

        try:
            ticker.run(result, sys.stdout, as_json=options.output == "json")
        finally:
            result.close()
        return 0
    if hasattr(result, "lines"):
        return _follow(result, options.output == "json")
    if getattr(options, "env", False):
        print(f"export OPENAI_BASE_URL={shlex.quote(result.base_url)}")
        print(f"export OPENAI_API_KEY={shlex.quote(result.api_key)}")
    elif options.output == "json":
        from tuna_nb.views import data

        print(data.as_json(result))
    elif getattr(options, "chart", None):
        from tuna_nb.views import charts, text

        text.show(charts.chart(result, options.chart).sheet, sys.stdout)
    else:
        from tuna_nb.views import text
        from tuna_nb.views.sheets import sheet

        text.show(sheet(result), sys.stdout)
    return 0 if getattr(result, "passed", True) else 1


def _follow(stream: Any, as_json: bool) -> int:
    import json
    import time

    from tuna_nb.jobs import LoopThread

    async def pump(out: TextIO) -> None:
        async for role, line in stream.lines:
            if as_json:
                out.write(
                    json.dumps({"role": role, "at": line.at, "source": line.source, "text": line.text}) + "\n"
                )
            else:
                clock = time.strftime("%H:%M:%S", time.localtime(line.at))
                out.write(f"{clock} {role} {line.source}: {line.text}\n")
            out.flush()

    with contextlib.suppress(KeyboardInterrupt):
        LoopThread.run(pump(sys.stdout))
    return 0


def _fail(error: TunaError, verbose: bool) -> int:
    sys.stdout.flush()
    for line in error.lines():
        print(line, file=sys.stderr)
    if verbose:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    return error.exit_code


def _listen() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM undoes a half-made deploy just as Ctrl-C does; an impatient second one does not stop the undoing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _again_if_swallowed(unraisable: Any) -> None:
    """Where an interrupt strikes inside a destructor or a weak reference's callback (every import has some), Python
    drops it: it is sent again a moment later, since here, too, it would be dropped."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    _listen()
    threading.Timer(SENT_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM)).start()


if __name__ == "__main__":
    sys.exit(main())
