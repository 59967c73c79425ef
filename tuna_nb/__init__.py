"""Tuna: deploy an open model from a notebook behind one endpoint that costs spot prices and is always there.

`%load_ext tuna_nb` adds `%tuna` and `%%tuna`. Importing this package imports nothing else.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_loaded: dict[int, tuple[Any, Any]] = {}
"""Per shell: its magics, and what removes the completion."""


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext tuna_nb`."""
    from tuna_nb.frontends import completion, magic

    magics = magic.install(shell)
    _loaded[id(shell)] = (magics, completion.install(shell, magics.service_names))


def unload_ipython_extension(shell: Any) -> None:
    """Called by `%unload_ext tuna_nb`: cancels this kernel's jobs and removes the magics."""
    magics, uninstall = _loaded.pop(id(shell))
    magics.jobs.cancel_all()
    uninstall()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("tuna", None)
