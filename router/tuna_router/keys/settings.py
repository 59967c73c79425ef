"""What is configured of one API key: its hash, its role, its limits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuna_router.errors import SettingsError, did_you_mean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
ROLES: Final = ("client", "admin")
MOST_KEYS: Final = 1000
"""Every one of them is compared with a key that was not seen before, and is a row of `/metrics`."""
DAY_S: Final = 86400.0
ANYONE: Final = "anyone"
"""The name under which requests without a key are counted where the door is open."""


@dataclass(frozen=True, slots=True)
class KeySettings:
    """One key. A limit that is None is none.

    `sha256` is the hash of the key in hex; `role` is client or admin; `max_concurrency` counts requests
    that run or wait; `spend_limit_usd` is the most that its requests may cost in a window of
    `spend_window_s` seconds; windows begin at multiples of it since 1970 (a day at midnight UTC).
    """

    name: str
    sha256: str
    role: str = "client"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    spend_limit_usd: float | None = None
    spend_window_s: float = DAY_S


def parse_keys(key: str, value: object) -> tuple[KeySettings, ...]:
    """The list `keys` of a configuration. Raises SettingsError."""
    if not isinstance(value, list | tuple):
        raise SettingsError(f"{key} must be a list", 'for example [{"name": "alice", "sha256": "..."}]')
    if len(value) > MOST_KEYS:
        raise SettingsError(f"more than {MOST_KEYS} keys", "share keys, or run several routers")
    keys = tuple(item if isinstance(item, KeySettings) else parse_key(item) for item in value)
    for what in ("name", "sha256"):
        seen = set[str]()
        for item in keys:
            text = getattr(item, what)
            if text in seen:
                shown = f"two keys are named {text!r}" if what == "name" else "a hash is listed twice"
                raise SettingsError(shown, "every key needs a name and a hash of its own")
            seen.add(text)
    return keys


def parse_key(data: object) -> KeySettings:
    """One key from its JSON form. Raises SettingsError."""
    if not isinstance(data, Mapping):
        raise SettingsError("a key is not a set of keys and values", 'give {"name", "sha256"}')
    values: dict[str, Any] = {}
    for name, value in data.items():
        check = _CHECKS.get(name)
        if check is None:
            raise SettingsError(f"unknown key {name!r} in an API key", did_you_mean(str(name), _CHECKS))
        values[name] = check(str(name), value)
    for needed in ("name", "sha256"):
        if needed not in values:
            raise SettingsError(f"an API key has no {needed!r}", 'give {"name", "sha256"}')
    return KeySettings(**values)


def key_to_json(key: KeySettings) -> dict[str, Any]:
    """One key in the schema of the file."""
    return {item.name: getattr(key, item.name) for item in dataclasses.fields(key)}


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value == ANYONE:
        raise SettingsError(f"{value!r} can't name a key", "use letters, digits, '.', '_', '@' and '-'")
    return value


def _sha256(key: str, value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value.lower()):
        # Said without the value: it may be the key itself.
        raise SettingsError("the sha256 of a key is no SHA-256 hash", "printf %s KEY | sha256sum")
    return value.lower()


def _role(key: str, value: object) -> str:
    if not isinstance(value, str) or value not in ROLES:
        raise SettingsError(f"unknown role {value!r}", did_you_mean(str(value), ROLES))
    return value


def _limit(key: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**12:
        raise SettingsError(f"{key} must be a whole number of at least 1, not {value!r}", f"for example {key}: 60")
    return value


def _dollars(key: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise SettingsError(f"{key} must be dollars, 0 or more, not {value!r}", f"for example {key}: 5")
    return float(value)


def _window(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 1e9:
        raise SettingsError(f"{key} must be seconds, 1 or more, not {value!r}", f"for example {key}: 86400, a day")
    return float(value)


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "name": _name,
    "sha256": _sha256,
    "role": _role,
    "requests_per_minute": _limit,
    "tokens_per_minute": _limit,
    "max_concurrency": _limit,
    "spend_limit_usd": _dollars,
    "spend_window_s": _window,
}
