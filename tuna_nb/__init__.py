"""Tuna: deploy an open model from a notebook behind one endpoint that costs spot prices and is always there.

`%load_ext tuna_nb` adds `%tuna` and `%%tuna`. Importing this package imports nothing else.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_loaded: dict[int, tuple[Any, Any, Any]] = {}
"""Per shell: its magics, what removes the completion, and what takes the warning at its end back."""


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext tuna_nb`."""
    from tuna_nb.frontends import completion, magic, money

    magics = magic.install(shell)
    unwarn = money.warn_at_the_end(shell)
    _loaded[id(shell)] = (magics, completion.install(shell, magics.service_names), unwarn)
    money.say_what_runs()


def unload_ipython_extension(shell: Any) -> None:
    """Called by `%unload_ext tuna_nb`: cancels this kernel's jobs and removes the magics."""
    magics, uninstall, unwarn = _loaded.pop(id(shell))
    magics.jobs.cancel_all()
    magics.stop_boards()
    uninstall()
    unwarn()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("tuna", None)
