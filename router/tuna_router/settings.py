"""The configuration: one schema for the file, for `/router/config` and for the command line.

Plain frozen dataclasses and a table of checks rather than a validation library: a router starts
in a quarter of a second, and a library for it would take a fifth of that.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from tuna_router.errors import SettingsError, did_you_mean
from tuna_router.keys.settings import KeySettings, key_to_json, parse_keys

MASK: Final = "********"
"""Shown instead of a header's value; sent back in a POST, it means "unchanged"."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWN_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"}
)


class Kind(StrEnum):
    """How a backend is paid for, which decides when it is used."""

    SERVERLESS = "serverless"
    SPOT = "spot"


class ServerlessUse(StrEnum):
    """When serverless takes new requests; the later, the stricter."""

    ALWAYS = "always"
    COVER = "cover"
    """While no spot backend is ready: there is no overflow, however long the wait."""
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One place that can answer requests.

    `url` is its base, without a trailing slash; `headers` is the whole set sent upstream with every
    request; `max_concurrency` is how many requests it takes at once (None: no limit of its own);
    `replicas_url` answers `{"ready", "starting", "draining", "total"}` and may be polled without
    waking the fleet; `keep_warm` keeps a spot fleet awake without traffic; `models` maps public model
    names to its own (None: it serves any); `weight` is its share among its equals; a serverless
    container is there for `idle_window_s` after its last answer; `token_ids` is false for an engine
    that does not know `return_token_ids`.

    Of the provider's own door: a request may be held for `first_byte_timeout_s` while a container starts
    (None: as for all); an answer that has not ended after `answer_limit_s` is cut, which is no fault of the
    backend; `redirects`: a slow answer is a 303 to where it will be, which is followed.

    A spot backend may be one replica behind `balancer`, another spot backend, which then is used only while none
    of its replicas is READY. `notice_url` answers 204, or `{"seconds": n}` once the machine will be taken away.
    Of a balancer, `traffic_url` is asked (GET) once for each request that went past it to one of its replicas, so
    that whoever decides there how many replicas there are sees the traffic. `sync_url`, where the router runs
    beside SkyServe's controller, takes those requests' times (POST) and answers with the replicas' addresses.
    """

    name: str
    kind: Kind
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_concurrency: int | None = None
    replicas_url: str | None = None
    price_per_hour_usd: float | None = None
    keep_warm: bool = False
    token_ids: bool = True
    models: Mapping[str, str] | None = None
    weight: float = 1.0
    idle_window_s: float = 60.0
    first_byte_timeout_s: float | None = None
    answer_limit_s: float | None = None
    redirects: bool = False
    balancer: str | None = None
    notice_url: str | None = None
    traffic_url: str | None = None
    sync_url: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured. Seconds end in `_s`."""

    backends: tuple[BackendSettings, ...] = ()
    api_key_sha256: tuple[str, ...] = field(default=(), repr=False)
    admin_key_sha256: tuple[str, ...] = field(default=(), repr=False)
    max_concurrency: int = 100
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    spot_first_byte_timeout_s: float = 30.0
    spot_unstreamed_timeout_s: float = 300.0
    stream_idle_timeout_s: float = 120.0
    request_timeout_s: float = 1800.0
    probe_interval_s: float = 2.0
    probe_timeout_s: float = 30.0
    replicas_interval_s: float = 1.0
    idle_after_s: float = 60.0
    drain_limit_s: float = 300.0
    cooldown_s: float = 5.0
    resume: bool = True
    resume_memory_bytes: int = 64 * 1024 * 1024
    resume_wait_s: float = 30.0
    cooldown_max_s: float = 60.0
    overflow_wait_s: float = 0.5
    serverless_use: ServerlessUse = ServerlessUse.ALWAYS
    metrics_interval_s: float = 1.0
    move_margin_s: float = 5.0
    session_header: str | None = None
    batch_above_bytes: int | None = None
    max_attempts: int = 5
    retry_ratio: float = 0.5
    retry_burst: int = 500
    body_cap_bytes: int = 16 * 1024 * 1024
    body_limit_bytes: int = 1024 * 1024 * 1024
    body_memory_bytes: int = 1024 * 1024 * 1024
    # Limits, keys, state
    keys: tuple[KeySettings, ...] = field(default=(), repr=False)
    max_queue: int = 100
    queue_timeout_s: float = 10.0
    state_interval_s: float = 30.0

    @property
    def all_keys(self) -> tuple[KeySettings, ...]:
        """`keys`, and those of the two lists of hashes, named after the hash. A hash of `keys` wins."""
        named = {item.sha256 for item in self.keys}
        admins = set(self.admin_key_sha256)
        return (
            *self.keys,
            *(KeySettings(f"admin:{h[:12]}", h, "admin") for h in self.admin_key_sha256 if h not in named),
            *(KeySettings(f"key:{h[:12]}", h) for h in self.api_key_sha256 if h not in named | admins),
        )

    @property
    def resume_cap_bytes(self) -> int:
        """What one stream may keep to be continued: an equal part for each that there may be."""
        return self.resume_memory_bytes // self.max_concurrency


