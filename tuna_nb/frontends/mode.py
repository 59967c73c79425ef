"""What kind of session this is: a notebook with a person, a notebook being executed, or a terminal."""

from __future__ import annotations

from typing import Any

WIDGET, HEADLESS, TERMINAL = "widget", "headless", "terminal"


def forced() -> str | None:
    """The mode that `TUNA_NB_MODE` asks for."""
    from tuna_nb.settings import Settings

    return Settings.load().mode


def detect(shell: Any, forced: str | None) -> str:
    """A kernel whose requests may not ask for input is being executed by a tool (nbclient, papermill): it dies
    after its last cell, so background work must be waited for there."""
    if forced in (WIDGET, HEADLESS, TERMINAL):
        return forced
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return TERMINAL
    if not getattr(kernel, "_allow_stdin", False):
        return HEADLESS
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return HEADLESS
    return WIDGET
