"""Pictures of a board, as views meet them."""

from __future__ import annotations

from typing import Any

from tuna_nb.backends.base import Replica, State
from tuna_nb.costs.bill import Bill, Forecast, Side, Versus
from tuna_nb.deployments.board import LIVE, Picture
from tuna_nb.deployments.moments import Mark, Moment
from tuna_nb.deployments.status import Component, DeploymentStatus

NOW = 1_800_000_000.0
HOSTILE = "<script>alert(1)</script> [bold]not markup[/bold] & 'quotes\""


def bill(**more: Any) -> Bill:
    values: dict[str, Any] = {
        "name": "seen",
        "sides": (
            Side("serverless", "local", 2, 1, 0.5, 0.4, 0.8, 30),
            Side("spot", "local", 1, 1, 2.0, 0.44, 0.22, 70),
        ),
        "usd": 0.84,
        "rate_usd_per_hour": 1.02,
        "requests": 100,
        "prompt_tokens": 900,
        "completion_tokens": 100,
        "error_usd": 0.004,
        "forecast": Forecast(12.0, 340.0, "as the last hour"),
        "versus": (
            Versus("serverless only", 2.0),
            Versus("on-demand only", 1.4),
            Versus("spot only", None, "it would have been away for an hour"),
        ),
        "versus_usd": 0.7,
    }
    return Bill(**values | more)


def status(**more: Any) -> DeploymentStatus:
    replicas = tuple(Replica(f"r{n}", state, NOW - 60) for n, state in enumerate((State.READY, State.STARTING)))
    values: dict[str, Any] = {
        "name": "seen",
        "id": "33ac0e0431",
        "state": "running",
        "model": "Qwen/Qwen3-0.6B",
        "gpu": "1x L4",
        "endpoint_url": "http://127.0.0.1:1",
        "created_at": NOW - 3600,
        "observed_at": NOW,
        "components": (
            Component("serverless", "local", "a", "ready", True, 0.8, replicas[:1]),
            Component("router", "process", "b", "ready", False, 0.0),
            Component("spot", "local", "c", "ready", True, 0.22, replicas),
        ),
    }
    return DeploymentStatus(**values | more)


def moments(count: int = 120, taken_at: int = 60) -> tuple[Moment, ...]:
    """One a second up to now; the spot side is away for twenty of them."""
    made = []
    for second in range(count):
        away = taken_at <= second < taken_at + 20
        made.append(
            Moment(
                NOW - count + 1 + second,
                requests_per_s=6.0,
                split={"serverless": 60 if away else 3, "spot": 0 if away else 57},
                ttft_p50_s=0.3 if away else 0.04,
                ttft_p95_s=0.9 if away else 0.1,
                inter_token_p50_s=0.015,
                inter_token_p95_s=0.03,
                in_flight=4,
                waiting=2 if away else 0,
                states={"serverless": "READY", "spot": "WARMING" if away else "READY"},
            )
        )
    return tuple(made)


def picture(said: str = "a request failed", **more: Any) -> Picture:
    values: dict[str, Any] = {
        "name": "seen",
        "at": NOW,
        "link": LIVE,
        "heard_at": NOW,
        "moments": moments(),
        "marks": (
            Mark(NOW - 60, "state", "spot", f"spot: READY → WARMING ({said})"),
            Mark(NOW - 60, "preemption", "spot", f"spot was taken away ({said})"),
        ),
        "bill": bill(),
        "bill_at": NOW - 5,
        "spending": ((NOW - 20, 1.02), (NOW - 5, 1.02)),
        "status": status(),
        "status_at": NOW - 5,
    }
    return Picture(**values | more)