def parse_settings(data: object, base: Settings | None = None) -> Settings:
    """`base` (or the defaults) with every key of `data` applied.

    Raises SettingsError for an unknown key (with the nearest known one), a wrong type or a bad URL.
    """
    base = base or Settings()
    given = _mapping(data, "the configuration")
    checks = _SETTINGS_CHECKS
    changes: dict[str, Any] = {}
    for key, value in given.items():
        check = checks.get(key)
        if check is None:
            raise SettingsError(f"unknown key {key!r}", did_you_mean(str(key), checks))
        changes[key] = check(key, value)
    if "backends" in changes:
        changes["backends"] = _unmask(changes["backends"], base.backends)
    return dataclasses.replace(base, **changes)


def parse_backend(data: object) -> BackendSettings:
    """One backend from its JSON form. Raises SettingsError."""
    given = _mapping(data, "a backend")
    values: dict[str, Any] = {}
    for key, value in given.items():
        check = _BACKEND_CHECKS.get(key)
        if check is None:
            raise SettingsError(f"unknown key {key!r} in a backend", did_you_mean(str(key), _BACKEND_CHECKS))
        values[key] = check(key, value)
    for needed in ("kind", "url"):
        if needed not in values:
            raise SettingsError(f"a backend has no {needed!r}", 'give {"name", "kind", "url"}')
    values.setdefault("name", "")
    return BackendSettings(**values)


def named(backends: Sequence[BackendSettings]) -> tuple[BackendSettings, ...]:
    """The backends with every empty name filled in: spot, spot-2, serverless, ... Raises on a duplicate."""
    taken = {b.name for b in backends if b.name}
    result: list[BackendSettings] = []
    for backend in backends:
        if not backend.name:
            name, number = backend.kind.value, 1
            while name in taken:
                number += 1
                name = f"{backend.kind.value}-{number}"
            taken.add(name)
            backend = dataclasses.replace(backend, name=name)  # noqa: PLW2901
        result.append(backend)
    names = [b.name for b in result]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"two backends are named {name!r}", "give every backend a name of its own")
    return tuple(result)


def check_url(url: object, what: str = "url") -> str:
    """A base URL without its trailing slash. Raises SettingsError unless it is plain http or https."""
    hint = "write it like http://10.0.0.1:8000 or https://name.example"
    if not isinstance(url, str) or not url or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise SettingsError(f"{what} is not a URL", hint)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{what} is not a URL: {error}", hint) from error
    if parts.username is not None or parts.password is not None:
        # Said without the URL: the message ends in logs.
        raise SettingsError(f"{what} carries a user name or password", "put credentials in the backend's headers")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise SettingsError(f"{what} is not an http or https URL: {url!r}", hint)
    if parts.fragment:
        raise SettingsError(f"{what} has a fragment", hint)
    return url.rstrip("/")


