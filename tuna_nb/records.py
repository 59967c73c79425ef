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
    """Times are Unix seconds. state: one of ACTIVE, or destroyed. traffic: the router's last counters."""

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
    traffic: dict[str, Any] | None


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
class UsageRecord:
    """A billed interval of a replica, kept after the provider has forgotten it."""

    resource_id: int
    replica_id: str
    started_at: float
    ended_at: float | None
    price_per_hour_usd: float
    granularity_s: float
