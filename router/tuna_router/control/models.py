"""The bodies of the control plane's answers and requests, for its OpenAPI. Imported with it, never at start.

The configuration itself is described by `settings.Settings` and checked by `settings.parse_settings`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tuna_router.keys.settings import DAY_S, KeySettings
from tuna_router.settings import BackendSettings


class ErrorDetail(BaseModel):
    """What went wrong, and what to do next."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    hint: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error shape."""

    error: ErrorDetail


class ReplicasIn(BaseModel):
    """What a fleet's controller knows: `replicas`, or `ready`, `starting` and `draining`."""

    model_config = ConfigDict(extra="forbid")

    replicas: int | None = Field(None, ge=0)
    ready: int | None = Field(None, ge=0)
    starting: int | None = Field(None, ge=0)
    draining: int | None = Field(None, ge=0)
    total: int | None = Field(None, ge=0)
    backend: str | None = Field(None, description="the spot backend; all of them without it")


class ReplicasOut(BaseModel):
    """The states of the spot backends after the news."""

    ok: bool
    replicas: int
    states: dict[str, str]


class ReplicaIn(BaseModel):
    """One replica behind a balancer; `notice_url` tells when its machine is to be taken away."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$")
    url: str
    notice_url: str | None = None


class ReplicaSetIn(BaseModel):
    """All replicas that are there."""

    model_config = ConfigDict(extra="forbid")

    replicas: list[ReplicaIn] = Field(max_length=100)


class ReplicaSetOut(BaseModel):
    """The state of each, by its name as a backend."""

    ok: bool
    replicas: dict[str, str]


class NoticeIn(BaseModel):
    """A machine will be taken away in so many seconds. `last`: it is the backend's last one."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(ge=0, le=86400)
    replica: str | int | None = Field(None, description="its name or number")
    last: bool | None = None


class NoticeOut(BaseModel):
    """The state of the backend after the news; `gone_in_s` is null where it goes on without that machine."""

    ok: bool
    backend: str
    state: str
    gone_in_s: float | None


class HeadersIn(BaseModel):
    """The whole set of headers for a backend; a masked value is the one that it has."""

    model_config = ConfigDict(extra="forbid")

    headers: dict[str, str]


class HeadersOut(BaseModel):
    """The names of the headers that it has now."""

    ok: bool
    backend: str
    headers: list[str]


class Limits(BaseModel):
    """What one key may use; null is no limit."""

    requests_per_minute: int | None = Field(None, ge=1, le=10**12)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12)
    max_concurrency: int | None = Field(None, ge=1, le=10**12)
    spend_limit_usd: float | None = Field(None, ge=0, lt=1e9)
    spend_window_s: float = Field(DAY_S, ge=1, lt=1e9)


class KeyIn(Limits):
    """A new key. Without `sha256` the router makes one and shows it once."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    role: str = Field("client", pattern="^(client|admin)$")


class KeyOut(Limits):
    """One key and what it has used; the key itself is known to nobody here."""

    name: str
    sha256: str
    role: str
    in_flight: int
    started: int
    rejected: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    spent_usd: float
    spent_in_window_usd: float
    window_ends_in_s: float
    unpriced_seconds: float


class NewKey(KeyOut):
    """`key` is shown here and never again; null where a hash was given."""

    key: str | None


class KeyList(BaseModel):
    """All keys."""

    keys: list[KeyOut]


class Deleted(BaseModel):
    """What is gone."""

    deleted: str


class Quantiles(BaseModel):
    """Seconds; null without a sample."""

    p50: float | None
    p90: float | None
    p99: float | None


class Level(BaseModel):
    """started = finished + cancelled + failed + running."""

    model_config = ConfigDict(extra="allow")

    started: int
    finished: int
    cancelled: int
    failed: int
    running: int
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_estimated: int
    request_seconds: float
    busy_seconds: float
    ttft_s: Quantiles
    latency_s: Quantiles


class BackendLevel(Level):
    """One backend's attempts, and what they cost; dollars are null while its price is unknown."""

    name: str
    kind: str
    cost_usd: float | None
    idle_cost_usd: float | None
    unpriced_seconds: float