def to_json(settings: Settings, *, mask: bool) -> dict[str, Any]:
    """The settings in the schema of the file; with `mask`, header values are hidden."""
    shown: dict[str, Any] = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if item.name == "backends":
            shown["backends"] = [backend_to_json(b, mask=mask) for b in value]
        elif item.name == "keys":
            shown["keys"] = [key_to_json(key) for key in value]
        else:
            shown[item.name] = list(value) if isinstance(value, tuple) else value
    shown["serverless_use"] = settings.serverless_use.value
    return shown


def keep_a_way_in(before: Settings, after: Settings, *, open_door: bool) -> None:
    """Raises SettingsError where a change over the network would lock everyone out, or let everyone in."""
    if not open_door and not after.all_keys:
        raise SettingsError("this would remove the last key", "keep at least one hash")
    if _has_admin(before) and not _has_admin(after):
        # Without an admin key, client keys are admins.
        raise SettingsError(
            "this would remove the last admin key, and make every client an admin",
            "add another admin key first, or edit the file and send SIGHUP",
        )


def _has_admin(settings: Settings) -> bool:
    return any(key.role == "admin" for key in settings.all_keys)


def backend_to_json(backend: BackendSettings, *, mask: bool) -> dict[str, Any]:
    """One backend in the schema of the file."""
    shown = {item.name: getattr(backend, item.name) for item in dataclasses.fields(backend)}
    shown["kind"] = backend.kind.value
    shown["models"] = None if backend.models is None else dict(backend.models)
    shown["headers"] = dict.fromkeys(backend.headers, MASK) if mask else dict(backend.headers)
    return shown


def _unmask(new: Sequence[BackendSettings], old: Sequence[BackendSettings]) -> tuple[BackendSettings, ...]:
    """A configuration that was read masked may be posted back: masked values are the ones we have.

    Only for the same name *and* URL: else a masked header could be sent to somebody else's server.
    """
    known = {(b.name, b.url): b.headers for b in old}
    result = []
    for backend in new:
        held = known.get((backend.name, backend.url), {})
        headers = {}
        for name, value in backend.headers.items():
            if value == MASK and name not in held:
                raise SettingsError(
                    f"the value of header {name!r} of backend {backend.name!r} is masked",
                    "send the real value; a masked one is kept only where name and url are unchanged",
                )
            headers[name] = held[name] if value == MASK else value
        result.append(dataclasses.replace(backend, headers=headers))
    return tuple(result)


def _mapping(data: object, what: str) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise SettingsError(f"{what} is not a set of keys and values", "see router/README.md for the schema")
    return data


def _url(key: str, value: object) -> str:
    url = check_url(value, key)
    if urlsplit(url).query:
        raise SettingsError(f"{key} has a query", "give the base URL only")
    return url


def _optional_url(key: str, value: object) -> str | None:
    return None if value is None else check_url(value, key)


