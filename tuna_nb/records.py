"""What the store keeps, as plain data: it goes in and out of it, and never holds a secret."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

SILENCE_S = 60
"""A job of another machine that has been silent for so long is taken for dead; it gives a sign every 5 s."""

ACTIVE = ("deploying", "running", "failed", "destroying")
"""States of a deployment of which something may still exist."""


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """Times are Unix seconds. state: one of ACTIVE, or destroyed."""

    id: str
    name: str
    state: str
    request: dict[str, Any]
    plan: dict[str, Any]
    endpoint_url: str | None
    error: str | None
    created_at: float
    updated_at: float
    destroyed_at: float | None


@dataclass(frozen=True, slots=True)
class ResourceRecord:
    """role: serverless, spot or router. state: planned, creating, created, failed, destroying or gone."""

    id: int
    deployment_id: str
    role: str
    provider: str
    name: str
    provider_id: str | None
    state: str
    url: str | None
    error: str | None
    price_per_hour_usd: float | None
    created_at: float
    gone_at: float | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job of any process. host, pid, pid_created_at: who does the work; fraction: 0..1."""

    id: str
    name: str
    verb: str
    deployment_id: str | None
    state: str
    step: str
    fraction: float
    host: str
    pid: int
    pid_created_at: float
    cancel_requested: bool
    started_at: float
    seen_at: float
    ended_at: float | None
    error: str | None

    @property
    def alive(self) -> bool:
        """Whether its process still runs; of another machine, whether it has given a sign of life lately."""
        if self.ended_at is not None:
            return False
        if self.host != socket.gethostname():
            return time.time() - self.seen_at < SILENCE_S
        import psutil

        try:
            return abs(psutil.Process(self.pid).create_time() - self.pid_created_at) < 2
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True, slots=True)
class PriceRecord:
    """The cheapest price of a provider's kind of sale that was seen for a GPU in a region (empty: none told).

    kind: as `catalog.offers.OfferKind`. at: Unix seconds. price_per_hour_usd: of one GPU.
    """

    provider: str
    kind: str
    gpu: str
    region: str
    at: float
    price_per_hour_usd: float


@dataclass(frozen=True, slots=True)
class IntervalRecord:
    """A replica's billed life. Times are Unix seconds.

    ready_at: when it began to serve; None where it never did, or, unless boot_told, nobody tells. ended_at: None
    while it runs. seen_at: the last moment at which it was known to run. prices: (from when, USD per hour with all
    its GPUs, None where unknown), oldest first, the first from its start on. granularity_s, minimum_s: the
    provider's rounding. basis: `measured`, `provider-reported` or `estimated`. error_s: so much longer or shorter
    it may have been.
    """

    resource_id: int
    replica_id: str
    started_at: float
    ready_at: float | None
    ended_at: float | None
    seen_at: float
    prices: tuple[tuple[float, float | None], ...]
    granularity_s: float = 1.0
    minimum_s: float = 0.0
    basis: str = "measured"
    error_s: float = 0.0
    boot_told: bool = True

    @property
    def key(self) -> tuple[str, float]:
        """Among those of its resource."""
        return self.replica_id, self.started_at


@dataclass(frozen=True, slots=True)
class SpentRecord:
    """What ended intervals of a resource cost in a quarter of an hour. quarter: its begin, Unix seconds. The rest
    is as in `costs.amounts.Amount`."""

    resource_id: int
    quarter: int
    usd: float
    seconds: float
    boot_usd: float
    unknown_s: float
    error_usd: float
    starts: int


@dataclass(frozen=True, slots=True)
class TrafficRecord:
    """A minute, or a quarter of an hour, of a deployment's traffic. at: its begin, Unix seconds. told: as in
    `costs.load`."""

    deployment_id: str
    at: int
    told: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A time in which somebody looked without a break. subject: `router` or `resource:ID`. Unix seconds."""

    deployment_id: str
    subject: str
    begun_at: float
    until: float


@dataclass(frozen=True, slots=True)
class ChargeRecord:
    """What a provider's own account says of a resource. Times: Unix seconds. what: its own words."""

    resource_id: int
    started_at: float
    ended_at: float
    what: str
    usd: float


EVERYTHING = "all"
"""Scope of a budget over all deployments; no deployment has such an id."""


@dataclass(frozen=True, slots=True)
class BudgetRecord:
    """scope: a deployment's id, or EVERYTHING. per: `total`, `day` or `month`, by the user's own wall clock.

    warn: per cent at which to tell. action: what happens at 100 %: `notify`, `stop-overflow`, `scale-down` or
    `destroy`. webhook: whether one is told; its address is a secret. created_at: Unix seconds, of the first one of
    this scope and span; a total over all deployments is counted from then on.
    """

    id: str
    scope: str
    limit_usd: float
    per: str
    warn: tuple[float, ...]
    action: str
    webhook: bool
    created_at: float


@dataclass(frozen=True, slots=True)
class FiringRecord:
    """What happened once, whoever noticed it first: a budget's level, or something that bills without serving.

    subject: the budget's id, or `unserving:RESOURCE`. deployment_id: whose it is; empty where a budget over all
    deployments fired. window: the day, month or spell in which it happens once. level: per cent. told: what a
    webhook gets beside the text. action: what was to be done, empty for nothing. done_at: when that was done, Unix
    seconds; trouble: why it has not been. webhook_scope: whose webhook is told, None for none; told_at: when it
    was. held_until: so long somebody is about telling it. tries: of telling it.
    """

    id: int
    subject: str
    deployment_id: str
    window: str
    level: float
    at: float
    text: str
    told: dict[str, Any]
    action: str
    done_at: float | None
    trouble: str
    webhook_scope: str | None
    told_at: float | None
    held_until: float
    tries: int


@dataclass(frozen=True, slots=True)
class QuietRecord:
    """When a deployment's resources count as billing without serving, in seconds. stop: they are stopped then."""

    deployment_id: str
    quiet_s: float
    forgotten_s: float
    stop: bool
