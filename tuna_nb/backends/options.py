"""A provider's own settings, which come as text from a user."""

from __future__ import annotations

from collections.abc import Mapping

from tuna_nb.errors import RequestError, did_you_mean


def known(provider: str, options: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Raises RequestError for a name that the provider does not have."""
    for option in options:
        if option not in names:
            raise RequestError(f"{provider} has no option {option!r}", did_you_mean(option, names))


def whole(options: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    """A whole number. Raises RequestError for what is none, or is out of range."""
    text = options.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise RequestError(
            f"option {name}: {text!r} is not a whole number", f"for example {name}={default}"
        ) from None
    if not least <= value <= most:
        raise RequestError(f"option {name}: {value} is out of range", f"it may be {least} to {most}")
    return value