class Stats(BaseModel):
    """The exact counters since the start; `totals` also those of earlier lives."""

    model_config = ConfigDict(extra="allow")

    requests: Level
    totals: dict[str, int]
    attempts: int
    failovers: int
    broken_streams: int
    resumes: dict[str, int]
    rejected: int
    rejected_by_reason: dict[str, int]
    unauthorized: int
    in_flight: int
    max_concurrency: int
    waiting: int
    max_queue: int
    backends: list[BackendLevel]
    route_stats: dict[str, Any]
    state_changes: list[dict[str, Any]]


class BudgetIn(BaseModel):
    """When the router has counted this many dollars more, its `serverless_use` is this one."""

    model_config = ConfigDict(extra="forbid")

    left_usd: float = Field(ge=0, lt=1e9)
    serverless_use: str = Field(pattern="^(cover|never)$")
    note: str = Field("", max_length=500)


class BudgetKept(BudgetIn):
    """The budget, and what was counted since it was put. Unix seconds; `exhausted_at` null: not yet."""

    model_config = ConfigDict(extra="ignore")

    set_at: float
    counted_usd: float
    unpriced_seconds: float = Field(description="of use at prices that are not configured, which count nothing")
    exhausted_at: float | None


class BudgetOut(BaseModel):
    """`serverless_use` as it is in effect now."""

    budget: BudgetKept | None
    serverless_use: str


class UsedOut(BaseModel):
    """What requests used that ended in a minute; completion_tokens with those that were counted in pieces."""

    requests: int = Field(description="of a backend: those whose last attempt was there")
    request_s: float = Field(description="from arrival to end; of a backend: of the attempts that ended there")
    busy_s: float = Field(description="with at least one of them running")
    prompt_tokens: int
    completion_tokens: int


class MinuteOut(BaseModel):
    """One minute of the wall clock, of all requests that were tried at a backend."""

    at: int = Field(description="Unix seconds, a multiple of 60")
    in_flight: int = Field(description="as it began")
    arrivals: list[tuple[int, int]] = Field(description="[second of the minute, requests that began]")
    ends: list[tuple[int, int]] = Field(description="[second of the minute, requests that ended]")
    backends: dict[str, UsedOut]
    models: dict[str, UsedOut] = Field(description="where something configured asks for the model")
    keys: dict[str, UsedOut]
    whole: bool = Field(description="false while something may be added to it")


class LoadOut(BaseModel):
    """The load, oldest first; a minute in which no request began, ran or ended is left out."""

    now: float
    lives: list[tuple[float, float]] = Field(description="[from, until] of each time that the router ran")
    more: bool = Field(description="there are later minutes than `limit` allowed")
    minutes: list[MinuteOut]


def configuration_schema() -> dict[str, Any]:
    """What `POST /router/config` takes: any subset of the settings, and the founding system's three keys."""
    from pydantic import TypeAdapter

    from tuna_router.settings import Settings

    schema = TypeAdapter(Settings).json_schema()
    definitions = schema.pop("$defs")
    schema["properties"] |= {
        "serverless_url": {"type": "string"},
        "serverless_auth_token": {"type": "string"},
        "spot_url": {"type": "string"},
    }
    schema["additionalProperties"] = False
    definitions[BackendSettings.__name__]["required"] = ["kind", "url"]
    for name in (BackendSettings.__name__, KeySettings.__name__):
        definitions[name]["additionalProperties"] = False
    inlined: dict[str, Any] = _inlined(schema, definitions)
    return inlined


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {name: _inlined(value, definitions) for name, value in schema.items()}
    return [_inlined(item, definitions) for item in schema] if isinstance(schema, list) else schema
