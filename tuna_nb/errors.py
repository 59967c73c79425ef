"""Every error a person can meet, each with the next step.

One tree, so that a frontend needs a single `except TunaError`. In a notebook an error must be a real
`error` output of two lines: IPython prints `UsageError` to stderr only, which papermill notices and nbmake
does not, so even usage errors are `TunaError` here and render themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TunaError(Exception):
    """What happened, to which thing; `hint` is what to do next.

    `exit_code` is what the terminal returns: 1 for a failure, 2 for a wrong command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> list[str]:
        """The message and the hint, one line each, without colour."""
        shown = [f"{self.title}: {self.message}"]
        if self.hint:
            shown.append(f"hint: {self.hint}")
        return shown

    @property
    def title(self) -> str:
        return "tuna"

    def _render_traceback_(self) -> list[str]:
        """IPython's protocol: shown instead of a traceback; `%tb` still has the rest."""
        head, *rest = self.lines()
        name, _, text = head.partition(": ")
        return [f"\x1b[31m{name}\x1b[0m: {text}", *(f"\x1b[2m{line}\x1b[0m" for line in rest)]


class UsageError(TunaError):
    """A command line, a cell or a policy file that can't be understood."""

    exit_code = 2


class RequestError(UsageError):
    """A deployment that can't be: unknown GPU, bad name, negative number."""


class SettingsError(TunaError):
    """The configuration or the data folder is unusable."""


class StoreError(TunaError):
    """The records can't be read or written."""


class NotFoundError(TunaError):
    """No deployment, job or resource of that name."""


class ConflictError(TunaError):
    """The name, the port or the record is taken by something else."""


class BackendError(TunaError):
    """A provider refused or failed; the message names the provider and the resource."""


class CapacityError(BackendError):
    """The provider has no such GPU free now."""


class CredentialsError(BackendError):
    """The provider does not accept us; the hint has the command that signs in."""


class UnclearError(BackendError):
    """A call that creates got no clear answer: the provider may have acted. Look before trying again."""


class EngineError(BackendError):
    """The engine died at start or never produced a token; the message has its own words."""


class RouterError(TunaError):
    """The router can't be started or reached."""


class CancelledError(TunaError):
    """The user stopped it; what it had created has been removed."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, 1, 0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, else all of them."""
    options = list(known)
    close = nearest(word, options)
    if close is not None:
        return f"did you mean {close!r}?"
    return "known: " + ", ".join(sorted(options))