def _positive(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise SettingsError(f"{key} must be a positive number, not {value!r}", f"for example {key}: 10")
    return float(value)


def _optional_positive(key: str, value: object) -> float | None:
    return None if value is None else _positive(key, value)


def _not_negative(key: str, value: object) -> float | None:
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None if value is None else 0.0
    return _positive(key, value)


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**12:
        raise SettingsError(f"{key} must be a whole number of at least 1, not {value!r}", f"for example {key}: 100")
    return value


def _queue(key: str, value: object) -> int:
    return 0 if value == 0 and not isinstance(value, bool) else _count(key, value)


def _optional_count(key: str, value: object) -> int | None:
    return None if value is None else _count(key, value)


def _bool(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{key} must be true or false, not {value!r}", f"for example {key}: true")
    return value


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise SettingsError(f"{value!r} can't name a backend", "use letters, digits, '.', '_' and '-'")
    return value


def _optional_name(key: str, value: object) -> str | None:
    return None if value is None else _name(key, value)


def _kind(key: str, value: object) -> Kind:
    if not isinstance(value, str) or value not in set(Kind):
        raise SettingsError(f"unknown kind {value!r}", did_you_mean(str(value), [k.value for k in Kind]))
    return Kind(value)


def serverless_use(key: str, value: object) -> ServerlessUse:
    """One of the three words. Raises SettingsError."""
    if not isinstance(value, str) or value not in set(ServerlessUse):
        hint = did_you_mean(str(value), [use.value for use in ServerlessUse])
        raise SettingsError(f"{key} can't be {value!r}", hint)
    return ServerlessUse(value)


def _headers(key: str, value: object) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, text in _mapping(value, "headers").items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise SettingsError(f"{name!r} can't be a backend's header", "for example Authorization")
        if not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text):
            raise SettingsError(f"the value of header {name!r} is not plain text", "one line of ASCII")
        result[name.lower()] = text
    return result


def _models(key: str, value: object) -> dict[str, str] | None:
    """Names as a list, or a mapping of public names to the backend's own."""
    if value is None:
        return None
    pairs = [(name, name) for name in value] if isinstance(value, list | tuple) else _mapping(value, key).items()
    for name in (name for pair in pairs for name in pair):
        if not isinstance(name, str) or not name:
            raise SettingsError(
                f"{name!r} can't name a model", 'for example models: {"llama": "meta/Llama-3.1-8B"}'
            )
    return {str(public): str(own) for public, own in pairs}


def _header_name(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _HEADER_NAME.fullmatch(value):
        raise SettingsError(
            f"{key} must be the name of a header, not {value!r}", f"for example {key}: x-session-id"
        )
    return value.lower()


def _weight(key: str, value: object) -> float:
    weight = _not_negative(key, value)
    if weight is None:
        raise SettingsError(f"{key} must be a number, not null", f"for example {key}: 1")
    return weight


def _hashes(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise SettingsError(f"{key} must be a list", "a list of SHA-256 hashes in hex")
    for item in value:
        if not isinstance(item, str) or not _SHA256.fullmatch(item.lower()):
            raise SettingsError(f"{key} has an entry that is no SHA-256 hash", "printf %s KEY | sha256sum")
    return tuple(dict.fromkeys(item.lower() for item in value))


def _backends(key: str, value: object) -> tuple[BackendSettings, ...]:
    if not isinstance(value, list | tuple):
        raise SettingsError("backends must be a list", 'for example [{"name", "kind", "url"}]')
    return _balanced(named([parse_backend(item) for item in value]))


def _balanced(backends: tuple[BackendSettings, ...]) -> tuple[BackendSettings, ...]:
    balancers = [b.name for b in backends if b.kind is Kind.SPOT and b.balancer is None]
    for backend in backends:
        if backend.balancer is not None and (backend.kind is not Kind.SPOT or backend.balancer not in balancers):
            raise SettingsError(
                f"backend {backend.name!r} is no replica of {backend.balancer!r}",
                "both must be spot backends, and a balancer has none itself",
            )
    return backends


_BACKEND_CHECKS: dict[str, Callable[[str, object], object]] = {
    "name": _name,
    "kind": _kind,
    "url": _url,
    "headers": _headers,
    "max_concurrency": _optional_count,
    "replicas_url": _optional_url,
    "price_per_hour_usd": _not_negative,
    "keep_warm": _bool,
    "token_ids": _bool,
    "models": _models,
    "weight": _weight,
    "idle_window_s": _positive,
    "first_byte_timeout_s": _optional_positive,
    "answer_limit_s": _optional_positive,
    "redirects": _bool,
    "balancer": _optional_name,
    "notice_url": _optional_url,
    "traffic_url": _optional_url,
    "sync_url": _optional_url,
}
_SETTINGS_CHECKS: dict[str, Callable[[str, object], object]] = {
    "backends": _backends,
    "api_key_sha256": _hashes,
    "admin_key_sha256": _hashes,
    "max_concurrency": _count,
    "resume": _bool,
    "serverless_use": serverless_use,
    "resume_memory_bytes": _count,
    "session_header": _header_name,
    "batch_above_bytes": _optional_count,
    "max_attempts": _count,
    "retry_ratio": _positive,
    "retry_burst": _count,
    "body_cap_bytes": _count,
    "body_limit_bytes": _count,
    "body_memory_bytes": _count,
    "keys": parse_keys,
    "max_queue": _queue,
    **{f.name: _positive for f in dataclasses.fields(Settings) if f.name.endswith("_s")},
}
