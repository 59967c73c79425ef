"""Which backends there are: the entry-point group `tuna_nb.backends`, ours and third parties' alike.

Names are read from the installed packages' metadata; a backend's module is imported only when that backend is
asked for, so that a slow or broken one costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from tuna_nb.backends.base import Backend
from tuna_nb.errors import BackendError, RequestError, did_you_mean

GROUP: Final = "tuna_nb.backends"

_loaded: dict[str, Backend] = {}


def names() -> list[str]:
    """Every installed backend's name, in order of the alphabet. Imports none of them."""
    return sorted(_found())


def get(name: str) -> Backend:
    """The backend, made with no arguments; the same object each time.

    Raises RequestError for an unknown name, BackendError for a backend that can't be loaded.
    """
    if name not in _loaded:
        _loaded[name] = _load(name)
    return _loaded[name]


def for_cloud(name: str, known: Callable[[str], Backend] | None = None) -> Backend:
    """The backend that rents spot machines at that cloud; where a cloud has none, the backend of that name.

    known: how backends are come by, where not by `registry.get`.

    Raises RequestError for a name that is neither, BackendError for a backend that can't be loaded.
    """
    found: dict[str, Backend] = {}
    by_name = known or get
    for other in names():
        try:
            backend = by_name(other)
        except BackendError:
            continue  # a broken one costs the others nothing
        found.update(dict.fromkeys(backend.clouds, backend))
    if name in found:
        return found[name]
    try:
        return by_name(name)
    except RequestError as exc:
        raise RequestError(exc.message, did_you_mean(name, {*found, *names()})) from None


def put(backend: Backend) -> None:
    """Have this object answer for its name in this process, for a demonstration or a test."""
    _loaded[backend.name] = backend


def _load(name: str) -> Backend:
    found = _found()
    if name not in found:
        raise RequestError(f"unknown provider {name!r}", did_you_mean(name, found))
    entry = found[name]
    package = entry.dist.name if entry.dist is not None else entry.value
    hint = f"repair or remove the package: pip install --force-reinstall {package}"
    try:
        made = entry.load()()
    except Exception as exc:
        # A third party's code: whatever it raises must not take the other backends with it.
        raise BackendError(f"provider {name!r} ({entry.value}) can't be loaded: {exc!r}", hint) from exc
    if not isinstance(made, Backend):
        raise BackendError(f"provider {name!r} ({entry.value}) is no tuna_nb Backend", hint)
    return made


def _found() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
