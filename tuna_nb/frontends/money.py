"""What a session says of money unasked: a line as the extension is loaded, and a warning as it ends.

Both read the records alone, at once or not at all; neither may raise.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable
from typing import Any

from tuna_nb.costs import meter
from tuna_nb.errors import TunaError
from tuna_nb.settings import Settings


def say_what_runs() -> None:
    """A line where anything runs; nothing otherwise."""
    with contextlib.suppress(TunaError, OSError):
        found = meter.reading(Settings.load())
        if found is not None:
            print(f"{found.line} (`%tuna list`)")


def warn_at_the_end(shell: Any) -> Callable[[], None]:
    """Warn of what still runs as the kernel is shut down, or IPython left in a terminal; returns what undoes it.

    A kernel that is only restarted says nothing: it says what runs when the extension is loaded again.
    """
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        if not getattr(shell, "simple_prompt", None) and not hasattr(shell, "prompt_for_code"):
            return lambda: None  # no person types here
        atexit.register(_warn)
        return lambda: atexit.unregister(_warn)
    ends = kernel.do_shutdown

    def do_shutdown(restart: bool) -> Any:
        if not restart:
            _warn()
        return ends(restart)

    kernel.do_shutdown = do_shutdown

    def undo() -> None:
        if kernel.do_shutdown is do_shutdown:
            kernel.do_shutdown = ends

    return undo


def farewell() -> str | None:
    """Which deployments go on when this session ends, what they cost, and how to end them; None where none does."""
    with contextlib.suppress(TunaError, OSError):
        found = meter.reading(Settings.load())
        if found is not None:
            names = found.names
            if len(names) == 1:
                ends = f"{names[0]} goes on without this session; `tuna destroy --service-name {names[0]}` ends it"
            else:
                ends = f"{', '.join(names)} go on without this session; `tuna destroy --service-name NAME` ends one"
            return f"{found.line}. {ends}."
    return None


def _warn() -> None:
    import sys

    said = farewell()
    if said is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"tuna: {said}", file=sys.stderr, flush=True)
