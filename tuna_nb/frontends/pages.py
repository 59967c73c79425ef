"""A result as a file: what a command may write where it can't draw."""

from __future__ import annotations

from typing import Any


def page(result: Any) -> str:
    """One HTML page that reads anywhere."""
    from tuna_nb.views.page import render

    return render(result)
