"""What can be wrong before a router runs: each error says what happened and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RouterError(Exception):
    """A failure that a person can act on; `hint` is the next step, `exit_code` what the process returns."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> str:
        """The two lines shown on stderr."""
        return f"tuna-router: {self.message}\nhint: {self.hint}"


class UsageError(RouterError):
    """A command line that can't be understood."""

    exit_code = 2


class SettingsError(RouterError):
    """A configuration, from a file or from `/router/config`, that can't be used."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, else all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(word.lower(), options, 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(options)
